//! Prints the error of each code book on Gaussian vectors: the table of the book's page on vector quantization.
//!
//! ```text
//! cargo run --release -p vector-quant --example gaussian_table
//! ```

#![expect(clippy::cast_possible_truncation, reason = "data of tests")]

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use vector_quant::{
    BookType, E8P, Error, Init, KMeans, LearnedBook, Magnitude, PolarCodec, PolarConfig, Residual, VectorCodec,
    Weights, kmeans,
};

fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    (0..count).map(|_| ((-2.0 * (1.0 - unit()).ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()) as f32).collect()
}

/// Mean squared error of a value, and mean cosine between vectors of 8 and their codes.
fn measure(codec: &dyn VectorCodec, x: &[f32], scale: f32) -> (f64, f64) {
    let dim = codec.dim();
    let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
    let mut codes = vec![0; x.len() / dim];
    codec.encode_all(&scaled, &mut codes);
    let mut back = vec![0.0; x.len()];
    for (out, code) in back.chunks_exact_mut(dim).zip(codes) {
        codec.decode(code, out);
        out.iter_mut().for_each(|v| *v /= scale);
    }
    let mse = x.iter().zip(&back).map(|(x, b)| f64::from(x - b).powi(2)).sum::<f64>() / x.len() as f64;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let pairs = x.chunks_exact(8).zip(back.chunks_exact(8));
    let cosine = pairs.map(|(x, b)| dot(x, b) / (dot(x, x) * dot(b, b)).sqrt()).sum::<f64>() / (x.len() / 8) as f64;
    (mse, cosine)
}

fn learned(dim: usize, centroids: usize) -> Result<LearnedBook, Error> {
    let training = gaussian(dim * 262_144, 1);
    let config = KMeans { centroids, tolerance: 1e-6, init: Init::PlusPlus, ..KMeans::default() };
    LearnedBook::new(&kmeans(&training, dim, Weights::Uniform, &config)?.centroids, dim, BookType::F16)
}

fn main() -> Result<(), Error> {
    let x = gaussian(8 * 20_000, 2);
    let polar = |direction_bits, magnitude_bits, magnitude, max_squared_norm| {
        PolarCodec::new(PolarConfig { direction_bits, magnitude_bits, magnitude, max_squared_norm })
    };
    println!("| code book | bits a value | MSE | mean cosine |\n|---|---:|---:|---:|");
    let row = |name: &str, codec: &dyn VectorCodec, scale: f32| {
        let (mse, cosine) = measure(codec, &x, scale);
        println!("| {name} | {:.2} | {mse:.4} | {cosine:.4} |", f64::from(codec.bits()) / codec.dim() as f64);
    };
    row("scalar, 4 values", &learned(1, 4)?, 1.0);
    row("k-means, 2 values", &learned(2, 16)?, 1.0);
    row("k-means, 4 values", &learned(4, 256)?, 1.0);
    row("PCDVQ 14+2 (paper)", &polar(14, 2, Magnitude::Independent, 16)?, 1.0);
    row("PCDVQ 14+2, projected length", &polar(14, 2, Magnitude::Projected, 16)?, 1.0);
    row("PCDVQ 15+1, projected length", &polar(15, 1, Magnitude::Projected, 16)?, 1.0);
    row("E8P", &E8P, E8P::GAUSSIAN_SCALE);
    row("PCDVQ 16+2 (paper)", &polar(16, 2, Magnitude::Independent, 16)?, 1.0);
    row("PCDVQ 16+2, projected length", &polar(16, 2, Magnitude::Projected, 16)?, 1.0);
    row("E8P twice", &Residual { first: E8P, second: E8P, gain: 3.45 }, 1.0);
    Ok(())
}
