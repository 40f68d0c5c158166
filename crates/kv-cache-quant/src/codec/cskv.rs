//! CSKV (arXiv 2409.10593): rows kept as latents of fewer channels, and rebuilt from them.
//!
//! | part of the paper | here |
//! |---|---|
//! | adapters: `c = compress(row)`, `row ≈ c B + bias` | [`Adapter`] |
//! | exact branch: the last `m` tokens | [`KvPolicy::window`] (default), or blocks: [`Cskv::in_blocks`] |
//! | latents at 4 bits, keys by channel over 32 tokens, values by token | any codec of latents |
//! | keys rebuilt, then turned at their own positions | [`KeyStorage::PreRope`](crate::KeyStorage::PreRope) |
//! | ASVD's cache (arXiv 2312.05821) | the same without a window |
//!
//! The paper compresses inputs of the layer, `c = x A`; this cache is given keys and values only. Nothing is lost by
//! that: of all latents the one with the least error for a row `k` is `(k − b) B⁺`, whatever `A` was, and in the
//! closed-form optimum `x A` *is* that latent (`A = Wᵀ B⁺`). It also makes adapters smaller, and tokens of the window
//! need no latents of their own: they are compressed from their exact rows when they leave it.

use crate::codec::{ChannelFormat, Codec, Plain, TokenFormat, UnitBytes, check_heads, fingerprint};
use crate::{Error, FullPrecision, KvPolicy, Pair, Stream, StreamStatistics, kernels};
use ndarray::{Array1, Array2, ArrayView2, Axis, Slice};
use quant_core::{Block, Format};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Tokens of the window, and of a block, in the paper.
const WINDOW: usize = 32;
/// Seed of the rotation of latents that are to be quantized.
const ROTATION_SEED: u64 = 0;
/// Share of the mean variance that is added to that of each latent before it is divided by: directions that few rows of
/// statistics say little about may yet carry something.
const DAMP: f64 = 0.01;
/// Squared singular values of `B` below this share of the largest are taken for zero.
const LEAST: f64 = 1e-12;

/// The two linear maps of one stream of one layer: `c = (row − shift) P` and `row ≈ c B + shift`.
///
/// Elements are held, and multiplied with, in the precision given; [`Adapter::bytes`] counts them.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    precision: FullPrecision,
    channels: usize,
    width: usize,
    /// `P`, `[channels, width]`; `None`: `Bᵀ`.
    compress: Option<Vec<u8>>,
    /// `B`, `[width, channels]`.
    rebuild: Vec<u8>,
    shift: Vec<f32>,
}

impl Adapter {
    /// From trained matrices: `compress` `[channels, width]`, `rebuild` `[width, channels]`, row-major, and a bias that
    /// rows are shifted by, one a channel.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] when a matrix has another size, [`Error::Unsupported`] for a width of 0 or more than the
    /// channels, [`Error::Parameter`] for elements that are not finite in the precision.
    pub fn new(
        compress: &[f32],
        rebuild: &[f32],
        shift: Vec<f32>,
        width: usize,
        precision: FullPrecision,
    ) -> Result<Self, Error> {
        let mut adapter = Self::tied(rebuild, shift, width, precision)?;
        check_matrix("matrix that compresses", compress, adapter.channels, width)?;
        adapter.compress = Some(stored("element of the matrix that compresses", compress, precision)?);
        Ok(adapter)
    }

    /// From a `rebuild` `[width, channels]` of any kind, such as ASVD's; rows are compressed by its pseudo-inverse,
    /// `c = (row − shift) Bᵀ (B Bᵀ)⁻¹`, which no other latent is better than.
    ///
    /// # Errors
    ///
    /// As [`Adapter::new`], and [`Error::Linalg`].
    pub fn nearest(rebuild: &[f32], shift: Vec<f32>, width: usize, precision: FullPrecision) -> Result<Self, Error> {
        let adapter = Self::tied(rebuild, shift, width, precision)?;
        let svd = quant_linalg::svd(widen(rebuild, width, adapter.channels)?.view())?;
        let largest = svd.s.iter().copied().fold(0.0, f64::max);
        let inverse = svd.s.mapv(|s| if s * s > LEAST * largest * largest { s.recip() } else { 0.0 });
        let pseudo = quant_linalg::matmul((svd.vt.t().to_owned() * &inverse).view(), svd.u.t());
        Self::new(&narrow(pseudo.view()), rebuild, adapter.shift, width, precision)
    }

