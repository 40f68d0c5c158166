//! Names of formats.

use quant_core::{Block, Format, FormatGrid, PackedTensor, Shaped};

#[test]
fn every_named_format_prints_its_name_and_parses_back() {
    for named in Format::named() {
        assert_eq!(named.format.to_string(), named.name, "{named:?}");
        assert_eq!(named.name.parse::<Format>(), Ok(named.format), "{}", named.name);
    }
}

#[test]
fn modifiers_parse_in_any_order_and_print_in_one() {
    let printed = |name: &str| name.parse::<Format>().map(|f| f.to_string()).unwrap();
    assert_eq!(printed("int4-bf16-asym-g64"), "int4-g64-asym-bf16");
    assert_eq!(printed("fp8"), "fp8-e4m3");
    assert_eq!(printed("fp8-e4m3-row-f32"), "fp8-e4m3");
    assert_eq!(printed("fp8-e4m3-t128x128"), "fp8-e4m3-t128x128");
    assert_eq!(printed("fp8-e5m2-nonsat"), "fp8-e5m2-nonsat");
    assert_eq!(printed("mxfp4-even-g16"), "mxfp4-g16-even");
    assert_eq!(printed("gse5"), "sefp4-g32");
    assert_eq!(printed("nf4-dq"), "nf4-dq");
    assert_eq!("int3-g96".parse::<Format>().unwrap().block, Block::Group(96));
}

#[test]
fn nonsense_is_refused_with_the_offending_part() {
    for name in [
        "",
        "int",
        "int0",
        "int9",
        "int4-g0",
        "int4-g-1",
        "int4-g4294967296",
        "int4-even",
        "mxfp4-asym",
        "nf5",
        "int4-g32-g64",
        "nvfp4-f16",
        "fp8-e9m9",
        "ternary-dq",
        "int4--g32",
        "bfp0",
        "mxint1",
        "ternary-even",
        "mxfp4-mlx",
        "f16-f32",
    ] {
        let error = name.parse::<Format>().unwrap_err().to_string();
        assert!(error.contains(&format!("{name:?}")), "{name}: {error}");
    }
}

#[test]
fn every_named_format_encodes_a_ragged_matrix() {
    let values: Vec<f32> = (0..3 * 71_u8 as usize).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    let tensor = Shaped::new(&values, &[3, 71]).unwrap();
    for named in Format::named() {
        let packed = PackedTensor::encode(named.format, &tensor).unwrap();
        let error: f32 = packed.decode().iter().zip(&values).map(|(a, b)| (a - b).powi(2)).sum();
        let energy: f32 = values.iter().map(|x| x * x).sum();
        println!("{:16} {:.4} {:.3} bits", named.name, (error / energy).sqrt(), packed.footprint().bits_per_element());
        assert!(error < 0.35 * energy, "{}: {error} of {energy}", named.name);
        assert!(FormatGrid::new(named.format, 1.0).is_ok(), "{}", named.name);
    }
}
