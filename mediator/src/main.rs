//! The mediator program; everything is in the library.

fn main() -> std::process::ExitCode {
    adit_mediator::cli::main()
}
