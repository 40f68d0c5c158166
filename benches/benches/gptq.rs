//! How close do GPTQ's three steps — the Hessian, its factor, the pass over the columns — come to the multiplications and
//! additions that they need?
//!
//! `cargo bench --workspace --bench gptq` runs criterion on a small layer and then prints tables for a large one beside
//! the floors and plain peers; `-- --table` prints the tables alone.

use criterion::Criterion;
use leanbits_benches::{Work, floors, print_seconds, weights};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};
use quant_calib::Gram;
use quant_core::{BlockParams, Format, FormatGrid, Grid, Shaped};
use std::hint::black_box;
use std::time::Duration;
use weight_quant::gptq::{Factor, GptqConfig, Hessian, Order, gptq_prepared};

const LARGE: usize = 4096;
const SMALL: usize = 1024;
const TOKENS: usize = 2048;
const ROUNDS: usize = 3;

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    if !std::env::args().any(|argument| argument == "--table") {
        criterion();
    }
    let w = weights(LARGE * LARGE);
    let hessian = hessian(LARGE);
    let factor = factor(&hessian);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            statistics(threads);
            factorization(&hessian, threads);
            columns(&w, &factor, threads);
        });
    }
}

/// A dense Hessian: channels of their own and sixteen signals that all share.
fn hessian(features: usize) -> Array2<f64> {
    let signals = weights(16 * features);
    let signal = |s: usize, j: usize| f64::from(signals[s * features + j]) * 30.0;
    Array2::from_shape_fn((features, features), |(i, j)| {
        let shared: f64 = (0..16).map(|s| signal(s, i) * signal(s, j)).sum();
        shared + if i == j { 0.3 } else { 0.0 }
    })
}

fn factor(hessian: &Array2<f64>) -> Factor {
    Factor::new(hessian.view(), Order::Natural, 128, 0.01).expect("positive definite")
}

fn ours(w: &[f32], hessian: &Hessian, format: Format, features: usize) {
    let weight = Shaped::new(w, &[w.len() / features, features]).expect("whole rows");
    let result = gptq_prepared(&weight, hessian, format, &GptqConfig::default()).expect("finite weights");
    black_box(result);
}

fn criterion() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let w = weights(SMALL * SMALL);
    let hessian = Hessian::Factored(factor(&hessian(SMALL)));
    let mut group = criterion.benchmark_group("gptq columns, 1024 × 1024");
    for name in ["int4-g128", "int4-g128-asym"] {
        let format: Format = name.parse().expect("a format");
        group.bench_function(name, |bencher| bencher.iter(|| ours(&w, &hessian, format, SMALL)));
    }
    group.finish();
    criterion.final_summary();
}

/// The Hessian of some tokens: products in f32, sums of blocks in f64. The peer is one product in f32.
fn statistics(threads: usize) {
    let x = weights(TOKENS * LARGE);
    let rows = ArrayView2::from_shape((TOKENS, LARGE), &x).expect("whole rows");
    let flops = (2 * TOKENS * LARGE * LARGE) as f64;
    let gram = || {
        let mut gram = Gram::new(LARGE);
        gram.add(&x, None).expect("finite rows");
        black_box(gram);
    };
    let title = format!("Hessian of {TOKENS} tokens of {LARGE} channels, {threads} thread(s)");
    let mut cases: Vec<Work<'_>> = vec![
        ("floor: fused multiply-adds in registers", Box::new(move || floors::fma_on_all_threads(flops))),
        ("Gram", Box::new(gram)),
        ("peer: faer, one product in f32", Box::new(|| drop(black_box(quant_linalg::matmul(rows.t(), rows))))),
    ];
    print_seconds(&title, &mut cases, ROUNDS);
}

