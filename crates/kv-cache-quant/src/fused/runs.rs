//! The rows of a split, run by run: where codes and scales lie, and what is asked for before it is needed.

use super::avx512::{Avx512, Rows};
use super::ints::RUN;
use super::plan::LANES;
use super::{Buffers, Form, Reader};
use crate::packed::{PackedRows, PlainScales};
use crate::side::{Span, SpanKind};
use std::borrow::Cow;
use std::ops::Range;

/// Bytes of rows that are worked on together, to stay in the first-level cache.
const TILE_BYTES: usize = 24 << 10;
/// How far ahead rows are asked for.
const AHEAD_BYTES: usize = 8 << 10;

/// Some rows that lie at equal distances: tokens, or the channels of one unit.
pub(super) struct Run<'a> {
    pub(super) kind: SpanKind,
    /// Its tokens; of a transposed unit all, also such that are not wanted.
    pub(super) tokens: Range<usize>,
    pub(super) wanted: Range<usize>,
    /// From the first row on.
    pub(super) codes: Cow<'a, [u8]>,
    pub(super) stride: usize,
    /// Bytes from the codes of a head to those of the next.
    head_stride: usize,
    meta: MetaBytes<'a>,
}

/// Where scales and zero points are.
enum MetaBytes<'a> {
    /// What follows the codes of a unit, and the place of the first row in it.
    Unit(&'a [u8], usize),
    /// The same of units of one row, from the first row's on, and the bytes from one to the next.
    Units(&'a [u8], usize),
    /// Scales by group, those of tokens side by side, from the first row's on.
    Groups {
        scales: &'a [u8],
        /// Of scales, and as many again of zero points where there are any.
        groups: usize,
        /// Scales from one group to the next.
        stride: usize,
        kind: PlainScales,
        /// Scales of units, f32; empty where there are none.
        second: &'a [u8],
    },
}

/// The runs of a split.
pub(super) fn runs<'a>(spans: &[Span<'a>], reader: &Reader<'_>, tokens: &Range<usize>) -> Vec<Run<'a>> {
    let mut runs = Vec::new();
    let first = spans.partition_point(|span| span.tokens.end <= tokens.start);
    for span in spans[first..].iter().take_while(|span| span.tokens.start < tokens.end) {
        let (start, end) = (tokens.start.max(span.tokens.start), tokens.end.min(span.tokens.end));
        let form = reader.form(span.kind);
        let layout = &form.plan.rows;
        let unit_tokens = if layout.transposed { layout.columns } else { layout.rows };
        let (kind, bytes, unit_bytes, row_bytes) = (span.kind, span.bytes, layout.unit_bytes, layout.row_bytes);
        let head_bytes = layout.head_bytes();
        let mut at = start;
        while at < end {
            let place = at - span.tokens.start;
            let run = if let Some((capacity, order)) = span.cut {
                let (codes, meta) = bytes.split_at(row_bytes * capacity);
                let rest = unit_bytes - row_bytes;
                let amid = place % order.units();
                let most = if amid == 0 { RUN } else { order.units() - amid };
                let tokens = at..end.min(at + most);
                let codes = if amid == 0 {
                    Cow::Borrowed(&codes[place * head_bytes..])
                } else {
                    let units = place..place + tokens.len();
                    let heads = codes.chunks_exact(head_bytes * capacity);
                    Cow::Owned(heads.flat_map(|codes| order.realigned(codes, head_bytes, units.clone())).collect())
                };
                Run {
                    kind,
                    wanted: tokens.clone(),
                    tokens,
                    stride: head_bytes,
                    head_stride: head_bytes * if amid == 0 { capacity } else { order.units() },
                    codes,
                    meta: match layout.plain_scales() {
                        Some(kind) => MetaBytes::Groups {
                            scales: &meta[kind.scale.bytes() * place..],
                            groups: layout.row_blocks() * if layout.has_zeros() { 2 } else { 1 },
                            stride: capacity,
                            kind,
                            second: if kind.second { &meta[(rest - 4) * capacity + 4 * place..] } else { &[] },
                        },
                        None => MetaBytes::Units(&meta[place * rest..], rest),
                    },
                }
            } else if unit_tokens == 1 {
                let next = end.min(at + RUN);
                let units = &bytes[place * unit_bytes..(next - span.tokens.start) * unit_bytes];
                Run {
                    kind,
                    tokens: at..next,
                    wanted: at..next,
                    codes: units.into(),
                    stride: unit_bytes,
                    head_stride: head_bytes,
                    meta: MetaBytes::Units(&units[row_bytes..], unit_bytes),
                }
            } else {
                let (unit, first_row) = (place / unit_tokens, place % unit_tokens);
                let (codes, meta) = bytes[unit * unit_bytes..(unit + 1) * unit_bytes].split_at(layout.rows * row_bytes);
                let unit_end = at - first_row + unit_tokens;
                let (tokens, wanted, first_row) = if layout.transposed {
                    (at - first_row..unit_end, at..end.min(unit_end), 0)
                } else {
                    let some = at..end.min(unit_end).min(at + RUN);
                    (some.clone(), some, first_row)
                };
                Run {
                    kind,
                    tokens,
                    wanted,
                    codes: codes[first_row * row_bytes..].into(),
                    stride: row_bytes,
                    head_stride: head_bytes,
                    meta: MetaBytes::Unit(meta, first_row),
                }
            };
            at = run.wanted.end;
            runs.push(run);
        }
    }
    runs
}

