//! Attention on packed codes against attention on decoded rows.
#![allow(clippy::cast_precision_loss, reason = "small counts")]

mod common;

use common::{append, cases, gaussian, rows};
use kv_cache_quant::*;
use quant_core::kernels::{Isa, with_isa};
use std::sync::Arc;

fn attend(cache: &dyn KvCacheLayer, request: &Attention<'_>, isa: Isa) -> Vec<f32> {
    attend_in(&mut Workspace::default(), cache, request, isa)
}

fn attend_in(workspace: &mut Workspace, cache: &dyn KvCacheLayer, request: &Attention<'_>, isa: Isa) -> Vec<f32> {
    let g = cache.geometry();
    let count = request.queries.len() / (g.q_heads * g.dim_k);
    let mut out = vec![f32::NAN; count * g.q_heads * g.dim_v];
    with_isa(isa, || cache.attend(request, &mut out, workspace).unwrap());
    out
}

/// The stated bounds, where factors have so many steps from 0 to their largest. Scores differ by `scale · max|q| · Σ|k| / steps`
/// at most (rounding queries costs half of it), and by 2^-20 of the sum of magnitudes for everything else; weights then differ
/// by twice that, and outputs by what weights do times the largest value. Rounding weights costs 16/steps of a group's range at
/// most, which is three times the largest value at most (two bits with a sign), and on average over outputs far less.
fn check(cache: &dyn KvCacheLayer, request: &Attention<'_>, what: &str) {
    let g = cache.geometry();
    let (found, expected) = (attend(cache, request, Isa::Avx512), attend(cache, request, Isa::Portable));
    let (mut keys, mut values) = (vec![0.0; cache.len() * g.key_width()], vec![0.0; cache.len() * g.value_width()]);
    cache.dequantize(0..cache.len(), &mut keys, &mut values).unwrap();
    if let Some(fresh) = request.fresh {
        keys.extend_from_slice(fresh.keys);
        values.extend_from_slice(fresh.values);
    }
    let largest = |row: &[f32]| row.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let sums = keys.chunks_exact(g.dim_k).map(|key| key.iter().map(|x| x.abs()).sum::<f32>());
    let key_sum = sums.fold(0.0, f32::max);
    let scale = request.scale.unwrap_or(1.0 / (g.dim_k as f32).sqrt());
    let steps = match request.factors {
        Factors::Bits8 => 127.0,
        Factors::Bits16 => 32512.0,
    };
    let score_error = scale * largest(request.queries) * key_sum * (1.0 / steps + 2.0_f32.powi(-20));
    let exact = 2.0 * score_error + 2.0_f32.powi(-18);
    let bound = largest(&values) * (exact + 3.0 * 16.0 / steps);
    let squares: f32 = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
    let typical = (squares / found.len() as f32).sqrt();
    assert!(typical <= largest(&values) * (exact + 2.0 / steps), "{what}: outputs are off by {typical}");
    for (at, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= bound, "{what}: output {at} is {a}, decoded rows give {b}, bound {bound}");
    }
}

const DIMS: [usize; 9] = [32, 64, 80, 96, 100, 112, 128, 192, 256];

