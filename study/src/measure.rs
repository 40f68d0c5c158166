//! QSNR measured block by block on data whose crest factor is known.

use super::sample::Sampler;
use quant_core::metrics::{ErrorStats, crest_factor, sqnr_db};
use quant_core::qsnr::Theory;
use quant_core::{Format, Shaped, fake_quantize};
use xtask::Failure;

/// An integer format and a float format of the same size.
pub(crate) struct Pair {
    pub(crate) title: &'static str,
    /// Names under the scale rule of the paper.
    pub(crate) int: &'static str,
    pub(crate) float: &'static str,
    /// Elements of a block.
    pub(crate) block: usize,
    /// Crossover and QSNR there, as the paper prints them.
    pub(crate) published: (f64, f64),
}

pub(crate) const PAIRS: [Pair; 4] = [
    Pair {
        title: "MXINT8 / MXFP8 E4M3",
        int: "mxint8-rceil",
        float: "mxfp8-e4m3-rceil",
        block: 32,
        published: (7.55, 31.86),
    },
    Pair {
        title: "MXINT6 / MXFP6 E2M3",
        int: "mxint6-rceil",
        float: "mxfp6-e2m3-rceil",
        block: 32,
        published: (1.96, 31.54),
    },
    Pair {
        title: "MXINT4 / MXFP4 E2M1",
        int: "mxint4-rceil",
        float: "mxfp4-rceil",
        block: 32,
        published: (2.04, 19.14),
    },
    Pair { title: "NVINT4 / NVFP4", int: "nvint4", float: "nvfp4", block: 16, published: (2.39, 21.14) },
];

/// Measured QSNR at one crest factor.
#[derive(Clone, Copy)]
pub(crate) struct Point {
    pub(crate) crest: f64,
    pub(crate) int_db: f64,
    pub(crate) float_db: f64,
}

/// Blocks measured for one point of a curve.
pub(crate) const BLOCKS_PER_POINT: usize = 4096;
/// Normal blocks that are sorted by their own crest factor, and the least number in a bin that is shown.
pub(crate) const NORMAL_BLOCKS: usize = 1 << 16;
pub(crate) const LEAST_BLOCKS: usize = 256;
const BIN: f64 = 0.1;

pub(crate) fn parse(name: &str) -> Result<Format, Failure> {
    name.parse().map_err(|error: quant_core::Error| error.to_string())
}

pub(crate) fn theory(name: &str) -> Result<Theory, Failure> {
    Theory::of(parse(name)?).map_err(|error| error.to_string())
}

/// QSNR over the crest factor, the largest element of normal blocks moved to reach it; one curve for
/// each pair of names, all on the same values.
pub(crate) fn planted<const N: usize>(block: usize, names: [(&str, &str); N]) -> Result<[Vec<Point>; N], Failure> {
    let mut sampler = Sampler::new(0x1e7);
    let mut curves = [const { Vec::new() }; N];
    // Normal blocks hardly ever have smaller crest factors.
    let first = if block <= 16 { 1.4 } else { 1.6 };
    let last = (block as f64).sqrt() - 0.05;
    for crest in (0..).map(|i| first + BIN * f64::from(i)).take_while(|&crest| crest < last) {
        let values = blocks(&mut sampler, BLOCKS_PER_POINT, block, |sampler, block| {
            sampler.block_with_crest(crest, block);
        });
        for (curve, (int, float)) in curves.iter_mut().zip(names) {
            let int_db = mean_db(&relative_noise(int, &values, block)?);
            let float_db = mean_db(&relative_noise(float, &values, block)?);
            curve.push(Point { crest, int_db, float_db });
        }
    }
    Ok(curves)
}

/// QSNR of normal blocks sorted into bins by the crest factor they happen to have.
pub(crate) fn binned(pair: &Pair) -> Result<Vec<Point>, Failure> {
    let values = blocks(&mut Sampler::new(0xb1), NORMAL_BLOCKS, pair.block, Sampler::normal_block);
    let int = relative_noise(pair.int, &values, pair.block)?;
    let float = relative_noise(pair.float, &values, pair.block)?;
    let mut bins: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); 100];
    for (block, (&int, &float)) in values.chunks_exact(pair.block).zip(int.iter().zip(&float)) {
        let crest = crest_factor(block).map_err(|error| error.to_string())?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a crest factor lies below 10")]
        let bin = &mut bins[(crest / BIN) as usize];
        bin.0.push(int);
        bin.1.push(float);
    }
    let full = bins.iter().enumerate().filter(|(_, bin)| bin.0.len() >= LEAST_BLOCKS);
    Ok(full
        .map(|(i, (int, float))| Point {
            crest: BIN * (i as f64 + 0.5),
            int_db: mean_db(int),
            float_db: mean_db(float),
        })
        .collect())
}

