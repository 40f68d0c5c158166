//! How long jobs say how far they are.

/// Receives the progress of a job. All methods do nothing unless implemented.
///
/// The library never prints; whoever calls it decides what becomes of these calls.
pub trait Progress {
    /// A job of `total` units starts; a unit is a byte of input or a token.
    fn begin(&mut self, what: &str, total: u64) {
        let _ = (what, total);
    }

    /// So many further units are done; `now` names what is being worked on.
    fn advance(&mut self, units: u64, now: &str) {
        let _ = (units, now);
    }

    /// Something worth telling, one line.
    fn note(&mut self, line: &str) {
        let _ = line;
    }

    /// The job is over.
    fn end(&mut self) {}
}

/// Progress that nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}
