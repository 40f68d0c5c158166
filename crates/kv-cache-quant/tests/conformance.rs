//! What every cache promises, run for every codec.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod common;

use common::*;
use kv_cache_quant::*;
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::sync::Arc;

fn make(case: &Case, g: KvGeometry) -> QuantizedKv {
    (case.make)(g, KeyStorage::PostRope, case.policy)
}

/// Tokens after which every part of the state machine has been at work.
fn enough(case: &Case) -> usize {
    let cache = make(case, geometry(64));
    let unit = cache.capabilities().key_unit.max(cache.capabilities().value_unit);
    let window = case.policy.value_window.unwrap_or(case.policy.window).max(if case.name == "kivi" { 128 } else { 0 });
    (3 * unit + window + case.policy.sinks).max(70)
}

#[test]
fn any_split_of_the_tokens_into_calls_gives_the_same_bytes() {
    for case in cases() {
        let (g, most) = (geometry(64), enough(&case));
        let data = rows(g, most, 1);
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut one_by_one = make(&case, g);
        for tokens in 0..=most {
            if tokens > 0 {
                append(&mut one_by_one, &data, tokens - 1..tokens);
            }
            if tokens > 40 && tokens % 7 > 1 {
                continue;
            }
            let mut at_once = make(&case, g);
            append(&mut at_once, &data, 0..tokens);
            assert_eq!(at_once.len(), tokens, "{}", case.name);
            assert_eq!(state(&at_once), state(&one_by_one), "{}: {tokens} tokens at once and one by one", case.name);
            let mut pieces = make(&case, g);
            while pieces.len() < tokens {
                let next = pieces.len() + 1 + random.next_u32() as usize % (tokens - pieces.len());
                let from = pieces.len();
                append(&mut pieces, &data, from..next);
            }
            assert_eq!(state(&pieces), state(&at_once), "{}: {tokens} tokens in pieces", case.name);
        }
    }
}

#[test]
fn heads_of_all_sizes_decode_to_what_they_were() {
    for case in cases() {
        for dim in SIZES {
            let g = geometry(dim);
            let tokens = enough(&case) + 3;
            let (keys, values) = rows(g, tokens, dim as u64);
            let mut cache = make(&case, g);
            append(&mut cache, &(keys.clone(), values.clone()), 0..tokens);
            let (k, v) = decoded(&cache);
            for (stream, a, b, width) in [("keys", keys, k, g.key_width()), ("values", values, v, g.value_width())] {
                let error = relative_mse(&a, &b, width);
                assert!(error <= case.worst, "{}, heads of {dim}, {stream}: {error}", case.name);
            }
        }
    }
}

#[test]
fn sinks_and_window_are_kept_as_they_came() {
    let policy =
        KvPolicy { sinks: 5, window: 9, value_window: None, precision: FullPrecision::F32, ..KvPolicy::default() };
    for case in cases() {
        let g = geometry(64);
        let tokens = enough(&case) + 30;
        let data = rows(g, tokens, 2);
        let mut cache = (case.make)(g, KeyStorage::PostRope, policy);
        for next in 0..tokens {
            append(&mut cache, &data, next..next + 1);
            let (sealed, _) = cache.sealed();
            let (keys, _) = decoded(&cache);
            let exact = |tokens: std::ops::Range<usize>| {
                let range = tokens.start * g.key_width()..tokens.end * g.key_width();
                keys[range.clone()] == data.0[range]
            };
            assert!(exact(0..(next + 1).min(5)), "{}: sinks after {next}", case.name);
            assert!(exact((5 + sealed).min(next + 1)..next + 1), "{}: window after {next}", case.name);
            let window = if case.name.starts_with("kivi") { 0 } else { 9 };
            assert!(sealed == 0 || sealed + window + 5 <= next + 1, "{}: {sealed} sealed after {next}", case.name);
        }
    }
}

