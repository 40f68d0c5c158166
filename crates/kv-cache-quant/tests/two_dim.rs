//! WKVQuant's past-only and two-dimensional quantization, KIVI, and the static scales.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

mod common;

use common::*;
use kv_cache_quant::*;
use quant_core::kernels::{Isa, with_isa};
use std::sync::Arc;

#[test]
fn past_only_attention_equals_the_matrix_form() {
    let g = KvGeometry { kv_heads: 1, q_heads: 1, dim_k: 32, dim_v: 32 };
    let tokens = 40;
    let (keys, values) = rows(g, tokens, 1);
    let queries = gaussian(2, tokens * 32);
    let codec = || Arc::new(TokenFormat::new(1, 32, "int2-min".parse().unwrap()).unwrap());
    let mut cache = QuantizedKv::new(
        g,
        KeyStorage::PostRope,
        codec(),
        codec(),
        KvPolicy { precision: FullPrecision::F32, ..KvPolicy::default() },
    )
    .unwrap();
    let row = |rows: &[f32], t: usize| rows[t * 32..(t + 1) * 32].to_vec();
    let (mut stepped, mut workspace) = (Vec::new(), Workspace::default());
    for t in 0..tokens {
        let (k, v) = (row(&keys, t), row(&values, t));
        let fresh = KvRows { keys: &k, values: &v };
        let mut out = vec![0.0; 32];
        // On decoded rows: on codes, queries have 16 bits.
        with_isa(Isa::Portable, || {
            cache.attend(&Attention::of(&row(&queries, t)).with_fresh(fresh), &mut out, &mut workspace).unwrap();
        });
        if t == 0 {
            assert_eq!(out, v, "one token is attended exactly");
        }
        stepped.push(out);
        cache.append(fresh, Positions::Next).unwrap();
    }
    // A = Q K^ᵀ with its diagonal in full precision, P = softmax(A), O = P V^ + diag(P)·(V − V^).
    let (kq, vq) = decoded(&cache);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    for (t, stepped) in stepped.iter().enumerate() {
        let query = row(&queries, t);
        let key = |s: usize| if s == t { row(&keys, s) } else { row(&kq, s) };
        let scores: Vec<f64> = (0..=t).map(|s| (dot(&query, &key(s)) / 32_f64.sqrt()).exp()).collect();
        let sum: f64 = scores.iter().sum();
        for c in 0..32 {
            let quantized: f64 = (0..=t).map(|s| scores[s] / sum * f64::from(vq[s * 32 + c])).sum();
            let own = scores[t] / sum * (f64::from(values[t * 32 + c]) - f64::from(vq[t * 32 + c]));
            let found = f64::from(stepped[c]);
            assert!((found - quantized - own).abs() < 1e-5, "token {t}, channel {c}: {found}");
        }
    }
}

/// Relative output error without and with past-only quantization; self-attention grows with ρ.
#[test]
fn past_only_quantization_helps_as_much_as_tokens_attend_to_themselves() {
    let g = KvGeometry { kv_heads: 1, q_heads: 1, dim_k: 128, dim_v: 128 };
    let tokens = 256;
    let (keys, values) = rows(g, tokens, 3);
    let noise = gaussian(4, tokens * 128);
    let mut ratios = Vec::new();
    for rho in [0.0_f32, 0.3, 0.6] {
        let codec = || Arc::new(TokenFormat::new(1, 128, "int2-min".parse().unwrap()).unwrap());
        let mut cache = QuantizedKv::new(g, KeyStorage::PostRope, codec(), codec(), KvPolicy::default()).unwrap();
        let (mut errors, mut workspace) = ([0.0, 0.0], Workspace::default());
        for t in 0..tokens {
            let range = t * 128..(t + 1) * 128;
            let query: Vec<f32> = keys[range.clone()]
                .iter()
                .zip(&noise[range.clone()])
                .map(|(k, n)| rho * k + (1.0 - rho * rho).sqrt() * n)
                .collect();
            let fresh = KvRows { keys: &keys[range.clone()], values: &values[range.clone()] };
            let exact = (keys[..range.end].to_vec(), values[..range.end].to_vec());
            let expected = attention(g, &query, &exact, Mask::Causal);
            let mut out = [vec![0.0; 128], vec![0.0; 128]];
            cache.attend(&Attention::of(&query).with_fresh(fresh), &mut out[1], &mut workspace).unwrap();
            cache.append(fresh, Positions::Next).unwrap();
            cache.attend(&Attention::of(&query), &mut out[0], &mut workspace).unwrap();
            for (error, out) in errors.iter_mut().zip(&out) {
                *error += out.iter().zip(&expected).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum::<f64>();
            }
        }
        ratios.push(errors[1] / errors[0]);
    }
    println!("error with past-only quantization over that without: {ratios:.3?}");
    assert!(ratios[0] < 1.0 && ratios[1] < 0.5 && ratios[2] < 0.1, "{ratios:?}");
}

