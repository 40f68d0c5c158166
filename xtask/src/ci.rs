//! What a change must pass: the same on a laptop and on the server.
//!
//! The workspace is tested in the release profile, because tests run real models; lints and documentation use it too, so
//! that build scripts and macros are compiled once. The crates that read files are tested a second time in the dev
//! profile, where integer overflow panics.

use crate::{codegen, figures};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use xtask::{Failure, docs};

struct Step {
    name: &'static str,
    summary: &'static str,
    run: fn(&Ci<'_>) -> Result<Counts, Failure>,
}

const STEPS: &[Step] = &[
    Step { name: "fmt", summary: "the code is formatted", run: |ci| ci.cargo(&["fmt", "--all", "--check"]) },
    Step {
        name: "links",
        summary: "relative links in Markdown lead somewhere",
        run: |ci| task(docs::check_links(ci.root)),
    },
    Step { name: "deny", summary: "licences, bans and sources (where cargo-deny is installed)", run: |ci| ci.deny() },
    Step {
        name: "clippy",
        summary: "no warnings in any target with any feature",
        run: |ci| {
            ci.cargo(&["clippy", "--release", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])
        },
    },
    Step { name: "rustdoc", summary: "the documentation builds without warnings", run: |ci| ci.rustdoc() },
    Step { name: "build", summary: "the workspace builds", run: |ci| ci.cargo(&["build", "--release", "--workspace"]) },
    Step {
        name: "aarch64",
        summary: "the workspace compiles for aarch64 (where its standard library is installed)",
        run: |ci| ci.aarch64(),
    },
    Step {
        name: "generated",
        summary: "generated kernels, pages and figures are up to date",
        run: |ci| {
            let check = docs::Mode::Check;
            codegen::run(ci.root, check).and_then(|()| figures(ci.root, check))?;
            ci.cargo(&[STUDY, &["--check"]].concat())
        },
    },
    Step {
        name: "demo",
        summary: "the demonstration runs",
        run: |ci| {
            // There is none where cargo builds elsewhere.
            std::fs::create_dir_all(ci.root.join("target")).map_err(|error| format!("target: {error}"))?;
            // By the name of the program, so that features are those of the whole workspace, which is built by now.
            ci.cargo(&["run", "--release", "--bin", "leanbits", "--", "demo", "--svg", "target/leanbits-demo.svg"])
        },
    },
    Step {
        name: "doctests",
        summary: "the examples in the documentation run",
        run: |ci| ci.cargo(&["test", "--release", "--workspace", "--doc"]),
    },
    Step {
        name: "checked",
        summary: "tests of the crates below the models, all features, with overflow checks",
        run: |ci| {
            let packages = ["--package", "quant-core", "--package", "quant-io", "--package", "kv-cache-quant"];
            ci.test(&[&packages[..], &["--all-features"]].concat())
        },
    },
    Step { name: "test", summary: "tests of the workspace", run: |ci| ci.test(&["--release", "--workspace"]) },
];

/// Runs the study, which is a program of its own as it needs the crates: by its name, so that features are those of the whole
/// workspace.
const STUDY: &[&str] = &["run", "--release", "--bin", "study", "--"];

/// Runs the study with arguments.
pub(crate) fn study(root: &Path, arguments: &[&str]) -> Result<(), Failure> {
    Ci { root, nextest: false, deny: false }.cargo(&[STUDY, arguments].concat()).map(|_| ())
}

/// Prints the steps in the order in which they run.
pub(crate) fn list() {
    for step in STEPS {
        println!("{:<10} {}", step.name, step.summary);
    }
}

/// Runs the named steps, or all of them, and stops at the first that fails.
pub(crate) fn run(root: &Path, names: &[&str]) -> Result<(), Failure> {
    if let Some(name) = names.iter().find(|name| STEPS.iter().all(|step| step.name != **name)) {
        return Err(format!("there is no step {name:?}; `cargo xtask ci --list` names them"));
    }
    let ci = Ci { root, nextest: installed("nextest"), deny: installed("deny") };
    let (start, mut counts, mut times) = (Instant::now(), Counts::default(), Vec::new());
    for step in STEPS.iter().filter(|step| names.is_empty() || names.contains(&step.name)) {
        println!("\n=== {}: {}", step.name, step.summary);
        let begin = Instant::now();
        let found = (step.run)(&ci).map_err(|message| format!("step {} failed: {message}", step.name))?;
        counts.passed += found.passed;
        counts.skipped += found.skipped;
        times.push((step.name, begin.elapsed().as_secs_f64()));
    }
    println!("\n=== all steps passed");
    for (name, seconds) in times {
        println!("{name:<10} {seconds:7.1} s");
    }
    let Counts { passed, skipped } = counts;
    println!("Summary [{:8.3}s] {passed} tests run: {passed} passed, {skipped} skipped", start.elapsed().as_secs_f64());
    Ok(())
}

/// Tests that a step ran, as its runner reported them.
#[derive(Default)]
struct Counts {
    passed: u64,
    skipped: u64,
}

impl Counts {
    /// Adds the counts of one line of output, if it is a summary of cargo test or of nextest.
    fn read(&mut self, line: &str) {
        let Some(summary) =
            line.trim().strip_prefix("test result: ").or_else(|| line.split_once(" tests run: ").map(|(_, s)| s))
        else {
            return;
        };
        for part in summary.split([';', ',', '.']) {
            let mut words = part.split_whitespace();
            if let (Some(Ok(n)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) {
                match what {
                    "passed" => self.passed += n,
                    "ignored" | "skipped" => self.skipped += n,
                    _ => {}
                }
            }
        }
    }
}

struct Ci<'a> {
    root: &'a Path,
    nextest: bool,
    deny: bool,
}

impl Ci<'_> {
    fn cargo(&self, args: &[&str]) -> Result<Counts, Failure> {
        self.cargo_with(args, None)
    }

