//! Each transform against its dense matrix, and its laws.

use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;
use quant_calib::Gram;
use quant_core::kernels::{Isa, with_isa};
use quant_linalg::{gaussian, matmul};
use quant_transforms::{
    Chain, Diagonal, Element, Error, Hadamard, Orthogonal, Permutation, RandomizedHadamard, Transform, Weight,
    relative_error, walsh,
};

fn rows<T: Element>(count: usize, size: usize, seed: u64) -> Vec<T> {
    gaussian(count, size, seed).iter().map(|&v| T::narrow(v)).collect()
}

fn multiply(x: &[f64], w: ArrayView2<'_, f64>) -> Vec<f64> {
    let x = ArrayView2::from_shape((x.len() / w.nrows(), w.nrows()), x).unwrap();
    matmul(x, w).iter().copied().collect()
}

/// One of each kind, of `size` channels.
fn transforms(size: usize, seed: u64) -> Vec<Transform> {
    let hadamard = Hadamard::largest(size).unwrap();
    let scales = gaussian(1, size, seed).iter().map(|v| f32::narrow(v.abs() + 0.1)).collect();
    let mut order: Vec<u32> = (0..u32::try_from(size).unwrap()).collect();
    order.rotate_left(size / 3);
    order.reverse();
    let all: Vec<Transform> = vec![
        hadamard.clone().into(),
        RandomizedHadamard::new(hadamard, seed).into(),
        Orthogonal::random(size, seed).unwrap().into(),
        Diagonal::new(scales).unwrap().into(),
        Permutation::new(order).unwrap().into(),
    ];
    let chain = Chain::new(all.clone()).unwrap().into();
    all.into_iter().chain([chain]).collect()
}

/// The Hadamard matrix `H` with `x' = H x / √n`.
fn signs(size: usize) -> Array2<f64> {
    let transform = Transform::from(Hadamard::new(size).unwrap());
    transform.matrix().t().mapv(|v| v * (size as f64).sqrt())
}

#[test]
fn the_walsh_transform_has_the_signs_of_common_bits() {
    for ((i, j), v) in signs(64).indexed_iter() {
        assert_eq!(*v, if (i & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 });
    }
}

#[test]
fn every_known_order_gives_a_hadamard_matrix() {
    for size in [1, 2, 4, 12, 20, 24, 28, 36, 40, 52, 60, 76, 108, 140, 148, 156, 172, 576, 344] {
        let matrix = signs(size);
        assert!(matrix.iter().all(|v| (v.abs() - 1.0).abs() < 1e-9), "{size}: elements are ±1");
        let gram = matmul(matrix.view(), matrix.t());
        let off = gram.indexed_iter().map(|((i, j), v)| (v - if i == j { size as f64 } else { 0.0 }).abs());
        assert!(off.fold(0.0, f64::max) < 1e-9, "{size}: rows are orthogonal");
    }
}

#[test]
fn runs_are_mixed_by_the_matrix_of_the_factor() {
    let (small, walsh, large) = (signs(12), signs(8), signs(96));
    for ((i, j), v) in large.indexed_iter() {
        assert!((v - small[[i / 8, j / 8]] * walsh[[i % 8, j % 8]]).abs() < 1e-12, "{i} {j}");
    }
}

#[test]
fn powers_of_two_are_their_own_inverse() {
    for size in [1, 2, 64, 4096] {
        let hadamard = Hadamard::new(size).unwrap();
        let original: Vec<f64> = rows(3, size, 1);
        let mut x = original.clone();
        hadamard.apply(&mut x).unwrap();
        hadamard.apply(&mut x).unwrap();
        assert!(relative_error(&original, &x) < 1e-14, "{size}");
    }
}