#[test]
fn an_identity_affine_changes_no_bit() {
    let rows = gaussian(5, 32 * 256);
    let inner = || Arc::new(TokenFormat::new(2, 128, "int4-g128-min".parse().unwrap()).unwrap());
    let mapped = Mapped::new(Arc::new(ChannelAffine::identity(256)), inner()).unwrap();
    assert_eq!(through(&mapped, &rows), through(inner().as_ref(), &rows));
}

#[test]
fn a_shift_common_to_all_keys_does_not_change_attention() {
    let g = KvGeometry { kv_heads: 2, q_heads: 4, dim_k: 16, dim_v: 16 };
    let data = rows(g, 30, 6);
    let shift = gaussian(7, g.key_width());
    let shifted: Vec<f32> = data.0.iter().enumerate().map(|(i, k)| k + 3.0 * shift[i % g.key_width()]).collect();
    let queries = gaussian(8, g.q_heads * 16);
    let plain = attention(g, &queries, &data, Mask::Causal);
    let moved = attention(g, &queries, &(shifted, data.1.clone()), Mask::Causal);
    assert!(plain.iter().zip(&moved).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn rotary_partners_share_the_larger_scale() {
    for pairing in [RopePairing::Half, RopePairing::Interleaved] {
        let largest: Vec<f32> = (1..=24).map(|x| x as f32).collect();
        let mut smooth = ChannelAffine::smooth(&largest, 1.0).unwrap();
        smooth.share_rope_pairs(pairing, 12, 8).unwrap();
        for head in 0..2 {
            for i in 0..4 {
                let (a, b) = pairing.pair(i, 4);
                let scale = |c: usize| smooth.scale()[head * 12 + c];
                assert_eq!((scale(a), scale(b)), ((head * 12 + a.max(b) + 1) as f32, scale(a)));
            }
            assert_eq!(smooth.scale()[head * 12 + 8..head * 12 + 12], largest[head * 12 + 8..head * 12 + 12]);
        }
        assert!(matches!(smooth.share_rope_pairs(pairing, 7, 4), Err(Error::Unsupported { .. })));
    }
}

#[test]
fn static_scales_that_cannot_be_divided_by_are_refused() {
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = ChannelAffine::new(vec![0.0; 2], vec![1.0, scale]).unwrap_err();
        assert!(matches!(error, Error::Parameter { what: "scale", channel: 1, .. }), "{error}");
    }
    assert!(matches!(ChannelAffine::new(vec![f32::NAN], vec![1.0]), Err(Error::Parameter { what: "shift", .. })));
    assert!(matches!(ChannelAffine::from_min_max(&[0.0], &[]), Err(Error::Width { .. })));
    let dead = ChannelAffine::from_min_max(&[5.0, 0.0], &[5.0, 8.0]).unwrap();
    assert_eq!((dead.shift(), dead.scale()), (&[5.0, 4.0][..], &[4e-5, 4.0][..]), "a dead channel keeps a small scale");
}

#[test]
fn a_constant_group_of_kivi_is_not_divided_by_zero() {
    let codec = ChannelFormat::new(1, 4, 8, "int2-g8-min".parse().unwrap()).unwrap();
    let rows: Vec<f32> = (0..32).map(|i| [0.0, 2.5, -3.0, (i / 4) as f32][i % 4]).collect();
    let out = through(&codec, &rows);
    for (x, y) in rows.iter().zip(&out).enumerate().filter(|(i, _)| i % 4 < 3).map(|(_, pair)| pair) {
        assert_eq!(x, y);
    }
}

#[test]
fn kivi_seals_keys_by_the_block_and_values_one_by_one() {
    let g = geometry(64);
    let config = KiviConfig { residual: 32, ..KiviConfig::default() };
    let mut cache = config.cache(g, KeyStorage::PostRope, KvPolicy::default()).unwrap();
    let data = rows(g, 100, 9);
    for t in 0..100 {
        append(&mut cache, &data, t..t + 1);
        assert_eq!(cache.sealed(), ((t + 1) / 32 * 32, (t + 1_usize).saturating_sub(32)), "{t}");
    }
    let odd = KiviConfig { residual: 33, ..KiviConfig::default() };
    assert!(matches!(odd.cache(g, KeyStorage::PostRope, KvPolicy::default()), Err(Error::Unsupported { .. })));
    // "2-bit" KIVI in groups of 32 with f16 scales takes 3 bits.
    let bytes = ChannelFormat::new(8, 128, 128, "int2-g32-min".parse().unwrap()).unwrap().bytes(0);
    assert_eq!(bytes.total() * 8, 3 * 128 * 1024);
}

#[test]
fn a_rotation_undoes_itself_and_keeps_lengths() {
    for dim in [2, 64, 80, 96, 100, 112, 192, 256] {
        let map = Hadamard::new(3, dim).unwrap();
        let row = gaussian(dim as u64, 3 * dim);
        let mut turned = row.clone();
        map.forward(&mut turned);
        let norm = |row: &[f32]| row.iter().map(|x| f64::from(x * x)).sum::<f64>();
        assert!((norm(&turned) / norm(&row) - 1.0).abs() < 1e-5, "{dim}");
        assert!(turned.iter().zip(&row).any(|(a, b)| (a - b).abs() > 0.1), "{dim}: nothing was rotated");
        map.inverse(&mut turned);
        assert!(turned.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-5), "{dim}");
    }
    assert!(matches!(Hadamard::new(1, 7), Err(Error::Unsupported { .. })));
}