    fn rustdoc(&self) -> Result<Counts, Failure> {
        self.cargo_with(&["doc", "--release", "--workspace", "--no-deps"], Some(("RUSTDOCFLAGS", "-D warnings")))
    }

    fn test(&self, args: &[&str]) -> Result<Counts, Failure> {
        // Doctests are a step of their own, and nextest has none.
        let runner: &[&str] = if self.nextest { &["nextest", "run"] } else { &["test", "--lib", "--bins", "--tests"] };
        self.cargo(&[runner, args].concat())
    }

    fn deny(&self) -> Result<Counts, Failure> {
        if self.deny {
            return self.cargo(&["deny", "--all-features", "check", "licenses", "bans", "sources"]);
        }
        println!("cargo-deny is not installed; nothing checked");
        Ok(Counts::default())
    }

    fn aarch64(&self) -> Result<Counts, Failure> {
        const TARGET: &str = "aarch64-unknown-linux-gnu";
        let folder = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
        let folder = folder.map_err(|error| format!("rustc does not start: {error}"))?;
        if Path::new(String::from_utf8_lossy(&folder.stdout).trim()).is_dir() {
            return self.cargo(&["check", "--workspace", "--all-features", "--all-targets", "--target", TARGET]);
        }
        println!("{TARGET} is not installed; nothing checked");
        Ok(Counts::default())
    }

    /// Runs cargo, passing its output on and reading test summaries from it.
    fn cargo_with(&self, args: &[&str], env: Option<(&str, &str)>) -> Result<Counts, Failure> {
        println!("$ cargo {}", args.join(" "));
        let mut command = Command::new("cargo");
        command.args(args).current_dir(self.root).stdout(Stdio::piped()).stderr(Stdio::piped()).envs(env);
        let mut child = command.spawn().map_err(|error| format!("cargo does not start: {error}"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut counts = Counts::default();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut counts = Counts::default();
                pass_on(stdout, &mut std::io::stdout(), &mut counts);
                counts
            });
            pass_on(stderr, &mut std::io::stderr(), &mut counts);
            if let Ok(other) = reader.join() {
                counts.passed += other.passed;
                counts.skipped += other.skipped;
            }
        });
        let status = child.wait().map_err(|error| format!("cargo cannot be waited for: {error}"))?;
        if status.success() { Ok(counts) } else { Err(format!("`cargo {}` ended with {status}", args.join(" "))) }
    }
}

fn pass_on(from: Option<impl Read>, to: &mut impl Write, counts: &mut Counts) {
    let Some(from) = from else { return };
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        counts.read(&line);
        // A closed terminal must not end the checks.
        let _ = writeln!(to, "{line}");
    }
}

/// A step that is done in this process and runs no tests.
fn task(result: Result<(), Failure>) -> Result<Counts, Failure> {
    result.map(|()| Counts::default())
}

fn installed(subcommand: &str) -> bool {
    let mut command = Command::new("cargo");
    command.args([subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn summaries_of_both_runners_are_counted() {
        let mut counts = Counts::default();
        counts.read("test result: ok. 13 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        counts.read("     Summary [   0.211s] 40 tests run: 39 passed (1 slow), 2 skipped");
        counts.read("running 13 tests");
        assert_eq!((counts.passed, counts.skipped), (52, 3));
    }
}
