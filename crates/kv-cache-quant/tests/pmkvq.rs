//! PM-KVQ: the exact shrink, independence of the path, budgets.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod common;

use common::*;
use kv_cache_quant::*;
use proptest::prelude::*;
use std::sync::Arc;

#[test]
fn every_code_of_every_width_shrinks_to_the_nearest() {
    for (from, divisor) in [(Width::W16, 257_u32), (Width::W8, 17), (Width::W4, 5)] {
        let mut before = 0;
        for code in 0..=u16::try_from((1_u32 << from.bits()) - 1).unwrap() {
            let nearest = (2 * u32::from(code) + divisor) / (2 * divisor);
            let shrunk = shrink_code(code, from).unwrap();
            assert_eq!(u32::from(shrunk), nearest, "{code} of {from:?}");
            assert!(shrunk >= before, "{code} of {from:?}");
            before = shrunk;
        }
        assert_eq!(u32::from(before), (1 << (from.bits() / 2)) - 1, "the largest code stays the largest");
    }
    assert!(matches!(shrink_code(1, Width::W2), Err(Error::Unsupported { .. })));
}

#[test]
fn step_by_step_ends_where_rounding_at_once_does() {
    for code in 0..=u16::MAX {
        let by_steps = [Width::W16, Width::W8, Width::W4].into_iter().fold(code, |c, w| shrink_code(c, w).unwrap());
        assert_eq!(u32::from(by_steps), (u32::from(code) + 21845 / 2) / 21845, "{code}");
    }
    assert_eq!(
        (0..16).map(|c| shrink_code(c, Width::W4).unwrap()).collect::<Vec<_>>(),
        [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    );
}

fn codec(heads: usize, dim: usize, residual: usize) -> PmKvq {
    PmKvq::new(heads, dim, PmKvqConfig { residual, ..PmKvqConfig::default() }).unwrap()
}

#[test]
fn shrinking_stored_units_equals_sealing_at_the_lower_width() {
    for dim in [128, 80, 100, 7] {
        let codec = codec(2, dim, 3);
        let rows = gaussian(dim as u64, 3 * codec.width());
        let sealed = |stage: usize| {
            let mut out = vec![0; codec.bytes(stage).total()];
            codec.seal(&rows, stage, &mut out).unwrap();
            out
        };
        let mut unit = sealed(0);
        for stage in 0..3 {
            let mut shrunk = vec![0; codec.bytes(stage + 1).total()];
            codec.shrink(&unit, stage, &mut shrunk);
            assert_eq!(shrunk, sealed(stage + 1), "heads of {dim}, to stage {}", stage + 1);
            unit = shrunk;
        }
    }
}

/// Rounding to 2 bits with the same minimum and range in exact arithmetic.
#[test]
fn the_last_stage_is_flat_rounding_to_two_bits() {
    let codec = codec(4, 128, 8);
    let rows = gaussian(1, 8 * 512);
    let mut unit = vec![0; codec.bytes(3).total()];
    codec.seal(&rows, 3, &mut unit).unwrap();
    let mut out = vec![0.0; rows.len()];
    codec.open(&unit, 3, &mut out).unwrap();
    for (group, decoded) in rows.chunks_exact(128).zip(out.chunks_exact(128)) {
        let half = |x: f32| f64::from(half::f16::from_f32(x));
        let lo = group.iter().copied().reduce(f32::min).unwrap();
        let hi = group.iter().copied().reduce(f32::max).unwrap();
        let (min, range) = (half(lo), half(hi - lo));
        for (&x, &y) in group.iter().zip(decoded) {
            let code = ((f64::from(x) - min) / (range / 3.0)).round_ties_even().clamp(0.0, 3.0);
            assert_eq!(y, code as f32 * (range / 3.0) as f32 + min as f32, "{x}");
        }
    }
}

fn progressive(g: KvGeometry, residual: usize, budget: u64) -> QuantizedKv {
    let policy = KvPolicy { sinks: 1, budget: Some(budget), page_tokens: 16, ..KvPolicy::default() };
    PmKvqConfig { residual, ..PmKvqConfig::default() }.cache(g, KeyStorage::PostRope, policy).unwrap()
}

#[test]
fn a_full_cache_equals_one_that_was_narrow_from_the_start() {
    let g = geometry(64);
    let config = PmKvqConfig { residual: 16, ..PmKvqConfig::default() };
    let policy = KvPolicy { sinks: 1, page_tokens: 16, ..KvPolicy::default() };
    for (width, stage) in [(Width::W2, 3), (Width::W4, 2), (Width::W8, 1)] {
        let budget = layer_bytes(g, &config, policy, 400, width).unwrap();
        let data = rows(g, 400, 2);
        let mut grown = progressive(g, 16, budget);
        let mut seen = vec![0];
        for token in 0..400 {
            append(&mut grown, &data, token..token + 1);
            if seen.last() != Some(&grown.stage()) {
                seen.push(grown.stage());
            }
        }
        assert_eq!(seen, (0..=stage).collect::<Vec<_>>(), "every width on the way to {width:?} is used");
        let mut at_once = progressive(g, 16, budget);
        append(&mut at_once, &data, 0..400);
        assert_eq!(state(&grown), state(&at_once), "{width:?}");
        assert_eq!(grown.bytes().total(), budget, "{width:?}: the budget is used to the last byte");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_budget_is_never_exceeded_and_widths_depend_on_the_number_of_tokens_only(
        pieces in prop::collection::vec(1_usize..60, 1..12), budget in 8_000_u64..60_000, residual in 1_usize..20,
    ) {
        let g = KvGeometry { kv_heads: 1, q_heads: 1, dim_k: 64, dim_v: 64 };
        let data = rows(g, 720, 3);
        let (mut cache, mut one_by_one) = (progressive(g, residual, budget), progressive(g, residual, budget));
        for piece in pieces {
            let from = cache.len();
            let rows = KvRows {
                keys: &data.0[from * 64..(from + piece) * 64],
                values: &data.1[from * 64..(from + piece) * 64],
            };
            let before = state(&cache);
            match cache.append(rows, Positions::Next) {
                Ok(()) => {}
                Err(Error::Budget { need, have }) => {
                    prop_assert!(need > have && have == budget);
                    prop_assert_eq!(state(&cache), before, "a refused append changed the cache");
                    break;
                }
                Err(error) => prop_assert!(false, "{}", error),
            }
            for token in from..from + piece {
                append(&mut one_by_one, &data, token..token + 1);
                prop_assert!(one_by_one.bytes().total() <= budget);
            }
            prop_assert!(cache.bytes().total() <= budget, "{} of {}", cache.bytes().total(), budget);
            prop_assert_eq!(state(&cache), state(&one_by_one));
        }
    }
}

#[test]
fn a_fork_keeps_its_precision_when_the_origin_loses_it() {
    let g = geometry(64);
    let config = PmKvqConfig { residual: 16, ..PmKvqConfig::default() };
    let policy = KvPolicy { sinks: 1, page_tokens: 16, ..KvPolicy::default() };
    let budget = layer_bytes(g, &config, policy, 300, Width::W4).unwrap();
    let data = rows(g, 300, 4);
    let mut origin = progressive(g, 16, budget);
    append(&mut origin, &data, 0..60);
    assert_eq!(origin.stage(), 0);
    let fork = origin.fork();
    let before = decoded(fork.as_ref());
    append(&mut origin, &data, 60..300);
    assert!(origin.stage() > 0, "the origin went down");
    assert_eq!(decoded(fork.as_ref()), before);
}

#[test]
fn a_rollback_never_raises_the_width() {
    let g = geometry(64);
    let config = PmKvqConfig { residual: 16, ..PmKvqConfig::default() };
    let policy = KvPolicy { sinks: 1, page_tokens: 16, ..KvPolicy::default() };
    let budget = layer_bytes(g, &config, policy, 300, Width::W4).unwrap();
    let data = rows(g, 300, 5);
    let mut cache = progressive(g, 16, budget);
    append(&mut cache, &data, 0..250);
    let stage = cache.stage();
    assert!(stage > 0 && cache.exact_rollback_depth() == 0);
    assert_eq!(cache.truncate(30).unwrap(), Rollback::Approximate);
    assert_eq!((cache.len(), cache.stage()), (30, stage));
    assert_eq!(cache.truncate(0).unwrap(), Rollback::Exact);
    assert_eq!(cache.stage(), 0, "an empty cache starts anew");
}

/// Mean attention error over decoding, widths falling as memory fills, against two bits from the start.
#[test]
fn a_progressive_cache_has_about_half_the_error_of_a_flat_one_over_time() {
    let g = KvGeometry { kv_heads: 1, q_heads: 1, dim_k: 128, dim_v: 128 };
    let length = 512;
    let config = PmKvqConfig { residual: 1, ..PmKvqConfig::default() };
    let policy = KvPolicy { page_tokens: 32, ..KvPolicy::default() };
    let budget = layer_bytes(g, &config, policy, length, Width::W2).unwrap();
    let flat: Arc<dyn Codec> = Arc::new(TokenFormat::new(1, 128, "int2-min".parse().unwrap()).unwrap());
    let mut flat = QuantizedKv::new(g, KeyStorage::PostRope, flat.clone(), flat, policy).unwrap();
    let mut grown = config.cache(g, KeyStorage::PostRope, KvPolicy { budget: Some(budget), ..policy }).unwrap();
    let data = rows(g, length, 6);
    let queries = gaussian(7, length * 128);
    let error = |cache: &QuantizedKv, token: usize| {
        let exact = (data.0[..(token + 1) * 128].to_vec(), data.1[..(token + 1) * 128].to_vec());
        let query = &queries[token * 128..(token + 1) * 128];
        let expected = attention(g, query, &exact, Mask::Causal);
        let mut out = vec![0.0; 128];
        cache.attend(&Attention::of(query), &mut out, &mut Workspace::default()).unwrap();
        let norm = |x: f64| x * x;
        let wrong: f64 = out.iter().zip(&expected).map(|(&x, y)| norm(f64::from(x) - y)).sum();
        wrong / expected.iter().map(|&y| norm(y)).sum::<f64>()
    };
    let (mut sums, mut last) = ([0.0; 2], [0.0; 2]);
    for token in 0..length {
        append(&mut flat, &data, token..token + 1);
        append(&mut grown, &data, token..token + 1);
        last = [error(&grown, token), error(&flat, token)];
        sums = [sums[0] + last[0], sums[1] + last[1]];
    }
    let ratio = sums[0] / sums[1];
    println!("progressive {:.3}, flat {:.3}, ratio {ratio:.2}", sums[0] / length as f64, sums[1] / length as f64);
    assert!((0.35..0.6).contains(&ratio), "{ratio}");
    assert!((last[0] / last[1] - 1.0).abs() < 0.05, "at the end both are at two bits: {last:?}");
}

#[test]
fn widths_are_allocated_to_layers_exactly() {
    let widths = vec![Width::W2, Width::W4, Width::W8];
    let table = Sensitivity { widths, loss: vec![vec![10.0, 9.0, 0.0], vec![10.0, 6.0, 5.0]] };
    assert_eq!(table.allocate(&[2, 4, 8], 10).unwrap(), [Width::W8, Width::W2]);
    assert!(matches!(
        table.allocate(&[2, 4, 8], 3),
        Err(Error::Allocation(bit_allocation::Error::Infeasible { smallest: 4, budget: 3 }))
    ));
    assert!(matches!(table.allocate(&[2, 4], 9), Err(Error::Shape { .. })));
    let g = geometry(128);
    let bytes: Vec<u64> = [Width::W2, Width::W4]
        .into_iter()
        .map(|width| layer_bytes(g, &PmKvqConfig::default(), KvPolicy::default(), 4096, width).unwrap())
        .collect();
    // 2 and 4 bits, f16 minimum and range for 128, 127 tokens that wait.
    for (found, bits) in bytes.iter().zip([2.25, 4.25]) {
        let ideal = (4096.0 * bits / 8.0 + 127.0 * 2.0) * 512.0;
        let over = *found as f64 / ideal;
        assert!((1.0..1.02).contains(&over), "{found} bytes, {ideal} without padding and lists");
    }
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    for residual in [0, 1 << 20] {
        let config = PmKvqConfig { residual, ..PmKvqConfig::default() };
        assert!(matches!(PmKvq::new(1, 64, config), Err(Error::Unsupported { .. })));
    }
    let config = PmKvqConfig { floor: Width::W4, ..PmKvqConfig::default() };
    let bytes = layer_bytes(geometry(64), &config, KvPolicy::default(), 10, Width::W2);
    assert!(matches!(bytes, Err(Error::Unsupported { what: "final width", .. })));
}

/// Of a key (m, 0) that turns by θ a position, the second component reaches `m·sin(min(θ·P, π/2))` within `P`
/// positions.
#[test]
fn stretched_positions_show_slow_channels_as_long_texts_would() {
    let (short, long) = (256, 1024);
    let table = RopeTable::with_theta(RopePairing::Half, 64, 1e4, long).unwrap();
    let largest = |positions: &[u32]| -> Vec<f32> {
        let mut most = vec![0.0_f32; 64];
        for &position in positions {
            let mut key = vec![1.0; 32];
            key.resize(64, 0.0);
            table.rotate(&mut key, 64, position).unwrap();
            most.iter_mut().zip(&key).for_each(|(m, x)| *m = m.max(x.abs()));
        }
        most
    };
    let stretched = largest(&stretched_positions(short, long).unwrap());
    let plain = largest(&(0..short as u32).collect::<Vec<_>>());
    for pair in 0..32 {
        let theta = 1e4_f64.powf(-2.0 * pair as f64 / 64.0);
        let closed = |last: f64| (theta * last).min(std::f64::consts::FRAC_PI_2).sin();
        let step = (long / short) as f64;
        let (s, p) = (f64::from(stretched[32 + pair]), f64::from(plain[32 + pair]));
        // Fast pairs are met at a grid of angles only.
        let slack = if theta * step < 0.2 { 0.01 } else { 0.12 };
        assert!((s - closed(step * (short - 1) as f64)).abs() < slack, "pair {pair}: {s}");
        assert!((p - closed((short - 1) as f64)).abs() < slack, "pair {pair}: {p}");
    }
    assert!(stretched[63] > 3.9 * plain[63], "the slowest pair turns four times as far");
    for (tokens, effective) in [(0, 4), (3, 4), (4, 0)] {
        assert!(matches!(stretched_positions(tokens, effective), Err(Error::Unsupported { .. })));
    }
}
