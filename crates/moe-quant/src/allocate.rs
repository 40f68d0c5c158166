//! Which scheme each block gets: the integer program of MxMoE, solved exactly.
//!
//! 1. Every block offers the schemes, each with its bytes, its loss Δ and its time under the tile of the scheme.
//! 2. Blocks that must agree (gate and up, all of an expert …) are joined to one item.
//! 3. For each combination of tiles, one a scheme, [`bit_allocation::allocate_product`] finds the least
//!    `(ΣΔ)^r · T^(1−r)` that fits the bytes.
//! 4. The best combination wins.

use crate::{Block, Error, Profile, Scheme, Sensitivity, Tile, real};
use bit_allocation::{ProductAllocation, Ties, TimedChoice, allocate_product};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How schemes are allocated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllocateConfig {
    /// Exponent of the loss; that of time is `1 − r`. The paper takes 0.75, and 1 for the fewest bits.
    #[serde(default = "paper_r")]
    pub r: f64,
    /// What all blocks together may take.
    pub budget: Budget,
    /// Whether every layer has the budget for itself.
    #[serde(default)]
    pub scope: Scope,
    /// What gets a scheme of its own.
    #[serde(default)]
    pub granularity: Granularity,
    /// How the losses of blocks add up.
    #[serde(default)]
    pub sum: LossSum,
}

fn paper_r() -> f64 {
    0.75
}

impl AllocateConfig {
    /// The paper's defaults: `r = 0.75`, each block by itself but gate and up together, each layer the same budget.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self {
            r: paper_r(),
            budget,
            scope: Scope::default(),
            granularity: Granularity::default(),
            sum: LossSum::default(),
        }
    }
}

/// What the weights of routed experts may take; everything that is stored is counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// Bits a weight on average.
    Bits(f64),
    /// Bytes; layers by themselves get shares by their number of weights.
    Bytes(u64),
}

/// How the losses of blocks add up to the loss `L` of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossSum {
    /// `ΣΔ` (the paper).
    #[default]
    Norms,
    /// `ΣΔ²`: the squared error of the layer if the errors of blocks are uncorrelated, as they nearly are. Large errors of
    /// few blocks weigh more.
    Squares,
}

/// What has to keep within the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every layer (the paper).
    #[default]
    Layer,
    /// All layers together.
    Model,
}

/// What gets a scheme of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// Each matrix.
    Free,
    /// Each expert's gate and up, which run as one product, and each down (the code of the paper).
    #[default]
    Block,
    /// Each expert. A baseline.
    Expert,
    /// Each layer: one scheme for all its blocks. A baseline.
    Layer,
}

/// One layer: what its blocks lose, how large they are and how many rows they see.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerTable {
    widths: [usize; 2],
    losses: Sensitivity,
    rows: Vec<u64>,
}

impl LayerTable {
    /// A layer of widths `[hidden, inner]` with the losses of its blocks and the rows each expert sees in the batch that
    /// times are looked at for.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] unless there is a number of rows for each expert, [`Error::Mixture`] for widths of zero.
    pub fn new(widths: [usize; 2], losses: Sensitivity, rows: Vec<u64>) -> Result<Self, Error> {
        let [hidden, inner] = widths;
        let experts = losses.experts();
        if hidden == 0 || inner == 0 || experts == 0 {
            return Err(Error::Mixture { experts, top_k: 1, hidden, inner });
        }
        if rows.len() != experts {
            return Err(Error::Length { what: "rows of experts", expected: experts, found: rows.len() });
        }
        Ok(Self { widths, losses, rows })
    }

