//! Products of prepared weights agree with sums in f64, with each other on every instruction set, and refuse what they
//! cannot do.

use quant_core::kernels::{Isa, with_isa};
use quant_core::{
    Activations, Block, Codebook, Element, Error, FloatKind, Format, IntRule, Linear, NvRule, Overflow, PackedTensor,
    PreparedLinear, Scale, ScaleRule, ScaleType, Shaped, ZeroPoint,
};

/// The named formats, and others with every kind of code, scale and zero point.
fn formats() -> Vec<Format> {
    let mut formats: Vec<Format> = Format::named().iter().map(|named| named.format).collect();
    let rules = [
        IntRule::Restricted,
        IntRule::Full,
        IntRule::Asymmetric,
        IntRule::CtAsym,
        IntRule::AwqAsym,
        IntRule::FloatMin,
        IntRule::Mlx,
    ];
    let scales = [ScaleType::F16, ScaleType::F32, ScaleType::Bf16];
    let groups = [Block::Row, Block::Group(32), Block::Group(128), Block::Group(40), Block::Group(5), Block::Tensor];
    for (i, &rule) in rules.iter().enumerate() {
        for bits in 1..=8 {
            let scale = Scale::Float(scales[(i + usize::from(bits)) % 3]);
            let block = groups[(i + usize::from(bits)) % groups.len()];
            formats.push(Format { element: Element::Int { bits, rule }, block, scale });
        }
    }
    for kind in FloatKind::ALL {
        let element = Element::Float { kind, overflow: Overflow::Saturate };
        formats.push(Format { element, block: Block::Row, scale: Scale::None });
        formats.push(Format { element, block: Block::Group(24), scale: Scale::Float(ScaleType::F16) });
        formats.push(Format { element, block: Block::Group(32), scale: Scale::E8m0(ScaleRule::Floor) });
    }
    for rule in [NvRule::TorchAo, NvRule::ModelOpt, NvRule::CompressedTensors, NvRule::Mlx, NvRule::PaperBf16] {
        let element = Element::Float { kind: FloatKind::E2m1, overflow: Overflow::Saturate };
        formats.push(Format { element, block: Block::Group(16), scale: Scale::E4m3(rule) });
    }
    for book in [Codebook::Nf4, Codebook::Af4, Codebook::BnbFp4] {
        let element = Element::Codebook(book);
        formats.push(Format { element, block: Block::Group(64), scale: Scale::Double });
        formats.push(Format { element, block: Block::Tile { rows: 3, columns: 48 }, scale: Scale::Float(scales[0]) });
    }
    formats.retain(|format| format.validate().is_ok());
    formats
}

/// A small generator, so that the tests name their seeds.
struct Words(u64);

impl Words {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
        word as f32 / 8_388_608.0 - 1.0
    }

    fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit() * self.unit()).collect()
    }
}

fn encode(format: Format, values: &[f32], shape: [usize; 2]) -> PackedTensor<'static> {
    PackedTensor::encode(format, &Shaped::new(values, &shape).expect("the shape fits")).expect("finite values")
}

fn product(linear: &dyn Linear, x: &[f32]) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len() / linear.in_features() * linear.out_features()];
    linear.matmul(x, &mut y).expect("the slices fit");
    y
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Ragged in every dimension: rows of the weight, columns, rows of inputs.
const SHAPES: [[usize; 3]; 6] = [[1, 1, 1], [3, 7, 2], [17, 130, 1], [16, 257, 5], [50, 600, 1], [37, 300, 27]];

/// What may be lost to f32, see [`PreparedLinear`].
fn bound(row: &[f32], x: &[f32], centre: f64) -> f64 {
    let largest = f64::from(row.iter().fold(0.0_f32, |m, w| m.max(w.abs())));
    let inputs: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
    f64::from(f32::EPSILON) / 2.0 * (x.len() as f64 / 4.0 + 32.0) * inputs * (largest + centre)
}

