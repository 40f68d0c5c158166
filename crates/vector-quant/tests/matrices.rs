//! Whole matrices: storage, products, feedback, refusals.

#![expect(clippy::cast_possible_truncation, reason = "data of tests")]

use half::f16;
use proptest::prelude::*;
use quant_calib::Gram;
use quant_core::{Linear, Shaped};
use vector_quant::{
    BookType, Books, BooksHeader, E8P, Error, FixedBook, GptvqConfig, KMeansVq, LearnedBook, LearnedBooks, Parts,
    PolarCodec, PolarConfig, Residual, RotatedVq, VectorCodec, VqLinear, gptvq, kmeans_vq, rotated_vq,
};

#[path = "common/gaussian.rs"]
mod data;
use data::gaussian;

/// Inputs with correlation `rho` between neighbouring channels.
fn correlated(tokens: usize, features: usize, rho: f32) -> Gram {
    let mut x = gaussian(tokens * features, 77);
    for row in x.chunks_exact_mut(features) {
        for i in 1..features {
            row[i] = rho * row[i - 1] + (1.0 - rho * rho).sqrt() * row[i];
        }
    }
    let mut gram = Gram::new(features);
    gram.add(&x, None).unwrap();
    gram
}

/// `tr(D G Dᵀ)` by the definition.
fn loss(weights: &[f32], coded: &dyn Linear, gram: &Gram) -> f64 {
    let (g, n) = (gram.matrix(), coded.in_features());
    let back = coded.to_dense().unwrap();
    let d: Vec<f64> = weights.iter().zip(&back).map(|(w, b)| f64::from(*w) - f64::from(*b)).collect();
    let row = |d: &[f64]| (0..n).map(|i| d[i] * (0..n).map(|j| g[[i, j]] * d[j]).sum::<f64>()).sum::<f64>();
    d.chunks_exact(n).map(row).sum::<f64>() / gram.tokens() as f64
}

fn some_books() -> Vec<(Books, usize)> {
    let polar = PolarConfig { direction_bits: 8, magnitude_bits: 2, max_squared_norm: 8, ..PolarConfig::default() };
    let wide = PolarConfig { direction_bits: 11, magnitude_bits: 6, max_squared_norm: 8, ..PolarConfig::default() };
    let learned = |seed, kind| LearnedBook::new(&gaussian(3 * 5, seed), 3, kind).unwrap();
    vec![
        (Books::E8P(E8P), 8),
        (Books::E8PTwice(Residual { first: E8P, second: E8P, gain: 3.45 }), 8),
        (Books::Polar(PolarCodec::new(polar).unwrap()), 8),
        (Books::Polar(PolarCodec::new(wide).unwrap()), 8),
        (Books::Learned(LearnedBooks { rows: 5, columns: 24, books: vec![learned(9, BookType::F16)] }), 3),
        (
            Books::Learned(LearnedBooks {
                rows: 2,
                columns: 12,
                books: (0..6).map(|seed| learned(seed, BookType::Int8)).collect(),
            }),
            3,
        ),
    ]
}

#[test]
fn a_matrix_comes_back_from_its_parts() {
    for (books, dim) in some_books() {
        let shape = [5, 24];
        let bits = match &books {
            Books::E8P(b) => b.bits(),
            Books::E8PTwice(b) => b.bits(),
            Books::Polar(b) => b.bits(),
            Books::Learned(b) => b.books[0].bits(),
            _ => unreachable!("no other books here"),
        };
        let codes: Vec<u32> = (0..5 * 24 / dim as u32)
            .map(|i| (u64::from(i.wrapping_mul(2_654_435_761)) % (1_u64 << bits)) as u32)
            .collect();
        let scales: Vec<f16> = (0..5).map(|i| f16::from_f32(0.5 + i as f32)).collect();
        let matrix = VqLinear::new(shape, books, &codes, scales).unwrap();
        for row in 0..5 {
            assert_eq!(matrix.codes(row).unwrap(), &codes[row * 24 / dim..][..24 / dim]);
        }
        let parts = matrix.to_parts();
        let header: BooksHeader = serde_json::from_str(&serde_json::to_string(&matrix.header()).unwrap()).unwrap();
        let again = VqLinear::from_parts(shape, &header, parts.as_parts()).unwrap();
        assert_eq!(again.to_parts(), parts);
        assert_eq!(again.to_dense().unwrap(), matrix.to_dense().unwrap());
        let stored = parts.codes.len() + parts.scales.len() + parts.books.len();
        assert_eq!(matrix.footprint().total_bytes(), stored as u64, "everything stored is counted, and nothing else");

        // Sections of other lengths are refused, whichever it is.
        for cut in 0..3 {
            let mut short = parts.clone();
            let section = [&mut short.codes, &mut short.scales, &mut short.books].into_iter().nth(cut).unwrap();
            section.push(0);
            assert!(VqLinear::from_parts(shape, &header, short.as_parts()).is_err(), "section {cut}");
        }
    }
}

