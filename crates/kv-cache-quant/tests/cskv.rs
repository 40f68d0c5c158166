//! CSKV: what the closed form promises, what the two branches hold, and how many bytes they take.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod common;

use common::*;
use kv_cache_quant::*;
use ndarray::Array2;
use quant_core::kernels::{Isa, with_isa};
use quant_linalg::{cholesky, matmul, solve_upper, svd};
use std::sync::Arc;

const TOKENS: usize = 400;

fn wide(values: &[f32], columns: usize) -> Array2<f64> {
    Array2::from_shape_fn((values.len() / columns, columns), |(i, j)| f64::from(values[i * columns + j]))
}

fn narrow(matrix: &Array2<f64>) -> Vec<f32> {
    matrix.iter().map(|&x| x as f32).collect()
}

fn squared(matrix: &Array2<f64>) -> f64 {
    matrix.iter().map(|x| x * x).sum()
}

/// Inputs of few strong directions, a projection, and the keys it makes.
fn layer(inputs: usize, outputs: usize, seed: u64) -> (Array2<f64>, Array2<f64>, Array2<f64>) {
    let mut mix = wide(&gaussian(seed, inputs * inputs), inputs);
    for (direction, mut row) in mix.rows_mut().into_iter().enumerate() {
        row *= (-(direction as f64) / 6.0).exp();
    }
    let x = matmul(wide(&gaussian(seed + 1, TOKENS * inputs), inputs).view(), mix.view());
    let w = wide(&gaussian(seed + 2, outputs * inputs), inputs);
    let k = matmul(x.view(), w.t());
    (x, w, k)
}

/// Keys that have gone through a codec.
fn rebuilt(adapter: Adapter, rows: &[f32]) -> Vec<f32> {
    let latents = Plain::new(1, adapter.width(), FullPrecision::F32).unwrap();
    through(&Cskv::new(Arc::new(adapter), Arc::new(latents)).unwrap(), rows)
}

#[test]
fn latents_as_wide_as_rows_lose_nothing_but_round_off() {
    let rows = gaussian(1, 64 * 32);
    for rotation in [None, Some(7)] {
        let adapter = Adapter::principal(&rows, 32, 32, rotation, FullPrecision::F32).unwrap();
        let back = rebuilt(adapter, &rows);
        assert!(rows.iter().zip(&back).all(|(x, y)| (x - y).abs() < 2e-5), "{rotation:?}");
    }
}

#[test]
fn rows_of_a_lower_rank_come_back_whole() {
    // 24 channels that are 5 signals and a bias.
    let (signals, mixing) = (gaussian(3, TOKENS * 5), gaussian(4, 5 * 24));
    let bias = gaussian(5, 24);
    let rows: Vec<f32> = narrow(&(matmul(wide(&signals, 5).view(), wide(&mixing, 24).view()) + wide(&bias, 24)));
    let five = rebuilt(Adapter::principal(&rows, 24, 5, None, FullPrecision::F32).unwrap(), &rows);
    let four = rebuilt(Adapter::principal(&rows, 24, 4, None, FullPrecision::F32).unwrap(), &rows);
    assert!(relative_mse(&rows, &five, 24) < 1e-10);
    assert!(relative_mse(&rows, &four, 24) > 1e-3);
}

#[test]
fn the_error_is_the_energy_of_the_directions_that_are_dropped() {
    let (_, _, k) = layer(48, 32, 10);
    let rows = narrow(&k);
    let centred = &k - &k.mean_axis(ndarray::Axis(0)).unwrap();
    let values = svd(centred.view()).unwrap().s;
    for width in [4, 8, 16] {
        let floor: f64 = values.iter().skip(width).map(|s| s * s).sum::<f64>() / squared(&centred);
        for rotation in [None, Some(0)] {
            let adapter = Adapter::principal(&rows, 32, width, rotation, FullPrecision::F32).unwrap();
            let error = relative_mse(&rows, &rebuilt(adapter, &rows), 32);
            assert!((error / floor - 1.0).abs() < 1e-3, "{width}, {rotation:?}: {error} over {floor}");
        }
    }
}

