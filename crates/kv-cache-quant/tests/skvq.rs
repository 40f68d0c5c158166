//! SKVQ and its neighbours: closed forms, and who beats whom on keys with outlier channels.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod common;

use common::*;
use kv_cache_quant::*;
use std::sync::Arc;

const HEADS: usize = 8;
const DIM: usize = 128;
const CHANNELS: usize = HEADS * DIM;

/// Keys with log-normal channel scales of the given spread, and in each head four channels four times as large with a
/// mean of deviation 20.
fn outlier_keys(tokens: usize, spread: f32) -> Vec<f32> {
    let scales: Vec<f32> = gaussian(1, CHANNELS).into_iter().map(|x| (spread * x).exp()).collect();
    let means = gaussian(2, 4 * HEADS);
    let mut rows = gaussian(3, tokens * CHANNELS);
    for row in rows.chunks_exact_mut(CHANNELS) {
        for (channel, x) in row.iter_mut().enumerate() {
            *x *= scales[channel];
            let (head, place) = (channel / DIM, channel % DIM);
            // Channels 5, 37, 69, 101 of a head.
            if place % 32 == 5 {
                *x = 4.0 * *x + 20.0 * means[head * 4 + place / 32];
            }
        }
    }
    rows
}

struct Columns {
    min: Vec<f32>,
    max: Vec<f32>,
    mean: Vec<f32>,
    deviation: Vec<f32>,
    largest: Vec<f32>,
}

fn columns(rows: &[f32], channels: usize) -> Columns {
    let column = |c: usize| rows.iter().skip(c).step_by(channels).copied();
    let each = |f: &dyn Fn(usize) -> f32| (0..channels).map(f).collect::<Vec<f32>>();
    let tokens = (rows.len() / channels) as f32;
    let mean = each(&|c| column(c).sum::<f32>() / tokens);
    Columns {
        min: each(&|c| column(c).reduce(f32::min).unwrap()),
        max: each(&|c| column(c).reduce(f32::max).unwrap()),
        deviation: each(&|c| (column(c).map(|x| (x - mean[c]).powi(2)).sum::<f32>() / tokens).sqrt()),
        largest: each(&|c| column(c).map(f32::abs).reduce(f32::max).unwrap()),
        mean,
    }
}

fn rtn(format: &str) -> Arc<dyn Codec> {
    Arc::new(TokenFormat::new(HEADS, DIM, format.parse().unwrap()).unwrap())
}

fn mapped(map: impl RowMap + 'static, inner: Arc<dyn Codec>) -> Arc<dyn Codec> {
    Arc::new(Mapped::new(Arc::new(map), inner).unwrap())
}

fn grid() -> Vec<f32> {
    (10..=20).map(|i| i as f32 / 20.0).collect()
}

fn skvq(plan: &ReorderPlan, clip: ClipMode, alphas: Vec<f32>) -> Skvq {
    let config = SkvqConfig { levels: Levels::Bits(2), meta: MetaFormat::F16, clip };
    Skvq::new(config, plan.clone(), alphas).unwrap()
}

fn error_of(codec: &dyn Codec, rows: &[f32]) -> f64 {
    relative_mse(rows, &through(codec, rows), codec.width())
}