#[test]
fn attention_equals_attention_over_the_decoded_rows() {
    for case in cases() {
        for (dim, mask) in [(64, Mask::Causal), (80, Mask::Full), (192, Mask::Sliding(11))] {
            let g = geometry(dim);
            let tokens = enough(&case) + 5;
            let mut cache = make(&case, g);
            append(&mut cache, &rows(g, tokens, 3), 0..tokens);
            let queries = gaussian(4, 3 * g.q_heads * g.dim_k);
            let mut out = vec![0.0; 3 * g.q_heads * g.dim_v];
            cache.attend(&Attention { mask, ..Attention::of(&queries) }, &mut out, &mut Workspace::default()).unwrap();
            let expected = attention(g, &queries, &decoded(&cache), mask);
            for (x, y) in out.iter().zip(&expected) {
                // Queries and weights that meet integers have 16 bits.
                assert!((f64::from(*x) - y).abs() < 2e-4, "{}, {dim}: {x} not {y}", case.name);
            }
        }
    }
}

#[test]
fn fresh_tokens_are_attended_unquantized_after_those_of_the_cache() {
    for case in cases() {
        let g = geometry(96);
        let (tokens, new) = (enough(&case), 4);
        let (keys, values) = rows(g, tokens + new, 6);
        let mut cache = make(&case, g);
        append(&mut cache, &(keys.clone(), values.clone()), 0..tokens);
        let before = state(&cache);
        let fresh = KvRows { keys: &keys[tokens * g.key_width()..], values: &values[tokens * g.value_width()..] };
        let queries = gaussian(7, new * g.q_heads * g.dim_k);
        let mut out = vec![0.0; new * g.q_heads * g.dim_v];
        cache.attend(&Attention::of(&queries).with_fresh(fresh), &mut out, &mut Workspace::default()).unwrap();
        let mut all = decoded(&cache);
        all.0.extend(fresh.keys);
        all.1.extend(fresh.values);
        let expected = attention(g, &queries, &all, Mask::Causal);
        for (x, y) in out.iter().zip(&expected) {
            assert!((f64::from(*x) - y).abs() < 2e-4, "{}: {x} not {y}", case.name);
        }
        assert_eq!(state(&cache), before, "{}: attention changed the cache", case.name);
    }
}

#[test]
fn a_rollback_within_the_declared_depth_is_as_if_nothing_had_come() {
    for case in cases() {
        let (g, most) = (geometry(64), enough(&case) + 2);
        let (data, other) = (rows(g, 2 * most, 8), rows(g, 2 * most, 9));
        for start in (0..most).step_by(5) {
            let mut grown = make(&case, g);
            append(&mut grown, &data, 0..start);
            for cut in [0, 1, 2, 5, 7, start / 2, start] {
                if cut > grown.exact_rollback_depth().min(start) {
                    continue;
                }
                let mut cache = grown.clone();
                assert_eq!(cache.truncate(start - cut).unwrap(), Rollback::Exact, "{}: {cut} of {start}", case.name);
                let mut expected = make(&case, g);
                append(&mut expected, &data, 0..start - cut);
                assert_eq!(decoded(&cache), decoded(&expected), "{}: {cut} of {start}", case.name);
                // What comes afterwards falls into place too.
                append(&mut cache, &other, start - cut..most);
                append(&mut expected, &other, start - cut..most);
                assert_eq!(decoded(&cache), decoded(&expected), "{}: {cut} of {start}, regrown", case.name);
            }
        }
        let spare = case.policy.spare;
        let mut cache = make(&case, g);
        append(&mut cache, &data, 0..most);
        assert!(cache.exact_rollback_depth() >= spare, "{}: less than the spare {spare}", case.name);
    }
}

