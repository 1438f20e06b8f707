//! The program `relay`: everything is in the library.

use std::process::ExitCode;

use adit_relay::cmd::Cli;
use adit_runtime::cli::{parse, report};

fn main() -> ExitCode {
    match parse::<Cli>() {
        Ok(cli) => {
            let json = cli.json();
            report(cli.run(), json)
        }
        Err(code) => code,
    }
}
