//! Streams a synthetic checkpoint out and in and prints MB/s beside a plain copy of the same bytes.
//!
//! `cargo run --release -p quant-io --example throughput -- [MiB] [FOLDER]`

use quant_core::{Format, Layout};
use quant_io::safetensors::DType;
use quant_io::{Checkpoint, CheckpointPlan, CheckpointWriter, PlannedTensor, hf::ShardOptions};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

fn report(what: &str, bytes: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = bytes as f64 / seconds / 1e6;
    println!("{what:<44} {rate:>8.0} MB/s ({seconds:.3} s)");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mebibytes: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let folder = arguments.next().map_or_else(std::env::temp_dir, Into::into).join("quant-io-throughput");
    std::fs::create_dir_all(&folder)?;
    let shape = [2048, 4096];
    let tensor_bytes = 2 * shape[0] * shape[1];
    let count = (mebibytes << 20).div_ceil(tensor_bytes);
    let contents: Vec<u8> = (0..251_u8).cycle().take(tensor_bytes / 2).flat_map(|low| [low, 0x3d]).collect();
    let total = (count * tensor_bytes) as u64;

    let start = Instant::now();
    let copy = folder.join("copy.bin");
    let mut file = std::fs::File::create(&copy)?;
    for _ in 0..count {
        file.write_all(&contents)?;
    }
    file.sync_data()?;
    report("plain file write with sync", total, start);
    std::fs::remove_file(copy)?;

    let names: Vec<String> = (0..count).map(|i| format!("layer.{i}.weight")).collect();
    let planned: Vec<_> = names.iter().map(|n| PlannedTensor::plain(n, DType::BF16, &shape)).collect();
    let options = ShardOptions { max_shard_bytes: 256 << 20, keep_finished: false };
    let start = Instant::now();
    let mut writer = CheckpointWriter::create(&folder, CheckpointPlan::new(&planned, &BTreeMap::new(), options)?)?;
    for name in &names {
        writer.write_plain(name, &contents)?;
    }
    writer.finish()?;
    report("streaming write of shards with sync", total, start);

    let start = Instant::now();
    let model = Checkpoint::open(&folder)?;
    println!("open: {:.1} ms for {} tensors", start.elapsed().as_secs_f64() * 1e3, model.entries().len());
    let start = Instant::now();
    let mut sum = 0_u64;
    for name in &names {
        let Some(tensor) = model.plain(name)? else { continue };
        sum += tensor.bytes.chunks_exact(8).map(|c| u64::from(c[0] ^ c[7])).sum::<u64>();
    }
    black_box(sum);
    report("touching every mapped byte", total, start);
    let mut values = vec![0.0; shape[0] * shape[1]];
    let start = Instant::now();
    for name in &names {
        model.read_f32_into(name, &mut values)?;
    }
    black_box(&values);
    report("bf16 to f32, in bytes of bf16", total, start);

    for name in ["int4-g128", "mxfp4", "nvfp4", "int8"] {
        let format: Format = name.parse()?;
        let layout = Layout::new(format, &shape)?;
        let tensor = quant_core::PackedTensor::encode(format, &quant_core::Shaped::new(&values, &shape)?)?;
        let path = folder.join("packed.safetensors");
        let planned = [PlannedTensor::packed("w", format, &shape)];
        let plan = CheckpointPlan::new(&planned, &BTreeMap::new(), ShardOptions::default())?;
        let mut writer = CheckpointWriter::create(&path, plan)?;
        writer.write_packed("w", &tensor)?;
        writer.finish()?;
        let model = Checkpoint::open(&path)?;
        let start = Instant::now();
        let lent = model.packed("w")?;
        let bytes = (layout.code_bytes() + layout.scale_bytes()) as u64;
        report(&format!("lending {name}, all scales checked"), bytes, start);
        assert!(lent.as_ref() == Some(&tensor), "what was written is what is read");
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
