//! What the demonstration shows: one short block that a person enjoys reading, then hints.

use std::{io::IsTerminal as _, time::Duration};

use serde_json::Value;

use super::{
    installation::{CLIENT, COMPUTER, Installation, Session, text},
    sshd::Sshd,
};

/// A step, as it begins.
pub(crate) fn say(step: &str) {
    eprintln!("{} {step}", paint("•", "36"));
}

/// What was measured.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) first_byte: Duration,
    /// Milliseconds after the start when the direct carrier took over.
    pub(crate) direct: Option<u64>,
    pub(crate) ping: Duration,
    /// Bytes a second.
    pub(crate) down: f64,
    pub(crate) up: f64,
    pub(crate) ssh: Option<Duration>,
    pub(crate) session: Option<Summary>,
}

/// What the console's events said.
pub(crate) struct Summary {
    pub(crate) granted: Value,
    pub(crate) carriers: Vec<Value>,
}

impl Report {
    /// The block.
    pub(crate) fn print(&self, place: &Installation, audit: &[Value]) {
        let row = |name: &str, value: String| {
            println!("  {} {value}", paint(&format!("{name:<11}"), "2"))
        };
        println!("\n{}\n", paint("Adit works on this machine.", "1;32"));
        row("mediator", format!("{}  root key {}", place.url(), short(&place.fingerprint)));
        if let Some(Summary { granted, carriers }) = &self.session {
            let key = short(text(granted, "agent_key"));
            row("computer", format!("{CLIENT}/{COMPUTER}  key {key}, end to end"));
            let audit_ms = granted.get("audit_ms").map(ToString::to_string).unwrap_or_default();
            let session = text(granted, "session_id");
            row("session", format!("{session}  granted after its audit record ({audit_ms} ms)"));
            for carrier in latest(carriers) {
                row("carrier", describe(carrier));
            }
        }
        match self.direct {
            Some(ms) => {
                row("path", format!("direct {ms} ms after the start; the relay stays as standby"))
            }
            None => row("path", "relayed: no direct path came about on this machine".into()),
        }
        let first = ms(self.first_byte);
        row(
            "round trip",
            format!("{} on an open channel, {first} to a new channel's first byte", ms(self.ping)),
        );
        row(
            "moved",
            format!("{} down, {} up, every byte compared", rate(self.down), rate(self.up)),
        );
        if let Some(time) = self.ssh {
            row(
                "ssh",
                format!("logged in and ran a command through the redirector in {}", ms(time)),
            );
        }
        row(
            "audit",
            format!("{} events, verified with the root key; this session's:", audit.len()),
        );
        let session = self.session.as_ref().map_or("", |s| text(&s.granted, "session_id"));
        let events: Vec<_> = audit.iter().filter(|e| text(e, "session_id") == session).collect();
        // What repeats without a break is one line.
        for same in events.chunk_by(|a, b| text(a, "event") == text(b, "event")) {
            let [first, rest @ ..] = same else { continue };
            let more = match rest.len() {
                0 => String::new(),
                n => format!("  (and {n} more)"),
            };
            println!("    {}{more}", audit_line(first));
        }
        println!();
    }

    /// What to try while it stays up.
    pub(crate) fn hints(
        &self,
        place: &Installation,
        session: &Session,
        web: u16,
        ssh: Option<&Sshd>,
    ) {
        let at = |program: &str, args: &[&str]| {
            let command = place.program(program, args);
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            words.map(|w| quote(&w.to_string_lossy())).collect::<Vec<_>>().join(" ")
        };
        let hint = |what: &str, command: String| println!("  {}\n    {command}", paint(what, "2"));
        println!("{}\n", paint("It stays up until Ctrl-C. Try, in another terminal:", "1"));
        if let Some(local) = session.local(web) {
            hint("a page that only the agent reaches", format!("curl http://{local}/"));
        }
        if let Some((ssh, local)) = ssh.and_then(|s| Some((s, session.local(s.port())?))) {
            let words: Vec<_> = ssh.arguments(local).iter().map(|w| quote(w)).collect();
            hint("a shell through the redirector", format!("ssh {}", words.join(" ")));
        }
        hint("computers", at("console-tunnel", &["computers"]));
        hint(
            "a session of your own",
            at(
                "console-tunnel",
                &["forward", COMPUTER, "-L", &format!("127.0.0.1:0:127.0.0.1:{web}")],
            ),
        );
        hint("what the agent sees", at("agent-tunnel", &["status"]));
        hint(
            "the audit log, then its proof",
            at("mediator", &["audit", "export", "--format", "jsonl"]),
        );
        println!("    {}", at("mediator", &["audit", "verify", "--key", &place.fingerprint]));
        println!(
            "\n  Data and logs are in {} (administrator {}, password in admin-password);\n  \
             all of it goes when this ends.\n",
            place.dir().display(),
            place.admin
        );
    }
}

