//! How codes are found, and with which settings.

use super::{Asvd, Corrected, E8p, Fwsvd, Metric, Pcdvq, Ranks, RecipeError, RwkvQuant, Svd, SvdLlm};
use crate::models::{Error as ModelError, Reconstruction};
use low_rank::ScaleSource;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use vector_quant::{GptvqConfig, KMeansVq};
use weight_quant::MseClip;
use weight_quant::awq::AwqConfig;
use weight_quant::gptq::GptqConfig;

/// How the codes of a tensor are found.
///
/// In a recipe either a name, `method = "gptq"`, which means the method's defaults, or a table with settings:
/// `method = { name = "gptq", damp = 0.05 }`.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "name", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Method {
    /// Round every value to the nearest code. Needs no calibration text.
    #[default]
    Rtn,
    /// Round to nearest after a search for the range of each group that makes the error least. Needs no
    /// calibration text.
    Mse(MseClip),
    /// Column by column, later columns making up for the error of earlier ones (GPTQ).
    Gptq(GptqConfig),
    /// Channels with large inputs scaled up before rounding, and ranges searched (AWQ).
    Awq(AwqConfig),
    /// Two factors in place of a weight, by truncated SVD.
    Svd(Svd),
    /// The same with rows, or columns, weighted by gradients of the loss.
    Fwsvd(Fwsvd),
    /// The same with input channels scaled by their activations.
    Asvd(Asvd),
    /// The same for the least error of the outputs on the calibration text.
    #[serde(rename = "svd-llm")]
    SvdLlm(SvdLlm),
    /// Rounded, and two factors for what rounding lost.
    Corrected(Corrected),
    /// Vector codes with a code book learned by k-means.
    Kmeans(KMeansVq),
    /// Vector codes with code books learned in GPTQ's sweep.
    Gptvq(GptvqConfig),
    /// Vector codes of rotated weights in a lattice (QuIP#).
    E8p(E8p),
    /// Vector codes of rotated weights by direction and length.
    Pcdvq(Pcdvq),
    /// Scalar or vector codes, weight by weight, and coded multipliers.
    Rwkvquant(Box<RwkvQuant>),
    /// Round to nearest with clips of groups that are learned, together with the scales of the key-value cache, on the outputs of
    /// several layers (WKVQuant).
    Wkvquant(Reconstruction),
}

/// Names of all methods.
const NAMES: [&str; 15] = [
    "rtn",
    "mse",
    "gptq",
    "awq",
    "svd",
    "fwsvd",
    "asvd",
    "svd-llm",
    "corrected",
    "kmeans",
    "gptvq",
    "e8p",
    "pcdvq",
    "rwkvquant",
    "wkvquant",
];

impl Method {
    /// Name in recipes and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
            Self::Mse(_) => "mse",
            Self::Gptq(_) => "gptq",
            Self::Awq(_) => "awq",
            Self::Svd(_) => "svd",
            Self::Fwsvd(_) => "fwsvd",
            Self::Asvd(_) => "asvd",
            Self::SvdLlm(_) => "svd-llm",
            Self::Corrected(_) => "corrected",
            Self::Kmeans(_) => "kmeans",
            Self::Gptvq(_) => "gptvq",
            Self::E8p(_) => "e8p",
            Self::Pcdvq(_) => "pcdvq",
            Self::Rwkvquant(_) => "rwkvquant",
            Self::Wkvquant(_) => "wkvquant",
        }
    }

    /// The method of this name with its default settings.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "rtn" => Some(Self::Rtn),
            "mse" => Some(Self::Mse(MseClip::default())),
            "gptq" => Some(Self::Gptq(GptqConfig::default())),
            "awq" => Some(Self::Awq(AwqConfig::default())),
            "svd" => Some(Self::Svd(Svd::default())),
            "fwsvd" => Some(Self::Fwsvd(Fwsvd::default())),
            "asvd" => Some(Self::Asvd(Asvd::default())),
            "svd-llm" => Some(Self::SvdLlm(SvdLlm::default())),
            "corrected" => Some(Self::Corrected(Corrected::default())),
            "kmeans" => Some(Self::Kmeans(KMeansVq::default())),
            "gptvq" => Some(Self::Gptvq(GptvqConfig::default())),
            "e8p" => Some(Self::E8p(E8p::default())),
            "pcdvq" => Some(Self::Pcdvq(Pcdvq::default())),
            "rwkvquant" => Some(Self::Rwkvquant(Box::default())),
            "wkvquant" => Some(Self::Wkvquant(Reconstruction::default())),
            _ => None,
        }
    }

    /// Whether the method looks at activations of a calibration text.
    #[must_use]
    pub fn needs_calibration(&self) -> bool {
        match self {
            Self::Rtn | Self::Mse(_) => false,
            Self::Gptq(_) | Self::Awq(_) | Self::Wkvquant(_) => true,
            Self::Fwsvd(_) | Self::Asvd(_) | Self::SvdLlm(_) | Self::Gptvq(_) | Self::Rwkvquant(_) => true,
            Self::Svd(svd) => svd.ranks.is_budget(),
            Self::Corrected(corrected) => corrected.metric != Metric::Svd || corrected.base.needs_calibration(),
            Self::Kmeans(config) => config.weighted,
            Self::E8p(config) => config.feedback,
            Self::Pcdvq(config) => config.feedback,
        }
    }

    /// Whether the method reads gradients of the loss on the calibration text.
    #[must_use]
    pub fn needs_gradients(&self) -> bool {
        match self {
            Self::Fwsvd(_) => true,
            Self::Asvd(asvd) => matches!(asvd.source, ScaleSource::Fisher | ScaleSource::FisherAbsMean),
            _ => false,
        }
    }

    /// Whether it makes codes of vectors, so that a recipe says `format = "vectors"` beside it.
    #[must_use]
    pub fn makes_vectors(&self) -> bool {
        matches!(self, Self::Kmeans(_) | Self::Gptvq(_) | Self::E8p(_) | Self::Pcdvq(_))
    }

    /// Whether it only finds codes of single values in a format.
    #[must_use]
    pub fn is_scalar(&self) -> bool {
        matches!(self, Self::Rtn | Self::Mse(_) | Self::Gptq(_) | Self::Awq(_) | Self::Wkvquant(_))
    }

    /// Whether ranks are chosen for all weights together.
    pub(crate) fn has_budget(&self) -> bool {
        self.ranks().is_some_and(Ranks::is_budget)
    }

    /// The method that finds codes of single values: its own, or that of the weight under a correction.
    pub(crate) fn scalar(&self) -> &Self {
        match self {
            Self::Corrected(corrected) => &corrected.base,
            other => other,
        }
    }

    /// Checks ranges of settings that are not the business of the method's own crate.
    pub(super) fn validate(&self) -> Result<(), RecipeError> {
        self.validate_factors()?;
        if let Self::Wkvquant(settings) = self
            && let Err(ModelError::BadSetting { name, value, expected }) = settings.validate()
        {
            return Err(RecipeError::BadSetting { name, value, expected });
        }
        self.validate_vectors()
    }
}

impl Serialize for Method {
    /// A name where the settings are the defaults, else a table.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if Self::named(self.name()).as_ref() == Some(self) {
            return serializer.serialize_str(self.name());
        }
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrTable)
    }
}

struct NameOrTable;

impl<'de> Visitor<'de> for NameOrTable {
    type Value = Method;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a method, or a table with its `name` and settings")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Method, E> {
        Method::named(name).ok_or_else(|| E::unknown_variant(name, &NAMES))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Method, A::Error> {
        Method::deserialize(MapAccessDeserializer::new(map))
    }
}
