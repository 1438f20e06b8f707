//! Viewers: which program shows a redirector, and starting it.
//!
//! Programs and argument templates come from the build or the console's own configuration,
//! never from a server; argument vectors, never a shell.

pub mod credential;
#[cfg(unix)]
pub mod handover;
mod launch;
pub mod table;
pub mod template;
#[cfg(unix)]
mod vncfile;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use adit_runtime::{
    cli::{CliError, escape_text},
    config::Config,
};

pub use launch::{Ended, Launched, Viewer, launch};
pub use table::Shell;
pub use template::{UserName, Values};

/// A viewer that is there: program and template.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Kind of viewer.
    pub kind: String,
    program: PathBuf,
    template: Vec<String>,
    /// How it runs.
    pub shell: Shell,
}

impl Choice {
    /// File name of the program, for the audit record.
    pub fn name(&self) -> String {
        let name = self.template.first().map(std::path::Path::new).and_then(|p| p.file_name());
        name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The argument vector, the program first.
    pub fn command(&self, values: &Values) -> Result<Vec<String>, CliError> {
        let mut command = template::expand(&self.template, values).map_err(|error| {
            CliError::usage("viewer_invalid", format!("viewer {}: {error}", self.name()))
        })?;
        if let Some(program) = command.first_mut() {
            *program = self.program.to_string_lossy().into_owned();
        }
        Ok(command)
    }
}

/// Path of the configuration key of a kind, if it is known.
fn key_of(kind: &str) -> Option<&'static str> {
    match kind {
        "rdp" => Some("viewers.rdp.command"),
        "vnc" => Some("viewers.vnc.command"),
        "ssh" => Some("viewers.ssh.command"),
        "browser" => Some("viewers.browser.command"),
        _ => None,
    }
}

/// Checks all configured viewers, so that a mistake shows before it is needed.
pub fn check_config(config: &Config) -> Result<(), CliError> {
    for path in table::KINDS.into_iter().filter_map(key_of) {
        let command = config.list(path)?;
        if !command.is_empty() {
            template::check(&command).map_err(|error| config.invalid(path, &error.to_string()))?;
        }
    }
    Ok(())
}

/// Finds the viewer for a kind: the configured one, else the first of the table that is there.
/// Exit code 4 if there is none.
pub fn choose(kind: &str, config: &Config, json: bool) -> Result<Choice, CliError> {
    let Some(path) = key_of(kind) else {
        let message = format!("this build knows no viewer \"{}\"", escape_text(kind));
        return Err(CliError::not_there("no_viewer", message)
            .hint("use --no-launch and connect a program of your choice to the local address"));
    };
    let template = config.list(path)?;
    if let Some(name) = template.first() {
        template::check(&template).map_err(|error| config.invalid(path, &error.to_string()))?;
        let program = which::which(name).map_err(|_| {
            let message = format!("the viewer configured in {path} is not installed: {name}");
            CliError::not_there("no_viewer", message).hint(format!(
                "install it, correct {path} in console-tunnel.toml, or use --no-launch"
            ))
        })?;
        let shell = Shell::Window;
        if !has_display() && needs_display(&program) {
            return Err(no_display(name));
        }
        return Ok(Choice { kind: kind.to_owned(), program, template, shell });
    }
    let terminal = !json && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut blind = None;
    for row in table::rows(std::env::consts::OS, kind) {
        if row.shell == Shell::Terminal && !terminal {
            continue;
        }
        // A terminal is of no use without the program that runs in it.
        let inner = row.command.iter().find(|word| matches!(**word, "ssh" | "ssh.exe"));
        if inner.is_some_and(|inner| which::which(inner).is_err()) {
            continue;
        }
        if let Some(Ok(program)) = row.command.first().map(which::which) {
            if !has_display() && needs_display(&program) {
                blind = blind.or(row.command.first());
                continue;
            }
            let template = row.command.iter().map(|word| (*word).to_owned()).collect();
            return Ok(Choice { kind: kind.to_owned(), program, template, shell: row.shell });
        }
    }
    if let Some(program) = blind {
        return Err(no_display(program));
    }
    let message = format!("no {kind} viewer is installed on this machine");
    Err(CliError::not_there("no_viewer", message).hint(format!(
        "install one (packages: {}), name your own in console-tunnel.toml ([viewers.{kind}] \
         command = [\"program\", \"{{host}}:{{port}}\"]), or use --no-launch",
        table::packages(kind)
    )))
}

/// Whether windows can be opened: an X server or a Wayland compositor is named.
fn has_display() -> bool {
    ["DISPLAY", "WAYLAND_DISPLAY"]
        .into_iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

fn needs_display(program: &Path) -> bool {
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    table::needs_display(std::env::consts::OS, name)
}

fn no_display(program: &str) -> CliError {
    let message =
        format!("{program} needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set");
    CliError::not_there("no_display", message).hint(
        "run it in a desktop session, log in with ssh -X, or use --no-launch and connect a \
         program of your choice to the local address",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::table::{is_failure, needs_display};

    #[test]
    fn ends_that_the_user_wanted_are_no_failures() {
        let (soon, late) = (Duration::from_secs(1), Duration::from_secs(60));
        for (program, status, after, failure) in [
            ("xfreerdp", 131, late, true),
            ("xfreerdp", 12, late, false),
            ("xfreerdp3", 1, late, false),
            ("xfreerdp", 1, soon, true),
            ("ssh", 1, soon, false),
            ("ssh.exe", 255, late, true),
            ("vncviewer", 1, late, true),
            ("own-viewer", 3, soon, true),
        ] {
            assert_eq!(is_failure(program, status, after), failure, "{program} {status}");
        }
    }

    #[test]
    fn programs_with_windows_need_a_display_where_there_may_be_none() {
        assert!(needs_display("linux", "xfreerdp") && needs_display("linux", "xdg-open"));
        assert!(!needs_display("linux", "ssh") && !needs_display("linux", "own-viewer"));
        assert!(!needs_display("macos", "xfreerdp"));
    }
}
