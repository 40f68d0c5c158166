//! How close does encoding come to reading the values and writing so many bits?
//!
//! `cargo bench --workspace --bench encode` runs criterion on every format and then prints a
//! table beside the floors and peers; `-- --table` prints the table alone.

use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ8_0};
use candle_core::quantized::{GgmlDType, GgmlType};
use criterion::{Criterion, Throughput};
use float8::{F8E4M3, F8E5M2};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use leanbits_benches::floors::{aligned, narrow4, narrow8, narrow16, read};
use leanbits_benches::{Case, FORMATS, on_one_thread, print_table, weights};
use quant_core::{EncodeOptions, Format, PackedTensor, Shaped};
use std::hint::black_box;
use std::time::Duration;

const COLUMNS: usize = 4096;
/// 64 MiB of f32: more than the caches hold.
const MANY_ROWS: usize = 4096;
/// 512 KiB of f32: they stay in the second-level cache, and what is left is computation.
const FEW_ROWS: usize = 32;

fn main() {
    // Cargo says when it benchmarks; as a test there is nothing to check here.
    if !std::env::args().any(|argument| argument == "--bench") || !on_one_thread() {
        return;
    }
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("no pool was started before");
    let x = weights(MANY_ROWS * COLUMNS);
    if !std::env::args().any(|argument| argument == "--table") {
        criterion(&x);
    }
    table(&x, "Encode, 64 MiB of f32, one thread, GB/s of f32 read", 1);
    table(&x[..FEW_ROWS * COLUMNS], "Encode, 512 KiB of f32, one thread, GB/s of f32 read", 64);
}

fn format(name: &str) -> Format {
    name.parse().expect("the table names formats that exist")
}

fn criterion(x: &[f32]) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    let tensor = Shaped::new(x, &[MANY_ROWS, COLUMNS]).expect("the shape fits");
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Bytes(size_of_val(x) as u64));
    for (name, ..) in FORMATS {
        let mut packed = PackedTensor::encode(format(name), &tensor).expect("finite values");
        group.bench_function(*name, |bencher| {
            bencher.iter(|| packed.encode_again(&tensor, EncodeOptions::default()).expect("finite values"));
        });
    }
    group.finish();
    criterion.final_summary();
}

/// Each run encodes `times` times. A tensor scale is that of the first encoding: it is given.
fn table(x: &[f32], title: &str, times: usize) {
    let n = x.len();
    let tensor = Shaped::new(x, &[n / COLUMNS, COLUMNS]).expect("the shape fits");
    let (mut b16, mut b8, mut b4) = (vec![1_u8; 2 * n + 64], vec![1_u8; n + 64], vec![1_u8; n / 2 + 64]);
    let (mut q8, mut q4) = (vec![BlockQ8_0::zeros(); n / 32], vec![BlockQ4_0::zeros(); n / 32]);
    let (mut halves, mut brains) = (vec![f16::ONE; n], vec![bf16::ONE; n]);
    let (mut e4m3, mut e5m2) = (vec![F8E4M3::ONE; n], vec![F8E5M2::ONE; n]);
    assert_eq!(BlockQ8_0::DTYPE, GgmlDType::Q8_0, "the peer of int8-g32");
    let again = |encode: &mut dyn FnMut()| (0..times).for_each(|_| encode());
    let total = n * times;
    let mut cases = vec![
        Case::floor("read", 0, total, || {
            again(&mut || {
                black_box(read(x));
            });
        }),
        Case::floor("narrow to 16 bits", 16, total, || again(&mut || narrow16(x, aligned(&mut b16, 2 * n)))),
        Case::floor("narrow to 8 bits", 8, total, || again(&mut || narrow8(x, aligned(&mut b8, n)))),
        Case::floor("narrow to 4 bits", 4, total, || again(&mut || narrow4(x, aligned(&mut b4, n / 2)))),
        Case::peer("candle Q8_0", "int8-g32", total, || again(&mut || BlockQ8_0::from_float(x, &mut q8))),
        Case::peer("candle Q4_0", "int4-g32", total, || again(&mut || BlockQ4_0::from_float(x, &mut q4))),
        Case::peer("half f16", "f16", total, || again(&mut || halves.convert_from_f32_slice(x))),
        Case::peer("half bf16", "bf16", total, || again(&mut || brains.convert_from_f32_slice(x))),
        Case::peer("float8 E4M3", "fp8-e4m3-cast", total, || {
            again(&mut || e4m3.iter_mut().zip(x).for_each(|(out, &x)| *out = F8E4M3::from_f32(x)));
        }),
        Case::peer("float8 E5M2", "fp8-e5m2-cast", total, || {
            again(&mut || e5m2.iter_mut().zip(x).for_each(|(out, &x)| *out = F8E5M2::from_f32(x)));
        }),
    ];
    for &(name, floor) in FORMATS {
        let mut packed = PackedTensor::encode(format(name), &tensor).expect("finite values");
        let (tensor, again) = (&tensor, &again);
        cases.push(Case::ours(name, floor, total, move || {
            again(&mut || packed.encode_again(tensor, EncodeOptions::default()).expect("finite values"));
        }));
    }
    print_table(title, &mut cases, 15);
}
