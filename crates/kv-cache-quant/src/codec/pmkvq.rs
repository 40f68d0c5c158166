//! PM-KVQ (arXiv 2505.18610): codes of 16 bits that are halved in place, to 8, 4 and 2, as memory fills.

use crate::codec::{Codec, UnitBytes, check_heads};
use crate::kernels::{self, Affine};
use crate::pack;
use crate::packed::{Coding, Meta, PackedRows};
use crate::{Error, KvGeometry, KvPolicy};
use bit_allocation::{Allocation, Choice, allocate};
use half::f16;
use quant_core::bits;

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// 2 bits.
    W2,
    /// 4 bits.
    W4,
    /// 8 bits.
    W8,
    /// 16 bits.
    W16,
}

impl Width {
    /// Widths from the finest to the coarsest: the stages of [`PmKvq`].
    pub const LADDER: [Self; 4] = [Self::W16, Self::W8, Self::W4, Self::W2];

    /// Number of bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::W2 => 2,
            Self::W4 => 4,
            Self::W8 => 8,
            Self::W16 => 16,
        }
    }
}

/// The code of half the width, "equivalent right shift" (paper, equation 3):
/// `X_b = ((2^2b − 2^b + 1)·(X_2b + 2^(b−1))) >> 3b`, which is `X_2b/(2^b + 1)` rounded to nearest. The range stays:
/// 0 goes to 0 and the largest code to the largest.
///
/// Since `2^b + 1` is odd there are no ties, and every boundary between coarse codes is one between fine codes too:
/// going down step by step ends where rounding at once would have.
///
/// # Errors
///
/// [`Error::Unsupported`] for 2 bits, which nothing is below.
///
/// # Examples
///
/// ```
/// use kv_cache_quant::{Width, shrink_code};
/// assert_eq!(shrink_code(40000, Width::W16)?, 156);
/// assert_eq!(shrink_code(156, Width::W8)?, 9);
/// assert_eq!(shrink_code(9, Width::W4)?, 2);
/// # Ok::<(), kv_cache_quant::Error>(())
/// ```
pub fn shrink_code(code: u16, from: Width) -> Result<u16, Error> {
    if from == Width::W2 {
        return Err(Error::Unsupported { what: "shrink", found: "2 bits".into(), supported: "16, 8 and 4 bits" });
    }
    Ok(shrunk(code, from.bits() / 2))
}

/// To `b` bits; the product needs 32.
#[expect(clippy::cast_possible_truncation, reason = "the quotient has b bits")]
fn shrunk(code: u16, b: u32) -> u16 {
    let factor = (1_u64 << (2 * b)) - (1 << b) + 1;
    ((factor * (u64::from(code) + (1 << (b - 1)))) >> (3 * b)) as u16
}

/// Parameters of PM-KVQ's codec.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PmKvqConfig {
    /// Channels of a head that share a range; 0: all of the head. The last group of a head may be smaller.
    pub group: usize,
    /// Tokens that wait in full precision until they are sealed together.
    pub residual: usize,
    /// The least width to go down to.
    pub floor: Width,
}

impl Default for PmKvqConfig {
    fn default() -> Self {
        Self { group: 0, residual: 128, floor: Width::W2 }
    }
}

/// PM-KVQ's codec for one stream: asymmetric codes of 16 bits by token and group, and three stages below.
///
/// With `min` and `range = max − min` of the group as they are stored (f16), `S_b = range/(2^b − 1)`, `q = clamp(rne((x
/// − min)/S_16), 0, 65535)` in f64, lower widths by [`shrink_code`], `x ≈ q·S_b + min` in f32. Lowering the width reads
/// and writes codes only.
///
/// A unit is codes, token by token in one bit stream, then minimum and range of each group.
///
/// Departures: the reference keeps scale and zero point in bf16 and multiplies the scale at every shrink, which makes
/// it drift; its first token and the tokens that wait are 16-bit codes, here rows in full precision
/// ([`KvPolicy::precision`]); it halves once an append, here as often as the budget asks; its budget counts codes, here
/// every byte. Set `sinks: 1` in the policy to have its first token.
#[derive(Clone, Debug, PartialEq)]
pub struct PmKvq {
    heads: usize,
    dim: usize,
    config: PmKvqConfig,
}

