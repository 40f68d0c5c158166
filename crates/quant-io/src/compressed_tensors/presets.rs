//! The presets of the Python package: names that stand for a whole group.

use super::config::{Number, Strategy, WeightArgs};

/// What a preset says about weights, and whether it quantizes inputs.
pub(super) struct Preset {
    pub(super) weights: Option<WeightArgs>,
    pub(super) quantizes_inputs: bool,
}

/// The preset of this name, in any case; the names of compressed-tensors 0.20.
pub(super) fn find(name: &str) -> Option<Preset> {
    let name = name.to_ascii_uppercase();
    let of = |bits, number, strategy, quantizes_inputs| {
        let weights = WeightArgs { bits, number, symmetric: true, strategy, power_of_two_scales: false };
        Some(Preset { weights: Some(weights), quantizes_inputs })
    };
    let mx = |bits, quantizes_inputs| {
        let weights = WeightArgs {
            bits,
            number: Number::Float,
            symmetric: true,
            strategy: Strategy::Group(32),
            power_of_two_scales: true,
        };
        Some(Preset { weights: Some(weights), quantizes_inputs })
    };
    match name.as_str() {
        "UNQUANTIZED" => Some(Preset { weights: None, quantizes_inputs: false }),
        "W8A8" | "INT8" => of(8, Number::Int, Strategy::Channel, true),
        "W4AFP8" => of(4, Number::Int, Strategy::Group(128), true),
        "W4A16_ASYM" => of(4, Number::Int, Strategy::Group(128), false).map(|mut preset| {
            if let Some(weights) = &mut preset.weights {
                weights.symmetric = false;
            }
            preset
        }),
        "FP8" => of(8, Number::Float, Strategy::Tensor, true),
        "FP8_DYNAMIC" => of(8, Number::Float, Strategy::Channel, true),
        "FP8_BLOCK" => of(8, Number::Float, Strategy::Block { rows: 128, columns: 128 }, true),
        "NVFP4A16" => of(4, Number::Float, Strategy::Group(16), false),
        "NVFP4" => of(4, Number::Float, Strategy::Group(16), true),
        "MXFP4A16" => mx(4, false),
        "MXFP4" | "MXFP4XFP8" => mx(4, true),
        "MXFP6A16" => mx(6, false),
        "MXFP6A8" => mx(6, true),
        "MXFP8A16" => mx(8, false),
        "MXFP8" => mx(8, true),
        _ => {
            let (weight, activation) = name.strip_prefix('W')?.split_once('A')?;
            let bits = weight.parse().ok().filter(|bits| (2..=8).contains(bits))?;
            let inputs = matches!(activation, "4" | "8");
            if !inputs && activation != "16" {
                return None;
            }
            of(bits, Number::Int, Strategy::Group(128), inputs)
        }
    }
}