#[test]
fn sizes_without_a_matrix_are_cut_into_blocks() {
    let hadamard = Hadamard::largest(13696).unwrap();
    assert_eq!((hadamard.size(), hadamard.block(), hadamard.order()), (13696, 128, 1));
    assert_eq!(Hadamard::new(13696), Err(Error::NoHadamard { size: 13696, block: 128 }));
    let mut whole: Vec<f64> = rows(2, 96, 3);
    let mut parts = whole.clone();
    Hadamard::blocks(96, 24).unwrap().apply(&mut whole).unwrap();
    Hadamard::new(24).unwrap().apply(&mut parts).unwrap();
    assert_eq!(whole, parts);
    assert_eq!(Hadamard::largest(7).unwrap().block(), 1, "nothing to mix");
    assert_eq!(Hadamard::blocks(96, 36), Err(Error::Blocks { size: 96, block: 36 }));
    assert_eq!(Hadamard::largest(0), Err(Error::Blocks { size: 0, block: 0 }));
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_definition() {
    for power in 0..=15 {
        let size = 1 << power;
        let scale = (size as f64).sqrt().recip();
        let original: Vec<f32> = rows(3, size, power);
        let mut expected = original.clone();
        for row in expected.chunks_exact_mut(size) {
            walsh::reference(row);
            row.iter_mut().for_each(|v| *v *= f32::narrow(scale));
        }
        for isa in Isa::ALL {
            let mut found = original.clone();
            with_isa(isa, || Hadamard::new(size).unwrap().apply(&mut found)).unwrap();
            assert_eq!(found, expected, "{size} {isa:?}");
        }
    }
}

#[test]
fn every_instruction_set_mixes_runs_alike() {
    for size in [12, 40, 172, 576, 3072] {
        let with = |isa| {
            let mut x: Vec<f32> = rows(2, size, 6);
            with_isa(isa, || Hadamard::new(size).unwrap().apply(&mut x)).unwrap();
            x
        };
        for isa in Isa::ALL {
            assert_eq!(with(isa), with(Isa::Reference), "{size} {isa:?}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let apply = |transform: Transform| {
                let mut x: Vec<f32> = rows(700, 192, 5);
                transform.apply(&mut x).unwrap();
                x
            };
            transforms(192, 2).into_iter().map(apply).collect::<Vec<_>>()
        })
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(3));
}

#[test]
fn an_input_in_its_eigenbasis_is_uncorrelated_and_flat_after_a_hadamard() {
    let (tokens, size) = (2000, 64);
    let x = matmul(gaussian(tokens, size, 2).view(), gaussian(size, size, 1).view());
    let x = Array2::from_shape_fn((tokens, size), |(t, c)| f32::narrow(x[[t, c]] * (1.0 + c as f64 / 8.0)));
    let mut gram = Gram::new(size);
    gram.add(&x.iter().copied().collect::<Vec<_>>(), None).unwrap();
    let basis = Transform::from(Orthogonal::karhunen_loeve(&gram).unwrap());
    let moment = |transform: &Transform| {
        let t = transform.matrix();
        matmul(matmul(t.t(), gram.matrix().view()).view(), t.view())
    };
    let eigen = moment(&basis);
    let trace = eigen.diag().sum();
    for ((i, j), v) in eigen.indexed_iter() {
        assert!(i == j || v.abs() < 1e-10 * trace, "correlated: {i} {j} {v}");
    }
    assert!(eigen.diag().windows(2).into_iter().all(|pair| pair[0] >= pair[1]), "largest first");
    let hadamard = Transform::from(RandomizedHadamard::new(Hadamard::new(size).unwrap(), 3));
    let flatness = |transform: &Transform| {
        let diagonal = moment(transform).diag().to_vec();
        diagonal.iter().copied().fold(0.0, f64::max) / diagonal.iter().copied().fold(f64::MAX, f64::min)
    };
    let both = Transform::from(Chain::new(vec![basis, hadamard.clone()]).unwrap());
    assert!((flatness(&both) - 1.0).abs() < 1e-9, "{}", flatness(&both));
    assert!(flatness(&hadamard) > 2.0, "a Hadamard alone does not flatten correlated channels");
}

#[test]
fn a_learned_rotation_is_brought_back_to_the_orthogonal_matrices() {
    let matrix = Transform::from(Orthogonal::random(24, 4).unwrap()).matrix();
    let noisy = &matrix + &(gaussian(24, 24, 5) * 1e-4);
    assert!(matches!(Orthogonal::new(noisy.clone()), Err(Error::NotOrthogonal { .. })), "it was accepted as it is");
    let nearest = Transform::from(Orthogonal::nearest(noisy.view()).unwrap()).matrix();
    let distance = |to: &Array2<f64>| (&noisy - to).iter().map(|v| v * v).sum::<f64>();
    assert!(distance(&nearest) <= distance(&matrix), "another orthogonal matrix is nearer");
}