impl PmKvq {
    /// For rows of `heads` heads of `dim` elements.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for no heads, or a residual of no tokens or more than 2^14.
    pub fn new(heads: usize, dim: usize, config: PmKvqConfig) -> Result<Self, Error> {
        check_heads(heads, dim)?;
        if config.residual == 0 || config.residual > 1 << 14 {
            let found = format!("{} tokens", config.residual);
            return Err(Error::Unsupported { what: "residual of PM-KVQ", found, supported: "1 to 16384 tokens" });
        }
        Ok(Self { heads, dim, config })
    }

    fn group(&self) -> usize {
        if self.config.group == 0 { self.dim } else { self.config.group.min(self.dim) }
    }

    fn code_bytes(&self, bits: u32) -> usize {
        (self.width() * self.config.residual * bits as usize).div_ceil(8)
    }

    fn open_unit(&self, unit: &[u8], stage: usize, rows: &mut [f32]) {
        let width = Width::LADDER[stage].bits();
        let (codes, meta) = unit.split_at(self.code_bytes(width));
        let groups = meta.len() / META;
        let (mut steps, mut mins) = (vec![0.0; groups], vec![0.0; groups]);
        for ((step, min), meta) in steps.iter_mut().zip(&mut mins).zip(meta.chunks_exact(META)) {
            (*step, *min) = step_and_min(meta, width);
        }
        if width == 16 {
            let mut codes = codes.chunks_exact(2);
            let mut params = steps.iter().zip(&mins);
            for group in rows.chunks_exact_mut(self.dim).flat_map(|head| head.chunks_mut(self.group())) {
                let Some((&step, &min)) = params.next() else { break };
                for (x, b) in group.iter_mut().zip(&mut codes) {
                    *x = f32::from(u16::from_le_bytes([b[0], b[1]])) * step + min;
                }
            }
        } else {
            // The last byte of a unit may be filled up.
            let mut unpacked = vec![0; codes.len() * (8 / width) as usize];
            kernels::unpack(width, codes, &mut unpacked);
            let layout = Affine { row: self.dim, group: self.group(), sign: 0 };
            kernels::affine(&unpacked[..rows.len()], layout, &steps, &mins, rows);
        }
    }

    /// Groups of all tokens of a unit.
    fn groups<'a>(&self, rows: &'a [f32]) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let group = self.group();
        rows.chunks_exact(self.dim).flat_map(move |head| head.chunks(group))
    }
}

const META: usize = 4;

/// Minimum and range as they are stored.
fn read_meta(meta: &[u8]) -> (f64, f64) {
    let half = |at: usize| f16::from_le_bytes([meta[at], meta[at + 1]]).to_f64();
    (half(0), half(2))
}

/// `S_b` and the minimum.
fn step_and_min(meta: &[u8], width: u32) -> (f32, f32) {
    let (min, range) = read_meta(meta);
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f32 once")]
    let (step, min) = ((range / f64::from((1_u32 << width) - 1)) as f32, min as f32);
    (step, min)
}

