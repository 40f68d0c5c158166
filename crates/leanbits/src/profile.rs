//! Measuring what products with packed weights take on this machine, for allocations that weigh time.

use crate::{Error, Progress};
use moe_quant::{
    Activation, BlockLinear, Device, DeviceKind, Dispatch, MixedExperts, Profile, Scheme, SchemeTimes, Scratch, Tile,
    TileTimes,
};
use quant_core::{Footprint, Group, Linear, PackedTensor, Shaped, fake_quantize, grouped_matmul};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileOptions {
    /// Schemes.
    pub schemes: Vec<Scheme>,
    /// Shapes `[out, in]` of weights; those of the experts that the profile is for, that of gate and up first.
    pub shapes: Vec<[usize; 2]>,
    /// Numbers of rows of an expert, rising.
    pub rows: Vec<usize>,
    /// Experts of a layer: products that run in one call, so that their inputs and outputs lie in the same caches.
    pub experts: usize,
    /// Experts a token.
    pub top_k: usize,
    /// Weights of a shape that are multiplied in turn: as many as the model has, so that caches hold as few of them as they
    /// will.
    pub weights: usize,
    /// Seconds to spend on each measurement at least.
    pub seconds: f64,
    /// Times that everything is measured, one pass after the other: a machine that is slow for a while is not slow in all.
    pub passes: usize,
}

impl ProfileOptions {
    /// Some schemes for some shapes, for 1 to 512 rows of each of 16 experts, with 64 weights in turn.
    #[must_use]
    pub fn new(schemes: Vec<Scheme>, shapes: Vec<[usize; 2]>) -> Self {
        let rows = vec![1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512];
        Self { schemes, shapes, rows, experts: 16, top_k: 2, weights: 64, seconds: 0.004, passes: 2 }
    }
}

/// Bytes of the weights that are multiplied in turn: more than caches hold, so that more weights would change nothing.
const MOST_BYTES: u64 = 1 << 29;
/// Products of two numbers in a call that is timed, at most: more experts would change nothing.
const MOST_PRODUCTS: usize = 1 << 31;
/// Rows of all experts for which everything but products is timed.
const LAYER_ROWS: [usize; 8] = [1, 8, 64, 256, 1024, 4096, 8192, 16384];
/// Features of all these rows, at most.
const MOST_FEATURES: usize = 1 << 26;

/// Measures what a layer of experts does on this machine and its threads, in two parts.
///
/// 1. Products: as many weights as a layer has experts are multiplied in one grouped call on all threads, so that memory,
///    caches and clocks are as shared as they will be, each time other weights of the model. A tile is one output of a
///    weight of one shape.
/// 2. Everything else: [`MixedExperts`] runs with weights that take no time, for several numbers of rows.
///
/// Times are the least of several runs and of several passes, so that a busy machine disturbs little.
///
/// # Errors
///
/// [`Error::Experts`] for schemes that cannot hold a shape and for lists that are empty or do not rise.
pub fn measure_profile(options: &ProfileOptions, progress: &mut dyn Progress) -> Result<Profile, Error> {
    let refused = |source| Error::Experts { file: "the profile".into(), source: Box::new(source) };
    let passes = options.passes.max(1);
    progress.begin("measuring", (passes * options.schemes.len() * options.shapes.len()) as u64);
    let mut least = Pass::measure(options, progress).map_err(refused)?;
    for _ in 1..passes {
        let mut again = Pass::measure(options, progress).map_err(refused)?;
        least.seconds().zip(again.seconds()).for_each(|((_, least), (_, again))| *least = least.min(*again));
    }
    progress.end();
    let Pass { schemes, overhead } = least;
    Profile::new(this_device(), schemes).and_then(|profile| profile.with_overhead(overhead)).map_err(refused)
}

/// Everything measured once.
struct Pass {
    schemes: Vec<SchemeTimes>,
    overhead: TileTimes,
}

impl Pass {
    fn measure(options: &ProfileOptions, progress: &mut dyn Progress) -> Result<Self, moe_quant::Error> {
        let (Some(first), false, false) = (options.shapes.first(), options.schemes.is_empty(), options.rows.is_empty())
        else {
            return Err(moe_quant::Error::Nothing { what: "schemes, shapes or rows to measure" });
        };
        let mut schemes = Vec::with_capacity(options.schemes.len());
        for scheme in &options.schemes {
            let mut times: Vec<TileTimes> = Vec::new();
            for &[outputs, features] in &options.shapes {
                if times.iter().all(|known| known.features != features) {
                    let seconds = measure(*scheme, [outputs, features], options)?;
                    times.push(TileTimes { features, seconds });
                }
                progress.advance(1, &format!("{scheme} {outputs} × {features}"));
            }
            times.sort_by_key(|entry| entry.features);
            let tile = Tile { columns: 1, group: 0, launch: 0.0, times };
            schemes.push(SchemeTimes { scheme: *scheme, tiles: vec![tile] });
        }
        Ok(Self { schemes, overhead: overhead(*first, options)? })
    }

    /// All rows with their seconds.
    fn seconds(&mut self) -> impl Iterator<Item = &mut (usize, f64)> {
        let tiles = self.schemes.iter_mut().flat_map(|entry| &mut entry.tiles);
        tiles.flat_map(|tile| &mut tile.times).chain([&mut self.overhead]).flat_map(|times| &mut times.seconds)
    }
}

