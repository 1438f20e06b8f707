//! Syslog over TLS: RFC 5424 messages, counted octets (RFC 5425 §4.3), one connection a batch.
//!
//! Syslog has no acknowledgement. What tells that a receiver has read everything is the end of
//! the connection: we close our side after the last message, and the receiver closes its own, with
//! TLS's close_notify, only when it has read up to there. A connection that ends otherwise
//! confirms nothing, unless the administrator says that this receiver never tells more: then the
//! end of TCP counts, if nothing shows that something was left unread.

use std::{fmt::Write as _, io::ErrorKind, time::Duration};

use adit_ledger::{Entry, export::cef};
use adit_net::proxy::Dialer;
use adit_runtime::time::format_ms;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::{Batch, ForwardError, Receiver, SYSLOG, tls};
use crate::{
    audit::settings::{Confirm, Payload, SyslogTarget},
    store::audit::EntryRow,
};

/// Facility "log audit" (13, RFC 5424 §6.2.1).
const FACILITY: u8 = 13;
/// Bytes of lines in one connection.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Messages in one connection.
const MAX_ENTRIES: usize = 5_000;
/// Bytes given to the connection at once.
const CHUNK: usize = 64 * 1024;
/// How long after a plain end a reset may come: of a receiver that ended with something unread,
/// or before all had arrived.
const SETTLE: Duration = Duration::from_secs(1);
/// Enterprise number for examples (RFC 5612): the names in the element are ours.
const ENTERPRISE: &str = "adit@32473";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Bytes that a receiver may say before it closes; none are expected.
const MAX_SAID: usize = 4096;

/// The receiver that is configured.
pub(crate) struct Syslog {
    target: SyslogTarget,
    dialer: Dialer,
    /// This installation, in each message: the first of its names.
    host: String,
}

impl Syslog {
    /// `host` is how this mediator is called.
    pub(crate) fn new(target: SyslogTarget, dialer: Dialer, host: &str) -> Self {
        Self { target, dialer, host: header(host, 255) }
    }
}

impl Receiver for Syslog {
    fn name(&self) -> &'static str {
        SYSLOG
    }
    fn max_bytes(&self) -> usize {
        MAX_BYTES
    }
    fn max_entries(&self) -> usize {
        MAX_ENTRIES
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<(), ForwardError> {
        let place = (self.target.host.as_str(), self.target.port);
        let mut stream = tls::connect(&self.dialer, place, self.target.ca.as_deref(), &[]).await?;
        let mut out = String::with_capacity(CHUNK + 8192);
        for row in &batch.entries {
            push_message(&mut out, self.target.payload, &self.host, batch, row);
            if out.len() >= CHUNK {
                stream.write_all(out.as_bytes()).await?;
                out.clear();
            }
        }
        stream.write_all(out.as_bytes()).await?;
        // close_notify, then the end of our side.
        stream.shutdown().await?;
        match (ended(&mut stream).await, self.target.confirm) {
            (Err(ForwardError::Unconfirmed), Confirm::Close) => {
                tokio::time::sleep(SETTLE).await;
                match stream.get_ref().0.take_error()? {
                    None => Ok(()),
                    Some(error) => Err(error.into()),
                }
            }
            (done, _) => done,
        }
    }
}

/// Waits until the receiver has ended its side.
async fn ended(stream: &mut TlsStream<TcpStream>) -> Result<(), ForwardError> {
    let mut said = 0;
    let mut buffer = [0; 512];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(count) if said + count <= MAX_SAID => said += count,
            Ok(_) => return Err(ForwardError::Refused("with too much".to_owned())),
            // An end without close_notify: so ends a receiver that was killed.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(ForwardError::Unconfirmed);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A message with its length before it.
fn push_message(out: &mut String, payload: Payload, host: &str, batch: &Batch, row: &EntryRow) {
    let entry = Entry::parse(row.line.as_bytes()).ok();
    let level = entry.as_ref().map(|entry| entry.event().level);
    let name = entry.as_ref().map_or("audit", |entry| entry.event().name.as_str());
    let text = match (payload, &entry) {
        (Payload::Cef, Some(entry)) => cef::line(entry, VERSION),
        // A line that cannot be read is sent as it is: the receiver is to see it.
        _ => row.line.clone(),
    };
    let mut message = String::with_capacity(text.len() + 256);
    let _ = write!(
        message,
        "<{}>1 {} {host} mediator - {} [{ENTERPRISE} tree=\"{}\" partner=\"{}\" seq=\"{}\"] {text}",
        u16::from(FACILITY) * 8 + u16::from(severity(level)),
        format_ms(row.time_ms),
        header(name, 32),
        parameter(&batch.tree),
        parameter(&batch.partner),
        row.seq,
    );
    let _ = write!(out, "{} {message}", message.len());
}

/// RFC 5424 §6.2.1.
fn severity(level: Option<adit_ledger::Level>) -> u8 {
    use adit_ledger::Level;
    match level {
        Some(Level::Critical) => 2,
        Some(Level::Significant) => 5,
        _ => 6,
    }
}

/// A header field: visible ASCII, bounded, never empty.
fn header(text: &str, limit: usize) -> String {
    let plain: String = text.chars().filter(char::is_ascii_graphic).take(limit).collect();
    if plain.is_empty() { "-".to_owned() } else { plain }
}

/// A parameter's value: `"`, `\` and `]` escaped (RFC 5424 §6.3.3), no control characters.
fn parameter(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().filter(|c| !c.is_control()) {
        if matches!(c, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use adit_ledger::{Event, Level};

    use super::*;

    #[test]
    fn messages_are_framed_by_bytes_and_hostile_text_stays_inside() {
        let event = Event::new("login.failed", Level::Significant)
            .actor("é\n<34>1 forged \u{202e}")
            .reason("x] y=\"z\" \\");
        let entry = Entry::seal(7, 1_700_000_000_123, event, [1; 16]);
        let row = EntryRow {
            seq: 7,
            time_ms: entry.time_ms(),
            leaf: entry.leaf(),
            line: entry.to_line(),
        };
        let batch = Batch {
            tree: "t".into(),
            partner: "p\"]\n[x".into(),
            entries: Vec::new(),
            next_seq: 8,
        };
        for payload in [Payload::Json, Payload::Cef] {
            let mut out = String::new();
            push_message(&mut out, payload, "host", &batch, &row);
            push_message(&mut out, payload, "host", &batch, &row);
            let (length, rest) = out.split_once(' ').unwrap();
            let length: usize = length.parse().unwrap();
            let (one, other) = rest.split_at(length);
            assert!(other.starts_with(&format!("{length} <109>1 2023-11-14T22:13:20.123Z host")));
            assert!(
                one.contains(r#" login.failed [adit@32473 tree="t" partner="p\"\][x" seq="7"] "#)
            );
            assert!(!one.chars().any(|c| c.is_control() || c == '\u{202e}'), "{one}");
        }
    }
}
