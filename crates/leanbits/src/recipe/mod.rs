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
//!
//! A [`Method`] says how codes are found, for all tensors or for those of a rule; [`Transforms`] change the basis
//! of the whole model first; [`Calibration`] says how much of the calibration text is used.

mod error;
mod experts;
mod factors;
mod kv_cache;
mod method;
mod options;
mod presets;
mod vectors;

pub use error::RecipeError;
pub use experts::{AllocateBy, Experts};
pub(crate) use factors::Factoring;
pub use factors::{Asvd, Corrected, Fwsvd, Metric, Ranks, Svd, SvdLlm};
pub use kv_cache::{KeyPlace, KvCacheChoice};
pub use method::Method;
pub use options::{Calibration, Rotation, Transforms};
pub use presets::{Preset, presets};
pub use vectors::{Assign, E8p, Multipliers, Pcdvq, RwkvQuant};

use crate::{Error, NamePattern};
use quant_core::{Block, Format, Scale};
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

/// What becomes of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It stays as it is stored.
    Keep,
    /// It is quantized to this format; with a method that factors, the factors are.
    Quantize(Format),
    /// It becomes codes of vectors, as its method says.
    Vectors,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Quantize(format) => format.fmt(f),
            Self::Vectors => f.write_str("vectors"),
        }
    }
}

impl FromStr for Choice {
    type Err = quant_core::Error;

    fn from_str(text: &str) -> Result<Self, quant_core::Error> {
        match text {
            "keep" => Ok(Self::Keep),
            "vectors" => Ok(Self::Vectors),
            format => format.parse().map(Self::Quantize),
        }
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

/// One rule: the tensors it names and what becomes of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names it applies to; one pattern or a list.
    #[serde(rename = "match", deserialize_with = "one_or_many")]
    pub patterns: Vec<NamePattern>,
    /// The format, `"vectors"`, or `"keep"`.
    pub format: Choice,
    /// How codes are found; what the recipe says for all, if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

impl Rule {
    /// A rule for one pattern.
    #[must_use]
    pub fn new(pattern: NamePattern, format: Choice) -> Self {
        Self { patterns: vec![pattern], format, method: None }
    }

    /// Whether it names a tensor.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name))
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
    /// Format that the inputs of quantized linears are rounded to, one scale a token, while the model runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<Format>,
    /// Whether embeddings, head, norms and routers stay as they are unless a rule names them.
    #[serde(default = "yes", rename = "default-exclusions")]
    pub default_exclusions: bool,
    /// What is done to the whole model first.
    #[serde(default, rename = "transform", skip_serializing_if = "Transforms::is_none")]
    pub transforms: Transforms,
    /// How much of the calibration text is used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub calibration: Calibration,
    /// The key-value cache that the compressed model runs with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<KvCacheChoice>,
    /// Formats for the experts of mixtures, chosen under a budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// Rules, the first match decides.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

fn yes() -> bool {
    true
}

fn is_default(calibration: &Calibration) -> bool {
    *calibration == Calibration::default()
}

/// Whether a format rounds each token by itself.
fn quantizes_tokens(format: &Format) -> bool {
    let own_scale = !matches!(format.scale, Scale::E4m3(_) | Scale::Double | Scale::None);
    own_scale && matches!(format.block, Block::Row | Block::Group(_))
}

/// A rule that decides about no tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleRule {
    /// Which, counted from 1.
    pub rule: usize,
    /// What it looks for.
    pub patterns: Vec<NamePattern>,
    /// Whether rules before it name all tensors that it matches; otherwise it matches none.
    pub shadowed: bool,
}

impl fmt::Display for IdleRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<String> = self.patterns.iter().map(|pattern| format!("{:?}", pattern.as_str())).collect();
        let why =
            if self.shadowed { "decides nothing: rules before it name all it matches" } else { "matches no tensor" };
        write!(f, "rule {} ({}) {why}", self.rule, patterns.join(", "))
    }
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
    /// Its name is that of a vector that RWKV multiplies or adds element by element.
    Multiplier,
    /// Its method needs a linear of a layer, which it is not.
    NotLinear,
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
            Self::Multiplier => f.write_str("element-wise multiplier"),
            Self::NotLinear => f.write_str("no linear of a layer"),
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

/// Names of tensors that stay as they are by default: Hugging Face's, GPT-2's, GGUF's and RWKV's.
const EXCLUSIONS: [(Reason, &[&str]); 5] = [
    (Reason::Embedding, &["*embed*", "*wte.*", "*wpe.*", "emb.weight", "*.emb.weight"]),
    (Reason::Head, &["lm_head.*", "*.lm_head.*", "output.weight", "head.weight"]),
    (Reason::Norm, &["*norm*", "*.ln_*", "ln_*"]),
    (
        Reason::Router,
        &[
            "*router*",
            "*mlp.gate.weight",
            "*block_sparse_moe.gate.weight",
            "*feed_forward.gate.weight",
            "*shared_expert_gate*",
            "*ffn_gate_inp*",
        ],
    ),
    (
        Reason::Multiplier,
        &[
            "*.x_?",
            "*.x_rwkvag",
            "*.r_k",
            "*.k_k",
            "*.k_a",
            "*.w0",
            "*.a0",
            "*.v0",
            "*.time_maa_?",
            "*.time_maa_wkvrg",
            "*.time_decay",
            "*.time_faaaa",
        ],
    ),
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
        Self {
            format: Choice::Quantize(format),
            method: Method::Rtn,
            activations: None,
            default_exclusions: true,
            transforms: Transforms::default(),
            calibration: Calibration::default(),
            kv_cache: None,
            experts: None,
            rules: Vec::new(),
        }
    }