/// Scales and zero points of the rows of a run.
pub(super) struct Meta<'a> {
    scales: &'a [f32],
    zeros: &'a [f32],
    /// Whether tokens of a block lie side by side.
    turned: bool,
}

impl<'a> Meta<'a> {
    /// `[block][token]`.
    pub(super) fn turned((scales, zeros): (&'a [f32], &'a [f32])) -> Self {
        Self { scales, zeros, turned: true }
    }

    /// `[token][block]`.
    pub(super) fn by_row((scales, zeros): (&'a [f32], &'a [f32])) -> Self {
        Self { scales, zeros, turned: false }
    }
}

impl<'a> Run<'a> {
    /// Asks for what [`Self::read_meta`] will read, where it lies scattered.
    pub(super) fn ask_for_meta(&self, kernels: Avx512) {
        let MetaBytes::Groups { scales, groups, stride, kind, second } = self.meta else { return };
        let (stride, bytes) = (kind.scale.bytes() * stride, kind.scale.bytes() * self.tokens.len());
        scales.chunks(stride).take(groups).for_each(|group| kernels.ask(&group[..bytes.min(group.len())]));
        kernels.ask(&second[..second.len().min(4 * self.tokens.len())]);
    }

    pub(super) fn read_meta(&self, kernels: Avx512, form: &Form, buffers: &mut Buffers) {
        let layout = &form.plan.rows;
        let Buffers { scales, zeros, turned_scales, turned_zeros, .. } = buffers;
        scales.clear();
        zeros.clear();
        if !layout.has_scales() {
            if form.ints.is_some() {
                turned_scales.clear();
                turned_scales.resize(layout.row_blocks() * RUN, 1.0);
                turned_zeros.clear();
            }
            return;
        }
        let (width, count) = (layout.row_blocks(), self.tokens.len());
        match self.meta {
            MetaBytes::Groups { scales, stride, kind: PlainScales { scale, factor, .. }, second, .. } => {
                let mut factors = [factor; RUN];
                let second = second.as_chunks::<4>().0.iter().take(count);
                factors.iter_mut().zip(second).for_each(|(factor, unit)| *factor *= f32::from_le_bytes(*unit));
                turned_scales.resize(width * RUN, 0.0);
                kernels.read_scales(scale, (scales, stride), count, &factors, turned_scales);
                turned_zeros.resize(if layout.has_zeros() { width * RUN } else { 0 }, 0.0);
                if layout.has_zeros() {
                    let zeros = &scales[scale.bytes() * width * stride..];
                    kernels.read_scales(scale, (zeros, stride), count, &[1.0; RUN], turned_zeros);
                }
                return;
            }
            MetaBytes::Units(units, stride) => {
                let rest = layout.unit_bytes - layout.row_bytes;
                let units = units.chunks(stride).take(count);
                units.for_each(|unit| layout.read_meta(&unit[..rest], 0, 1, scales, zeros));
            }
            MetaBytes::Unit(unit, first) => {
                let rows = if layout.transposed { layout.rows } else { count };
                layout.read_meta(unit, first, rows, scales, zeros);
            }
        }
        if form.ints.is_some() {
            turned_scales.resize(width * RUN, 0.0);
            kernels.turn_meta(scales, width, count, turned_scales);
            turned_zeros.resize(if layout.has_zeros() { width * RUN } else { 0 }, 0.0);
            if layout.has_zeros() {
                kernels.turn_meta(zeros, width, count, turned_zeros);
            }
        }
        scales.extend([0.0; LANES]);
        if layout.has_zeros() {
            zeros.extend([0.0; LANES]);
        }
    }