    /// From a `rebuild` with orthonormal rows, which is its own way back: `P = Bᵀ`, and only one of the two is held.
    fn tied(rebuild: &[f32], shift: Vec<f32>, width: usize, precision: FullPrecision) -> Result<Self, Error> {
        let channels = shift.len();
        if width == 0 || width > channels {
            return Err(Error::Unsupported {
                what: "width of latents",
                found: format!("{width} for {channels} channels"),
                supported: "1 up to the channels of a row",
            });
        }
        check_matrix("matrix that rebuilds", rebuild, width, channels)?;
        if let Some((channel, &value)) = shift.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(Error::Parameter { what: "shift", channel, value, positive: false });
        }
        let rebuild = stored("element of the matrix that rebuilds", rebuild, precision)?;
        Ok(Self { precision, channels, width, compress: None, rebuild, shift })
    }

    /// The adapter with the least squared error over some rows `[tokens, channels]`: their mean, and the `width`
    /// directions in which they vary most. With `W` the projection, `G` the Gram matrix of its inputs and no mean this is
    /// the whitened optimum `truncate(W G^½)`, seen from its outputs.
    ///
    /// With `rotation`, for latents that are to be quantized, both maps take the root of each deviation `σ`, and latents are
    /// turned by a random orthogonal matrix of that seed. All of them vary alike then and errors in all count the same, the
    /// best that linear maps can do against uniform rounding: it costs in proportion to `(Σ σ)²/width`, where
    /// orthonormal directions have `Σ σ²`. The two maps are different matrices then, and without it one.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for no rows or rows that are not whole, [`Error::Linalg`] for such that are not finite, and as
    /// [`Adapter::new`].
    pub fn principal(
        rows: &[f32],
        channels: usize,
        width: usize,
        rotation: Option<u64>,
        precision: FullPrecision,
    ) -> Result<Self, Error> {
        if channels == 0 || rows.is_empty() || !rows.len().is_multiple_of(channels) {
            return Err(Error::Shape { what: "rows of statistics", expected: channels, found: rows.len() });
        }
        let mut rows = widen(rows, rows.len() / channels, channels)?;
        let mean = rows.mean_axis(Axis(0)).unwrap_or_default();
        rows -= &mean;
        let eigen = quant_linalg::eigh(quant_linalg::matmul(rows.t(), rows.view()).view())?;
        // Eigenvalues ascend: the last columns, the largest first.
        let mut basis = eigen.vectors.slice_axis(Axis(1), Slice::from(channels.saturating_sub(width)..)).to_owned();
        basis.invert_axis(Axis(1));
        #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
        let shift: Vec<f32> = mean.iter().map(|&x| x as f32).collect();
        let Some(seed) = rotation else { return Self::tied(&narrow(basis.t()), shift, width, precision) };
        let mut roots: Array1<f64> = eigen.values.iter().rev().take(width).map(|value| value.max(0.0)).collect();
        let mean = roots.mean().filter(|&mean| mean > 0.0).unwrap_or(1.0);
        roots.mapv_inplace(|variance| (variance / mean + DAMP).powf(0.25));
        let turn = quant_linalg::random_orthogonal(basis.ncols(), seed)?;
        let compress = quant_linalg::matmul((&basis / &roots).view(), turn.view());
        let rebuild = quant_linalg::matmul(turn.t(), (basis * &roots).t());
        Self::new(&narrow(compress.view()), &narrow(rebuild.view()), shift, width, precision)
    }

    /// Channels of a row.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Channels of a latent.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes of both matrices and the shift.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let compress = self.compress.as_ref().map_or(0, Vec::capacity);
        (compress + self.rebuild.capacity() + 4 * self.shift.capacity()) as u64
    }

    /// `P`, `[channels, width]`, row-major as it is multiplied with; `None` where it is `Bᵀ`.
    #[must_use]
    pub fn compressing(&self) -> Option<Vec<f32>> {
        self.compress.as_ref().map(|bytes| self.read(bytes))
    }

    /// What rows are shifted by, one a channel.
    #[must_use]
    pub fn shift(&self) -> &[f32] {
        &self.shift
    }

    /// `B`, `[width, channels]`, row-major as it is multiplied with.
    #[must_use]
    pub fn rebuild(&self) -> Vec<f32> {
        self.read(&self.rebuild)
    }

    fn read(&self, bytes: &[u8]) -> Vec<f32> {
        let mut matrix = vec![0.0; bytes.len() / self.precision.bytes()];
        self.precision.read(bytes, &mut matrix);
        matrix
    }

    /// Latents `[tokens, width]` of rows.
    fn compress(&self, rows: &[f32], latents: &mut [f32]) {
        let matrix = self.compressing();
        let rebuild = if matrix.is_none() { self.rebuild() } else { Vec::new() };
        let mut centred = vec![0.0; self.channels];
        for (row, latent) in rows.chunks_exact(self.channels).zip(latents.chunks_exact_mut(self.width)) {
            centred.iter_mut().zip(row.iter().zip(&self.shift)).for_each(|(c, (x, shift))| *c = x - shift);
            match &matrix {
                Some(matrix) => kernels::multiply_rows(&centred, matrix, self.width, latent),
                None => kernels::dot_rows(&centred, &rebuild, self.channels, 1.0, latent),
            }
        }
    }
}

