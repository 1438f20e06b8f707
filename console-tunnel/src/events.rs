//! What `open` and `forward` tell while they run: JSON lines of the contract, or lines for people.
//!
//! Every event carries `since_start_ms` and is written when it happens, in order. Text that came
//! from elsewhere is escaped before a person sees it.

use std::{
    fmt::Write as _,
    io::IsTerminal,
    net::SocketAddr,
    time::{Duration, Instant},
};

use adit_protocol::{
    code::ChannelCode,
    ids::{ChannelId, ComputerId, SessionId},
    keys::Fingerprint,
    target::Target,
};
use adit_runtime::{
    cli::{CliError, escape_text},
    output::{Output, color_allowed},
    time::format_ms,
};
use serde_json::{Map, Value, json};

use crate::{
    session::Enrolment,
    writer::{Line, Writer},
};

/// The only cipher that carriers have.
const CIPHER: &str = "AES-256-GCM";

/// Something that happened.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "fields have the names of the contract's events")]
pub enum Event<'a> {
    /// The mediator granted the session.
    Granted {
        computer: &'a str,
        client: &'a str,
        computer_id: ComputerId,
        redirector: &'a str,
        expires_ms: u64,
        audit: Duration,
        agent_key: Fingerprint,
        first_contact: bool,
        enrolment: Option<Enrolment>,
    },
    /// A local address can be connected to.
    Listening { protocol: &'static str, local: SocketAddr, target: Option<&'a Target> },
    /// A carrier came, changed or went.
    Carrier {
        kind: &'a str,
        state: &'a str,
        rtt: Option<Duration>,
        local: Option<SocketAddr>,
        remote: Option<SocketAddr>,
        relay: Option<&'a str>,
    },
    /// The viewer was started, or exited, or could not be started.
    Viewer {
        command: &'a [String],
        pid: Option<u32>,
        state: &'static str,
        exit_status: Option<i32>,
    },
    /// A redirected connection came or went.
    Channel {
        id: ChannelId,
        target: Option<&'a Target>,
        state: &'a str,
        reason: Option<ChannelCode>,
        bytes_up: u64,
        bytes_down: u64,
        duration: Duration,
    },
    /// The session is over.
    Closed { reason: &'a str, bytes_up: u64, bytes_down: u64, duration: Duration },
}