/// MSE over variance at 2 bits, groups of 128, 2.25 bits each with f16 scales.
#[test]
fn on_keys_with_outlier_channels_the_methods_rank_as_published() {
    for (spread, expected) in [(0.3, [22.0, 1.64, 0.53, 0.60, 0.35, 0.25, 0.25, 0.14])] {
        let calibration = outlier_keys(256, spread);
        let rows = outlier_keys(384, spread)[256 * CHANNELS..].to_vec();
        let c = columns(&calibration, CHANNELS);
        let plan = ReorderPlan::kmeans(&c.min, &c.max, 128, 0, false).unwrap();
        let ones = vec![1.0; plan.groups()];
        let config = SkvqConfig { levels: Levels::Bits(2), meta: MetaFormat::F16, clip: ClipMode::Midpoint };
        let searched = search_clip(&calibration[..96 * CHANNELS], &plan, config, &grid()).unwrap();
        let kivi = ChannelFormat::new(HEADS, DIM, 128, "int2-g128-min".parse().unwrap()).unwrap();
        let int2 = || rtn("int2-g128-min");
        let methods: [(&str, Arc<dyn Codec>); 8] = [
            ("rtn", int2()),
            ("rotated", mapped(Hadamard::new(HEADS, DIM).unwrap(), int2())),
            ("smooth", mapped(ChannelAffine::smooth(&c.largest, 1.0).unwrap(), int2())),
            ("mean removed", mapped(ChannelAffine::remove_mean(&c.mean).unwrap(), int2())),
            ("reordered", Arc::new(skvq(&plan, ClipMode::Endpoint, ones.clone()))),
            ("kivi", Arc::new(kivi)),
            ("two-dimensional", mapped(ChannelAffine::from_moments(&c.mean, &c.deviation).unwrap(), int2())),
            ("skvq", Arc::new(skvq(&plan, ClipMode::Midpoint, searched))),
        ];
        let errors: Vec<f64> = methods.iter().map(|(_, codec)| error_of(codec.as_ref(), &rows)).collect();
        for (((name, codec), error), expected) in methods.iter().zip(&errors).zip(expected) {
            let bytes = codec.bytes(0).total() * 8;
            println!(
                "{name}: {error:.3} ({expected} expected), {} bits",
                bytes as f64 / (codec.unit() * CHANNELS) as f64
            );
        }
        let [rtn, rotated, smooth, mean, reordered, kivi, two, skvq] = errors[..] else { unreachable!() };
        assert!(rtn > 4.0 * rotated, "rtn {rtn}, rotated {rotated}");
        assert!(rotated > smooth && rotated > mean, "rotated {rotated}, smooth {smooth}, mean {mean}");
        assert!(smooth > reordered, "smooth {smooth}, reordered {reordered}");
        assert!(reordered > kivi.max(two), "reordered {reordered}, kivi {kivi}, 2-D {two}");
        assert!(kivi.min(two) > skvq, "kivi {kivi}, 2-D {two}, skvq {skvq}");
        assert!((kivi - 0.251).abs() < 0.02 && (two - 0.251).abs() < 0.02, "kivi {kivi}, 2-D {two}");
    }
}

#[test]
fn rotation_of_what_is_left_without_the_mean_beats_both() {
    let rows = outlier_keys(256, 0.8);
    let c = columns(&rows, CHANNELS);
    let int2 = || rtn("int2-g128-min");
    let rotated = error_of(mapped(Hadamard::new(HEADS, DIM).unwrap(), int2()).as_ref(), &rows);
    let mean = || ChannelAffine::remove_mean(&c.mean).unwrap();
    let centred = error_of(mapped(mean(), int2()).as_ref(), &rows);
    let both = error_of(mapped(mean(), mapped(Hadamard::new(HEADS, DIM).unwrap(), int2())).as_ref(), &rows);
    assert!(both < rotated && both < centred, "{both}, {rotated}, {centred}");
}

#[test]
fn on_channels_that_are_alike_nothing_helps_and_nothing_hurts() {
    let rows = gaussian(4, 256 * CHANNELS);
    let c = columns(&rows, CHANNELS);
    let plain = error_of(rtn("int2-g128-min").as_ref(), &rows);
    let plan = ReorderPlan::identity(CHANNELS, 128).unwrap();
    let balanced = ReorderPlan::kmeans(&c.min, &c.max, 128, 0, true).unwrap();
    for (name, codec) in [
        ("identity", Arc::new(skvq(&plan, ClipMode::Endpoint, vec![1.0; 8])) as Arc<dyn Codec>),
        ("balanced", Arc::new(skvq(&balanced, ClipMode::Endpoint, vec![1.0; 8]))),
        ("rotated", mapped(Hadamard::new(HEADS, DIM).unwrap(), rtn("int2-g128-min"))),
        ("two-dimensional", mapped(ChannelAffine::from_moments(&c.mean, &c.deviation).unwrap(), rtn("int2-g128-min"))),
        ("kivi", Arc::new(ChannelFormat::new(HEADS, DIM, 128, "int2-g128-min".parse().unwrap()).unwrap())),
    ] {
        let error = error_of(codec.as_ref(), &rows);
        assert!((error / plain - 1.0).abs() < 0.05, "{name}: {error}, round to nearest {plain}");
    }
}

