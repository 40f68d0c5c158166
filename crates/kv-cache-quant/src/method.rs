//! Methods by name: what a command line, a recipe or a configuration file says.

use crate::codec::{
    Adapter, ChannelAffine, ClipMode, Codec, Hadamard, KiviConfig, LatentCode, Levels, Mapped, MetaFormat, Plain,
    PmKvqConfig, ReorderPlan, Skvq, SkvqConfig, TokenFormat, TwoDimConfig, search_clip,
};
use crate::{Error, FullPrecision, KeyStorage, KvGeometry, KvPolicy, QuantizedKv, Stream};
use quant_core::Format;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A method with its parameters for keys and for values. It has a name that parses and prints:
///
/// | name | method |
/// |---|---|
/// | `f32` | rows as they are |
/// | `int4-g32-min`, `nvfp4`, `f16` … | any format of quant-core, token by token |
/// | `rotated:int4-min` | heads rotated first |
/// | `centred:int4-min` | channel means removed, then heads rotated |
/// | `smooth:int4-min` | channels divided by `√max|x|` first |
/// | `kivi:2` | KIVI, groups of 32 |
/// | `2d:4` | WKVQuant's two-dimensional quantization, groups of 128 |
/// | `2d-range:4` | the same with channels scaled by their ranges instead of moments |
/// | `skvq:2`, `skvq:ternary`, `skvq:2-g32` | SKVQ, groups of 128 channels on average, or as many as named; E4M3 scales |
/// | `cskv:0.5`, `cskv:16`, `cskv:0.2@int4-min` | CSKV: latents of half the channels, of 16 a head; quantized |
/// | `cskv:0.2@int4-min+trained` | the same with maps that were trained for the format |
/// | `cskv-block:0.2@int4-min` | the same with blocks of 32 tokens, keys by channel in them, in place of a window |
/// | `pm-kvq` | PM-KVQ, as far down as the policy's budget asks |
///
/// `keys/values` gives the two streams parameters of their own: `int8/int4-g32`, `kivi:4/2`, `skvq:2/ternary`.
///
/// ```
/// use kv_cache_quant::{KeyStorage, KvGeometry, KvMethod};
/// let method: KvMethod = "rotated:int4-min/int2-g32-min".parse()?;
/// assert_eq!(method.to_string(), "rotated:int4-min/int2-g32-min");
/// let geometry = KvGeometry { kv_heads: 2, q_heads: 4, dim_k: 64, dim_v: 64 };
/// let cache = method.cache(geometry, KeyStorage::PostRope, method.policy(), None)?;
/// # Ok::<(), kv_cache_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvMethod {
    /// Rows as they are, f32.
    Plain,
    /// A format by token.
    Format(Pair<Format>),
    /// Heads rotated, then a format.
    Rotated(Pair<Format>),
    /// Channel means removed, heads rotated, then a format. Needs statistics.
    Centred(Pair<Format>),
    /// SmoothQuant-style scales with α = 1/2, then a format. Needs statistics.
    Smooth(Pair<Format>),
    /// KIVI at these bits.
    Kivi(Pair<u8>),
    /// Two-dimensional quantization at these bits. Needs statistics.
    TwoDim(Pair<u8>),
    /// The same, channels scaled by half of their range about its middle. Needs statistics.
    TwoDimRange(Pair<u8>),
    /// SKVQ at these levels. Needs statistics, and rows to search clip factors on; without rows they are 0.92.
    Skvq(Pair<SkvqCodes>),
    /// CSKV behind a window. Needs statistics with rows, best of keys before the rotary turn.
    Cskv(Pair<LatentCode>),
    /// CSKV in blocks.
    CskvBlock(Pair<LatentCode>),
    /// PM-KVQ.
    PmKvq,
}

/// One parameter for keys, one for values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<T> {
    /// For keys.
    pub keys: T,
    /// For values.
    pub values: T,
}

/// What calibration says about the rows of one stream of one layer, as they are stored: keys before or after the rotary
/// turn. Sinks are better left out.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct StreamStatistics {
    /// Least value of each channel.
    pub min: Vec<f32>,
    /// Largest value of each channel.
    pub max: Vec<f32>,
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub deviation: Vec<f32>,
    /// Some rows, `[tokens, channels]`; may be empty.
    pub rows: Vec<f32>,
    /// Maps of CSKV that were trained on them, for methods that ask for such.
    pub adapter: Option<Arc<Adapter>>,
    /// Shifts and scales of two-dimensional quantization that were learned, in place of those of the closed form.
    pub affine: Option<Arc<ChannelAffine>>,
}

