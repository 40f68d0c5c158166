//! The code books against closed forms and published constants.

#![expect(clippy::cast_possible_truncation, reason = "data of tests")]

use vector_quant::{
    Directions, E8P, Error, KMeans, Magnitude, PolarCodec, PolarConfig, Residual, VectorCodec, Weights, chi_lloyd_max,
    e8_directions, e8_shell, kmeans,
};

mod common;
use common::{gaussian, mse_per_value};

#[test]
fn shells_of_e8_have_240_sigma3_points() {
    for (norm, points) in [(2, 240), (4, 2160), (6, 6720), (8, 17_520), (10, 30_240), (12, 60_480)] {
        let shell = e8_shell(norm);
        assert_eq!(shell.len(), points, "squared norm {norm}");
        for point in shell.iter().step_by(97) {
            let square: i32 = point.iter().map(|c| i32::from(*c).pow(2)).sum();
            assert_eq!(square, 4 * norm.cast_signed(), "doubled coordinates");
            let sum: i32 = point.iter().map(|c| i32::from(*c)).sum();
            assert_eq!(sum % 4, 0, "the sum of the coordinates is even");
        }
    }
    assert!(e8_shell(3).is_empty(), "E8 is even");
}

#[test]
fn directions_are_primitive_and_symmetric() {
    for (norm, directions) in [(10, 56_640), (12, 117_120)] {
        assert_eq!(e8_directions(norm).len(), directions, "squared norm {norm}");
    }
    let all = e8_directions(6);
    for direction in &all {
        let gcd = direction.iter().fold(0_u8, |g, c| num_gcd(g, c.unsigned_abs()));
        assert_eq!(gcd, 1, "{direction:?}");
        assert!(all.binary_search(&direction.map(|c| -c)).is_ok(), "the opposite of {direction:?}");
    }
}

fn num_gcd(a: u8, b: u8) -> u8 {
    if b == 0 { a } else { num_gcd(b, a % b) }
}

#[test]
fn the_greedy_choice_is_nested_and_covers_more_and_more() {
    let (small, large) = (Directions::greedy(6, 8).unwrap(), Directions::greedy(8, 8).unwrap());
    assert_eq!(small.points(), &large.points()[..64]);
    assert!(large.covering().windows(2).all(|pair| pair[0] <= pair[1]), "distances shrink");
    for unit in large.units() {
        let norm: f32 = unit.iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-6, "{norm}");
    }
    assert!(matches!(Directions::greedy(16, 10), Err(Error::Candidates { available: 56_640, .. })));
}

#[test]
fn the_greedy_choice_is_that_of_the_plain_algorithm() {
    let candidates = e8_directions(4);
    let cosine = |a: &[i8; 8], b: &[i8; 8]| {
        let dot = |a: &[i8; 8], b: &[i8; 8]| a.iter().zip(b).map(|(a, b)| i16::from(*a) * i16::from(*b)).sum::<i16>();
        let inverse = |a: &[i8; 8]| 1.0 / f32::from(dot(a, a)).sqrt();
        f32::from(dot(a, b)) * (inverse(a) * inverse(b))
    };
    let mut chosen = vec![candidates[0]];
    while chosen.len() < 64 {
        let nearest = |c: &[i8; 8]| chosen.iter().map(|d| cosine(c, d)).fold(f32::NEG_INFINITY, f32::max);
        let mut best = (f32::INFINITY, 0);
        for (index, candidate) in candidates.iter().enumerate() {
            let m = nearest(candidate);
            if m < best.0 {
                best = (m, index);
            }
        }
        chosen.push(candidates[best.1]);
    }
    assert_eq!(Directions::greedy(6, 4).unwrap().points(), chosen);
}

