//! How close does the Hadamard transform of rows come to touching each value once?
//!
//! `cargo bench --workspace --bench hadamard` runs criterion on a few rows and then prints tables for many beside two
//! ways to do the same without a fast transform; `-- --table` prints the tables alone.

use criterion::Criterion;
use leanbits_benches::{Work, print_seconds, weights};
use ndarray::{Array2, ArrayView2};
use quant_transforms::{Hadamard, Transform};
use rayon::prelude::*;
use std::cell::RefCell;
use std::time::Duration;

const SIZE: usize = 4096;
const ROUNDS: usize = 9;

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    if !std::env::args().any(|argument| argument == "--table") {
        criterion();
    }
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| table(threads));
    }
}

fn criterion() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for size in [64, 1024, 3072, SIZE] {
        let hadamard = Hadamard::new(size).expect("a size with a transform");
        let mut x = weights(64 * size);
        criterion.bench_function(&format!("64 rows of {size}"), |bencher| {
            bencher.iter(|| hadamard.apply(&mut x).expect("whole rows"));
        });
    }
    criterion.final_summary();
}

fn table(threads: usize) {
    // The same values for all, which no case makes larger.
    let x = RefCell::new(weights(SIZE * SIZE));
    let whole = Hadamard::new(SIZE).expect("a power of two");
    let mixed = Hadamard::new(SIZE / 4 * 3).expect("12 · 256");
    let three_quarters = SIZE / 4 * 3 * SIZE;
    let small = Transform::from(Hadamard::new(64).expect("a power of two")).matrix().mapv(narrow);
    let mut cases: Vec<Work<'_>> = vec![
        ("floor: multiply each value in place", Box::new(|| touch(&mut x.borrow_mut()))),
        ("`Hadamard`", Box::new(|| whole.apply(&mut x.borrow_mut()).expect("whole rows"))),
        (
            "`Hadamard` of 3072 = 12 · 256, on three quarters of the values",
            Box::new(|| mixed.apply(&mut x.borrow_mut()[..three_quarters]).expect("whole rows")),
        ),
        ("plain butterflies", Box::new(|| plain(&mut x.borrow_mut()))),
        ("two products with the Hadamard matrix of 64", Box::new(|| products(&mut x.borrow_mut(), &small))),
    ];
    print_seconds(&format!("Hadamard transform of {SIZE} rows of {SIZE}, {threads} thread(s)"), &mut cases, ROUNDS);
}

fn touch(x: &mut [f32]) {
    x.par_chunks_mut(8 * SIZE).for_each(|part| part.iter_mut().for_each(|v| *v *= 0.999));
}

fn plain(x: &mut [f32]) {
    x.par_chunks_mut(SIZE).for_each(|row| {
        quant_transforms::walsh::reference(row);
        row.iter_mut().for_each(|v| *v *= 1.0 / 64.0);
    });
}

/// Each row as a 64×64 matrix between two Hadamard matrices.
fn products(x: &mut [f32], small: &Array2<f32>) {
    x.par_chunks_mut(SIZE).for_each(|row| {
        let matrix = ArrayView2::from_shape((64, 64), &*row).expect("4096 values");
        let product = small.dot(&matrix).dot(small);
        row.copy_from_slice(product.as_slice().expect("row-major"));
    });
}

#[expect(clippy::cast_possible_truncation, reason = "the rounding that is meant")]
fn narrow(value: f64) -> f32 {
    value as f32
}
