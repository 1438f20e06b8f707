//! The console as its user meets it: order and times of events, viewers that fail, what is told
//! to the mediator.

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is not there")]

use std::{fs, path::Path, process::Command};

use adit_tests::{
    process::{run, text},
    site::{SOON, Site, to_port},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A policy that allows TCP to the agent's own host, and no UDP.
const POLICY_TCP: &str =
    "[[allow]]\ntargets = [\"127.0.0.1\"]\nports = [\"1-65535\"]\nprotocols = [\"tcp\"]\n";

fn order(events: &[Value]) -> Vec<String> {
    let name = |e: &Value| match text(e, "event") {
        "granted" => text(e, "redirector").to_owned(),
        "listening" => format!("listening {}", text(e, "protocol")),
        _ => String::new(),
    };
    events.iter().map(name).filter(|name| !name.is_empty()).collect()
}

fn times_rise(events: &[Value]) -> Result<()> {
    let times: Option<Vec<f64>> = events.iter().map(|e| e["since_start_ms"].as_f64()).collect();
    let times = times.with_context(|| format!("an event without its time: {events:?}"))?;
    ensure!(times.is_sorted(), "events are not in the order of their times: {events:#?}");
    Ok(())
}

#[test]
fn several_kinds_of_forward_are_told_one_by_one_as_they_happen() -> Result<()> {
    let mut site = Site::local("kinds")?;
    site.start()?;
    let (tcp, udp) = (to_port(22), to_port(53));
    let options = ["-L", &tcp, "-U", &udp, "-D", "127.0.0.1:0"];
    let mut forward = site.forward(&options)?;
    forward.process.wait("the last listener", SOON, |e| text(e, "protocol") == "socks5")?;
    forward.process.wait("an active carrier", SOON, |e| text(e, "state") == "active")?;
    let events = forward.process.events();
    let told = ["tcp", "listening tcp", "udp", "listening udp", "socks", "listening socks5"];
    ensure!(order(&events) == told, "{events:#?}");
    times_rise(&events)?;
    let grants: Vec<f64> = events
        .iter()
        .filter(|e| text(e, "event") == "granted")
        .filter_map(|e| e["since_start_ms"].as_f64())
        .collect();
    // Each is a question to the mediator: they cannot have been granted at once.
    ensure!(grants.windows(2).all(|pair| pair[1] - pair[0] > 0.5), "{grants:?}");
    let closed = forward.close()?;
    ensure!(text(&closed, "reason") == "interrupted", "{closed}");
    Ok(())
}

#[test]
fn what_was_granted_ends_when_another_kind_is_refused() -> Result<()> {
    let mut site = Site::local("one-refused")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    site.start_agent("agent", POLICY_TCP)?;
    site.login("console")?;
    let (tcp, udp) = (to_port(22), to_port(53));
    let args = ["forward", "agent", "-L", &tcp, "-U", &udp, "--json"];
    let done = site.run("console", &args, "")?;
    ensure!(done.code == 3 && done.error_code() == "policy_refused", "{done:?}");
    let mut events = done.lines();
    events.pop();
    ensure!(order(&events) == ["tcp", "listening tcp"], "{events:#?}");
    times_rise(&events)?;
    let session = events.iter().find(|e| text(e, "event") == "granted").context("granted")?;
    let closed = events.iter().find(|e| text(e, "event") == "closed").context("closed")?;
    ensure!(closed["session_id"] == session["session_id"], "{events:#?}");
    let id = text(session, "session_id").to_owned();
    site.audited("the end of the first session", |e| {
        text(e, "event") == "session.ended" && text(e, "session_id") == id
    })?;
    Ok(())
}

fn viewer(site: &Site, script: &str) -> Result<()> {
    let path = site.artifacts().join("viewer");
    fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    run("chmod", Command::new("chmod").arg("755").arg(&path), "")?;
    configure(site, &path)
}

fn configure(site: &Site, viewer: &Path) -> Result<()> {
    let config = format!("[viewers.rdp]\ncommand = [\"{}\", \"{{port}}\"]\n", viewer.display());
    fs::write(site.data_dir("console").join("console-tunnel.toml"), config)?;
    Ok(())
}

#[test]
fn a_viewer_that_fails_ends_the_command_with_its_words() -> Result<()> {
    let mut site = Site::local("viewer-fails")?;
    site.start()?;
    viewer(&site, "echo cannot find the display >&2; exit 7")?;
    let done = site.run("console", &["open", "agent", "rdp", "--json"], "")?;
    ensure!(done.code == 1 && done.error_code() == "viewer_failed", "{done:?}");
    let message = done.json()["error"]["message"].to_string();
    ensure!(message.contains("cannot find the display"), "{message}");
    let told: Vec<Value> =
        done.lines().into_iter().filter(|e| text(e, "event") == "viewer").collect();
    ensure!(told.len() == 2 && text(&told[0], "state") == "started", "{told:?}");
    ensure!(text(&told[1], "state") == "exited" && told[1]["exit_status"] == 7, "{told:?}");
    ensure!(told[0]["pid"] == told[1]["pid"], "{told:?}");

    // There, but no program.
    let path = site.artifacts().join("viewer");
    fs::write(&path, "\u{0}\u{1}")?;
    let done = site.run("console", &["open", "agent", "rdp", "--json"], "")?;
    ensure!(done.code == 1 && done.error_code() == "viewer_failed", "{done:?}");
    let told = done.lines().into_iter().find(|e| text(e, "event") == "viewer").context("viewer")?;
    ensure!(text(&told, "state") == "failed" && told["pid"].is_null(), "{told}");
    ensure!(done.lines().iter().any(|e| text(e, "event") == "closed"), "{done:?}");
    Ok(())
}

#[test]
fn a_viewer_with_a_window_is_not_tried_without_a_display() -> Result<()> {
    let mut site = Site::local("no-display")?;
    site.start()?;
    let path = site.artifacts().join("xfreerdp");
    fs::write(&path, "#!/bin/sh\nexit 0\n")?;
    run("chmod", Command::new("chmod").arg("755").arg(&path), "")?;
    configure(&site, &path)?;
    let open = |display: &str| {
        let mut command = site.command("console", &["open", "agent", "rdp", "--json"]);
        command.env("DISPLAY", display).env_remove("WAYLAND_DISPLAY");
        run("open", &command, "")
    };
    let blind = open("")?;
    ensure!(blind.code == 4 && blind.error_code() == "no_display", "{blind:?}");
    ensure!(!blind.stdout.contains("granted"), "{blind:?}");
    let seeing = open(":9")?;
    ensure!(seeing.code == 0, "{seeing:?}");
    Ok(())
}

#[test]
fn what_the_console_refuses_by_itself_is_in_the_audit() -> Result<()> {
    let mut site = Site::local("own-refusals")?;
    site.start()?;
    let refused = |args: &[&str], exit: i32, code: &'static str| -> Result<Value> {
        let done = site.run("console", &[args, &["--json"]].concat(), "")?;
        ensure!(done.code == exit && done.error_code() == code, "{done:?}");
        site.audited(code, |e| {
            text(e, "event") == "session.refused" && text(e, "end_reason") == code
        })
    };
    let unknown = refused(&["open", "nowhere", "rdp"], 4, "no_such_computer")?;
    ensure!(text(&unknown, "computer") == "nowhere" && text(&unknown, "actor") == site.admin.0);
    let event = refused(&["open", "agent", "telepathy"], 4, "no_such_redirector")?;
    ensure!(text(&event, "computer") == "agent", "{event}");
    ensure!(text(&event, "redirector") == "telepathy", "{event}");
    let other_key = format!("sha256:{}", "07".repeat(32));
    site.ask("console", &["trust", "agent", &other_key, "--json"], "")?;
    let tcp = to_port(22);
    let event = refused(&["forward", "agent", "-L", &tcp], 3, "agent_key_changed")?;
    ensure!(text(&event, "redirector") == "tcp", "{event}");
    ensure!(text(&event, "target") == "127.0.0.1:22", "{event}");
    // Without the mediator it is refused all the same, and soon.
    site.kill("mediator")?;
    let done = site.run("console", &["open", "agent", "rdp", "--json"], "")?;
    ensure!(done.code == 5 && done.error_code() == "mediator_unreachable", "{done:?}");
    Ok(())
}

