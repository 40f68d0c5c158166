//! Recipes: which tensor is stored how.
//!
//! A recipe is a short TOML file. Rules are tried from the top and the first one whose pattern
//! matches decides; a tensor that no rule names falls to the defaults.
//!
//! ```
//! use leanbits::{Choice, Recipe};
//! let recipe = Recipe::from_toml(
//!     r#"
//!     format = "int4-g128-asym"          # every linear that no rule names
//!
//!     [[rule]]
//!     match = ["*.down_proj.weight", "*.v_proj.weight"]
//!     format = "int8"
//!
//!     [[rule]]
//!     match = "model.layers.0.*"
//!     format = "keep"
//!     "#,
//! )?;
//! let down = recipe.decide("model.layers.7.mlp.down_proj.weight", &[256, 1024]);
//! assert_eq!(down.choice, Choice::Quantize("int8".parse()?));
//! let norm = recipe.decide("model.layers.7.input_layernorm.weight", &[256]);
//! assert_eq!(norm.choice, Choice::Keep);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::{Error, NamePattern};
use quant_core::Format;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

/// Longest recipe that is read, in bytes.
pub const MAX_RECIPE_BYTES: usize = 1 << 20;
/// Most rules a recipe may have.
pub const MAX_RULES: usize = 10_000;

/// Why a recipe was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The text is longer than [`MAX_RECIPE_BYTES`].
    #[error("a recipe of {len} bytes is longer than {MAX_RECIPE_BYTES}")]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// The text is no TOML, has an unknown key, or a value of the wrong kind.
    #[error("line {line}: {reason}")]
    Syntax {
        /// Line of the first mistake, counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// More rules than [`MAX_RULES`].
    #[error("{found} rules are more than {MAX_RULES}")]
    TooManyRules {
        /// Rules given.
        found: usize,
    },
    /// A rule without a pattern can never apply.
    #[error("rule {rule} has no pattern to match")]
    NoPattern {
        /// Position of the rule, counted from 1.
        rule: usize,
    },
    /// No preset has this name.
    #[error("no preset is called {name:?}")]
    UnknownPreset {
        /// The name that was given.
        name: String,
    },
}

/// What becomes of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It stays as it is stored.
    Keep,
    /// It is quantized to this format.
    Quantize(Format),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Quantize(format) => format.fmt(f),
        }
    }
}

impl FromStr for Choice {
    type Err = quant_core::Error;

    fn from_str(text: &str) -> Result<Self, quant_core::Error> {
        if text == "keep" { Ok(Self::Keep) } else { text.parse().map(Self::Quantize) }
    }
}

impl Serialize for Choice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// How the codes of a tensor are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Method {
    /// Round every value to the nearest code. Needs no calibration text.
    #[default]
    Rtn,
}

impl Method {
    /// Name in recipes and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
        }
    }

    /// Whether the method looks at activations of a calibration text.
    #[must_use]
    pub fn needs_calibration(self) -> bool {
        match self {
            Self::Rtn => false,
        }
    }
}

/// One rule: the tensors it names and what becomes of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names it applies to; one pattern or a list.
    #[serde(rename = "match", deserialize_with = "one_or_many")]
    pub patterns: Vec<NamePattern>,
    /// The format, or `"keep"`.
    pub format: Choice,
}

impl Rule {
    /// A rule for one pattern.
    #[must_use]
    pub fn new(pattern: NamePattern, format: Choice) -> Self {
        Self { patterns: vec![pattern], format }
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NamePattern>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a name pattern or a list of them")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let texts = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    texts.into_iter().map(|text| NamePattern::try_from(text).map_err(de::Error::custom)).collect()
}

/// Which tensor is stored how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Format of the tensors that no rule and no default exclusion names.
    pub format: Choice,
    /// How codes are found.
    #[serde(default)]
    pub method: Method,
    /// Whether embeddings, head, norms and routers stay as they are unless a rule names them.
    #[serde(default = "yes", rename = "default-exclusions")]
    pub default_exclusions: bool,
    /// Rules, the first match decides.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

fn yes() -> bool {
    true
}

/// Why a tensor was treated the way it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// A rule of the recipe (counted from 1) names it.
    Rule(usize),
    /// Nothing names it: the recipe's own format.
    Default,
    /// Its name is that of an embedding.
    Embedding,
    /// Its name is that of an output head.
    Head,
    /// Its name is that of a normalization.
    Norm,
    /// Its name is that of a router (mixture of experts).
    Router,
    /// It has fewer than two axes: norms, biases, scalars.
    FewAxes,
    /// Its elements are no floats.
    NotFloat,
    /// The file it came from holds it quantized.
    AlreadyQuantized,
    /// The caller left it out.
    Skipped,
    /// The caller named others.
    NotSelected,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(number) => write!(f, "rule {number}"),
            Self::Default => f.write_str("default"),
            Self::Embedding => f.write_str("embedding"),
            Self::Head => f.write_str("output head"),
            Self::Norm => f.write_str("norm"),
            Self::Router => f.write_str("router"),
            Self::FewAxes => f.write_str("fewer than two axes"),
            Self::NotFloat => f.write_str("not floats"),
            Self::AlreadyQuantized => f.write_str("already quantized"),
            Self::Skipped => f.write_str("skipped"),
            Self::NotSelected => f.write_str("not selected"),
        }
    }
}