    /// As [`LayerTable::new`] for a batch of `batch` tokens of which experts get the same share as in calibration: expert
    /// `i` sees `⌊batch · countsᵢ / tokens⌋` rows.
    ///
    /// # Errors
    ///
    /// As [`LayerTable::new`].
    pub fn for_batch(
        widths: [usize; 2],
        losses: Sensitivity,
        counts: &quant_calib::ExpertCounts,
        batch: u64,
    ) -> Result<Self, Error> {
        let tokens = u128::from(counts.tokens().max(1));
        let share = |&count: &u64| u64::try_from(u128::from(batch) * u128::from(count) / tokens).unwrap_or(u64::MAX);
        Self::new(widths, losses, counts.counts().iter().map(share).collect())
    }

    /// What its blocks lose.
    #[must_use]
    pub fn losses(&self) -> &Sensitivity {
        &self.losses
    }

    /// The rows each expert sees.
    #[must_use]
    pub fn rows(&self) -> &[u64] {
        &self.rows
    }

    fn weights(&self) -> u64 {
        (self.rows.len() * Block::ALL.len() * self.widths[0] * self.widths[1]) as u64
    }
}

/// The schemes of all blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plan {
    /// The schemes there were to choose from.
    pub schemes: Vec<Scheme>,
    /// Index of the scheme of gate, up and down, by layer and expert.
    pub choices: Vec<Vec<[usize; 3]>>,
    /// Index of the tile of each scheme; empty without a profile.
    pub tiles: Vec<usize>,
    /// Bytes of all blocks.
    pub bytes: u64,
    /// Bits a weight on average.
    pub bits: f64,
    /// `L`: `ΣΔ` or `ΣΔ²`.
    pub loss: f64,
    /// Seconds of one batch through all blocks; 0 without a profile.
    pub seconds: f64,
    /// `L^r · T^(1−r)`; with a budget for each layer, the sum of theirs.
    pub objective: f64,
}

impl Plan {
    /// The scheme of a block.
    ///
    /// # Panics
    ///
    /// When there is no such layer or expert.
    #[must_use]
    pub fn scheme(&self, layer: usize, expert: usize, block: Block) -> Scheme {
        self.schemes[self.choices[layer][expert][block.index()]]
    }
}

/// Combinations of tiles that are searched at most.
const MOST_COMBINATIONS: usize = 4096;
/// What is added to the loss, as a part of the largest, so that a lossless plan still looks at time.
const LEAST_LOSS: f64 = 1e-12;

/// Chooses a scheme for each block of some layers so that `(ΣΔ)^r · T^(1−r)` is least and the budget holds.
///
/// The program of MxMoE (arXiv 2505.05799, section 3), without its general solver: see `allocate_product` for why the result
/// is exact. Departures: bytes count zero points and tensor scales as they are stored; one tile a scheme is part of the
/// program, where the paper's lets each block have its own and exports the last; `r = 1` needs no profile.
///
/// # Errors
///
/// [`Error::Budget`] with the least that would do, [`Error::Bits`], [`Error::NoProfile`], [`Error::NoTimes`],
/// [`Error::Tiles`], [`Error::Nothing`], [`Error::Length`] when layers offer different schemes, and the errors of
/// [`allocate_product`].
pub fn allocate(layers: &[LayerTable], profile: Option<&Profile>, config: &AllocateConfig) -> Result<Plan, Error> {
    let Some(first) = layers.first() else { return Err(Error::Nothing { what: "layers" }) };
    let schemes = first.losses.schemes();
    if let Some(other) = layers.iter().find(|layer| layer.losses.schemes() != schemes) {
        let found = other.losses.schemes().len();
        return Err(Error::Length { what: "the schemes of another layer", expected: schemes.len(), found });
    }
    if config.r < 1.0 && profile.is_none() {
        return Err(Error::NoProfile { r: config.r });
    }
    let parts: Vec<&[LayerTable]> = match config.scope {
        Scope::Layer => layers.chunks(1).collect(),
        Scope::Model => vec![layers],
    };
    let total: u64 = layers.iter().map(LayerTable::weights).sum();
    let programs = parts.into_iter().map(|part| Program::new(part, schemes, profile, config, total));
    let programs: Vec<Program<'_>> = programs.collect::<Result<_, _>>()?;

    let one = |tiles: Vec<usize>| -> Result<_, Error> {
        let solved: Vec<Solved> = programs.iter().map(|program| program.solve(&tiles)).collect::<Result<_, _>>()?;
        let objective: f64 = solved.iter().map(|solved| solved.objective).sum();
        let seconds: f64 = solved.iter().map(|solved| solved.seconds).sum();
        Ok((objective, seconds, tiles, solved))
    };
    let found: Vec<Result<_, Error>> = combinations(schemes, profile, layers)?.into_par_iter().map(one).collect();
    let found: Vec<_> = found.into_iter().collect::<Result<_, _>>()?;
    // The first of equals, whatever the number of threads.
    let best = found.into_iter().reduce(|best, next| if (next.0, next.1) < (best.0, best.1) { next } else { best });
    let Some((objective, seconds, tiles, solved)) = best else { return Err(Error::Nothing { what: "tiles" }) };
    let bytes = solved.iter().map(|solved| solved.bytes).sum();
    let tiles = if profile.is_some() { tiles } else { Vec::new() };
    Ok(Plan {
        schemes: schemes.to_vec(),
        bytes,
        bits: 8.0 * real(bytes) / real(total),
        loss: solved.iter().map(|solved| solved.loss).sum(),
        seconds,
        objective,
        tiles,
        choices: solved.into_iter().flat_map(|solved| solved.choices).collect(),
    })
}