#[test]
fn lengths_of_gaussian_vectors_are_quantized_optimally() {
    let close = |found: &[f64], expected: &[f64]| {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-6, "{f} for {e}");
        }
    };
    let none = chi_lloyd_max(8, 0).unwrap();
    close(&none.centers, &[2.741_625]);
    assert!((none.mse - 0.483_494).abs() < 1e-5, "8 − c²");
    let one = chi_lloyd_max(8, 1).unwrap();
    close(&one.centers, &[2.236_016, 3.355_688]);
    assert!((one.mse - 0.173_018).abs() < 1e-5, "{}", one.mse);
    let two = chi_lloyd_max(8, 2).unwrap();
    close(&two.centers, &[1.816_444, 2.496_731, 3.129_415, 3.916_531]);
    close(&two.bounds, &[2.156_588, 2.813_073, 3.522_973]);
    assert!((two.mse - 0.055_170).abs() < 1e-5, "{}", two.mse);
    close(
        &chi_lloyd_max(8, 3).unwrap().centers,
        &[1.471_467, 1.943_098, 2.314_325, 2.654_990, 2.996_294, 3.365_591, 3.805_583, 4.432_098],
    );
    assert!((chi_lloyd_max(8, 4).unwrap().mse - 0.004_381).abs() < 1e-5);
    close(&chi_lloyd_max(4, 2).unwrap().centers, &[1.032_318, 1.675_153, 2.300_022, 3.096_680]);
    close(&chi_lloyd_max(16, 2).unwrap().centers, &[2.964_962, 3.668_486, 4.305_041, 5.083_135]);
    assert!(chi_lloyd_max(0, 2).is_err() && chi_lloyd_max(8, 9).is_err());
}

#[test]
fn e8p_has_65536_distinct_points_of_a_shifted_lattice() {
    assert_eq!(E8P::patterns().len(), 256);
    let short = E8P::patterns().iter().filter(|p| p.iter().map(|c| c * c).sum::<f32>() <= 10.0).count();
    assert_eq!(short, 227);
    let (mut seen, mut energy) = (std::collections::HashSet::new(), 0.0);
    for code in 0..1 << 16 {
        let mut x = [0.0; 8];
        E8P.decode(code, &mut x);
        assert_eq!(E8P.encode(&x), code, "a point is its own nearest");
        energy += x.iter().map(|v| f64::from(v * v)).sum::<f64>();
        let shift = if code & 1 == 0 { 0.25 } else { -0.25 };
        let sum: f32 = x.iter().map(|v| v - shift).sum();
        assert_eq!(sum.rem_euclid(2.0), 0.0, "a point of D8 + ½");
        seen.insert(x.map(f32::to_bits));
    }
    assert_eq!(seen.len(), 1 << 16);
    assert!((energy / 65536.0 - 9.570).abs() < 0.02, "mean squared norm {}", energy / 65536.0);
}

#[test]
fn e8p_finds_the_nearest_of_all_its_points() {
    let mut points = vec![[0.0_f32; 8]; 1 << 16];
    for (code, point) in points.iter_mut().enumerate() {
        E8P.decode(code as u32, point);
    }
    for x in gaussian(8 * 100, 5).chunks_exact(8) {
        let distance = |p: &[f32; 8]| p.iter().zip(x).map(|(p, x)| f64::from(p - x).powi(2)).sum::<f64>();
        let best = points.iter().map(distance).fold(f64::INFINITY, f64::min);
        let found = distance(&points[E8P.encode(x) as usize]);
        assert!(found <= best + 1e-5, "{found} for {best}");
    }
}

#[test]
fn k_means_on_gaussian_values_approaches_lloyd_max() {
    let values = gaussian(1 << 15, 3);
    for (bits, expected) in [(1, 0.363_380), (2, 0.117_482), (3, 0.034_548), (4, 0.009_501)] {
        let config = KMeans { centroids: 1 << bits, tolerance: 1e-6, iterations: 300, ..KMeans::default() };
        let found = kmeans(&values, 1, Weights::Uniform, &config).unwrap();
        let mse = found.distortion / values.len() as f64;
        assert!((mse / expected - 1.0).abs() < 0.03, "{bits} bits: {mse} for {expected}");
    }
}

