//! The number of threads changes no byte.

#![cfg(feature = "rayon")]

use quant_core::{Error, Format, Linear, PackedTensor, Shaped};

const ROWS: usize = 301;
const COLUMNS: usize = 520;

fn values() -> Vec<f32> {
    (0..ROWS * COLUMNS).map(|i| ((i * 7919 % 10007) as f32 - 5003.0) / 1024.0 * ((i % 13) as f32)).collect()
}

fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started").install(f)
}

#[test]
fn any_number_of_threads_gives_the_same_bytes_values_and_products() {
    let x = values();
    let input: Vec<f32> = x[..5 * COLUMNS].iter().map(|v| v * 0.37).collect();
    for named in Format::named() {
        let run = |threads| {
            on_threads(threads, || {
                let tensor = Shaped::new(&x, &[ROWS, COLUMNS]).expect("the shape fits");
                let packed = PackedTensor::encode(named.format, &tensor).expect("finite values");
                let mut y = vec![0.0; 5 * ROWS];
                packed.matmul(&input, &mut y).expect("the slices fit");
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                let (values, y) = (bits(&packed.decode()), bits(&y));
                (packed, values, y)
            })
        };
        let one = run(1);
        for threads in [2, 3, 7] {
            assert!(run(threads) == one, "{} with {threads} threads", named.name);
        }
    }
}

#[test]
fn the_first_bad_element_is_named_for_any_number_of_threads() {
    let mut x = values();
    for position in [ROWS * COLUMNS - 1, 200 * COLUMNS + 3, 40 * COLUMNS, 7] {
        x[position] = f32::NAN;
        for threads in [1, 2, 3, 7] {
            for format in [Format::INT8, Format::NVFP4, Format::TERNARY] {
                let tensor = Shaped::new(&x, &[ROWS, COLUMNS]).expect("the shape fits");
                let found = on_threads(threads, || PackedTensor::encode(format, &tensor));
                assert!(
                    matches!(found, Err(Error::NonFinite { index, .. }) if index == position),
                    "{format} with {threads} threads: {found:?}"
                );
            }
        }
    }
}