/// [`allocate`] for several exponents; the paper looks at 0, 0.25, 0.5, 0.75 and 1.
///
/// # Errors
///
/// As [`allocate`].
pub fn sweep(
    layers: &[LayerTable],
    profile: &Profile,
    config: &AllocateConfig,
    exponents: &[f64],
) -> Result<Vec<Plan>, Error> {
    exponents.iter().map(|&r| allocate(layers, Some(profile), &AllocateConfig { r, ..config.clone() })).collect()
}

/// What one budget is for.
struct Program<'a> {
    layers: &'a [LayerTable],
    schemes: &'a [Scheme],
    profile: Option<&'a Profile>,
    r: f64,
    sum: LossSum,
    budget: u64,
    ties: Ties,
    /// Bytes of each layer's blocks under each scheme, `[layers][3][schemes]`.
    bytes: Vec<[Vec<u64>; 3]>,
}

struct Solved {
    choices: Vec<Vec<[usize; 3]>>,
    bytes: u64,
    loss: f64,
    seconds: f64,
    objective: f64,
}

impl<'a> Program<'a> {
    fn new(
        layers: &'a [LayerTable],
        schemes: &'a [Scheme],
        profile: Option<&'a Profile>,
        config: &AllocateConfig,
        total: u64,
    ) -> Result<Self, Error> {
        let weights: u64 = layers.iter().map(LayerTable::weights).sum();
        let bytes = layers.iter().map(|layer| {
            let of = |block: Block| -> Result<Vec<u64>, Error> {
                schemes.iter().map(|scheme| scheme.bytes(block.shape(layer.widths))).collect()
            };
            let [gate, up, down] = Block::ALL.map(of);
            Ok::<[Vec<u64>; 3], Error>([gate?, up?, down?])
        });
        let bytes: Vec<[Vec<u64>; 3]> = bytes.collect::<Result<_, _>>()?;
        let budget = budget_bytes(config.budget, weights, total)?;
        let smallest = layers
            .iter()
            .zip(&bytes)
            .map(|(layer, bytes)| layer.rows.len() as u64 * smallest_expert(bytes, config.granularity));
        let smallest: u64 = smallest.sum();
        if smallest > budget {
            let what = if config.scope == Scope::Layer { "a layer" } else { "all layers" };
            let smallest_bits = 8.0 * real(smallest) / real(weights);
            return Err(Error::Budget { what: what.into(), budget, smallest, smallest_bits });
        }
        Ok(Self {
            layers,
            schemes,
            profile,
            r: config.r,
            sum: config.sum,
            budget,
            ties: ties(layers, config.granularity)?,
            bytes,
        })
    }

