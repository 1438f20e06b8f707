//! Logs to stderr: lines for people on a terminal, JSON lines otherwise. The level can change
//! while the program runs. Text from peers cannot forge lines or move the cursor: everything in
//! a human line is escaped. Audit is not logging; nothing here may be relied on as evidence.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::cli::{CliError, escape_text};
use crate::output::color_allowed;
use crate::time::now_rfc3339;

/// Level if nobody chooses one.
pub const DEFAULT_LEVEL: &str = "info";

/// What a directive may end in.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Libraries that log an error where nothing is wrong for us: the one that reads routes does for
/// every attribute that it does not know, whole packets at a time. Who names one hears it.
const QUIET: [&str; 1] = ["netlink_proto"];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text.
    Human,
    /// One JSON object.
    Json,
}

impl LogFormat {
    /// Human on a terminal, else JSON.
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Human } else { Self::Json }
    }
}

/// Changes the level of a running program.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogHandle {
    /// Logs at `level` from now on; a wrong level changes nothing.
    pub fn set_level(&self, level: &str) -> Result<(), CliError> {
        let filter = read_level(level)?;
        self.filter
            .reload(filter)
            .map_err(|error| CliError::failed("log_failed", format!("cannot set level: {error}")))
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("LogHandle")
    }
}

/// Starts logging for the whole process, once. `level` is a level or filter directives such as
/// `info,quinn=warn`; without `format` the kind of stderr decides.
pub fn init(level: &str, format: Option<LogFormat>) -> Result<LogHandle, CliError> {
    let format = format.unwrap_or_else(LogFormat::detect);
    let color = std::io::stderr().is_terminal() && color_allowed();
    let (subscriber, handle) = build(level, format, color, std::io::stderr)?;
    subscriber.try_init().map_err(|error| {
        CliError::failed("log_failed", format!("cannot start logging: {error}"))
    })?;
    Ok(handle)
}

fn build<W>(
    level: &str,
    format: LogFormat,
    color: bool,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync + 'static, LogHandle), CliError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(read_level(level)?);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let layer = match format {
        LogFormat::Human => layer.event_format(HumanLine { color }).boxed(),
        LogFormat::Json => layer.json().with_timer(Rfc3339).flatten_event(true).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    Ok((subscriber, LogHandle { filter: handle }))
}

/// Is it a level, or a list of levels and `target=level` directives?
pub fn check_level(level: &str) -> Result<(), CliError> {
    read_level(level).map(|_| ())
}

fn read_level(level: &str) -> Result<EnvFilter, CliError> {
    let invalid = |reason: &str| {
        CliError::usage("log_level_invalid", format!("\"{level}\" is no log level{reason}"))
            .hint("use error, warn, info, debug or trace, or directives like info,quinn=warn")
    };
    // The library takes a lone word for a target at its loudest level: a misspelt level would
    // silence everything else.
    if !level.split(',').all(names_level) {
        return Err(invalid(""));
    }
    let mut directives = level.to_owned();
    for library in QUIET.into_iter().filter(|library| !level.contains(library)) {
        directives.push_str(&format!(",{library}=off"));
    }
    EnvFilter::builder().parse(directives).map_err(|error| invalid(&format!(": {error}")))
}

fn names_level(directive: &str) -> bool {
    let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
    LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level.trim()))
}

/// Time in the contract's form.
struct Rfc3339;

impl FormatTime for Rfc3339 {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&now_rfc3339())
    }
}

/// `time LEVEL target: span{fields}: message fields`, escaped.
struct HumanLine {
    color: bool,
}

impl<S, N> FormatEvent<S, N> for HumanLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = format!("{}: ", event.metadata().target());
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            text.push_str(span.name());
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                text.push_str(&format!("{{{fields}}}"));
            }
            text.push_str(": ");
        }
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        let level = *event.metadata().level();
        let (on, off) = if self.color { (color_of(level), "\u{1b}[0m") } else { ("", "") };
        writeln!(writer, "{} {on}{level:>5}{off} {}", now_rfc3339(), escape_text(&text))
    }
}

fn color_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        Level::DEBUG => "\u{1b}[34m",
        Level::TRACE => "\u{1b}[35m",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, log: impl FnOnce(&LogHandle)) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let (subscriber, handle) = build("info", format, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || log(&handle));
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn peers_cannot_forge_human_lines() {
        let hostile = "x\n2026 ERROR forged\u{1b}[2J";
        let text = logged(LogFormat::Human, |_| {
            let _span = tracing::info_span!("session", peer = hostile).entered();
            tracing::info!(name = %hostile, "connected {hostile}");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(text.contains("INFO") && text.contains("session{peer="), "{text}");
    }

    #[test]
    fn json_lines_carry_fields() {
        let text = logged(LogFormat::Json, |_| tracing::info!(kind = "direct", "attached"));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["message"], &line["kind"]), (&"attached".into(), &"direct".into()));
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_and_not_taken_for_a_target() {
        for bad in ["nonsense", "", "info,", "inf", "info,quinn", "quinn=loud", "9", "info;warn"] {
            let error = check_level(bad).unwrap_err();
            assert_eq!((error.code, error.exit.code()), ("log_level_invalid", 2), "{bad}");
            assert!(error.hint.unwrap().contains("error, warn, info, debug or trace"), "{bad}");
        }
        for good in ["off", "WARN", "info,quinn=warn", "debug,[session{id=1}]=trace"] {
            check_level(good).unwrap();
        }
    }

    #[test]
    fn libraries_that_cry_wolf_are_heard_by_who_names_them_only() {
        let text = logged(LogFormat::Human, |handle| {
            let cry = |n: u32| tracing::error!(target: "netlink_proto::codecs", "wolf {n}");
            cry(1);
            handle.set_level("debug").unwrap();
            cry(2);
            handle.set_level("info,netlink_proto=warn").unwrap();
            cry(3);
        });
        assert!(text.lines().count() == 1 && text.contains("wolf 3"), "{text}");
    }

    #[test]
    fn level_changes_while_running_and_wrong_ones_are_refused() {
        let text = logged(LogFormat::Human, |handle| {
            tracing::debug!("early");
            assert_eq!(handle.set_level("lo=ud=er").unwrap_err().code, "log_level_invalid");
            handle.set_level("debug").unwrap();
            tracing::debug!("late");
        });
        assert!(!text.contains("early") && text.contains("late"), "{text}");
    }
}
