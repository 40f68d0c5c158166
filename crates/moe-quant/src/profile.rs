//! The time model: what a machine was measured to take for tiles of each scheme.

use crate::{Error, Scheme};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Measured times of a machine, saved as JSON by serde.
///
/// A product of `M` rows with a weight `[N, K]` is worked on in tiles of some rows × some outputs × all of `K`. The time of
/// a tile is measured for several numbers of rows; a layer takes the sum over the tiles of all blocks, divided by the
/// workers (threads, or a GPU's multiprocessors) that take tiles as they become free (MxMoE, arXiv 2505.05799, section 3):
///
/// `T = 1/P · Σ_blocks ⌈N / columns⌉ · Σ_row tiles time(rows, K)`
///
/// A GPU pads its tiles, so one measured number of rows says all: `time(BM, K)` is the paper's `inc`, and the sum is
/// `inc · ⌈M/BM⌉ · ⌈N/BN⌉`. A CPU does not; between measured numbers of rows, and between measured `K`, times are
/// interpolated, beyond the measured `K` they are proportional to it. To `T` comes what a layer does beside products —
/// starting calls, sorting rows, the nonlinearity, adding up — as it was measured for several numbers of rows of all experts,
/// [`Profile::with_overhead`].
///
/// ```
/// use moe_quant::{Device, DeviceKind, Profile, SchemeTimes, Tile, TileTimes};
/// let device = Device { kind: DeviceKind::Gpu, name: "example".into(), workers: 2 };
/// let times = vec![TileTimes { features: 1024, seconds: vec![(16, 1e-6)] }];
/// let tile = Tile { columns: 128, group: 4, launch: 0.0, times };
/// let schemes = vec![SchemeTimes { scheme: "int4-g128-asym".parse()?, tiles: vec![tile] }];
/// let profile = Profile::new(device, schemes)?;
///
/// // 33 rows are three tiles high, 256 outputs two wide.
/// let time = profile.seconds("int4-g128-asym".parse()?, 0, 33, [256, 1024])?;
/// assert!((time - 3.0 * 2.0 * 1e-6 / 2.0).abs() < 1e-15);
/// # Ok::<(), moe_quant::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Profile {
    device: Device,
    schemes: Vec<SchemeTimes>,
    overhead: Option<TileTimes>,
}

/// The machine that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What runs the kernels.
    pub kind: DeviceKind,
    /// Its name and instruction set.
    pub name: String,
    /// Tiles that are worked on at once: threads, or multiprocessors.
    pub workers: usize,
}

/// What runs the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceKind {
    /// The kernels of `quant-core`.
    Cpu,
    /// A GPU whose kernels someone measured.
    Gpu,
}

/// The tiles that a scheme may be computed in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemeTimes {
    /// The scheme.
    pub scheme: Scheme,
    /// Its tiles; one of them is chosen for all blocks of the scheme.
    pub tiles: Vec<Tile>,
}

/// One way to cut a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// Outputs of a tile.
    pub columns: usize,
    /// Only tiles of one group can be used together: on a GPU, the number of warps.
    #[serde(default)]
    pub group: u32,
    /// Seconds that a product takes beside its tiles, if it has rows at all.
    #[serde(default)]
    pub launch: f64,
    /// Times of a tile, by `K` rising.
    pub times: Vec<TileTimes>,
}

/// Times of a tile for one `K`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TileTimes {
    /// `K`.
    pub features: usize,
    /// Rows and the seconds that a tile of so many takes, rows rising. The last are the most rows of a tile; fewer rows than
    /// the first take as long as the first.
    pub seconds: Vec<(usize, f64)>,
}

impl Profile {
    /// The largest version of the file format that is read.
    const VERSION: u32 = 2;

    /// Checks and keeps measured times.
    ///
    /// # Errors
    ///
    /// [`Error::Profile`] for a scheme that occurs twice, lists that are empty or do not rise, widths of zero, and times
    /// that are not positive and finite; [`Error::Setting`] for a device without workers.
    pub fn new(device: Device, schemes: Vec<SchemeTimes>) -> Result<Self, Error> {
        if device.workers == 0 {
            return Err(Error::Setting { name: "workers", value: "0".into(), expected: "at least 1" });
        }
        for (index, entry) in schemes.iter().enumerate() {
            let known = schemes.iter().take(index).any(|other| other.scheme == entry.scheme);
            let wrong = if known { Some("it occurs twice") } else { entry.fault() };
            if let Some(reason) = wrong {
                return Err(Error::Profile { scheme: entry.scheme.to_string(), reason });
            }
        }
        Ok(Self { device, schemes, overhead: None })
    }