/// Where the integer curve falls below the float one: crest factor and QSNR, between the points by a straight line.
pub(crate) fn crossover(points: &[Point]) -> Option<(f64, f64)> {
    points.windows(2).find_map(|pair| {
        let [a, b] = pair else { return None };
        let (lead, lag) = (a.int_db - a.float_db, b.float_db - b.int_db);
        let part = lead / (lead + lag);
        (lead >= 0.0 && lag > 0.0)
            .then_some((a.crest + part * (b.crest - a.crest), a.float_db + part * (b.float_db - a.float_db)))
    })
}

/// `count` blocks, each scaled to the root mean square 2^u, u uniform in [0, 1): no power of two is favoured.
fn blocks(
    sampler: &mut Sampler,
    count: usize,
    length: usize,
    mut draw: impl FnMut(&mut Sampler, &mut [f64]),
) -> Vec<f32> {
    let mut values = Vec::with_capacity(count * length);
    let mut block = vec![0.0; length];
    for _ in 0..count {
        draw(sampler, &mut block);
        let energy: f64 = block.iter().map(|x| x * x).sum();
        let factor = sampler.octave() / (energy / length as f64).sqrt();
        values.extend(block.iter().map(|x| narrow(x * factor)));
    }
    values
}

/// Energy of the error over energy of the values, block by block.
fn relative_noise(name: &str, values: &[f32], block: usize) -> Result<Vec<f64>, Failure> {
    let decoded = quantize(name, values, 64 * block)?;
    let ratio = |(x, y): (&[f32], &[f32])| -> Result<f64, Failure> {
        let stats = ErrorStats::of(x, y).map_err(|error| error.to_string())?;
        Ok(stats.noise() / stats.signal())
    };
    values.chunks_exact(block).zip(decoded.chunks_exact(block)).map(ratio).collect()
}

fn mean_db(noise: &[f64]) -> f64 {
    -10.0 * (noise.iter().sum::<f64>() / noise.len() as f64).log10()
}

fn quantize(name: &str, values: &[f32], columns: usize) -> Result<Vec<f32>, Failure> {
    let tensor = Shaped::new(values, &[values.len() / columns, columns]).map_err(|error| error.to_string())?;
    fake_quantize(parse(name)?, &tensor).map_err(|error| format!("{name}: {error}"))
}

/// Elements of each sample of the tables.
pub(crate) const SAMPLES: usize = 1 << 18;
/// Columns of the tensors of the tables.
const COLUMNS: usize = 1024;

/// The samples of the tables: a title, and values.
pub(crate) fn samples() -> [(&'static str, Vec<f32>); 3] {
    let (mut normal, mut laplace, mut outliers) = (Sampler::new(11), Sampler::new(12), Sampler::new(13));
    let factor = |i: usize| if i.is_multiple_of(20) { 12.0 } else { 1.0 };
    [
        ("normal", (0..SAMPLES).map(|_| narrow(normal.normal())).collect()),
        ("Laplace", (0..SAMPLES).map(|_| narrow(laplace.laplace())).collect()),
        ("outlier channels", (0..SAMPLES).map(|i| narrow(factor(i % COLUMNS) * outliers.normal())).collect()),
    ]
}

/// QSNR of a whole sample in dB.
pub(crate) fn qsnr(name: &str, values: &[f32]) -> Result<f64, Failure> {
    sqnr_db(values, &quantize(name, values, COLUMNS)?).map_err(|error| format!("{name}: {error}"))
}

#[expect(clippy::cast_possible_truncation, reason = "samples are small numbers; rounding to f32 is meant")]
fn narrow(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::{Point, crossover};

    #[test]
    fn a_crossover_is_found_between_two_points() {
        let point = |crest, int_db, float_db| Point { crest, int_db, float_db };
        let points = [point(1.0, 30.0, 20.0), point(2.0, 23.0, 20.0), point(3.0, 18.0, 19.0), point(4.0, 16.0, 19.0)];
        assert_eq!(crossover(&points), Some((2.75, 19.25)));
        assert_eq!(crossover(&points[2..]), None);
    }
}
