//! Queries as integers, for [`super::kernels`] to multiply keys with.
#![expect(unsafe_code, reason = "loads through pointers, and calls of functions compiled for found instructions")]

use super::avx512::Avx512;
use super::ints::IntPlan;
use super::plan::LANES;
use super::weights::bytes;
use std::arch::x86_64::*;

/// Up to four queries of one head, as integers.
#[derive(Clone, Debug)]
pub(super) struct IntQueries {
    pub(super) members: usize,
    /// `[word][field][member][high, low]`: four signed bytes each; a query is `(256 · high + low) · step`. Of 8 bits there is no
    /// high byte.
    pub(super) words: Vec<i32>,
    /// `[block][member]`: sums of the elements of each group, in steps.
    pub(super) sums: Vec<f32>,
    /// The same times the least integer.
    pub(super) least: Vec<i32>,
    pub(super) steps: Vec<f32>,
}

/// Elements that are rounded together.
const SOME: usize = 4 * LANES;

impl IntQueries {
    /// Queries with the scale of scores in them.
    pub(super) fn new(kernels: Avx512, plan: &IntPlan, group: usize, queries: &[&[f32]]) -> Self {
        let (members, parts) = (queries.len(), plan.parts);
        let mut words = vec![0; plan.words() * plan.fields() * members * parts];
        let (mut sums, mut least) = (vec![0.0; plan.blocks * members], vec![0; plan.blocks * members]);
        let (mut steps, mut numbers) = (Vec::with_capacity(members), Vec::new());
        for (member, query) in queries.iter().enumerate() {
            numbers.resize(query.len().next_multiple_of(SOME), 0);
            let own = &mut words[member * parts..];
            steps.push(kernels.round_query(plan, query, &mut numbers, (own, members * parts)));
            for block in 0..plan.blocks {
                let sum: i32 = numbers[block * group..query.len()].iter().take(group).sum();
                #[expect(clippy::cast_precision_loss, reason = "rounded once")]
                #[expect(clippy::cast_possible_truncation, reason = "products fit, see `PackedRows::integers`")]
                let (rounded, product) = (sum as f32, (f64::from(sum) * f64::from(plan.integers.least)) as i32);
                (sums[block * members + member], least[block * members + member]) = (rounded, product);
            }
        }
        Self { members, words, sums, least, steps }
    }
}

