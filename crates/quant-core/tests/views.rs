//! Whatever lends its elements gives the same codes as the plain copy of them.

use half::{bf16, f16};
use quant_core::{Error, FloatKind, Format, Linear, Overflow, PackedTensor, Rounding, Scalar, Shaped, Tensor};

const ROWS: usize = 5;
const COLUMNS: usize = 70;

/// Multiples of 1/64 below 1 in magnitude: exact in every element type.
fn value(row: usize, column: usize) -> f32 {
    ((row * 31 + column * 17) % 127) as f32 / 64.0 - 1.0
}

fn row_major() -> Vec<f32> {
    (0..ROWS * COLUMNS).map(|i| value(i / COLUMNS, i % COLUMNS)).collect()
}

fn column_major() -> Vec<f32> {
    (0..ROWS * COLUMNS).map(|i| value(i % ROWS, i / ROWS)).collect()
}

/// Every kind of block and scale meets the view.
fn assert_same_codes(what: &str, tensor: &impl Tensor) {
    let plain = row_major();
    let copy = Shaped::new(&plain, &[ROWS, COLUMNS]).unwrap();
    assert_eq!(tensor.view().to_f32().unwrap(), plain, "{what}");
    assert_eq!(tensor.view().shape(), [ROWS, COLUMNS], "{what}");
    for name in ["int4-g32", "int8-tensor", "fp8-t3x8", "mxfp4", "nvfp4", "nf4-dq", "sefp5", "ternary"] {
        let format: Format = name.parse().unwrap();
        assert_eq!(PackedTensor::encode(format, tensor), PackedTensor::encode(format, &copy), "{what} as {name}");
    }
}

#[test]
fn slices_with_any_strides_are_read_in_order() {
    let (plain, transposed) = (row_major(), column_major());
    let (rows, columns) = (ROWS.cast_signed(), COLUMNS.cast_signed());
    assert_same_codes("row-major", &Shaped::new(&plain, &[ROWS, COLUMNS]).unwrap());
    assert_same_codes("column-major", &Shaped::strided(&transposed, &[ROWS, COLUMNS], &[1, rows]).unwrap());
    let upright = Shaped::new(&transposed, &[COLUMNS, ROWS]).unwrap();
    assert_same_codes("transposed", &upright.view().transposed());
    let backwards: Vec<f32> = plain.iter().rev().copied().collect();
    let last = plain.len() - 1;
    let reversed = Shaped::strided_from(&backwards, last, &[ROWS, COLUMNS], &[-columns, -1]).unwrap();
    assert_same_codes("reversed", &reversed);
    let spaced: Vec<f32> = plain.iter().flat_map(|&x| [x, f32::NAN, f32::INFINITY]).collect();
    assert_same_codes("every third", &Shaped::strided(&spaced, &[ROWS, COLUMNS], &[3 * columns, 3]).unwrap());
}

#[test]
fn more_axes_are_rows_and_fewer_are_one_row() {
    let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let cube = Shaped::strided(&values, &[2, 3, 4], &[4, 8, 1]).unwrap();
    let want: Vec<f32> = [0, 8, 16, 4, 12, 20].iter().flat_map(|&start| &values[start..start + 4]).copied().collect();
    assert_eq!(cube.view().to_f32().unwrap(), want);
    let packed = PackedTensor::encode(Format::INT8, &cube).unwrap();
    assert_eq!((packed.layout().rows, packed.layout().columns, packed.shape()), (6, 4, &[2, 3, 4][..]));
    let broadcast = Shaped::strided(&values[5..6], &[3, 2], &[0, 0]).unwrap();
    assert_eq!(broadcast.view().to_f32().unwrap(), [5.0; 6]);
    let vector = PackedTensor::encode(Format::INT8, &Shaped::new(&values, &[24]).unwrap()).unwrap();
    assert_eq!((vector.layout().rows, vector.layout().columns), (1, 24));
    let scalar = PackedTensor::encode(Format::INT8, &Shaped::new(&values[7..8], &[]).unwrap()).unwrap();
    assert_eq!((scalar.layout().rows, scalar.layout().columns, scalar.decode().len()), (1, 1, 1));
}

