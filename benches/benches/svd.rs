//! How do our decompositions compare with a product of matrices of their size, and with LAPACK? And does a pair of
//! factors run at the speed of the memory that holds it?
//!
//! `cargo bench --workspace --bench svd` runs criterion on small matrices and then prints tables for large
//! ones; `-- --table` prints the tables alone. With `--features lapack` and a library named in `LEANBITS_LAPACK` they
//! have LAPACK's times too (`OPENBLAS_NUM_THREADS=1`: ours are for one thread).

use criterion::Criterion;
use leanbits_benches::{floors, process_seconds, weights};
use low_rank::{LowRank, Storage};
use ndarray::Array2;
use quant_core::Linear;
use quant_linalg::{RandomizedSvd, add_matmul, gaussian, matmul, randomized_svd, randomized_svd_f32, svd};
use std::hint::black_box;
use std::time::Duration;

const LARGE: usize = 4096;
const MIDDLE: usize = 1024;
const SMALL: usize = 256;
const ROUNDS: usize = 3;

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    if !std::env::args().any(|argument| argument == "--table") {
        criterion();
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(|| {
        decompositions();
        products();
        pairs();
    });
}

fn criterion() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let a = gaussian(SMALL, SMALL, 1);
    let mut group = criterion.benchmark_group("decompositions, 256 × 256");
    group.bench_function("svd", |bencher| bencher.iter(|| black_box(svd(a.view()))));
    group.bench_function("randomized svd, rank 16", |bencher| {
        bencher.iter(|| black_box(randomized_svd(a.view(), RandomizedSvd::of_rank(16))));
    });
    group.finish();
    criterion.final_summary();
}

/// A name and what it stands for.
type Case<'a> = (String, Box<dyn FnMut() + 'a>);

/// Every case once a round, the least seconds that the cores gave to each: other programs only ever add.
fn least(cases: &mut [Case<'_>], rounds: usize) -> Vec<f64> {
    let mut seconds = vec![f64::INFINITY; cases.len()];
    for _ in 0..rounds {
        for ((_, run), seconds) in cases.iter_mut().zip(&mut seconds) {
            let before = process_seconds();
            run();
            *seconds = seconds.min(process_seconds() - before);
        }
    }
    seconds
}

/// A table of times over that of the first case.
fn print(title: &str, mut cases: Vec<Case<'_>>, rounds: usize) {
    let seconds = least(&mut cases, rounds);
    println!("\n{title}\n\n| | CPU ms | × the first |\n|---|---:|---:|");
    for ((name, _), &taken) in cases.iter().zip(&seconds) {
        println!("| {name} | {:.3} | {:.2} |", 1e3 * taken, taken / seconds[0]);
    }
}

fn decompositions() {
    #[cfg(all(feature = "lapack", unix))]
    let lapack = quant_linalg::lapack::Lapack::find().inspect_err(|error| println!("{error}")).ok();

    let a = gaussian(MIDDLE, MIDDLE, 1);
    #[cfg_attr(not(all(feature = "lapack", unix)), expect(unused_mut, reason = "LAPACK adds cases of its own"))]
    let mut cases: Vec<Case<'_>> = vec![
        ("a product of that size".into(), Box::new(|| drop(black_box(matmul(a.view(), a.view()))))),
        ("`svd`".into(), Box::new(|| drop(black_box(svd(a.view()))))),
    ];
    #[cfg(all(feature = "lapack", unix))]
    if let Some(lapack) = &lapack {
        cases.push(("LAPACK: product".into(), Box::new(|| drop(black_box(lapack.matmul(a.view(), a.view()))))));
        cases.push(("LAPACK: `dgesdd`".into(), Box::new(|| drop(black_box(lapack.svd(a.view()))))));
    }
    print(&format!("All singular values and vectors, {MIDDLE} × {MIDDLE}"), cases, ROUNDS);

    let a = gaussian(LARGE, LARGE, 1);
    let a32 = narrow(&a);
    for rank in [128, 512] {
        let config = RandomizedSvd::of_rank(rank);
        let thin = gaussian(LARGE, rank + config.oversample, 2);
        let thin32 = narrow(&thin);
        // A product for Y, two for each power iteration, one for Qᵀ A.
        let passes = 2 + 2 * config.power_iterations;
        #[cfg_attr(not(all(feature = "lapack", unix)), expect(unused_mut, reason = "LAPACK adds cases of its own"))]
        let mut cases: Vec<Case<'_>> = vec![
            (
                format!("the {passes} products in f64"),
                Box::new(|| (0..passes).for_each(|_| drop(black_box(matmul(a.view(), thin.view()))))),
            ),
            (
                "the same in f32".into(),
                Box::new(|| (0..passes).for_each(|_| drop(black_box(matmul(a32.view(), thin32.view()))))),
            ),
            ("`randomized_svd`".into(), Box::new(|| drop(black_box(randomized_svd(a.view(), config))))),
            ("`randomized_svd_f32`".into(), Box::new(|| drop(black_box(randomized_svd_f32(a32.view(), config))))),
        ];
        #[cfg(all(feature = "lapack", unix))]
        if let Some(lapack) = &lapack {
            let run = || drop(black_box(lapack.randomized_svd(a.view(), config)));
            cases.push(("the same by LAPACK, all in f64".into(), Box::new(run)));
        }
        print(
            &format!("The {rank} largest of {LARGE} × {LARGE}, {} power iterations", config.power_iterations),
            cases,
            2,
        );
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
fn narrow(a: &Array2<f64>) -> Array2<f32> {
    a.mapv(|value| value as f32)
}

/// Sums of products with a left factor in either layout.
fn products() {
    let (a, b) = (gaussian(MIDDLE, 128, 1), gaussian(128, LARGE, 2));
    let transposed = a.t().as_standard_layout().into_owned();
    let sums = [(); 2].map(|()| std::cell::RefCell::new(Array2::zeros((MIDDLE, LARGE))));
    let cases: Vec<Case<'_>> = vec![
        ("`a`".into(), Box::new(|| add_matmul(sums[0].borrow_mut().view_mut(), 1.0, a.view(), b.view()))),
        (
            "`aᵀ`, transposed".into(),
            Box::new(|| add_matmul(sums[1].borrow_mut().view_mut(), 1.0, transposed.t(), b.view())),
        ),
    ];
    print(&format!("`add_matmul`, {MIDDLE} × 128 × {LARGE}"), cases, 5);
}

