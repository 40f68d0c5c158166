//! What all tests share: data, the list of codecs.
#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

use kv_cache_quant::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::sync::Arc;

/// Normal numbers, two a pair of words.
pub(crate) fn gaussian(seed: u64, count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || (f64::from(random.next_u32()) + 0.5) / 4_294_967_296.0;
    let pair = |_| {
        let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), std::f64::consts::TAU * unit());
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    };
    let mut out: Vec<f32> = (0..count.div_ceil(2)).flat_map(pair).collect();
    out.truncate(count);
    out
}

/// Mean squared error over variance about the channel means, `[tokens, channels]`.
pub(crate) fn relative_mse(original: &[f32], decoded: &[f32], channels: usize) -> f64 {
    let tokens = (original.len() / channels) as f64;
    let mean: Vec<f64> = (0..channels)
        .map(|c| original.iter().skip(c).step_by(channels).map(|&x| f64::from(x)).sum::<f64>() / tokens)
        .collect();
    let square = |x: f64| x * x;
    let variance: f64 = original.iter().enumerate().map(|(i, &x)| square(f64::from(x) - mean[i % channels])).sum();
    let error: f64 = original.iter().zip(decoded).map(|(&x, &y)| square(f64::from(x) - f64::from(y))).sum();
    error / variance
}

/// Seals rows in a codec, unit by unit, and opens them again.
pub(crate) fn through(codec: &dyn Codec, rows: &[f32]) -> Vec<f32> {
    let mut unit = vec![0; codec.bytes(0).total()];
    let mut out = vec![0.0; rows.len()];
    let size = codec.unit() * codec.width();
    for (rows, out) in rows.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
        codec.seal(rows, 0, &mut unit).unwrap();
        codec.open(&unit, 0, out).unwrap();
    }
    out
}

pub(crate) type Make = Box<dyn Fn(KvGeometry, KeyStorage, KvPolicy) -> QuantizedKv + Send + Sync>;

/// A codec as the conformance suite knows it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) make: Make,
    /// The policy it is usually run with.
    pub(crate) policy: KvPolicy,
    /// Relative error that decoded Gaussian rows stay under.
    pub(crate) worst: f64,
}

fn case(
    name: &'static str,
    policy: KvPolicy,
    worst: f64,
    codec: impl Fn(usize, usize) -> Arc<dyn Codec> + Send + Sync + 'static,
) -> Case {
    let make = move |g: KvGeometry, storage, policy| {
        QuantizedKv::new(g, storage, codec(g.kv_heads, g.dim_k), codec(g.kv_heads, g.dim_v), policy).unwrap()
    };
    Case { name, make: Box::new(make), policy, worst }
}

fn token(name: &'static str, worst: f64) -> Case {
    case(name, KvPolicy::default(), worst, move |h, d| Arc::new(TokenFormat::new(h, d, name.parse().unwrap()).unwrap()))
}