#[test]
fn every_codec_agrees_with_attention_on_decoded_rows() {
    for case in cases() {
        for (index, dim) in DIMS.into_iter().enumerate() {
            let groups = [1, 2, 3, 4, 7, 8];
            let group = groups[index % groups.len()];
            let g =
                KvGeometry { kv_heads: 2, q_heads: 2 * group, dim_k: dim, dim_v: if dim == 192 { 128 } else { dim } };
            let mut cache = (case.make)(g, KeyStorage::PostRope, case.policy);
            let all = rows(g, 520, 5);
            let queries = gaussian(6, 11 * g.q_heads * dim);
            let mut held = 0;
            for tokens in [1, 70, 257, 520] {
                append(&mut cache, &all, held..tokens);
                held = tokens;
                let what = format!("{} of {dim}, {group} queries a head, {tokens} tokens", case.name);
                let one = &queries[..g.q_heads * dim];
                check(&cache, &Attention::of(one), &what);
                check(&cache, &Attention::of(one).with_factors(Factors::Bits8), &format!("{what}, factors of 8 bits"));
                let some = tokens.min(11 - index);
                let many = Attention::of(&queries[..some * g.q_heads * dim]);
                check(&cache, &many, &what);
                if tokens == 257 {
                    let fresh = KvRows { keys: &all.0[..3 * g.key_width()], values: &all.1[..3 * g.value_width()] };
                    check(&cache, &many.with_fresh(fresh), &format!("{what}, fresh tokens"));
                    check(&cache, &Attention { mask: Mask::Full, ..many }, &format!("{what}, full"));
                    let sliding = Attention { mask: Mask::Sliding(20), scale: Some(0.3), ..many };
                    check(&cache, &sliding, &format!("{what}, sliding"));
                }
            }
        }
    }
}

/// Whether this processor has the kernels at all.
fn has_kernels() -> bool {
    let method: KvMethod = "f32".parse().unwrap();
    let cache = method.cache(common::geometry(64), KeyStorage::PostRope, method.policy(), None).unwrap();
    with_isa(Isa::Avx512, || cache.attends_on_codes())
}

#[test]
fn caches_say_whether_their_codes_are_read() {
    let kernels = has_kernels();
    let reads = |name: &str, dim: usize, storage: KeyStorage, isa: Isa| {
        let g = KvGeometry { kv_heads: 2, q_heads: 4, dim_k: dim, dim_v: dim };
        let method: KvMethod = name.parse().unwrap();
        let cache = method.cache(g, storage, method.policy(), None).unwrap();
        with_isa(isa, || cache.attends_on_codes())
    };
    for name in [
        "f32",
        "f16",
        "int8",
        "int4-min",
        "int2-min",
        "int4-g32-min",
        "mxfp4",
        "nvfp4",
        "nf4",
        "rotated:int4-min",
        "kivi:2",
    ] {
        for dim in [64, 128] {
            assert_eq!(reads(name, dim, KeyStorage::PostRope, Isa::Avx512), kernels, "{name} of {dim}");
            for isa in [Isa::Portable, Isa::Avx2] {
                assert!(!reads(name, dim, KeyStorage::PostRope, isa), "{name} of {dim} in {isa:?}");
            }
        }
    }
    for name in ["int3-min", "mxfp6-e2m3"] {
        assert!(!reads(name, 64, KeyStorage::PostRope, Isa::Avx512), "{name}");
    }
    let rope = Arc::new(RopeTable::with_theta(RopePairing::Half, 64, 1e4, 16).unwrap());
    assert!(!reads("int4-min", 64, KeyStorage::PreRope(rope), Isa::Avx512), "keys before the turn");
}

#[test]
fn every_packed_format_agrees_with_attention_on_decoded_rows() {
    let names = [
        "int8",
        "int8-g32",
        "int8-min",
        "int8-asym",
        "int8-g64-f32",
        "int4-g32",
        "int4-min",
        "int4-g32-min",
        "int4-g128",
        "int4-g128-asym",
        "int4-g64-bf16",
        "int2-g32-min",
        "int2-g16",
        "int2-full-g32",
        "int2-min",
        "nf4",
        "mxfp4",
        "nvfp4",
        "nvint4",
        "mxint8",
        "mxfp8-e4m3",
        "mxfp8-e5m2",
        "fp8-e4m3",
        "fp8-e5m2",
        "f16",
        "bf16",
        "int3-g32-min",
        "mxfp6-e2m3",
    ];
    for name in names {
        for dim in DIMS {
            let g = KvGeometry { kv_heads: 3, q_heads: 6, dim_k: dim, dim_v: dim };
            let codec = Arc::new(TokenFormat::new(3, dim, name.parse().unwrap()).unwrap());
            let policy = KvPolicy { sinks: 2, window: 9, page_tokens: 40, ..KvPolicy::default() };
            let mut cache = QuantizedKv::new(g, KeyStorage::PostRope, codec.clone(), codec, policy).unwrap();
            append(&mut cache, &rows(g, 150, 8), 0..150);
            check(&cache, &Attention::of(&gaussian(9, 3 * g.q_heads * dim)), &format!("{name} of {dim}"));
        }
    }
}

