//! Expected errors on random data: a wrong constant moves these figures, a right one does not.

use quant_core::{Format, PackedTensor, Shaped};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const ROWS: usize = 256;
const COLUMNS: usize = 4096;

/// Uniform in (0, 1].
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
}

#[expect(clippy::cast_possible_truncation, reason = "samples are f32")]
fn gaussian() -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let pair = |_| {
        let (radius, angle) = ((-2.0 * uniform(&mut rng).ln()).sqrt(), std::f64::consts::TAU * uniform(&mut rng));
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    };
    (0..ROWS * COLUMNS / 2).flat_map(pair).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "samples are f32")]
fn laplace() -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let one = |_| {
        let magnitude = -uniform(&mut rng).ln();
        (if rng.next_u32() & 1 == 0 { magnitude } else { -magnitude }) as f32
    };
    (0..ROWS * COLUMNS).map(one).collect()
}

/// `‖x − x̂‖ / ‖x‖`.
fn relative_error(name: &str, values: &[f32]) -> f64 {
    let format: Format = name.parse().unwrap();
    let packed = PackedTensor::encode(format, &Shaped::new(values, &[ROWS, COLUMNS]).unwrap()).unwrap();
    let squares = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = packed.decode().iter().zip(values).map(|(y, &x)| squares(x - y)).sum();
    (error / values.iter().map(|&x| squares(x)).sum::<f64>()).sqrt()
}

#[test]
fn errors_on_gaussian_and_laplace_values_are_the_expected_ones() {
    let (normal, double) = (gaussian(), laplace());
    for (name, on_normal, on_double) in [
        ("int8-g128-f32", 0.006_47, 0.008_92),
        ("int6-g128-f32", 0.026_52, 0.036_50),
        ("int5-g128-f32", 0.054_78, 0.075_28),
        ("int4-g32-f32", 0.097_0, 0.121_0),
        ("int4-g64-f32", 0.107_7, 0.140_5),
        ("int4-g128-f32", 0.117_4, 0.159_9),
        ("int4-asym-g32-f32", 0.080_8, 0.094_3),
        ("int4-asym-g64-f32", 0.091_1, 0.112_3),
        ("int4-asym-g128-f32", 0.100_7, 0.130_3),
        ("int4-min-g128-f32", 0.099_8, 0.130_2),
        ("int3-asym-g128-f32", 0.215_7, 0.272_6),
        ("int2-asym-g32-f32", 0.406_2, 0.433_6),
        ("int2-asym-g128-f32", 0.503_4, 0.566_9),
        ("fp8-e4m3-tensor", 0.026_47, 0.026_50),
        ("fp8-e5m2-tensor", 0.052_72, 0.052_75),
        ("mxfp8-e4m3", 0.029_39, 0.031_64),
        ("mxfp8-e5m2", 0.054_01, 0.054_84),
        ("mxfp6-e2m3", 0.028_38, 0.030_60),
        ("mxfp6-e3m2", 0.054_01, 0.054_84),
        ("mxfp4", 0.115_1, 0.126_8),
        ("mxint8", 0.008_25, 0.010_00),
        ("nvfp4", 0.095_2, 0.092_7),
        ("nf4", 0.092_0, 0.103_5),
    ] {
        let (got_normal, got_double) = (relative_error(name, &normal), relative_error(name, &double));
        println!("{name:20} {got_normal:.5} {on_normal:.5}  {got_double:.5} {on_double:.5}");
        assert!((got_normal / on_normal - 1.0).abs() < 0.01, "{name}: {got_normal}, expected {on_normal}");
        assert!((got_double / on_double - 1.0).abs() < 0.03, "{name}: {got_double}, expected {on_double} (Laplace)");
    }
}

