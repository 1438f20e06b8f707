//! `agent-tunnel`: reads the command line, runs the command, tells the outcome.

use std::process::ExitCode;

use adit_agent::cli::{Cli, Command, execute};
use adit_runtime::{
    cli::{parse, report},
    dumps, interrupt,
};

fn main() -> ExitCode {
    dumps::forbid();
    interrupt::from_the_start();
    match parse::<Cli>() {
        Ok(cli) => {
            let json = cli.global.json;
            // The running agent stops in its own way.
            if matches!(cli.command, Command::Run) {
                return report(execute(cli), json);
            }
            interrupt::run(json, |_| execute(cli))
        }
        Err(code) => code,
    }
}