#[test]
fn lists_end_quietly_when_nobody_reads_them() -> Result<()> {
    let mut site = Site::local("broken-pipe")?;
    site.start_mediator()?;
    site.login("console")?;
    for args in [&["computers", "--help"][..], &["computers"], &["sessions"], &["whoami", "--json"]]
    {
        let program = site.command("console", args);
        let words = std::iter::once(program.get_program()).chain(program.get_args());
        let words: Vec<String> = words.map(|w| format!("'{}'", w.to_string_lossy())).collect();
        let mut shell = Command::new("bash");
        // `:` has closed the pipe before anything is written to it.
        let line = format!("set -o pipefail; (sleep 0.3; {}) | :", words.join(" "));
        shell.args(["-c", &line]);
        let done = run("bash", &shell, "")?;
        ensure!(done.code == 0 && !done.stderr.contains("panic"), "{args:?}: {done:?}");
    }
    Ok(())
}

#[test]
fn nonsense_proxies_and_damaged_files_are_named() -> Result<()> {
    let mut site = Site::local("console-files")?;
    site.start_mediator()?;
    site.login("console")?;
    for args in [&["computers"][..], &["config", "check"], &["logout"]] {
        let done =
            site.run("console", &[args, &["--proxy", "foo://bar", "--json"]].concat(), "")?;
        ensure!(done.code == 2 && done.error_code() == "proxy_invalid", "{args:?}: {done:?}");
    }
    let directory = site.data_dir("console");
    for (file, code) in [
        ("identity.key", "identity_damaged"),
        ("noise.key", "identity_damaged"),
        ("account.toml", "state_damaged"),
    ] {
        let path = directory.join(file);
        let good = fs::read(&path)?;
        fs::write(&path, "x")?;
        let done = site.run("console", &["whoami", "--json"], "")?;
        ensure!(done.code == 1 && done.error_code() == code, "{file}: {done:?}");
        ensure!(fs::read(&path)? == b"x", "{file} was written over");
        fs::write(&path, good)?;
    }
    site.ask("console", &["whoami", "--json"], "").map(drop)
}

