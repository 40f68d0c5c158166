//! Measuring beside a floor: the least work that a machine must do for an operation of this kind.
//!
//! Absolute figures drift with the machine and its other users; ratios taken close in time do not.
//! Therefore every case of a table runs once a round, many rounds.

pub mod floors;

use std::sync::LazyLock;
use std::time::Instant;

/// A piece of work with a name and the gigabytes that it is counted as.
pub struct Case<'a> {
    /// Name, first column of the table.
    pub name: String,
    /// Gigabytes that one run is counted as: the f32 side.
    pub gigabytes: f64,
    /// Runs it once.
    pub run: Box<dyn FnMut() + 'a>,
}

impl<'a> Case<'a> {
    /// A case that is counted as `elements` f32 values.
    pub fn new(name: impl Into<String>, elements: usize, run: impl FnMut() + 'a) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "sizes of benchmarks")]
        let gigabytes = 4.0 * elements as f64 / 1e9;
        Self { name: name.into(), gigabytes, run: Box::new(run) }
    }
}

/// GB/s of each case: every case once a round, after one round that is not counted; the mean of
/// the faster half of the samples.
///
/// Time is that which the thread had a core, so that other programs cost as little as possible; what
/// they do to caches and memory remains, hence the faster half.
///
/// # Panics
///
/// When `rounds` is zero.
#[must_use]
pub fn interleaved(cases: &mut [Case<'_>], rounds: usize) -> Vec<f64> {
    assert!(rounds > 0, "nothing to take the mean of");
    let mut samples = vec![Vec::new(); cases.len()];
    for round in 0..=rounds {
        for (case, samples) in cases.iter_mut().zip(&mut samples) {
            let start = thread_seconds();
            (case.run)();
            let seconds = thread_seconds() - start;
            if round > 0 {
                samples.push(seconds);
            }
        }
    }
    cases.iter().zip(&mut samples).map(|(case, samples)| case.gigabytes / faster_half(samples)).collect()
}

fn faster_half(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let half = &samples[..samples.len().div_ceil(2)];
    #[expect(clippy::cast_precision_loss, reason = "a few samples")]
    let mean = half.iter().sum::<f64>() / half.len() as f64;
    mean
}

/// Seconds that this thread has had a core; on systems that do not tell, seconds.
fn thread_seconds() -> f64 {
    #[cfg(unix)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a place for the answer.
        if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } == 0 {
            #[expect(clippy::cast_precision_loss, reason = "seconds of a process")]
            return time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        }
    }
    START.elapsed().as_secs_f64()
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Values like those of a trained weight: bell-shaped, a few outliers; the same on every machine.
#[must_use]
pub fn weights(count: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        #[expect(clippy::cast_precision_loss, reason = "24 bits")]
        let unit = (state >> 40) as f32 / 16_777_216.0 - 0.5;
        unit
    };
    (0..count)
        .map(|i| {
            let bell = unit() + unit() + unit() + unit();
            if i % 997 == 0 { 0.2 * bell } else { 0.02 * bell }
        })
        .collect()
}
