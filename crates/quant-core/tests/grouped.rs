//! Many products in one call are each product by itself, to the bit.

use quant_core::{Error, Format, Group, Linear, PackedTensor, Shaped, grouped_matmul};

const FORMATS: [&str; 6] = ["int4-g128-asym", "int8", "mxfp4", "nvfp4", "int2-g32-asym", "f16"];

fn weights(outputs: usize, features: usize) -> Vec<PackedTensor<'static>> {
    let one = |(seed, name): (usize, &&str)| {
        let values: Vec<f32> =
            (0..outputs * features).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0).collect();
        let format: Format = name.parse().unwrap();
        PackedTensor::encode(format, &Shaped::new(&values, &[outputs, features]).unwrap()).unwrap()
    };
    FORMATS.iter().enumerate().map(one).collect()
}

fn inputs(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 29 % 113) as f32 - 56.0) / 17.0).collect()
}

#[test]
fn ragged_groups_of_many_formats_equal_each_by_itself_for_any_number_of_threads() {
    let (outputs, features) = (40, 160);
    for prepared in [false, true] {
        let form = |packed: PackedTensor<'static>| -> Box<dyn Linear> {
            let arranged = if prepared { packed.prepared() } else { None };
            arranged.unwrap_or_else(|| Box::new(packed))
        };
        let weights: Vec<Box<dyn Linear>> = weights(outputs, features).into_iter().map(form).collect();
        for counts in [[0, 1, 2, 511, 512, 513], [1300, 0, 0, 0, 1, 0], [0; 6], [1; 6], [3, 127, 128, 129, 1025, 2]] {
            let pairs = weights.iter().zip(counts);
            let groups: Vec<Group<'_>> = pairs.map(|(w, rows)| Group { weight: w.as_ref(), rows }).collect();
            let rows: usize = counts.iter().sum();
            let x = inputs(rows * features);
            let mut alone = Vec::new();
            let mut rest = x.as_slice();
            for (weight, count) in weights.iter().zip(counts) {
                let (here, later) = rest.split_at(count * features);
                let mut y = vec![0.0; count * outputs];
                weight.matmul(here, &mut y).unwrap();
                alone.extend(y);
                rest = later;
            }
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut y = vec![0.0; rows * outputs];
                pool.install(|| grouped_matmul(&groups, &x, &mut y)).unwrap();
                assert!(y.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()), "{counts:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn groups_may_differ_in_features() {
    let (a, b) = (weights(8, 32), weights(5, 64));
    let groups = [Group { weight: &a[1], rows: 3 }, Group { weight: &b[0], rows: 2 }];
    let x = inputs(3 * 32 + 2 * 64);
    let mut y = vec![0.0; 3 * 8 + 2 * 5];
    grouped_matmul(&groups, &x, &mut y).unwrap();
    let mut expected = vec![0.0; 10];
    b[0].matmul(&x[96..], &mut expected).unwrap();
    assert_eq!(y[24..], expected);
}

#[test]
fn slices_of_the_wrong_length_are_refused() {
    let w = weights(8, 32);
    let groups = [Group { weight: &w[0], rows: 2 }];
    let refused = grouped_matmul(&groups, &inputs(63), &mut [0.0; 16]);
    assert!(matches!(refused, Err(Error::Shape { expected: 64, found: 63, .. })), "{refused:?}");
    let refused = grouped_matmul(&groups, &inputs(64), &mut [0.0; 15]);
    assert!(matches!(refused, Err(Error::OutputLen { expected: 16, found: 15 })), "{refused:?}");
}
