//! `service`: the agent as a service of the system, through whatever service manager runs it.
//! On systemd the unit is hardened (requirement R47) and the agent runs as a user of its own.

use std::{ffi::OsString, path::Path};

use adit_runtime::{
    cli::{CliError, escape_text},
    output::Output,
};
use clap::Subcommand;
use serde_json::json;
use service_manager::{
    RestartPolicy, ServiceInstallCtx, ServiceLabel, ServiceLevel, ServiceManager, ServiceStartCtx,
    ServiceStatus, ServiceStatusCtx, ServiceStopCtx, ServiceUninstallCtx,
};

/// Hardened unit; `{…}` are replaced.
const UNIT: &str = include_str!("service.unit");
/// What only the system's own manager can do: a user's has no capabilities to drop.
const SYSTEM_ONLY: &str = "\
CapabilityBoundingSet=
AmbientCapabilities=
PrivateDevices=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
";
/// Seconds before a crashed agent is started again.
const RESTART_DELAY_S: u32 = 5;

/// Run the agent as a service of the system
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Install the service: of the system as root, else of this user
    #[command(after_help = "Examples:\n  agent-tunnel service install --user adit-agent")]
    Install {
        /// User that the agent runs as, when installed by root
        #[arg(long, value_name = "NAME", default_value = "adit-agent")]
        user: String,
    },
    /// Remove the service; data and policy stay
    #[command(after_help = "Examples:\n  agent-tunnel service uninstall")]
    Uninstall,
    /// Start the service
    #[command(after_help = "Examples:\n  agent-tunnel service start")]
    Start,
    /// Stop the service
    #[command(after_help = "Examples:\n  agent-tunnel service stop")]
    Stop,
    /// Tell whether the service runs
    #[command(after_help = "Examples:\n  agent-tunnel service status --json")]
    Status,
}

/// Does it for the data directory `dir`.
pub fn run(command: &ServiceCommand, dir: &Path, output: Output) -> Result<(), CliError> {
    let label =
        ServiceLabel { qualifier: None, organization: None, application: "adit-agent".to_owned() };
    let root = is_root();
    let mut manager = <dyn ServiceManager>::native().map_err(|error| failed("find", &error))?;
    if !root {
        manager.set_level(ServiceLevel::User).map_err(|error| failed("use", &error))?;
    }
    let told = |done: &str| {
        output.emit(&json!({"service": "adit-agent", "state": done}))?;
        output.human(format_args!("Service adit-agent: {done}."))
    };
    match command {
        ServiceCommand::Install { user } => {
            let context = install_context(label, dir, root.then_some(user.as_str()))?;
            manager.install(context).map_err(|error| failed("install", &error))?;
            told("installed")
        }
        ServiceCommand::Uninstall => {
            let done = manager.uninstall(ServiceUninstallCtx { label });
            done.map_err(|error| failed("uninstall", &error))?;
            told("uninstalled")
        }
        ServiceCommand::Start => {
            manager.start(ServiceStartCtx { label }).map_err(|error| failed("start", &error))?;
            told("started")
        }
        ServiceCommand::Stop => {
            manager.stop(ServiceStopCtx { label }).map_err(|error| failed("stop", &error))?;
            told("stopped")
        }
        ServiceCommand::Status => {
            let status = manager.status(ServiceStatusCtx { label });
            match status.map_err(|error| failed("ask about", &error))? {
                ServiceStatus::Running => told("running"),
                ServiceStatus::Stopped(_) => told("stopped"),
                ServiceStatus::NotInstalled => {
                    let error = CliError::not_there("not_installed", "there is no such service");
                    Err(error.hint("run agent-tunnel service install"))
                }
            }
        }
    }
}

fn install_context(
    label: ServiceLabel,
    dir: &Path,
    user: Option<&str>,
) -> Result<ServiceInstallCtx, CliError> {
    let unusable = |reason: String| CliError::failed("service_failed", reason);
    let dir = std::path::absolute(dir)
        .map_err(|error| unusable(format!("{} is no path: {error}", dir.display())))?;
    let program = std::env::current_exe()
        .map_err(|error| unusable(format!("cannot find this program: {error}")))?;
    let args: Vec<OsString> =
        ["run".into(), "--data-dir".into(), dir.clone().into_os_string()].into();
    let contents = match on_systemd() {
        true => Some(unit(&program, &dir, user)?),
        false => None,
    };
    Ok(ServiceInstallCtx {
        label,
        program,
        args,
        contents,
        username: user.map(str::to_owned),
        working_directory: None,
        environment: None,
        autostart: true,
        restart_policy: RestartPolicy::OnFailure {
            delay_secs: Some(RESTART_DELAY_S),
            max_retries: None,
            reset_after_secs: None,
        },
    })
}

