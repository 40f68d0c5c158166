//! Runs the tables of `benches/` and writes them into the page of benchmarks.

use crate::bars;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use xtask::docs::BENCHMARKS;
use xtask::{Failure, docs};

/// Benchmarks that print tables, in the order of the page.
const TABLES: &[&str] =
    &["encode", "decode", "products", "grouped", "experts", "attention", "gptq", "hadamard", "svd", "vector", "tokens"];

/// Runs the named benchmarks, or all, and replaces the generated sections of these names on the page.
pub(crate) fn run(root: &Path, names: &[&str]) -> Result<(), Failure> {
    if let Some(unknown) = names.iter().find(|name| !TABLES.contains(name)) {
        return Err(format!("no benchmark {unknown:?} prints tables; there are {}", TABLES.join(", ")));
    }
    let path = root.join(BENCHMARKS);
    for name in TABLES.iter().filter(|name| names.is_empty() || names.contains(name)) {
        let tables = measure(root, name)?;
        let page = std::fs::read_to_string(&path).map_err(|error| format!("{BENCHMARKS}: {error}"))?;
        let section = format!("{}\n\n{}\n", machine(), headings(&tables));
        docs::publish(&path, &docs::replace_section(&page, name, &section)?, docs::Mode::Write)?;
    }
    bars::run(root, docs::Mode::Write)
}

fn measure(root: &Path, name: &str) -> Result<String, Failure> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["bench", "--workspace", "--bench", name, "--", "--table"];
    let output = Command::new(cargo).args(arguments).current_dir(root).output();
    let output = output.map_err(|error| format!("cargo does not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lines in front of tables become headings.
fn headings(tables: &str) -> String {
    let lines: Vec<&str> = tables.trim().lines().collect();
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let before_table = lines.get(i + 1).is_some_and(|next| next.is_empty())
            && lines.get(i + 2).is_some_and(|next| next.starts_with('|'));
        if before_table && !line.starts_with('|') {
            out.push_str("### ");
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// The day, the processor and the compiler.
fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown").to_owned();
    let compiler = Command::new("rustc").arg("--version").output();
    let compiler = compiler.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    format!(
        "{}, {threads} threads of {}, {compiler}; load when the run ended: {load}.",
        today(),
        model.unwrap_or("an unnamed processor")
    )
}

/// Today in UTC, as year-month-day.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (mut year, mut day) = (1970_u64, seconds / 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", day + 1)
}

#[cfg(test)]
mod tests {
    use super::headings;

    #[test]
    fn titles_of_tables_become_headings() {
        assert_eq!(headings("Title\n\n| a |\n|---|\nnote\n"), "### Title\n\n| a |\n|---|\nnote\n");
    }
}