#[test]
fn a_rollback_of_any_depth_leaves_the_right_tokens() {
    for case in cases() {
        let (g, most) = (geometry(64), enough(&case));
        let data = rows(g, most, 10);
        let mut grown = make(&case, g);
        append(&mut grown, &data, 0..most);
        for len in (0..most).filter(|len| len % 11 < 3) {
            let mut cache = grown.clone();
            cache.truncate(len).unwrap();
            assert_eq!(cache.len(), len, "{}", case.name);
            for regrown in [false, true] {
                if regrown {
                    append(&mut cache, &data, len..most);
                }
                let (k, v) = decoded(&cache);
                // Tokens of a unit that was cut are quantized twice.
                if cache.len() > 20 {
                    let error = relative_mse(&data.0[..k.len()], &k, g.key_width());
                    assert!(error <= 2.5 * case.worst, "{}: keys cut to {len}: {error}", case.name);
                    let error = relative_mse(&data.1[..v.len()], &v, g.value_width());
                    assert!(error <= 2.5 * case.worst, "{}: values cut to {len}: {error}", case.name);
                }
            }
        }
        let mut cache = make(&case, g);
        assert!(matches!(cache.truncate(1), Err(Error::Tokens { len: 0, .. })), "{}", case.name);
    }
}

#[test]
fn a_fork_and_its_origin_do_not_see_each_other() {
    for case in cases() {
        let (g, most) = (geometry(64), enough(&case));
        let (data, other) = (rows(g, most + 40, 11), rows(g, most + 40, 12));
        let mut origin = make(&case, g);
        append(&mut origin, &data, 0..most);
        let before = state(&origin);
        let mut fork = origin.fork();
        assert_eq!(state(fork.as_ref()), before, "{}", case.name);
        assert!(fork.bytes().shared > 0, "{}: sealed tokens are shared", case.name);
        append(fork.as_mut(), &other, most..most + 40);
        assert_eq!(state(&origin), before, "{}: the fork grew", case.name);
        fork.truncate(most / 2).unwrap();
        fork.reset();
        assert_eq!(state(&origin), before, "{}: the fork was cut", case.name);
        let mut alone = make(&case, g);
        append(&mut alone, &data, 0..most + 40);
        append(&mut origin, &data, most..most + 40);
        assert_eq!(state(&origin), state(&alone), "{}: the origin grew", case.name);
    }
}

#[test]
fn a_saved_cache_goes_on_where_it_stopped() {
    for case in cases() {
        let (g, most) = (geometry(80), enough(&case));
        let data = rows(g, most + 20, 13);
        for tokens in [0, 1, 3, most / 2, most] {
            let mut cache = make(&case, g);
            append(&mut cache, &data, 0..tokens);
            let mut loaded = make(&case, g);
            append(&mut loaded, &data, 0..5);
            loaded.load(&mut state(&cache).as_slice()).unwrap();
            assert_eq!(state(&loaded), state(&cache), "{}: {tokens}", case.name);
            append(&mut loaded, &data, tokens..most + 20);
            append(&mut cache, &data, tokens..most + 20);
            assert_eq!(decoded(&loaded), decoded(&cache), "{}: {tokens}", case.name);
        }
    }
}

#[test]
fn a_saved_cache_with_other_parameters_is_refused() {
    let cases = cases();
    for case in &cases {
        let g = geometry(64);
        let mut cache = make(case, g);
        append(&mut cache, &rows(g, 40, 14), 0..40);
        let saved = state(&cache);
        let field = |mut other: QuantizedKv| match other.load(&mut saved.as_slice()) {
            Err(Error::HeaderMismatch { field, .. }) => field,
            other => panic!("{}: {other:?}", case.name),
        };
        assert_eq!(field(make(case, KvGeometry { q_heads: 4, ..g })), "geometry");
        assert_eq!(field((case.make)(g, KeyStorage::PostRope, KvPolicy { sinks: 2, ..case.policy })), "policy");
        let table = Arc::new(RopeTable::with_theta(RopePairing::Half, 64, 1e4, 64).unwrap());
        assert_eq!(field((case.make)(g, KeyStorage::PreRope(table), case.policy)), "key_storage");
        for other in cases.iter().filter(|other| other.name != case.name) {
            assert!(["key_codec", "policy"].contains(&field(make(other, g))), "{} as {}", case.name, other.name);
        }
        let mut damaged = make(case, g);
        for cut in [0, 9, 17, 60, saved.len() / 2, saved.len() - 1] {
            assert!(damaged.load(&mut &saved[..cut]).is_err(), "{}: cut to {cut} bytes", case.name);
            assert!(damaged.is_empty(), "{}: half a cache was loaded", case.name);
        }
    }
}