    fn solve(&self, tiles: &[usize]) -> Result<Solved, Error> {
        let mut items = self.items(tiles)?;
        let largest = |item: &Vec<TimedChoice>| item.iter().fold(0.0_f64, |most, choice| most.max(choice.loss));
        let least = LEAST_LOSS * items.iter().map(largest).sum::<f64>();
        items.iter_mut().take(1).flatten().for_each(|choice| choice.loss += least);
        let joined = self.ties.join(&items)?;
        let ProductAllocation { choices, cost, loss, time, objective } =
            allocate_product(&joined, self.budget, self.r)?;
        let flat = self.ties.spread(&choices)?;
        let mut experts = flat.chunks_exact(Block::ALL.len()).map(|c| [c[0], c[1], c[2]]);
        let choices = self.layers.iter().map(|layer| experts.by_ref().take(layer.rows.len()).collect()).collect();
        Ok(Solved { choices, bytes: cost, loss: loss - least, seconds: time, objective })
    }

    /// All blocks, layer by layer and expert by expert.
    fn items(&self, tiles: &[usize]) -> Result<Vec<Vec<TimedChoice>>, Error> {
        let mut items = Vec::new();
        for (layer, bytes) in self.layers.iter().zip(&self.bytes) {
            // What a layer takes whatever the plan is part of the time of its first block.
            let all = layer.rows.iter().fold(0_u64, |sum, rows| sum.saturating_add(*rows));
            let mut overhead = self.profile.map_or(0.0, |profile| profile.overhead(all, layer.widths));
            for (expert, &rows) in layer.rows.iter().enumerate() {
                for block in Block::ALL {
                    let more = std::mem::take(&mut overhead);
                    let option = |(index, scheme): (usize, &Scheme)| {
                        let time = match self.profile {
                            None => 0.0,
                            Some(profile) => {
                                more + profile.seconds(*scheme, tiles[index], rows, block.shape(layer.widths))?
                            }
                        };
                        let delta = layer.losses.delta(expert, block, index);
                        let loss = if self.sum == LossSum::Squares { delta * delta } else { delta };
                        Ok(TimedChoice { cost: bytes[block.index()][index], loss, time })
                    };
                    items.push(self.schemes.iter().enumerate().map(option).collect::<Result<_, Error>>()?);
                }
            }
        }
        Ok(items)
    }
}

fn budget_bytes(budget: Budget, weights: u64, total: u64) -> Result<u64, Error> {
    match budget {
        Budget::Bits(bits) if !bits.is_finite() || bits <= 0.0 => Err(Error::Bits { bits }),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and `as` saturates")]
        // A hair more, so that 2.25 bits of what takes exactly 2.25 bits are not lost to rounding.
        Budget::Bits(bits) => Ok((bits * real(weights) / 8.0 * (1.0 + 1e-12)) as u64),
        Budget::Bytes(bytes) => {
            let share = u128::from(bytes) * u128::from(weights) / u128::from(total.max(1));
            Ok(u64::try_from(share).unwrap_or(u64::MAX))
        }
    }
}

/// Least bytes of an expert; where blocks are tied, they take one scheme.
fn smallest_expert(bytes: &[Vec<u64>; 3], granularity: Granularity) -> u64 {
    let least = |blocks: &[usize]| {
        let schemes = 0..bytes[0].len();
        schemes.map(|scheme| blocks.iter().map(|&b| bytes[b][scheme]).sum::<u64>()).min().unwrap_or(0)
    };
    match granularity {
        Granularity::Free => least(&[0]) + least(&[1]) + least(&[2]),
        Granularity::Block => least(&[0, 1]) + least(&[2]),
        Granularity::Expert | Granularity::Layer => least(&[0, 1, 2]),
    }
}