impl Avx512 {
    /// Rounds a query to numbers of steps, of whole [`SOME`], and puts their bytes into words that are so far from each other: the
    /// step.
    fn round_query(
        self,
        plan: &IntPlan,
        query: &[f32],
        numbers: &mut [i32],
        (words, stride): (&mut [i32], usize),
    ) -> f32 {
        // SAFETY: a value of `Self` proves the instructions.
        unsafe { round_query_of(plan, query, numbers, words, stride) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn round_query_of(plan: &IntPlan, query: &[f32], numbers: &mut [i32], words: &mut [i32], stride: usize) -> f32 {
    let load = |query: &[f32]| {
        let mask = u16::MAX >> (LANES - query.len());
        // SAFETY: the mask names the elements that there are.
        unsafe { _mm512_maskz_loadu_ps(mask, query.as_ptr()) }
    };
    let mut largest = _mm512_setzero_ps();
    for query in query.chunks(LANES) {
        largest = _mm512_max_ps(largest, _mm512_abs_ps(load(query)));
    }
    let (largest, most) = (_mm512_reduce_max_ps(largest), plan.most_steps());
    // A step whose reciprocal is not finite would be lost on scores anyway.
    let step = if largest > f32::MIN_POSITIVE * most { largest / most } else { 1.0 };
    let order = order(plan.fields());
    for (index, (query, numbers)) in query.chunks(SOME).zip(numbers.chunks_exact_mut(SOME)).enumerate() {
        let mut n = [_mm512_setzero_si512(); SOME / LANES];
        for ((n, query), numbers) in n.iter_mut().zip(query.chunks(LANES)).zip(numbers.chunks_exact_mut(LANES)) {
            *n = _mm512_cvtps_epi32(_mm512_div_ps(load(query), _mm512_set1_ps(step)));
            // SAFETY: 16 numbers.
            unsafe { _mm512_storeu_si512(numbers.as_mut_ptr().cast(), *n) }
        }
        let high = n.map(|n| _mm512_srai_epi32::<8>(_mm512_add_epi32(n, _mm512_set1_epi32(128))));
        let mut low = n;
        low.iter_mut().zip(high).for_each(|(low, high)| *low = _mm512_sub_epi32(*low, _mm512_slli_epi32::<8>(high)));
        for (part, x) in [high, low][2 - plan.parts..].iter().enumerate() {
            let mut own = [0_i32; LANES];
            // SAFETY: 16 words.
            unsafe { _mm512_storeu_si512(own.as_mut_ptr().cast(), _mm512_shuffle_epi8(bytes(*x), order)) };
            let words = words[part..].iter_mut().step_by(stride).skip(LANES * index);
            words.zip(own).for_each(|(word, own)| *word = own);
        }
    }
    step
}

/// From bytes in their order to those of words: a word has four of one field, and fields alternate.
#[inline]
#[target_feature(enable = "avx512f")]
fn order(fields: usize) -> __m512i {
    let order: [u8; 16] = match fields {
        1 => [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        2 => [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15],
        _ => [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15],
    };
    // SAFETY: 16 bytes.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(order.as_ptr().cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Factors;
    use crate::packed::{Coding, PackedRows};

    #[test]
    fn words_have_the_bytes_of_rounded_queries_field_by_field() {
        let Some(kernels) = Avx512::detect() else { return };
        for (bits, columns) in [(2, 64), (2, 80), (4, 32), (4, 96), (4, 128), (8, 64), (8, 100), (8, 128)] {
            let rows = PackedRows::floats(Coding::Int { bits, signed: true }, 1, columns);
            let queries: Vec<Vec<f32>> = (0..3_u16)
                .map(|g| (0..columns).map(|i| (i as f32 * 0.37 + f32::from(g)).sin() * 3.0).collect())
                .collect();
            let queries: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
            for (factors, most, parts) in [(Factors::Bits8, 127.0, 1), (Factors::Bits16, 32512.0, 2)] {
                let plan = IntPlan::new(&rows, true, factors).unwrap();
                let found = IntQueries::new(kernels, &plan, columns, &queries);
                let fields = plan.fields();
                for (member, query) in queries.iter().enumerate() {
                    let step = query.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / most;
                    assert_eq!(found.steps[member], step);
                    #[expect(clippy::cast_possible_truncation, reason = "at most 32512")]
                    let numbers: Vec<i32> = query.iter().map(|x| (x / step).round_ties_even() as i32).collect();
                    assert_eq!(found.sums[member], numbers.iter().sum::<i32>() as f32);
                    for (element, number) in numbers.iter().enumerate() {
                        let (word, byte, field) = (element / (4 * fields), element / fields % 4, element % fields);
                        let at = ((word * fields + field) * queries.len() + member) * parts;
                        let own = found.words[at..at + parts]
                            .iter()
                            .map(|word| i32::from(word.to_le_bytes()[byte].cast_signed()));
                        let what = format!("{bits} bits, element {element} of {columns}, {factors:?}");
                        assert_eq!(own.fold(0, |number, part| 256 * number + part), *number, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn queries_of_nothing_are_nothing() {
        let Some(kernels) = Avx512::detect() else { return };
        let rows = PackedRows::floats(Coding::Int { bits: 4, signed: false }, 1, 64);
        let plan = IntPlan::new(&rows, true, Factors::Bits16).unwrap();
        for tiny in [0.0, 1e-40, f32::MIN_POSITIVE] {
            let found = IntQueries::new(kernels, &plan, 64, &[&[tiny; 64]]);
            assert!(found.words.iter().all(|word| *word == 0) && found.steps == [1.0], "{tiny}: {found:?}");
        }
    }
}
