//! Which programs show what, on which system, and how they are called: data of the build.
//!
//! A server can name a *kind* of viewer and nothing more. Earlier rows are preferred. Arguments
//! are templates (see `template.rs`), never a shell's line.

use std::time::Duration;

/// What a viewer needs to run in, and what its end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// Opens a window of its own; the session ends with it.
    Window,
    /// Hands over to a program that runs on: its exit says nothing.
    HandsOver,
    /// Uses the terminal that the command was given in.
    Terminal,
    /// Uses this process's standard input where there is no terminal at all.
    Standard,
}

/// A viewer that ends so soon has shown nothing: its exit status is to be believed.
const SOON: Duration = Duration::from_secs(3);

/// Whether an exit status other than 0 means that a viewer failed, for a viewer that ran for
/// `after`. Some have statuses for an end that the user wanted.
pub fn is_failure(program: &str, status: i32, after: Duration) -> bool {
    let program = program.strip_suffix(".exe").unwrap_or(program);
    match program {
        // That of the remote command; 255 is ssh's own (ssh(1), exit status). Terminals that pass
        // it on have no other of their own.
        "ssh" | "gnome-terminal" | "konsole" | "xterm" | "x-terminal-emulator" | "conhost" => {
            status == 255
        }
        // The peer's reason for the end of a connection: disconnected, logged off, disconnected
        // by the user, logged off by the user. From 128 on they are the program's own failures.
        "xfreerdp3" | "xfreerdp" | "wlfreerdp" => {
            after < SOON || !matches!(status, 1 | 2 | 11 | 12)
        }
        _ => true,
    }
}

/// Whether a program opens a window, and so needs a display where those are not always there.
pub fn needs_display(os: &str, program: &str) -> bool {
    let windowed = |entry: &Entry| {
        entry.os == "unix"
            && entry.command.first() == Some(&program)
            && matches!(entry.shell, Shell::Window | Shell::HandsOver)
    };
    !matches!(os, "macos" | "windows") && TABLE.iter().any(windowed)
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// `std::env::consts::OS`; `unix` stands for Linux and other free systems.
    pub os: &'static str,
    /// Kind of viewer.
    pub kind: &'static str,
    /// Program and arguments.
    pub command: &'static [&'static str],
    /// How it runs.
    pub shell: Shell,
}

/// The kinds of viewers that a console can be configured for.
pub const KINDS: [&str; 4] = ["rdp", "vnc", "ssh", "browser"];

/// Packages that bring a viewer, for the message when there is none.
pub fn packages(kind: &str) -> &'static str {
    match kind {
        "rdp" => "freerdp3-x11, freerdp2-x11 or remmina",
        "vnc" => "tigervnc-viewer, gvncviewer or remmina",
        "ssh" => "openssh-client, and a terminal such as xterm",
        "browser" => "xdg-utils and a web browser",
        _ => "none is known",
    }
}

// Arguments of `ssh`, one word each, so that one without its value is left out whole. The alias
// keeps host keys apart by computer: all of them have the same address here.
const P: &str = "-p{port}";
const ALIAS: &str = "-oHostKeyAlias={alias}";
const USER: &str = "-oUser={user}";
const HOST: &str = "{host}";

macro_rules! rows {
    ($($os:literal $kind:literal $shell:ident [$($word:expr),+ $(,)?];)+) => {
        &[$(Entry { os: $os, kind: $kind, command: &[$($word),+], shell: Shell::$shell }),+]
    };
}

/// All rows.
pub const TABLE: &[Entry] = rows! {
    // FreeRDP 3 and 2 take the same options. `{cert}` is `ignore` where the computer itself is
    // the target, since the session already proves whom we talk to; otherwise `tofu`.
    "unix" "rdp" Window ["xfreerdp3", "/v:{host}:{port}", "/u:{user}", "/cert:{cert}",
        "/t:{title}", "/dynamic-resolution", "+clipboard"];
    "unix" "rdp" Window ["xfreerdp", "/v:{host}:{port}", "/u:{user}", "/cert:{cert}",
        "/t:{title}", "/dynamic-resolution", "+clipboard"];
    "unix" "rdp" Window ["wlfreerdp", "/v:{host}:{port}", "/u:{user}", "/cert:{cert}",
        "/t:{title}", "/dynamic-resolution", "+clipboard"];
    "unix" "rdp" HandsOver ["remmina", "-c", "rdp://{user@}{host}:{port}"];
    "unix" "vnc" Window ["vncviewer", "{host}::{port}"];
    "unix" "vnc" Window ["xtigervncviewer", "{host}::{port}"];
    "unix" "vnc" HandsOver ["remmina", "-c", "vnc://{user@}{host}:{port}"];
    // Takes a display number, counted from port 5900.
    "unix" "vnc" Window ["gvncviewer", "{host}:{display}"];
    "unix" "ssh" Terminal ["ssh", P, ALIAS, USER, HOST];
    "unix" "ssh" Window ["x-terminal-emulator", "-e", "ssh", P, ALIAS, USER, HOST];
    "unix" "ssh" Window ["gnome-terminal", "--wait", "--", "ssh", P, ALIAS, USER, HOST];
    "unix" "ssh" Window ["konsole", "--nofork", "-e", "ssh", P, ALIAS, USER, HOST];
    "unix" "ssh" Window ["xterm", "-e", "ssh", P, ALIAS, USER, HOST];
    "unix" "ssh" Standard ["ssh", P, ALIAS, USER, HOST];
    "unix" "browser" HandsOver ["xdg-open", "{url}"];
    "unix" "browser" HandsOver ["sensible-browser", "{url}"];
    "unix" "browser" HandsOver ["x-www-browser", "{url}"];
    "unix" "browser" HandsOver ["firefox", "{url}"];
    "unix" "browser" HandsOver ["chromium", "{url}"];

    "macos" "rdp" HandsOver ["open", "rdp://full%20address=s:{host}:{port}"];
    "macos" "rdp" Window ["xfreerdp", "/v:{host}:{port}", "/u:{user}", "/cert:{cert}",
        "/t:{title}", "/dynamic-resolution", "+clipboard"];
    "macos" "vnc" HandsOver ["open", "vnc://{user@}{host}:{port}"];
    "macos" "ssh" Terminal ["ssh", P, ALIAS, USER, HOST];
    "macos" "ssh" HandsOver ["open", "ssh://{user@}{host}:{port}"];
    "macos" "browser" HandsOver ["open", "{url}"];

    "windows" "rdp" Window ["mstsc.exe", "/v:{host}:{port}"];
    "windows" "vnc" Window ["vncviewer.exe", "{host}::{port}"];
    "windows" "vnc" Window ["tvnviewer.exe", "{host}::{port}"];
    "windows" "ssh" Terminal ["ssh.exe", P, ALIAS, USER, HOST];
    "windows" "ssh" Window ["conhost.exe", "ssh.exe", P, ALIAS, USER, HOST];
    "windows" "browser" HandsOver ["rundll32.exe", "url.dll,FileProtocolHandler", "{url}"];
};

/// The rows for a kind on a system, best first.
pub fn rows(os: &str, kind: &str) -> impl Iterator<Item = &'static Entry> {
    let os = if matches!(os, "macos" | "windows") { os.to_owned() } else { "unix".to_owned() };
    let kind = kind.to_owned();
    TABLE.iter().filter(move |entry| entry.os == os && entry.kind == kind)
}
