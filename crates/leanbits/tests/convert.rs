//! `quantize` and `dequantize`.

mod common;

use common::{f32_tensor, llama_tensors, names, run, tiny_llama, values, write_llama, write_safetensors};
use leanbits::core::{Shaped, fake_quantize};
use leanbits::io::{Checkpoint, Stored};

#[test]
fn what_is_dequantized_is_what_the_format_makes_of_the_values() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let weight = values(48 * 80, 7);
    let tensors = [f32_tensor("w", &[48, 80], &weight), f32_tensor("bias", &[48], &values(48, 8))];
    write_safetensors(&path("in.safetensors"), &tensors);
    for format in ["int8", "int4-g32-asym", "int3-g64", "mxfp4", "nvfp4", "nf4", "ternary", "fp8-e4m3", "sefp4", "bfp7"]
    {
        let report =
            run(args!["quantize", path("in.safetensors"), "--format", format, "-o", path("q"), "--force", "--json"]);
        let report = report.json();
        assert_eq!(report["tensors"].as_array().map(Vec::len), Some(2), "{format}");
        let packed = Checkpoint::open(path("q")).expect("a checkpoint");
        let entry = packed.entry("w").expect("the tensor");
        assert!(matches!(entry.stored, Stored::Packed(found) if found.to_string() == format), "{format}: {entry:?}");
        let parsed = format.parse().expect("a format");
        assert_eq!(entry.bytes, leanbits::footprint(parsed, &[48, 80]).expect("a footprint").total_bytes(), "{format}");
        run(args!["dequantize", path("q"), "-o", path("d.safetensors"), "--force", "--json"]).json();
        let plain = Checkpoint::open(path("d.safetensors")).expect("a checkpoint");
        let expected = fake_quantize(parsed, &Shaped::new(&weight, &[48, 80]).expect("a tensor")).expect("values");
        assert_eq!(plain.read_f32("w").expect("values"), expected, "{format}");
        assert_eq!(plain.read_f32("bias").expect("values"), values(48, 8), "{format}: what has one axis is copied");
    }
}

#[test]
fn patterns_choose_and_spare_tensors() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, out) = (folder.path().join("m"), folder.path().join("q.safetensors"));
    write_llama(&input, 1);
    let arguments =
        args!["quantize", input, "-f", "int8", "--only", "*proj*", "--skip", "*v_proj*", "-o", out, "--json"];
    let report = run(arguments).json();
    for tensor in report["tensors"].as_array().expect("tensors") {
        let name = tensor["name"].as_str().expect("a name");
        let chosen = name.contains("proj") && !name.contains("v_proj");
        assert_eq!(tensor["format"] == "int8", chosen, "{tensor}");
        assert_eq!(tensor["sqnr_db"].is_null(), !chosen, "{tensor}");
    }
    let missing = args!["quantize", input, "-f", "int8", "--only", "*prjo*", "-o", folder.path().join("x")];
    run(missing).fails_with_hint(1, &["*prjo*"], "leanbits inspect");
    let nothing = args!["quantize", input, "-f", "int8", "--skip", "*", "-o", folder.path().join("x")];
    run(nothing).fails(1, &["none of"]);
    assert!(!folder.path().join("x").exists(), "nothing is left behind");
    // A name that is asked for is quantized even with one axis.
    let norm = args!["quantize", input, "-f", "int8", "--only", "model.norm.weight", "-o", out, "--force", "--json"];
    assert_eq!(
        run(norm).json()["tensors"].as_array().expect("tensors").iter().filter(|t| t["format"] == "int8").count(),
        1,
        "one"
    );
}

#[test]
fn the_same_bytes_come_out_for_any_number_of_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = Vec::new();
    for threads in ["1", "2", "3"] {
        let out = folder.path().join(threads);
        run(args!["quantize", tiny_llama(), "-f", "int4-g32-asym", "-o", out, "--threads", threads, "--json"]).json();
        files.push(std::fs::read(out).expect("a file"));
    }
    assert!(files[0] == files[1] && files[1] == files[2], "the files differ");
}

#[test]
fn a_quantized_tensor_is_not_quantized_again_but_may_be_carried_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    write_safetensors(&path("in.safetensors"), &llama_tensors(1));
    run(args!["quantize", path("in.safetensors"), "-f", "int4-g32", "--only", "*q_proj*", "-o", path("q"), "--json"])
        .json();
    let again = run(args!["quantize", path("q"), "-f", "int8", "-o", path("r")]);
    again.fails_with_hint(1, &["q_proj", "int4-g32", "quantized already"], "dequantize");
    assert!(!path("r").exists(), "nothing is left behind");
    run(args!["quantize", path("q"), "-f", "int8", "--skip", "*q_proj*", "-o", path("r"), "--json"]).json();
    let (first, second) = (Checkpoint::open(path("q")).expect("one"), Checkpoint::open(path("r")).expect("two"));
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(first.packed(name).expect("packed"), second.packed(name).expect("packed"), "carried byte for byte");
    run(args!["dequantize", path("in.safetensors"), "-o", path("d")]).fails(1, &["none of"]);
}

