//! Walsh–Hadamard transforms in registers: bit-identical to [`walsh::reference`](crate::walsh::reference).

#[cfg(target_arch = "x86_64")]
mod avx512;

use quant_core::kernels::Isa;

/// Transforms each row of `size`, a power of two, and multiplies with `scale`; false when no kernel does, and nothing was done.
pub(crate) fn rows(rows: &mut [f32], size: usize, scale: f32) -> bool {
    #[cfg(target_arch = "x86_64")]
    if Isa::current() == Isa::Avx512 && size >= avx512::TILE && is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature was just detected.
        unsafe { avx512::rows(rows, size, scale) };
        return true;
    }
    let _ = (Isa::current(), rows, size, scale);
    false
}

/// [`hadamard::mix`](crate::hadamard::mix), compiled for what the CPU has.
pub(crate) fn mix(factor: &[f32], m: usize, block: &mut [f32], strip: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if Isa::current() == Isa::Avx512 && is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature was just detected.
        unsafe { avx512::mix(factor, m, block, strip) };
        return;
    }
    crate::hadamard::mix(factor, m, block, strip);
}
