//! Our decompositions and those of LAPACK agree, where a LAPACK is found.
#![cfg(all(feature = "lapack", unix))]

use ndarray::{Array2, ArrayView2};
use quant_linalg::lapack::Lapack;
use quant_linalg::{Error, RandomizedSvd, cholesky, eigh, gaussian, matmul, qr, randomized_svd, svd};

/// The library, or `None` with a word about it.
fn lapack() -> Option<Lapack> {
    match Lapack::find() {
        Ok(lapack) => Some(lapack),
        Err(error @ Error::NoLapack { .. }) => {
            println!("not compared: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn close(a: &Array2<f64>, b: &Array2<f64>) -> bool {
    let largest = a.iter().fold(1.0_f64, |largest, x| largest.max(x.abs()));
    a.dim() == b.dim() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-11 * largest)
}

fn product(parts: &quant_linalg::Svd) -> Array2<f64> {
    matmul((&parts.u * &parts.s).view(), parts.vt.view())
}

#[test]
fn singular_values_and_products_agree_for_all_shapes_and_layouts() {
    let Some(lapack) = lapack() else { return };
    for (m, n) in [(1, 1), (1, 7), (7, 1), (40, 40), (60, 25), (25, 60), (200, 130)] {
        let a = gaussian(m, n, 3);
        let transposed = gaussian(n, m, 4).reversed_axes();
        for a in [a.view(), transposed.view()] {
            let (theirs, ours) = (lapack.svd(a).unwrap(), svd(a).unwrap());
            assert!(theirs.s.iter().zip(&ours.s).all(|(x, y)| (x - y).abs() < 1e-12 * ours.s[0]), "{m} × {n}");
            assert!(close(&product(&theirs), &a.to_owned()) && close(&product(&ours), &a.to_owned()), "{m} × {n}");
        }
    }
}

#[test]
fn factors_of_symmetric_matrices_agree() {
    let Some(lapack) = lapack() else { return };
    for size in [1, 2, 33, 150] {
        let x = gaussian(2 * size + 3, size, 5);
        let gram = matmul(x.t(), x.view());
        assert!(close(&lapack.cholesky(gram.view()).unwrap(), &cholesky(gram.view()).unwrap()), "{size}");
        let (theirs, ours) = (lapack.eigh(gram.view()).unwrap(), eigh(gram.view()).unwrap());
        let largest = ours.values[size - 1];
        assert!(theirs.values.iter().zip(&ours.values).all(|(x, y)| (x - y).abs() < 1e-12 * largest), "{size}");
        let back = matmul((&theirs.vectors * &theirs.values).view(), theirs.vectors.t());
        assert!(close(&back, &gram), "{size}");
    }
    let indefinite = ndarray::array![[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let refused = |found: Result<Array2<f64>, Error>| matches!(found, Err(Error::NotPositiveDefinite { pivot: 1 }));
    assert!(refused(lapack.cholesky(indefinite.view())) && refused(cholesky(indefinite.view())));
}

#[test]
fn bases_products_and_truncations_agree() {
    let Some(lapack) = lapack() else { return };
    let a = gaussian(90, 40, 6);
    let (theirs, ours) = (lapack.qr(a.view()).unwrap(), qr(a.view()).unwrap());
    assert!(close(&matmul(theirs.q.view(), theirs.r.view()), &a));
    let projector = |q: ArrayView2<'_, f64>| matmul(q, q.t());
    assert!(close(&projector(theirs.q.view()), &projector(ours.q.view())));
    let b = gaussian(30, 40, 7);
    for b in [b.t(), b.t().as_standard_layout().view()] {
        assert!(close(&lapack.matmul(a.view(), b).unwrap(), &matmul(a.view(), b)));
    }
    let small = matmul(gaussian(120, 6, 8).view(), gaussian(6, 80, 9).view());
    let config = RandomizedSvd::of_rank(6);
    let (theirs, ours) =
        (lapack.randomized_svd(small.view(), config).unwrap(), randomized_svd(small.view(), config).unwrap());
    assert!(close(&product(&theirs), &small) && close(&product(&ours), &small));
}

#[test]
fn bad_matrices_are_refused_before_the_call() {
    let Some(lapack) = lapack() else { return };
    let (empty, wide) = (Array2::<f64>::zeros((0, 3)), gaussian(3, 5, 1));
    let mut nan = gaussian(3, 3, 1);
    nan[(2, 1)] = f64::NAN;
    assert!(matches!(lapack.svd(empty.view()), Err(Error::Empty { .. })));
    assert!(matches!(lapack.svd(nan.view()), Err(Error::NonFinite { row: 2, column: 1 })));
    assert!(matches!(lapack.cholesky(wide.view()), Err(Error::NotSquare { .. })));
    assert!(matches!(lapack.eigh(nan.view()), Err(Error::NonFinite { .. })));
    assert!(matches!(lapack.qr(wide.view()), Err(Error::Rank { .. })));
    assert!(matches!(lapack.matmul(wide.view(), wide.view()), Err(Error::Rank { .. })));
    let none = RandomizedSvd { rank: 0, ..RandomizedSvd::of_rank(1) };
    assert!(matches!(lapack.randomized_svd(wide.view(), none), Err(Error::Rank { .. })));
}
