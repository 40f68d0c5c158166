//! How close do products with packed weights come to reading the weights, and to the machine's multiplications?
//!
//! `cargo bench --workspace --bench products` runs criterion and then prints tables beside the floors and
//! peers; `-- --table` prints the tables alone.

use candle_core::quantized::k_quants::{self, BlockQ4_0, BlockQ4K, BlockQ8_0, GgmlType};
use criterion::{Criterion, Throughput};
use leanbits_benches::{Case, floors, on_one_thread, print_table_in, weights};
use ndarray::ArrayView2;
use quant_core::{Activations, Format, Linear, PackedTensor, PreparedLinear, Shaped};
use std::cell::RefCell;
use std::hint::black_box;
use std::time::Duration;

const N: usize = 4096;
/// Copies of a layer, so that weights come from memory: at least so many bytes.
const STREAM: usize = 160 << 20;

/// Formats of the tables and whether their codes are integers.
const FORMATS: &[(&str, bool)] = &[
    ("int4-g128", true),
    ("int4-g128-asym", true),
    ("int4-g32", true),
    ("int8", true),
    ("int8-g32", true),
    ("int3-g128", true),
    ("int2-g128", true),
    ("mxfp4", true),
    ("nvfp4", true),
    ("fp8-e4m3", false),
    ("nf4", false),
];

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") || !on_one_thread() {
        return;
    }
    // Work runs on the only thread of the pool, whose time is measured.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(|| {
        let w = weights(N * N);
        if !std::env::args().any(|argument| argument == "--table") {
            criterion(&w);
        }
        vector(&w);
        for rows in [8, 64, 512] {
            matrix(&w, rows);
        }
    });
}

fn encode(w: &[f32], name: &str) -> PackedTensor<'static> {
    let format: Format = name.parse().expect("the table names formats that exist");
    PackedTensor::encode(format, &Shaped::new(w, &[N, N]).expect("a square")).expect("finite values")
}

fn prepare(w: &[f32], name: &str, activations: Activations) -> PreparedLinear {
    PreparedLinear::new(&encode(w, name)).and_then(|p| p.with_activations(activations)).expect("a format with products")
}

fn criterion(w: &[f32]) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    for rows in [1, 64] {
        let x = weights(rows * N);
        let mut y = vec![0.0; rows * N];
        let mut group = criterion.benchmark_group(format!("{N} × {N}, {rows} rows"));
        group.throughput(Throughput::Elements((rows * N * N) as u64));
        for &(name, integers) in FORMATS {
            let mut one = |kind: &str, activations| {
                let layer = prepare(w, name, activations);
                group.bench_function(format!("{name}, {kind}"), |bencher| {
                    bencher.iter(|| layer.matmul(&x, &mut y).expect("the slices fit"));
                });
            };
            one("f32 inputs", Activations::Float);
            if integers {
                one("int8 inputs", Activations::Int8Row);
            }
        }
        group.finish();
    }
    criterion.final_summary();
}

#[expect(clippy::cast_precision_loss, reason = "sizes of benchmarks")]
fn billions(count: usize) -> f64 {
    count as f64 / 1e9
}

/// One row: every case reads copies of its layer that together exceed the caches.
fn vector(w: &[f32]) {
    let x = weights(N);
    let y = RefCell::new(vec![0.0_f32; N]);
    let floor = vec![1.0_f32; STREAM / 4];
    let mut cases = vec![Case::floor("read", 0, STREAM / 4, || {
        black_box(floors::read(&floor));
    })];
    cases.extend([peer::<BlockQ8_0>("candle Q8_0", "int8-g32, int8 inputs", w, &x, &y)]);
    cases.extend([peer::<BlockQ4_0>("candle Q4_0", "int4-g32, int8 inputs", w, &x, &y)]);
    cases.extend([peer::<BlockQ4K>("candle Q4_K", "int4-g128, int8 inputs", w, &x, &y)]);
    for &(name, integers) in FORMATS {
        for (kind, activations) in [("f32 inputs", Activations::Float), ("int8 inputs", Activations::Int8Row)] {
            if activations == Activations::Int8Row && !integers {
                continue;
            }
            let layer = prepare(w, name, activations);
            let bytes = usize::try_from(layer.footprint().total_bytes()).expect("it is in memory");
            let layers = vec![layer; STREAM / bytes];
            let label: &'static str = format!("{name}, {kind}").leak();
            let (x, y) = (&x, &y);
            let total = layers.len() * bytes;
            cases.push(Case::ours(label, 0, total / 4, move || {
                for layer in &layers {
                    layer.matmul(x, &mut y.borrow_mut()).expect("the slices fit");
                }
            }));
        }
    }
    print_table_in(
        "GB/s",
        &format!("One row × {N} × {N} from memory, one thread, GB/s of stored weights"),
        &mut cases,
        7,
    );
}