/// What SKVQ makes of one stream. Its name is that of the levels, with `-gN` for other groups than the published ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkvqCodes {
    /// Levels of a code.
    pub levels: Levels,
    /// Channels that share a range, on average.
    pub group: usize,
}

/// The group of SKVQ's published runs.
const SKVQ_GROUP: usize = 128;
/// Most channels of a group that are believed.
const SKVQ_MOST: usize = 1 << 16;
/// Seed of SKVQ's k-means.
const SKVQ_SEED: u64 = 42;
/// The clip factor of SKVQ's published runs.
const SKVQ_ALPHA: f32 = 0.92;

impl StreamStatistics {
    /// The statistics of some rows, `[tokens, channels]`, sums in f64. Keeps the rows.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for no rows, or rows that are not whole.
    pub fn of(rows: &[f32], channels: usize) -> Result<Self, Error> {
        if channels == 0 || rows.is_empty() || !rows.len().is_multiple_of(channels) {
            return Err(Error::Shape { what: "rows of statistics", expected: channels, found: rows.len() });
        }
        let (mut min, mut max) = (rows[..channels].to_vec(), rows[..channels].to_vec());
        let (mut sum, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
        #[expect(clippy::cast_precision_loss, reason = "a number of tokens")]
        let tokens = (rows.len() / channels) as f64;
        for row in rows.chunks_exact(channels) {
            for (c, &x) in row.iter().enumerate() {
                (min[c], max[c]) = (min[c].min(x), max[c].max(x));
                sum[c] += f64::from(x) / tokens;
            }
        }
        for row in rows.chunks_exact(channels) {
            row.iter()
                .zip(squares.iter_mut().zip(&sum))
                .for_each(|(&x, (s, mean))| *s += (f64::from(x) - mean).powi(2));
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
        let (mean, deviation) =
            (sum.iter().map(|&x| x as f32).collect(), squares.iter().map(|&x| (x / tokens).sqrt() as f32).collect());
        Ok(Self { min, max, mean, deviation, rows: rows.to_vec(), adapter: None, affine: None })
    }

    fn largest(&self) -> Vec<f32> {
        self.min.iter().zip(&self.max).map(|(lo, hi)| lo.abs().max(hi.abs())).collect()
    }
}

impl KvMethod {
    /// Whether [`KvMethod::cache`] needs statistics.
    #[must_use]
    pub fn needs_statistics(&self) -> bool {
        matches!(
            self,
            Self::Centred(_)
                | Self::Smooth(_)
                | Self::TwoDim(_)
                | Self::TwoDimRange(_)
                | Self::Skvq(_)
                | Self::Cskv(_)
                | Self::CskvBlock(_)
        )
    }

    /// What CSKV makes of each stream, and whether in blocks; `None` for other methods.
    #[must_use]
    pub fn latents(&self) -> Option<(Pair<LatentCode>, bool)> {
        match self {
            Self::Cskv(codes) => Some((*codes, false)),
            Self::CskvBlock(codes) => Some((*codes, true)),
            _ => None,
        }
    }

    /// What two-dimensional quantization makes of each stream; `None` for other methods.
    #[must_use]
    pub fn two_dim(&self) -> Option<Pair<TwoDimConfig>> {
        let (Self::TwoDim(bits) | Self::TwoDimRange(bits)) = self else { return None };
        let of = |bits| TwoDimConfig { bits, ..TwoDimConfig::default() };
        Some(Pair { keys: of(bits.keys), values: of(bits.values) })
    }

    /// Shifts and scales of two-dimensional quantization: those that were learned, else those of the closed form, by the range
    /// of each channel for [`KvMethod::TwoDimRange`] and by its moments otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] and [`Error::Parameter`].
    pub fn affine(&self, statistics: &StreamStatistics) -> Result<ChannelAffine, Error> {
        match (&statistics.affine, self) {
            (Some(learned), _) => Ok(learned.as_ref().clone()),
            (None, Self::TwoDimRange(_)) => ChannelAffine::from_min_max(&statistics.min, &statistics.max),
            (None, _) => ChannelAffine::from_moments(&statistics.mean, &statistics.deviation),
        }
    }

    /// The same with maps of the closed form in place of trained ones.
    #[must_use]
    pub fn untrained(self) -> Self {
        let closed = |code: LatentCode| LatentCode { trained: false, ..code };
        let both = |codes: Pair<LatentCode>| Pair { keys: closed(codes.keys), values: closed(codes.values) };
        match self {
            Self::Cskv(codes) => Self::Cskv(both(codes)),
            Self::CskvBlock(codes) => Self::CskvBlock(both(codes)),
            other => other,
        }
    }

    /// The policy the method is published with: SKVQ has a window of 128 and five sinks, PM-KVQ one sink.
    #[must_use]
    pub fn policy(&self) -> KvPolicy {
        match self {
            Self::Plain => KvPolicy { precision: FullPrecision::F32, ..KvPolicy::default() },
            Self::Skvq(_) => KvPolicy { window: 128, sinks: 5, ..KvPolicy::default() },
            Self::Cskv(_) => Pair::policy(false),
            Self::CskvBlock(_) => Pair::policy(true),
            Self::PmKvq => KvPolicy { sinks: 1, ..KvPolicy::default() },
            _ => KvPolicy::default(),
        }
    }

    /// An empty cache of one layer.
    ///
    /// # Errors
    ///
    /// [`Error::Statistics`] when they are needed and missing, and what the codec and [`QuantizedKv::new`] say.
    pub fn cache(
        &self,
        geometry: KvGeometry,
        storage: KeyStorage,
        policy: KvPolicy,
        statistics: Option<&Pair<StreamStatistics>>,
    ) -> Result<QuantizedKv, Error> {
        match self {
            Self::Kivi(bits) => {
                let config = KiviConfig { key_bits: bits.keys, value_bits: bits.values, ..KiviConfig::default() };
                return config.cache(geometry, storage, policy);
            }
            Self::PmKvq => return PmKvqConfig::default().cache(geometry, storage, policy),
            _ => {}
        }
        let keys = self.codec(Stream::Keys, geometry.kv_heads, geometry.dim_k, statistics.map(|s| &s.keys))?;
        let values = self.codec(Stream::Values, geometry.kv_heads, geometry.dim_v, statistics.map(|s| &s.values))?;
        QuantizedKv::new(geometry, storage, keys, values, policy)
    }

    /// The codec of one stream, for methods whose streams do not depend on each other.
    fn codec(
        &self,
        stream: Stream,
        heads: usize,
        dim: usize,
        statistics: Option<&StreamStatistics>,
    ) -> Result<Arc<dyn Codec>, Error> {
        let statistics = || statistics.ok_or(Error::Statistics { stream });
        let token = |pair: &Pair<Format>| Ok::<_, Error>(Arc::new(TokenFormat::new(heads, dim, *pair.of(stream))?));
        let rotated = |pair| Mapped::new(Arc::new(Hadamard::new(heads, dim)?), token(pair)?);
        Ok(match self {
            // KIVI and PM-KVQ are made as a whole.
            Self::Plain | Self::Kivi(_) | Self::PmKvq => Arc::new(Plain::new(heads, dim, FullPrecision::F32)?),
            // The same values, without a decoder in between.
            Self::Format(pair) if pair.of(stream).to_string() == "f16" => {
                Arc::new(Plain::new(heads, dim, FullPrecision::F16)?)
            }
            Self::Format(pair) => token(pair)?,
            Self::Rotated(pair) => Arc::new(rotated(pair)?),
            Self::Centred(pair) => {
                let mean = ChannelAffine::remove_mean(&statistics()?.mean)?;
                Arc::new(Mapped::new(Arc::new(mean), Arc::new(rotated(pair)?))?)
            }
            Self::Smooth(pair) => {
                let scales = ChannelAffine::smooth(&statistics()?.largest(), 0.5)?;
                Arc::new(Mapped::new(Arc::new(scales), token(pair)?)?)
            }
            Self::TwoDim(bits) | Self::TwoDimRange(bits) => {
                let config = TwoDimConfig { bits: *bits.of(stream), ..TwoDimConfig::default() };
                Arc::new(config.codec(heads, dim, self.affine(statistics()?)?)?)
            }
            Self::Cskv(codes) => Arc::new(codes.of(stream).codec(stream, heads, dim, false, statistics()?)?),
            Self::CskvBlock(codes) => Arc::new(codes.of(stream).codec(stream, heads, dim, true, statistics()?)?),
            Self::Skvq(codes) => Arc::new(skvq(*codes.of(stream), statistics()?)?),
        })
    }
}

/// SKVQ as it is published, with clip factors searched per group where there are rows.
fn skvq(codes: SkvqCodes, statistics: &StreamStatistics) -> Result<Skvq, Error> {
    let SkvqCodes { levels, group } = codes;
    let plan = ReorderPlan::kmeans(&statistics.min, &statistics.max, group, SKVQ_SEED, false)?;
    let largest = statistics.largest().into_iter().fold(0.0, f32::max);
    let config = SkvqConfig { levels, meta: MetaFormat::e4m3_for(largest), clip: ClipMode::Midpoint };
    let alphas = if statistics.rows.is_empty() {
        vec![SKVQ_ALPHA; plan.groups()]
    } else {
        let grid: Vec<f32> = (8_u8..=20).map(|step| f32::from(step) / 20.0).collect();
        search_clip(&statistics.rows, &plan, config, &grid)?
    };
    Skvq::new(config, plan, alphas)
}

impl<T> Pair<T> {
    /// The one of a stream.
    pub fn of(&self, stream: Stream) -> &T {
        match stream {
            Stream::Keys => &self.keys,
            Stream::Values => &self.values,
        }
    }
}

impl<T: fmt::Display + PartialEq> fmt::Display for Pair<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keys == self.values { self.keys.fmt(f) } else { write!(f, "{}/{}", self.keys, self.values) }
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ternary => f.write_str("ternary"),
            Self::Bits(bits) => bits.fmt(f),
        }
    }
}