fn ties(layers: &[LayerTable], granularity: Granularity) -> Result<Ties, Error> {
    let (mut groups, mut first) = (Vec::new(), 0);
    for layer in layers {
        let experts = layer.rows.len();
        let starts = (0..experts).map(|expert| first + Block::ALL.len() * expert);
        match granularity {
            Granularity::Free => {}
            Granularity::Block => groups.extend(starts.map(|start| vec![start, start + 1])),
            Granularity::Expert => groups.extend(starts.map(|start| (start..start + Block::ALL.len()).collect())),
            Granularity::Layer => groups.push((first..first + Block::ALL.len() * experts).collect()),
        }
        first += Block::ALL.len() * experts;
    }
    Ok(Ties::new(first, &groups)?)
}

/// All ways to give each scheme one of its tiles, all of one group, without tiles that are never better than another.
fn combinations(
    schemes: &[Scheme],
    profile: Option<&Profile>,
    layers: &[LayerTable],
) -> Result<Vec<Vec<usize>>, Error> {
    let Some(profile) = profile else { return Ok(vec![vec![0; schemes.len()]]) };
    let tiles: Vec<&[Tile]> = schemes.iter().map(|scheme| profile.tiles(*scheme)).collect::<Result<_, _>>()?;
    let useful: Vec<Vec<usize>> = tiles.iter().map(|tiles| useful(tiles, layers)).collect();
    let mut groups: Vec<u32> = tiles.iter().flat_map(|tiles| tiles.iter().map(|tile| tile.group)).collect();
    groups.sort_unstable();
    groups.dedup();
    let mut all: Vec<Vec<usize>> = Vec::new();
    for group in groups {
        let of_group = useful.iter().zip(&tiles).map(|(useful, tiles)| {
            useful.iter().copied().filter(|&tile| tiles[tile].group == group).collect::<Vec<usize>>()
        });
        let of_group: Vec<Vec<usize>> = of_group.collect();
        let found = of_group.iter().fold(1_usize, |product, tiles| product.saturating_mul(tiles.len()));
        if all.len().saturating_add(found) > MOST_COMBINATIONS {
            return Err(Error::Tiles { found: all.len().saturating_add(found), most: MOST_COMBINATIONS });
        }
        let mut product = vec![Vec::new()];
        for tiles in &of_group {
            let extend = |prefix: &Vec<usize>| {
                let prefix = prefix.clone();
                tiles.iter().map(move |&tile| [prefix.clone(), vec![tile]].concat())
            };
            product = product.iter().flat_map(extend).collect();
        }
        all.extend(product);
    }
    if all.is_empty() { Err(Error::Tiles { found: 0, most: MOST_COMBINATIONS }) } else { Ok(all) }
}

/// The tiles of a scheme without those that another of their group beats, or equals before them, for every block.
fn useful(tiles: &[Tile], layers: &[LayerTable]) -> Vec<usize> {
    let times = |tile: &Tile| -> Vec<f64> {
        let blocks = layers.iter().flat_map(|layer| {
            let shapes = [Block::Gate, Block::Down].map(|block| block.shape(layer.widths));
            layer.rows.iter().flat_map(move |&rows| shapes.map(|shape| (rows, shape)))
        });
        blocks.map(|(rows, shape)| tile.seconds(rows, shape)).collect()
    };
    let times: Vec<Vec<f64>> = tiles.iter().map(times).collect();
    let beats = |a: usize, b: usize| {
        let never_slower = times[a].iter().zip(&times[b]).all(|(a, b)| a <= b);
        tiles[a].group == tiles[b].group && never_slower && (times[a] != times[b] || a < b)
    };
    (0..tiles.len()).filter(|&tile| !(0..tiles.len()).any(|other| beats(other, tile))).collect()
}
