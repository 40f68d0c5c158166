//! Prints the tables of the book's page on low-rank methods: a 128 × 128 Gaussian weight on inputs of four kinds.

use low_rank::{Asvd, Calibration, Error, Method, PlainSvd, Size, Storage, SvdLlm, Truncation, correct};
use ndarray::{Array1, Array2};
use quant_calib::{Needs, Statistics};
use quant_core::{Format, PackedTensor};
use quant_linalg::{gaussian, matmul, random_orthogonal};

const N: usize = 128;
const TOKENS: usize = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let weight = narrow(&gaussian(N, N, 1));
    println!(
        "| inputs | rank | SVD | ASVD α=0.25 | 0.5 | 0.75 | 1 | SVD-LLM |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    );
    for (name, correlated, outliers) in KINDS {
        let statistics = statistics(correlated, outliers)?;
        let calibration = Calibration::from(&statistics);
        for rank in [16, 32, 48] {
            let truncation = Truncation { size: Size::Rank(rank), storage: Storage::F32, ..Truncation::default() };
            print!("| {name} | {rank} |");
            print_error(&PlainSvd { truncation: truncation.clone() }, &weight, &calibration)?;
            for alpha in [0.25, 0.5, 0.75, 1.0] {
                print_error(&Asvd { alpha, truncation: truncation.clone(), ..Asvd::default() }, &weight, &calibration)?;
            }
            print_error(&SvdLlm { truncation, ..SvdLlm::default() }, &weight, &calibration)?;
            println!();
        }
    }

    println!("\n| stored | bytes | isotropic | correlated, 6 channels × 30 |\n|---|---:|---:|---:|");
    let [even, uneven] = [statistics(false, false)?, statistics(true, true)?];
    let calibrations = [Calibration::from(&even), Calibration::from(&uneven)];
    for format in ["int3-g32", "int4-g32", "int5-g32"] {
        let packed = PackedTensor::encode(format.parse()?, &weight)?;
        let [a, b] = calibrations.map(|calibration| quantized(&weight, &packed, &calibration));
        println!("| `{format}` | {} | {:.4} | {:.4} |", packed.footprint().total_bytes(), a?, b?);
    }
    for (rank, storage) in [(16, "f16"), (32, "int8-g32"), (51, "int5-g32")] {
        let truncation = Truncation { size: Size::Rank(rank), storage: storage.parse()?, ..Truncation::default() };
        let method = SvdLlm { truncation, ..SvdLlm::default() };
        let [a, b] = calibrations.map(|calibration| method.compress(&weight, &calibration));
        let (a, b) = (a?.report, b?.report);
        println!("| rank {rank} in `{storage}` | {} | {} | {} |", a.bytes, text(a.output_error), text(b.output_error));
    }
    for (format, rank) in [("int3-g32", 4), ("int3-g32", 8), ("int4-g32", 8)] {
        let packed = PackedTensor::encode(format.parse::<Format>()?, &weight)?;
        let truncation = Truncation { size: Size::Rank(rank), ..Truncation::default() };
        let method = SvdLlm { truncation, ..SvdLlm::default() };
        let [a, b] = calibrations.map(|calibration| correct(&weight, packed.clone(), &method, &calibration));
        let (a, b) = (a?.report, b?.report);
        let (left, right) = (text(a.output_error), text(b.output_error));
        println!("| `{format}` + rank {rank} in `f16` | {} | {left} | {right} |", a.bytes);
    }
    Ok(())
}

const KINDS: [(&str, bool, bool); 4] = [
    ("isotropic", false, false),
    ("6 channels × 30", false, true),
    ("correlated", true, false),
    ("correlated, 6 channels × 30", true, true),
];

/// Inputs with the eigenvalues `e^(-i/24)` in a random basis, or six channels made 30 times as large, or both.
fn statistics(correlated: bool, outliers: bool) -> Result<Statistics, Box<dyn std::error::Error>> {
    let mut x = gaussian(TOKENS, N, 2);
    if correlated {
        let deviations = Array1::from_shape_fn(N, |i| (-(i as f64) / 48.0).exp());
        x = matmul((x * &deviations).view(), random_orthogonal(N, 77)?.view());
    }
    if outliers {
        for channel in 0..6 {
            x.column_mut(channel * N / 6).mapv_inplace(|value| 30.0 * value);
        }
    }
    let mut statistics = Statistics::new(N, &Needs { channels: true, ..Needs::gram() })?;
    statistics.add(&narrow(&x).into_raw_vec_and_offset().0, None)?;
    Ok(statistics)
}

fn print_error(method: &impl Method, weight: &Array2<f32>, calibration: &Calibration<'_>) -> Result<(), Error> {
    let error = method.compress(weight, calibration)?.report.output_error;
    print!(" {} |", text(error));
    Ok(())
}

/// The output error of a quantized weight is that before a correction.
fn quantized(
    weight: &Array2<f32>,
    packed: &PackedTensor<'static>,
    calibration: &Calibration<'_>,
) -> Result<f64, Error> {
    let truncation = Truncation { size: Size::Rank(1), ..Truncation::default() };
    let corrected = correct(weight, packed.clone(), &PlainSvd { truncation }, calibration)?;
    Ok(corrected.report.base_output_error.unwrap_or(f64::NAN))
}

fn text(error: Option<f64>) -> String {
    error.map_or_else(|| "–".into(), |error| format!("{error:.4}"))
}

#[expect(clippy::cast_possible_truncation, reason = "narrowing is what is wanted")]
fn narrow(a: &Array2<f64>) -> Array2<f32> {
    a.mapv(|value| value as f32)
}
