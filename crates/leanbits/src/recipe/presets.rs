//! The recipes that come with the crate.

use super::{Recipe, RecipeError};

/// A recipe that comes with the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// Name that [`Recipe::preset`] and `--recipe` take.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub summary: &'static str,
    /// The recipe.
    pub toml: &'static str,
}

/// The recipes that come with the crate.
#[must_use]
pub fn presets() -> &'static [Preset] {
    &PRESETS
}

impl Recipe {
    /// A recipe that comes with the crate.
    ///
    /// # Errors
    ///
    /// [`RecipeError::UnknownPreset`].
    pub fn preset(name: &str) -> Result<Self, RecipeError> {
        let preset = PRESETS.iter().find(|preset| preset.name == name);
        Self::from_toml(preset.ok_or_else(|| RecipeError::UnknownPreset { name: name.to_owned() })?.toml)
    }
}

const PRESETS: [Preset; 28] = [
    Preset { name: "safe", summary: "int8 linears: practically no loss", toml: "format = \"int8\"\n" },
    Preset {
        name: "balanced",
        summary: "4-bit linears in groups of 32; down and value projections in 6-bit MX",
        toml: include_str!("../presets/balanced.toml"),
    },
    Preset {
        name: "small",
        summary: "4-bit linears in groups of 128, embeddings and head in int8",
        toml: include_str!("../presets/small.toml"),
    },
    Preset {
        name: "tiny",
        summary: "3-bit linears in groups of 64, embeddings and head in 4 bits",
        toml: include_str!("../presets/tiny.toml"),
    },
    Preset {
        name: "w4-rtn",
        summary: "4-bit linears in groups of 128, rounded to nearest",
        toml: "format = \"int4-g128-asym\"\nmethod = \"rtn\"\n",
    },
    Preset {
        name: "w4-mse",
        summary: "the same with the range of each group searched",
        toml: "format = \"int4-g128-asym\"\nmethod = \"mse\"\n",
    },
    Preset {
        name: "w4-gptq",
        summary: "the same with GPTQ",
        toml: "format = \"int4-g128-asym\"\nmethod = { name = \"gptq\", order = \"group-aware\" }\n",
    },
    Preset { name: "w4-awq", summary: "the same with AWQ", toml: "format = \"int4-g128-asym\"\nmethod = \"awq\"\n" },
    Preset {
        name: "w3-gptq",
        summary: "3-bit linears in groups of 128 with GPTQ",
        toml: "format = \"int3-g128-asym\"\nmethod = { name = \"gptq\", order = \"group-aware\" }\n",
    },
    Preset {
        name: "w8a8-smoothquant",
        summary: "8-bit linears and 8-bit activations, their ranges balanced by SmoothQuant",
        toml: "format = \"int8\"\nactivations = \"int8\"\n\n[transform]\nsmooth = 0.5\n",
    },
    Preset {
        name: "w4-rotated-gptq",
        summary: "4-bit linears with one scale a row: rotated, then GPTQ",
        toml: "format = \"int4-row\"\nmethod = { name = \"gptq\", order = \"group-aware\" }\n\n[transform]\nrotate = \"hadamard\"\n",
    },
    Preset {
        name: "nvfp4-gptq",
        summary: "NVFP4 linears with GPTQ",
        toml: "format = \"nvfp4\"\nmethod = { name = \"gptq\", order = \"group-aware\" }\n",
    },
    Preset {
        name: "svd-90",
        summary: "linears as two f16 factors with 90 % of the parameters, by plain SVD",
        toml: "format = \"f16\"\nmethod = { name = \"svd\", ranks = { kept = 0.9 } }\n",
    },
    Preset {
        name: "asvd-90",
        summary: "the same with input channels scaled by their activations (ASVD)",
        toml: "format = \"f16\"\nmethod = { name = \"asvd\", ranks = { kept = 0.9 } }\n",
    },
    Preset {
        name: "svdllm-90",
        summary: "the same for the least error of the outputs (SVD-LLM)",
        toml: "format = \"f16\"\nmethod = { name = \"svd-llm\", ranks = { kept = 0.9 } }\n",
    },
    Preset {
        name: "svdllm-80-int4",
        summary: "80 % of the parameters by SVD-LLM, factors in 4 bits",
        toml: "format = \"int4-g32\"\nmethod = { name = \"svd-llm\", ranks = { kept = 0.8 } }\n",
    },
    Preset {
        name: "kmeans-2",
        summary: "2-bit linears: vectors of 4 with a code book by k-means",
        toml: "format = \"vectors\"\nmethod = \"kmeans\"\n",
    },
    Preset {
        name: "gptvq-2",
        summary: "2-bit linears: vectors of 2 with code books learned in GPTQ's sweep",
        toml: "format = \"vectors\"\nmethod = \"gptvq\"\n",
    },
    Preset {
        name: "e8p-2",
        summary: "2-bit linears: rotated, E8P code book with feedback (QuIP#)",
        toml: "format = \"vectors\"\nmethod = \"e8p\"\n",
    },
    Preset {
        name: "pcdvq-2",
        summary: "2-bit linears: rotated, direction and length of 8-vectors with feedback (PCDVQ)",
        toml: "format = \"vectors\"\nmethod = \"pcdvq\"\n",
    },
    Preset {
        name: "pcdvq-2.25",
        summary: "the same with 16 bits for directions: 2.25 bits",
        toml: "format = \"vectors\"\nmethod = { name = \"pcdvq\", direction_bits = 16 }\n",
    },
    Preset {
        name: "rwkvquant",
        summary: "3-bit RWKV: scalar or vector codes matrix by matrix, coded multipliers (RWKVQuant)",
        toml: "format = \"int3-g64-asym\"\nmethod = \"rwkvquant\"\n",
    },
    Preset {
        name: "wkvquant-4",
        summary: "4-bit linears in groups of 128 and a 4-bit key-value cache, clips and scales learned together (WKVQuant)",
        toml: "format = \"int4-g128-asym\"\nmethod = \"wkvquant\"\n\n[kv_cache]\nmethod = \"2d:4\"\n",
    },
    Preset {
        name: "moe-gptq-2",
        summary: "2-bit experts in groups of 128 with GPTQ, all else as it is",
        toml: "format = \"keep\"\nmethod = { name = \"gptq\", order = \"group-aware\" }\n\n[[rule]]\nmatch = \"*.experts.*\"\nformat = \"int2-g128-asym\"\n",
    },
    Preset {
        name: "moe-gptq-3",
        summary: "the same in 3 bits",
        toml: "format = \"keep\"\nmethod = { name = \"gptq\", order = \"group-aware\" }\n\n[[rule]]\nmatch = \"*.experts.*\"\nformat = \"int3-g128-asym\"\n",
    },
    Preset {
        name: "moequant-4",
        summary: "4-bit experts with one scale a row, GPTQ weighted by gates (MoEQuant); calibrate on `leanbits calib ebss`",
        toml: "format = \"keep\"\nmethod = { name = \"gptq\" }\n\n[calibration]\ngate_power = \"linear\"\n\n[[rule]]\nmatch = \"*.experts.*\"\nformat = \"int4-row\"\n",
    },
    Preset {
        name: "mxmoe-2.25",
        summary: "experts at 2.25 bits on average, each block in its own format, by what it costs (MxMoE); GPTQ",
        toml: "format = \"keep\"\nmethod = { name = \"gptq\", order = \"group-aware\" }\n\n[experts]\nbits = 2.25\n",
    },
    Preset {
        name: "mxmoe-3.25",
        summary: "the same at 3.25 bits",
        toml: "format = \"keep\"\nmethod = { name = \"gptq\", order = \"group-aware\" }\n\n[experts]\nbits = 3.25\n",
    },
];