impl Event<'_> {
    /// The object of the contract; `session` tells several sessions of one command apart.
    pub fn to_json(&self, since_start: Duration, session: SessionId) -> Value {
        let (name, fields) = match self {
            Self::Granted {
                computer,
                client,
                computer_id,
                redirector,
                expires_ms,
                audit,
                agent_key,
                first_contact,
                enrolment,
            } => {
                let mut fields = json!({
                    "computer": computer, "client": client,
                    "computer_id": computer_id.to_string(), "redirector": redirector,
                    "grant_expires": format_ms(*expires_ms), "audit_ms": ms(*audit),
                    "agent_key": agent_key.to_string(), "first_contact": first_contact,
                });
                if let (Some(proved), Value::Object(fields)) = (enrolment, &mut fields) {
                    let proved = json!({"seq": proved.seq, "time": format_ms(proved.time_ms)});
                    fields.insert("enrolment".to_owned(), proved);
                }
                ("granted", fields)
            }
            Self::Listening { protocol, local, target } => (
                "listening",
                json!({
                    "protocol": protocol, "local_addr": local.to_string(),
                    "target": target.map(ToString::to_string),
                }),
            ),
            Self::Carrier { kind, state, rtt, local, remote, relay } => (
                "carrier",
                json!({
                    "kind": kind, "state": state, "rtt_ms": rtt.map(ms),
                    "local": local.map(|a| a.to_string()),
                    "remote": remote.map(|a| a.to_string()), "relay": relay, "cipher": CIPHER,
                }),
            ),
            Self::Viewer { command, pid, state, exit_status } => (
                "viewer",
                json!({
                    "command": command, "pid": pid, "state": state, "exit_status": exit_status,
                }),
            ),
            Self::Channel { id, target, state, reason, bytes_up, bytes_down, duration } => (
                "channel",
                json!({
                    "id": id.0, "state": state, "reason": reason.map(ChannelCode::name),
                    "target": target.map(ToString::to_string), "bytes_up": bytes_up,
                    "bytes_down": bytes_down, "duration_ms": ms(*duration),
                }),
            ),
            Self::Closed { reason, bytes_up, bytes_down, duration } => (
                "closed",
                json!({
                    "reason": reason, "bytes_up": bytes_up, "bytes_down": bytes_down,
                    "duration_ms": ms(*duration),
                }),
            ),
        };
        let mut out = Map::new();
        out.insert("event".to_owned(), name.into());
        out.insert("since_start_ms".to_owned(), ms(since_start).into());
        out.insert("session_id".to_owned(), session.to_string().into());
        if let Value::Object(fields) = fields {
            out.extend(fields);
        }
        Value::Object(out)
    }

    /// A line for people: a mark, a word, the rest. `None` for what only machines want.
    fn to_line(&self) -> Option<Text> {
        let (color, mark, word, text) = match self {
            Self::Granted { computer, client, redirector, expires_ms, audit, .. } => (
                GREEN,
                '✓',
                "granted",
                format!(
                    "{redirector} on {computer} ({client}), audited in {}; renewed by itself, next \
                     before {}",
                    duration_text(*audit),
                    format_ms(*expires_ms)
                ),
            ),
            Self::Listening { protocol, local, target } => (
                BLUE,
                '→',
                "listening",
                match target {
                    Some(target) => format!("{local} to {target} ({protocol})"),
                    None => format!("{local} ({protocol})"),
                },
            ),
            // What is only in hand is for machines.
            Self::Carrier { state: "standby", .. } => return None,
            Self::Carrier { kind, state, rtt, remote, relay, .. } => {
                let mut text = format!("{kind} {state}");
                // Writing to a String cannot fail.
                match (relay, remote) {
                    (Some(relay), _) => _ = write!(text, " through relay {relay}"),
                    (None, Some(remote)) => _ = write!(text, " with {remote}"),
                    (None, None) => {}
                }
                if let Some(rtt) = rtt {
                    let _ = write!(text, ", round trip {}", duration_text(*rtt));
                }
                let color = if *state == "lost" { YELLOW } else { GREEN };
                (color, '●', "carrier", text)
            }
            Self::Viewer { command, pid: Some(pid), state: "started", .. } => {
                (BLUE, '▶', "viewer", format!("{} (process {pid})", command.join(" ")))
            }
            // Said in words where it ends.
            Self::Viewer { .. } => return None,
            Self::Channel { target, state: "refused", reason, .. } => {
                let reason = reason.map_or("refused", ChannelCode::name).replace('_', " ");
                let target = target.map(|target| format!("{target}: ")).unwrap_or_default();
                (YELLOW, '✗', "refused", format!("{target}{reason}"))
            }
            Self::Channel { .. } => return None,
            Self::Closed { reason, bytes_up, bytes_down, duration } => (
                BLUE,
                '■',
                "closed",
                format!(
                    "{}: {} up, {} down, {}",
                    reason.replace('_', " "),
                    size_text(*bytes_up),
                    size_text(*bytes_down),
                    duration_text(*duration)
                ),
            ),
        };
        Some(Text { color, mark, word, text: escape_text(&text) })
    }
}

const GREEN: &str = "\u{1b}[32m";
const YELLOW: &str = "\u{1b}[33m";
const BLUE: &str = "\u{1b}[34m";
const RESET: &str = "\u{1b}[0m";

struct Text {
    color: &'static str,
    mark: char,
    word: &'static str,
    text: String,
}

/// Sends events to where they belong.
#[derive(Debug)]
pub struct Reporter {
    output: Output,
    writer: Writer,
    started: Instant,
    quiet: bool,
    color_stderr: bool,
}

