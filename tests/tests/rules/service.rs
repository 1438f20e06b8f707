//! The units for systemd: they are valid, and leave next to nothing open (CIS, ASVS 13.2.2).

use std::{fs, path::PathBuf, process::Command, time::Duration};

use adit_tests::{
    lab::folder,
    process::{run, run_within},
    site::Site,
};
use anyhow::{Context as _, Result, ensure};

/// Ten times the exposure that `systemd-analyze security` may find at most: "OK" ends at 50.
const EXPOSURE: &str = "--threshold=20";

#[test]
fn units_are_valid_and_leave_nothing_open() -> Result<()> {
    let site = Site::local("rules-units")?;
    for (unit, program) in
        [("adit-mediator", "mediator"), ("adit-relay", "relay"), ("adit-agent", "agent-tunnel")]
    {
        let text = fs::read_to_string(units().join(format!("{unit}.service")))?;
        // Where the program is on this machine.
        let ours = site.command(program, &[]).get_program().to_string_lossy().into_owned();
        let installed = format!("/usr/bin/{program} ");
        ensure!(text.contains(&installed), "{unit} starts another program");
        let file = site.artifacts().join(format!("{unit}.service"));
        fs::write(&file, text.replace(&installed, &format!("{ours} ")))?;
        for words in [
            &["verify", "--man=no", "--recursive-errors=no"][..],
            &["security", "--offline=true", EXPOSURE],
        ] {
            let mut analyze = Command::new("systemd-analyze");
            let done = run("systemd-analyze", analyze.args(words).arg(&file), "")?;
            ensure!(done.code == 0, "{unit}, {words:?}: {}{}", done.stdout, done.stderr);
            ensure!(!done.stderr.contains(&file.display().to_string()), "{}", done.stderr);
        }
        // Only port 443 takes a capability, and an agent listens on none.
        let port = if unit == "adit-agent" { "" } else { "CAP_NET_BIND_SERVICE" };
        for line in [
            &*format!("User={unit}"),
            &*format!("Group={unit}"),
            &*format!("CapabilityBoundingSet={port}"),
            &*format!("AmbientCapabilities={port}"),
            "NoNewPrivileges=yes",
            "StateDirectoryMode=0700",
            "UMask=0077",
            "ProtectSystem=strict",
            "MemoryDenyWriteExecute=yes",
            "RestrictNamespaces=yes",
            "RestrictSUIDSGID=yes",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service",
            "SystemCallFilter=~@privileged @resources",
            "LimitCORE=0",
        ] {
            ensure!(text.lines().any(|l| l == line), "{unit} lacks {line}");
        }
        // A second line would add to the first.
        for key in ["User=", "CapabilityBoundingSet=", "AmbientCapabilities="] {
            ensure!(text.matches(&format!("\n{key}")).count() == 1, "{unit} has {key} twice");
        }
        // The agent counts what it keeps; this holds should it ever count wrongly.
        ensure!(unit != "adit-agent" || text.contains("\nMemoryMax="), "{unit} has no end");
    }
    Ok(())
}

#[test]
fn units_hold_under_a_real_systemd() -> Result<()> {
    /// More than the script gives systemd.
    const TIME: Duration = Duration::from_secs(200);
    let site = Site::local("rules-systemd")?;
    let mediator = PathBuf::from(site.command("mediator", &[]).get_program());
    let mut script = Command::new(folder().join("e2e/systemd.sh"));
    script.arg(mediator.parent().context("no directory")?).arg(site.artifacts());
    let done = run_within(TIME, "systemd.sh", &script, "")?;
    ensure!(done.code == 0, "{}{}", done.stdout, done.stderr);
    Ok(())
}

fn units() -> PathBuf {
    folder().join("../deploy/systemd")
}
