//! How codes are found, and with which settings.

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
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
}

/// Names of all methods.
const NAMES: [&str; 4] = ["rtn", "mse", "gptq", "awq"];

impl Method {
    /// Name in recipes and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
            Self::Mse(_) => "mse",
            Self::Gptq(_) => "gptq",
            Self::Awq(_) => "awq",
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
            _ => None,
        }
    }

    /// Whether the method looks at activations of a calibration text.
    #[must_use]
    pub fn needs_calibration(&self) -> bool {
        match self {
            Self::Rtn | Self::Mse(_) => false,
            Self::Gptq(_) | Self::Awq(_) => true,
        }
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
