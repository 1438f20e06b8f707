//! `console-tunnel`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    adit_runtime::dumps::forbid();
    adit_console::run()
}