#[test]
fn bad_values_are_named_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let mut weight = values(16 * 32, 3);
        weight[77] = bad;
        write_safetensors(&path("in.safetensors"), &[f32_tensor("layer.w", &[16, 32], &weight)]);
        let found = run(args!["quantize", path("in.safetensors"), "-f", "int8", "-o", path("q")]);
        found.fails_with_hint(1, &["in.safetensors", "layer.w", "77", shown], "keep");
        assert_eq!(names(folder.path()), ["in.safetensors"], "nothing is left behind");
    }
}

#[test]
fn an_output_that_exists_is_replaced_only_when_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    write_safetensors(&path("in.safetensors"), &[f32_tensor("w", &[8, 32], &values(256, 1))]);
    std::fs::write(path("out"), "precious").expect("a file");
    run(args!["quantize", path("in.safetensors"), "-f", "int8", "-o", path("out")]).fails_with_hint(
        1,
        &["exists"],
        "--force",
    );
    assert_eq!(std::fs::read(path("out")).expect("a file"), b"precious", "untouched");
    run(args!["quantize", path("in.safetensors"), "-f", "int8", "-o", path("out"), "--force", "--json"]).json();
    // The file that is being read may be the one that is replaced.
    run(args!["dequantize", path("out"), "-o", path("out"), "--force", "--json"]).json();
    let back = Checkpoint::open(path("out")).expect("a checkpoint").read_f32("w").expect("values");
    assert!(back.iter().zip(values(256, 1)).all(|(a, b)| (a - b).abs() < 0.05), "eight bits keep the values");
}

#[test]
fn sixteen_bits_refuse_what_they_cannot_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let mut weight = values(4 * 32, 5);
    weight[3] = 1e6;
    write_safetensors(&path("in"), &[f32_tensor("w", &[4, 32], &weight)]);
    run(args!["quantize", path("in"), "-f", "fp8-e4m3", "-o", path("q"), "--json"]).json();
    let f16 = run(args!["dequantize", path("q"), "-o", path("d"), "--dtype", "f16"]);
    f16.fails_with_hint(1, &["w", "element 3", "F16"], "bf16");
    assert!(!path("d").exists(), "nothing is left behind");
    run(args!["dequantize", path("q"), "-o", path("d"), "--dtype", "bf16", "--json"]).json();
    let report = run(args!["inspect", path("d"), "--headers", "--json"]).json();
    assert_eq!(report["tensors"][0]["stored"], "bf16", "{report}");
}

#[test]
fn files_that_are_no_checkpoints_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("noise"), vec![0xAB; 64]).expect("a file");
    std::fs::create_dir(path("empty")).expect("a folder");
    for input in ["noise", "empty", "missing"] {
        run(args!["quantize", path(input), "-f", "int8", "-o", path("q")]).fails(1, &[input]);
        run(args!["inspect", path(input)]).fails(1, &[input]);
        run(args!["dequantize", path(input), "-o", path("q")]).fails(1, &[input]);
    }
    assert!(!path("q").exists(), "nothing is left behind");
}

/// Files that other programs wrote, as `quant-io` keeps them for its own tests.
fn golden(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../quant-io/tests/golden/files").join(name)
}

#[test]
fn other_programs_files_are_decoded() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["tiny.gguf", "ct_w4a16_sym_g32", "ct_w4a16_asym_g32", "ct_fp8_ch", "ct_mxfp4", "ct_nvfp4"] {
        let out = folder.path().join(name).with_extension("safetensors");
        let report = run(args!["dequantize", golden(name), "-o", out, "--json"]).json();
        assert!(report["decoded"].as_u64().is_some_and(|count| count > 0), "{name}: {report}");
        let (packed, plain) = (Checkpoint::open(golden(name)).expect(name), Checkpoint::open(&out).expect(name));
        assert_eq!(packed.entries().len(), plain.entries().len(), "{name}: all tensors");
        for entry in packed.entries() {
            let expected = packed.read_f32(&entry.name).expect("values");
            assert_eq!(plain.read_f32(&entry.name).expect("values"), expected, "{name}: {}", entry.name);
            assert_eq!(plain.entry(&entry.name).expect("the tensor").shape, entry.shape, "{name}: {}", entry.name);
        }
        run(args!["inspect", golden(name), "--json"]).json();
        let again = run(args!["quantize", golden(name), "-f", "int8", "-o", folder.path().join("x")]);
        again.fails_with_hint(1, &["quantized already"], "dequantize");
    }
}