fn write_meta(group: &[f32], meta: &mut [u8]) -> Result<(), quant_core::Error> {
    let lo = group.iter().copied().fold(f32::INFINITY, f32::min);
    let hi = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (value, out) in [lo, hi - lo].into_iter().zip(meta.chunks_exact_mut(2)) {
        let stored = f16::from_f32(value);
        if !stored.is_finite() {
            return Err(quant_core::Error::ScaleOverflow { block: 0, value });
        }
        out.copy_from_slice(&stored.to_le_bytes());
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=65535")]
fn encode(x: f32, min: f64, range: f64) -> u16 {
    if range > 0.0 {
        ((f64::from(x) - min) / (range / 65535.0)).round_ties_even().clamp(0.0, 65535.0) as u16
    } else {
        0
    }
}

impl Codec for PmKvq {
    fn width(&self) -> usize {
        self.heads * self.dim
    }

    fn unit(&self) -> usize {
        self.config.residual
    }

    fn stages(&self) -> usize {
        Width::LADDER.iter().filter(|&&width| width >= self.config.floor).count()
    }

    fn bytes(&self, stage: usize) -> UnitBytes {
        let groups = self.config.residual * self.heads * self.dim.div_ceil(self.group());
        UnitBytes { codes: self.code_bytes(Width::LADDER[stage].bits()), metadata: META * groups }
    }

    fn seal(&self, rows: &[f32], stage: usize, out: &mut [u8]) -> Result<(), quant_core::Error> {
        let width = Width::LADDER[stage].bits();
        let (codes_out, meta_out) = out.split_at_mut(self.code_bytes(width));
        let mut codes = Vec::with_capacity(rows.len());
        for (group, meta) in self.groups(rows).zip(meta_out.chunks_exact_mut(META)) {
            write_meta(group, meta)?;
            let (min, range) = read_meta(meta);
            codes.extend(group.iter().map(|&x| encode(x, min, range)));
        }
        for &step in &Width::LADDER[1..=stage] {
            codes.iter_mut().for_each(|code| *code = shrunk(*code, step.bits()));
        }
        codes_out.copy_from_slice(&bits::pack(width, &codes)?);
        Ok(())
    }

    fn open(&self, units: &[u8], stage: usize, rows: &mut [f32]) -> Result<(), quant_core::Error> {
        let units = units.chunks_exact(self.bytes(stage).total());
        let rows = rows.chunks_exact_mut(self.config.residual * self.width());
        units.zip(rows).for_each(|(unit, rows)| self.open_unit(unit, stage, rows));
        Ok(())
    }

    fn shrink(&self, unit: &[u8], stage: usize, out: &mut [u8]) {
        let (from, to) = (Width::LADDER[stage].bits(), Width::LADDER[stage + 1].bits());
        let (codes, meta) = unit.split_at(self.code_bytes(from));
        let (codes_out, meta_out) = out.split_at_mut(self.code_bytes(to));
        meta_out.copy_from_slice(meta);
        // Widths divide a byte, so that two old bytes make a new one; a last one alone is half filled up.
        let pairs = codes.len() / 2;
        pack::halve_codes(from, codes, codes_out);
        for (old, new) in codes.chunks(2).zip(codes_out).skip(pairs) {
            let old = u32::from(old[0]) | u32::from(old.get(1).copied().unwrap_or(0)) << 8;
            #[expect(clippy::cast_possible_truncation, reason = "masked to the width of a code")]
            let code = |at: u32| shrunk(((old >> (at * from)) & ((1 << from) - 1)) as u16, to) << (at * to);
            #[expect(clippy::cast_possible_truncation, reason = "half of 16 bits")]
            let halved = (0..16 / from).map(code).sum::<u16>() as u8;
            *new = halved;
        }
    }

    fn packed(&self, stage: usize) -> Option<PackedRows> {
        let bits = Width::LADDER[stage].bits();
        let coding = if bits == 16 { Coding::Word } else { Coding::Int { bits, signed: false } };
        let steps = f32::from(u16::MAX >> (16 - bits));
        let rows = PackedRows {
            coding,
            heads: self.heads,
            columns: self.dim,
            group: self.group(),
            rows: self.config.residual,
            row_bytes: self.width() * coding.bits() / 8,
            unit_bytes: self.bytes(stage).total(),
            meta: Meta::MinRange { steps },
            transposed: false,
        };
        ((self.dim * coding.bits()).is_multiple_of(8) && rows.has_kernels()).then_some(rows)
    }

    fn description(&self) -> String {
        format!("pm-kvq of [{}, {}], {:?}", self.heads, self.dim, self.config)
    }
}

/// Bytes that one layer takes at most while it holds up to `tokens` tokens and its sealed ones end at `width`:
/// everything counted, the rows in full precision and the padding of the last page too. This is the budget to give to
/// [`KvPolicy::budget`].
///
/// # Errors
///
/// As [`PmKvq::new`] and [`QuantizedKv::new`](crate::QuantizedKv::new); [`Error::Unsupported`] for widths below the
/// floor.
pub fn layer_bytes(
    geometry: KvGeometry,
    config: &PmKvqConfig,
    policy: KvPolicy,
    tokens: usize,
    width: Width,
) -> Result<u64, Error> {
    if width < config.floor {
        let found = format!("{width:?}");
        return Err(Error::Unsupported { what: "final width", found, supported: "widths not below the floor" });
    }
    let stage = Width::LADDER.iter().filter(|&&finer| finer > width).count();
    Ok(config.cache(geometry, crate::KeyStorage::PostRope, policy)?.bytes_for(tokens, stage))
}

impl PmKvqConfig {
    /// An empty cache with this codec for keys and values.
    ///
    /// # Errors
    ///
    /// As [`PmKvq::new`] and [`QuantizedKv::new`](crate::QuantizedKv::new).
    pub fn cache(
        &self,
        geometry: KvGeometry,
        storage: crate::KeyStorage,
        policy: KvPolicy,
    ) -> Result<crate::QuantizedKv, Error> {
        let keys = PmKvq::new(geometry.kv_heads, geometry.dim_k, self.clone())?;
        let values = PmKvq::new(geometry.kv_heads, geometry.dim_v, self.clone())?;
        crate::QuantizedKv::new(geometry, storage, std::sync::Arc::new(keys), std::sync::Arc::new(values), policy)
    }
}

/// What layers lose at each width, from calibration: equation 5 of the paper, `‖G_K ⊙ ΔK‖₁ + ‖G_V ⊙ ΔV‖₁` with the
/// gradients of the loss, or any other measure that adds up over layers.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    /// Widths that a layer may end at.
    pub widths: Vec<Width>,
    /// `[layer][width]`, layers by their index in the model.
    pub loss: Vec<Vec<f64>>,
}

impl Sensitivity {
    /// Chooses the final width of every layer so that all of them together take at most `total` bytes and lose least;
    /// `bytes[width]` is what a layer takes at each of the widths, see [`layer_bytes`].
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] when the table is ragged; [`Error::Allocation`] for losses that are negative or not finite and
    /// for budgets that nothing fits, with the least that would do.
    ///
    /// # Examples
    ///
    /// ```
    /// use kv_cache_quant::{Sensitivity, Width};
    /// let widths = vec![Width::W2, Width::W4];
    /// let table = Sensitivity { widths, loss: vec![vec![9.0, 1.0], vec![2.0, 0.5], vec![6.0, 2.0]] };
    /// assert_eq!(table.allocate(&[100, 200], 400)?, [Width::W4, Width::W2, Width::W2]);
    /// # Ok::<(), kv_cache_quant::Error>(())
    /// ```
    pub fn allocate(&self, bytes: &[u64], total: u64) -> Result<Vec<Width>, Error> {
        let expected = self.widths.len();
        for (what, found) in std::iter::once(("bytes of widths", bytes.len()))
            .chain(self.loss.iter().map(|row| ("losses of a layer", row.len())))
        {
            if found != expected {
                return Err(Error::Shape { what, expected, found });
            }
        }
        let item = |row: &Vec<f64>| bytes.iter().zip(row).map(|(&cost, &loss)| Choice { cost, loss }).collect();
        let items: Vec<Vec<Choice>> = self.loss.iter().map(item).collect();
        let Allocation { choices, .. } = allocate(&items, total)?;
        Ok(choices.into_iter().map(|choice| self.widths[choice]).collect())
    }
}

