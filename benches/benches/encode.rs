//! How close does encoding come to reading the values and writing so many bits?

use leanbits_benches::floors::{aligned, narrow4, narrow8, narrow16, read};
use leanbits_benches::{Case, interleaved, weights};
use quant_core::{EncodeOptions, Format, PackedTensor, Shaped};


#[allow(non_snake_case)]
fn main() {
    let ROWS: usize = std::env::var("ROWS").ok().and_then(|r| r.parse().ok()).unwrap_or(4096); let COLUMNS = 4096;
    let x = weights(ROWS * COLUMNS);
    let n = x.len();
    let (mut b8, mut b4, mut b16) = (vec![1_u8; n + 64], vec![1_u8; n / 2 + 64], vec![1_u8; 2 * n + 64]);
    let names = std::env::var("FORMATS").unwrap_or_else(|_| "int8,int8-g32,int8-g128,fp8-e4m3,fp8-e5m2,fp8-e4m3-cast,f16,bf16,mxfp8-e4m3,mxint8,mxfp6-e2m3,mxfp4,nvfp4,nvint4,int4-g32,int4-g128,int4-g128-asym,nf4,af4,int8-asym".into());
    let tensor = Shaped::new(&x, &[ROWS, COLUMNS]).expect("the shape fits");
    let mut cases = vec![
        Case::new("read", n, || { std::hint::black_box(read(&x)); }),
        Case::new("narrow 16", n, || narrow16(&x, aligned(&mut b16, 2 * n))),
        Case::new("narrow 8", n, || narrow8(&x, aligned(&mut b8, n))),
        Case::new("narrow 4", n, || narrow4(&x, aligned(&mut b4, n / 2))),
    ];
    let mut bits = vec![0, 16, 8, 4];
    for name in names.split(',') {
        let Ok(format) = name.parse::<Format>() else { println!("unknown {name}"); continue };
        let mut packed = PackedTensor::encode(format, &tensor).expect("finite values");
        bits.push(format.code_bits());
        let tensor = &tensor;
        cases.push(Case::new(name, n, move || packed.encode_again(tensor, EncodeOptions::default()).expect("finite")));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    let _ = pool;
    let rounds = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(9);
    let speeds = interleaved(&mut cases, rounds);
    for (i, case) in cases.iter().enumerate() {
        let floor = match bits[i] { 16 => speeds[1], 8 | 6 => speeds[2], 0 => speeds[0], _ => speeds[3] };
        println!("{:16} {:6.2} GB/s  {:.2}", case.name, speeds[i], speeds[i] / floor);
    }
}