/// Relative error of Gaussian groups of 128 with endpoint clip, levels × α.
#[test]
fn gaussian_groups_err_as_the_closed_forms_say() {
    let rows = gaussian(5, 256 * CHANNELS);
    let plan = ReorderPlan::identity(CHANNELS, 128).unwrap();
    for (levels, alpha, expected) in [
        (Levels::Ternary, 1.0, 0.532),
        (Levels::Ternary, 0.92, 0.460),
        (Levels::Ternary, 0.47, 0.192),
        (Levels::Bits(2), 1.0, 0.251),
        (Levels::Bits(2), 0.96, 0.231),
        (Levels::Bits(2), 0.58, 0.119),
        (Levels::Bits(3), 1.0, 0.0459),
        (Levels::Bits(3), 0.79, 0.0347),
        (Levels::Bits(4), 1.0, 0.0100),
        (Levels::Bits(4), 0.92, 0.0092),
    ] {
        let config = SkvqConfig { levels, meta: MetaFormat::F16, clip: ClipMode::Endpoint };
        let error = error_of(&Skvq::new(config, plan.clone(), vec![alpha; 8]).unwrap(), &rows);
        assert!((error / expected - 1.0).abs() < 0.02, "{levels:?}, α {alpha}: {error}, expected {expected}");
    }
}

#[test]
fn scales_of_one_byte_cost_next_to_nothing_when_they_are_rounded_first() {
    let rows = gaussian(6, 256 * CHANNELS);
    let plan = ReorderPlan::identity(CHANNELS, 128).unwrap();
    for (bits, expected) in [(2, 0.2512), (3, 0.0459), (4, 0.0102)] {
        for scale in [1.0_f32, 0.02] {
            let rows: Vec<f32> = rows.iter().map(|x| x * scale).collect();
            let meta = MetaFormat::e4m3_for(6.0 * scale);
            let config = SkvqConfig { levels: Levels::Bits(bits), meta, clip: ClipMode::Endpoint };
            let error = error_of(&Skvq::new(config, plan.clone(), vec![1.0; 8]).unwrap(), &rows);
            assert!((error / expected - 1.0).abs() < 0.06, "{bits} bits at {scale}: {error}, expected {expected}");
        }
    }
}

#[test]
fn the_search_finds_the_best_factor_of_gaussian_groups() {
    let rows = gaussian(7, 64 * CHANNELS);
    let plan = ReorderPlan::identity(CHANNELS, 128).unwrap();
    let grid: Vec<f32> = (40..=100).map(|i| i as f32 / 100.0).collect();
    for (levels, expected) in [(Levels::Ternary, 0.47), (Levels::Bits(2), 0.58), (Levels::Bits(3), 0.79)] {
        let config = SkvqConfig { levels, meta: MetaFormat::F16, clip: ClipMode::Midpoint };
        for alpha in search_clip(&rows, &plan, config, &grid).unwrap() {
            assert!((alpha - expected).abs() < 0.06, "{levels:?}: {alpha}, expected {expected}");
        }
    }
}

#[test]
fn a_small_vector_codes_by_hand() {
    let plan = ReorderPlan::identity(4, 4).unwrap();
    let row = [-1.0_f32, 0.0, 0.5, 2.0];
    for (alpha, expected) in [(1.0, [-1.0, 0.0, 1.0, 2.0]), (0.9, [-0.9, 0.0, 0.9, 1.8])] {
        let out = through(&skvq(&plan, ClipMode::Endpoint, vec![alpha]), &row);
        assert!(out.iter().zip(expected).all(|(x, y)| (x - y).abs() < 2e-3), "{alpha}: {out:?}");
    }
}

#[test]
fn without_reordering_and_clipping_it_is_round_to_nearest_to_the_bit() {
    let rows = gaussian(8, 64 * CHANNELS);
    let plan = ReorderPlan::identity(CHANNELS, 128).unwrap();
    let ours = through(&skvq(&plan, ClipMode::Endpoint, vec![1.0; 8]), &rows);
    assert_eq!(ours, through(rtn("int2-g128-min").as_ref(), &rows));
}

#[test]
fn clipping_towards_the_middle_keeps_groups_of_one_sign_where_they_are() {
    let plan = ReorderPlan::identity(4, 4).unwrap();
    let row = [20.0_f32, 20.1, 19.9, 20.0];
    let off = |clip| through(&skvq(&plan, clip, vec![0.92]), &row).iter().map(|x| (x - 20.0).abs()).fold(0.0, f32::max);
    assert!(off(ClipMode::Endpoint) > 1.4, "endpoints move to 18.4: {}", off(ClipMode::Endpoint));
    assert!(off(ClipMode::Midpoint) < 0.15, "the middle stays: {}", off(ClipMode::Midpoint));
}