/// Rows, and the seconds of one thread for one output of so many rows.
fn measure(
    scheme: Scheme,
    [outputs, features]: [usize; 2],
    options: &ProfileOptions,
) -> Result<Vec<(usize, f64)>, moe_quant::Error> {
    let weight = values(outputs * features);
    let packed = PackedTensor::encode(scheme.weight, &Shaped::new(&weight, &[outputs, features])?)?;
    let threads = rayon::current_num_threads();
    let most = usize::try_from(MOST_BYTES / packed.footprint().total_bytes().max(1)).unwrap_or(usize::MAX);
    let count = options.weights.clamp(1, most.max(2 * threads));
    let blocks = BlockLinear::copies(scheme, &packed, count);
    let mut next = (0..count).cycle();
    let mut times = Vec::with_capacity(options.rows.len());
    for &rows in &options.rows {
        let most = MOST_PRODUCTS / (rows * outputs * features).max(1);
        // As many for each thread, so that none waits.
        let groups = options.experts.clamp(1, most.max(2 * threads)).div_ceil(threads) * threads;
        let (x, mut y) = (values(groups * rows * features), vec![0.0; groups * rows * outputs]);
        let seconds = least(options.seconds, || {
            let batch = next.by_ref().take(groups).filter_map(|at| blocks.get(at));
            let batch: Vec<&BlockLinear> = batch.collect();
            let rounding = batch.first().and_then(|block| block.activation);
            let batch: Vec<Group<'_>> =
                batch.into_iter().map(|block| Group { weight: block.weight.as_ref(), rows }).collect();
            match rounding {
                Some(format) => {
                    let rounded = fake_quantize(format, &Shaped::new(&x, &[groups * rows, features])?)?;
                    Ok(grouped_matmul(&batch, &rounded, &mut y)?)
                }
                None => Ok(grouped_matmul(&batch, &x, &mut y)?),
            }
        })?;
        times.push((rows, seconds * real(threads) / real(groups) / real(outputs)));
    }
    Ok(times)
}

/// What a layer does beside products, by the rows of all experts.
fn overhead([inner, hidden]: [usize; 2], options: &ProfileOptions) -> Result<TileTimes, moe_quant::Error> {
    let (experts, features) = (options.experts.max(1), hidden + inner);
    let nothing = |shape| BlockLinear { weight: Arc::new(Nothing { shape }), activation: None };
    let expert = || [nothing([inner, hidden]), nothing([inner, hidden]), nothing([hidden, inner])];
    let layer = MixedExperts::new((0..experts).map(|_| expert()).collect(), Activation::Silu)?;
    let (mut seconds, mut scratch) = (Vec::new(), Scratch::default());
    for rows in LAYER_ROWS.into_iter().filter(|rows| *rows == 1 || rows * features <= MOST_FEATURES) {
        let top_k = options.top_k.clamp(1, experts.min(rows));
        let rows = rows / top_k * top_k;
        let ids: Vec<usize> = (0..rows).map(|choice| (choice / top_k * 7 + choice % top_k) % experts).collect();
        let dispatch = Dispatch::new(experts, top_k, &ids, &vec![0.5; rows])?;
        let x = values(rows / top_k * hidden);
        seconds.push((rows, least(options.seconds, || layer.forward_with(&x, &dispatch, &mut scratch).map(drop))?));
    }
    Ok(TileTimes { features, seconds })
}

/// The least time of several runs.
fn least(seconds: f64, mut run: impl FnMut() -> Result<(), moe_quant::Error>) -> Result<f64, moe_quant::Error> {
    let mut once = || -> Result<f64, moe_quant::Error> {
        let start = Instant::now();
        run()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let (mut best, started, mut runs) = (once()?, Instant::now(), 0);
    while runs < 2 || started.elapsed().as_secs_f64() < seconds {
        best = best.min(once()?);
        runs += 1;
    }
    Ok(best)
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect()
}

#[expect(clippy::cast_precision_loss, reason = "sizes of layers")]
fn real(value: usize) -> f64 {
    value as f64
}

/// A weight that takes no time.
#[derive(Debug)]
struct Nothing {
    shape: [usize; 2],
}

impl Linear for Nothing {
    fn in_features(&self) -> usize {
        self.shape[1]
    }

    fn out_features(&self) -> usize {
        self.shape[0]
    }

    fn matmul(&self, _x: &[f32], _y: &mut [f32]) -> Result<(), quant_core::Error> {
        Ok(())
    }

    fn to_dense(&self) -> Result<Vec<f32>, quant_core::Error> {
        Ok(vec![0.0; self.shape[0] * self.shape[1]])
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
}

/// The machine that this process runs on, with the threads it uses.
#[must_use]
pub fn this_device() -> Device {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned();
    Device { kind: DeviceKind::Cpu, name, workers: rayon::current_num_threads() }
}

/// Reads a profile of this machine.
///
/// # Errors
///
/// [`Error::File`] when it cannot be read, [`Error::Experts`] when it is no profile or one of another machine.
pub(crate) fn load_profile(path: &Path) -> Result<Profile, Error> {
    let text = std::fs::read(path).map_err(|source| Error::file(path, "read", source))?;
    let profile: Profile = serde_json::from_slice(&text).map_err(|source| Error::Json { source })?;
    let refused = |source| Error::Experts { file: path.to_owned(), source: Box::new(source) };
    profile.check_device(&this_device()).map_err(refused)?;
    Ok(profile)
}