#[test]
fn e2m1_with_every_scale_agrees_with_attention_on_decoded_rows() {
    for name in E2M1 {
        for (dim_k, dim_v, group) in
            [(64, 256, 1), (80, 80, 2), (96, 112, 3), (112, 96, 4), (128, 128, 7), (256, 64, 8)]
        {
            let g = KvGeometry { kv_heads: 2, q_heads: 2 * group, dim_k, dim_v };
            let codec = |dim| Arc::new(TokenFormat::new(2, dim, name.parse().unwrap()).unwrap());
            // Pages that are whole sixteens, and such that are not.
            for page_tokens in [48, 40] {
                let policy = KvPolicy { sinks: 1, window: 6, page_tokens, ..KvPolicy::default() };
                let storage = KeyStorage::PostRope;
                let mut cache = QuantizedKv::new(g, storage, codec(dim_k), codec(dim_v), policy).unwrap();
                let all = rows(g, 331, 41);
                let mut held = 0;
                for tokens in [8, 65, 200, 331] {
                    append(&mut cache, &all, held..tokens);
                    held = tokens;
                    let queries = gaussian(42, 3 * g.q_heads * dim_k);
                    let what = format!("{name} of {dim_k} and {dim_v}, {group} queries a head, {tokens} tokens");
                    check(&cache, &Attention::of(&queries), &what);
                }
            }
        }
    }
}

/// E2M1 with scales of each kind, without any, and with groups of several sizes.
const E2M1: [&str; 8] =
    ["mxfp4", "mxfp4-g64-even", "nvfp4", "nvfp4-torchao1", "fp4-g32-f16", "fp4-g16-bf16", "fp4", "fp4-cast"];

#[test]
fn every_stage_of_pm_kvq_agrees_with_attention_on_decoded_rows() {
    let g = KvGeometry { kv_heads: 2, q_heads: 4, dim_k: 64, dim_v: 80 };
    for width in Width::LADDER {
        let config = PmKvqConfig { residual: 16, group: 32, ..PmKvqConfig::default() };
        let policy = KvPolicy { sinks: 1, ..KvPolicy::default() };
        let budget = layer_bytes(g, &config, policy, 300, width).unwrap();
        let policy = KvPolicy { budget: Some(budget), ..policy };
        let mut cache = config.cache(g, KeyStorage::PostRope, policy).unwrap();
        append(&mut cache, &rows(g, 300, 11), 0..300);
        assert_eq!(Width::LADDER[cache.stage()], width, "the budget asks for it");
        check(&cache, &Attention::of(&gaussian(12, 2 * 4 * 64)), &format!("{width:?}"));
    }
}

#[test]
fn attention_stays_right_after_tokens_were_cut_and_evicted() {
    for case in cases() {
        let g = common::geometry(64);
        let mut cache = (case.make)(g, KeyStorage::PostRope, case.policy);
        append(&mut cache, &rows(g, 500, 21), 0..500);
        let sealed_from = case.policy.sinks;
        let units = 128 * 2;
        cache.evict(sealed_from..sealed_from + units).unwrap();
        check(&cache, &Attention::of(&gaussian(22, g.q_heads * 64)), &format!("{}, evicted", case.name));
        cache.truncate(100).unwrap();
        check(&cache, &Attention::of(&gaussian(23, g.q_heads * 64)), &format!("{}, cut", case.name));
    }
}

