//! What a run took from the machine.

use std::time::{Duration, Instant};

/// Largest resident memory of this process so far in bytes, mapped files included (`VmHWM`); `None`
/// where the system does not say.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Adds up the time spent in one kind of work.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stopwatch(Duration);

impl Stopwatch {
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.0 += start.elapsed();
        result
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.0 += time;
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.0.as_secs_f64()
    }
}