/// The last word on each carrier that is there, the one in use first.
fn latest(carriers: &[Value]) -> Vec<&Value> {
    let mut found: Vec<&Value> = Vec::new();
    let same = |a: &Value, b: &Value| {
        ["kind", "local", "remote"].iter().all(|key| text(a, key) == text(b, key))
    };
    for carrier in carriers.iter().rev() {
        if !found.iter().any(|f| same(f, carrier)) {
            found.push(carrier);
        }
    }
    found.retain(|c| text(c, "state") != "lost");
    found.sort_by_key(|c| text(c, "state") != "active");
    found
}

fn describe(carrier: &Value) -> String {
    let part = |key: &str, before: &str| match text(carrier, key) {
        "" => String::new(),
        value => format!("{before}{value}"),
    };
    let rtt = carrier.get("rtt_ms").filter(|r| r.is_number());
    format!(
        "{:<8} {}{}{}{}{}",
        text(carrier, "kind"),
        text(carrier, "state"),
        part("cipher", ", "),
        part("local", ", "),
        part("remote", " → "),
        rtt.map(|r| format!(", round trip {r} ms")).unwrap_or_default()
    )
}

fn audit_line(event: &Value) -> String {
    let number = |key: &str| event.get(key).and_then(Value::as_u64);
    let bytes = match (number("bytes_up"), number("bytes_down")) {
        (Some(up), Some(down)) if up + down > 0 => format!("  {up} B up, {down} B down"),
        _ => String::new(),
    };
    let duration = number("duration_ms").filter(|d| *d > 0);
    format!(
        "#{:<4} {}  {:<20} {}{}{bytes}{}",
        number("seq").unwrap_or_default(),
        text(event, "time"),
        text(event, "event"),
        text(event, "actor"),
        match text(event, "target") {
            "" => String::new(),
            target => format!(" → {target}"),
        },
        duration.map(|d| format!("  {d} ms")).unwrap_or_default()
    )
}

/// The first digits of a fingerprint, enough to recognise it.
fn short(fingerprint: &str) -> String {
    match fingerprint.get(..19) {
        Some(start) => format!("{start}…"),
        None => fingerprint.to_owned(),
    }
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn rate(bytes_a_second: f64) -> String {
    format!("{:.0} MiB/s", bytes_a_second / f64::from(1 << 20))
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn paint(text: &str, code: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    if plain || !std::io::stdout().is_terminal() {
        text.to_owned()
    } else {
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_survive_a_shell() {
        assert_eq!(quote("/tmp/a-b/c"), "/tmp/a-b/c");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), "'it'\\''s'");
    }

    #[test]
    fn shows_the_last_state_of_each_carrier() {
        let carrier = |kind: &str, local: &str, state: &str| serde_json::json!({"kind": kind, "local": local, "state": state});
        let all = [
            carrier("relayed", "a", "active"),
            carrier("direct", "b", "active"),
            carrier("direct", "c", "standby"),
            carrier("direct", "d", "lost"),
            carrier("relayed", "a", "standby"),
        ];
        let shown: Vec<_> =
            latest(&all).iter().map(|c| (text(c, "local"), text(c, "state"))).collect();
        assert_eq!(shown, [("b", "active"), ("a", "standby"), ("c", "standby")]);
    }
}