const ROWS: usize = 12;

/// The picker in a pseudo-terminal: its screen as text, and keys.
struct Terminal {
    child: std::process::Child,
    keys: std::process::ChildStdin,
    output: std::sync::mpsc::Receiver<Vec<u8>>,
    screen: Screen,
}

/// As much of a terminal as is needed to read what is drawn: text and the cursor's place.
#[derive(Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    at: (usize, usize),
    rest: Vec<u8>,
}

impl Screen {
    fn text(&self) -> String {
        let line = |row: &Vec<char>| row.iter().collect::<String>().trim_end().to_owned();
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.to_owned(),
            Err(error) => String::from_utf8_lossy(&self.rest[..error.valid_up_to()]).into_owned(),
        };
        let mut left = whole.as_str();
        while let Some(first) = left.chars().next() {
            if first != '\u{1b}' {
                self.put(first);
                left = &left[first.len_utf8()..];
                continue;
            }
            let Some(body) = left.strip_prefix("\u{1b}[") else {
                if left.len() < 2 {
                    break;
                }
                left = &left[2..];
                continue;
            };
            let Some(end) = body.find(|c: char| c.is_ascii_alphabetic()) else { break };
            self.control(&body[..end], &body[end..=end]);
            left = &body[end + 1..];
        }
        let used = whole.len() - left.len();
        self.rest.drain(..used);
    }

    fn put(&mut self, letter: char) {
        match letter {
            '\r' => self.at.1 = 0,
            '\n' if self.at.0 + 1 < ROWS => self.at.0 += 1,
            '\n' => {
                self.rows.resize(ROWS, Vec::new());
                self.rows.remove(0);
            }
            _ => {
                let (row, column) = self.at;
                self.rows.resize(self.rows.len().max(row + 1), Vec::new());
                let line = &mut self.rows[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = letter;
                self.at.1 += 1;
            }
        }
    }

    fn control(&mut self, parameters: &str, what: &str) {
        match (parameters, what) {
            ("?1049h" | "?1049", _) | ("2", "J") => (self.rows, self.at) = (Vec::new(), (0, 0)),
            (_, "H") => {
                let mut numbers = parameters.split(';').map(|n| n.parse::<usize>().unwrap_or(1));
                let mut next = || numbers.next().unwrap_or(1).saturating_sub(1);
                self.at = (next(), next());
            }
            _ => {}
        }
    }
}

