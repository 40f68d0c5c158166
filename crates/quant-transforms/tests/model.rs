//! A small decoder block, before and after folding.

use ndarray::ArrayView2;
use quant_core::{Format, Linear, PackedTensor, Shaped};
use quant_linalg::{gaussian, matmul};
use quant_transforms::model::{
    Gain, Heads, QueryKey, Residual, ValueOutput, fuse_norm, rotate_heads, rotate_residual, scale_heads, scale_keys,
    scale_norm, scale_up_down,
};
use quant_transforms::{
    Diagonal, Element, Error, Hadamard, Orthogonal, RandomizedHadamard, Rope, RopePairing, SameFunction, Transform,
    TransformedLinear, Weight, relative_error,
};

const HIDDEN: usize = 24;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const FFN: usize = 40;
const HALVES: Rope = Rope { pairing: RopePairing::Halves, rotary: HEAD_DIM };

/// Norm, attention with grouped heads, biases and rotary positions, norm, gated feed-forward, head.
#[derive(Clone)]
struct Block<T> {
    gain: Vec<T>,
    ffn_gain: Vec<T>,
    q: Vec<T>,
    q_bias: Vec<T>,
    k: Vec<T>,
    k_bias: Vec<T>,
    v: Vec<T>,
    v_bias: Vec<T>,
    o: Vec<T>,
    o_bias: Vec<T>,
    gate: Vec<T>,
    up: Vec<T>,
    up_bias: Vec<T>,
    down: Vec<T>,
    head: Vec<T>,
}

fn values<T: Element>(count: usize, seed: u64) -> Vec<T> {
    gaussian(1, count, seed).iter().map(|&v| T::narrow(v)).collect()
}

fn scales(count: usize, seed: u64) -> Vec<f32> {
    gaussian(1, count, seed).iter().map(|v| f32::narrow(v.exp())).collect()
}

fn linear<T: Element>(x: &[f64], w: &[T], bias: &[T], inputs: usize) -> Vec<f64> {
    let w: Vec<f64> = w.iter().map(|v| v.wide()).collect();
    let x = ArrayView2::from_shape((x.len() / inputs, inputs), x).unwrap();
    let w = ArrayView2::from_shape((w.len() / inputs, inputs), &w).unwrap();
    let mut y = matmul(x, w.t());
    for mut row in y.rows_mut() {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b.wide());
    }
    y.iter().copied().collect()
}

fn norm<T: Element>(x: &[f64], gain: &[T], offset: f64) -> Vec<f64> {
    let row = |x: &[f64]| {
        let rms = (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + 1e-6).sqrt();
        x.iter().zip(gain).map(|(v, g)| v / rms * (g.wide() + offset)).collect::<Vec<f64>>()
    };
    x.chunks(gain.len()).flat_map(row).collect()
}