#[test]
fn products_are_those_of_the_decoded_matrix() {
    for (books, dim) in some_books() {
        let codes = vec![1; 5 * 24 / dim];
        let matrix = VqLinear::new([5, 24], books, &codes, Vec::new()).unwrap();
        let dense = matrix.to_dense().unwrap();
        for rows in [0, 1, 3] {
            let x = gaussian(rows * 24, 4);
            let mut y = vec![0.0; rows * 5];
            matrix.matmul(&x, &mut y).unwrap();
            for (x, y) in x.chunks_exact(24).zip(y.chunks_exact(5)) {
                for (w, y) in dense.chunks_exact(24).zip(y) {
                    let sum: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                    assert!((sum - y).abs() < 1e-4, "{sum} and {y}");
                }
            }
        }
        assert!(matrix.matmul(&[0.0; 25], &mut [0.0; 5]).is_err() && matrix.matmul(&[0.0; 24], &mut [0.0; 4]).is_err());
    }
}

#[test]
fn values_are_those_of_the_code_books_and_products_do_not_depend_on_company() {
    // More columns than are decoded at a time, a last part of its own, and rows that fill no block.
    for (books, dim) in some_books() {
        let (outputs, columns) = (11, 24 * 53);
        let codec: &dyn VectorCodec = match &books {
            Books::E8P(b) => b,
            Books::E8PTwice(b) => b,
            Books::Polar(b) => b,
            Books::Learned(b) if b.books.len() == 1 => &b.books[0].clone(),
            _ => continue,
        };
        let books = match books.clone() {
            Books::Learned(b) => Books::Learned(LearnedBooks { rows: outputs, columns, ..b }),
            other => other,
        };
        let mask = ((1_u64 << codec.bits()) - 1) as u32;
        let codes: Vec<u32> =
            (0..(outputs * columns / dim) as u32).map(|i| i.wrapping_mul(2_654_435_761) & mask).collect();
        let scales: Vec<f16> = (0..outputs).map(|i| f16::from_f32(0.5 + i as f32)).collect();
        let matrix = VqLinear::new([outputs, columns], books, &codes, scales).unwrap();
        let dense = matrix.to_dense().unwrap();
        let mut expected = vec![0.0; dim];
        for (index, code) in codes.iter().enumerate() {
            codec.decode(*code, &mut expected);
            let scale = 0.5 + (index * dim / columns) as f32;
            expected.iter_mut().for_each(|v| *v *= scale);
            assert_eq!(dense[index * dim..][..dim], expected, "vector {index} of {matrix:.0?}");
        }
        let x = gaussian(5 * columns, 4);
        let mut together = vec![0.0; 5 * outputs];
        matrix.matmul(&x, &mut together).unwrap();
        for (x, together) in x.chunks_exact(columns).zip(together.chunks_exact(outputs)) {
            let mut alone = vec![0.0; outputs];
            matrix.matmul(x, &mut alone).unwrap();
            assert_eq!(alone, together, "one row at a time");
            for (w, y) in dense.chunks_exact(columns).zip(together) {
                let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                assert!((sum - f64::from(*y)).abs() < 1e-6 * size, "{sum} and {y}");
            }
        }
    }
}