/// What a recipe says about one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of it.
    pub choice: Choice,
    /// Why.
    pub reason: Reason,
}

/// Names of tensors that stay as they are by default: Hugging Face's, GPT-2's and GGUF's.
const EXCLUSIONS: [(Reason, &[&str]); 4] = [
    (Reason::Embedding, &["*embed*", "*wte.*", "*wpe.*"]),
    (Reason::Head, &["lm_head.*", "*.lm_head.*", "output.weight"]),
    (Reason::Norm, &["*norm*", "*.ln_*", "ln_*"]),
    (Reason::Router, &["*router*", "*.gate.weight", "*shared_expert_gate*", "*ffn_gate_inp*"]),
];

/// The default exclusions as (what, patterns), for programs that print them.
#[must_use]
pub fn default_exclusions() -> Vec<(Reason, Vec<NamePattern>)> {
    let parse = |text: &&str| text.parse().ok();
    EXCLUSIONS.iter().map(|(reason, texts)| (*reason, texts.iter().filter_map(parse).collect())).collect()
}

impl Recipe {
    /// Every linear in one format; embeddings, head, norms and routers stay.
    #[must_use]
    pub fn uniform(format: Format) -> Self {
        Self { format: Choice::Quantize(format), method: Method::Rtn, default_exclusions: true, rules: Vec::new() }
    }

    /// Reads a recipe.
    ///
    /// # Errors
    ///
    /// [`RecipeError::TooLong`], [`RecipeError::Syntax`] with the line of the first mistake (unknown keys
    /// and unknown formats included), [`RecipeError::TooManyRules`], [`RecipeError::NoPattern`].
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        if text.len() > MAX_RECIPE_BYTES {
            return Err(RecipeError::TooLong { len: text.len() });
        }
        let recipe: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
            RecipeError::Syntax { line, reason: error.message().lines().collect::<Vec<_>>().join(", ") }
        })?;
        if recipe.rules.len() > MAX_RULES {
            return Err(RecipeError::TooManyRules { found: recipe.rules.len() });
        }
        if let Some(at) = recipe.rules.iter().position(|rule| rule.patterns.is_empty()) {
            return Err(RecipeError::NoPattern { rule: at + 1 });
        }
        Ok(recipe)
    }

    /// Reads a recipe file; a name without a dot or slash is first looked up among [`presets`].
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the file cannot be read, [`Error::Recipe`] as [`Recipe::from_toml`].
    pub fn load(source: impl AsRef<Path>) -> Result<Self, Error> {
        let path = source.as_ref();
        let refused = |source| Error::Recipe { file: path.to_owned(), source };
        let name = path.to_str().filter(|name| !name.contains(['.', '/', '\\']));
        if let Some(name) = name
            && (presets().iter().any(|preset| preset.name == name) || !path.exists())
        {
            return Self::preset(name).map_err(refused);
        }
        let file = File::open(path).map_err(|source| Error::file(path, "open", source))?;
        let mut text = String::new();
        let limit = MAX_RECIPE_BYTES as u64 + 1;
        file.take(limit).read_to_string(&mut text).map_err(|source| Error::file(path, "read", source))?;
        Self::from_toml(&text).map_err(refused)
    }

    /// The recipe as TOML that [`Recipe::from_toml`] reads back.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Strings, a boolean and tables of strings always have a TOML form.
        toml::to_string(self).unwrap_or_default()
    }

    /// What becomes of a floating-point tensor of this name and shape.
    #[must_use]
    pub fn decide(&self, name: &str, shape: &[usize]) -> Decision {
        let named = |rule: &Rule| rule.patterns.iter().any(|pattern| pattern.matches(name));
        if let Some(at) = self.rules.iter().position(named) {
            return Decision { choice: self.rules[at].format, reason: Reason::Rule(at + 1) };
        }
        let keep = |reason| Decision { choice: Choice::Keep, reason };
        if self.default_exclusions {
            let lower = name.to_ascii_lowercase();
            for (reason, patterns) in default_exclusions() {
                if patterns.iter().any(|pattern| pattern.matches(&lower)) {
                    return keep(reason);
                }
            }
        }
        if shape.len() < 2 {
            return keep(Reason::FewAxes);
        }
        Decision { choice: self.format, reason: Reason::Default }
    }

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

const PRESETS: [Preset; 4] = [
    Preset { name: "safe", summary: "int8 linears: practically no loss", toml: "format = \"int8\"\n" },
    Preset {
        name: "balanced",
        summary: "4-bit linears in groups of 32; down and value projections in 6-bit MX",
        toml: include_str!("presets/balanced.toml"),
    },
    Preset {
        name: "small",
        summary: "4-bit linears in groups of 128, embeddings and head in int8",
        toml: include_str!("presets/small.toml"),
    },
    Preset {
        name: "tiny",
        summary: "3-bit linears in groups of 64, embeddings and head in 4 bits",
        toml: include_str!("presets/tiny.toml"),
    },
];