#[test]
fn compressing_keys_is_compressing_inputs_in_the_closed_form_and_never_worse_elsewhere() {
    // More inputs than outputs, as with grouped queries: inputs cannot be recovered from keys.
    let (x, w, k) = layer(48, 32, 20);
    let width = 8;
    let l = cholesky(matmul(x.t(), x.view()).view()).unwrap();
    let parts = svd(matmul(w.view(), l.view()).view()).unwrap();
    let sigma = parts.s.iter().take(width).map(|s| s.sqrt()).collect::<ndarray::Array1<f64>>();
    let first = ndarray::Slice::from(..width);
    let v = parts.vt.slice_axis(ndarray::Axis(0), first).reversed_axes();
    let a = solve_upper(l.t(), v).unwrap() * &sigma;
    let b = (parts.u.slice_axis(ndarray::Axis(1), first).to_owned() * &sigma).reversed_axes();

    let floor: f64 = parts.s.iter().skip(width).map(|s| s * s).sum();
    let from_inputs = squared(&(matmul(matmul(x.view(), a.view()).view(), b.view()) - &k));
    assert!((from_inputs / floor - 1.0).abs() < 1e-8, "{from_inputs} over {floor}");
    let zero = || vec![0.0; 32];
    let from_keys = rebuilt(Adapter::nearest(&narrow(&b), zero(), width, FullPrecision::F32).unwrap(), &narrow(&k));
    let apart = squared(&(wide(&from_keys, 32) - matmul(matmul(x.view(), a.view()).view(), b.view())));
    assert!(apart < 1e-9 * squared(&k), "{apart}");

    // Any other pair, token by token.
    let (a, b) = (wide(&gaussian(31, 48 * width), width), gaussian(32, width * 32));
    let from_inputs = matmul(matmul(x.view(), a.view()).view(), wide(&b, 32).view());
    let from_keys = wide(&rebuilt(Adapter::nearest(&b, zero(), width, FullPrecision::F32).unwrap(), &narrow(&k)), 32);
    for ((k, theirs), ours) in k.rows().into_iter().zip(from_inputs.rows()).zip(from_keys.rows()) {
        let error =
            |other: ndarray::ArrayView1<'_, f64>| k.iter().zip(other).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
        assert!(error(ours) <= error(theirs) * (1.0 + 1e-5));
    }
}

/// A cache whose keys and values are latents of half the channels, under a policy.
fn cache(g: KvGeometry, storage: KeyStorage, name: &str, policy: KvPolicy, data: &(Vec<f32>, Vec<f32>)) -> QuantizedKv {
    let statistics = Pair {
        keys: StreamStatistics::of(&data.0, g.key_width()).unwrap(),
        values: StreamStatistics::of(&data.1, g.value_width()).unwrap(),
    };
    name.parse::<KvMethod>().unwrap().cache(g, storage, policy, Some(&statistics)).unwrap()
}

/// Rows whose channels have much in common.
fn correlated(g: KvGeometry, tokens: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let rows = |width: usize, seed| {
        let signals = wide(&gaussian(seed, tokens * width / 4), width / 4);
        let noise = wide(&gaussian(seed + 1, tokens * width), width) * 0.1;
        narrow(&(matmul(signals.view(), wide(&gaussian(99, width * width / 4), width).view()) * 0.3 + noise))
    };
    (rows(g.key_width(), seed), rows(g.value_width(), seed + 2))
}

