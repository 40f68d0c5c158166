//! Double quantization: the f32 magnitudes of a code book quantized once more to 8 bits.
//!
//! `offset = mean(magnitudes)`; blocks of 256 differences from it are divided by their largest
//! magnitude and rounded to the signed dynamic map. Stored: one byte a block, and in the section
//! `second` the offset followed by the magnitude of each 256 blocks.
//! `magnitude = map[byte]·second[1 + block/256] + second[0]`.
//!
//! Codes are chosen with the f32 magnitude before it is quantized, as bitsandbytes does (QLoRA,
//! arXiv 2305.14314, section 3). The sums of the mean are made in f64.

use super::{EncodeOptions, PackedTensor};
use crate::element::{SIGNED_DYNAMIC_MAP, encode_dynamic};
use crate::layout::DOUBLE_BLOCK;
use crate::{Error, Format, FormatGrid, Layout, Scale, ScaleType, Tensor};

pub(super) fn encode(
    format: Format,
    tensor: &impl Tensor,
    options: EncodeOptions,
) -> Result<PackedTensor<'static>, Error> {
    let first_level = Format { scale: Scale::Float(ScaleType::F32), ..format };
    let packed = PackedTensor::encode_with(first_level, tensor, options)?;
    let (words, _) = packed.scales.as_chunks::<4>();
    let magnitudes: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let (scales, second) = quantize(&magnitudes);
    Ok(PackedTensor {
        format,
        layout: Layout::new(format, &packed.shape)?,
        grid: FormatGrid::new(format, 0.0)?,
        decoder: None,
        scales: scales.into(),
        second,
        ..packed
    })
}

/// The bytes of the magnitudes and the section `second`.
pub(super) fn quantize(magnitudes: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let sum: f64 = magnitudes.iter().copied().map(f64::from).sum();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a mean of f32 values is in range"
    )]
    let offset = (sum / magnitudes.len().max(1) as f64) as f32;
    let mut second = vec![offset];
    for block in magnitudes.chunks(DOUBLE_BLOCK) {
        second.push(block.iter().fold(0.0, |largest: f32, x| largest.max((x - offset).abs())));
    }
    (requantize(magnitudes, &second), second)
}

/// The bytes of magnitudes under a given second level.
pub(super) fn requantize(magnitudes: &[f32], second: &[f32]) -> Vec<u8> {
    let byte = |(block, x): (usize, &f32)| {
        let largest = second[1 + block / DOUBLE_BLOCK];
        encode_dynamic(if largest == 0.0 { 0.0 } else { (x - second[0]) / largest })
    };
    magnitudes.iter().enumerate().map(byte).collect()
}

/// The magnitude that a byte stands for.
pub(super) fn magnitude(byte: u8, block: usize, second: &[f32]) -> f32 {
    SIGNED_DYNAMIC_MAP[usize::from(byte)] * second[1 + block / DOUBLE_BLOCK] + second[0]
}