#[test]
fn sequences_of_a_batch_are_as_if_alone() {
    for case in cases() {
        let g = geometry(64);
        let lengths = [0, 1, 37, enough(&case)];
        let data: Vec<_> = (0..4).map(|i| rows(g, lengths[i] + 9, 20 + i as u64)).collect();
        let mut batch =
            KvBatch::new(lengths.iter().map(|_| Box::new(make(&case, g)) as Box<dyn KvCacheLayer>).collect());
        for step in [0..1, 1..2] {
            let part = |i: usize| {
                let ends = [0, lengths[i], lengths[i] + 9];
                ends[step.start]..ends[step.end]
            };
            let rows: Vec<KvRows<'_>> = (0..4)
                .map(|i| KvRows {
                    keys: &data[i].0[part(i).start * g.key_width()..part(i).end * g.key_width()],
                    values: &data[i].1[part(i).start * g.value_width()..part(i).end * g.value_width()],
                })
                .collect();
            assert!(batch.append(&rows).unwrap().iter().all(Result::is_ok), "{}", case.name);
        }
        let queries = gaussian(30, g.q_heads * g.dim_k);
        let mut out = vec![vec![0.0; g.q_heads * g.dim_v]; 4];
        let mut slices: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
        batch.attend(&[Attention::of(&queries); 4], &mut slices).unwrap();
        for i in 0..4 {
            let mut alone = make(&case, g);
            append(&mut alone, &data[i], 0..lengths[i] + 9);
            assert_eq!(state(batch.sequences()[i].as_ref()), state(&alone), "{}: sequence {i}", case.name);
            let mut single = vec![0.0; g.q_heads * g.dim_v];
            alone.attend(&Attention::of(&queries), &mut single, &mut Workspace::default()).unwrap();
            assert_eq!(out[i], single, "{}: attention of sequence {i}", case.name);
        }
        let picked = batch.select(&[3, 0, 3]).unwrap();
        for (at, from) in [3, 0, 3].into_iter().enumerate() {
            assert_eq!(
                state(picked.sequences()[at].as_ref()),
                state(batch.sequences()[from].as_ref()),
                "{}",
                case.name
            );
        }
        assert!(matches!(batch.select(&[4]), Err(Error::Tokens { start: 4, .. })));
    }
}

#[test]
fn query_heads_that_share_a_head_get_what_heads_of_their_own_would() {
    // Not where heads share something: a token's scale, groups of channels, static scales by channel.
    let alone = |case: &Case| !["nvfp4", "smooth", "mean, then rotation", "skvq", "skvq ternary"].contains(&case.name);
    for case in cases().into_iter().filter(alone) {
        let g = geometry(64);
        let wide = KvGeometry { kv_heads: 6, ..g };
        let tokens = enough(&case);
        let (keys, values) = rows(g, tokens, 31);
        let expand = |rows: &[f32]| -> Vec<f32> { rows.chunks_exact(64).flat_map(|head| [head; 3].concat()).collect() };
        let (mut shared, mut own) = (make(&case, g), make(&case, wide));
        append(&mut own, &(expand(&keys), expand(&values)), 0..tokens);
        append(&mut shared, &(keys, values), 0..tokens);
        let queries = gaussian(32, g.q_heads * g.dim_k);
        let mut out = [vec![0.0; g.q_heads * g.dim_v], vec![0.0; g.q_heads * g.dim_v]];
        shared.attend(&Attention::of(&queries), &mut out[0], &mut Workspace::default()).unwrap();
        own.attend(&Attention::of(&queries), &mut out[1], &mut Workspace::default()).unwrap();
        assert_eq!(out[0], out[1], "{}", case.name);
    }
}