/// Mean squared errors on N(0, I_8) as the documentation has them, and their order.
#[test]
fn errors_on_gaussian_vectors_are_those_that_were_published() {
    let x = gaussian(8 * 16_000, 11);
    let learned = |dim: usize, centroids: usize| {
        let training = gaussian(dim * 32768, 12);
        let config = KMeans { centroids, iterations: 60, tolerance: 1e-5, ..KMeans::default() };
        let found = kmeans(&training, dim, Weights::Uniform, &config).unwrap();
        vector_quant::LearnedBook::new(&found.centroids, dim, vector_quant::BookType::F16).unwrap()
    };
    let polar = |direction_bits, magnitude_bits, magnitude| {
        PolarCodec::new(PolarConfig { direction_bits, magnitude_bits, magnitude, max_squared_norm: 10 }).unwrap()
    };
    let e8p = mse_per_value(&E8P, &x, 1.03);
    let two_d = mse_per_value(&learned(2, 16), &x, 1.0);
    let four_d = mse_per_value(&learned(4, 256), &x, 1.0);
    let paper = mse_per_value(&polar(14, 2, Magnitude::Independent), &x, 1.0);
    let projected = mse_per_value(&polar(14, 2, Magnitude::Projected), &x, 1.0);
    // Code books learned from few points are a little worse than the optimum.
    for (what, found, expected, within) in [
        ("E8P", e8p, 0.0912, 0.02),
        ("k-means 2-D", two_d, 0.1078, 0.03),
        ("k-means 4-D", four_d, 0.0979, 0.05),
        // Candidates up to norm 10 here, to keep it short; the published figure leaves the first direction open.
        ("PCDVQ 14+2", paper, 0.1009, 0.035),
    ] {
        assert!((found / expected - 1.0).abs() < within, "{what}: {found} for {expected}");
    }
    assert!(e8p < projected && projected < paper && paper < two_d && two_d < 0.1175, "the order of the code books");
}

#[test]
fn the_error_of_a_polar_code_splits_into_length_and_angle() {
    let codec =
        PolarCodec::new(PolarConfig { direction_bits: 8, max_squared_norm: 8, ..PolarConfig::default() }).unwrap();
    for x in gaussian(8 * 50, 7).chunks_exact(8) {
        let (mut out, r) = ([0.0; 8], x.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt());
        codec.decode(codec.encode(x), &mut out);
        let error: f64 = out.iter().zip(x).map(|(o, x)| f64::from(o - x).powi(2)).sum();
        let c = out.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let cosine = out.iter().zip(x).map(|(o, x)| f64::from(o * x)).sum::<f64>() / (c * r);
        let split = (c - r * cosine).powi(2) + r * r * (1.0 - cosine * cosine);
        assert!((error - split).abs() < 1e-5, "{error} and {split}");
    }
}

#[test]
fn codes_one_by_one_are_the_codes_of_all() {
    let codec =
        PolarCodec::new(PolarConfig { direction_bits: 7, max_squared_norm: 8, ..PolarConfig::default() }).unwrap();
    let x = gaussian(8 * 37, 9);
    let mut codes = vec![0; 37];
    codec.encode_all(&x, &mut codes);
    let one: Vec<u32> = x.chunks_exact(8).map(|x| codec.encode(x)).collect();
    assert_eq!(codes, one);
    assert_eq!(codec.planes(), [9]);
}

#[test]
fn a_second_code_book_takes_what_the_first_left() {
    let x = gaussian(8 * 2000, 13);
    let twice = Residual { first: E8P, second: E8P, gain: 3.45 };
    let (once, twice) = (mse_per_value(&E8P, &x, 1.03), mse_per_value(&twice, &x, 1.0));
    assert!((twice / 0.0090 - 1.0).abs() < 0.05, "{twice}");
    assert!(twice < once / 9.0, "two bits more lower the error by about 6 dB each");
}

#[test]
fn seeding_never_takes_a_point_twice_while_others_are_left() {
    // As many centroids as there are different points, each there twenty times. A centroid chosen twice leaves a point without
    // one, and an empty cluster that has to be moved.
    let points: Vec<f32> = (0..700 * 20).map(|n| (n % 700) as f32).collect();
    for seed in 0..8 {
        let config = KMeans { centroids: 700, iterations: 1, seed, ..KMeans::default() };
        let found = kmeans(&points, 1, Weights::Uniform, &config).unwrap();
        assert_eq!((found.distortion, found.reseeded), (0.0, 0), "seed {seed}");
    }
}
