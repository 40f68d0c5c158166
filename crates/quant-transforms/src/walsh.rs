//! The Walsh–Hadamard transform of rows of a power of two.

use crate::Element;

/// Transforms a row in place, without scaling: the definition that faster ways are tested against.
///
/// Stage by stage, the distance of what is added and subtracted doubles: `(a, b) → (a + b, a − b)`. Every way to compute it here
/// forms these same sums, so all give the same bits.
pub fn reference<T: Element>(row: &mut [T]) {
    let mut distance = 1;
    while distance < row.len() {
        for block in row.chunks_exact_mut(2 * distance) {
            let (low, high) = block.split_at_mut(distance);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance *= 2;
    }
}

/// Transforms each row of `size`, a power of two, and multiplies with `scale`.
pub(crate) fn rows<T: Element>(rows: &mut [T], size: usize, scale: T) {
    for row in rows.chunks_exact_mut(size) {
        reference(row);
        for v in row {
            *v = *v * scale;
        }
    }
}