/// `[rows, columns]` as f64.
fn widen(values: &[f32], rows: usize, columns: usize) -> Result<Array2<f64>, Error> {
    Array2::from_shape_vec((rows, columns), values.iter().map(|&x| f64::from(x)).collect()).map_err(|_| Error::Shape {
        what: "matrix",
        expected: rows * columns,
        found: values.len(),
    })
}

#[expect(clippy::cast_possible_truncation, reason = "rounded once")]
fn narrow(matrix: ArrayView2<'_, f64>) -> Vec<f32> {
    matrix.iter().map(|&x| x as f32).collect()
}

fn check_matrix(what: &'static str, matrix: &[f32], rows: usize, columns: usize) -> Result<(), Error> {
    let (expected, found) = (rows * columns, matrix.len());
    if expected == found { Ok(()) } else { Err(Error::Shape { what, expected, found }) }
}

fn stored(what: &'static str, matrix: &[f32], precision: FullPrecision) -> Result<Vec<u8>, Error> {
    if let Some((channel, &value)) = matrix.iter().enumerate().find(|(_, x)| x.is_nan() || x.abs() > precision.limit())
    {
        return Err(Error::Parameter { what, channel, value, positive: false });
    }
    let mut bytes = vec![0; matrix.len() * precision.bytes()];
    precision.write(matrix, &mut bytes);
    Ok(bytes)
}

/// Keeps latents of rows in another codec, and rebuilds rows from them.
///
/// Attention rebuilds keys a page at a time, and sums values as latents: `(p C) B` in place of `p (C B)`.
///
/// ```
/// use kv_cache_quant::{Adapter, Codec, Cskv, FullPrecision, Plain};
/// use std::sync::Arc;
/// // Rows that vary along one direction only.
/// let rows: Vec<f32> = (0..32).flat_map(|t| [t as f32, 1.0 - 2.0 * t as f32, 5.0]).collect();
/// let adapter = Adapter::principal(&rows, 3, 1, None, FullPrecision::F32)?;
/// let codec = Cskv::new(Arc::new(adapter), Arc::new(Plain::new(1, 1, FullPrecision::F32)?))?;
/// let (mut unit, mut row) = (vec![0; codec.bytes(0).total()], [0.0; 3]);
/// codec.seal(&[100.0, -199.0, 5.0], 0, &mut unit)?;
/// codec.open(&unit, 0, &mut row)?;
/// assert_eq!(unit.len(), 4);
/// assert!((row[0] - 100.0).abs() < 1e-3 && (row[2] - 5.0).abs() < 1e-3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Cskv {
    adapter: Arc<Adapter>,
    latents: Arc<dyn Codec>,
    /// Units of the codec of latents that are sealed together.
    units: usize,
}