#[test]
fn evicted_tokens_are_gone_and_the_others_stay() {
    for case in cases() {
        let (g, most) = (geometry(64), enough(&case) + 10);
        let data = rows(g, most, 33);
        let mut cache = make(&case, g);
        append(&mut cache, &data, 0..most);
        let unit = cache.capabilities().key_unit.max(cache.capabilities().value_unit);
        let first = case.policy.sinks + unit;
        let (keys, values) = decoded(&cache);
        let (last, end) = (first + unit, most - 2);
        // One unit of sealed tokens, a sink if there are any, a token of the window.
        for range in [first..last, 0..usize::from(case.policy.sinks > 0), end..end + 1] {
            let mut cut = cache.clone();
            match cut.evict(range.clone()) {
                Ok(()) => {}
                Err(Error::Granularity { .. }) if unit > 1 && range.start >= last => continue,
                Err(error) => panic!("{}: {error}", case.name),
            }
            let without = |rows: &[f32], width: usize| {
                let mut rows = rows.to_vec();
                rows.drain(range.start * width..range.end * width);
                rows
            };
            let expected = (without(&keys, g.key_width()), without(&values, g.value_width()));
            assert_eq!(decoded(&cut), expected, "{}: without {range:?}", case.name);
            append(&mut cut, &data, 0..20);
            assert_eq!(cut.len(), most - range.len() + 20, "{}", case.name);
            assert_eq!(
                decoded(&cut).0[..(first - case.policy.sinks) * 64],
                expected.0[..(first - case.policy.sinks) * 64]
            );
        }
        if unit > 1 {
            let error = cache.evict(first..first + 1).unwrap_err();
            assert!(matches!(error, Error::Granularity { .. }), "{}: {error}", case.name);
            assert_eq!(decoded(&cache), (keys, values), "{}: a refused eviction changed something", case.name);
        }
        assert!(matches!(cache.evict(most..most + 1), Err(Error::Tokens { .. })), "{}", case.name);
    }
}

#[test]
fn keys_kept_before_the_turn_are_read_after_it_and_can_be_shifted() {
    for case in cases() {
        for pairing in [RopePairing::Half, RopePairing::Interleaved] {
            let g = geometry(64);
            let most = enough(&case);
            let table = Arc::new(RopeTable::with_theta(pairing, 48, 1e4, most + 100).unwrap());
            let data = rows(g, most, 34);
            let mut pre = (case.make)(g, KeyStorage::PreRope(table.clone()), case.policy);
            let mut plain = (case.make)(g, KeyStorage::PostRope, case.policy);
            append(&mut pre, &data, 0..most);
            append(&mut plain, &data, 0..most);
            let turned = |delta: usize, from: usize| {
                let mut keys = decoded(&plain).0;
                for (token, row) in keys.chunks_exact_mut(g.key_width()).enumerate() {
                    let position = token + if token >= from { delta } else { 0 };
                    table.rotate(row, 64, position as u32).unwrap();
                }
                keys
            };
            assert_eq!(decoded(&pre).0, turned(0, 0), "{}", case.name);
            pre.shift(3..most, 90).unwrap();
            assert_eq!(decoded(&pre).0, turned(90, 3), "{}", case.name);
            assert!(matches!(pre.shift(0..1, -1), Err(Error::Position { position: -1, .. })), "{}", case.name);
            assert!(matches!(pre.shift(0..most, 11), Err(Error::Position { .. })), "{}", case.name);
            assert!(matches!(plain.shift(0..1, 1), Err(Error::Unsupported { .. })), "{}", case.name);
            let queries = gaussian(35, g.q_heads * 64);
            let mut out = vec![0.0; g.q_heads * 64];
            pre.attend(&Attention::of(&queries), &mut out, &mut Workspace::default()).unwrap();
            let expected = attention(g, &queries, &decoded(&pre), Mask::Causal);
            assert!(out.iter().zip(&expected).all(|(x, y)| (f64::from(*x) - y).abs() < 1e-5), "{}", case.name);
        }
    }
}

#[test]
fn constant_and_zero_rows_survive() {
    for case in cases() {
        let g = geometry(64);
        let tokens = enough(&case);
        for value in [0.0_f32, 1.0, -0.75, 20.0] {
            let data = (vec![value; tokens * g.key_width()], vec![value; tokens * g.value_width()]);
            let mut cache = make(&case, g);
            append(&mut cache, &data, 0..tokens);
            let (keys, values) = decoded(&cache);
            for x in keys.iter().chain(&values) {
                let off = (x - value).abs();
                // Without means that differ, a constant row is not constant any more.
                let slack = if case.name == "mean, then rotation" { 1.0 + value.abs() / 4.0 } else { 1e-6 };
                assert!(off <= value.abs() * 0.2 + slack, "{}: {value} became {x}", case.name);
            }
        }
    }
}