impl Terminal {
    fn start(site: &Site, columns: usize) -> Result<Self> {
        let program = site.command("console", &[]);
        let words = std::iter::once(program.get_program()).chain(program.get_args());
        let words: Vec<String> = words.map(|w| format!("'{}'", w.to_string_lossy())).collect();
        let line = format!(
            "stty rows {ROWS} cols {columns}; {}; echo \"left with $?\"; stty -a | grep -q ' icanon' \
             && echo terminal as before",
            words.join(" ")
        );
        let mut script = Command::new("script");
        script.args(["-qfec", &line, "/dev/null"]).env("TERM", "xterm").env("NO_COLOR", "1");
        script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = script.spawn()?;
        let keys = child.stdin.take().context("stdin")?;
        let mut out = child.stdout.take().context("stdout")?;
        let (sender, output) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = std::io::Read::read(&mut out, &mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, keys, output, screen: Screen::default() })
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        use std::io::Write as _;
        self.keys.write_all(keys.as_bytes())?;
        Ok(self.keys.flush()?)
    }

    /// Waits until the screen shows what is wanted.
    fn sees(&mut self, wanted: &[&str]) -> Result<()> {
        self.until(&format!("{wanted:?}"), |text| wanted.iter().all(|w| text.contains(w)))
    }

    fn until(&mut self, what: &str, seen: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = std::time::Instant::now() + SOON;
        while !seen(&self.screen.text()) {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let bytes = self.output.recv_timeout(left);
            let bytes =
                bytes.with_context(|| format!("{what} is not in\n{}", self.screen.text()))?;
            self.screen.feed(&bytes);
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_picker_finds_a_computer_and_opens_it() -> Result<()> {
    let mut site = Site::local("picker")?;
    site.start_mediator()?;
    site.start_relay("relay")?;
    site.login("console")?;
    let shown = site.artifacts().join("shown");
    viewer(&site, &format!("echo \"$1\" >> {}", shown.display()))?;

    let mut terminal = Terminal::start(&site, 90)?;
    terminal.sees(&["no computer that you may see"])?;
    // It comes online while we look.
    site.start_agent("agent", POLICY_TCP)?;
    terminal.sees(&["●", "agent", "online", "ssh"])?;
    terminal.press("zzz")?;
    terminal.sees(&["no computer matches", "0/1"])?;
    // Ctrl-U, part of the name, and Tab until it is rdp, which is shown first then.
    terminal.press("\u{15}age")?;
    terminal.sees(&["1/1"])?;
    let chosen = |text: &str| text.lines().nth(ROWS - 2).unwrap_or_default().trim().to_owned();
    for _ in 0..5 {
        let before = chosen(&terminal.screen.text());
        if before.starts_with("rdp") {
            break;
        }
        terminal.press("\t")?;
        terminal.until("another redirector", |text| chosen(text) != before)?;
    }
    // Enter: the terminal is the session's, and then the picker's again.
    terminal.press("\r")?;
    terminal.until("the viewer", |_| {
        fs::read_to_string(&shown).is_ok_and(|t| t.lines().count() == 1)
    })?;
    terminal.sees(&["> age", "1/1", "rdp"])?;
    // An error is told in place, and the computer is marked still.
    viewer(&site, "echo no luck >&2; exit 9")?;
    terminal.press("\r")?;
    terminal.sees(&["> age", "no luck", "viewer_failed"])?;
    terminal.press("\u{1b}")?;
    terminal
        .until("no message", |text| !text.contains("viewer_failed") && text.contains("> age"))?;
    // Esc: first the query, then the picker.
    terminal.press("\u{1b}")?;
    terminal.until("no query", |text| !text.contains("> age"))?;
    terminal.press("\u{1b}")?;
    terminal.sees(&["left with 0", "terminal as before"])
}

#[test]
fn the_picker_gives_the_terminal_back_when_it_is_killed() -> Result<()> {
    let mut site = Site::local("picker-signals")?;
    site.start_mediator()?;
    site.login("console")?;
    for (columns, signal, exit) in [(20, "TERM", "130"), (40, "HUP", "0")] {
        let mut terminal = Terminal::start(&site, columns)?;
        terminal.sees(&["no computer that you"])?;
        let directory = site.data_dir("console").display().to_string();
        let mut kill = Command::new("pkill");
        // The one process that works on a directory that is this test's alone.
        kill.args([
            &format!("-{signal}"),
            "-xf",
            &format!(".*console-tunnel --data-dir {directory}"),
        ]);
        ensure!(run("pkill", &kill, "")?.code == 0, "nothing to signal");
        terminal.sees(&[&format!("left with {exit}"), "terminal as before"])?;
    }
    // The window is closed: nothing stays behind.
    let mut terminal = Terminal::start(&site, 60)?;
    terminal.sees(&["no computer that you"])?;
    let directory = site.data_dir("console").display().to_string();
    let mut look = Command::new("pgrep");
    look.args(["-xf", &format!(".*console-tunnel --data-dir {directory}")]);
    let deadline = std::time::Instant::now() + SOON;
    let there = |wanted: bool| -> Result<()> {
        while (run("pgrep", &look, "")?.code == 0) != wanted {
            ensure!(std::time::Instant::now() < deadline, "picker is there: {}", !wanted);
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
        Ok(())
    };
    there(true)?;
    drop(terminal);
    there(false)?;
    // Without a mediator it says so and can be left.
    site.kill("mediator")?;
    let mut terminal = Terminal::start(&site, 60)?;
    terminal.sees(&["not up to date"])?;
    terminal.press("\u{3}")?;
    terminal.sees(&["left with 130", "terminal as before"])
}

#[test]
fn without_any_path_the_message_says_what_failed() -> Result<()> {
    let mut site = Site::local("no-path")?;
    site.start()?;
    let relay = site.relay_addr("relay")?.to_string();
    site.kill("relay")?;
    let tcp = to_port(22);
    let args = ["forward", "agent", "-L", &tcp, "--carrier", "relayed", "--json"];
    let mut command = site.command("console", &args);
    command.env("ADIT_CONSOLE_TUNNEL_SESSION_RESUME_WINDOW", "5s");
    let done = run("forward", &command, "")?;
    ensure!(done.code == 5 && done.error_code() == "no_path", "{done:?}");
    let message = done.json()["error"]["message"].to_string();
    // The mediator may know already that the relay is gone.
    let why = [&format!("{relay} cannot be reached"), "the mediator has no relay", "no relay is"];
    ensure!(why.iter().any(|why| message.contains(why)), "{message}");
    Ok(())
}