/// `H⁻¹ = Uᵀ U`: one reversed Cholesky factor and its inverse, in f64, beside the three steps of the reference in f64.
fn factorization(hessian: &Array2<f64>, threads: usize) {
    // A third of n³ operations for the factor and as many for its inverse; half as many values fit a register as of f32.
    let flops = 2.0 * 2.0 / 3.0 * (LARGE * LARGE * LARGE) as f64;
    let three = || {
        let lower = quant_linalg::cholesky(hessian.view()).expect("positive definite");
        let inverse = quant_linalg::invert_lower(lower.view()).expect("a triangle");
        let inverse = quant_linalg::matmul(inverse.t(), inverse.view());
        black_box(quant_linalg::cholesky(inverse.view()).expect("positive definite"));
    };
    let title = format!("Factor of the inverse of a Hessian of {LARGE} channels in f64, {threads} thread(s)");
    let mut cases: Vec<Work<'_>> = vec![
        ("floor: fused multiply-adds in registers", Box::new(move || floors::fma_on_all_threads(flops))),
        ("reversed Cholesky factor, inverted", Box::new(|| drop(black_box(factor(hessian))))),
        ("reference's way: factor, inverse, factor", Box::new(three)),
    ];
    print_seconds(&title, &mut cases, ROUNDS);
}

fn columns(w: &[f32], factor: &Factor, threads: usize) {
    let hessian = Hessian::Factored(factor.clone());
    // One multiplication and one addition for each pair of columns and each row.
    let flops = (LARGE * LARGE * LARGE) as f64;
    let title = format!("GPTQ columns of {LARGE} × {LARGE}, given the factor, {threads} thread(s)");
    let mut cases: Vec<Work<'_>> = vec![
        ("floor: fused multiply-adds in registers", Box::new(move || floors::fma_on_all_threads(flops))),
        ("int4-g128", Box::new(|| ours(w, &hessian, Format::INT4_G128, LARGE))),
        ("int4-g128-asym", Box::new(|| ours(w, &hessian, Format::INT4_G128_ASYM, LARGE))),
        ("reference's way, int4-g128", Box::new(|| plain(w, factor))),
    ];
    print_seconds(&title, &mut cases, ROUNDS);
}

/// GPTQ as the reference code has it: blocks of 128 columns, inside them one column after the other on a row-major
/// weight, after them one product for all later columns.
fn plain(w: &[f32], factor: &Factor) {
    const BLOCK: usize = 128;
    let grid = FormatGrid::new(Format::INT4_G128, 0.0).expect("a format");
    let upper = factor.upper();
    let mut w = Array2::from_shape_vec((LARGE, LARGE), w.to_vec()).expect("a square");
    let mut codes = vec![0_u32; LARGE * LARGE];
    for start in (0..LARGE).step_by(BLOCK) {
        let mut errors = Array2::<f32>::zeros((LARGE, BLOCK));
        let params: Vec<BlockParams> = (0..LARGE)
            .map(|row| grid.fit(&w.row(row).as_slice().expect("row-major")[start..start + BLOCK], 1.0).expect("finite"))
            .collect();
        for i in 0..BLOCK {
            let u: Vec<f32> = (i..BLOCK).map(|j| upper[[start + i, start + j]]).collect();
            for row in 0..LARGE {
                let mut row_of = w.row_mut(row);
                let values = &mut row_of.as_slice_mut().expect("row-major")[start + i..start + BLOCK];
                let code = grid.encode(&values[..1], &params[row]);
                let mut rounded = [0.0];
                grid.decode(code, &params[row], &mut rounded);
                codes[row * LARGE + start + i] = code;
                let error = (values[0] - rounded[0]) / u[0];
                errors[[row, i]] = error;
                values.iter_mut().zip(&u).for_each(|(w, u)| *w -= error * u);
            }
        }
        let later: ArrayViewMut2<'_, f32> = w.slice_axis_mut(Axis(1), Slice::from(start + BLOCK..));
        let mut above: ArrayView2<'_, f32> = upper;
        above.slice_axis_inplace(Axis(0), Slice::from(start..start + BLOCK));
        above.slice_axis_inplace(Axis(1), Slice::from(start + BLOCK..));
        if above.ncols() > 0 {
            quant_linalg::add_matmul(later, -1.0, errors.view(), above);
        }
    }
    black_box(codes);
}
