//! What splits say about the tokens of a cache, put together.
#![expect(unsafe_code, reason = "calls of functions compiled for instruction sets found at run time")]

use super::plan::LANES;
use super::{Block, KINDS, Partial, Shared};
use crate::generated::isa::for_each_isa;
use crate::side::SpanKind;

for_each_isa! {
    /// `sums = own · sums + its · others`, where vectors of so many members alternate.
    fn add_rescaled(own: &[f32], its: &[f32], others: &[f32], sums: &mut [f32]) {
        let width = own.len() * LANES;
        for (sums, others) in sums.chunks_exact_mut(width).zip(others.chunks_exact(width)) {
            let vectors = sums.as_chunks_mut::<LANES>().0.iter_mut().zip(others.as_chunks::<LANES>().0);
            for ((sums, others), (own, its)) in vectors.zip(own.iter().zip(its)) {
                sums.iter_mut().zip(others).for_each(|(sum, other)| *sum = own * *sum + its * other);
            }
        }
    }
}

for_each_isa! {
    /// `sums = own · sums`, where vectors of so many members alternate.
    fn rescale(own: &[f32], sums: &mut [f32]) {
        for (sums, own) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(own.iter().cycle()) {
            sums.iter_mut().for_each(|sum| *sum *= own);
        }
    }
}

/// What sums relative to two largest scores are to be multiplied with, to be relative to the larger one.
fn rescaling(own: f32, its: f32) -> (f64, f64) {
    let far = |low: f32, high: f32| (f64::from(low) - f64::from(high)).exp();
    if its == f32::NEG_INFINITY {
        (1.0, 0.0)
    } else if own < its {
        (far(own, its), 1.0)
    } else {
        (1.0, far(its, own))
    }
}

impl Block {
    /// Takes in what the next split says.
    pub(super) fn add_split(&self, total: &mut Partial, next: &Partial) {
        if next.tops.is_empty() {
            return;
        }
        let places = total.tops.len();
        let (mut own, mut its) = (Vec::with_capacity(places), Vec::with_capacity(places));
        for (place, (top, &next_top)) in total.tops.iter_mut().zip(&next.tops).enumerate() {
            let (a, b) = rescaling(*top, next_top);
            *top = top.max(next_top);
            total.sums[place] = a * total.sums[place] + b * next.sums[place];
            if let (Some(mass), Some(next)) = (total.masses.get_mut(place), next.masses.get(place)) {
                *mass = a * *mass + b * next;
            }
            #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
            let (a, b) = (a as f32, b as f32);
            own.push(a);
            its.push(b);
        }
        for (rows, next) in total.rows.iter_mut().zip(&next.rows) {
            rows.resize(rows.len().max(next.len()), 0.0);
            let width = rows.len() / places;
            for first in (0..places).step_by(self.members) {
                for &(member, size) in &self.packs {
                    let pack = first + member..first + member + size;
                    let part = pack.start * width..pack.end * width;
                    if next.is_empty() {
                        rescale(&own[pack], &mut rows[part]);
                    } else {
                        add_rescaled(&own[pack.clone()], &its[pack], &next[part.clone()], &mut rows[part]);
                    }
                }
            }
        }
    }
}

impl Shared<'_> {
    /// The outputs of a block, given what all splits together say.
    pub(super) fn finish(&self, block: &Block, total: &Partial, out: &mut [f32]) {
        let (heads, dim) = (self.geometry.kv_heads, self.geometry.dim_v);
        let keeps_apart = !self.values.maps.is_empty();
        // Rows of all heads, for maps.
        let (mut exact, mut sealed) = (vec![0.0; heads * dim], vec![0.0; heads * dim]);
        let (mut shares, mut row) = (vec![0.0; heads], vec![0.0; dim]);
        let members = block.packs.iter().flat_map(|&pack| (0..pack.1).map(move |index| (pack, index)));
        for (pack, index) in members {
            let member = pack.0 + index;
            exact.fill(0.0);
            sealed.fill(0.0);
            for (head, share) in shares.iter_mut().enumerate() {
                let place = head * block.members + member;
                let sum = total.sums[place];
                if sum == 0.0 {
                    *share = 0.0;
                    continue;
                }
                let mass = if keeps_apart { total.masses[place] } else { 0.0 };
                let part = head * dim..(head + 1) * dim;
                for (kind, rows) in KINDS.into_iter().zip(&total.rows).filter(|(_, rows)| !rows.is_empty()) {
                    let apart = keeps_apart && kind == SpanKind::Sealed;
                    let (sum, out) = if apart { (mass, &mut sealed) } else { (sum, &mut exact) };
                    if sum > 0.0 {
                        let first = head * block.members + pack.0;
                        self.row_of_sums(
                            kind,
                            &rows[first * (rows.len() / total.tops.len())..],
                            (pack.1, index),
                            &mut row,
                        );
                        #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
                        let factor = (1.0 / sum) as f32;
                        out[part.clone()].iter_mut().zip(&row).for_each(|(out, sum)| *out += factor * sum);
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

    /// Puts the sums over tokens of one kind in the order of elements, those of member `index` of a pack of so many.
    fn row_of_sums(&self, kind: SpanKind, sums: &[f32], (members, index): (usize, usize), out: &mut [f32]) {
        let (form, vectors) = (self.values.form(kind), self.values.vectors(kind));
        let (sums, zeros) = sums.split_at(vectors * members * LANES);
        match &form.ints {
            Some(plan) => plan.gather(sums, members, index, out),
            None => form.plan.gather(sums, members, index, out),
        }
        let zeros = &zeros[index * LANES..];
        for (out, zero) in out.chunks_mut(form.plan.rows.group).zip(zeros) {
            out.iter_mut().for_each(|out| *out += zero);
        }
    }
}