    /// Calls for some tokens at a time, of every head: with head, first token of the run, rows.
    pub(super) fn each_tile<'r>(
        &'r self,
        layout: &PackedRows,
        next: Option<&'r Run<'a>>,
        meta: Meta<'_>,
        mut call: impl FnMut(usize, usize, Rows<'_>),
    ) {
        let count = self.tokens.len();
        let by_head = self.head_stride > self.stride;
        let few = (TILE_BYTES / self.stride / LANES * LANES).clamp(LANES, RUN);
        let tile = if meta.turned || by_head { RUN } else { few };
        let (row_blocks, blocks) = (layout.row_blocks(), layout.blocks());
        for first in (0..count).step_by(tile) {
            let rows = tile.min(count - first);
            for head in 0..layout.heads {
                let (place, meta_stride) = if meta.turned {
                    (head * blocks * RUN + first, RUN)
                } else {
                    (first * row_blocks + head * blocks, row_blocks)
                };
                let (ahead, ahead_step) = if by_head {
                    (self.head_ahead(head, rows, layout.heads, next), self.stride)
                } else {
                    self.part_ahead(first + rows, head, rows, layout.heads, next)
                };
                let rows = Rows {
                    codes: &self.codes[first * self.stride + head * self.head_stride..],
                    stride: self.stride,
                    count: rows,
                    scales: meta.scales.get(place..).unwrap_or_default(),
                    zeros: meta.zeros.get(place..).unwrap_or_default(),
                    meta_stride,
                    ahead,
                    ahead_step,
                };
                call(head, first, rows);
            }
        }
    }

    /// Where the rows of one head lie side by side: those of a head that comes soon.
    fn head_ahead<'r>(&'r self, head: usize, rows: usize, heads: usize, next: Option<&'r Run<'a>>) -> &'r [u8] {
        let soon = head + AHEAD_BYTES.div_ceil(rows * self.stride);
        let codes = if soon < heads {
            self.codes.get(soon * self.head_stride..)
        } else {
            next.and_then(|next| next.codes.get((soon - heads) * next.head_stride..))
        };
        codes.unwrap_or_default()
    }

    /// Where heads of a row lie side by side: of the rows that follow `after` a part, and what of it each row asks for.
    fn part_ahead<'r>(
        &'r self,
        after: usize,
        head: usize,
        rows: usize,
        heads: usize,
        next: Option<&'r Run<'a>>,
    ) -> (&'r [u8], usize) {
        let piece = rows * self.stride / heads;
        let (soon, end) = (after * self.stride + head * piece, self.tokens.len() * self.stride);
        let codes =
            if soon < end { self.codes.get(soon..) } else { next.and_then(|next| next.codes.get(soon - end..)) };
        (codes.unwrap_or_default(), (piece / rows).next_multiple_of(64))
    }
}
