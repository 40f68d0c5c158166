//! Times the decompositions on one thread beside a product of the same size:
//! `cargo run --release -p quant-linalg --example timing -- 2048`.

use ndarray::Array2;
use quant_linalg::{
    RandomizedSvd, cholesky, eigh, gaussian, invert_lower, matmul, qr, randomized_svd, reversed_cholesky, svd,
};
use std::hint::black_box;
use std::time::Instant;

fn main() -> Result<(), rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(table);
    Ok(())
}

fn table() {
    let n: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1024);
    let a = gaussian(n, n, 1);
    let single = narrow(&a);
    let h = matmul(a.t(), a.view()) + Array2::<f64>::eye(n) * (n as f64 / 100.0);

    println!("| {n} × {n}, one thread | seconds | products in f64 | products in f32 |\n|---|---:|---:|---:|");
    let double = time(|| matmul(a.view(), a.view()));
    let float = time(|| matmul(single.view(), single.view()));
    let row = |name: &str, seconds: f64| {
        println!("| {name} | {seconds:.3} | {:.2} | {:.2} |", seconds / double, seconds / float);
    };
    row("product in f64", double);
    row("product in f32", float);
    row("`reversed_cholesky`", time(|| reversed_cholesky(h.view())));
    let inverse = || {
        let l = invert_lower(cholesky(h.view())?.view())?;
        cholesky(matmul(l.t(), l.view()).view())
    };
    row("the same factor by way of the inverse", time(inverse));
    for rank in [n / 32, n / 8] {
        let config = RandomizedSvd::of_rank(rank);
        row(&format!("`randomized_svd`, rank {rank}"), time(|| randomized_svd(a.view(), config)));
    }
    row("`qr`", time(|| qr(a.view())));
    if n <= 1024 {
        row("`eigh`", time(|| eigh(h.view())));
        row("`svd`", time(|| svd(a.view())));
    }
}

/// The shortest of three runs, in seconds.
fn time<T>(job: impl Fn() -> T) -> f64 {
    let run = || {
        let start = clock();
        black_box(job());
        clock() - start
    };
    (0..3).map(|_| run()).fold(f64::INFINITY, f64::min)
}

/// Seconds that this thread had a core, where the system tells; else time that passed.
fn clock() -> f64 {
    thread_local!(static START: Instant = Instant::now());
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
        .map_or_else(|| START.with(Instant::elapsed).as_secs_f64(), |nanoseconds| nanoseconds * 1e-9)
}

#[expect(clippy::cast_possible_truncation, reason = "narrowing is what is wanted")]
fn narrow(a: &Array2<f64>) -> Array2<f32> {
    a.mapv(|value| value as f32)
}
