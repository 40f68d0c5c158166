//! Experts of many formats in one call.

mod common;

use common::Toy;
use moe_quant::{Activation, Block, BlockLinear, Dispatch, Error, MixedExperts, Router, Scores, Scratch};
use quant_core::{Format, PackedTensor, Shaped};
use std::sync::Arc;

const FORMATS: [&str; 6] = ["int4-g32-asym", "int8", "int2-g32-asym", "mxfp4", "nvfp4", "f16"];

fn packed(toy: &Toy, rounded: bool) -> Vec<[BlockLinear; 3]> {
    let one = |expert: usize| {
        Block::ALL.map(|block| {
            let format: Format = FORMATS[(expert + block.index()) % FORMATS.len()].parse().unwrap();
            let shape = block.shape([toy.hidden, toy.inner]);
            let tensor = Shaped::new(&toy.weights[expert][block.index()], &shape).unwrap();
            let weight = Arc::new(PackedTensor::encode(format, &tensor).unwrap());
            let activation = (rounded && expert.is_multiple_of(2)).then_some(Format::INT8);
            BlockLinear { weight, activation }
        })
    };
    (0..toy.weights.len()).map(one).collect()
}

#[test]
fn one_call_equals_each_expert_alone_to_the_bit() {
    let toy = Toy::new(1, 8, 2, [64, 48], 700, 0.8);
    for rounded in [false, true] {
        let blocks = packed(&toy, rounded);
        let experts = MixedExperts::new(blocks.clone(), Activation::Silu).unwrap();
        let together = experts.forward(&toy.x, &toy.dispatch).unwrap();
        let mut apart = vec![0.0_f32; together.len()];
        for (expert, [gate, up, down]) in blocks.iter().enumerate() {
            let apply = |linear: &BlockLinear, x: &[f32]| {
                let features = linear.weight.in_features();
                let rows = x.len() / features;
                let mut y = vec![0.0; rows * linear.weight.out_features()];
                match linear.activation {
                    None => linear.weight.matmul(x, &mut y).unwrap(),
                    Some(format) => {
                        let shape = [rows, features];
                        let x = quant_core::fake_quantize(format, &Shaped::new(x, &shape).unwrap()).unwrap();
                        linear.weight.matmul(&x, &mut y).unwrap();
                    }
                }
                y
            };
            let tokens = toy.dispatch.tokens_of(expert);
            let x: Vec<f32> = tokens.iter().flat_map(|t| toy.x[t * 64..(t + 1) * 64].to_vec()).collect();
            if x.is_empty() {
                continue;
            }
            let inner: Vec<f32> =
                apply(gate, &x).iter().zip(apply(up, &x)).map(|(g, u)| Activation::Silu.of_f32(*g) * u).collect();
            let y = apply(down, &inner);
            for ((token, gate), y) in tokens.iter().zip(toy.dispatch.gates_of(expert)).zip(y.chunks(64)) {
                apart[token * 64..(token + 1) * 64].iter_mut().zip(y).for_each(|(out, y)| *out += gate * y);
            }
        }
        assert!(together.iter().zip(&apart).all(|(a, b)| a.to_bits() == b.to_bits()), "rounded: {rounded}");
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| experts.forward(&toy.x, &toy.dispatch)).unwrap(), together, "one thread");
    }
}

#[test]
fn memory_that_is_kept_changes_nothing() {
    let toy = Toy::new(1, 8, 2, [64, 48], 700, 0.8);
    let experts = MixedExperts::new(packed(&toy, false), Activation::Silu).unwrap();
    let mut scratch = Scratch::default();
    for tokens in [700, 3, 0, 100] {
        let ids: Vec<usize> = (0..2 * tokens).map(|choice| choice * 5 % 8).collect();
        let dispatch = Dispatch::new(8, 2, &ids, &vec![0.5; 2 * tokens]).unwrap();
        let x = &toy.x[..64 * tokens];
        let kept = experts.forward_with(x, &dispatch, &mut scratch).unwrap();
        assert_eq!(kept, experts.forward(x, &dispatch).unwrap(), "{tokens} tokens");
    }
}

#[test]
fn a_batch_without_tokens_is_empty_and_shapes_must_fit() {
    let toy = Toy::new(2, 4, 1, [32, 32], 5, 0.0);
    let experts = MixedExperts::new(packed(&toy, false), Activation::Relu).unwrap();
    let nobody = Dispatch::new(4, 1, &[], &[]).unwrap();
    assert_eq!(experts.forward(&[], &nobody).unwrap(), Vec::<f32>::new());
    let refused = experts.forward(&toy.x, &Dispatch::new(5, 1, &[0; 5], &[1.0; 5]).unwrap());
    assert!(matches!(refused, Err(Error::Mixture { experts: 5, .. })), "{refused:?}");
    let refused = experts.forward(&toy.x[1..], &toy.dispatch);
    assert!(matches!(refused, Err(Error::Length { .. })), "{refused:?}");
    assert!(matches!(MixedExperts::new(Vec::new(), Activation::Relu), Err(Error::Mixture { .. })));
    let mut blocks = packed(&toy, false);
    blocks[2].swap(0, 2);
    assert!(MixedExperts::new(blocks, Activation::Relu).is_ok(), "square blocks fit anywhere");
    let mut blocks = packed(&Toy::new(3, 2, 1, [32, 64], 5, 0.0), false);
    blocks[1].swap(0, 2);
    let refused = MixedExperts::new(blocks, Activation::Relu);
    assert!(matches!(refused, Err(Error::Length { expected: 64, found: 32, .. })), "{refused:?}");
}

#[test]
fn routers_give_the_gates_of_their_models() {
    let logits = [2.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0];
    let choose = |scores, renormalize| Router { scores, top_k: 2, renormalize }.choose(4, &logits).unwrap();
    let soft = choose(Scores::Softmax, false);
    let total: f64 = [2.0_f64, 0.0, 1.0, -1.0].iter().map(|l| l.exp()).sum();
    assert!((f64::from(soft.gates_of(2)[0]) - 1.0_f64.exp() / total).abs() < 1e-6);
    assert_eq!(soft.tokens_of(1), [1], "ties go to the lower index");
    let renormalized = choose(Scores::Softmax, true);
    assert!((renormalized.gates_of(0)[0] + renormalized.gates_of(2)[0] - 1.0).abs() < 1e-6);
    let sigmoid = choose(Scores::Sigmoid, false);
    assert!((sigmoid.gates_of(2)[0] - 0.731_058_6).abs() < 1e-6);
    let router = Router { scores: Scores::Softmax, top_k: 2, renormalize: false };
    assert!(matches!(router.choose(3, &logits), Err(Error::Length { .. })), "router shapes that do not fit");
    assert!(matches!(router.choose(1, &logits), Err(Error::Mixture { .. })));
    assert!(matches!(router.choose(4, &[f32::NAN; 4]), Err(Error::Setting { .. })));
}
