//! How the codes of vectors are used.

use super::outcome::{CodeUsage, Exact};
use crate::storage::Compressed;
use quant_core::Linear;
use std::collections::BTreeMap;
use vector_quant::{Books, VqLinear};

/// How many entries of the code books a weight uses, and the entropy of their use; `None` for other weights.
pub(super) fn usage(weight: &Compressed) -> Result<Option<CodeUsage>, quant_core::Error> {
    match weight {
        Compressed::Vectors(codes) => of(codes).map(Some),
        Compressed::Rotated(rotated) => of(rotated.inner()).map(Some),
        _ => Ok(None),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a statistic for people")]
fn of(codes: &VqLinear) -> Result<CodeUsage, quant_core::Error> {
    let (rows, columns) = (codes.out_features(), codes.in_features());
    // Of a code book applied twice the first pass counts.
    let (entries, mask) = match codes.books() {
        Books::Polar(polar) => (1_u64 << vector_quant::VectorCodec::bits(polar), u32::MAX),
        Books::Learned(learned) => {
            (learned.books.iter().map(|book| 1 << vector_quant::VectorCodec::bits(book)).sum(), u32::MAX)
        }
        _ => (1 << 16, 0xffff),
    };
    let mut counts: BTreeMap<(usize, u32), u64> = BTreeMap::new();
    let mut totals: BTreeMap<usize, u64> = BTreeMap::new();
    for row in 0..rows {
        let codes_of_row = codes.codes(row)?;
        let dim = columns / codes_of_row.len().max(1);
        for (vector, code) in codes_of_row.into_iter().enumerate() {
            let book = match codes.books() {
                Books::Learned(l) => row / l.rows * columns.div_ceil(l.columns) + vector * dim / l.columns,
                _ => 0,
            };
            *counts.entry((book, code & mask)).or_default() += 1;
            *totals.entry(book).or_default() += 1;
        }
    }
    let all: u64 = totals.values().sum();
    let bits = |((book, _), count): (&(usize, u32), &u64)| {
        let total = totals.get(book).copied().unwrap_or(1) as f64;
        *count as f64 * (total / *count as f64).log2()
    };
    let entropy = counts.iter().map(bits).sum::<f64>() / (all as f64).max(1.0);
    Ok(CodeUsage { entries, used: counts.len() as u64, vectors: all, entropy: Exact(entropy) })
}