/// A vector through two factors, as they are stored and arranged for products, beside reading the bytes that are stored.
fn pairs() {
    const RANK: usize = 512;
    let (a, b, x) = (weights(LARGE * RANK), weights(RANK * LARGE), weights(LARGE));
    println!(
        "\nA vector through factors of rank {RANK} of a {LARGE} × {LARGE} weight, as stored and prepared for products\n"
    );
    println!(
        "| factors | MB | reading them, CPU ms | the pair, CPU ms | × reading | the pair prepared, CPU ms | × reading | × one prepared linear of as many elements |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|"
    );
    for name in ["f32", "f16", "bf16", "int8", "int4-g128"] {
        let storage: Storage = name.parse().expect("a storage");
        let store = |values: &[f32], rows: usize, columns: usize| {
            storage.store(values.to_vec(), rows, columns).expect("finite")
        };
        let pair = LowRank::new(store(&a, LARGE, RANK), store(&b, RANK, LARGE)).expect("factors that fit");
        let prepared = pair.prepared().expect("factors have a prepared form");
        // One stage of as many elements, for what the second costs.
        let one = store(&[a.as_slice(), b.as_slice()].concat(), 2 * RANK, LARGE);
        let one = one.prepared().expect("so has one linear");
        let bytes = usize::try_from(pair.footprint().total_bytes()).expect("a size in memory");
        let memory = weights(bytes / 4);
        let [mut y, mut z, mut w] = [LARGE, LARGE, 2 * RANK].map(|outputs| vec![0.0; outputs]);
        let mut cases: Vec<Case<'_>> = vec![
            ("read".into(), Box::new(|| _ = black_box(floors::read(&memory)))),
            ("pair".into(), Box::new(|| pair.matmul(&x, &mut y).expect("shapes that fit"))),
            ("prepared".into(), Box::new(|| prepared.matmul(&x, &mut z).expect("shapes that fit"))),
            ("one".into(), Box::new(|| one.matmul(&x, &mut w).expect("shapes that fit"))),
        ];
        let seconds = least(&mut cases, 30);
        #[expect(clippy::cast_precision_loss, reason = "sizes of benchmarks")]
        let megabytes = bytes as f64 / 1e6;
        println!(
            "| `{name}` | {megabytes:.1} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
            1e3 * seconds[0],
            1e3 * seconds[1],
            seconds[1] / seconds[0],
            1e3 * seconds[2],
            seconds[2] / seconds[0],
            seconds[2] / seconds[3]
        );
    }
}