/// Every codec, in more than one setting where settings change what the state machine sees.
pub(crate) fn cases() -> Vec<Case> {
    let window = KvPolicy { sinks: 4, window: 13, spare: 5, ..KvPolicy::default() };
    let f32_rows = KvPolicy { precision: FullPrecision::F32, page_tokens: 7, ..KvPolicy::default() };
    let plain = |precision| move |h, d| -> Arc<dyn Codec> { Arc::new(Plain::new(h, d, precision).unwrap()) };
    let int4 = |h, d| Arc::new(TokenFormat::new(h, d, "int4-min".parse().unwrap()).unwrap());
    let kivi = |config: KiviConfig| -> Make {
        Box::new(move |geometry, storage, policy| config.cache(geometry, storage, policy).unwrap())
    };
    let small = KiviConfig { key_bits: 4, value_bits: 2, group: 4, residual: 8 };
    vec![
        case("plain f32", f32_rows, 1e-30, plain(FullPrecision::F32)),
        case("plain f16", KvPolicy::default(), 1e-6, plain(FullPrecision::F16)),
        case("plain bf16", window, 1e-4, plain(FullPrecision::Bf16)),
        token("int8-g32", 1e-4),
        token("int4-min", 0.05),
        token("int4-g128-asym", 0.05),
        token("int2-g32-min", 0.4),
        token("fp8", 2e-3),
        token("mxfp4", 0.05),
        token("nvfp4", 0.05),
        token("nf4", 0.05),
        token("ternary-min-g32-f16", 0.6),
        case("int2 behind a window", window, 0.4, |h, d| {
            Arc::new(TokenFormat::new(h, d, "int2-g32-min".parse().unwrap()).unwrap())
        }),
        Case { name: "kivi", make: kivi(KiviConfig::default()), policy: KvPolicy::default(), worst: 0.4 },
        Case {
            name: "kivi of units of 8",
            make: kivi(small),
            policy: KvPolicy { sinks: 3, spare: 9, page_tokens: 20, ..KvPolicy::default() },
            worst: 0.4,
        },
        case("smooth", KvPolicy::default(), 0.1, move |h, d| {
            let largest: Vec<f32> = (0..h * d).map(|c| 1.0 + (c % 5) as f32 / 4.0).collect();
            Arc::new(Mapped::new(Arc::new(ChannelAffine::smooth(&largest, 0.5).unwrap()), int4(h, d)).unwrap())
        }),
        case("rotated", KvPolicy::default(), 0.05, move |h, d| {
            Arc::new(Mapped::new(Arc::new(Hadamard::new(h, d).unwrap()), int4(h, d)).unwrap())
        }),
        case("mean, then rotation", window, 0.05, move |h, d| {
            let mean = (0..h * d).map(|c| (c % 7) as f32 / 7.0).collect::<Vec<_>>();
            let rotated = Mapped::new(Arc::new(Hadamard::new(h, d).unwrap()), int4(h, d)).unwrap();
            Arc::new(Mapped::new(Arc::new(ChannelAffine::remove_mean(&mean).unwrap()), Arc::new(rotated)).unwrap())
        }),
        case("cskv", window, 0.6, |h, d| Arc::new(halves(h, d, "0.5", false))),
        case("cskv of 4 bits", KvPolicy::default(), 0.6, |h, d| Arc::new(halves(h, d, "0.5@int4-min", false))),
        case("cskv in blocks", KvPolicy { sinks: 3, ..KvPolicy::default() }, 0.6, |h, d| {
            Arc::new(halves(h, d, "0.5@int4-min", true))
        }),
        skvq("skvq", Levels::Bits(2), 0.5),
        skvq("skvq ternary", Levels::Ternary, 0.7),
        case("pm-kvq", KvPolicy { sinks: 1, ..KvPolicy::default() }, 1e-6, |h, d| {
            Arc::new(PmKvq::new(h, d, PmKvqConfig { residual: 16, ..PmKvqConfig::default() }).unwrap())
        }),
    ]
}

/// CSKV whose latents are sums of neighbouring channels.
pub(crate) fn halves(heads: usize, dim: usize, code: &str, blocks: bool) -> Cskv {
    let (channels, width) = (heads * dim, heads * dim / 2);
    let weight =
        |latent: usize, channel: usize| if channel / 2 == latent { std::f32::consts::FRAC_1_SQRT_2 } else { 0.0 };
    let rebuild: Vec<f32> = (0..width * channels).map(|i| weight(i / channels, i % channels)).collect();
    let compress: Vec<f32> = (0..width * channels).map(|i| weight(i % width, i / width)).collect();
    let adapter = Adapter::new(&compress, &rebuild, vec![0.0; channels], width, FullPrecision::F32).unwrap();
    code.parse::<LatentCode>().unwrap().codec_of(Stream::Keys, heads, dim, blocks, Arc::new(adapter)).unwrap()
}