impl Cskv {
    /// Latents of `adapter` are kept in `latents`.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] when the codec is made for latents of another width, [`Error::Unsupported`] for one whose
    /// precision is lowered later.
    pub fn new(adapter: Arc<Adapter>, latents: Arc<dyn Codec>) -> Result<Self, Error> {
        if latents.width() != adapter.width {
            return Err(Error::Width { what: "codec of latents", expected: adapter.width, found: latents.width() });
        }
        if latents.stages() != 1 {
            let found = format!("{} stages", latents.stages());
            return Err(Error::Unsupported { what: "codec of latents", found, supported: "codecs of one precision" });
        }
        Ok(Self { adapter, latents, units: 1 })
    }

    /// Seals `tokens` tokens together: the block window of the authors' code, in which rows are exact only since the
    /// last multiple of the block, and none are when it has just been filled.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] unless blocks are a positive multiple of the unit of the latents' codec.
    pub fn in_blocks(self, tokens: usize) -> Result<Self, Error> {
        let unit = self.latents.unit();
        if tokens == 0 || !tokens.is_multiple_of(unit) {
            let found = format!("{tokens} tokens over units of {unit}");
            return Err(Error::Unsupported {
                what: "block window",
                found,
                supported: "positive multiples of the unit of the codec of latents",
            });
        }
        Ok(Self { units: tokens / unit, ..self })
    }

    /// The maps between rows and latents.
    #[must_use]
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Decodes units into latents `[tokens, width]`.
    pub(crate) fn open_latents(&self, units: &[u8], latents: &mut [f32]) -> Result<(), quant_core::Error> {
        self.latents.open(units, 0, latents)
    }

    /// `out += latent · B + mass · shift` for some heads' sums of weighted latents: `sums` is `[sums, width]`, `out`
    /// `[sums, dim]`, and `head` says which channels of a row a sum is for.
    pub(crate) fn expand(
        &self,
        sums: &[f32],
        masses: &[f32],
        dim: usize,
        head: impl Fn(usize) -> usize,
        out: &mut [f32],
    ) {
        let rebuild = self.adapter.rebuild();
        let (width, channels) = (self.adapter.width, self.adapter.channels);
        let sums = sums.chunks_exact(width).zip(masses).zip(out.chunks_exact_mut(dim));
        for (index, ((sums, mass), out)) in sums.enumerate() {
            let first = head(index) * dim;
            kernels::add_rows(sums, &rebuild[first..], channels, out);
            out.iter_mut().zip(&self.adapter.shift[first..]).for_each(|(x, shift)| *x += mass * shift);
        }
    }
}

impl Codec for Cskv {
    fn width(&self) -> usize {
        self.adapter.channels()
    }

    fn unit(&self) -> usize {
        self.units * self.latents.unit()
    }

    fn bytes(&self, stage: usize) -> UnitBytes {
        let unit = self.latents.bytes(stage);
        UnitBytes { codes: self.units * unit.codes, metadata: self.units * unit.metadata }
    }

    fn seal(&self, rows: &[f32], stage: usize, out: &mut [u8]) -> Result<(), quant_core::Error> {
        let mut latents = vec![0.0; self.unit() * self.adapter.width];
        self.adapter.compress(rows, &mut latents);
        let latents = latents.chunks_exact(self.latents.unit() * self.adapter.width);
        let mut units = latents.zip(out.chunks_exact_mut(self.latents.bytes(stage).total()));
        units.try_for_each(|(latents, unit)| self.latents.seal(latents, stage, unit))
    }