impl Reporter {
    /// `started` is when the command began.
    pub fn new(output: Output, started: Instant) -> Result<Self, CliError> {
        let color_stderr = color_allowed() && std::io::stderr().is_terminal();
        let writer = Writer::start(output)?;
        Ok(Self { output, writer, started, quiet: false, color_stderr })
    }

    /// Waits a moment until all is written.
    pub fn finish(&mut self) -> Result<(), CliError> {
        self.writer.finish()
    }

    /// No more lines for people while somebody else uses the terminal; JSON goes on.
    pub fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    /// Tells an event of just now.
    pub fn tell(&self, session: SessionId, event: &Event<'_>) -> Result<(), CliError> {
        self.tell_at(session, event, Instant::now())
    }

    /// Tells an event of some moment ago. Local addresses are the asked-for output, the rest is
    /// progress.
    pub fn tell_at(
        &self,
        session: SessionId,
        event: &Event<'_>,
        at: Instant,
    ) -> Result<(), CliError> {
        if self.output.json {
            let object = event.to_json(at.saturating_duration_since(self.started), session);
            return self.writer.line(Line::Json(object));
        }
        match event.to_line() {
            Some(line) if !self.quiet => self.writer.line(match event {
                Event::Listening { .. } => Line::Stdout(paint(&line, self.output.color())),
                _ => Line::Stderr(paint(&line, self.color_stderr)),
            }),
            _ => Ok(()),
        }
    }

    /// A remark for people, escaped; nothing in quiet times.
    pub fn remark(&self, text: &str) {
        if !self.quiet {
            // A failure is told with the next event.
            let _ = self.writer.line(Line::Stderr(format!("  {}", escape_text(text))));
        }
    }
}

fn paint(line: &Text, color: bool) -> String {
    let Text { color: on, mark, word, text } = line;
    if color {
        format!("{on}{mark} {word:<9}{RESET} {text}")
    } else {
        format!("{mark} {word:<9} {text}")
    }
}

