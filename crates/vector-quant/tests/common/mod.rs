//! Data and measures for the tests of code books.

mod gaussian;

pub(crate) use gaussian::gaussian;
use vector_quant::VectorCodec;

/// Mean squared error when `x` is multiplied by `scale`, coded, and divided again.
pub(crate) fn mse_per_value(codec: &dyn VectorCodec, x: &[f32], scale: f32) -> f64 {
    let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
    let mut codes = vec![0; x.len() / codec.dim()];
    codec.encode_all(&scaled, &mut codes);
    let mut out = vec![0.0; codec.dim()];
    let mut sum = 0.0;
    for (x, code) in x.chunks_exact(codec.dim()).zip(codes) {
        codec.decode(code, &mut out);
        sum += out.iter().zip(x).map(|(o, x)| f64::from(o / scale - x).powi(2)).sum::<f64>();
    }
    sum / x.len() as f64
}