#[test]
fn stored_matrices_that_contradict_themselves_are_refused() {
    let parts = |codes, scales, books| Parts { codes, scales, books };
    let learned = |dim, bits, rows, columns| BooksHeader::Learned { dim, bits, values: BookType::F16, rows, columns };
    let cases: [(BooksHeader, [usize; 2], Parts<'_>); 7] = [
        (BooksHeader::E8p, [1, 7], parts(&[0; 2], &[], &[])),
        (BooksHeader::E8p, [1, 8], parts(&[0; 2], &[0, 0x7c], &[])),
        (BooksHeader::E8pTwice { gain: f32::NAN }, [1, 8], parts(&[0; 4], &[], &[])),
        (learned(0, 1, 1, 8), [1, 8], parts(&[0; 1], &[], &[])),
        (learned(2, 40, 1, 8), [1, 8], parts(&[0; 1], &[], &[])),
        (learned(2, 1, 0, 8), [1, 8], parts(&[0; 1], &[], &[0; 8])),
        (learned(2, 1, 1, usize::MAX - 1), [usize::MAX, 8], parts(&[0; 1], &[], &[0; 8])),
    ];
    for (header, shape, parts) in cases {
        assert!(VqLinear::from_parts(shape, &header, parts).is_err(), "{header:?}");
    }
    let polar = PolarConfig { direction_bits: 4, magnitude_bits: 1, max_squared_norm: 2, ..PolarConfig::default() };
    let nan = [f32::NAN.to_le_bytes(), 1_f32.to_le_bytes()].concat();
    assert!(VqLinear::from_parts([1, 8], &BooksHeader::Polar { config: polar }, parts(&[0; 1], &[], &nan)).is_err());
    let wide = VqLinear::new([1, 3], some_books().pop().unwrap().0, &[0], Vec::new());
    assert!(matches!(wide, Err(Error::Count { what: "code books", .. })), "six books for one group");
    assert!(matches!(VqLinear::new([1, 8], Books::E8P(E8P), &[1 << 16], Vec::new()), Err(Error::Code { .. })));
}

#[test]
fn feedback_lowers_the_loss_of_correlated_inputs_and_centroids_lower_it_again() {
    let (rows, columns) = (48, 128);
    let weights = gaussian(rows * columns, 1);
    let matrix = Shaped::new(&weights, &[rows, columns]).unwrap();
    let gram = correlated(600, columns, 0.9);
    let config = GptvqConfig { rows: 16, columns: 64, ..GptvqConfig::default() };
    let swept = gptvq(&matrix, &gram, &config).unwrap();
    let nearest = KMeansVq { dim: 2, bits: 4, rows: 16, columns: 64, values: BookType::Int8, ..KMeansVq::default() };
    let nearest = kmeans_vq(&matrix, Some(&gram), &nearest).unwrap();
    assert_eq!(swept.weight.footprint(), nearest.footprint(), "compared at equal bytes");
    let (with, without) = (loss(&weights, &swept.weight, &gram), loss(&weights, &nearest, &gram));
    assert!((with / swept.loss[1] - 1.0).abs() < 1e-6, "the reported loss is that of the stored matrix");
    assert!(swept.loss[1] < swept.loss[0], "{:?}", swept.loss);
    assert!(with < 0.5 * without, "{with} and {without}");
}

#[test]
fn moved_centroids_never_raise_the_loss() {
    for (dim, bits, rho) in [(1, 2, 0.0), (2, 3, 0.5), (4, 4, 0.95)] {
        let weights = gaussian(24 * 64, 3);
        let matrix = Shaped::new(&weights, &[24, 64]).unwrap();
        let gram = correlated(300, 64, rho);
        let config = GptvqConfig { dim, bits, rows: 0, columns: 32, ..GptvqConfig::default() };
        let coded = gptvq(&matrix, &gram, &config).unwrap();
        assert!(coded.loss[1] <= coded.loss[0], "dimension {dim}: {:?}", coded.loss);
    }
}

#[test]
fn weights_and_settings_that_do_not_fit_are_refused() {
    let weights = gaussian(8 * 20, 1);
    let matrix = Shaped::new(&weights, &[8, 20]).unwrap();
    let gram = correlated(50, 20, 0.5);
    let config = |dim, bits| GptvqConfig { dim, bits, ..GptvqConfig::default() };
    assert!(matches!(gptvq(&matrix, &gram, &config(3, 3)), Err(Error::NotDivisible { .. })));
    assert!(matches!(gptvq(&matrix, &gram, &config(2, 8)), Err(Error::TooFewPoints { .. })));
    assert!(matches!(gptvq(&matrix, &gram, &config(0, 2)), Err(Error::Dimension { .. })));
    assert!(matches!(gptvq(&matrix, &gram, &config(2, 13)), Err(Error::Setting { .. })));
    assert_eq!(gptvq(&matrix, &Gram::new(20), &config(2, 2)).err(), Some(Error::NoTokens));
    assert!(matches!(gptvq(&matrix, &Gram::new(21), &config(2, 2)), Err(Error::Count { .. })));
    let bad = [vec![f32::INFINITY], weights[1..].to_vec()].concat();
    let bad = Shaped::new(&bad, &[8, 20]).unwrap();
    assert!(kmeans_vq(&bad, None, &KMeansVq::default()).is_err() && gptvq(&bad, &gram, &config(2, 2)).is_err());
    assert!(kmeans_vq(&matrix, None, &KMeansVq { dim: 17, ..KMeansVq::default() }).is_err());
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let weights = gaussian(64 * 64, 9);
    let matrix = Shaped::new(&weights, &[64, 64]).unwrap();
    let gram = correlated(200, 64, 0.7);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let learned = kmeans_vq(&matrix, Some(&gram), &KMeansVq { bits: 6, ..KMeansVq::default() }).unwrap();
            let swept = gptvq(&matrix, &gram, &GptvqConfig { columns: 32, ..GptvqConfig::default() }).unwrap();
            (learned.to_parts(), swept.weight.to_parts())
        })
    };
    assert!(run(1) == run(2) && run(1) == run(7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rounding_to_a_learned_book_is_nearest(values in prop::collection::vec(-4.0_f32..4.0, 1..40), x in -5.0_f32..5.0) {
        let book = LearnedBook::new(&values, 1, BookType::Int8).unwrap();
        let mut found = [0.0];
        book.decode(book.encode(&[x]), &mut found);
        let best = book.values().iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
        prop_assert!(((found[0] - x).abs() - best).abs() < 1e-5);
        book.decode(book.encode_weighted(&[x], &[1.0]), &mut found);
        prop_assert!(((found[0] - x).abs() - best).abs() < 1e-5, "the plain search agrees");
    }
}

#[test]
fn rotated_code_books_serve_any_weights_as_they_serve_gaussian_ones() {
    let (rows, columns) = (32, 256);
    let normal = gaussian(rows * columns, 6);
    let heavy: Vec<f32> = normal.iter().map(|x| x * x * x).collect();
    for (book, expected) in [
        (FixedBook::E8p, 0.0912),
        (FixedBook::E8pTwice, 0.0090),
        (FixedBook::Polar(PolarConfig { direction_bits: 10, max_squared_norm: 8, ..PolarConfig::default() }), 0.2097),
    ] {
        let config = RotatedVq { feedback: false, ..RotatedVq::new(book) };
        let of = |w: &[f32]| rotated_vq(&Shaped::new(w, &[rows, columns]).unwrap(), None, &config).unwrap();
        let (a, b) = (of(&normal).relative_error, of(&heavy).relative_error);
        assert!((a / expected - 1.0).abs() < 0.06, "{book:?}: {a}");
        assert!((b / a - 1.0).abs() < 0.1, "{book:?}: {a} for normal weights, {b} for heavy tails");
    }
}

#[test]
fn a_rotated_matrix_multiplies_like_its_dense_form() {
    let weights = gaussian(24 * 64, 8);
    let config = RotatedVq { feedback: false, ..RotatedVq::new(FixedBook::E8pTwice) };
    let coded = rotated_vq(&Shaped::new(&weights, &[24, 64]).unwrap(), None, &config).unwrap();
    let (x, mut y) = (gaussian(64, 9), vec![0.0; 24]);
    coded.weight.matmul(&x, &mut y).unwrap();
    let dense = coded.weight.to_dense().unwrap();
    let close: f64 = weights.iter().zip(&dense).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / (24.0 * 64.0);
    assert!(close < 0.012, "the dense form is in the original basis: {close}");
    for (w, y) in dense.chunks_exact(64).zip(y) {
        let sum: f32 = w.iter().zip(&x).map(|(w, x)| w * x).sum();
        assert!((sum - y).abs() < 1e-4, "{sum} and {y}");
    }
}

#[test]
fn feedback_through_the_hessian_lowers_the_loss_of_fixed_books() {
    let (rows, columns) = (40, 128);
    let weights = gaussian(rows * columns, 2);
    let matrix = Shaped::new(&weights, &[rows, columns]).unwrap();
    let gram = correlated(600, columns, 0.9);
    for book in [
        FixedBook::E8p,
        FixedBook::Polar(PolarConfig { direction_bits: 8, max_squared_norm: 8, ..PolarConfig::default() }),
    ] {
        let of = |feedback| rotated_vq(&matrix, Some(&gram), &RotatedVq { feedback, ..RotatedVq::new(book) }).unwrap();
        let (with, without) = (of(true), of(false));
        assert_eq!(with.weight.footprint(), without.weight.footprint());
        let (a, b) = (with.loss.unwrap(), without.loss.unwrap());
        assert!(a < 0.7 * b, "{book:?}: {a} and {b}");
        assert!((loss(&weights, &with.weight, &gram) / a - 1.0).abs() < 1e-3, "the loss is that of the whole linear");
    }
}

#[test]
fn rotated_rows_of_zeros_stay_zero_and_what_does_not_fit_is_refused() {
    let mut weights = gaussian(3 * 16, 3);
    weights[16..32].fill(0.0);
    let matrix = Shaped::new(&weights, &[3, 16]).unwrap();
    let config = RotatedVq { feedback: false, ..RotatedVq::new(FixedBook::E8p) };
    let dense = rotated_vq(&matrix, None, &config).unwrap().weight.to_dense().unwrap();
    assert!(dense[16..32].iter().all(|w| *w == 0.0) && dense.iter().all(|w| w.is_finite()));
    assert_eq!(rotated_vq(&matrix, None, &RotatedVq::new(FixedBook::E8p)).err(), Some(Error::NoTokens));
    let odd = Shaped::new(&weights, &[4, 12]).unwrap();
    assert!(matches!(rotated_vq(&odd, None, &config), Err(Error::NotDivisible { .. })));
    assert!(rotated_vq(&matrix, None, &RotatedVq { damp: f64::NAN, ..config }).is_err());
}