/// Milliseconds with microseconds behind the point.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// `0.4 ms`, `12 ms`, `3.2 s`, `2 min 5 s`, `3 h 4 min`.
pub(crate) fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match duration.as_secs_f64() * 1e3 {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if seconds < 60 => format!("{:.1} s", ms / 1e3),
        _ if seconds < 3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `17 B`, `1.2 kB`, `34 MB`.
fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = bytes;
    let mut tenths = 0;
    let mut unit = UNITS[0];
    for next in UNITS.into_iter().skip(1) {
        if scaled < 1000 {
            break;
        }
        tenths = scaled / 100 % 10;
        scaled /= 1000;
        unit = next;
    }
    match unit {
        "B" => format!("{scaled} B"),
        _ if scaled < 10 => format!("{scaled}.{tenths} {unit}"),
        _ => format!("{scaled} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adit_protocol::target::Transport;

    fn target() -> Target {
        Target::parse("127.0.0.1:3389", Transport::Tcp).unwrap()
    }

    fn json_of(event: &Event<'_>) -> String {
        event.to_json(Duration::from_micros(1_250), SessionId([1; 16])).to_string()
    }

    #[test]
    fn events_have_the_shape_of_the_contract() {
        let id = "01010101-0101-0101-0101-010101010101";
        let hex = "02".repeat(32);
        let granted = Event::Granted {
            computer: "pc",
            client: "p/c",
            computer_id: ComputerId([1; 16]),
            redirector: "rdp",
            expires_ms: 0,
            audit: Duration::from_micros(500),
            agent_key: Fingerprint([2; 32]),
            first_contact: true,
            enrolment: None,
        };
        assert_eq!(
            json_of(&granted),
            format!(
                r#"{{"event":"granted","since_start_ms":1.25,"session_id":"{id}","computer":"pc","client":"p/c","computer_id":"{id}","redirector":"rdp","grant_expires":"1970-01-01T00:00:00.000Z","audit_ms":0.5,"agent_key":"sha256:{hex}","first_contact":true}}"#
            )
        );
        let local = "127.0.0.1:40123".parse().unwrap();
        let target = target();
        let listening = Event::Listening { protocol: "tcp", local, target: Some(&target) };
        assert_eq!(
            json_of(&listening),
            r#"{"event":"listening","since_start_ms":1.25,"session_id":"01010101-0101-0101-0101-010101010101","protocol":"tcp","local_addr":"127.0.0.1:40123","target":"127.0.0.1:3389"}"#
        );
        let carrier = Event::Carrier {
            kind: "direct",
            state: "active",
            rtt: Some(Duration::from_micros(300)),
            local: Some(local),
            remote: Some("[::1]:9".parse().unwrap()),
            relay: None,
        };
        assert_eq!(
            json_of(&carrier),
            r#"{"event":"carrier","since_start_ms":1.25,"session_id":"01010101-0101-0101-0101-010101010101","kind":"direct","state":"active","rtt_ms":0.3,"local":"127.0.0.1:40123","remote":"[::1]:9","relay":null,"cipher":"AES-256-GCM"}"#
        );
        let viewer = Event::Viewer {
            command: &["x".into(), "/v:1".into()],
            pid: Some(7),
            state: "exited",
            exit_status: Some(131),
        };
        assert_eq!(
            json_of(&viewer),
            r#"{"event":"viewer","since_start_ms":1.25,"session_id":"01010101-0101-0101-0101-010101010101","command":["x","/v:1"],"pid":7,"state":"exited","exit_status":131}"#
        );
        let channel = Event::Channel {
            id: ChannelId(3),
            target: Some(&target),
            state: "refused",
            reason: Some(ChannelCode::Policy),
            bytes_up: 1,
            bytes_down: 2,
            duration: Duration::from_millis(5),
        };
        assert_eq!(
            json_of(&channel),
            r#"{"event":"channel","since_start_ms":1.25,"session_id":"01010101-0101-0101-0101-010101010101","id":3,"state":"refused","reason":"policy_refused","target":"127.0.0.1:3389","bytes_up":1,"bytes_down":2,"duration_ms":5.0}"#
        );
        let closed = Event::Closed {
            reason: "viewer_exited",
            bytes_up: 1,
            bytes_down: 2,
            duration: Duration::from_secs(1),
        };
        assert_eq!(
            json_of(&closed),
            r#"{"event":"closed","since_start_ms":1.25,"session_id":"01010101-0101-0101-0101-010101010101","reason":"viewer_exited","bytes_up":1,"bytes_down":2,"duration_ms":1000.0}"#
        );
    }

    #[test]
    fn lines_for_people_cannot_be_forged_by_names() {
        let hostile = "pc\u{1b}[2J\n✓ granted";
        let target = target();
        let event = Event::Granted {
            computer: hostile,
            client: hostile,
            computer_id: ComputerId([1; 16]),
            redirector: hostile,
            expires_ms: 0,
            audit: Duration::ZERO,
            agent_key: Fingerprint([2; 32]),
            first_contact: false,
            enrolment: None,
        };
        let text = paint(&event.to_line().unwrap(), false);
        assert!(!text.contains(['\n', '\u{1b}']), "{text}");
        let channel = Event::Channel {
            id: ChannelId(3),
            target: Some(&target),
            state: "refused",
            reason: Some(ChannelCode::TargetRefused),
            bytes_up: 0,
            bytes_down: 0,
            duration: Duration::ZERO,
        };
        let line = paint(&channel.to_line().unwrap(), false);
        assert_eq!(line, "✗ refused   127.0.0.1:3389: target refused");
    }

    #[test]
    fn sizes_and_durations_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_250, "1.2 kB"),
            (34_000_000, "34 MB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(size_text(bytes), text);
        }
        for (ms, text) in [(0, "0.0 ms"), (12, "12 ms"), (3_200, "3.2 s"), (125_000, "2 min 5 s")] {
            assert_eq!(duration_text(Duration::from_millis(ms)), text);
        }
    }
}
