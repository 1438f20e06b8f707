//! Real clients and servers (ssh, VNC, RDP) through `console-tunnel forward`: the recipes of
//! `tests/e2e`, each of which prints PASS only if what was typed arrived; and RDP and VNC once more
//! by `console-tunnel open` with a stored password.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use adit_tests::{
    lab::folder,
    process::{run_within, text, told_by_processes},
    site::Site,
};
use anyhow::{Result, ensure};

/// A desktop has to start.
const TIME: Duration = Duration::from_secs(180);
/// Between two looks at all processes.
const LOOK: Duration = Duration::from_millis(20);

fn recipe(name: &str) -> Result<()> {
    let mut site = Site::local(&format!("client-{name}"))?;
    site.start()?;
    let forward = ["forward", "agent", "-L", "127.0.0.1:%L:127.0.0.1:%R"];
    follow(&site, name, ("FWD_CMD", &forward))
}

/// Follows a recipe, which is told how to come to a target by a console's command.
fn follow(site: &Site, name: &str, (variable, command): (&str, &[&str])) -> Result<()> {
    let command = site.command("console", command);
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    ensure!(words.iter().all(|w| !w.contains([' ', '\''])), "a path with spaces: {words:?}");
    let dir = site.artifacts().join("run");
    let mut script = Command::new("bash");
    script.arg(folder().join(format!("e2e/{name}.sh")));
    script.env(variable, words.join(" ")).env("E2E_DIR", &dir);
    let done = run_within(TIME, name, &script, "")?;
    std::fs::write(site.artifacts().join("recipe.log"), format!("{}{}", done.stdout, done.stderr))?;
    let passed = done.stdout.lines().any(|l| l == format!("PASS {name}"));
    ensure!(done.code == 0 && passed, "{}\n{}", done.stdout, done.stderr);
    Ok(())
}

#[test]
fn ssh_and_scp() -> Result<()> {
    recipe("ssh")
}

#[test]
fn vnc() -> Result<()> {
    recipe("vnc")
}

#[test]
fn rdp() -> Result<()> {
    recipe("rdp")
}

#[test]
fn rdp_with_a_stored_password() -> Result<()> {
    // The recipe's user has it.
    with_a_stored_password(
        ("rdp", "Rdp-pass-1", &["--user", "rdpuser"]),
        "[\"xfreerdp\", \"/v:{host}:{port}\", \"/u:{user}\", \"/cert:ignore\", \"/sec:tls\", \
         \"/size:1024x768\", \"/bpp:24\", \"/log-level:WARN\"]",
    )
}

#[test]
fn vnc_with_a_stored_password() -> Result<()> {
    let viewer = "[\"vncviewer\", \"-Shared\", \"{host}::{port}\"]";
    with_a_stored_password(("vnc", "e2e-pw", &[]), viewer)
}

/// A desktop that is opened with a password that nobody sees: neither who opens it nor whoever
/// lists this machine's processes meanwhile.
fn with_a_stored_password(
    (name, password, user): (&str, &str, &[&str]),
    viewer: &str,
) -> Result<()> {
    let mut site = Site::local(&format!("client-{name}-stored"))?;
    site.start()?;
    let client = site.client();
    let kind = ["--kind", "password", "--redirector", name, "--json"];
    let add = ["credential", "add", &client, "desk"];
    site.ask("mediator", &[&add[..], user, &kind].concat(), password)?;
    let viewer = format!("[viewers.{name}]\ncommand = {viewer}\n");
    std::fs::write(site.data_dir("console").join("console-tunnel.toml"), viewer)?;
    let over = AtomicBool::new(false);
    let (looks, told) = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let (mut looks, mut told) = (0, Vec::new());
            while !over.load(Ordering::Relaxed) {
                told.extend(told_by_processes(password));
                looks += 1;
                thread::park_timeout(LOOK);
            }
            (looks, told)
        });
        let open = ["open", "agent", name, "--credential", "desk", "--json"];
        let followed = follow(&site, name, ("OPEN_CMD", &open));
        over.store(true, Ordering::Relaxed);
        let seen = looking.join().map_err(|_| anyhow::anyhow!("the look at processes failed"));
        followed.and(seen)
    })?;
    ensure!(looks > 20 && told.is_empty(), "after {looks} looks the password is told by {told:?}");
    let used = site.audited("the use", |e| text(e, "event") == "credential.used")?;
    ensure!(!used.to_string().contains(password), "{used}");
    Ok(())
}