/// SKVQ with a plan from the statistics of such rows.
fn skvq(name: &'static str, levels: Levels, worst: f64) -> Case {
    let policy = KvPolicy { sinks: 5, window: 16, spare: 3, ..KvPolicy::default() };
    case(name, policy, worst, move |heads, dim| {
        let channels = heads * dim;
        let rows = gaussian(99, 64 * channels);
        let fold = |f: fn(f32, f32) -> f32| -> Vec<f32> {
            (0..channels).map(|c| rows.iter().skip(c).step_by(channels).copied().reduce(f).unwrap()).collect()
        };
        let plan = ReorderPlan::kmeans(&fold(f32::min), &fold(f32::max), 64, 0, false).unwrap();
        let config = SkvqConfig { levels, meta: MetaFormat::e4m3_for(8.0), ..SkvqConfig::default() };
        let alphas = vec![0.9; plan.groups()];
        Arc::new(Skvq::new(config, plan, alphas).unwrap())
    })
}

pub(crate) const SIZES: [usize; 8] = [64, 80, 96, 100, 112, 128, 192, 256];

pub(crate) fn geometry(dim: usize) -> KvGeometry {
    KvGeometry { kv_heads: 2, q_heads: 6, dim_k: dim, dim_v: if dim == 192 { 128 } else { dim } }
}

/// Keys and values of `tokens` tokens.
pub(crate) fn rows(geometry: KvGeometry, tokens: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    (gaussian(seed, tokens * geometry.key_width()), gaussian(seed + 1000, tokens * geometry.value_width()))
}

/// Appends tokens `range` of these rows.
pub(crate) fn append(
    cache: &mut dyn KvCacheLayer,
    (keys, values): &(Vec<f32>, Vec<f32>),
    range: std::ops::Range<usize>,
) {
    let g = cache.geometry();
    let rows = KvRows {
        keys: &keys[range.start * g.key_width()..range.end * g.key_width()],
        values: &values[range.start * g.value_width()..range.end * g.value_width()],
    };
    cache.append(rows, Positions::Next).unwrap();
}

/// All of a cache's state.
pub(crate) fn state(cache: &dyn KvCacheLayer) -> Vec<u8> {
    let mut bytes = Vec::new();
    cache.save(&mut bytes).unwrap();
    bytes
}

pub(crate) fn decoded(cache: &dyn KvCacheLayer) -> (Vec<f32>, Vec<f32>) {
    let g = cache.geometry();
    let mut out = (vec![0.0; cache.len() * g.key_width()], vec![0.0; cache.len() * g.value_width()]);
    cache.dequantize(0..cache.len(), &mut out.0, &mut out.1).unwrap();
    out
}

/// Attention in f64 over rows given in full, queries belonging to the last tokens.
pub(crate) fn attention(g: KvGeometry, queries: &[f32], (keys, values): &(Vec<f32>, Vec<f32>), mask: Mask) -> Vec<f64> {
    let tokens = keys.len() / g.key_width();
    let count = queries.len() / (g.q_heads * g.dim_k);
    let mut out = Vec::new();
    for (index, query) in queries.chunks_exact(g.dim_k).enumerate() {
        let (token, head) = (tokens - count + index / g.q_heads, index % g.q_heads / g.group());
        let seen = match mask {
            Mask::Full => 0..tokens,
            Mask::Causal => 0..token + 1,
            Mask::Sliding(w) => (token + 1).saturating_sub(w as usize)..token + 1,
        };
        let key = |t: usize| &keys[t * g.key_width() + head * g.dim_k..][..g.dim_k];
        let score = |t| {
            key(t).iter().zip(query).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum::<f64>() / (g.dim_k as f64).sqrt()
        };
        let scores: Vec<f64> = seen.clone().map(score).collect();
        let top = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for c in 0..g.dim_v {
            let value = |t: usize| f64::from(values[t * g.value_width() + head * g.dim_v + c]);
            out.push(seen.clone().zip(&weights).map(|(t, w)| w / sum * value(t)).sum());
        }
    }
    out
}