#[test]
fn strides_that_leave_the_slice_are_refused() {
    let values = [0.0_f32; 6];
    for (first, shape, strides) in [
        (0, vec![2, 3], vec![3, -1]),
        (1, vec![2, 3], vec![3, -1]),
        (3, vec![2, 3], vec![3, 1]),
        (6, vec![1], vec![1]),
        (0, vec![2, 4], vec![3, 1]),
        (0, vec![2, 2], vec![isize::MAX, 1]),
        (usize::MAX, vec![1, 1], vec![1, 1]),
    ] {
        let refused = Shaped::strided_from(&values, first, &shape, &strides).unwrap_err();
        assert!(matches!(refused, Error::Shape { .. } | Error::SizeOverflow { .. }), "{first} {shape:?} {strides:?}");
    }
    assert!(matches!(Shaped::strided(&values, &[2, 3], &[1]), Err(Error::Rank { .. })));
    assert!(matches!(Shaped::new(&values, &[2, 2]), Err(Error::Shape { expected: 4, found: 6, .. })));
    assert!(matches!(Shaped::new(&values, &[usize::MAX, 2]), Err(Error::SizeOverflow { .. })));
    let empty = Shaped::strided_from(&values, 99, &[0, 3], &[3, 1]).unwrap();
    assert!(empty.view().is_empty());
    assert!(matches!(PackedTensor::encode(Format::INT8, &empty), Err(Error::Empty { .. })));
}

#[test]
fn every_element_type_is_read_exactly() {
    fn cast<T: Scalar>(what: &str, cast: impl Fn(f32) -> T) {
        let values: Vec<T> = row_major().into_iter().map(cast).collect();
        assert_same_codes(what, &Shaped::new(&values, &[ROWS, COLUMNS]).unwrap());
    }
    cast("f32", |x| x);
    cast("f64", f64::from);
    cast("f16", f16::from_f32);
    cast("bf16", bf16::from_f32);
}

#[test]
fn f64_is_rounded_once() {
    // Just above a tie of E4M3: through the nearest f32 it would become the tie and go to even.
    let above = 1.0625 + 2_f64.powi(-40);
    let tie = 1.0625_f32;
    #[expect(clippy::cast_possible_truncation, reason = "the rounding that must not happen")]
    let twice = above as f32;
    assert_eq!(twice, tie, "the f32 nearest to it is the tie");
    assert_eq!(FloatKind::E4m3Fn.encode(tie, Overflow::Saturate), 0x38);
    let format: Format = "fp8-cast".parse().unwrap();
    for (x, code) in [(above, 0x39), (-above, 0xb9), (1.0625, 0x38), (1.0625 - 2_f64.powi(-40), 0x38)] {
        let packed = PackedTensor::encode(format, &Shaped::new(&[x], &[1]).unwrap()).unwrap();
        assert_eq!(packed.codes(), [code], "{x}");
        let direct = FloatKind::E4m3Fn.encode_f64(x, Overflow::Saturate, Rounding::NearestEven, 0);
        assert_eq!(direct, u16::from(code), "{x}");
    }
    // Nearest values of all kinds, from f64 neighbours of midpoints.
    for kind in FloatKind::ALL.into_iter().filter(|kind| kind.bits() <= 8) {
        let format = Format { element: quant_core::Element::Float { kind, overflow: Overflow::Saturate }, ..format };
        for code in 0..(1_u16 << (kind.bits() - 1)) - 1 {
            let middle = f64::midpoint(f64::from(kind.decode(code)), f64::from(kind.decode(code + 1)));
            for (x, want) in [(middle.next_down(), code), (middle.next_up(), code + 1)] {
                if x.is_nan() || !kind.decode(code + 1).is_finite() {
                    continue;
                }
                let packed = PackedTensor::encode(format, &Shaped::new(&[x], &[1]).unwrap()).unwrap();
                let mut got = [0];
                packed.row_codes(0, &mut got).unwrap();
                assert_eq!(got[0], want, "{kind:?} {x:e}");
            }
        }
    }
}

