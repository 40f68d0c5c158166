//! Development tasks: `cargo xtask ci`, `cargo xtask codegen`, `cargo xtask study`, `cargo xtask curves`, `cargo xtask bench`.
#![forbid(unsafe_code)]

mod bars;
mod bench;
mod ci;
mod codegen;
mod curves;

use std::path::Path;
use std::process::ExitCode;
use xtask::{Failure, docs};

const USAGE: &str = "\
Usage: cargo xtask <task>

  ci [STEP...]       run all checks, or only the named steps, in the order listed below
  ci --list          name the steps
  codegen [--check]  write the generated kernel modules of the crates; with --check, fail if any would change
  study [--check]    write the measured tables and figures of docs/src; with --check, fail if any would change
  curves [--check]   draw the curves and bars of docs/src from the tables beside them; with --check, fail if any would change
  bench [NAME...]    run the tables of benches/, all or the named ones, and write them to docs/src/benchmarks.md, with bars
  links              check that every relative link in the Markdown files leads somewhere
";

fn main() -> ExitCode {
    // The manifest lies in `xtask/`, one below the root of the workspace.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["ci", "--list"] => {
            ci::list();
            Ok(())
        }
        ["ci", steps @ ..] => ci::run(root, steps),
        ["codegen"] => codegen::run(root, docs::Mode::Write),
        ["codegen", "--check"] => codegen::run(root, docs::Mode::Check),
        ["study", rest @ ..] if matches!(rest, [] | ["--check"]) => ci::study(root, rest),
        ["curves"] => figures(root, docs::Mode::Write),
        ["curves", "--check"] => figures(root, docs::Mode::Check),
        ["bench", names @ ..] => bench::run(root, names),
        ["links"] => docs::check_links(root),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("unknown task {:?}\n\n{USAGE}", args.join(" "));
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Figures that are drawn from tables.
fn figures(root: &Path, mode: docs::Mode) -> Result<(), Failure> {
    curves::run(root, mode)?;
    bars::run(root, mode)
}
