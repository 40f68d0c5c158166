//! How close do vector codes come to what must be read and multiplied: learning them, finding them, using them?
//!
//! `cargo bench --workspace --bench vector` runs criterion on small sizes and then prints tables for large ones
//! beside their floors; `-- --table` prints the tables alone.

use criterion::Criterion;
use leanbits_benches::{floors, weights};
use quant_core::Linear;
use std::hint::black_box;
use std::time::{Duration, Instant};
use vector_quant::{
    BookType, Books, E8P, KMeans, LearnedBook, LearnedBooks, PolarCodec, PolarConfig, Residual, VectorCodec, VqLinear,
    Weights, kmeans,
};

const DIM: usize = 8;
const CENTROIDS: usize = 4096;
const POINTS: usize = 1 << 21;
const FEATURES: usize = 4096;
const ROUNDS: usize = 5;

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    if !std::env::args().any(|argument| argument == "--table") {
        criterion();
    }
    let linears = linears(FEATURES);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            products(threads, &linears);
            search(threads);
        });
    }
}

fn criterion() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let points = weights(DIM << 12);
    let config = KMeans { centroids: 256, iterations: 5, tolerance: 0.0, ..KMeans::default() };
    criterion.bench_function("k-means, 4096 points, 256 centroids, 5 iterations", |bencher| {
        bencher.iter(|| kmeans(&points, DIM, Weights::Uniform, &config).expect("finite points"));
    });
    let x = weights(512);
    for (name, linear) in linears(512) {
        let mut y = vec![0.0; 512];
        criterion.bench_function(&format!("product 512 × 512, {name}"), |bencher| {
            bencher.iter(|| linear.matmul(&x, &mut y).expect("shapes that fit"));
        });
    }
    criterion.final_summary();
}

/// The least seconds of `ROUNDS` runs by the clock: other programs only ever add.
fn least(run: &mut dyn FnMut()) -> f64 {
    least_of(ROUNDS, run)
}

fn least_of(rounds: usize, run: &mut dyn FnMut()) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..rounds {
        let started = Instant::now();
        run();
        least = least.min(started.elapsed().as_secs_f64());
    }
    least
}

/// Pseudo-random codes; which they are does not matter for the time, that they are spread over the code book does.
fn codes(count: usize, bits: u32) -> Vec<u32> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(state >> (64 - bits)).unwrap_or(0)
    };
    (0..count).map(|_| next()).collect()
}

/// A square matrix of each kind.
fn linears(features: usize) -> Vec<(&'static str, VqLinear)> {
    let learned = |dim: usize, bits: u32| {
        let book = LearnedBook::new(&weights(dim << bits), dim, BookType::F16).expect("a code book");
        Books::Learned(LearnedBooks { rows: features, columns: features, books: vec![book] })
    };
    let polar = |direction_bits: u32, max_squared_norm| {
        let config = PolarConfig { direction_bits, magnitude_bits: 2, max_squared_norm, ..PolarConfig::default() };
        Books::Polar(PolarCodec::new(config).expect("a code book"))
    };
    let kinds = vec![
        ("k-means 2 × 4 bits", learned(2, 4)),
        ("k-means 4 × 8 bits", learned(4, 8)),
        ("k-means 8 × 16 bits", learned(8, 16)),
        ("E8P", Books::E8P(E8P)),
        ("E8P twice", Books::E8PTwice(Residual { first: E8P, second: E8P, gain: 3.45 })),
        ("PCDVQ 14+2", polar(14, 16)),
    ];
    let make = |(name, books): (&'static str, Books)| {
        let (dim, bits) = match &books {
            Books::Learned(learned) => (learned.books[0].dim(), learned.books[0].bits()),
            Books::E8PTwice(_) => (8, 32),
            _ => (8, 16),
        };
        let codes = codes(features * features / dim, bits);
        let scales = vec![half::f16::ONE; features];
        (name, VqLinear::new([features, features], books, &codes, scales).expect("codes that fit"))
    };
    kinds.into_iter().map(make).collect()
}

