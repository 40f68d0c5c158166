//! Hadamard matrices whose order is not a power of two: constructions of Paley, Williamson, and Goethals and Seidel.

/// The largest order that is constructed. The cost of a row of `n` values is `n · m` for a factor `m`.
const MOST: usize = 256;

/// A matrix `H` of ±1 with `H Hᵀ = m I`, row-major `[m, m]`, if one of the constructions here gives one:
///
/// * Paley I: `m − 1` is a prime `≡ 3 mod 4` (12, 20, 44, 60, 84, 108, 140 …);
/// * Paley II: `m / 2 − 1` is a prime `≡ 1 mod 4` (28, 36, 76, 124, 148 …);
/// * Goethals–Seidel from four circulant matrices (52, 156, 172).
pub(crate) fn hadamard(m: usize) -> Option<Vec<i8>> {
    if !(4..=MOST).contains(&m) || !m.is_multiple_of(4) {
        return None;
    }
    let second = m / 2 - 1;
    if is_prime(m - 1) {
        Some(paley_one(m - 1))
    } else if is_prime(second) && second % 4 == 1 {
        Some(paley_two(second))
    } else {
        CIRCULANTS.iter().find(|circulants| 4 * circulants.size == m).map(Circulants::matrix)
    }
}

/// Splits `n` into the smallest order `m` with a matrix here and a power of two; `m` is 1 for powers of two.
pub(crate) fn split(n: usize) -> Option<(usize, Vec<i8>)> {
    if n == 0 {
        return None;
    }
    let powers = n.trailing_zeros();
    let odd = n >> powers;
    if odd == 1 {
        return Some((1, vec![1]));
    }
    (2..=powers).map(|power| odd << power).take_while(|m| *m <= MOST).find_map(|m| Some((m, hadamard(m)?)))
}

fn is_prime(n: usize) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// The Legendre symbol: 1 for squares modulo the odd prime `q`, −1 for others, 0 for multiples of `q`.
fn legendre(a: usize, q: usize) -> i8 {
    match a % q {
        0 => 0,
        a if (1..=q / 2).any(|x| x * x % q == a) => 1,
        _ => -1,
    }
}

/// A row-major matrix from its elements.
fn matrix(n: usize, mut element: impl FnMut(usize, usize) -> i8) -> Vec<i8> {
    (0..n * n).map(|index| element(index / n, index % n)).collect()
}

/// `I + [[0, 1ᵀ], [−1, Q]]` with `Q_ij = χ(i − j)`, for a prime `q ≡ 3 mod 4` (R. E. A. C. Paley, 1933).
fn paley_one(q: usize) -> Vec<i8> {
    matrix(q + 1, |i, j| match (i, j) {
        (i, j) if i == j => 1,
        (0, _) => 1,
        (_, 0) => -1,
        (i, j) => legendre(q + i - j, q),
    })
}

/// `C ⊗ [[1, 1], [1, −1]] + I ⊗ [[1, −1], [−1, −1]]` with `C = [[0, 1ᵀ], [1, Q]]`, for a prime `q ≡ 1 mod 4` (Paley, 1933).
fn paley_two(q: usize) -> Vec<i8> {
    matrix(2 * (q + 1), |i, j| {
        let conference = match (i / 2, j / 2) {
            (i, j) if i == j => 0,
            (0, _) | (_, 0) => 1,
            (i, j) => legendre(q + i - j, q),
        };
        let odd = (i % 2, j % 2) == (1, 1);
        match conference {
            0 if (i % 2, j % 2) == (0, 0) => 1,
            0 => -1,
            c if odd => -c,
            c => c,
        }
    })
}

/// Four sequences of ±1 of one length whose circulant matrices `A, B, C, D` satisfy `AAᵀ + BBᵀ + CCᵀ + DDᵀ = 4 size · I`.
///
/// Each sequence is 1 at 0 and constant on the orbits of multiplication by `multipliers`; bit `i` of its mask makes the `i`-th
/// orbit −1, in the order of the least elements. So few bits describe them that they are found by trying all (J. Williamson, 1944,
/// found those of 43 in this way, by hand).
struct Circulants {
    size: usize,
    multipliers: &'static [usize],
    masks: [u32; 4],
}

