//! The lattice E8 and its directions, in whole numbers.
//!
//! E8 = D8 ∪ (D8 + ½), where D8 are the integer vectors with an even sum. Coordinates are doubled here, so
//! that they are integers: all even or all odd, with a sum divisible by 4.

use std::collections::BTreeSet;

/// Points of E8 with this squared norm, in doubled coordinates, sorted.
///
/// Their number is 240, 2160, 6720, 17520 … for squared norms 2, 4, 6, 8 …; there are none of odd norm.
#[must_use]
pub fn e8_shell(squared_norm: u32) -> Vec<[i8; 8]> {
    let mut points = Vec::new();
    // A coordinate of a vector of squared norm n is at most √n, doubled 2√n; i8 holds those up to norm 4000.
    if let Some(rest) = squared_norm.checked_mul(4).filter(|_| squared_norm <= MAX_SQUARED_NORM) {
        let rest = rest.cast_signed();
        for odd in [false, true] {
            extend(&mut points, &mut [0; 8], 0, rest, odd);
        }
    }
    points.sort_unstable();
    points
}

/// Largest squared norm up to which shells are listed; beyond it they have millions of points.
pub const MAX_SQUARED_NORM: u32 = 24;

/// Tries all values of coordinate `axis` that leave a sum of squares for those behind it.
fn extend(points: &mut Vec<[i8; 8]>, point: &mut [i8; 8], axis: usize, rest: i32, odd: bool) {
    if axis == 8 {
        let sum: i32 = point.iter().map(|c| i32::from(*c)).sum();
        if rest == 0 && sum % 4 == 0 {
            points.push(*point);
        }
        return;
    }
    // Odd coordinates have squares of at least 1.
    let spare = rest - if odd { 7 - i32::try_from(axis).unwrap_or(7) } else { 0 };
    for c in i8::from(odd).. {
        let square = i32::from(c) * i32::from(c);
        if c % 2 != i8::from(odd) {
            continue;
        }
        if square > spare {
            break;
        }
        for signed in if c == 0 { vec![0] } else { vec![-c, c] } {
            point[axis] = signed;
            extend(points, point, axis + 1, rest - square, odd);
        }
    }
    point[axis] = 0;
}

/// The distinct directions of the non-zero points of E8 up to a squared norm: doubled coordinates divided by
/// their greatest common divisor, sorted. With every direction its opposite is there.
///
/// Up to squared norm 10, 12 and 16 there are 56,640, 117,120 and 337,920.
#[must_use]
pub fn e8_directions(max_squared_norm: u32) -> Vec<[i8; 8]> {
    let shells = (2..=max_squared_norm.min(MAX_SQUARED_NORM)).step_by(2);
    let directions: BTreeSet<[i8; 8]> = shells.flat_map(e8_shell).map(primitive).collect();
    directions.into_iter().collect()
}

/// A non-zero vector divided by the greatest common divisor of its coordinates.
fn primitive(point: [i8; 8]) -> [i8; 8] {
    let gcd = point.iter().fold(0, |g, c| gcd(g, c.unsigned_abs()));
    point.map(|c| c / gcd.cast_signed())
}

fn gcd(a: u8, b: u8) -> u8 {
    if b == 0 { a } else { gcd(b, a % b) }
}
