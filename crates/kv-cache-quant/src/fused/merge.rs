//! What splits say about the tokens of a cache, put together.
#![expect(unsafe_code, reason = "calls of functions compiled for instruction sets found at run time")]

use super::plan::LANES;
use super::{Block, KINDS, Partial, Shared};
use crate::generated::isa::for_each_isa;
use crate::side::SpanKind;

for_each_isa! {
    /// Adds `factor` times vectors that lie so far apart.
    fn add_vectors(factor: f32, vectors: &[f32], stride: usize, sums: &mut [f32]) {
        let (sums, _) = sums.as_chunks_mut::<LANES>();
        for (sums, own) in sums.iter_mut().zip(vectors.chunks(stride).filter_map(|rest| rest.first_chunk::<LANES>())) {
            sums.iter_mut().zip(own).for_each(|(sum, x)| *sum += factor * x);
        }
    }
}

impl Shared<'_> {
    /// Puts the splits of a block together.
    pub(super) fn merge(&self, block: &Block, partials: &[Partial], out: &mut [f32]) {
        let (heads, dim) = (self.geometry.kv_heads, self.geometry.dim_v);
        let seen: Vec<&Partial> = partials.iter().filter(|partial| !partial.tops.is_empty()).collect();
        let keeps_apart = !self.values.maps.is_empty();
        // Rows of all heads, for maps.
        let (mut exact, mut sealed) = (vec![0.0; heads * dim], vec![0.0; heads * dim]);
        let mut shares = vec![0.0; heads];
        let mut sums = Vec::new();
        let members = block.packs.iter().flat_map(|&pack| (0..pack.1).map(move |index| (pack, index)));
        for (pack, index) in members {
            let member = pack.0 + index;
            exact.fill(0.0);
            sealed.fill(0.0);
            for (head, share) in shares.iter_mut().enumerate() {
                let place = head * block.members + member;
                let top = seen.iter().map(|partial| partial.tops[place]).fold(f32::NEG_INFINITY, f32::max);
                let factor = |partial: &&Partial| {
                    let top_of = partial.tops[place];
                    if top_of == f32::NEG_INFINITY { 0.0 } else { (f64::from(top_of) - f64::from(top)).exp() }
                };
                let factors: Vec<f64> = seen.iter().map(factor).collect();
                let total = |list: fn(&Partial) -> &[f32]| -> f64 {
                    factors.iter().zip(&seen).map(|(factor, partial)| factor * f64::from(list(partial)[place])).sum()
                };
                let sum = total(|partial| &partial.sums);
                if sum == 0.0 {
                    *share = 0.0;
                    continue;
                }
                let mass = if keeps_apart { total(|partial| &partial.masses) } else { 0.0 };
                let row = head * dim..(head + 1) * dim;
                for (which, kind) in KINDS.into_iter().enumerate() {
                    let apart = keeps_apart && kind == SpanKind::Sealed;
                    let (total, out) = if apart { (mass, &mut sealed) } else { (sum, &mut exact) };
                    if total > 0.0 {
                        let rows =
                            factors.iter().zip(&seen).map(|(factor, of)| (factor / total, of.rows[which].as_slice()));
                        self.add_splits(
                            kind,
                            (head * block.members + pack.0, pack.1, index),
                            rows,
                            &mut sums,
                            &mut out[row.clone()],
                        );
                    }
                }
                #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
                let part = (mass / sum) as f32;
                *share = part;
            }
            if keeps_apart {
                self.values.maps.iter().rev().for_each(|map| map.inverse(&mut sealed));
            }
            for (head, (exact, sealed)) in exact.chunks_exact(dim).zip(sealed.chunks_exact(dim)).enumerate() {
                let out = &mut out[self.row_of(head, member, dim)..][..dim];
                for ((out, exact), sealed) in out.iter_mut().zip(exact).zip(sealed) {
                    *out = if keeps_apart { exact + shares[head] * sealed } else { *exact };
                }
            }
        }
    }

    /// Adds the sums of splits over tokens of one kind, each with its factor, and puts them in the order of elements: those of
    /// member `index` of a pack of so many, `first` being the place of its first.
    fn add_splits<'p>(
        &self,
        kind: SpanKind,
        (first, members, index): (usize, usize, usize),
        splits: impl Iterator<Item = (f64, &'p [f32])>,
        sums: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let (form, vectors) = (self.values.form(kind), self.values.vectors(kind));
        sums.clear();
        sums.resize((vectors + 1) * LANES + out.len(), 0.0);
        let (sums, row) = sums.split_at_mut((vectors + 1) * LANES);
        for (factor, rows) in splits.filter(|(_, rows)| !rows.is_empty()) {
            #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
            let factor = factor as f32;
            let rows = &rows[first * (vectors + 1) * LANES..][index * LANES..];
            add_vectors(factor, rows, members * LANES, sums);
        }
        let (sums, zeros) = sums.split_at(vectors * LANES);
        match &form.ints {
            Some(plan) => plan.gather(sums, row),
            None => form.plan.gather(sums, 1, 0, row),
        }
        let group = form.plan.rows.group;
        for ((row, out), zero) in row.chunks(group).zip(out.chunks_mut(group)).zip(zeros) {
            out.iter_mut().zip(row).for_each(|(out, sum)| *out += sum + zero);
        }
    }
}
