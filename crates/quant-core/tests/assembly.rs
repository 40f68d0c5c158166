//! Packed tensors that are not simply encoded: given grids, external sweeps, fewer bits, double quantization.

use quant_core::{
    BlockParams, EncodeOptions, Error, ExponentClamps, Format, FormatGrid, Grid, Layout, PackedTensor, Rounding, Shaped,
};

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * (1.0 + (i % 13) as f32)).collect()
}

fn parse(name: &str) -> Format {
    name.parse().unwrap()
}

#[test]
fn a_static_tensor_scale_is_kept_and_larger_blocks_saturate() {
    let grid = FormatGrid::new(Format::NVFP4, 6.0).unwrap();
    let mut x = [0.0_f32; 32];
    x[0] = 6.0;
    x[16] = 60.0;
    let packed = PackedTensor::encode_on(&grid, &Shaped::new(&x, &[1, 32]).unwrap(), EncodeOptions::default()).unwrap();
    assert_eq!(packed.second(), [grid.tensor_scale()]);
    assert_eq!(packed.scales(), [0x7e, 0x7e], "448 is as far as a block scale goes");
    let decoded = packed.decode();
    assert_eq!(decoded[0], decoded[16], "the larger block saturates");
    assert!((decoded[0] - 6.0).abs() < 1e-6);
}

#[test]
fn an_external_sweep_packs_like_the_encoder() {
    let x = values(4 * 70);
    for named in Format::named() {
        let shape = [4, 70];
        let format = named.format;
        let packed = PackedTensor::encode(format, &Shaped::new(&x, &shape).unwrap()).unwrap();
        let grid = *packed.grid();
        let layout = Layout::new(format, &shape).unwrap();
        let mut params = Vec::<BlockParams>::new();
        for block_row in 0..layout.block_rows_count() {
            for block in 0..layout.block_columns_count() {
                let mut group = Vec::new();
                for row in (block_row * layout.block_rows..).take(layout.block_rows).take_while(|&row| row < 4) {
                    let start = row * 70 + block * layout.block_columns;
                    group.extend_from_slice(&x[start..start + layout.block_columns.min((row + 1) * 70 - start)]);
                }
                params.push(grid.fit(&group, 1.0).unwrap());
            }
        }
        let code = |(i, x): (usize, &f32)| {
            let block = i / 70 / layout.block_rows * layout.block_columns_count() + i % 70 / layout.block_columns;
            u16::try_from(grid.encode(&[*x], &params[block])).unwrap()
        };
        let codes: Vec<u16> = x.iter().enumerate().map(code).collect();
        // The second level of double quantization is found from the magnitudes when none is given.
        let second = if named.name.ends_with("dq") { &[] } else { packed.second() };
        let assembled = PackedTensor::from_codes(format, &shape, &codes, &params, second).unwrap();
        assert_eq!(assembled.codes(), packed.codes(), "{}", named.name);
        assert_eq!(assembled.scales(), packed.scales(), "{}", named.name);
        assert_eq!(assembled.zeros(), packed.zeros(), "{}", named.name);
        assert_eq!(assembled.second(), packed.second(), "{}", named.name);
        assert_eq!(assembled.decode(), packed.decode(), "{}", named.name);
    }
}

#[test]
fn assembling_checks_codes_blocks_and_sections() {
    let format = parse("int4-g4");
    let grid = FormatGrid::new(format, 0.0).unwrap();
    let params = vec![grid.fit(&[7.0, 1.0], 1.0).unwrap(); 2];
    let shape = [1, 8];
    let assemble = |codes: &[u16], params: &[BlockParams], second: &[f32]| {
        PackedTensor::from_codes(format, &shape, codes, params, second).map(|_| ())
    };
    assert_eq!(assemble(&[15; 8], &params, &[]), Ok(()));
    assert!(matches!(assemble(&[0; 7], &params, &[]), Err(Error::Shape { expected: 8, found: 7, .. })));
    assert!(matches!(assemble(&[0; 8], &params[..1], &[]), Err(Error::Blocks { expected: 2, found: 1, .. })));
    assert!(matches!(assemble(&[0, 0, 16, 0, 0, 0, 0, 0], &params, &[]), Err(Error::Code { index: 2, limit: 16, .. })));
    assert!(matches!(assemble(&[0; 8], &params, &[1.0]), Err(Error::SectionLen { section: "second", .. })));
    let asymmetric = FormatGrid::new(parse("int4-asym-g4"), 0.0).unwrap();
    let off = asymmetric.params_from_stored(0x3c00, 16.0);
    let refused = PackedTensor::from_codes(asymmetric.format(), &[1, 4], &[0; 4], &[off], &[]);
    assert!(matches!(refused, Err(Error::ReservedScale { block: 0, .. })), "a zero point beyond four bits");
    let trits = PackedTensor::from_codes(parse("ternary"), &[1, 1], &[3], &params[..1], &[]);
    assert!(matches!(trits, Err(Error::Code { code: 3, limit: 3, .. })));
}

