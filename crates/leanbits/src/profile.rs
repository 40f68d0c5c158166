//! Measuring what products with packed weights take on this machine, for allocations that weigh time.

use crate::{Error, Progress};
use moe_quant::{Device, DeviceKind, Profile, Scheme, SchemeTimes, Tile, TileTimes};
use quant_core::{Activations, Format, Linear, PackedTensor, PreparedLinear, Shaped, fake_quantize};
use std::path::Path;
use std::time::Instant;

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileOptions {
    /// Schemes.
    pub schemes: Vec<Scheme>,
    /// Shapes `[out, in]` of weights; those of the experts that the profile is for.
    pub shapes: Vec<[usize; 2]>,
    /// Numbers of rows, rising.
    pub rows: Vec<usize>,
    /// Seconds to spend on each measurement at least.
    pub seconds: f64,
}

impl ProfileOptions {
    /// Some schemes for some shapes, for 1 to 256 rows.
    #[must_use]
    pub fn new(schemes: Vec<Scheme>, shapes: Vec<[usize; 2]>) -> Self {
        Self { schemes, shapes, rows: vec![1, 2, 4, 8, 16, 32, 64, 128, 256], seconds: 0.004 }
    }
}

/// Measures the products of this crate on one thread, and says which machine and how many threads it is for.
///
/// A tile is a whole weight of one shape; its time for some rows is the least of several runs, so that a busy machine disturbs
/// little.
///
/// # Errors
///
/// [`Error::Experts`] for schemes that cannot hold a shape and for lists that are empty or do not rise.
pub fn measure_profile(options: &ProfileOptions, progress: &mut dyn Progress) -> Result<Profile, Error> {
    let refused = |source| Error::Experts { file: "the profile".into(), source: Box::new(source) };
    if options.schemes.is_empty() || options.shapes.is_empty() || options.rows.is_empty() {
        return Err(refused(moe_quant::Error::Nothing { what: "schemes, shapes or rows to measure" }));
    }
    progress.begin("measuring", (options.schemes.len() * options.shapes.len()) as u64);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let mut schemes = Vec::with_capacity(options.schemes.len());
    for scheme in &options.schemes {
        let mut tiles = Vec::new();
        for &shape in &options.shapes {
            let run = || measure(*scheme, shape, &options.rows, options.seconds);
            let seconds = match &pool {
                Ok(pool) => pool.install(run),
                Err(_) => run(),
            };
            let times = vec![TileTimes { features: shape[1], seconds: seconds.map_err(refused)? }];
            tiles.push(Tile { columns: shape[0], group: 0, launch: 0.0, times });
            progress.advance(1, &format!("{scheme} {} × {}", shape[0], shape[1]));
        }
        schemes.push(SchemeTimes { scheme: *scheme, tiles: vec![merged(tiles)] });
    }
    progress.end();
    Profile::new(this_device(), schemes).map_err(refused)
}

/// One tile of a single output from those of whole weights: what is measured is divided by the outputs, so that the
/// time of any number of outputs is a multiple of it.
fn merged(tiles: Vec<Tile>) -> Tile {
    let mut times: Vec<TileTimes> = Vec::new();
    for tile in tiles {
        #[expect(clippy::cast_precision_loss, reason = "a number of outputs")]
        let columns = tile.columns as f64;
        for entry in tile.times {
            let seconds = entry.seconds.iter().map(|(rows, seconds)| (*rows, seconds / columns)).collect();
            if times.iter().all(|known| known.features != entry.features) {
                times.push(TileTimes { features: entry.features, seconds });
            }
        }
    }
    times.sort_by_key(|entry| entry.features);
    Tile { columns: 1, group: 0, launch: 0.0, times }
}

fn measure(
    scheme: Scheme,
    [outputs, features]: [usize; 2],
    rows: &[usize],
    least: f64,
) -> Result<Vec<(usize, f64)>, moe_quant::Error> {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let values = |len: usize| (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect::<Vec<f32>>();
    let weight = values(outputs * features);
    let packed = PackedTensor::encode(scheme.weight, &Shaped::new(&weight, &[outputs, features])?)?;
    let (linear, rounds) = arranged(scheme, packed);
    let mut times = Vec::with_capacity(rows.len());
    for &rows in rows {
        let (x, mut y) = (values(rows * features), vec![0.0; rows * outputs]);
        let mut once = || -> Result<f64, moe_quant::Error> {
            let start = Instant::now();
            match scheme.activation {
                Some(format) if !rounds => {
                    let rounded = fake_quantize(format, &Shaped::new(&x, &[rows, features])?)?;
                    linear.matmul(&rounded, &mut y)?;
                }
                _ => linear.matmul(&x, &mut y)?,
            }
            Ok(start.elapsed().as_secs_f64())
        };
        let (mut best, started, mut runs) = (once()?, Instant::now(), 0);
        while runs < 3 || started.elapsed().as_secs_f64() < least {
            best = best.min(once()?);
            runs += 1;
        }
        times.push((rows, best));
    }
    Ok(times)
}

/// The fastest form of a weight, and whether it rounds its inputs itself: 8-bit inputs have kernels of their own.
fn arranged(scheme: Scheme, packed: PackedTensor<'static>) -> (Box<dyn Linear>, bool) {
    if scheme.activation == Some(Format::INT8)
        && let Ok(prepared) = PreparedLinear::new(&packed).and_then(|p| p.with_activations(Activations::Int8Row))
    {
        return (Box::new(prepared), true);
    }
    (packed.prepared().unwrap_or_else(|| Box::new(packed)), false)
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