/// Half the span of the codes of a block with a zero point.
fn centre(packed: &PackedTensor<'_>) -> f64 {
    let (format, layout) = (packed.format(), packed.layout());
    if format.zero_point() == ZeroPoint::None {
        return 0.0;
    }
    let blocks = 0..layout.blocks();
    let scales =
        blocks.map(|i| packed.params(i / layout.block_columns_count(), i % layout.block_columns_count()).scale);
    let largest = scales.fold(0.0_f32, |m, s| m.max(s.abs()));
    f64::from(largest) * f64::from(1_u16 << (format.code_bits() - 1))
}

#[test]
fn products_with_f32_inputs_agree_with_sums_in_f64_on_every_instruction_set() {
    let mut words = Words(7);
    let mut prepared_formats = 0;
    for format in formats() {
        for [rows, columns, tokens] in SHAPES {
            let weight: Vec<f32> = words.many(rows * columns);
            let packed = encode(format, &weight, [rows, columns]);
            let Ok(prepared) = PreparedLinear::new(&packed) else { continue };
            prepared_formats += 1;
            let (dense, centre) = (packed.decode(), centre(&packed));
            let x = words.many(tokens * columns);
            for isa in Isa::ALL {
                let y = with_isa(isa, || product(&prepared, &x));
                for (x, y) in x.chunks(columns).zip(y.chunks(rows)) {
                    for (w, &y) in dense.chunks(columns).zip(y) {
                        let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                        assert!(
                            (f64::from(y) - exact).abs() <= bound(w, x, centre),
                            "{format} {rows}×{columns}, {tokens} rows of inputs on {isa:?}: {y} for {exact}"
                        );
                    }
                }
            }
        }
    }
    assert!(prepared_formats > 400, "only {prepared_formats} were prepared");
}

#[test]
fn rearranging_keeps_every_value() {
    let mut words = Words(11);
    for format in formats() {
        let quotient = matches!(format.scale, Scale::E4m3(NvRule::CompressedTensors | NvRule::Mlx));
        for [rows, columns, _] in SHAPES {
            let packed = encode(format, &words.many(rows * columns), [rows, columns]);
            let Ok(prepared) = PreparedLinear::new(&packed) else { continue };
            let (found, expected) = (prepared.to_dense().expect("it fits"), packed.decode());
            for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                let close = quotient && (a - b).abs() <= 4.0 * f32::EPSILON * b.abs();
                assert!(a == b || close, "{format} {rows}×{columns}, element {i}: {a} for {b}");
            }
        }
    }
}

/// `q` and the step of each row or of pieces of it, by the definition.
fn quantized(x: &[f32], pieces: &[std::ops::Range<usize>]) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    for piece in pieces {
        let amax = x[piece.clone()].iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let step = if amax == 0.0 { 1.0 } else { amax / 127.0 };
        for i in piece.clone() {
            out[i] = f64::from((x[i] / step).round_ties_even()) * f64::from(step);
        }
    }
    out
}

/// The pieces that [`Activations::Int8Group`] scales apart.
fn pieces(columns: usize, group: usize) -> Vec<std::ops::Range<usize>> {
    let mut pieces = Vec::new();
    for start in (0..columns).step_by(group) {
        let end = columns.min(start + group);
        pieces.extend((start..end).step_by(128).map(|first| first..end.min(first + 128)));
    }
    pieces
}