#[test]
fn bad_elements_are_named_by_their_place() {
    let mut values = row_major();
    values[123] = f32::NAN;
    for name in ["int4-g32", "fp8-tensor", "mxfp4", "nvfp4", "nf4-dq", "bfp4", "ternary", "bf16"] {
        let error =
            PackedTensor::encode(name.parse().unwrap(), &Shaped::new(&values, &[ROWS, COLUMNS]).unwrap()).unwrap_err();
        assert!(matches!(error, Error::NonFinite { index: 123, .. }), "{name}: {error}");
    }
    let wide = [1.0_f64, 1e39];
    let error = PackedTensor::encode(Format::INT8, &Shaped::new(&wide, &[2]).unwrap()).unwrap_err();
    assert_eq!(error, Error::OutOfRange { index: 1, value: 1e39 });
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_views_of_any_layout_are_tensors() {
    use ndarray::{Array2, ShapeBuilder, s};
    let plain = Array2::from_shape_vec((ROWS, COLUMNS), row_major()).unwrap();
    assert_same_codes("ndarray", &plain);
    assert_same_codes("ndarray view", &plain.view());
    let columns = Array2::from_shape_vec((ROWS, COLUMNS).f(), column_major()).unwrap();
    assert_same_codes("ndarray, column-major", &columns);
    let transposed = Array2::from_shape_vec((COLUMNS, ROWS), column_major()).unwrap();
    assert_same_codes("ndarray, transposed", &transposed.t());
    let wide = Array2::from_shape_fn((2 * ROWS, 3 * COLUMNS), |(r, c)| {
        if r % 2 == 1 && c % 3 == 2 { value(ROWS - 1 - r / 2, c / 3) } else { f32::NAN }
    });
    assert_same_codes("ndarray, every second row from the end", &wide.slice(s![1..;-2, 2..;3]));
    let backwards = Array2::from_shape_fn((ROWS, COLUMNS), |(r, c)| value(r, COLUMNS - 1 - c));
    assert_same_codes("ndarray, columns reversed", &backwards.slice(s![.., ..;-1]));
    assert_same_codes("ndarray of f64", &plain.mapv(f64::from));
    assert_same_codes("ndarray, shared", &plain.mapv(bf16::from_f32).into_shared());
}

#[cfg(feature = "nalgebra")]
#[test]
fn nalgebra_matrices_and_views_are_tensors() {
    use nalgebra::SMatrix;
    let matrix = SMatrix::<f32, ROWS, COLUMNS>::from_fn(value);
    assert_same_codes("nalgebra", &matrix);
    let wide = SMatrix::<f32, { 2 * ROWS }, { COLUMNS + 4 }>::from_fn(|r, c| {
        if r % 2 == 1 || c < 4 { f32::NAN } else { value(r / 2, c - 4) }
    });
    assert_same_codes("nalgebra, a view with steps", &wide.fixed_view_with_steps::<ROWS, COLUMNS>((0, 4), (1, 0)));
    assert_same_codes("nalgebra of f64", &matrix.map(f64::from));
}

#[cfg(feature = "faer")]
#[test]
fn faer_matrices_and_views_are_tensors() {
    use faer::Mat;
    let matrix = Mat::from_fn(ROWS, COLUMNS, value);
    assert_same_codes("faer", &matrix);
    assert_same_codes("faer view", &matrix.as_ref());
    let transposed = Mat::from_fn(COLUMNS, ROWS, |c, r| value(r, c));
    assert_same_codes("faer, transposed", &transposed.transpose());
    let backwards = Mat::from_fn(ROWS, COLUMNS, |r, c| value(ROWS - 1 - r, COLUMNS - 1 - c));
    assert_same_codes("faer, reversed", &backwards.as_ref().reverse_rows_and_cols());
    let wide =
        Mat::from_fn(ROWS + 2, COLUMNS + 3, |r, c| f64::from(if r < 2 || c < 3 { 99.0 } else { value(r - 2, c - 3) }));
    assert_same_codes("faer of f64, a block", &wide.as_ref().submatrix(2, 3, ROWS, COLUMNS));
}

#[test]
fn products_with_any_view_are_those_with_its_copy() {
    let (plain, columns) = (row_major(), column_major());
    let weight: Vec<f32> = (0..3 * COLUMNS).map(|i| value(i, 3 * i)).collect();
    let weight = PackedTensor::encode(Format::INT8, &Shaped::new(&weight, &[3, COLUMNS]).unwrap()).unwrap();
    let mut want = [0.0; 3 * ROWS];
    weight.matmul(&plain, &mut want).unwrap();
    let halves: Vec<f16> = plain.iter().copied().map(f16::from_f32).collect();
    let brains: Vec<bf16> = plain.iter().copied().map(bf16::from_f32).collect();
    let doubles: Vec<f64> = plain.iter().copied().map(f64::from).collect();
    let spaced: Vec<f32> = plain.chunks(COLUMNS).flat_map(|row| row.iter().chain(&[f32::NAN; 2])).copied().collect();
    let shape = [ROWS, COLUMNS];
    let views = [
        ("f32", Shaped::new(&plain, &shape)),
        ("f16", Shaped::new(&halves, &shape)),
        ("bf16", Shaped::new(&brains, &[1, ROWS, COLUMNS])),
        ("f64", Shaped::new(&doubles, &shape)),
        ("column-major", Shaped::strided(&columns, &shape, &[1, ROWS.cast_signed()])),
        ("rows apart", Shaped::strided(&spaced, &shape, &[COLUMNS.cast_signed() + 2, 1])),
    ];
    for (what, x) in views {
        let mut y = [0.0; 3 * ROWS];
        weight.matmul_view(&x.unwrap().view(), &mut y).unwrap();
        assert_eq!(y, want, "{what}");
    }
    let turned = Shaped::new(&plain, &[COLUMNS, ROWS]).unwrap();
    let refused = weight.matmul_view(&turned.view(), &mut want);
    assert!(matches!(refused, Err(Error::Features { in_features: COLUMNS, found: ROWS })), "{refused:?}");
    let infinite = [f16::INFINITY; COLUMNS];
    let refused = weight.matmul_view(&Shaped::new(&infinite, &[1, COLUMNS]).unwrap().view(), &mut want[..3]);
    assert!(matches!(refused, Err(Error::NonFinite { index: 0, .. })), "{refused:?}");
}