/// A layer of attention in f64: projections, rotary turn, softmax, output projection.
fn layer(g: KvGeometry, x: &[f32], [wq, wk, wv, wo]: [(&[f32], &[f32]); 4], table: &RopeTable) -> Vec<f64> {
    let (inputs, tokens) = (24, x.len() / 24);
    let linear = |x: &[f32], (w, b): (&[f32], &[f32])| -> Vec<f32> {
        let product = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        w.chunks_exact(x.len())
            .enumerate()
            .map(|(o, row)| (product(row) + b.get(o).map_or(0.0, |&b| f64::from(b))) as f32)
            .collect()
    };
    let each = |p| x.chunks_exact(inputs).map(|x| linear(x, p)).collect::<Vec<_>>();
    let turned = |mut rows: Vec<Vec<f32>>| {
        rows.iter_mut().enumerate().for_each(|(t, row)| table.rotate(row, g.dim_k, t as u32).unwrap());
        rows.concat()
    };
    let data = (turned(each(wk)), each(wv).concat());
    let out = attention(g, &turned(each(wq)), &data, Mask::Causal);
    let out: Vec<f32> = out.iter().map(|&x| x as f32).collect();
    assert_eq!(out.len(), tokens * g.q_heads * g.dim_v, "a row a token");
    out.chunks_exact(g.q_heads * g.dim_v).flat_map(|row| linear(row, wo)).map(f64::from).collect()
}

#[test]
fn folded_scales_and_shifts_leave_the_layer_as_it_was() {
    let g = KvGeometry { kv_heads: 2, q_heads: 6, dim_k: 12, dim_v: 10 };
    for pairing in [RopePairing::Half, RopePairing::Interleaved] {
        let table = RopeTable::with_theta(pairing, 8, 1e4, 16).unwrap();
        let x = gaussian(20, 16 * 24);
        let w = |seed, outputs: usize, inputs: usize| gaussian(seed, outputs * inputs);
        let (mut wq, mut wk) = (w(21, 6 * 12, 24), w(22, 2 * 12, 24));
        let (mut wv, mut wo) = (w(23, 2 * 10, 24), w(24, 24, 6 * 10));
        let (mut bq, mut bk, mut bv, mut bo) = (gaussian(25, 72), gaussian(26, 24), Vec::new(), gaussian(27, 24));
        let before = layer(g, &x, [(&wq, &bq), (&wk, &bk), (&wv, &bv), (&wo, &bo)], &table);
        let positive = |seed, count| gaussian(seed, count).iter().map(|x| x.exp()).collect::<Vec<_>>();
        let values = ChannelAffine::new(gaussian(28, 20), positive(29, 20)).unwrap();
        let mut keys = ChannelAffine::new(vec![0.0; 24], positive(30, 24)).unwrap();
        let fold_keys = |keys: &ChannelAffine, wq: &mut [f32], bq: &mut Vec<f32>, wk: &mut [f32], bk: &mut Vec<f32>| {
            let (mut query, mut key) = (Projection { weight: wq, bias: bq }, Projection { weight: wk, bias: bk });
            fold_key_scales(&mut query, &mut key, keys, g, pairing, 8)
        };
        let uneven = fold_keys(&keys, &mut wq, &mut bq, &mut wk, &mut bk);
        assert!(matches!(uneven, Err(Error::Unsupported { what: "scale of keys", .. })));
        keys.share_rope_pairs(pairing, 12, 8).unwrap();
        fold_keys(&keys, &mut wq, &mut bq, &mut wk, &mut bk).unwrap();
        let (mut value, mut output) =
            (Projection { weight: &mut wv, bias: &mut bv }, Projection { weight: &mut wo, bias: &mut bo });
        fold_values(&mut value, &mut output, &values, g).unwrap();
        assert_eq!(bv.len(), 20, "a bias was made");
        let after = layer(g, &x, [(&wq, &bq), (&wk, &bk), (&wv, &bv), (&wo, &bo)], &table);
        for (a, b) in before.iter().zip(&after) {
            assert!((a - b).abs() < 1e-3, "{a} became {b}");
        }
        let shifted = ChannelAffine::remove_mean(&[1.0; 24]).unwrap();
        let refused = fold_keys(&shifted, &mut wq, &mut bq, &mut wk, &mut bk);
        assert!(matches!(refused, Err(Error::Parameter { .. })));
    }
}