/// `y = W x` from codes, beside reading the stored bytes, and beside a dense f32 matrix.
fn products(threads: usize, linears: &[(&'static str, VqLinear)]) {
    let x = weights(64 * FEATURES);
    let dense = weights(FEATURES * FEATURES);
    println!(
        "\nProducts with a matrix of {FEATURES} × {FEATURES}, {threads} thread(s)\n\n\
         | | 1 row, ms | Gweights/s | × floor of its bytes | × dense f32 | 64 rows, ms | × dense f32 |\n|---|---:|---:|---:|---:|---:|---:|"
    );
    let read = least(&mut || _ = black_box(floors::read(&dense))) / (4 * dense.len()) as f64;
    let dense_product = |rows: usize| {
        let w = ndarray::ArrayView2::from_shape((FEATURES, FEATURES), &dense).expect("a square");
        let x = ndarray::ArrayView2::from_shape((rows, FEATURES), &x[..rows * FEATURES]).expect("whole rows");
        least(&mut || drop(black_box(quant_linalg::matmul(x, w.t()))))
    };
    let (dense_one, dense_many) = (dense_product(1), dense_product(64));
    let weights = (FEATURES * FEATURES) as f64;
    println!(
        "| dense f32 | {:.2} | {:.1} | {:.2} | 1 | {:.1} | 1 |",
        dense_one * 1e3,
        weights / dense_one / 1e9,
        dense_one / (4.0 * weights * read / threads as f64),
        dense_many * 1e3
    );
    for (name, linear) in linears {
        let mut y = vec![0.0; 64 * FEATURES];
        let one = least(&mut || linear.matmul(&x[..FEATURES], &mut y[..FEATURES]).expect("shapes that fit"));
        let many = least(&mut || linear.matmul(&x, &mut y).expect("shapes that fit"));
        let floor = linear.footprint().total_bytes() as f64 * read / threads as f64;
        println!(
            "| {name} | {:.2} | {:.1} | {:.1} | {:.2} | {:.1} | {:.2} |",
            one * 1e3,
            weights / one / 1e9,
            one / floor,
            one / dense_one,
            many * 1e3,
            many / dense_many
        );
    }
}

/// Assignment and k-means of two million 8-vectors, beside the multiply-adds that they need.
fn search(threads: usize) {
    let points = weights(DIM * POINTS);
    let flops = 2.0 * (POINTS * DIM * CENTROIDS) as f64;
    let floor = least(&mut || floors::fma_on_all_threads(flops));
    let book = LearnedBook::new(&points[..DIM * CENTROIDS], DIM, BookType::F16).expect("a code book");
    let mut found = vec![0; POINTS];
    let assign = least(&mut || book.encode_all(&points, &mut found));
    let run = |iterations| {
        let config = KMeans { centroids: CENTROIDS, iterations, tolerance: 0.0, ..KMeans::default() };
        least_of(2, &mut || drop(black_box(kmeans(&points, DIM, Weights::Uniform, &config).expect("finite points"))))
    };
    // A run is the seeding, an assignment, and its iterations of an update and an assignment each.
    let (one, six) = (run(1), run(6));
    let (five, seeding) = (six - one, one - (six - one) / 5.0 - assign);
    println!(
        "\n{POINTS} vectors of {DIM}, {CENTROIDS} centroids, {threads} thread(s)\n\n| | s | × floor |\n|---|---:|---:|\n\
         | floor of an assignment: multiply-adds in registers | {floor:.2} | 1 |\n| assignment | {assign:.2} | {:.2} |\n\
         | seeding by k-means++ | {seeding:.2} | {:.2} |\n| five iterations | {five:.2} | {:.2} |",
        assign / floor,
        seeding / floor,
        five / (5.0 * floor)
    );
    if threads == 1 {
        let config = PolarConfig::default();
        let codec = PolarCodec::new(config).expect("a code book");
        let few = 1 << 16;
        let floor = least(&mut || floors::fma_on_all_threads(2.0 * (few * DIM) as f64 * 16384.0));
        let nearest = least(&mut || codec.encode_all(&points[..few * DIM], &mut found[..few]));
        println!("| nearest of 2^14 directions, {few} vectors | {nearest:.2} | {:.2} |", nearest / floor);
    }
}
