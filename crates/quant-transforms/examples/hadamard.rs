//! How close does the Hadamard transform of 4096 rows of 4096 values come to touching each value once?
//!
//! `cargo run --release -p quant-transforms --example hadamard` prints seconds on one thread, the median of the rounds, all
//! cases once a round; beside it two ways to do the same without a fast transform.

use ndarray::{Array2, ArrayView2};
use quant_core::kernels::Isa;
use quant_transforms::{Hadamard, Transform};
use rayon::prelude::*;
use std::time::Instant;

const SIZE: usize = 4096;
const ROUNDS: usize = 9;

type Case = (&'static str, Box<dyn FnMut(&mut [f32])>);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(table)?;
    Ok(())
}

fn table() -> Result<(), quant_transforms::Error> {
    let mut x: Vec<f32> = (0..SIZE * SIZE).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    let whole = Hadamard::new(SIZE)?;
    let mixed = Hadamard::new(SIZE / 4 * 3)?; // 12 · 256
    let small = Transform::from(Hadamard::new(64)?).matrix().mapv(narrow);

    let mut cases: Vec<Case> = vec![
        ("floor: multiply each value in place", Box::new(touch)),
        ("Hadamard", Box::new(move |x| whole.apply(x).expect("whole rows"))),
        (
            "Hadamard 3072 = 12 · 256, on three quarters",
            Box::new(move |x| mixed.apply(&mut x[..SIZE / 4 * 3 * SIZE]).expect("whole rows")),
        ),
        ("plain butterflies", Box::new(plain)),
        ("two products with the Hadamard matrix of 64", Box::new(move |x| products(x, &small))),
    ];
    let mut seconds = vec![Vec::new(); cases.len()];
    for round in 0..=ROUNDS {
        for ((_, run), seconds) in cases.iter_mut().zip(&mut seconds) {
            let start = clock();
            run(&mut x);
            if round > 0 {
                seconds.push(clock() - start);
            }
        }
    }
    println!("one thread, {:?}\n\n| | seconds | of the floor |\n|---|---|---|", Isa::current());
    let medians: Vec<f64> = seconds.iter_mut().map(|seconds| median(seconds)).collect();
    for ((name, _), median) in cases.iter().zip(&medians) {
        println!("| {name} | {median:.4} | {:.2} |", median / medians[0]);
    }
    Ok(())
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

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Seconds that this thread had a core, where the system tells; else time that passed.
fn clock() -> f64 {
    thread_local!(static START: Instant = Instant::now());
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.as_deref().and_then(|text| text.split(' ').next()).and_then(|text| text.parse::<f64>().ok());
    nanoseconds.map_or_else(|| START.with(Instant::elapsed).as_secs_f64(), |nanoseconds| nanoseconds / 1e9)
}