#[test]
fn a_window_longer_than_the_text_is_the_full_cache_bit_for_bit() {
    let g = geometry(64);
    let data = correlated(g, 100, 40);
    let policy = KvPolicy { window: 100, ..KvPolicy::default() };
    let mut ours = cache(g, KeyStorage::PostRope, "cskv:0.5", policy, &data);
    let mut full: QuantizedKv =
        "f16".parse::<KvMethod>().unwrap().cache(g, KeyStorage::PostRope, KvPolicy::default(), None).unwrap();
    append(&mut ours, &data, 0..100);
    append(&mut full, &data, 0..100);
    let queries = gaussian(41, 2 * g.q_heads * g.dim_k);
    let mut out = [vec![0.0; 2 * g.q_heads * g.dim_v], vec![0.0; 2 * g.q_heads * g.dim_v]];
    // Both on decoded rows: there are no kernels for codes that are latents.
    with_isa(Isa::Portable, || {
        ours.attend(&Attention::of(&queries), &mut out[0], &mut Workspace::default()).unwrap();
        full.attend(&Attention::of(&queries), &mut out[1], &mut Workspace::default()).unwrap();
    });
    assert_eq!(out[0], out[1]);
}

#[test]
fn the_window_lowers_the_error_of_queries_that_look_at_recent_tokens() {
    let g = geometry(64);
    let data = correlated(g, 200, 50);
    let (mut with, mut without) = (0.0, 0.0);
    let full = (data.0.clone(), data.1.clone());
    for (window, sum) in [(32, &mut with), (0, &mut without)] {
        let policy = KvPolicy { window, ..KvPolicy::default() };
        let mut cache = cache(g, KeyStorage::PostRope, "cskv:0.25", policy, &data);
        append(&mut cache, &data, 0..200);
        for recent in 170..200 {
            // Each query head asks for the key of a recent token.
            let key = &data.0[recent * g.key_width()..][..g.key_width()];
            let queries: Vec<f32> = (0..g.q_heads)
                .flat_map(|h| key[h / g.group() * g.dim_k..][..g.dim_k].iter().map(|x| 2.0 * x))
                .collect();
            let mut out = vec![0.0; g.q_heads * g.dim_v];
            cache.attend(&Attention::of(&queries), &mut out, &mut Workspace::default()).unwrap();
            let expected = attention(g, &queries, &full, Mask::Causal);
            *sum += out.iter().zip(&expected).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum::<f64>();
        }
    }
    assert!(with < 0.1 * without, "{with} with a window, {without} without");
}

#[test]
fn sums_of_latents_are_the_sums_of_the_rows_they_rebuild() {
    for (name, threads) in [("cskv:0.5", 1), ("cskv:0.25@int4-min", 3), ("cskv-block:0.5@int4-min", 2)] {
        let g = geometry(80);
        let data = correlated(g, 333, 60);
        let policy = KvPolicy { sinks: 3, window: 17, page_tokens: 32, ..KvPolicy::default() };
        let mut cache = cache(g, KeyStorage::PostRope, name, policy, &data);
        append(&mut cache, &data, 0..333);
        // One query sums latents; so many rebuild rows first.
        for count in [1, 200] {
            let queries = gaussian(61, count * g.q_heads * g.dim_k);
            let mut out = vec![0.0; count * g.q_heads * g.dim_v];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let attend = || cache.attend(&Attention::of(&queries), &mut out, &mut Workspace::default());
            pool.install(attend).unwrap();
            let expected = attention(g, &queries, &decoded(&cache), Mask::Causal);
            for (x, y) in out.iter().zip(&expected) {
                assert!((f64::from(*x) - y).abs() < 2e-5, "{name}, {count} queries: {x} not {y}");
            }
        }
    }
}

