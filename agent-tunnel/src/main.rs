//! `agent-tunnel`: reads the command line, runs the command, tells the outcome.

use std::process::ExitCode;

fn main() -> ExitCode {
    match adit_runtime::cli::parse::<adit_agent::cli::Cli>() {
        Ok(cli) => {
            let json = cli.global.json;
            adit_runtime::cli::report(adit_agent::cli::execute(cli), json)
        }
        Err(code) => code,
    }
}
