//! The one place that prints errors and results.

use serde::Serialize;
use serde_json::json;
use std::io::{self, Write};
use std::process::ExitCode;

/// A failed verb: what to say and with which code to leave.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) usage: bool,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()), usage: true }
    }
}

impl From<leanbits::Error> for Failure {
    fn from(error: leanbits::Error) -> Self {
        let hint = error.hint();
        let mut message = error.to_string();
        // Messages of causes are not part of the messages of what they cause.
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            let text = next.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = next.source();
        }
        Self { message, hint, usage: false }
    }
}

/// Prints a failure as one line and a hint, and returns the exit code.
pub(crate) fn fail(failure: &Failure, json: bool) -> ExitCode {
    let message = one_line(&failure.message);
    let mut stderr = io::stderr().lock();
    // There is nobody left to tell when standard error is closed.
    let _ = writeln!(stderr, "error: {message}");
    if let Some(hint) = &failure.hint {
        let _ = writeln!(stderr, "hint: {}", one_line(hint));
    }
    if json {
        let _ = print_json(&json!({ "error": message, "hint": failure.hint }));
    }
    ExitCode::from(if failure.usage { 2 } else { 1 })
}

/// Turns a refusal of the argument parser into a failure.
pub(crate) fn usage_failure(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut message = String::new();
    let mut tip = None;
    for line in text.lines().map(str::trim) {
        if let Some(found) = line.strip_prefix("tip: ") {
            tip.get_or_insert_with(|| found.to_owned());
        } else if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        } else if !line.is_empty() {
            message.push_str(if message.is_empty() { "" } else { " " });
            message.push_str(line.strip_prefix("error: ").unwrap_or(line));
        }
    }
    let formats = message.contains("--format");
    let codecs = message.contains("--codec");
    let hint = tip.unwrap_or_else(|| {
        if codecs && message.contains("invalid value") {
            return "`leanbits kv --help` lists the codecs".to_owned();
        }
        if formats && message.contains("invalid value") {
            "`leanbits formats` lists the named formats".to_owned()
        } else {
            "`leanbits --help` lists the verbs, `leanbits VERB --help` explains one".to_owned()
        }
    });
    Failure::usage(message, hint)
}

/// Prints one JSON object and a line feed.
pub(crate) fn print_json(value: &impl Serialize) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value)?;
    writeln!(stdout)?;
    stdout.flush()
}

/// Prints text for people. A closed pipe (`leanbits formats | head`) is no failure.
pub(crate) fn print_text(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