/// The unit file. Paths that would need quoting are refused rather than quoted wrongly.
fn unit(program: &Path, dir: &Path, user: Option<&str>) -> Result<String, CliError> {
    let plain = |text: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
        if !text.is_empty() && text.chars().all(fits) {
            return Ok(text.to_owned());
        }
        let message = format!("\"{}\" cannot stand in a unit file", escape_text(text));
        Err(CliError::usage("service_failed", message)
            .hint("use a path or user name of letters, digits, and /._-+@"))
    };
    let dir = plain(&dir.to_string_lossy())?;
    // systemd makes and hands over what is below /var/lib.
    let system = match user {
        Some(user) => {
            let user = plain(user)?;
            let place = match dir.strip_prefix("/var/lib/") {
                Some(below) => format!("StateDirectory={below}\nStateDirectoryMode=0700\n"),
                None => format!("ReadWritePaths={dir}\n"),
            };
            format!("User={user}\nGroup={user}\n{place}{SYSTEM_ONLY}")
        }
        None => String::new(),
    };
    let target = if user.is_some() { "multi-user.target" } else { "default.target" };
    Ok(UNIT
        .replace("{program}", &plain(&program.to_string_lossy())?)
        .replace("{dir}", &dir)
        .replace("{system}", &system)
        .replace("{target}", target))
}

fn on_systemd() -> bool {
    cfg!(target_os = "linux") && Path::new("/run/systemd/system").is_dir()
}

#[cfg(unix)]
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Services of Windows belong to the system; the manager says if the rights are missing.
#[cfg(not(unix))]
fn is_root() -> bool {
    true
}

fn failed(what: &str, error: &std::io::Error) -> CliError {
    let there = cfg!(not(target_os = "linux")) || on_systemd() || Path::new("/run/openrc").is_dir();
    told_failure(what, &error.to_string(), there, is_root())
}

/// `there`: a service manager runs on this computer.
fn told_failure(what: &str, error: &str, there: bool, root: bool) -> CliError {
    // What its program printed is several lines.
    let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
    let hint = match (there, root) {
        (false, _) => {
            "neither systemd nor OpenRC runs here: have whatever starts programs here start \
             agent-tunnel run --data-dir DIR"
        }
        (true, false) => "a service of the system needs root; see the service manager's log",
        (true, true) => "see the service manager's log",
    };
    CliError::failed("service_failed", format!("cannot {what} the service: {error}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_service_manager_runs_root_is_not_blamed() {
        let said = "Command failed with exit code 1: System has not been booted with systemd\nCan't \
                    operate.\n";
        for root in [true, false] {
            let error = told_failure("ask about", said, false, root);
            let hint = error.hint.unwrap();
            assert!(hint.contains("agent-tunnel run") && !hint.contains("root"), "{hint}");
            assert!(error.message.ends_with("systemd Can't operate."), "{}", error.message);
        }
        let hint = |root| told_failure("install", "denied", true, root).hint.unwrap();
        assert!(hint(false).contains("root") && !hint(true).contains("root"));
    }

    #[test]
    fn units_are_complete_and_nothing_can_be_smuggled_in() {
        let program = Path::new("/usr/bin/agent-tunnel");
        let text = unit(program, Path::new("/var/lib/adit/agent-tunnel"), Some("adit-agent"));
        let text = text.unwrap();
        assert!(!text.contains(['{', '}']), "{text}");
        // Packages install this one; both are the same unit.
        assert_eq!(text, include_str!("../../deploy/systemd/adit-agent.service"));
        assert!(text.contains("StateDirectory=adit/agent-tunnel\n"));
        assert!(text.contains("User=adit-agent\n") && text.contains("CapabilityBoundingSet=\n"));
        let own = unit(program, Path::new("/home/x/state"), None).unwrap();
        assert!(
            !own.contains("User=")
                && !own.contains("CapabilityBoundingSet")
                && own.contains("default.target")
        );
        for bad in ["/var/lib/x\nExecStartPre=/bin/sh", "/var/lib/a b", "/var/%h", "/a\"b"] {
            assert!(unit(program, Path::new(bad), None).is_err(), "{bad}");
        }
        assert!(unit(program, Path::new("/d"), Some("x\nUser=root")).is_err());
    }
}
