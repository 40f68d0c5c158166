//! How close does decoding come to reading the codes and writing f32?
//!
//! `cargo bench --workspace --bench decode` runs criterion on every format and then prints
//! tables beside the floors and peers; `-- --table` prints the tables alone.

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ8_0};
use criterion::{Criterion, Throughput};
use float8::{F8E4M3, F8E5M2};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use leanbits_benches::floors::{aligned, widen};
use leanbits_benches::{Case, FORMATS, on_one_thread, print_table, weights};
use quant_core::{Format, PackedTensor, Shaped};
use std::cell::RefCell;
use std::time::Duration;

const COLUMNS: usize = 4096;
/// 64 MiB of f32: more than the caches hold.
const MANY_ROWS: usize = 4096;
/// 512 KiB of f32: they stay in the second-level cache.
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
    table(&x, "Decode, 64 MiB of f32, one thread, GB/s of f32 written", 1);
    table(&x[..FEW_ROWS * COLUMNS], "Decode, 512 KiB of f32, one thread, GB/s of f32 written", 64);
}

fn encode(x: &[f32], name: &str) -> PackedTensor<'static> {
    let format: Format = name.parse().expect("the table names formats that exist");
    let tensor = Shaped::new(x, &[x.len() / COLUMNS, COLUMNS]).expect("the shape fits");
    PackedTensor::encode(format, &tensor).expect("finite values")
}

fn criterion(x: &[f32]) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    let mut out = vec![1.0; x.len()];
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Bytes(size_of_val(x) as u64));
    for (name, ..) in FORMATS {
        let packed = encode(x, name);
        group.bench_function(*name, |bencher| bencher.iter(|| packed.decode_into(&mut out).expect("the output fits")));
    }
    group.finish();
    criterion.final_summary();
}

/// Each run decodes `times` times.
fn table(x: &[f32], title: &str, times: usize) {
    let n = x.len();
    let stream = times == 1;
    let codes = vec![1_u8; 2 * n];
    let buffer = RefCell::new(vec![1.0_f32; n + 16]);
    let into = |decode: &dyn Fn(&mut [f32])| {
        let mut buffer = buffer.borrow_mut();
        let out = aligned(&mut buffer, n);
        for _ in 0..times {
            decode(out);
        }
    };
    let (mut q8, mut q4) = (vec![BlockQ8_0::zeros(); n / 32], vec![BlockQ4_0::zeros(); n / 32]);
    BlockQ8_0::from_float(x, &mut q8);
    BlockQ4_0::from_float(x, &mut q4);
    let (mut halves, mut brains) = (vec![f16::ONE; n], vec![bf16::ONE; n]);
    halves.convert_from_f32_slice(x);
    brains.convert_from_f32_slice(x);
    let e4m3: Vec<F8E4M3> = x.iter().map(|&x| F8E4M3::from_f32(x)).collect();
    let e5m2: Vec<F8E5M2> = x.iter().map(|&x| F8E5M2::from_f32(x)).collect();
    let total = n * times;
    let mut cases = vec![
        Case::floor("widen 16 bits", 16, total, || into(&|out| widen::<16>(&codes, out, stream))),
        Case::floor("widen 8 bits", 8, total, || into(&|out| widen::<8>(&codes[..n], out, stream))),
        Case::floor("widen 4 bits", 4, total, || into(&|out| widen::<4>(&codes[..n / 2], out, stream))),
        Case::peer("candle Q8_0", "int8-g32", total, || into(&|out| BlockQ8_0::to_float(&q8, out))),
        Case::peer("candle Q4_0", "int4-g32", total, || into(&|out| BlockQ4_0::to_float(&q4, out))),
        Case::peer("half f16", "f16", total, || into(&|out| halves.convert_to_f32_slice(out))),
        Case::peer("half bf16", "bf16", total, || into(&|out| brains.convert_to_f32_slice(out))),
        Case::peer("float8 E4M3", "fp8-e4m3-cast", total, || {
            into(&|out| out.iter_mut().zip(&e4m3).for_each(|(out, x)| *out = x.to_f32()));
        }),
        Case::peer("float8 E5M2", "fp8-e5m2-cast", total, || {
            into(&|out| out.iter_mut().zip(&e5m2).for_each(|(out, x)| *out = x.to_f32()));
        }),
    ];
    for &(name, floor) in FORMATS {
        let packed = encode(x, name);
        cases.push(Case::ours(name, floor, total, move || {
            into(&|out| packed.decode_into(out).expect("the output fits"));
        }));
    }
    print_table(title, &mut cases, 15);
}