#[test]
fn only_formats_whose_codes_nest_are_cut() {
    let x = values(64);
    let tensor = Shaped::new(&x, &[1, 64]).unwrap();
    let packed = PackedTensor::encode(Format::INT8, &tensor).unwrap();
    assert!(matches!(packed.truncated(4), Err(Error::Truncate { bits: 4, .. })));
    let packed = PackedTensor::encode(parse("sefp5"), &tensor).unwrap();
    assert!(packed.truncated(0).is_err() && packed.truncated(6).is_err());
    assert_eq!(packed.truncated(5).unwrap(), packed);
    let coarse = packed.truncated(2).unwrap();
    assert_eq!(coarse.format().to_string(), "sefp2");
    assert_eq!(coarse.scales(), packed.scales());
    assert!(coarse.decode().iter().zip(packed.decode()).all(|(a, b)| a.abs() <= b.abs() && a * b >= 0.0));
}

#[test]
fn rounded_codes_do_not_nest_where_truncated_ones_do() {
    let x = values(4096);
    let tensor = Shaped::new(&x, &[64, 64]).unwrap();
    let encode = |bits: u8, rounding| {
        PackedTensor::encode_with(parse(&format!("sefp{bits}")), &tensor, EncodeOptions { rounding, seed: 0 }).unwrap()
    };
    assert_eq!(encode(8, Rounding::TowardZero).truncated(4).unwrap(), encode(4, Rounding::TowardZero));
    assert_ne!(
        encode(8, Rounding::NearestEven).truncated(4).unwrap().codes(),
        encode(4, Rounding::NearestEven).codes()
    );
}

#[test]
fn five_bit_exponents_saturate_high_and_flush_low() {
    let grid = FormatGrid::new(parse("sefp4-g4"), 0.0).unwrap();
    let fit = |x: f32| grid.fit(&[x, -x / 3.0], 1.0).unwrap();
    // Bias 15: the exponents -14 to 15 are the codes 1 to 30, as in f16.
    for (x, code) in [
        (0.0, 1),
        (2_f32.powi(-30), 1),
        (2_f32.powi(-14), 1),
        (2_f32.powi(-13), 2),
        (1.0, 15),
        (65_535.0, 30),
        (1e9, 30),
    ] {
        assert_eq!(fit(x).scale_code, code, "{x}");
    }
    assert_eq!(grid.round(1e9, &fit(1e9)), 15.0 * 2_f32.powi(12), "saturates");
    assert_eq!(grid.round(2_f32.powi(-30), &fit(2_f32.powi(-30))), 0.0, "flushes");
    let wide = FormatGrid::new(parse("bfp4-g4"), 0.0).unwrap();
    assert_eq!(wide.round(1e9, &wide.fit(&[1e9], 1.0).unwrap()), 15.0 * 2_f32.powi(26));
    assert_eq!(wide.fit(&[0.0], 1.0).unwrap().scale_code, 1, "the least exponent of eight bits is -126");
}

#[test]
fn clamped_exponents_are_counted_by_block() {
    let x = [1e6_f32, 1.0, 1e-6, 2e-6, 0.0, 0.0, 3.0, 4.0, -2e5, 0.0];
    let count = |name: &str, shape: &[usize]| {
        let clamps = ExponentClamps::count(parse(name), &Shaped::new(&x, shape).unwrap()).unwrap();
        (clamps.saturated, clamps.flushed)
    };
    assert_eq!(count("sefp4-g2", &[5, 2]), (2, 1), "the zero block is no flush");
    assert_eq!(count("sefp4-t2x1", &[5, 2]), (2, 0), "tiles");
    assert_eq!(count("sefp4-g4", &[10]), (2, 0), "a block is judged by its largest value");
    assert_eq!(count("bfp4-g2", &[5, 2]), (0, 0));
    assert_eq!(count("int4", &[5, 2]), (0, 0));
}

#[test]
fn double_quantization_stores_a_byte_a_block_and_a_float_for_256() {
    let x = values(64 * 300);
    let packed = PackedTensor::encode(parse("nf4-dq"), &Shaped::new(&x, &[300, 64]).unwrap()).unwrap();
    assert_eq!((packed.scales().len(), packed.second().len()), (300, 3));
    assert_eq!(packed.footprint().total_bytes(), 300 * 32 + 300 + 12);
    let plain = PackedTensor::encode(Format::NF4, &Shaped::new(&x, &[300, 64]).unwrap()).unwrap();
    assert_eq!(packed.codes(), plain.codes(), "codes are chosen before the second level");
    for block in 0..300 {
        let (a, b) = (packed.params(block, 0).scale, plain.params(block, 0).scale);
        assert!((a / b - 1.0).abs() < 0.02, "block {block}: {a} and {b}");
    }
}

