//! The signed 8-bit dynamic map in which double quantization stores magnitudes.

use std::sync::LazyLock;

/// The 256 values of the map in ascending order.
///
/// For every decade `10^(i−6)`, `i` in `0..7`, the interval from 0.1 to 1 is cut into `2^i` equal
/// parts; the middles of the parts, times the decade, both signs, and 0 and 1 are the values
/// (T. Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", arXiv 1511.04561; "8-bit
/// Optimizers via Block-wise Quantization", arXiv 2110.02861). Steps, middles and products are rounded to f32.
pub(crate) static SIGNED_DYNAMIC_MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
    const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut values = [0.0; 256];
    let mut rest = values.iter_mut();
    let mut put = |value| {
        if let Some(slot) = rest.next() {
            *slot = value;
        }
    };
    put(0.0);
    put(1.0);
    for (i, decade) in DECADES.iter().enumerate() {
        let parts = 1_u16 << i;
        let step = (1.0_f32 - 0.1) / f32::from(parts);
        // Counted from the nearer end, which keeps both ends exact, and rounded once.
        #[expect(clippy::cast_possible_truncation, reason = "the one rounding")]
        let boundary = |k: u16| {
            let distance = |parts: u16| f64::from(step) * f64::from(parts);
            let exact =
                if k < parts.div_ceil(2) { f64::from(0.1_f32) + distance(k) } else { 1.0 - distance(parts - k) };
            exact as f32
        };
        for k in 0..parts {
            let middle = decade * ((boundary(k) + boundary(k + 1)) / 2.0);
            put(middle);
            put(-middle);
        }
    }
    values.sort_by(f32::total_cmp);
    values
});

/// The code of the nearest value of the map, the lower one in a tie.
pub(crate) fn encode_dynamic(x: f32) -> u8 {
    let map = &*SIGNED_DYNAMIC_MAP;
    let right = map.partition_point(|&value| value < x).min(255);
    let left = right.saturating_sub(1);
    let code = if (x - map[left]).abs() <= (map[right] - x).abs() { left } else { right };
    #[expect(clippy::cast_possible_truncation, reason = "256 values")]
    let code = code as u8;
    code
}