    /// The same with what a layer was measured to take beside its products: seconds of the whole machine by the rows of all
    /// experts, for a layer whose hidden and inner widths add up to `features`.
    ///
    /// # Errors
    ///
    /// [`Error::Profile`] for lists that are empty or do not rise and for times that are not positive and finite.
    pub fn with_overhead(self, overhead: TileTimes) -> Result<Self, Error> {
        if let Some(reason) = overhead.fault() {
            return Err(Error::Profile { scheme: "what is done beside products".into(), reason });
        }
        Ok(Self { overhead: Some(overhead), ..self })
    }

    /// Seconds that a layer of widths `[hidden, inner]` takes beside its products for so many rows of all experts: interpolated
    /// between measured numbers of rows, proportional to rows beyond them and to the widths.
    #[must_use]
    pub fn overhead(&self, rows: u64, [hidden, inner]: [usize; 2]) -> f64 {
        let Some(times) = self.overhead.as_ref().filter(|_| rows > 0) else { return 0.0 };
        let most = times.seconds.last().map_or(1, |(rows, _)| *rows as u64);
        let seconds = times.one(rows.min(most)) * (crate::real(rows) / crate::real(most)).max(1.0);
        seconds * crate::real((hidden + inner) as u64) / crate::real(times.features as u64)
    }

    /// The machine that was measured.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What was measured.
    #[must_use]
    pub fn schemes(&self) -> &[SchemeTimes] {
        &self.schemes
    }

    /// Refuses to be used on another machine.
    ///
    /// # Errors
    ///
    /// [`Error::OtherMachine`].
    pub fn check_device(&self, here: &Device) -> Result<(), Error> {
        if self.device == *here {
            return Ok(());
        }
        Err(Error::OtherMachine { profile: self.device.to_string(), here: here.to_string() })
    }

    /// The tiles of a scheme.
    ///
    /// # Errors
    ///
    /// [`Error::NoTimes`].
    pub fn tiles(&self, scheme: Scheme) -> Result<&[Tile], Error> {
        match self.schemes.iter().find(|entry| entry.scheme == scheme) {
            Some(entry) => Ok(&entry.tiles),
            None => {
                let known: Vec<String> = self.schemes.iter().map(|entry| entry.scheme.to_string()).collect();
                Err(Error::NoTimes { scheme: scheme.to_string(), known: known.join(", ") })
            }
        }
    }

    /// Seconds that a block `[out, in]` with so many rows adds to its layer, computed in the tile of this index.
    ///
    /// # Errors
    ///
    /// [`Error::NoTimes`] for a scheme, [`Error::Length`] for a tile that it does not have.
    pub fn seconds(&self, scheme: Scheme, tile: usize, rows: u64, shape: [usize; 2]) -> Result<f64, Error> {
        let tiles = self.tiles(scheme)?;
        let tile = tiles.get(tile).ok_or(Error::Length { what: "tiles", expected: tile + 1, found: tiles.len() })?;
        Ok(tile.seconds(rows, shape) / crate::real(self.device.workers as u64))
    }
}

impl SchemeTimes {
    fn fault(&self) -> Option<&'static str> {
        if self.tiles.is_empty() {
            return Some("it has no tiles");
        }
        for tile in &self.tiles {
            if tile.columns == 0 {
                return Some("a tile has no columns");
            }
            if !tile.launch.is_finite() || tile.launch < 0.0 {
                return Some("a launch takes a negative or infinite time");
            }
            if tile.times.is_empty() {
                return Some("a tile has no times");
            }
            if tile.times.windows(2).any(|pair| pair[0].features >= pair[1].features) {
                return Some("the features of a tile do not rise");
            }
        }
        self.tiles.iter().flat_map(|tile| &tile.times).find_map(TileTimes::fault)
    }
}

