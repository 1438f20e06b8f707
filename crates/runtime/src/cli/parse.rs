//! Reads the command line. Wrong usage exits with 2, as JSON if `--json` is on the line.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{
    Command, CommandFactory, Parser,
    error::{ContextKind, ContextValue},
};

use super::{
    error::{CliError, report},
    escape::escape_text,
};

/// Protocol versions that this build speaks.
pub const PROTOCOLS: &str = "adit/1";

/// What `--version` prints after the program's name.
pub const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("ADIT_COMMIT"), ", protocols adit/1)");

/// Name, version, commit and protocol versions.
pub fn version_string(program: &str) -> String {
    format!("{program} {VERSION}")
}

/// The command line of `T`, complete: version, and examples for the commands that all programs
/// share, which cannot know the program's name by themselves.
pub fn command<T: CommandFactory>() -> Command {
    let command = T::command().version(VERSION);
    if command.find_subcommand("config").is_none() {
        return command;
    }
    let program = command.get_name().to_owned();
    let check = format!(
        "Examples:\n  {program} config check\n  {program} config check --config new.toml --json"
    );
    let show = format!("Examples:\n  {program} config show\n  {program} config show --json");
    command.mut_subcommand("config", |config| {
        config
            .mut_subcommand("check", |command| command.after_help(check))
            .mut_subcommand("show", |command| command.after_help(show))
    })
}

/// Is JSON wanted, as far as a line can be read that may be wrong?
pub(crate) fn wants_json(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> bool {
    let mut before = arguments.into_iter().take_while(|argument| argument.as_ref() != "--");
    before.any(|argument| argument.as_ref() == "--json")
}

/// Parses this process's arguments. On `Err` everything is told already: exit with it.
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    parse_from(std::env::args_os())
}

/// Parses `arguments`, the program's name first.
pub fn parse_from<T: Parser>(
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
) -> Result<T, ExitCode> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    // The line is wrong, so clap cannot say whether JSON is wanted.
    let json = wants_json(arguments.iter());
    let mut command = command::<T>();
    let parsed = command
        .try_get_matches_from_mut(arguments)
        .and_then(|mut matches| T::from_arg_matches_mut(&mut matches))
        .map_err(|error| harmless(error.format(&mut command)));
    let error = match parsed {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    if error.use_stderr() && json {
        return Err(report(Err(usage_error(&error)), true));
    }
    // Help goes to stdout, complaints to stderr; a closed pipe is nobody's problem.
    let _ = error.print();
    Err(if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

/// What was typed may come from elsewhere: repeated on the terminal it must do nothing there.
fn harmless(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand, ContextKind::InvalidValue]
    {
        if let Some(ContextValue::String(text)) = error.get(kind) {
            let escaped = ContextValue::String(escape_text(text));
            error.insert(kind, escaped);
        }
    }
    error
}

fn usage_error(error: &clap::Error) -> CliError {
    let text = error.to_string();
    let (message, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let message = message.trim().trim_start_matches("error: ").replace('\n', " ");
    let tip = rest.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let error = CliError::usage("usage", message);
    error.hint(tip.unwrap_or("see --help"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::GlobalArgs;

    #[derive(Debug, Parser)]
    #[command(name = "relay")]
    struct Cli {
        #[command(flatten)]
        global: GlobalArgs,
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Command {
        Serve,
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        let cli: Cli = parse_from(["relay", "serve", "--data-dir", "/d", "--json"]).unwrap();
        assert!(matches!(cli.command, Command::Serve));
        assert_eq!(cli.global.data_dir.as_deref(), Some("/d".as_ref()));
        assert!(cli.global.json);
        let cli: Cli = parse_from(["relay", "--proxy", "http://u:secret@p", "serve"]).unwrap();
        assert!(!format!("{cli:?}").contains("secret"));
    }

    #[test]
    fn usage_errors_exit_with_2_and_name_the_culprit() {
        let code = parse_from::<Cli>(["relay", "serv"]).unwrap_err();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(2)));
        let clap = Cli::try_parse_from(["relay", "serv"]).unwrap_err();
        let error = usage_error(&clap);
        assert!(error.message.contains("'serv'"), "{}", error.message);
        assert!(error.hint.unwrap().contains("serve"));
    }

    #[test]
    fn what_was_typed_is_repeated_without_effect() {
        for line in [
            &["relay", "ser\u{1b}[2J\u{202e}v"][..],
            &["relay", "--o\u{1b}[2J\nff", "serve"],
            &["relay", "serve", "--log-format", "j\u{1b}[2J\u{202e}son"],
        ] {
            let text = harmless(Cli::try_parse_from(line).unwrap_err()).to_string();
            assert!(text.contains("\\u{1b}[2J"), "{text}");
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        }
    }

    #[derive(Debug, Parser)]
    #[command(name = "mediator")]
    struct Configured {
        #[command(subcommand)]
        _command: ConfiguredCommand,
    }

    #[derive(Debug, clap::Subcommand)]
    enum ConfiguredCommand {
        #[command(subcommand)]
        Config(crate::config::ConfigCommand),
    }

    #[test]
    fn shared_commands_have_examples_with_the_programs_name() {
        let command = command::<Configured>();
        command.clone().debug_assert();
        for name in ["check", "show"] {
            let config = command.find_subcommand("config").unwrap();
            let help = config.find_subcommand(name).unwrap().get_after_help().unwrap().to_string();
            assert!(help.contains(&format!("mediator config {name}")), "{help}");
        }
    }

    #[test]
    fn version_names_commit_and_protocols() {
        assert!(version_string("relay").starts_with("relay 0."));
        assert!(VERSION.contains("commit ") && VERSION.contains(PROTOCOLS));
    }
}