fn turn(rows: &mut [f64], features: usize, rope: Rope) {
    for (position, row) in rows.chunks_mut(features).enumerate() {
        for head in row.chunks_mut(HEAD_DIM) {
            for first in 0..HEAD_DIM {
                let Some(second) = rope.partner(first).filter(|second| *second > first) else { continue };
                let (sin, cos) = (position as f64 / (1.0 + first as f64)).sin_cos();
                let (a, b) = (head[first], head[second]);
                (head[first], head[second]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
}

impl<T: Element> Block<T> {
    fn random() -> Self {
        Self {
            gain: values(HIDDEN, 1),
            ffn_gain: values(HIDDEN, 2),
            q: values(HEADS * HEAD_DIM * HIDDEN, 3),
            q_bias: values(HEADS * HEAD_DIM, 4),
            k: values(KV_HEADS * HEAD_DIM * HIDDEN, 5),
            k_bias: values(KV_HEADS * HEAD_DIM, 6),
            v: values(KV_HEADS * HEAD_DIM * HIDDEN, 7),
            v_bias: values(KV_HEADS * HEAD_DIM, 8),
            o: values(HIDDEN * HEADS * HEAD_DIM, 9),
            o_bias: values(HIDDEN, 10),
            gate: values(FFN * HIDDEN, 11),
            up: values(FFN * HIDDEN, 12),
            up_bias: values(FFN, 13),
            down: values(HIDDEN * FFN, 14),
            head: values(5 * HIDDEN, 15),
        }
    }

    /// Logits for rows of the residual stream.
    fn run(&self, x: &[f64], offset: f64, rope: Rope) -> Vec<f64> {
        let mut x = x.to_vec();
        let input = norm(&x, &self.gain, offset);
        let mut q = linear(&input, &self.q, &self.q_bias, HIDDEN);
        let mut k = linear(&input, &self.k, &self.k_bias, HIDDEN);
        let v = linear(&input, &self.v, &self.v_bias, HIDDEN);
        turn(&mut q, HEADS * HEAD_DIM, rope);
        turn(&mut k, KV_HEADS * HEAD_DIM, rope);
        let tokens = x.len() / HIDDEN;
        let mut mixed = vec![0.0; tokens * HEADS * HEAD_DIM];
        for token in 0..tokens {
            for head in 0..HEADS {
                let kv = head / (HEADS / KV_HEADS) * HEAD_DIM;
                let at = |row: usize| row * KV_HEADS * HEAD_DIM + kv..row * KV_HEADS * HEAD_DIM + kv + HEAD_DIM;
                let start = token * HEADS * HEAD_DIM + head * HEAD_DIM;
                let query = &q[start..start + HEAD_DIM];
                let dot = |row| query.iter().zip(&k[at(row)]).map(|(a, b)| a * b).sum::<f64>();
                let weights: Vec<f64> = (0..=token).map(|row| (dot(row) / 20.0).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (row, weight) in weights.iter().enumerate() {
                    let out = mixed[start..start + HEAD_DIM].iter_mut().zip(&v[at(row)]);
                    out.for_each(|(out, v)| *out += weight / sum * v);
                }
            }
        }
        let attended = linear(&mixed, &self.o, &self.o_bias, HEADS * HEAD_DIM);
        x.iter_mut().zip(&attended).for_each(|(x, v)| *x += v);
        let input = norm(&x, &self.ffn_gain, offset);
        let gate = linear(&input, &self.gate, &[], HIDDEN);
        let up = linear(&input, &self.up, &self.up_bias, HIDDEN);
        let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        let down = linear(&gated, &self.down, &[], FFN);
        x.iter_mut().zip(&down).for_each(|(x, v)| *x += v);
        linear(&norm(&x, &[1.0; HIDDEN], 0.0), &self.head, &[], HIDDEN)
    }

    fn fuse(&mut self, kind: Gain) {
        let Self { gain, ffn_gain, q, k, v, gate, up, .. } = self;
        let mut readers = [weight("q", q, HIDDEN), weight("k", k, HIDDEN), weight("v", v, HIDDEN)];
        fuse_norm(&mut vector("norm", gain), kind, &mut readers).unwrap();
        let mut readers = [weight("gate", gate, HIDDEN), weight("up", up, HIDDEN)];
        fuse_norm(&mut vector("norm", ffn_gain), kind, &mut readers).unwrap();
    }

    fn rotate(&mut self, rotation: &Transform) {
        let Self { q, k, v, o, o_bias, gate, up, down, head, .. } = self;
        let readers = [("q", q), ("k", k), ("v", v), ("gate", gate), ("up", up), ("head", head)];
        let mut readers = readers.map(|(name, values)| weight(name, values, HIDDEN));
        let mut writers = [weight("o", o, HEADS * HEAD_DIM), weight("down", down, FFN)];
        let biases = &mut [vector("o bias", o_bias)];
        let residual = Residual { embeddings: &mut [], readers: &mut readers, writers: &mut writers, biases };
        rotate_residual(rotation, residual).unwrap();
    }

    fn scale_keys(&mut self, rope: Rope, tied: bool) -> Result<(), Error> {
        let mut scales = scales(KV_HEADS * HEAD_DIM, 23);
        if tied {
            rope.tie(&mut scales, HEAD_DIM).unwrap();
        }
        let Self { q, q_bias, k, k_bias, .. } = self;
        let (q_bias, k_bias) = (&mut vector("q bias", q_bias), &mut vector("k bias", k_bias));
        let (q, k) = (&mut weight("q", q, HIDDEN), &mut weight("k", k, HIDDEN));
        scale_keys(&scales, heads(), rope, QueryKey { q, q_bias: Some(q_bias), k, k_bias: Some(k_bias) })
    }

    fn with_values(&mut self, fold: impl FnOnce(ValueOutput<'_, '_, T>)) {
        let Self { v, v_bias, o, .. } = self;
        let (v, o) = (&mut weight("v", v, HIDDEN), &mut weight("o", o, HEADS * HEAD_DIM));
        fold(ValueOutput { v, v_bias: Some(&mut vector("v bias", v_bias)), o });
    }
}

fn heads() -> Heads {
    Heads::new(HEADS, KV_HEADS, HEAD_DIM).unwrap()
}

fn weight<'a, T: Element>(name: &'a str, values: &'a mut [T], inputs: usize) -> Weight<'a, T> {
    let shape = [values.len() / inputs, inputs];
    Weight::new(name, values, shape).unwrap()
}

fn vector<'a, T: Element>(name: &'a str, values: &'a mut [T]) -> Weight<'a, T> {
    Weight::vector(name, values).unwrap()
}

/// The relative change of the logits when `fold` changes the weights and `enter` the residual stream.
fn change<T: Element>(
    offset: f64,
    rope: Rope,
    fold: impl FnOnce(&mut Block<T>),
    enter: impl FnOnce(&mut [f64]),
) -> f64 {
    let before = Block::<T>::random();
    let mut after = before.clone();
    fold(&mut after);
    let entered = |x: &[f64]| {
        let mut x = x.to_vec();
        enter(&mut x);
        after.run(&x, offset, rope)
    };
    SameFunction { rows: 6, ..SameFunction::default() }.relative_error(HIDDEN, |x| before.run(x, offset, rope), entered)
}

fn every_fold<T: Element>(limit: f64) {
    for (kind, offset) in [(Gain::Plain, 0.0), (Gain::OnePlus, 1.0)] {
        let fused = change::<T>(offset, HALVES, |block| block.fuse(kind), |_| {});
        assert!(fused < limit, "norms: {fused:e}");
        let scaled = |block: &mut Block<T>| {
            let Block { gain, q, k, v, .. } = block;
            let mut readers = [weight("q", q, HIDDEN), weight("k", k, HIDDEN), weight("v", v, HIDDEN)];
            scale_norm(&scales(HIDDEN, 20), &mut vector("norm", gain), kind, None, &mut readers).unwrap();
        };
        let scaled = change::<T>(offset, HALVES, scaled, |_| {});
        assert!(scaled < limit, "norm scales: {scaled:e}");
    }
    let rotations: [Transform; 2] = [
        RandomizedHadamard::new(Hadamard::new(HIDDEN).unwrap(), 3).into(),
        Orthogonal::random(HIDDEN, 4).unwrap().into(),
    ];
    for rotation in &rotations {
        let fold = |block: &mut Block<T>| {
            block.fuse(Gain::Plain);
            block.rotate(rotation);
        };
        let rotated = change::<T>(0.0, HALVES, fold, |x| rotation.apply(x).unwrap());
        assert!(rotated < limit, "residual: {rotated:e}");
    }
    let of_heads: [Vec<Transform>; 3] = [
        vec![Hadamard::new(HEAD_DIM).unwrap().into()],
        (0..2).map(|seed| Orthogonal::random(HEAD_DIM, seed).unwrap().into()).collect(),
        (0..2).map(|seed| Diagonal::new(scales(HEAD_DIM, seed)).unwrap().into()).collect(),
    ];
    for transforms in &of_heads {
        let fold = |block: &mut Block<T>| block.with_values(|vo| rotate_heads(transforms, heads(), vo).unwrap());
        let rotated = change::<T>(0.0, HALVES, fold, |_| {});
        assert!(rotated < limit, "heads: {rotated:e}");
    }
    let fold = |block: &mut Block<T>| {
        block.with_values(|vo| scale_heads(&scales(KV_HEADS * HEAD_DIM, 21), heads(), vo).unwrap());
        let Block { up, up_bias, down, .. } = block;
        let bias = &mut vector("up bias", up_bias);
        let (up, down) = (&mut weight("up", up, HIDDEN), &mut weight("down", down, FFN));
        scale_up_down(&scales(FFN, 22), up, Some(bias), down).unwrap();
    };
    let scaled = change::<T>(0.0, HALVES, fold, |_| {});
    assert!(scaled < limit, "value and feed-forward scales: {scaled:e}");
    for rope in [HALVES, Rope { pairing: RopePairing::Interleaved, rotary: HEAD_DIM }, Rope { rotary: 4, ..HALVES }] {
        let scaled = change::<T>(0.0, rope, |block| block.scale_keys(rope, true).unwrap(), |_| {});
        assert!(scaled < limit, "key scales: {scaled:e}");
    }
}

#[test]
fn every_fold_keeps_the_function_in_f64() {
    every_fold::<f64>(1e-12);
}

#[test]
fn every_fold_keeps_the_function_in_f32() {
    every_fold::<f32>(1e-5);
}

#[test]
fn a_forgotten_bias_shows() {
    let hadamard = [Hadamard::new(HEAD_DIM).unwrap().into()];
    let fold = |block: &mut Block<f64>| {
        block.with_values(|vo| rotate_heads(&hadamard, heads(), ValueOutput { v_bias: None, ..vo }).unwrap());
    };
    let changed = change::<f64>(0.0, HALVES, fold, |_| {});
    assert!(changed > 1e-3, "{changed:e}");
}

#[test]
fn scales_that_rotary_positions_mix_are_refused_and_would_change_the_function() {
    let mut block = Block::<f64>::random();
    let before = block.q.clone();
    let refused = block.scale_keys(HALVES, false);
    assert!(matches!(refused, Err(Error::RopePair { first: 0, second: 4, .. })), "{refused:?}");
    assert_eq!(block.q, before);
    // Without rotation the same scales cancel; with it they do not.
    let still = Rope { rotary: 0, ..HALVES };
    let fold = |block: &mut Block<f64>| block.scale_keys(still, false).unwrap();
    let harmless = change::<f64>(0.0, still, fold, |_| {});
    assert!(harmless < 1e-12, "{harmless:e}");
    let harmful = change::<f64>(0.0, HALVES, fold, |_| {});
    assert!(harmful > 1e-3, "{harmful:e}");
}

#[test]
fn a_residual_stream_admits_only_rotations() {
    let diagonal = Transform::from(Diagonal::new(vec![2.0; HIDDEN]).unwrap());
    let residual = Residual::<f64> { embeddings: &mut [], readers: &mut [], writers: &mut [], biases: &mut [] };
    let refused = rotate_residual(&diagonal, residual);
    assert!(matches!(refused, Err(Error::RotationNeeded { .. })), "{refused:?}");
}

#[test]
fn sizes_that_do_not_fit_are_named_and_change_nothing() {
    assert_eq!(Heads::new(5, 2, 8), Err(Error::Heads { heads: 5, kv_heads: 2, head_dim: 8 }));
    assert_eq!(Heads::new(4, 0, 8), Err(Error::Heads { heads: 4, kv_heads: 0, head_dim: 8 }));
    let mut block = Block::<f64>::random();
    let before = block.clone();
    let count = |result: Result<(), Error>| match result {
        Err(Error::Count { name, expected, found, .. }) => (name, expected, found),
        other => panic!("{other:?}"),
    };
    let Block { gain, q, up, down, .. } = &mut block;
    let mut readers = [weight("q", q, HIDDEN), weight("half", up, HIDDEN / 2)];
    let refused = fuse_norm(&mut vector("norm", gain), Gain::Plain, &mut readers);
    assert_eq!(count(refused), ("half".to_owned(), 24, 12));
    let (mut up, mut down) = (weight("up", up, HIDDEN), weight("down", down, FFN));
    let refused = scale_up_down(&[1.0; FFN - 1], &mut up, None, &mut down);
    assert_eq!(count(refused), ("up".to_owned(), 39, 40));
    let refused = scale_up_down(&[0.0; FFN], &mut up, None, &mut down);
    assert_eq!(refused, Err(Error::Scale { index: 0, value: 0.0 }));
    let three = vec![Transform::from(Hadamard::new(HEAD_DIM).unwrap()); 3];
    block.with_values(|vo| {
        assert_eq!(count(rotate_heads(&three, heads(), vo)), ("v".to_owned(), 2, 3));
    });
    let other = Heads::new(8, 4, 8).unwrap();
    block.with_values(|vo| {
        assert_eq!(count(rotate_heads(&three[..1], other, vo)), ("v".to_owned(), 32, 16));
    });
    assert_eq!((block.gain, block.q, block.up), (before.gain, before.q, before.up));
    assert_eq!((block.v, block.o), (before.v, before.o));
}

#[test]
fn weights_that_are_not_finite_or_overflow_are_refused_as_they_were() {
    let refused = Weight::new("w", &mut [1.0_f32, f32::NAN], [1, 2]).map(|_| ());
    assert!(matches!(refused, Err(Error::NonFinite { index: 1, .. })), "{refused:?}");
    let refused = Weight::new("w", &mut [1.0_f32], [1, 2]).map(|_| ());
    assert_eq!(refused, Err(Error::Shape { name: "w".to_owned(), rows: 1, columns: 2, found: 1 }));
    let mut w = [3e38_f32, 1.0];
    let smooth = Transform::from(Diagonal::new(vec![2.0, 2.0]).unwrap());
    let refused = smooth.fold_input(&mut Weight::new("w", &mut w, [1, 2]).unwrap());
    assert!(matches!(refused, Err(Error::NonFinite { index: 0, .. })), "{refused:?}");
    assert_eq!(w, [3e38, 1.0]);
}

#[test]
fn a_transformed_linear_multiplies_with_its_dense_weight() {
    let (inputs, outputs) = (96, 10);
    let transforms: [Transform; 3] = [
        Hadamard::new(inputs).unwrap().into(),
        RandomizedHadamard::new(Hadamard::new(inputs).unwrap(), 5).into(),
        Diagonal::new(scales(inputs, 6)).unwrap().into(),
    ];
    for (transform, stored) in transforms.into_iter().zip([0, 8, 4 * 96]) {
        let w: Vec<f32> = values(outputs * inputs, 7);
        let packed = PackedTensor::encode(Format::INT8, &Shaped::new(&w, &[outputs, inputs]).unwrap()).unwrap();
        let inner = packed.footprint();
        let layer = TransformedLinear::new(transform, packed).unwrap();
        assert_eq!((layer.in_features(), layer.out_features()), (inputs, outputs));
        assert_eq!(layer.footprint().total_bytes(), inner.total_bytes() + stored);
        assert_eq!(layer.footprint().elements, inner.elements);
        let x: Vec<f32> = values(3 * inputs, 8);
        let mut y = vec![0.0; 3 * outputs];
        layer.matmul(&x, &mut y).unwrap();
        let wide: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        let expected = linear(&wide, &layer.to_dense().unwrap(), &[], inputs);
        let y: Vec<f64> = y.iter().map(|&v| f64::from(v)).collect();
        assert!(relative_error(&expected, &y) < 1e-6, "{:?}", layer.transform());
        assert!(layer.matmul(&x[1..], &mut [0.0; 30]).is_err(), "not whole rows");
    }
    let w = [1.0_f32; 64];
    let packed = PackedTensor::encode(Format::INT8, &Shaped::new(&w, &[1, 64]).unwrap()).unwrap();
    let refused = TransformedLinear::new(Hadamard::new(32).unwrap().into(), packed);
    assert!(matches!(refused, Err(Error::Count { expected: 64, found: 32, .. })), "{refused:?}");
}

#[test]
fn a_changed_function_is_refused() {
    let check = SameFunction { tolerance: 1e-2, ..SameFunction::default() };
    let times = |factor: f64| move |x: &[f64]| x.iter().map(|v| factor * v).collect::<Vec<_>>();
    assert!(check.require(3, times(2.0), times(2.002)).is_ok(), "0.001 is allowed");
    let refused = check.require(3, times(2.0), times(0.5));
    assert!(matches!(refused, Err(Error::NotTheSame { found, .. }) if (found - 0.75).abs() < 1e-12), "{refused:?}");
    assert_eq!(check.relative_error(3, times(2.0), |_| vec![]), f64::INFINITY);
    assert_eq!(relative_error(&[0.0], &[1.0]), f64::INFINITY);
    assert_eq!(relative_error(&[1.0], &[f64::NAN]), f64::INFINITY);
    assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
}