#[test]
fn rows_with_nan_or_infinity_are_refused_before_anything_changes() {
    for case in cases() {
        let g = geometry(64);
        let mut cache = make(&case, g);
        append(&mut cache, &rows(g, 50, 36), 0..50);
        let before = state(&cache);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for stream in [Stream::Keys, Stream::Values] {
                let (mut keys, mut values) = rows(g, 2, 37);
                if stream == Stream::Keys {
                    keys[g.key_width() + 5] = bad
                } else {
                    values[g.value_width() + 5] = bad
                }
                let error = cache.append(KvRows { keys: &keys, values: &values }, Positions::Next).unwrap_err();
                let Error::NonFinite { stream: found, token: 1, channel: 5, .. } = error else { panic!("{error}") };
                assert_eq!(found, stream);
            }
        }
        let (keys, values) = rows(g, 2, 38);
        let short = KvRows { keys: &keys[1..], values: &values };
        assert!(matches!(cache.append(short, Positions::Next), Err(Error::Shape { what: "keys", .. })));
        let uneven = KvRows { keys: &keys, values: &values[..g.value_width()] };
        assert!(matches!(cache.append(uneven, Positions::Next), Err(Error::Shape { what: "values", .. })));
        let whole = KvRows { keys: &keys, values: &values };
        assert!(matches!(cache.append(whole, Positions::At(&[1])), Err(Error::Shape { what: "positions", .. })));
        let queries = gaussian(39, 51 * g.q_heads * 64);
        let mut out = vec![0.0; 51 * g.q_heads * 64];
        let attended = cache.attend(&Attention::of(&queries), &mut out, &mut Workspace::default());
        assert!(matches!(attended, Err(Error::Shape { .. })), "more queries than tokens");
        assert_eq!(state(&cache), before, "{}", case.name);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for case in cases() {
        let g = geometry(128);
        let tokens = enough(&case) + 300;
        let data = rows(g, tokens, 40);
        let queries = gaussian(41, g.q_heads * g.dim_k);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut cache = make(&case, g);
                append(&mut cache, &data, 0..tokens);
                let mut out = vec![0.0; g.q_heads * g.dim_v];
                cache.attend(&Attention::of(&queries), &mut out, &mut Workspace::default()).unwrap();
                (state(&cache), out)
            })
        };
        assert_eq!(run(1), run(5), "{}", case.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done in whatever order, lengths are right and the rows are finite.
    #[test]
    fn no_order_of_operations_confuses_a_cache(steps in prop::collection::vec((0_u8..6, 0_usize..50), 1..25)) {
        for case in cases() {
            let g = geometry(64);
            let data = rows(g, 50, 42);
            let mut cache: Box<dyn KvCacheLayer> = Box::new(make(&case, g));
            let mut len = 0;
            for &(step, amount) in &steps {
                match step {
                    0 | 1 => { append(cache.as_mut(), &data, 0..amount); len += amount; }
                    2 => { len = len.saturating_sub(amount); cache.truncate(len).unwrap(); }
                    3 => {
                        let range = len.min(amount)..len.min(2 * amount);
                        if cache.evict(range.clone()).is_ok() { len -= range.len(); }
                    }
                    4 => cache = cache.fork(),
                    _ => {
                        let saved = state(cache.as_ref());
                        cache.load(&mut saved.as_slice()).unwrap();
                        prop_assert_eq!(state(cache.as_ref()), saved);
                    }
                }
                prop_assert_eq!(cache.len(), len, "{}", case.name);
            }
            let (keys, values) = decoded(cache.as_ref());
            prop_assert!(keys.iter().chain(&values).all(|x| x.is_finite()), "{}", case.name);
        }
    }
}
