//! `cargo xtask release`: programs built from a clean clone of a commit, with bills of materials,
//! checksums and a signed statement of where they come from; the check of such a directory; and the
//! proof that a second build elsewhere gives the same bits.
//!
//! A package of its own, because it signs: `xtask` is compiled before anything else and stays free
//! of cryptography. Must never tell a private key, nor let a release that is not signed, not
//! complete or not of the commit look like one that is. docs/release.md is for its users.

mod build;
mod compare;
mod envelope;
#[cfg(all(test, target_os = "linux"))]
mod fixture;
mod key;
mod make;
mod packed;
mod provenance;
mod reproduce;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// What is said of a release that does not hold, or of builds that differ.
type Findings = Vec<String>;

/// Exit code for a release that is refused, or for builds that differ.
const REFUSED: u8 = 1;
/// Exit code for all that keeps us from judging: wrong usage, unreadable files, failed builds.
const UNABLE: u8 = 2;

/// Builds, signs, verifies and reproduces releases (docs/release.md).
#[derive(Parser)]
#[command(name = "cargo xtask release", bin_name = "cargo xtask release")]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    make: make::Options,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a signing key: FILE (mode 0600, to be kept) and FILE.pub (to be published)
    Keygen {
        /// Must not exist yet
        file: PathBuf,
    },
    /// Signs a release, after checking that it is whole and of that commit
    Sign {
        /// The release
        dir: PathBuf,
        /// The commit that is meant, all 40 digits: the release only says of which it is
        #[arg(long)]
        commit: String,
        /// Private key (PKCS#8 PEM, mode 0600); - reads it from standard input
        #[arg(long, value_name = "FILE")]
        sign_key: PathBuf,
    },
    /// Checks signature, digests and completeness; exit code 1: refused, 2: cannot be judged
    Verify {
        /// The release
        dir: PathBuf,
        /// Public key (PEM), or the fingerprint of the one that lies in DIR
        #[arg(long, value_name = "FILE|sha256:…")]
        key: String,
    },
    /// Builds HEAD twice in different surroundings and compares; exit code 1: they differ
    Reproduce(reproduce::Options),
}

/// What all builds are told.
#[derive(Args, Clone, Debug)]
struct Common {
    /// Only this program (mediator, relay, agent-tunnel, console-tunnel); can be repeated
    #[arg(long = "program", value_name = "PROGRAM")]
    programs: Vec<String>,
    /// Target triple (default: this machine's)
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// How many compilers at once (default: as many as there are processors)
    #[arg(long, value_name = "N")]
    jobs: Option<u32>,
    /// Where to build; some 10 GB are needed for a while
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Go on although the work tree has changes: they will not be in what is built
    #[arg(long)]
    allow_dirty: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            findings.iter().for_each(|finding| eprintln!("refused: {finding}"));
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(UNABLE)
        }
    }
}

fn run(cli: Cli) -> Result<Findings> {
    match cli.command {
        None => make::run(&cli.make).map(|()| Findings::new()),
        Some(Command::Keygen { file }) => {
            let public = key::generate(&file)?;
            println!("{} is the private key: keep it, and a copy, off line", file.display());
            println!(
                "{} is the public key, {}",
                key::beside(&file).display(),
                public.fingerprint()
            );
            Ok(Findings::new())
        }
        Some(Command::Sign { dir, commit, sign_key }) => make::sign(&dir, &commit, &sign_key),
        Some(Command::Verify { dir, key }) => verify::run(&dir, &key),
        Some(Command::Reproduce(options)) => reproduce::run(&options),
    }
}
