//! The program: arguments in, library calls, tables or JSON out.

mod args;
mod kv;
mod moe;
mod output;
mod progress;
mod verbs;

use args::{Cli, Verb};
use clap::Parser;
use clap::error::ErrorKind;
use output::{Failure, fail, usage_failure};
use progress::Reporter;
use std::process::ExitCode;

/// Runs the program on the arguments of the process.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return match error.print() {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(1),
            };
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Help that was not asked for is wrong usage; it goes to standard error.
            let _ = error.print();
            return ExitCode::from(2);
        }
        Err(error) => return fail(&usage_failure(&error), std::env::args_os().any(|arg| arg == "--json")),
    };
    let json = cli.common.json;
    let threads = cli.common.threads.map_or(0, usize::from);
    // Fails only when the pool exists, and nothing has used it yet. 0 is a thread for each core.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build_global();
    let quiet = json || cli.common.quiet;
    // Work that starts inside the pool need not wake it for each of its parts.
    let result = rayon::scope(|_| verb(cli.verb, json, Reporter::new(!quiet)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, json),
    }
}

/// Bytes of the stack of a thread: as much as the first thread of a process has.
const STACK: usize = 8 << 20;

fn verb(verb: Verb, json: bool, mut reporter: Reporter) -> Result<(), Failure> {
    let result = match verb {
        Verb::Demo(args) => verbs::demo(&args, json, &mut reporter),
        Verb::Formats => verbs::formats(json),
        Verb::Quantize(args) => verbs::quantize(&args, json, &mut reporter),
        Verb::Dequantize(args) => verbs::dequantize(&args, json, &mut reporter),
        Verb::Compress(args) => verbs::compress(&args, json, &mut reporter),
        Verb::Eval(args) => verbs::eval(&args, json, &mut reporter),
        Verb::Kv(args) => kv::kv(&args, json, &mut reporter),
        Verb::Calib(args) => moe::calib(&args, json, &mut reporter),
        Verb::Profile(args) => moe::profile(&args, json, &mut reporter),
        Verb::Bench(args) => verbs::bench(&args, json, &mut reporter),
        Verb::Inspect(args) => verbs::inspect(&args, json, &mut reporter),
    };
    leanbits::Progress::end(&mut reporter);
    result
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self { message: format!("cannot write to standard output: {error}"), hint: None, usage: false }
    }
}
