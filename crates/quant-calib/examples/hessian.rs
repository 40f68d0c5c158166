//! How long does the Gram matrix of 4096 features take from 2048 tokens?
//!
//! `cargo run --release -p quant-calib --example hessian` prints seconds on one thread, the median of the rounds, both
//! cases once a round: ours, which computes half the products and sums blocks in f64, and the plain f32 product `XᵀX` of the matrix
//! library, which is what other programs compute.

use ndarray::Array2;
use ndarray::linalg::general_mat_mul;
use quant_calib::Gram;
use std::time::Instant;

const FEATURES: usize = 4096;
const TOKENS: usize = 2048;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(table)?;
    Ok(())
}

fn table() -> Result<(), quant_calib::Error> {
    let value = |(i, j): (usize, usize)| ((i * 37 + j * 101 + i * j % 7) % 211) as f32 / 100.0 - 1.0;
    let x = Array2::from_shape_fn((TOKENS, FEATURES), value);
    let rows: Vec<f32> = x.iter().copied().collect();
    let mut product = Array2::<f32>::zeros((FEATURES, FEATURES));
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    let mut gram = Gram::new(FEATURES);
    for _ in 0..=ROUNDS {
        let start = clock();
        gram.add(&rows, None)?;
        ours.push(clock() - start);
        let start = clock();
        general_mat_mul(1.0, &x.t(), &x, 0.0, &mut product);
        plain.push(clock() - start);
    }
    let (ours, plain) = (median(&mut ours[1..]), median(&mut plain[1..]));
    println!(
        "{} threads: Gram {ours:.3} s, f32 product {plain:.3} s, ratio {:.2}",
        rayon::current_num_threads(),
        ours / plain
    );
    let last = product[[0, 1]];
    assert!(last.is_finite(), "the product is used");
    Ok(())
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
