//! What the end-to-end tests need from the machine: Debian packages, two Python tools, and two npm
//! packages for the browser.
//!
//! Installs only what is missing. On a system without apt it names the missing programs instead;
//! it never skips anything quietly.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// Debian package and a program or file that shows that it is there.
const PACKAGES: &[(&str, &str)] = &[
    ("iproute2", "ip"),
    ("nftables", "nft"),
    ("conntrack", "conntrack"),
    ("python3", "python3"),
    ("python3-venv", "/usr/lib/python3/dist-packages"),
    ("tini", "tini"),
    ("openssh-server", "sshd"),
    ("openssh-client", "ssh"),
    ("xrdp", "xrdp"),
    ("xorgxrdp", "/etc/X11/xrdp/xorg.conf"),
    ("freerdp2-x11", "xfreerdp"),
    ("tigervnc-standalone-server", "Xvnc"),
    ("tigervnc-tools", "vncpasswd"),
    ("tigervnc-viewer", "xtigervncviewer"),
    ("xvfb", "Xvfb"),
    ("imagemagick", "import"),
    ("x11-apps", "xwd"),
    ("x11-utils", "xdpyinfo"),
    ("x11-xserver-utils", "xsetroot"),
    ("xterm", "xterm"),
    ("openbox", "openbox"),
    ("xdotool", "xdotool"),
    ("netcat-openbsd", "nc"),
    ("xauth", "xauth"),
    ("xfonts-base", "/usr/share/fonts/X11/misc"),
    ("dbus-x11", "dbus-launch"),
    ("coturn", "turnutils_stunclient"),
    ("tcpdump", "tcpdump"),
    ("procps", "pgrep"),
    ("curl", "curl"),
    ("util-linux", "setpriv"),
    ("mount", "mount"),
    ("openssl", "openssl"),
    ("strace", "strace"),
    ("systemd", "systemd-analyze"),
    ("rsyslog", "rsyslogd"),
    ("rsyslog-openssl", "/usr/share/doc/rsyslog-openssl"),
    ("rsyslog-gnutls", "/usr/share/doc/rsyslog-gnutls"),
    ("chromium", "chromium"),
    ("nodejs", "node"),
    ("npm", "npm"),
];

/// Python packages of the virtual environment.
const PYTHON: &[&str] = &["vncdotool", "aioquic"];

/// Installs what is missing (root on Debian), or says what is.
pub(crate) fn install() -> Result<()> {
    if process::on_path("apt-get") {
        let missing = missing_packages()?;
        if !missing.is_empty() {
            println!("installing {}", missing.iter().copied().collect::<Vec<_>>().join(" "));
            apt(&["update", "-q"])?;
            let options = ["install", "-y", "-q", "--no-install-recommends"];
            apt(&options.into_iter().chain(missing).collect::<Vec<_>>())?;
        }
    }
    let lacking: Vec<_> = PACKAGES.iter().filter(|(_, what)| !is_there(what)).collect();
    if !lacking.is_empty() {
        let list: Vec<_> = lacking.iter().map(|(p, what)| format!("{what} ({p})")).collect();
        bail!("the end-to-end tests need: {}", list.join(", "));
    }
    python()?;
    node()
}

/// Packages of the browser tests, as their lock file says.
fn node() -> Result<()> {
    let directory = process::root().join("tests/browser");
    let lock = directory.join("package-lock.json");
    // npm leaves a copy of what it installed by.
    let installed = directory.join("node_modules/.package-lock.json");
    let age = |file: &Path| std::fs::metadata(file).and_then(|m| m.modified()).ok();
    if age(&installed).is_some_and(|at| age(&lock).is_some_and(|lock| at >= lock)) {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(directory);
    process::run(&mut npm)
}

/// The directory with the programs of the virtual environment.
pub(crate) fn venv_bin() -> PathBuf {
    process::target_dir().join("venv/bin")
}

fn missing_packages() -> Result<BTreeSet<&'static str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${db:Status-Status}\n"]);
    query.args(PACKAGES.iter().map(|(package, _)| package));
    // It fails when it does not know one of them; what it knows is on stdout all the same.
    let known = query.output().context("cannot start dpkg-query")?.stdout;
    let known = String::from_utf8_lossy(&known).into_owned();
    let installed: BTreeSet<_> =
        known.lines().filter_map(|l| l.strip_suffix(" installed")).collect();
    let missing = PACKAGES.iter().filter(|(p, what)| !installed.contains(p) && !is_there(what));
    Ok(missing.map(|(package, _)| *package).collect())
}

fn is_there(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { process::on_path(what) }
}

fn apt(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    process::run(command.env("DEBIAN_FRONTEND", "noninteractive").args(args))
}

/// Makes the virtual environment once.
fn python() -> Result<()> {
    let bin = venv_bin();
    if PYTHON.iter().all(|package| has_python_package(&bin, package)) {
        return Ok(());
    }
    let venv = process::target_dir().join("venv");
    process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    let mut pip = Command::new(bin.join("pip"));
    process::run(pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(PYTHON))
}

fn has_python_package(bin: &Path, package: &str) -> bool {
    let mut python = Command::new(bin.join("python3"));
    python.args(["-c", &format!("import {package}")]);
    python.output().is_ok_and(|out| out.status.success())
}