    fn open(&self, units: &[u8], _stage: usize, rows: &mut [f32]) -> Result<(), quant_core::Error> {
        let Adapter { channels, width, ref shift, .. } = *self.adapter;
        let mut latents = vec![0.0; rows.len() / channels * width];
        self.open_latents(units, &mut latents)?;
        kernels::multiply_rows(&latents, &self.adapter.rebuild(), channels, rows);
        let add_shift = |row: &mut [f32]| row.iter_mut().zip(shift).for_each(|(x, shift)| *x += shift);
        rows.chunks_exact_mut(channels).for_each(add_shift);
        Ok(())
    }

    fn auxiliary_bytes(&self) -> u64 {
        self.adapter.bytes() + self.latents.auxiliary_bytes()
    }

    fn description(&self) -> String {
        let Adapter { precision, channels, width, .. } = *self.adapter;
        let compress = self.adapter.compressing().unwrap_or_default();
        let all = compress.into_iter().chain(self.adapter.rebuild()).chain(self.adapter.shift.iter().copied());
        let (hash, latents) = (fingerprint(all), self.latents.description());
        format!("CSKV of {channels} by {width} in {precision:?} {hash:016x}, {} units of {latents}", self.units)
    }

    fn latent(&self) -> Option<&Cskv> {
        Some(self)
    }
}

/// What a name ends in when maps were trained.
const TRAINED: &str = "+trained";

/// How wide the latents of a stream are, as names say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatentWidth {
    /// So many channels for each key-value head.
    PerHead(usize),
    /// So many thousandths of a head, rounded down to whole channels a head: the paper's density, what is kept.
    Thousandths(u16),
}

impl LatentWidth {
    /// Channels a head of `dim` channels.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for none, or more than the head has.
    pub fn per_head(self, dim: usize) -> Result<usize, Error> {
        let channels = match self {
            Self::PerHead(channels) => channels,
            Self::Thousandths(share) => usize::from(share) * dim / 1000,
        };
        if channels == 0 || channels > dim {
            return Err(Error::Unsupported {
                what: "width of latents",
                found: format!("{self}, {channels} of the {dim} channels of a head"),
                supported: "1 up to the channels of a head",
            });
        }
        Ok(channels)
    }
}

impl fmt::Display for LatentWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PerHead(channels) => channels.fmt(f),
            Self::Thousandths(1000) => f.write_str("1.0"),
            Self::Thousandths(share) => write!(f, "0.{}", format!("{share:03}").trim_end_matches('0')),
        }
    }
}

/// Parameters of one stream under CSKV: how wide latents are and how they are stored, `WIDTH`, `WIDTH@FORMAT` or
/// `WIDTH@FORMAT+trained`.
///
/// The width is a number of channels a head (`16`) or a density with a decimal point (`0.5`). Without a format latents
/// are f16. One that has a scale a row has one for each head's share of the latents. Maps are those of the closed form,
/// [`Adapter::principal`], or, `+trained`, come with the [`StreamStatistics`]: this crate does not train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentCode {
    /// How wide.
    pub width: LatentWidth,
    /// How stored; `None`: f16.
    pub format: Option<Format>,
    /// Whether maps were trained for the format.
    pub trained: bool,
}

impl fmt::Display for LatentCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.width.fmt(f)?;
        self.format.map_or(Ok(()), |format| write!(f, "@{format}"))?;
        f.write_str(if self.trained { TRAINED } else { "" })
    }
}

impl FromStr for LatentCode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::Unsupported {
            what: "width of latents",
            found: format!("`{text}`"),
            supported: "channels a head such as 16, or a density of up to three decimals such as 0.5, @FORMAT, and +trained \
                        after that",
        };
        let (text, trained) = text.strip_suffix(TRAINED).map_or((text, false), |text| (text, true));
        let (width, format) = match text.split_once('@') {
            Some((width, format)) => (width, Some(format.parse()?)),
            None => (text, None),
        };
        let width = match width.split_once('.') {
            None => LatentWidth::PerHead(width.parse().map_err(|_| unknown())?),
            Some(("1", zeros)) if (1..=3).contains(&zeros.len()) && zeros.bytes().all(|b| b == b'0') => {
                LatentWidth::Thousandths(1000)
            }
            Some(("0", decimals)) if (1..=3).contains(&decimals.len()) => {
                LatentWidth::Thousandths(format!("{decimals:0<3}").parse().map_err(|_| unknown())?)
            }
            Some(_) => return Err(unknown()),
        };
        if trained && format.is_none() {
            return Err(unknown());
        }
        Ok(Self { width, format, trained })
    }
}

