//! How close does decoding come to reading the codes and writing f32?

use leanbits_benches::floors::{aligned, widen};
use leanbits_benches::{Case, interleaved, weights};
use quant_core::{Format, PackedTensor, Shaped};

fn main() {
    let names = std::env::var("FORMATS").unwrap_or_else(|_| "int8,int8-g32,int8-g128,fp8-e4m3,fp8-e5m2,f16,bf16,mxfp8-e4m3,mxint8,mxfp6-e2m3,mxfp4,nvfp4,nvint4,int4-g32,int4-g128,int4-g128-asym,nf4,int8-asym".into());
    for (rows, columns, times) in [(4096, 4096, 1), (32, 4096, 100)] {
        let x = weights(rows * columns);
        let n = x.len();
        let tensor = Shaped::new(&x, &[rows, columns]).expect("the shape fits");
        let codes = vec![1_u8; 2 * n];
        let stream = times == 1;
        let mut buffers: Vec<Vec<f32>> = vec![vec![1.0; n + 16]; 1];
        let buffer = std::cell::RefCell::new(&mut buffers[0]);
        let mut cases = vec![
            Case::new("widen 16", n * times, || for _ in 0..times { widen::<16>(&codes, aligned(&mut buffer.borrow_mut(), n), stream) }),
            Case::new("widen 8", n * times, || for _ in 0..times { widen::<8>(&codes[..n], aligned(&mut buffer.borrow_mut(), n), stream) }),
            Case::new("widen 4", n * times, || for _ in 0..times { widen::<4>(&codes[..n / 2], aligned(&mut buffer.borrow_mut(), n), stream) }),
        ];
        let mut bits = vec![16, 8, 4];
        for name in names.split(',') {
            let Ok(format) = name.parse::<Format>() else { println!("unknown {name}"); continue };
            let packed = PackedTensor::encode(format, &tensor).expect("finite values");
            bits.push(format.code_bits());
            let buffer = &buffer;
            cases.push(Case::new(name, n * times, move || for _ in 0..times { packed.decode_into(aligned(&mut buffer.borrow_mut(), n)).expect("fits") }));
        }
        let rounds = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(9);
        let speeds = interleaved(&mut cases, rounds);
        println!("{rows} x {columns}");
        for (i, case) in cases.iter().enumerate() {
            let floor = match bits[i] { 16 => speeds[0], 8 | 6 => speeds[1], _ => speeds[2] };
            println!("{:16} {:6.2} GB/s  {:.2}", case.name, speeds[i], speeds[i] / floor);
        }
    }
}