#[test]
fn footprints_are_the_ones_in_the_papers() {
    let x = values(256 * 1024);
    for (name, bits) in [
        ("mxfp8", 8.25),
        ("mxfp6", 6.25),
        ("mxfp4", 4.25),
        ("mxint8", 8.25),
        ("int4-g128", 4.125),
        ("int4-asym-g128", 4.156_25),
        ("int4-g32", 4.5),
        ("nf4", 4.5),
        ("nf4-dq", 4.127),
        ("gse5", 5.156_25),
        ("sefp8", 9.078_125),
        ("fp8", 8.031_25),
        ("nvfp4", 4.5 + 32.0 / 262_144.0),
        ("int2-min-g128", 2.25),
        ("ternary", 1.601_7),
        ("bf16", 16.0),
    ] {
        let packed = PackedTensor::encode(parse(name), &Shaped::new(&x, &[256, 1024]).unwrap()).unwrap();
        let got = packed.footprint().bits_per_element();
        assert!((got - bits).abs() < 6e-4, "{name}: {got}, expected {bits}");
    }
}

#[test]
fn scales_that_do_not_fit_their_type_are_errors() {
    let huge = [1e30_f32, 1.0];
    let tensor = Shaped::new(&huge, &[1, 2]).unwrap();
    for name in ["int4", "int4-asym", "int4-ctsym", "int4-ctasym", "int4-min", "fp8-f16", "ternary-max-f16"] {
        let error = PackedTensor::encode(parse(name), &tensor).unwrap_err();
        assert!(matches!(error, Error::ScaleOverflow { block: 0, .. }), "{name}: {error}");
        assert!(error.to_string().contains("-f32"), "it says what helps");
    }
    assert!(PackedTensor::encode(parse("int4-bf16"), &tensor).is_ok());
    // A scale below f16 stays at its smallest number instead of vanishing.
    let tiny = PackedTensor::encode(parse("int8"), &Shaped::new(&[1e-7_f32, -5e-8], &[1, 2]).unwrap()).unwrap();
    assert_eq!(tiny.params(0, 0).scale_code, 1);
    assert_eq!(tiny.decode(), [2.0 * 2_f32.powi(-24), -2_f32.powi(-24)]);
}

#[test]
fn reserved_one_byte_scales_are_refused_wherever_they_stand() {
    let values: Vec<f32> = (0..96_u8).map(|i| f32::from(i) - 40.0).collect();
    for (format, reserved) in [(Format::MXFP4, 0xff_u8), (Format::NVFP4, 0x7f), (Format::NVFP4, 0xff)] {
        let packed = PackedTensor::encode(format, &Shaped::new(&values, &[1, 96]).unwrap()).unwrap();
        for block in 0..packed.scales().len() {
            let mut scales = packed.scales().to_vec();
            scales[block] = reserved;
            let (codes, second) = (packed.codes().to_vec(), packed.second().to_vec());
            let lent = PackedTensor::from_sections(format, &[1, 96], codes, scales, Vec::new(), second);
            assert!(matches!(lent, Err(Error::ReservedScale { block: at, .. }) if at == block), "{format} {block}");
        }
    }
}

#[test]
fn memory_of_the_caller_gets_the_bytes_of_a_packed_tensor() {
    let x: Vec<f32> = (0..6 * 96_u16).map(|i| f32::from(i * 37 % 211) / 64.0 - 1.5).collect();
    let shape = [6, 96];
    for name in
        ["int8", "int4-g32", "int3-g32", "int4-asym-g32", "int2-g32-min", "fp8-e4m3", "mxfp4", "nvfp4", "nf4-dq"]
    {
        let Ok(format) = name.parse::<Format>() else { panic!("{name} is a format") };
        let tensor = Shaped::new(&x, &shape).unwrap();
        let packed = PackedTensor::encode(format, &tensor).unwrap();
        let lengths = [packed.codes().len(), packed.scales().len(), packed.zeros().len()];
        // What was there before must not show.
        let mut memory = lengths.map(|len| vec![0xa5_u8; len]);
        let [codes, scales, zeros] = memory.each_mut().map(Vec::as_mut_slice);
        let options = EncodeOptions::default();
        let second = PackedTensor::encode_into(format, &tensor, options, [&mut *codes, &mut *scales, zeros]).unwrap();
        assert_eq!((&*codes, &*scales), (packed.codes(), packed.scales()), "{name}");
        assert_eq!(memory[2], packed.zeros(), "{name}");
        assert_eq!(second, packed.second(), "{name}");
        let [codes, scales, zeros] = memory.each_mut().map(Vec::as_mut_slice);
        let refused = PackedTensor::encode_into(format, &tensor, options, [&mut codes[1..], scales, zeros]);
        assert!(matches!(refused, Err(Error::SectionLen { section: "codes", .. })), "{name}: {refused:?}");
    }
}