#[test]
fn the_turn_changes_no_error_and_keys_turn_at_the_positions_they_came_with() {
    let g = geometry(64);
    let data = correlated(g, 128, 70);
    let table = Arc::new(RopeTable::with_theta(RopePairing::Half, 64, 10_000.0, 4096).unwrap());
    let policy = KvPolicy { window: 0, ..KvPolicy::default() };
    let mut plain = cache(g, KeyStorage::PostRope, "cskv:0.25", policy, &data);
    let mut turned = cache(g, KeyStorage::PreRope(table.clone()), "cskv:0.25", policy, &data);
    append(&mut plain, &data, 0..128);
    append(&mut turned, &data, 0..128);
    let mut expected = data.0.clone();
    for (row, position) in expected.chunks_exact_mut(g.key_width()).zip(0..) {
        table.rotate(row, g.dim_k, position).unwrap();
    }
    let error = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
    let (before, after) = (error(&data.0, &decoded(&plain).0), error(&expected, &decoded(&turned).0));
    assert!((before / after - 1.0).abs() < 1e-5, "{before} before the turn, {after} after");
    // The tokens that are left after some were evicted keep their positions.
    let whole = decoded(&turned).0;
    turned.evict(10..50).unwrap();
    assert_eq!(decoded(&turned).0, [&whole[..10 * g.key_width()], &whole[50 * g.key_width()..]].concat());
}

#[test]
fn a_block_window_holds_exact_rows_since_the_last_multiple_of_32() {
    let g = geometry(64);
    let data = correlated(g, 128, 80);
    for (tokens, exact) in [(31, 31), (32, 0), (33, 1), (63, 31), (64, 0), (65, 1)] {
        let method: KvMethod = "cskv-block:0.5@int4-min".parse().unwrap();
        let mut cache = cache(g, KeyStorage::PostRope, "cskv-block:0.5@int4-min", method.policy(), &data);
        for token in 0..tokens {
            append(&mut cache, &data, token..token + 1);
        }
        assert_eq!(cache.sealed(), (tokens - exact, tokens - exact), "{tokens} tokens");
        let (keys, values) = decoded(&cache);
        let error = relative_mse(&data.0[..keys.len()], &keys, g.key_width());
        let error = error.max(relative_mse(&data.1[..values.len()], &values, g.value_width()));
        assert!(error < 0.1, "{tokens} tokens: {error}");
        let half = |x: &f32| half::f16::from_f32(*x).to_f32();
        let first = (tokens - exact) * g.key_width();
        let newest: Vec<f32> = data.0[first..tokens * g.key_width()].iter().map(half).collect();
        assert_eq!(keys[first..], newest, "{tokens} tokens");
    }
}

/// An adapter of nothing, for sizes.
fn sized(channels: usize, width: usize) -> Arc<Adapter> {
    let (matrix, shift) = (vec![0.0; channels * width], vec![0.0; channels]);
    Arc::new(Adapter::new(&matrix, &matrix, shift, width, FullPrecision::F16).unwrap())
}

#[test]
fn llama_2_7b_at_a_density_of_a_fifth_takes_the_bytes_of_the_paper() {
    let (layers, heads, dim) = (32, 32, 128);
    let channels = heads * dim;
    let full = 2 * channels * 2;
    let bytes = |code: &str, blocks| {
        let code: LatentCode = code.parse().unwrap();
        let width = heads * code.width.per_head(dim).unwrap();
        let of = |stream| {
            let codec = code.codec_of(stream, heads, dim, blocks, sized(channels, width)).unwrap();
            (codec.bytes(0).total() as f64 / codec.unit() as f64, codec.unit())
        };
        let ((keys, unit), (values, _)) = (of(Stream::Keys), of(Stream::Values));
        assert_eq!(unit, if blocks { 32 } else { 1 });
        (keys, values)
    };
    // 25 of 128 channels a head: 1600 of 8192 f16 numbers.
    let (keys, values) = bytes("0.2", false);
    assert_eq!(((keys + values) * f64::from(layers)) as usize, 102_400);
    // 5 bits a key (4 + 32/32) and 5.28 a value (4 + 32/25).
    let (keys, values) = bytes("0.2@int4-min", true);
    assert_eq!((keys * 8.0 / 800.0, values * 8.0 / 800.0), (5.0, 5.28));
    assert_eq!(format!("{:.2} %", 100.0 * (keys + values) / full as f64), "6.27 %");
    // 0.3 · 128 = 38.4: the width of a head is cut down first, and never taken from the whole.
    let (keys, _) = bytes("0.3", false);
    assert_eq!(keys as usize, 38 * 32 * 2);
}