fn peer<'a, T: GgmlType + Clone + 'a>(
    name: &'static str,
    of: &'static str,
    w: &[f32],
    x: &'a [f32],
    y: &'a RefCell<Vec<f32>>,
) -> Case<'a> {
    let mut blocks = vec![T::zeros(); N * N / T::BLCK_SIZE];
    T::from_float(w, &mut blocks);
    let bytes = size_of_val(blocks.as_slice());
    let layers = vec![blocks; STREAM / bytes];
    let rows = x.len() / N;
    Case::peer(name, of, layers.len() * bytes / 4, move || {
        for layer in &layers {
            k_quants::matmul((rows, N, N), x, layer, &mut y.borrow_mut()).expect("whole blocks");
        }
    })
}

/// Many rows; one layer.
fn matrix(w: &[f32], rows: usize) {
    let operations = 2 * rows * N * N;
    let billions = billions(operations);
    let x = weights(rows * N);
    let y = RefCell::new(vec![0.0_f32; rows * N]);
    let (mut q8, mut q4) = (vec![BlockQ8_0::zeros(); N * N / 32], vec![BlockQ4K::zeros(); N * N / 256]);
    BlockQ8_0::from_float(w, &mut q8);
    BlockQ4K::from_float(w, &mut q4);
    let mut cases = vec![
        Case::floor("products of bytes in registers", 8, 1, || floors::byte_products(billions * 1e9)),
        Case::floor("multiply-adds in registers", 32, 1, || floors::multiply_adds(billions * 1e9)),
        Case::peer("faer f32", "int4-g128, f32 inputs", 1, || {
            let x = ArrayView2::from_shape((rows, N), &x).expect("rows");
            let w = ArrayView2::from_shape((N, N), w).expect("a square");
            black_box(quant_linalg::matmul(x, w.t()));
        }),
    ];
    cases.push(Case::peer("candle Q8_0", "int8-g32, int8 inputs", 1, || {
        k_quants::matmul((rows, N, N), &x, &q8, &mut y.borrow_mut()).expect("whole blocks");
    }));
    cases.push(Case::peer("candle Q4_K", "int4-g128, int8 inputs", 1, || {
        k_quants::matmul((rows, N, N), &x, &q4, &mut y.borrow_mut()).expect("whole blocks");
    }));
    for &(name, integers) in FORMATS {
        let kinds = [
            ("f32 inputs", Activations::Float, 32),
            ("int8 inputs", Activations::Int8Row, 8),
            ("int8 inputs a group", Activations::Int8Group, 8),
        ];
        for (kind, activations, floor) in kinds {
            if floor == 8 && !integers {
                continue;
            }
            let layer = prepare(w, name, activations);
            let label: &'static str = format!("{name}, {kind}").leak();
            let (x, y) = (&x, &y);
            cases.push(Case::ours(label, floor, 1, move || {
                layer.matmul(x, &mut y.borrow_mut()).expect("the slices fit");
            }));
        }
    }
    let mut cases: Vec<Case<'_>> = cases.into_iter().map(|case| case.counted_as(billions)).collect();
    let title = format!("{rows} rows × {N} × {N}, one thread, GFLOP/s");
    print_table_in("GFLOP/s", &title, &mut cases, if rows > 100 { 3 } else { 7 });
}