#[test]
fn products_with_integer_inputs_are_those_of_the_rounded_inputs() {
    let mut words = Words(13);
    let mut prepared_formats = 0;
    for format in formats() {
        for [rows, columns, tokens] in SHAPES {
            let packed = encode(format, &words.many(rows * columns), [rows, columns]);
            let (dense, centre) = (packed.decode(), centre(&packed));
            let x = words.many(tokens * columns);
            for activations in [Activations::Int8Row, Activations::Int8Group] {
                let prepared = PreparedLinear::new(&packed).and_then(|p| p.with_activations(activations));
                let Ok(prepared) = prepared else { continue };
                prepared_formats += 1;
                let pieces = match activations {
                    Activations::Int8Row => vec![0..columns; 1],
                    _ => pieces(columns, packed.layout().block_columns),
                };
                for isa in Isa::ALL {
                    let y = with_isa(isa, || product(&prepared, &x));
                    for (x, y) in x.chunks(columns).zip(y.chunks(rows)) {
                        let rounded = quantized(x, &pieces);
                        for (w, &y) in dense.chunks(columns).zip(y) {
                            let exact: f64 = w.iter().zip(&rounded).map(|(w, x)| f64::from(*w) * x).sum();
                            assert!(
                                (f64::from(y) - exact).abs() <= bound(w, x, centre),
                                "{format} {rows}×{columns}, {tokens} rows, {activations:?}, {isa:?}: {y} for {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
    assert!(prepared_formats > 400, "only {prepared_formats} were prepared");
}

/// Scales that are powers of two and inputs whose step is 1 leave no room for rounding: what differs is a wrong sum.
#[test]
fn integer_sums_are_equal_on_every_instruction_set_at_the_extremes() {
    let power = |bits, rule| Format {
        element: Element::Int { bits, rule },
        block: Block::Group(128),
        scale: Scale::Float(ScaleType::F32),
    };
    let mut formats: Vec<Format> = (2..=8).map(|bits| power(bits, IntRule::Full)).collect();
    formats.extend((2..=8).map(|bits| power(bits, IntRule::Asymmetric)));
    formats.extend([Format::MXFP4, Format::MXINT8, Format::MXFP6_E2M3]);
    let (rows, columns) = (33, 384);
    for format in formats {
        let packed = encode(format, &Words(3).many(rows * columns), [rows, columns]);
        let layout = *packed.layout();
        for pattern in 0..3 {
            // Codes all ones, all zeros, or anything; zero points likewise; scales of one.
            let byte = |i: usize| [0xff, 0x00, (i * 197 + i / 3).to_le_bytes()[0]][pattern];
            let codes: Vec<u8> = (0..layout.code_bytes()).map(byte).collect();
            let zeros: Vec<u8> = (0..layout.zero_bytes()).map(|i| !byte(i)).collect();
            let scales = match format.scale {
                Scale::E8m0(_) => vec![127; layout.scale_bytes()],
                _ => 1.0_f32.to_le_bytes().repeat(layout.scale_bytes() / 4),
            };
            let packed =
                PackedTensor::from_sections(format, &[rows, columns], codes, scales, zeros, vec![]).expect("sections");
            let dense = packed.decode();
            for tokens in [1, 9] {
                let x: Vec<f32> = (0..tokens * columns)
                    .map(|i| {
                        [127.0, -127.0, ((i * 31 % 255) as f32) - 127.0][(i % columns != 0) as usize * (i / 7 % 3)]
                    })
                    .collect();
                for activations in [Activations::Int8Row, Activations::Int8Group] {
                    let prepared = PreparedLinear::new(&packed).and_then(|p| p.with_activations(activations));
                    let prepared = prepared.expect("integers");
                    for isa in Isa::ALL {
                        let y = with_isa(isa, || product(&prepared, &x));
                        for (x, y) in x.chunks(columns).zip(y.chunks(rows)) {
                            let pieces = match activations {
                                Activations::Int8Row => vec![0..columns; 1],
                                _ => pieces(columns, layout.block_columns),
                            };
                            let rounded = quantized(x, &pieces);
                            let steps_are_one = rounded.iter().zip(x).all(|(q, x)| *q == f64::from(*x));
                            for (w, &y) in dense.chunks(columns).zip(y) {
                                let exact: f64 = w.iter().zip(&rounded).map(|(w, x)| f64::from(*w) * x).sum();
                                let same = if steps_are_one { f64::from(y) == exact } else { true };
                                assert!(same, "{format}, pattern {pattern}, {activations:?}, {isa:?}: {y} for {exact}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn neither_threads_nor_other_rows_change_a_bit() {
    let (rows, columns, tokens) = (1000, 520, 23);
    let mut words = Words(17);
    for format in [Format::INT4_G128_ASYM, Format::NVFP4, Format::FP8_E4M3, Format::INT8] {
        let packed = encode(format, &words.many(rows * columns), [rows, columns]);
        let x = words.many(tokens * columns);
        for activations in [Activations::Float, Activations::Int8Row, Activations::Int8Group] {
            let prepared = PreparedLinear::new(&packed).and_then(|p| p.with_activations(activations));
            let Ok(prepared) = prepared else { continue };
            let on = |threads, x: &[f32]| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                bits(&pool.install(|| product(&prepared, x)))
            };
            let (one, first) = (on(1, &x), on(1, &x[..columns]));
            for threads in [2, 3, 7] {
                assert!(on(threads, &x) == one, "{format}, {activations:?}, {threads} threads");
                assert!(on(threads, &x[..columns]) == first, "{format}, {activations:?}, {threads} threads, one row");
            }
            for count in [2, 3, 11, 17] {
                assert!(
                    on(1, &x[..count * columns]) == one[..count * rows],
                    "{format}, {activations:?}: {count} rows of {tokens}"
                );
            }
        }
    }
}

#[test]
fn what_has_no_fast_product_is_refused_by_name() {
    let values = Words(1).many(64 * 4);
    for name in ["f16", "bf16"] {
        let format: Format = name.parse().expect("a format");
        let found = PreparedLinear::new(&encode(format, &values, [4, 64]));
        assert!(matches!(&found, Err(Error::Prepare { format, .. }) if format == name), "{found:?}");
        assert!(encode(format, &values, [4, 64]).prepared().is_none(), "{name}");
    }
    for name in ["nf4", "fp8-e4m3", "mxfp8-e5m2", "mxfp6-e3m2"] {
        let prepared = PreparedLinear::new(&encode(name.parse().expect("a format"), &values, [4, 64])).expect("tiles");
        let found = prepared.with_activations(Activations::Int8Row);
        assert!(matches!(found, Err(Error::Prepare { .. })), "{name}: {found:?}");
    }
    let cast: Format = "fp8-e4m3-cast".parse().expect("a format");
    let mut codes = vec![0x38; 64];
    codes[5] = 0x7f;
    let packed = PackedTensor::from_sections(cast, &[1, 64], codes, vec![], vec![], vec![]).expect("sections");
    let found = PreparedLinear::new(&packed);
    assert!(matches!(found, Err(Error::Prepare { reason, .. }) if reason.contains("NaN")), "{found:?}");
}

#[test]
fn slices_of_other_lengths_are_refused() {
    let prepared = PreparedLinear::new(&encode(Format::INT4_G128, &[0.5; 96], [3, 32])).expect("tiles");
    assert!(matches!(prepared.matmul(&[0.0; 33], &mut [0.0; 3]), Err(Error::Features { in_features: 32, found: 33 })));
    assert!(matches!(prepared.matmul(&[0.0; 64], &mut [0.0; 5]), Err(Error::OutputLen { expected: 6, found: 5 })));
    prepared.matmul(&[], &mut []).expect("no rows are no work");
}

#[test]
fn inputs_that_are_not_finite_show_in_the_outputs() {
    let packed = encode(Format::INT4_G128, &Words(5).many(20 * 256), [20, 256]);
    for bad in [f32::NAN, f32::INFINITY] {
        for tokens in [1, 3] {
            let mut x = vec![0.25; tokens * 256];
            x[77] = bad;
            for activations in [Activations::Float, Activations::Int8Row] {
                let prepared = PreparedLinear::new(&packed).and_then(|p| p.with_activations(activations));
                let prepared = prepared.expect("integers");
                for isa in Isa::ALL {
                    let y = with_isa(isa, || product(&prepared, &x));
                    assert!(y[..20].iter().any(|y| !y.is_finite()), "{bad}, {activations:?}, {isa:?}");
                    assert!(y[20..].iter().all(|y| y.is_finite()), "{bad}, {activations:?}, {isa:?}: other rows");
                }
            }
        }
    }
}