impl Tile {
    /// Seconds on one worker for `rows` rows and a weight `[out, in]`.
    #[must_use]
    pub fn seconds(&self, rows: u64, [outputs, features]: [usize; 2]) -> f64 {
        if rows == 0 || self.times.is_empty() {
            return 0.0;
        }
        let upper = self.times.partition_point(|times| times.features < features);
        let k = |times: &TileTimes| crate::real(times.features as u64);
        let wanted = crate::real(features as u64);
        let column = match (upper.checked_sub(1).and_then(|at| self.times.get(at)), self.times.get(upper)) {
            (_, Some(above)) if above.features == features => above.rows(rows),
            (Some(below), Some(above)) => {
                let share = (wanted - k(below)) / (k(above) - k(below));
                below.rows(rows) * (1.0 - share) + above.rows(rows) * share
            }
            (Some(only), None) | (None, Some(only)) => only.rows(rows) * wanted / k(only),
            (None, None) => 0.0,
        };
        self.launch + column * crate::real(outputs.div_ceil(self.columns) as u64)
    }
}

impl TileTimes {
    fn fault(&self) -> Option<&'static str> {
        let bad_time = |seconds: f64| !(seconds.is_finite() && seconds > 0.0);
        if self.features == 0 || self.seconds.is_empty() {
            return Some("there are no times");
        }
        if self.seconds[0].0 == 0 || self.seconds.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Some("rows do not rise from at least 1");
        }
        self.seconds.iter().any(|(_, seconds)| bad_time(*seconds)).then_some("a time is not a positive number")
    }

    /// Seconds of the tiles above each other that hold `rows` rows.
    fn rows(&self, rows: u64) -> f64 {
        let Some(&(most, full)) = self.seconds.last() else { return 0.0 };
        let (whole, rest) = (rows / most as u64, rows % most as u64);
        let part = if rest == 0 { 0.0 } else { self.one(rest) };
        crate::real(whole) * full + part
    }

    /// Seconds of one tile of so many rows.
    fn one(&self, rows: u64) -> f64 {
        let upper = self.seconds.partition_point(|(measured, _)| (*measured as u64) < rows);
        match (upper.checked_sub(1).and_then(|at| self.seconds.get(at)), self.seconds.get(upper)) {
            (None, Some((_, first))) => *first,
            (Some(&(below, least)), Some(&(above, most))) => {
                let share = crate::real(rows - below as u64) / crate::real((above - below) as u64);
                least + (most - least) * share
            }
            (Some((_, last)), None) => *last,
            (None, None) => 0.0,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::Cpu => "the CPU",
            DeviceKind::Gpu => "the GPU",
        };
        write!(f, "{kind} `{}` with {} workers", self.name, self.workers)
    }
}

/// Rows below which 16-bit products with a smaller weight beat faster products with a larger one.
///
/// A scheme that multiplies in 16 bits takes `2·M·N·K / peak`, one that is bound by the bytes of its weight takes
/// `N·K·bits/8 / bandwidth`, so the first is faster while `M < peak · (bits/8) / (2 · bandwidth)` (MxMoE, section 2).
/// `bits` are those of the second scheme's weight; `peak` in 16-bit operations a second, `bandwidth` in bytes a second.
///
/// ```
/// // RTX 4090: W4A16 against W8A8, and W2A16 against W4A4; the paper says 83 and 42.
/// assert_eq!(moe_quant::crossover_rows(165e12, 1.008e12, 8.0).round(), 82.0);
/// assert_eq!(moe_quant::crossover_rows(165e12, 1.008e12, 4.0).round(), 41.0);
/// ```
#[must_use]
pub fn crossover_rows(peak: f64, bandwidth: f64, bits: f64) -> f64 {
    peak * (bits / 8.0) / (2.0 * bandwidth)
}

/// A profile as it is saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    device: Device,
    /// What a layer takes beside products, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overhead: Option<TileTimes>,
    schemes: Vec<SchemeTimes>,
}

impl From<Profile> for Stored {
    fn from(profile: Profile) -> Self {
        let Profile { device, schemes, overhead } = profile;
        Self { version: Profile::VERSION, device, overhead, schemes }
    }
}

impl TryFrom<Stored> for Profile {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self, Error> {
        if stored.version != Self::VERSION {
            let (value, expected) =
                (stored.version.to_string(), "version 2 of the format; `leanbits profile` measures anew");
            return Err(Error::Setting { name: "version of the profile", value, expected });
        }
        let profile = Self::new(stored.device, stored.schemes)?;
        match stored.overhead {
            Some(overhead) => profile.with_overhead(overhead),
            None => Ok(profile),
        }
    }
}
