//! The program `relay`: everything is in the library.

use std::process::ExitCode;

use adit_relay::cmd::Cli;
use adit_runtime::{
    cli::{parse, report},
    dumps, interrupt,
};

fn main() -> ExitCode {
    dumps::forbid();
    interrupt::from_the_start();
    match parse::<Cli>() {
        Ok(cli) => {
            let json = cli.json();
            // The server stops in its own way.
            match cli.serves() {
                true => report(cli.run(), json),
                false => interrupt::run(json, |_| cli.run()),
            }
        }
        Err(code) => code,
    }
}