#[test]
fn attention_stays_right_where_pages_have_lost_single_tokens() {
    let names = [
        "int8",
        "int8-g32-min",
        "int4-g32",
        "int4-min",
        "int4-g32-asym",
        "int2-g32",
        "int2-min",
        "mxfp4",
        "nvfp4",
        "nvint4",
    ];
    for name in names {
        let g = KvGeometry { kv_heads: 2, q_heads: 4, dim_k: 64, dim_v: 128 };
        let codec = |dim| Arc::new(TokenFormat::new(2, dim, name.parse().unwrap()).unwrap());
        let policy = KvPolicy { sinks: 3, window: 20, page_tokens: 48, ..KvPolicy::default() };
        let mut cache = QuantizedKv::new(g, KeyStorage::PostRope, codec(64), codec(128), policy).unwrap();
        append(&mut cache, &rows(g, 900, 24), 0..900);
        for (first, count) in [(10, 5), (60, 1), (200, 17), (400, 2)] {
            let mut kept = vec![0.0; cache.len() * g.value_width()];
            let mut keys = vec![0.0; cache.len() * g.key_width()];
            cache.dequantize(0..cache.len(), &mut keys, &mut kept).unwrap();
            kept.drain(first * g.value_width()..(first + count) * g.value_width());
            cache.evict(first..first + count).unwrap();
            let mut found = vec![0.0; kept.len()];
            cache.dequantize(0..cache.len(), &mut keys[..cache.len() * g.key_width()], &mut found).unwrap();
            assert_eq!(found, kept, "{name}: the others stay");
            check(&cache, &Attention::of(&gaussian(25, 3 * g.q_heads * 64)), &format!("{name}, {count} evicted"));
        }
    }
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    for name in ["int4-min", "rotated:int2-g32-min", "kivi:2", "mxfp4", "nvfp4"] {
        let g = KvGeometry { kv_heads: 2, q_heads: 8, dim_k: 128, dim_v: 128 };
        let method: KvMethod = name.parse().unwrap();
        let mut cache = method.cache(g, KeyStorage::PostRope, method.policy(), None).unwrap();
        append(&mut cache, &rows(g, 3000, 31), 0..3000);
        let queries = gaussian(32, 9 * g.q_heads * 128);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| attend(&cache, &Attention::of(&queries), Isa::Avx512))
        };
        let expected = run(1);
        for threads in [2, 3, 7] {
            assert_eq!(run(threads), expected, "{name} on {threads} threads");
        }
    }
}

#[test]
fn a_used_workspace_gives_the_same_bits() {
    let mut used = Workspace::default();
    for case in cases() {
        for (kv_heads, group, dim, tokens) in [(2, 4, 128, 700), (1, 1, 64, 3), (3, 2, 96, 257), (2, 1, 128, 40)] {
            let g = KvGeometry { kv_heads, q_heads: kv_heads * group, dim_k: dim, dim_v: dim };
            let mut cache = (case.make)(g, KeyStorage::PostRope, case.policy);
            let all = rows(g, tokens, 15);
            append(&mut cache, &all, 0..tokens);
            let queries = gaussian(16, 3 * g.q_heads * dim);
            let (one, many) = (Attention::of(&queries[..g.q_heads * dim]), Attention::of(&queries));
            let fresh = KvRows { keys: &all.0[..3 * g.key_width()], values: &all.1[..3 * g.value_width()] };
            let sliding = Attention { mask: Mask::Sliding(2), ..many };
            let full = Attention { mask: Mask::Full, ..many };
            let coarse = many.with_factors(Factors::Bits8);
            for (index, request) in [many, sliding, one, coarse, full, many.with_fresh(fresh), one].iter().enumerate() {
                for isa in [Isa::Avx512, Isa::Portable] {
                    let what = format!("{}, {tokens} tokens, request {index} in {isa:?}", case.name);
                    assert_eq!(attend_in(&mut used, &cache, request, isa), attend(&cache, request, isa), "{what}");
                }
            }
        }
    }
}