impl LatentCode {
    /// The codec of one stream with the [`Adapter::principal`] of its calibration rows, in f16; latents that are quantized
    /// are rotated. In blocks, keys are quantized by channel over the tokens of a block. Trained maps are those of the
    /// statistics.
    ///
    /// # Errors
    ///
    /// [`Error::Statistics`] when there are no rows, [`Error::Unsupported`] when there are no trained maps, and as
    /// [`LatentCode::codec_of`].
    pub fn codec(
        &self,
        stream: Stream,
        heads: usize,
        dim: usize,
        blocks: bool,
        statistics: &StreamStatistics,
    ) -> Result<Cskv, Error> {
        check_heads(heads, dim)?;
        if self.trained {
            let missing = || Error::Unsupported {
                what: "maps of latents",
                found: format!("{self} without maps"),
                supported: "statistics with an adapter that was trained",
            };
            let adapter = statistics.adapter.clone().ok_or_else(missing)?;
            return self.codec_of(stream, heads, dim, blocks, adapter);
        }
        if statistics.rows.is_empty() {
            return Err(Error::Statistics { stream });
        }
        let width = heads * self.width.per_head(dim)?;
        let rotation = self.format.map(|_| ROTATION_SEED);
        let adapter = Adapter::principal(&statistics.rows, heads * dim, width, rotation, FullPrecision::F16)?;
        self.codec_of(stream, heads, dim, blocks, Arc::new(adapter))
    }

    /// How latents of one stream are quantized, if they are: the format of a token's latents, or of the channels of a
    /// latent over so many tokens.
    ///
    /// # Errors
    ///
    /// As [`LatentWidth::per_head`].
    pub fn latents(&self, stream: Stream, dim: usize, blocks: bool) -> Result<Option<(Format, Option<usize>)>, Error> {
        let group = u32::try_from(self.width.per_head(dim)?).unwrap_or(u32::MAX);
        Ok(self.format.map(|format| match (stream, format.block) {
            (Stream::Keys, _) if blocks => (format, Some(WINDOW)),
            // One row with a group a head, so that codes of heads follow each other without padding.
            (_, Block::Row) => (Format { block: Block::Group(group), ..format }, None),
            _ => (format, None),
        }))
    }

    /// The codec of one stream with this adapter, for example a trained one.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] and [`Error::Format`] for widths and formats, [`Error::Width`] when the adapter has others.
    pub fn codec_of(
        &self,
        stream: Stream,
        heads: usize,
        dim: usize,
        blocks: bool,
        adapter: Arc<Adapter>,
    ) -> Result<Cskv, Error> {
        let per_head = self.width.per_head(dim)?;
        let width = heads * per_head;
        let latents: Arc<dyn Codec> = match self.latents(stream, dim, blocks)? {
            None => Arc::new(Plain::new(heads, per_head, FullPrecision::F16)?),
            Some((format, Some(block))) => Arc::new(ChannelFormat::new(heads, per_head, block, format)?),
            Some((format, None)) => Arc::new(TokenFormat::of_shape([1, width], format)?),
        };
        let codec = Cskv::new(adapter, latents)?;
        if blocks { codec.in_blocks(WINDOW) } else { Ok(codec) }
    }
}

impl Pair<LatentCode> {
    /// The policy of the paper: a window of 32 tokens, or none where blocks of 32 take its place.
    pub(crate) fn policy(blocks: bool) -> KvPolicy {
        KvPolicy { window: if blocks { 0 } else { WINDOW }, ..KvPolicy::default() }
    }
}