#[test]
fn what_cannot_be_a_transform_is_refused() {
    let hadamard = Hadamard::new(8).unwrap();
    assert_eq!(hadamard.apply(&mut [0.0_f32; 9]), Err(Error::Rows { size: 8, found: 9 }));
    for value in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let refused = Diagonal::new(vec![1.0, value]);
        assert!(matches!(refused, Err(Error::Scale { index: 1, .. })), "{refused:?}");
    }
    assert_eq!(Permutation::new(vec![0, 2]), Err(Error::Permutation { index: 1, value: 2 }));
    assert_eq!(Permutation::new(vec![0, 0]), Err(Error::Permutation { index: 1, value: 0 }));
    let refused = Orthogonal::new(Array2::from_elem((2, 2), 1.0));
    assert_eq!(refused, Err(Error::NotOrthogonal { deviation: 2.0, limit: 1e-10 }));
    let refused = Orthogonal::new(Array2::from_elem((2, 2), f64::NAN));
    assert_eq!(refused, Err(Error::NotOrthogonal { deviation: f64::INFINITY, limit: 1e-10 }));
    assert_eq!(Orthogonal::new(Array2::zeros((2, 3))), Err(Error::NotSquare { rows: 2, columns: 3 }));
    assert!(Orthogonal::random(0, 1).is_err(), "no channels");
    let sizes = Chain::new(vec![hadamard.into(), Hadamard::new(4).unwrap().into()]);
    assert!(matches!(sizes, Err(Error::Count { expected: 8, found: 4, .. })), "{sizes:?}");
    assert!(matches!(Chain::new(vec![]), Err(Error::Count { .. })), "nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn transforms_are_their_matrix_and_invert(size in 1_usize..200, seed in any::<u64>()) {
        for transform in transforms(size, seed) {
            let original: Vec<f64> = rows(3, size, seed ^ 1);
            let mut x = original.clone();
            transform.apply(&mut x).unwrap();
            let expected = multiply(&original, transform.matrix().view());
            prop_assert!(relative_error(&expected, &x) < 1e-12, "{:?}", transform);
            let mut narrow: Vec<f32> = original.iter().map(|&v| f32::narrow(v)).collect();
            transform.apply(&mut narrow).unwrap();
            let narrow: Vec<f64> = narrow.iter().map(|&v| f64::from(v)).collect();
            prop_assert!(relative_error(&expected, &narrow) < 3e-6, "{:?}", transform);
            if transform.is_orthogonal() {
                let energy = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>();
                prop_assert!((energy(&x) / energy(&original) - 1.0).abs() < 1e-12);
            }
            transform.invert(&mut x).unwrap();
            prop_assert!(relative_error(&original, &x) < 1e-12, "{:?}", transform);
        }
    }

    #[test]
    fn folding_keeps_the_product(size in 1_usize..60, other in 1_usize..20, seed in any::<u64>()) {
        for transform in transforms(size, seed) {
            let (x, w): (Vec<f64>, Vec<f64>) = (rows(4, size, seed ^ 1), rows(other, size, seed ^ 2));
            let apply = |x: &[f64], w: &[f64], inputs: usize| {
                multiply(x, ArrayView2::from_shape((w.len() / inputs, inputs), w).unwrap().t())
            };
            // What reads the transformed rows gives what it gave.
            let (mut tx, mut tw) = (x.clone(), w.clone());
            transform.apply(&mut tx).unwrap();
            transform.fold_input(&mut Weight::new("w", &mut tw, [other, size]).unwrap()).unwrap();
            prop_assert!(relative_error(&apply(&x, &w, size), &apply(&tx, &tw, size)) < 1e-11, "{:?}", transform);
            // What writes rows writes transformed ones, its bias too.
            let (z, mut v): (Vec<f64>, Vec<f64>) = (rows(4, other, seed ^ 3), rows(size, other, seed ^ 4));
            let mut expected = apply(&z, &v, other);
            transform.apply(&mut expected).unwrap();
            transform.fold_output(&mut Weight::new("v", &mut v, [size, other]).unwrap()).unwrap();
            prop_assert!(relative_error(&expected, &apply(&z, &v, other)) < 1e-11, "{:?}", transform);
            let (mut bias, mut expected) = (x[..size].to_vec(), x[..size].to_vec());
            transform.apply(&mut expected).unwrap();
            transform.fold_rows(&mut Weight::vector("b", &mut bias).unwrap()).unwrap();
            prop_assert_eq!(expected, bias);
        }
    }
}
