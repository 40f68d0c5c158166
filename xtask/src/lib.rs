//! What the tasks and the study share: pages that are written in part, and charts. Nothing here depends on the crates of the
//! workspace, so that their generated modules can be written while they do not compile.
#![forbid(unsafe_code)]

pub mod chart;
pub mod docs;

/// Why a task ended early; the message is for people.
pub type Failure = String;
