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
    if let Some(threads) = cli.common.threads {
        // Fails only when the pool exists, and nothing has used it yet.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads)).build_global();
    }
    let mut reporter = Reporter::new(!json && !cli.common.quiet);
    let result = match cli.verb {
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
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, json),
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self { message: format!("cannot write to standard output: {error}"), hint: None, usage: false }
    }
}