#[test]
fn adapters_are_counted_once_and_say_when_they_pay() {
    let g = KvGeometry { kv_heads: 2, q_heads: 4, dim_k: 64, dim_v: 64 };
    let data = correlated(g, 600, 90);
    let mut ours = cache(g, KeyStorage::PostRope, "cskv:0.25", KvPolicy { window: 32, ..KvPolicy::default() }, &data);
    // One matrix of 32 × 128 f16 and a shift of 128 f32 a stream: the way back is the transpose.
    let adapters = 2 * (32 * 128 * 2 + 4 * 128);
    assert_eq!(ours.bytes().auxiliary, adapters);
    append(&mut ours, &data, 0..600);
    let report = ours.bytes();
    assert_eq!((report.auxiliary, report.codes, report.metadata), (adapters, 568 * 2 * 32 * 2, 0));
    assert_eq!(report.full_precision, 32 * 2 * 128 * 2);
    // 128 of 512 bytes a token: the adapters are paid back after so many tokens behind the window.
    let breaks_even = adapters.div_ceil(512 - 128);
    assert_eq!(breaks_even, 46);
    let total = |tokens: u64| adapters + tokens * 128;
    assert!(total(breaks_even) <= breaks_even * 512 && total(breaks_even - 1) > (breaks_even - 1) * 512);
}

#[test]
fn adapters_that_cannot_be_are_refused() {
    let new = |compress: &[f32], rebuild: &[f32], width| {
        Adapter::new(compress, rebuild, vec![0.0; 4], width, FullPrecision::F16).unwrap_err().to_string()
    };
    assert!(new(&[0.0; 8], &[0.0; 8], 0).contains("width of latents is 0 for 4 channels"));
    assert!(new(&[0.0; 20], &[0.0; 20], 5).contains("width of latents is 5 for 4 channels"));
    assert!(new(&[0.0; 7], &[0.0; 8], 2).contains("matrix that compresses: 7 elements, expected 8"));
    assert!(new(&[0.0; 8], &[0.0; 9], 2).contains("matrix that rebuilds: 9 elements, expected 8"));
    assert!(new(&[f32::NAN; 8], &[0.0; 8], 2).contains("NaN"));
    assert!(new(&[0.0; 8], &[1e6; 8], 2).contains("1000000"), "f16 ends below");
    let principal = |rows: &[f32]| Adapter::principal(rows, 4, 2, None, FullPrecision::F16);
    assert!(matches!(principal(&[]), Err(Error::Shape { .. })));
    assert!(matches!(principal(&[0.0; 6]), Err(Error::Shape { .. })));
    assert!(matches!(principal(&[f32::INFINITY; 8]), Err(Error::Linalg(_))));
    assert!(matches!(Adapter::principal(&[0.0; 8], 4, 5, None, FullPrecision::F16), Err(Error::Unsupported { .. })));
    let latents = |width| Arc::new(Plain::new(1, width, FullPrecision::F16).unwrap());
    assert!(matches!(Cskv::new(sized(4, 2), latents(3)), Err(Error::Width { expected: 2, found: 3, .. })));
    assert!(matches!(Cskv::new(sized(4, 2), latents(2)).unwrap().in_blocks(0), Err(Error::Unsupported { .. })));
    let progressive = Arc::new(PmKvq::new(1, 32, PmKvqConfig::default()).unwrap());
    assert!(matches!(Cskv::new(sized(64, 32), progressive), Err(Error::Unsupported { .. })));
    for (code, dim) in [("0.001", 64), ("0.0", 64), ("0", 64), ("65", 64)] {
        assert!(
            matches!(code.parse::<LatentCode>().unwrap().width.per_head(dim), Err(Error::Unsupported { .. })),
            "{code}"
        );
    }
}
