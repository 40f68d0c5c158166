//! Measuring beside a floor: the least work that a machine must do for an operation of this kind.
//!
//! Absolute figures drift with the machine and its other users; ratios taken close in time do not.
//! Therefore every case of a table runs once a round, many rounds.

pub mod floors;

use std::sync::LazyLock;
use std::time::Instant;

/// Formats of the tables, and the bits of the floor each is compared with.
pub const FORMATS: &[(&str, u32)] = &[
    ("int8", 8),
    ("int8-g32", 8),
    ("int8-g128", 8),
    ("int8-asym", 8),
    ("int4-g32", 4),
    ("int4-g128", 4),
    ("int4-g128-asym", 4),
    ("fp8-e4m3", 8),
    ("fp8-e4m3-cast", 8),
    ("fp8-e5m2-cast", 8),
    ("f16", 16),
    ("bf16", 16),
    ("mxfp8-e4m3", 8),
    ("mxfp8-e5m2", 8),
    ("mxint8", 8),
    ("mxfp6-e2m3", 8),
    ("mxfp4", 4),
    ("nvfp4", 4),
    ("nvint4", 4),
    ("nf4", 4),
];

/// What a case is to the others of its table.
enum Role {
    /// The least work for codes of so many bits; 0 for none.
    Floor(u32),
    /// Somebody else's way to do what the named case does.
    Peer(&'static str),
    /// Ours, compared with the floor of so many bits.
    Ours(u32),
}

/// A piece of work with a name and the gigabytes that it is counted as.
pub struct Case<'a> {
    name: &'static str,
    role: Role,
    gigabytes: f64,
    run: Box<dyn FnMut() + 'a>,
}

impl<'a> Case<'a> {
    fn new(name: &'static str, role: Role, elements: usize, run: impl FnMut() + 'a) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "sizes of benchmarks")]
        let gigabytes = 4.0 * elements as f64 / 1e9;
        Self { name, role, gigabytes, run: Box::new(run) }
    }

    /// The least work for codes of `bits` bits.
    pub fn floor(name: &'static str, bits: u32, elements: usize, run: impl FnMut() + 'a) -> Self {
        Self::new(name, Role::Floor(bits), elements, run)
    }

    /// Somebody else's way to do what the case `of` does.
    pub fn peer(name: &'static str, of: &'static str, elements: usize, run: impl FnMut() + 'a) -> Self {
        Self::new(name, Role::Peer(of), elements, run)
    }

    /// Our way, compared with the floor of `bits` bits.
    pub fn ours(name: &'static str, bits: u32, elements: usize, run: impl FnMut() + 'a) -> Self {
        Self::new(name, Role::Ours(bits), elements, run)
    }
}

impl Case<'_> {
    /// The same counted as so many billions of something else.
    #[must_use]
    pub fn counted_as(self, billions: f64) -> Self {
        Self { gigabytes: billions, ..self }
    }
}

/// Whether this process computes on one thread, as what is compared must; otherwise another one does so in its place, and
/// has ended when this returns.
///
/// Peers have pools of threads of their own, whose size only the environment tells.
///
/// # Panics
///
/// When the other process does not start or fails.
#[must_use]
pub fn on_one_thread() -> bool {
    const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];
    if THREADS.iter().all(|name| std::env::var(name).is_ok_and(|threads| threads == "1")) {
        return true;
    }
    let program = std::env::current_exe().expect("the running program has a name");
    let mut other = std::process::Command::new(program);
    let status = other.args(std::env::args_os().skip(1)).envs(THREADS.map(|name| (name, "1"))).status();
    assert!(status.expect("the running program starts again").success(), "the benchmark failed");
    false
}