impl fmt::Display for SkvqCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            SKVQ_GROUP => self.levels.fmt(f),
            group => write!(f, "{}-g{group}", self.levels),
        }
    }
}

impl fmt::Display for KvMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("f32"),
            Self::Format(pair) => pair.fmt(f),
            Self::Rotated(pair) => write!(f, "rotated:{pair}"),
            Self::Centred(pair) => write!(f, "centred:{pair}"),
            Self::Smooth(pair) => write!(f, "smooth:{pair}"),
            Self::Kivi(pair) => write!(f, "kivi:{pair}"),
            Self::TwoDim(pair) => write!(f, "2d:{pair}"),
            Self::TwoDimRange(pair) => write!(f, "2d-range:{pair}"),
            Self::Skvq(pair) => write!(f, "skvq:{pair}"),
            Self::Cskv(pair) => write!(f, "cskv:{pair}"),
            Self::CskvBlock(pair) => write!(f, "cskv-block:{pair}"),
            Self::PmKvq => f.write_str("pm-kvq"),
        }
    }
}

impl FromStr for KvMethod {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let unknown = || Error::Unsupported {
            what: "method of a key-value cache",
            found: format!("`{name}`"),
            supported: "f32, FORMAT, rotated:FORMAT, centred:FORMAT, smooth:FORMAT, kivi:BITS, 2d:BITS, 2d-range:BITS, \
                        skvq:BITS, skvq:ternary, skvq:BITS-gN, cskv:WIDTH, cskv:WIDTH@FORMAT, cskv:WIDTH@FORMAT+trained, \
                        cskv-block:…, pm-kvq; keys/values where they differ",
        };
        let formats = |text: &str| parse_pair(text, |part| Ok(part.parse::<Format>()?));
        let bits = |text: &str| {
            parse_pair(text, |part| part.parse().ok().filter(|bits| (1..=8).contains(bits)).ok_or_else(unknown))
        };
        let skvq = |text: &str| {
            parse_pair(text, |part| {
                let (levels, group) = match part.split_once("-g") {
                    None => (part, Some(SKVQ_GROUP)),
                    Some((levels, group)) => {
                        (levels, group.parse().ok().filter(|group| (1..=SKVQ_MOST).contains(group)))
                    }
                };
                let levels = match levels {
                    "ternary" => Levels::Ternary,
                    _ => Levels::Bits(bits(levels)?.keys),
                };
                Ok(SkvqCodes { levels, group: group.ok_or_else(unknown)? })
            })
        };
        Ok(match name.split_once(':') {
            None if name == "f32" => Self::Plain,
            None if name == "pm-kvq" => Self::PmKvq,
            None => Self::Format(formats(name)?),
            Some(("rotated", rest)) => Self::Rotated(formats(rest)?),
            Some(("centred", rest)) => Self::Centred(formats(rest)?),
            Some(("smooth", rest)) => Self::Smooth(formats(rest)?),
            Some(("kivi", rest)) => Self::Kivi(bits(rest)?),
            Some(("2d", rest)) => Self::TwoDim(bits(rest)?),
            Some(("2d-range", rest)) => Self::TwoDimRange(bits(rest)?),
            Some(("cskv", rest)) => Self::Cskv(parse_pair(rest, str::parse)?),
            Some(("cskv-block", rest)) => Self::CskvBlock(parse_pair(rest, str::parse)?),
            Some(("skvq", rest)) => Self::Skvq(skvq(rest)?),
            Some(_) => return Err(unknown()),
        })
    }
}

fn parse_pair<T: Copy>(text: &str, parse: impl Fn(&str) -> Result<T, Error>) -> Result<Pair<T>, Error> {
    match text.split_once('/') {
        Some((keys, values)) => Ok(Pair { keys: parse(keys)?, values: parse(values)? }),
        None => parse(text).map(|both| Pair { keys: both, values: both }),
    }
}

impl serde::Serialize for KvMethod {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for KvMethod {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}
