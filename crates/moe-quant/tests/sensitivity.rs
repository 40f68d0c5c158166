//! The fast sensitivities against the definition.

mod common;

use common::{Toy, schemes};
use moe_quant::{Block, Dispatch, Error, Sensitivity};

const NAMES: [&str; 5] = ["int2-g32-asym", "int4-g32-asym/int4-g32", "int8/int8", "mxfp4", "nvfp4/nvfp4"];

#[test]
fn the_fast_identity_equals_running_the_whole_layer() {
    let toy = Toy::new(1, 4, 2, [64, 32], 40, 0.5);
    let (layer, schemes) = (toy.layer(), schemes(&NAMES));
    let fast = Sensitivity::measure(&layer, &toy.x, &toy.dispatch, &schemes).unwrap();
    let slow = Sensitivity::reference(&layer, &toy.x, &toy.dispatch, &schemes).unwrap();
    for expert in 0..4 {
        for block in Block::ALL {
            for scheme in 0..schemes.len() {
                let (a, b) = (fast.delta(expert, block, scheme), slow.delta(expert, block, scheme));
                assert!((a - b).abs() <= 1e-10 * b, "expert {expert}, {block}, scheme {scheme}: {a} and {b}");
                assert_eq!(fast.weight_error(expert, block, scheme), slow.weight_error(expert, block, scheme));
            }
        }
    }
}

#[test]
fn an_expert_without_tokens_loses_nothing() {
    let toy = Toy::new(2, 3, 1, [32, 32], 12, 0.0);
    let dispatch = Dispatch::new(3, 1, &[0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1], &[1.0; 12]).unwrap();
    let table = Sensitivity::measure(&toy.layer(), &toy.x, &dispatch, &schemes(&NAMES[..1])).unwrap();
    assert!(Block::ALL.iter().all(|&block| table.delta(2, block, 0) == 0.0));
    assert!(Block::ALL.iter().all(|&block| table.delta(1, block, 0) > 0.0 && table.weight_error(2, block, 0) > 0.0));
}

#[test]
fn losses_grow_with_gates_and_fall_with_bits() {
    let toy = Toy::new(3, 4, 2, [64, 32], 40, 0.0);
    let names = schemes(&["int2-g32-asym", "int3-g32-asym", "int4-g32-asym", "int8-g32-asym", "f16"]);
    let table = Sensitivity::measure(&toy.layer(), &toy.x, &toy.dispatch, &names).unwrap();
    for expert in 0..4 {
        for block in Block::ALL {
            let losses: Vec<f64> = (0..names.len()).map(|scheme| table.delta(expert, block, scheme)).collect();
            assert!(losses.windows(2).all(|w| w[1] < w[0]), "{losses:?}");
        }
    }
}

#[test]
fn a_router_for_another_number_of_experts_is_refused() {
    let toy = Toy::new(4, 4, 2, [32, 32], 10, 0.0);
    let other = Dispatch::new(3, 1, &[0; 10], &[1.0; 10]).unwrap();
    let refused = Sensitivity::measure(&toy.layer(), &toy.x, &other, &schemes(&NAMES[..1]));
    assert!(matches!(refused, Err(Error::Mixture { experts: 3, .. })), "{refused:?}");
    let refused = Sensitivity::measure(&toy.layer(), &toy.x[1..], &toy.dispatch, &schemes(&NAMES[..1]));
    assert!(matches!(refused, Err(Error::Length { expected: 320, found: 319, .. })), "{refused:?}");
    let refused = Sensitivity::measure(&toy.layer(), &toy.x, &toy.dispatch, &[]);
    assert_eq!(refused, Err(Error::Nothing { what: "schemes" }));
    assert!(matches!(Dispatch::new(3, 1, &[3], &[1.0]), Err(Error::NoSuchExpert { expert: 3, .. })));
    assert!(matches!(Dispatch::new(3, 1, &[0], &[f32::NAN]), Err(Error::Gate { choice: 0, .. })));
    assert!(matches!(Dispatch::new(3, 4, &[0], &[1.0]), Err(Error::Mixture { .. })));
    assert!(matches!(Dispatch::new(3, 2, &[0], &[1.0]), Err(Error::Length { .. })));
}