#[test]
fn decibels_on_gaussian_values_are_the_tabulated_ones() {
    let normal = gaussian();
    let mut misses = Vec::new();
    for (name, decibels) in [
        ("mxint8-rceil", 41.62),
        ("mxint6-rceil", 29.42),
        ("mxint4-rceil", 16.83),
        ("mxfp8-e4m3-rceil", 31.52),
        ("mxfp8-e5m2-rceil", 25.54),
        ("mxfp6-e2m3-rceil", 30.96),
        ("mxfp6-e3m2-rceil", 25.54),
        ("mxfp4-rceil", 18.73),
        ("mxint8", 41.67),
        ("mxint6", 29.62),
        ("mxint4", 17.56),
        ("mxfp8-e4m3", 30.64),
        ("mxfp8-e5m2", 25.35),
        ("mxfp6-e2m3", 30.94),
        ("mxfp6-e3m2", 25.35),
        ("mxfp4", 18.77),
        ("mxfp8-e4m3-even", 31.17),
        ("mxfp8-e5m2-even", 25.54),
        ("mxfp6-e2m3-even", 30.99),
        ("mxfp6-e3m2-even", 25.54),
        ("mxfp4-even", 19.01),
        ("nvint4", 21.27),
        ("nvfp4", 20.43),
        ("int8-g32-f32", 45.44),
        ("int8-g64-f32", 44.55),
        ("int8-g128-f32", 43.81),
        ("int6-g64-f32", 32.30),
        ("int4-g32-f32", 20.27),
        ("int4-g64-f32", 19.37),
        ("int4-g128-f32", 18.63),
        ("int3-g32-f32", 12.90),
        ("int3-g128-f32", 11.27),
        ("int2-g32-f32", 3.64),
        ("int8-full-g32-f32", 45.07),
        ("int6-full-g64-f32", 32.23),
        ("int4-full-g32-f32", 20.47),
        ("int4-full-g128-f32", 19.13),
        ("int3-gptq-g32-f32", 13.85),
        ("int2-gptq-g64-f32", 5.84),
        ("int8-asym-g32-f32", 46.46),
        ("int6-asym-g64-f32", 33.28),
        ("int4-asym-g32-f32", 21.86),
        ("int4-asym-g128-f32", 19.96),
        ("int3-asym-g32-f32", 15.23),
        ("int2-asym-g128-f32", 5.98),
        ("int8-min-g32-f32", 46.74),
        ("int6-min-g64-f32", 33.42),
        ("int4-min-g32-f32", 22.14),
        ("int4-min-g128-f32", 20.03),
        ("int3-min-g32-f32", 15.51),
        ("int2-min-g32-f32", 8.11),
        ("int2-min-g128-f32", 6.02),
        ("nf4-g32", 21.18),
        ("nf4", 20.73),
        ("nf4-g128", 20.40),
        ("af4-g32", 20.85),
        ("af4", 20.39),
        ("af4-g128", 20.05),
        ("bnbfp4-g32", 18.86),
        ("bnbfp4", 18.28),
        ("bnbfp4-g128", 17.83),
        ("ternary", 5.79),
        ("ternary-min-g32-f32", 4.62),
        ("ternary-min-g64-f32", 3.54),
        ("ternary-min-g128-f32", 2.76),
        ("sefp8", 47.03),
        ("sefp7", 41.00),
        ("sefp5", 28.98),
        ("sefp3", 16.93),
        ("sefp5-g16", 30.73),
        ("sefp5-g128", 28.79),
    ] {
        let got = -20.0 * relative_error(name, &normal).log10();
        println!("{name:22} {got:.3} {decibels:.2}");
        if (got - decibels).abs() > 0.05 {
            misses.push(format!("{name}: {got:.3} dB, expected {decibels}"));
        }
    }
    assert!(misses.is_empty(), "{misses:#?}");
}

#[test]
fn decibels_on_laplace_values_are_the_tabulated_ones() {
    let double = laplace();
    for (name, decibels) in [
        ("mxint8-rceil", 39.93),
        ("mxfp8-rceil", 31.54),
        ("mxint4-rceil", 14.91),
        ("mxfp4-rceil", 17.57),
        ("nvint4", 19.78),
        ("nvfp4", 20.65),
        ("nf4-g32", 20.60),
        ("nf4", 19.69),
        ("nf4-g128", 18.89),
        ("int4-asym-g64-f32", 18.99),
    ] {
        let got = -20.0 * relative_error(name, &double).log10();
        println!("{name:22} {got:.3} {decibels:.2}");
        assert!((got - decibels).abs() < 0.08, "{name}: {got:.3} dB, expected {decibels}");
    }
}

#[test]
fn ternary_codes_are_zero_for_a_third_of_gaussian_values() {
    let normal = gaussian();
    for (name, zeros) in [("ternary", 0.310), ("ternary-max-g256", 0.87)] {
        let packed =
            PackedTensor::encode(name.parse().unwrap(), &Shaped::new(&normal, &[ROWS, COLUMNS]).unwrap()).unwrap();
        let share = packed.decode().iter().filter(|x| **x == 0.0).count() as f64 / normal.len() as f64;
        assert!((share - zeros).abs() < 0.01, "{name}: {share}");
    }
}

#[test]
fn one_more_bit_gains_six_decibels() {
    let normal = gaussian();
    for bits in 4..8 {
        let gain = relative_error(&format!("int{bits}-g128-f32"), &normal)
            / relative_error(&format!("int{}-g128-f32", bits + 1), &normal);
        // The steps are amax/7, amax/15, …, not exact halves of each other.
        let steps = f64::from((1 << bits) - 1) / f64::from((1 << (bits - 1)) - 1);
        assert!((gain / steps - 1.0).abs() < 0.005, "{bits} to {}: {gain}", bits + 1);
    }
}

#[test]
fn smaller_groups_and_zero_points_never_cost_accuracy() {
    let normal = gaussian();
    // Not for floats under a power of two: MXFP4 is at its best on groups of 128 of a Gaussian.
    for stem in ["int4", "int4-asym", "int4-min", "nvint4", "nf4", "mxint8", "sefp5"] {
        let errors = [16, 32, 64, 128, 256].map(|group| relative_error(&format!("{stem}-g{group}"), &normal));
        assert!(errors.is_sorted(), "{stem}: {errors:?}");
    }
    let shifted: Vec<f32> = normal.iter().map(|x| x + 2.0).collect();
    let (sym, asym, min) = ("int4-g64", "int4-asym-g64", "int4-min-g64");
    let [sym, asym, min] = [sym, asym, min].map(|name| relative_error(name, &shifted));
    assert!(min < asym && asym < sym, "{sym} {asym} {min}");
}