#[test]
fn ternary_codes_take_1_6_bits() {
    let plan = ReorderPlan::identity(1280, 128).unwrap();
    let config = SkvqConfig { levels: Levels::Ternary, meta: MetaFormat::e4m3_for(6.0), clip: ClipMode::Midpoint };
    let bytes = Skvq::new(config, plan, vec![1.0; 10]).unwrap().bytes(0);
    assert_eq!((bytes.codes, bytes.metadata), (1280 / 5, 20));
    let bits = 8.0 * bytes.total() as f64 / 1280.0;
    assert!((bits - 1.725).abs() < 1e-12, "1.6 bits and 16 a group of 128: {bits}");
}

#[test]
fn plans_are_permutations_whatever_the_channels() {
    let heavy: Vec<f32> = gaussian(9, 300).into_iter().map(|x| (2.0 * x).exp()).collect();
    let same = vec![1.0_f32; 300];
    for max in [heavy, same] {
        let min: Vec<f32> = max.iter().map(|x| -x).collect();
        for balanced in [false, true] {
            let plan = ReorderPlan::kmeans(&min, &max, 32, 3, balanced).unwrap();
            assert_eq!(ReorderPlan::new(plan.order().to_vec(), plan.bounds().to_vec()).unwrap(), plan);
            assert_eq!(plan, ReorderPlan::kmeans(&min, &max, 32, 3, balanced).unwrap(), "the same seed, the same plan");
            if balanced {
                let mut ends = plan
                    .bounds()
                    .iter()
                    .scan(0, |last, &end| Some(end - std::mem::replace(last, end)))
                    .collect::<Vec<_>>();
                ends.sort_unstable();
                assert_eq!(ends, [12, 32, 32, 32, 32, 32, 32, 32, 32, 32], "300 channels in groups of 32");
            }
        }
    }
}

#[test]
fn bad_parameters_are_refused() {
    assert!(matches!(ReorderPlan::new(vec![0, 0], vec![2]), Err(Error::Permutation { at: 1, channel: 0, .. })));
    assert!(matches!(ReorderPlan::new(vec![0, 2], vec![2]), Err(Error::Permutation { at: 1, channel: 2, .. })));
    for bounds in [vec![], vec![0, 2], vec![1, 1, 2], vec![1]] {
        assert!(matches!(ReorderPlan::new(vec![1, 0], bounds), Err(Error::Unsupported { .. })));
    }
    assert!(matches!(ReorderPlan::identity(4, 0), Err(Error::Unsupported { .. })));
    assert!(matches!(ReorderPlan::kmeans(&[0.0], &[], 1, 0, false), Err(Error::Width { .. })));
    let error = ReorderPlan::kmeans(&[0.0, f32::NAN], &[1.0; 2], 1, 0, false).unwrap_err();
    assert!(matches!(error, Error::Parameter { channel: 1, .. }), "{error}");
    let plan = ReorderPlan::identity(8, 4).unwrap();
    let config = SkvqConfig::default();
    assert!(matches!(Skvq::new(config, plan.clone(), vec![1.0]), Err(Error::Width { expected: 2, found: 1, .. })));
    for alpha in [0.0, 1.01, f32::NAN] {
        assert!(matches!(Skvq::new(config, plan.clone(), vec![1.0, alpha]), Err(Error::Unsupported { .. })));
        assert!(matches!(search_clip(&[0.0; 8], &plan, config, &[alpha]), Err(Error::Unsupported { .. })));
    }
    let wide = SkvqConfig { levels: Levels::Bits(9), ..config };
    assert!(matches!(Skvq::new(wide, plan.clone(), vec![1.0; 2]), Err(Error::Unsupported { .. })));
    assert!(matches!(search_clip(&[0.0; 7], &plan, config, &[1.0]), Err(Error::Shape { .. })));
    // A byte ends at 448.
    let codec = Skvq::new(config, plan, vec![1.0; 2]).unwrap();
    let row = [0.0, 0.0, 0.0, 0.0, 500.0, 500.0, 500.0, 500.0];
    assert!(codec.seal(&row, 0, &mut vec![0; codec.bytes(0).total()]).is_err(), "a minimum of 500 does not fit");
}