/// Positions `0, s, 2s, …` with `s = effective/tokens` for calibration on short texts: slowly turning channels then
/// show the spread that they reach in texts of `effective` tokens. Largest magnitudes of keys at these positions go
/// into [`ChannelAffine::smooth`](crate::ChannelAffine::smooth) and
/// [`share_rope_pairs`](crate::ChannelAffine::share_rope_pairs) for the key scales of the paper.
///
/// # Errors
///
/// [`Error::Unsupported`] when `effective` is no positive multiple of `tokens`, or beyond 32 bits.
///
/// # Examples
///
/// ```
/// assert_eq!(kv_cache_quant::stretched_positions(4, 16)?, [0, 4, 8, 12]);
/// # Ok::<(), kv_cache_quant::Error>(())
/// ```
pub fn stretched_positions(tokens: usize, effective: usize) -> Result<Vec<u32>, Error> {
    let length =
        u32::try_from(effective).ok().filter(|&length| length > 0 && tokens > 0 && effective.is_multiple_of(tokens));
    let Some(length) = length else {
        return Err(Error::Unsupported {
            what: "effective length",
            found: format!("{effective} for texts of {tokens} tokens"),
            supported: "positive multiples of the length of the texts",
        });
    };
    Ok((0..length).step_by(effective / tokens).collect())
}