    /// Reads a recipe.
    ///
    /// # Errors
    ///
    /// [`RecipeError::TooLong`], [`RecipeError::Syntax`] with the line of the first mistake (unknown keys
    /// and unknown formats included), and as [`Recipe::validate`].
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        if text.len() > MAX_RECIPE_BYTES {
            return Err(RecipeError::TooLong { len: text.len() });
        }
        let recipe: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
            RecipeError::Syntax { line, reason: error.message().lines().collect::<Vec<_>>().join(", ") }
        })?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Checks what the types leave open.
    ///
    /// # Errors
    ///
    /// [`RecipeError::TooManyRules`], [`RecipeError::NoPattern`], [`RecipeError::MethodOfKept`],
    /// [`RecipeError::BadSetting`].
    pub fn validate(&self) -> Result<(), RecipeError> {
        if self.rules.len() > MAX_RULES {
            return Err(RecipeError::TooManyRules { found: self.rules.len() });
        }
        if let Some(at) = self.rules.iter().position(|rule| rule.patterns.is_empty()) {
            return Err(RecipeError::NoPattern { rule: at + 1 });
        }
        if let Some(at) = self.rules.iter().position(|rule| rule.format == Choice::Keep && rule.method.is_some()) {
            return Err(RecipeError::MethodOfKept { rule: at + 1 });
        }
        let bad = |name, value: String, expected| Err(RecipeError::BadSetting { name, value, expected });
        let methods = self.rules.iter().filter_map(|rule| rule.method.as_ref().map(|method| (rule.format, method)));
        for (format, method) in methods.chain([(self.format, &self.method)]) {
            method.validate()?;
            match format {
                Choice::Vectors if !method.makes_vectors() => {
                    return bad("format", format.to_string(), "a method that codes vectors: kmeans, gptvq, e8p, pcdvq");
                }
                Choice::Quantize(_) if method.makes_vectors() => {
                    return bad("format", format.to_string(), "\"vectors\", which is what this method makes");
                }
                _ => {}
            }
        }
        let inherits = |rule: &Rule| rule.format == Choice::Vectors && rule.method.is_none();
        if !self.method.makes_vectors() && self.rules.iter().any(inherits) {
            return bad("format", "vectors".to_owned(), "a method that codes vectors beside it");
        }
        if self.rules.iter().any(|rule| rule.method.as_ref().is_some_and(Method::has_budget)) {
            return bad("ranks", "a budget in a rule".to_owned(), "a budget in the method of the recipe");
        }
        if let Some(format) = self.activations.filter(|format| !quantizes_tokens(format)) {
            let expected =
                "a format whose blocks lie within a token and need no scale of the whole tensor, such as int8";
            return bad("activations", format.to_string(), expected);
        }
        if let Some(alpha) = self.transforms.smooth.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return bad("transform.smooth", alpha.to_string(), "a number from 0 to 1");
        }
        let methods = || self.rules.iter().filter_map(|rule| rule.method.as_ref()).chain([&self.method]);
        let moves = self.transforms.smooth.is_some() || methods().any(|m| matches!(m.scalar(), Method::Awq(_)));
        if let Some(method) = methods().find(|method| method.needs_gradients()).filter(|_| moves) {
            let expected = "no smoothing and no awq beside it: gradients are those before scales are moved";
            return bad("method", method.name().to_owned(), expected);
        }
        if let Some(kv_cache) = &self.kv_cache {
            kv_cache.validate()?;
        }
        self.validate_wkvquant()?;
        if let Some(experts) = &self.experts {
            experts.validate()?;
        }
        if self.calibration.windows == 0 {
            return bad("calibration.windows", "0".to_owned(), "at least 1");
        }
        if self.calibration.tokens < 2 {
            return bad("calibration.tokens", self.calibration.tokens.to_string(), "at least 2");
        }
        Ok(())
    }

    /// WKVQuant learns all weights of a layer together with its cache, and nothing else.
    fn validate_wkvquant(&self) -> Result<(), RecipeError> {
        let bad = |name, value: String, expected| Err(RecipeError::BadSetting { name, value, expected });
        let is_wkvquant = |method: &Method| matches!(method, Method::Wkvquant(_));
        if self.rules.iter().any(|rule| rule.method.as_ref().is_some_and(is_wkvquant)) {
            return bad("method", "wkvquant in a rule".to_owned(), "wkvquant as the method of the recipe");
        }
        if !is_wkvquant(&self.method) {
            return Ok(());
        }
        let expected = "2d:BITS or 2d-range:BITS with keys after the rotary turn beside the method wkvquant";
        match &self.kv_cache {
            None => return bad("kv_cache", "missing".to_owned(), expected),
            Some(choice) if choice.method.two_dim().is_none() => {
                return bad("kv_cache.method", choice.method.to_string(), expected);
            }
            Some(choice) if choice.keys == KeyPlace::BeforeRope => {
                return bad("kv_cache.keys", "before-rope".to_owned(), expected);
            }
            Some(_) => {}
        }
        match self.activations {
            None => Ok(()),
            Some(format) => bad("activations", format.to_string(), "none beside the method wkvquant, which keeps them"),
        }
    }

    /// What in it looks at activations, in words: such a recipe needs a calibration text, and no other has a use for one.
    #[must_use]
    pub fn looks_at_activations(&self) -> Option<String> {
        let mut methods = self.rules.iter().filter_map(|rule| rule.method.as_ref()).chain([&self.method]);
        let method = methods.find(|method| method.needs_calibration());
        let smoothing = self.transforms.smooth.map(|_| "smoothing".to_owned());
        let cache = self.kv_cache.as_ref().filter(|cache| cache.needs_calibration());
        let cache = cache.map(|cache| format!("the cache {}", cache.method));
        let experts = self.experts.as_ref().map(|_| "the allocation of experts".to_owned());
        method.map(|method| format!("the method {}", method.name())).or(smoothing).or(cache).or(experts)
    }

    /// How the codes of a tensor are found that was decided about so: by the rule's own method, else by the recipe's if it
    /// can make the form that the rule asks for, else by rounding to nearest.
    #[must_use]
    pub fn method_for(&self, decision: Decision) -> &Method {
        let makes = (decision.choice == Choice::Vectors) == self.method.makes_vectors();
        let inherited = if makes { &self.method } else { &Method::Rtn };
        self.own_method(decision.reason).unwrap_or(inherited)
    }

    /// The method that the rule itself names.
    pub(crate) fn own_method(&self, reason: Reason) -> Option<&Method> {
        let Reason::Rule(number) = reason else { return None };
        number.checked_sub(1).and_then(|at| self.rules.get(at)).and_then(|rule| rule.method.as_ref())
    }

    /// Rules (counted from 1) that decide about none of these tensors, and why.
    #[must_use]
    pub fn idle_rules<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Vec<IdleRule> {
        let mut decides = vec![false; self.rules.len()];
        for name in names.clone() {
            if let Some(at) = self.rules.iter().position(|rule| rule.matches(name)) {
                decides[at] = true;
            }
        }
        let idle = self.rules.iter().zip(decides).enumerate().filter(|(_, (_, decides))| !decides);
        idle.map(|(at, (rule, _))| IdleRule {
            rule: at + 1,
            patterns: rule.patterns.clone(),
            shadowed: names.clone().any(|name| rule.matches(name)),
        })
        .collect()
    }

    /// Reads a recipe file; the names of [`presets`] come first.
    ///
    /// # Errors
    ///
    /// [`Error::File`] when the file cannot be read, [`Error::Recipe`] as [`Recipe::from_toml`].
    pub fn load(source: impl AsRef<Path>) -> Result<Self, Error> {
        let path = source.as_ref();
        let refused = |source| Error::Recipe { file: path.to_owned(), source };
        let is_preset = |name: &&str| presets().iter().any(|preset| preset.name == *name);
        let bare = |name: &&str| !name.contains(['.', '/', '\\']) && !path.exists();
        if let Some(name) = path.to_str().filter(|name| is_preset(name) || bare(name)) {
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
        if let Some(at) = self.rules.iter().position(|rule| rule.matches(name)) {
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
}