/// Measures all cases and prints them as a Markdown table with the ratios to floor and peer.
pub fn print_table(title: &str, cases: &mut [Case<'_>], rounds: usize) {
    print_table_in("GB/s", title, cases, rounds);
}

/// The same in another unit: a billion of what cases are counted as in a second.
pub fn print_table_in(unit: &str, title: &str, cases: &mut [Case<'_>], rounds: usize) {
    let speeds = interleaved(cases, rounds);
    let find = |is: &dyn Fn(&Case<'_>) -> bool| cases.iter().position(is).map(|i| speeds[i]);
    println!("\n{title}\n\n| | {unit} | us / floor | us / peer |\n|---|---|---|---|");
    for (case, &speed) in cases.iter().zip(&speeds) {
        let (floor, peer) = match case.role {
            Role::Ours(bits) => (
                find(&|c| matches!(c.role, Role::Floor(b) if b == bits)),
                find(&|c| matches!(c.role, Role::Peer(of) if of == case.name)),
            ),
            _ => (None, None),
        };
        let ratio = |other: Option<f64>| other.map_or(String::new(), |other| format!("{:.2}", speed / other));
        println!("| {} | {speed:.2} | {} | {} |", case.name, ratio(floor), ratio(peer));
    }
}

/// GB/s of each case: every case once a round, after one round that is not counted; the mean of
/// the faster half of the samples.
///
/// Peers have rounds of their own: while one takes long and asks memory for little, some processors slow memory down, and
/// what comes next would pay for that.
///
/// Time is that which the thread had a core, so that other programs cost as little as possible; what
/// they do to caches and memory remains, hence the faster half.
///
/// `rounds` is not zero.
fn interleaved(cases: &mut [Case<'_>], rounds: usize) -> Vec<f64> {
    assert!(rounds > 0, "nothing to take the mean of");
    let mut samples = vec![Vec::new(); cases.len()];
    for peers in [false, true] {
        let is_asked = |case: &Case<'_>| matches!(case.role, Role::Peer(_)) == peers;
        for round in 0..=rounds {
            for (case, samples) in cases.iter_mut().zip(&mut samples).filter(|(case, _)| is_asked(case)) {
                let start = thread_seconds();
                (case.run)();
                let seconds = thread_seconds() - start;
                if round > 0 {
                    samples.push(seconds);
                }
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
    if let Some(seconds) = clock(libc::CLOCK_THREAD_CPUTIME_ID) {
        return seconds;
    }
    START.elapsed().as_secs_f64()
}

/// Seconds that the threads of this process have had cores, all together; on systems that do not tell, seconds.
#[must_use]
pub fn process_seconds() -> f64 {
    #[cfg(unix)]
    if let Some(seconds) = clock(libc::CLOCK_PROCESS_CPUTIME_ID) {
        return seconds;
    }
    START.elapsed().as_secs_f64()
}

#[cfg(unix)]
fn clock(id: libc::clockid_t) -> Option<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a place for the answer.
    let result = unsafe { libc::clock_gettime(id, &raw mut time) };
    #[expect(clippy::cast_precision_loss, reason = "seconds of a process")]
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    (result == 0).then_some(seconds)
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A piece of work and its name.
pub type Work<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// Every piece once a round, the least seconds of each, by the cores' time and by the clock: other programs only ever
/// add. The first is the floor.
pub fn print_seconds(title: &str, cases: &mut [Work<'_>], rounds: usize) {
    let mut seconds = vec![(f64::INFINITY, f64::INFINITY); cases.len()];
    for _ in 0..rounds {
        for ((_, run), (cores, clock)) in cases.iter_mut().zip(&mut seconds) {
            let (before, started) = (process_seconds(), Instant::now());
            run();
            *cores = cores.min(process_seconds() - before);
            *clock = clock.min(started.elapsed().as_secs_f64());
        }
    }
    println!("\n{title}\n\n| | CPU ms | × floor | ms |\n|---|---:|---:|---:|");
    for ((name, _), (cores, clock)) in cases.iter().zip(&seconds) {
        println!("| {name} | {:.1} | {:.2} | {:.1} |", 1e3 * cores, cores / seconds[0].0, 1e3 * clock);
    }
}

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
