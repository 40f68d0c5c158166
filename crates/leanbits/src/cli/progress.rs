//! Progress on standard error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use leanbits::Progress;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// A bar on a terminal; elsewhere a line every few seconds, and none for jobs that are short.
pub(crate) struct Reporter {
    shown: bool,
    bar: ProgressBar,
    terminal: bool,
    what: String,
    total: u64,
    done: u64,
    next_line: Instant,
}

const FIRST_LINE: Duration = Duration::from_secs(2);
const EVERY: Duration = Duration::from_secs(5);

impl Reporter {
    pub(crate) fn new(shown: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        Self { shown, bar, terminal, what: String::new(), total: 0, done: 0, next_line: Instant::now() }
    }
}

impl Progress for Reporter {
    fn begin(&mut self, what: &str, total: u64) {
        (self.what, self.total, self.done) = (what.to_owned(), total, 0);
        self.next_line = Instant::now() + FIRST_LINE;
        if self.shown && self.terminal {
            self.bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3}% {eta} {wide_msg}") {
                self.bar.set_style(style.progress_chars("=> "));
            }
            self.bar.set_prefix(what.to_owned());
        }
    }

    fn advance(&mut self, units: u64, now: &str) {
        self.done += units;
        if !self.shown {
            return;
        }
        if self.terminal {
            self.bar.set_message(now.to_owned());
            self.bar.inc(units);
        } else if Instant::now() >= self.next_line && self.total > 0 {
            self.next_line = Instant::now() + EVERY;
            let percent = u128::from(self.done) * 100 / u128::from(self.total);
            let _ = writeln!(std::io::stderr(), "{} {percent}% {now}", self.what);
        }
    }

    fn note(&mut self, line: &str) {
        if self.terminal && self.shown {
            self.bar.suspend(|| eprintln!("{line}"));
        } else {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}