/// Closed under negation, the sequences are symmetric: Williamson's case.
const CIRCULANTS: [Circulants; 3] = [
    Circulants { size: 13, multipliers: &[12], masks: [3, 20, 25, 49] },
    Circulants { size: 39, multipliers: &[16], masks: [95, 4903, 3894, 6115] },
    Circulants { size: 43, multipliers: &[42, 6], masks: [7, 46, 52, 98] },
];

impl Circulants {
    /// The sequence of a mask.
    fn sequence(&self, mask: u32) -> Vec<i8> {
        let mut sequence = vec![0_i8; self.size];
        sequence[0] = 1;
        let mut orbits = 0;
        for least in 1..self.size {
            if sequence[least] != 0 {
                continue;
            }
            let sign = if mask >> orbits & 1 == 1 { -1 } else { 1 };
            orbits += 1;
            let mut reached = vec![least];
            while let Some(element) = reached.pop() {
                if sequence[element] == 0 {
                    sequence[element] = sign;
                    reached.extend(self.multipliers.iter().map(|multiplier| element * multiplier % self.size));
                }
            }
        }
        sequence
    }

    /// The array of Goethals and Seidel (1967), with the reversal `R`:
    ///
    /// ```text
    ///   A     BR    CR    DR
    ///  −BR    A     DᵀR  −CᵀR
    ///  −CR   −DᵀR   A     BᵀR
    ///  −DR    CᵀR  −BᵀR   A
    /// ```
    fn matrix(&self) -> Vec<i8> {
        const ARRAY: [[(i8, usize, bool); 4]; 4] = [
            [(1, 0, false), (1, 1, false), (1, 2, false), (1, 3, false)],
            [(-1, 1, false), (1, 0, false), (1, 3, true), (-1, 2, true)],
            [(-1, 2, false), (-1, 3, true), (1, 0, false), (1, 1, true)],
            [(-1, 3, false), (1, 2, true), (-1, 1, true), (1, 0, false)],
        ];
        let n = self.size;
        let sequences = self.masks.map(|mask| self.sequence(mask));
        matrix(4 * n, |i, j| {
            let (sign, which, transposed) = ARRAY[i / n][j / n];
            let (i, j) = (i % n, j % n);
            // A circulant has element (j − i) of its sequence; R turns column j into n − 1 − j.
            let column = if which == 0 { j } else { n - 1 - j };
            let shift = if transposed { n + i - column } else { n + column - i };
            sign * sequences[which][shift % n]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_hadamard(m: usize, h: &[i8]) -> bool {
        let dot = |i: usize, j: usize| -> i32 { (0..m).map(|k| i32::from(h[i * m + k] * h[j * m + k])).sum() };
        let diagonal = |i: usize| i32::try_from(m).is_ok_and(|m| dot(i, i) == m);
        h.iter().all(|v| v.abs() == 1) && (0..m).all(|i| diagonal(i) && (0..i).all(|j| dot(i, j) == 0))
    }

    #[test]
    fn every_matrix_has_orthogonal_rows_of_ones() {
        let found: Vec<usize> = (0..=300).filter(|&m| hadamard(m).is_some()).collect();
        for &m in &found {
            assert!(hadamard(m).is_some_and(|h| is_hadamard(m, &h)), "{m}");
        }
        for m in [12, 20, 28, 36, 44, 52, 60, 76, 84, 108, 124, 140, 148, 156, 172] {
            assert!(found.contains(&m), "{m}");
        }
        assert!(found.iter().all(|m| m.is_multiple_of(4) && *m <= 256), "{found:?}");
    }

    #[test]
    fn sizes_split_into_the_smallest_order_and_a_power_of_two() {
        let order = |n: usize| split(n).map(|(m, _)| m);
        let sizes =
            [(1, 1), (4096, 1), (576, 36), (1536, 12), (2560, 20), (40, 20), (896, 28), (11008, 172), (13824, 108)];
        for (n, m) in sizes {
            assert_eq!(order(n), Some(m), "{n}");
        }
        for (n, m) in [(14336, 28), (5632, 44), (4864, 76), (18944, 148), (8960, 140)] {
            assert_eq!(order(n), Some(m), "{n}");
        }
        assert_eq!((order(0), order(3), order(6), order(13696)), (None, None, None, None));
    }
}