#[test]
fn factors_of_eight_bits_cost_little_beside_codes_of_four() {
    let kernels = has_kernels();
    let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    for (kv_heads, group) in [(8, 1), (2, 4), (2, 7)] {
        let g = KvGeometry { kv_heads, q_heads: kv_heads * group, dim_k: 128, dim_v: 128 };
        let (all, queries) = (rows(g, 700, 17), gaussian(18, 3 * g.q_heads * 128));
        let outputs = |name: &str, factors: Factors| {
            let method: KvMethod = name.parse().unwrap();
            let mut cache = method.cache(g, KeyStorage::PostRope, method.policy(), None).unwrap();
            append(&mut cache, &all, 0..700);
            attend(&cache, &Attention::of(&queries).with_factors(factors), Isa::Avx512)
        };
        let exact = outputs("f32", Factors::Bits16);
        assert_eq!(outputs("f32", Factors::Bits8), exact, "floats are multiplied as they are");
        for name in ["int4-g128", "int4-min", "int4-g32-min", "rotated:int4-min", "mxfp4", "nvfp4", "int2-min"] {
            let (fine, coarse) = (outputs(name, Factors::Bits16), outputs(name, Factors::Bits8));
            let (of_codes, of_factors) = (off(&fine, &exact), off(&coarse, &fine));
            assert!(of_factors < of_codes / 5.0, "{name}, {group} queries a head: {of_factors} beside {of_codes}");
            assert_eq!(of_factors > 0.0, kernels, "{name}: the choice has an effect where there are kernels");
        }
    }
}

#[test]
fn attention_over_equal_values_gives_them_whatever_the_splits() {
    let g = KvGeometry { kv_heads: 2, q_heads: 6, dim_k: 64, dim_v: 64 };
    for name in ["f32", "f16", "int4-min", "int4-g32-min", "int2-min", "mxfp4", "nvfp4"] {
        let method: KvMethod = name.parse().unwrap();
        let policy = KvPolicy { sinks: 3, window: 5, ..method.policy() };
        let mut cache = method.cache(g, KeyStorage::PostRope, policy, None).unwrap();
        let (keys, values) = (rows(g, 700, 9).0, vec![0.75; 700 * g.value_width()]);
        append(&mut cache, &(keys, values), 0..700);
        let queries = gaussian(10, 3 * g.q_heads * g.dim_k);
        for isa in [Isa::Avx512, Isa::Portable] {
            let found = attend(&cache, &Attention::of(&queries), isa);
            assert!(found.iter().all(|x| (x - 0.75).abs() < 1e-5), "{name} in {isa:?}: shares of splits add up to 1");
        }
    }
}

#[test]
fn wide_heads_whose_elements_all_agree_do_not_overflow() {
    for name in ["int8", "int8-min", "int8-g128", "int4-min", "mxfp4", "fp4"] {
        for dim in [256, 512, 1024] {
            let g = KvGeometry { kv_heads: 1, q_heads: 2, dim_k: dim, dim_v: dim };
            let method: KvMethod = name.parse().unwrap();
            let mut cache = method.cache(g, KeyStorage::PostRope, method.policy(), None).unwrap();
            // Rows next to the largest value, but for one element that keeps the range wide.
            let rows: Vec<f32> =
                (0..200 * dim).map(|i| if i % dim == 0 { -1.0 } else { 1.0 - (i / dim) as f32 / 250.0 }).collect();
            append(&mut cache, &(rows.clone(), rows), 0..200);
            for sign in [1.0, -1.0] {
                check(&cache, &Attention::of(&vec![sign; 2 * dim]), &format!("{name} of {dim}"));
            }
        }
    }
}
