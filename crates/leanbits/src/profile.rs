//! Measuring what products with packed weights take on this machine, for allocations that weigh time.

use crate::{Error, Progress};
use moe_quant::{
    Activation, BlockLinear, Device, DeviceKind, Dispatch, MixedExperts, Profile, Scheme, SchemeTimes, Tile, TileTimes,
};
use quant_core::{Footprint, Group, Linear, PackedTensor, Shaped, fake_quantize, grouped_matmul};
use rayon::prelude::*;
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
    /// Numbers of rows, rising.
    pub rows: Vec<usize>,
    /// Weights of a shape that are multiplied in turn: as many as the model has, so that caches hold as few of them as they
    /// will.
    pub weights: usize,
    /// Seconds to spend on each measurement at least.
    pub seconds: f64,
}

impl ProfileOptions {
    /// Some schemes for some shapes, for 1 to 512 rows, with 64 weights in turn.
    #[must_use]
    pub fn new(schemes: Vec<Scheme>, shapes: Vec<[usize; 2]>) -> Self {
        let rows = vec![1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
        Self { schemes, shapes, rows, weights: 64, seconds: 0.004 }
    }
}

/// Bytes of the weights that are multiplied in turn: more than caches hold, so that more weights would change nothing.
const MOST_BYTES: u64 = 1 << 29;
/// Rows of a grouped product that is timed, if its groups are small.
const ROWS: usize = 1024;

/// Measures the products of this crate as a layer of experts runs them, and says which machine and how many threads it is
/// for.
///
/// Many weights are multiplied in one grouped product on all threads, so that memory, caches and clocks are as shared as they
/// will be. A tile is a whole weight of one shape; its time is that of all threads together, the least of several
/// runs, so that a busy machine disturbs little.
///
/// # Errors
///
/// [`Error::Experts`] for schemes that cannot hold a shape and for lists that are empty or do not rise.
pub fn measure_profile(options: &ProfileOptions, progress: &mut dyn Progress) -> Result<Profile, Error> {
    let refused = |source| Error::Experts { file: "the profile".into(), source: Box::new(source) };
    let (Some(first), false, false) = (options.shapes.first(), options.schemes.is_empty(), options.rows.is_empty())
    else {
        return Err(refused(moe_quant::Error::Nothing { what: "schemes, shapes or rows to measure" }));
    };
    progress.begin("measuring", (options.schemes.len() * options.shapes.len()) as u64);
    let mut schemes = Vec::with_capacity(options.schemes.len());
    for scheme in &options.schemes {
        let mut times: Vec<TileTimes> = Vec::new();
        for &[outputs, features] in &options.shapes {
            if times.iter().all(|known| known.features != features) {
                let seconds = measure(*scheme, [outputs, features], options).map_err(refused)?;
                times.push(TileTimes { features, seconds });
            }
            progress.advance(1, &format!("{scheme} {outputs} × {features}"));
        }
        times.sort_by_key(|entry| entry.features);
        let tile = Tile { columns: 1, group: 0, launch: 0.0, times };
        schemes.push(SchemeTimes { scheme: *scheme, tiles: vec![tile] });
    }
    progress.end();
    let overhead = overhead(*first, options.seconds).map_err(refused)?;
    Profile::new(this_device(), schemes).and_then(|profile| profile.with_overhead(overhead)).map_err(refused)
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
    let blocks: Vec<BlockLinear> = (0..count).into_par_iter().map(|_| BlockLinear::arranged(scheme, &packed)).collect();
    let mut next = (0..count).cycle();
    let mut times = Vec::with_capacity(options.rows.len());
    for &rows in &options.rows {
        // As many for each thread, so that none waits.
        let groups = (ROWS / rows.max(1)).max(2 * threads).div_ceil(threads) * threads;
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

/// Seconds of one thread for each feature of a row in what a layer does beside products.
fn overhead([inner, hidden]: [usize; 2], seconds: f64) -> Result<f64, moe_quant::Error> {
    let (experts, top_k, tokens) = (16, 2, 512);
    let nothing = |shape| BlockLinear { weight: Arc::new(Nothing { shape }), activation: None };
    let expert = || [nothing([inner, hidden]), nothing([inner, hidden]), nothing([hidden, inner])];
    let layer = MixedExperts::new((0..experts).map(|_| expert()).collect(), Activation::Silu)?;
    let ids: Vec<usize> = (0..tokens * top_k).map(|choice| choice * 7 % experts).collect();
    let dispatch = Dispatch::new(experts, top_k, &ids, &vec![0.5; tokens * top_k])?;
    let x = values(tokens * hidden);
    let best = least(seconds, || layer.forward(&x, &dispatch).map(drop))?;
    Ok(best * real(rayon::current_num_threads()) / real(tokens * top_k * (hidden + inner)))
}

/// The least time of several runs.
fn least(seconds: f64, mut run: impl FnMut() -> Result<(), moe_quant::Error>) -> Result<f64, moe_quant::Error> {
    let mut once = || -> Result<f64, moe_quant::Error> {
        let start = Instant::now();
        run()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let (mut best, started, mut runs) = (once()?, Instant::now(), 0);
    while runs < 3 || started.elapsed().as_secs_f64() < seconds {
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
