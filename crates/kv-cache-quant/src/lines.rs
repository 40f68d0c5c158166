//! Bytes that start at a cache line.
#![expect(unsafe_code, reason = "lines seen as bytes")]

/// Bytes of a line.
const LINE: usize = 64;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Some bytes, the first of which starts a cache line, so that rows of whole lines are read without touching more; whole
/// lines of them.
#[derive(Clone, Debug)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    pub(crate) fn zeros(len: usize) -> Self {
        Self(vec![Line([0; LINE]); len.div_ceil(LINE)])
    }

    /// Bytes that are allocated for so many.
    pub(crate) fn allocated_for(len: usize) -> usize {
        len.next_multiple_of(LINE)
    }

    pub(crate) fn allocated(&self) -> usize {
        self.0.capacity() * LINE
    }
}

impl std::ops::Deref for Lines {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: lines are bytes side by side, without any between.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }
}

impl std::ops::DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; any bytes are a line.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_start_at_a_line_and_count_what_is_allocated() {
        for len in [0, 1, 63, 64, 65, 1000] {
            let mut lines = Lines::zeros(len);
            assert!(len == 0 || lines.as_ptr().addr().is_multiple_of(LINE), "{len} bytes");
            assert!(lines.len() >= len);
            assert_eq!((lines.len(), lines.allocated()), (Lines::allocated_for(len), Lines::allocated_for(len)));
            lines.iter_mut().for_each(|byte| *byte = 7);
            assert!(lines.clone().iter().all(|&byte| byte == 7));
        }
    }
}
