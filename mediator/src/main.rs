//! The mediator program; everything is in the library.

#[global_allocator]
static MEMORY: adit_mediator::wipe::Wiping = adit_mediator::wipe::Wiping;

fn main() -> std::process::ExitCode {
    adit_runtime::dumps::forbid();
    adit_mediator::cli::main()
}
