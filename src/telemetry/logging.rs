//! The program's own log: for operators, on standard error.

use std::io::{self, IsTerminal, Write};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use super::TelemetryConfig;
use crate::schema::Compile;

/// The log's level and shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a list by part: `info,portcullis::authn=debug`.
    pub level: String,
    /// `text` for people, `json` for programs; `auto` is text on a terminal and JSON otherwise.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Auto,
        }
    }
}

/// The shape of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people; coloured on a terminal.
    Text,
    /// One JSON object per line.
    Json,
    /// Text on a terminal, JSON otherwise.
    Auto,
}

impl LogConfig {
    pub(super) fn check(&self, cx: &mut Compile) {
        if let Err(error) = self.filter() {
            cx.at("level", |cx| {
                cx.problem_help(
                    format!("`{}` is not a log level: {error}", self.level),
                    "write `info`, or `info,portcullis::authn=debug`",
                );
            });
        }
    }

    fn filter(&self) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
        EnvFilter::builder().parse(&self.level)
    }
}

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoggingFailed {
    /// The level cannot be read.
    #[error("the log level cannot be read")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// It has begun already.
    #[error("logging has begun already")]
    Twice(#[from] TryInitError),
}

/// Begins logging to standard error; once per process, before anything else happens.
///
/// # Errors
/// [`LoggingFailed`].
pub fn init_logging(config: &TelemetryConfig) -> Result<(), LoggingFailed> {
    let filter = config.log.filter()?;
    let terminal = io::stderr().is_terminal();
    let text = match config.log.format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(OneLine {
        to: io::stderr,
        colours: text && terminal,
    });
    if text {
        registry.with(layer.with_ansi(terminal)).try_init()?;
    } else {
        registry.with(layer.json()).try_init()?;
    }
    Ok(())
}

/// Keeps every event on one line, and terminals still. The subscriber writes an event at once and
/// takes displayed values as they are: a name with a line break or an escape sequence in it could
/// forge an event or hide one (CVE-2024-45808 is such an injection).
#[derive(Debug, Clone, Copy)]
struct OneLine<M> {
    to: M,
    /// Whether colour sequences stay: the subscriber's own are among them.
    colours: bool,
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for OneLine<M> {
    type Writer = OneLineWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLineWriter {
            to: self.to.make_writer(),
            colours: self.colours,
        }
    }
}

#[derive(Debug)]
struct OneLineWriter<W> {
    to: W,
    colours: bool,
}

impl<W: Write> Write for OneLineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let body = event.strip_suffix(b"\n").unwrap_or(event);
        if body.iter().all(|b| (0x20..0x7f).contains(b)) {
            self.to.write_all(event)?;
        } else {
            let mut line = one_line(&String::from_utf8_lossy(body), self.colours);
            line.push('\n');
            self.to.write_all(line.as_bytes())?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The text with everything escaped that ends a line, moves a terminal or reorders what is shown,
/// in the way JSON escapes it, for the text may be JSON.
fn one_line(text: &str, colours: bool) -> String {
    let mut line = String::with_capacity(text.len() + 16);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let odd = c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match c {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\u{1b}' if colours && colour(rest.as_str()) => line.push(c),
            c if odd => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line
}

/// Whether the rest of an escape sequence sets a colour or a weight, and nothing else.
fn colour(rest: &str) -> bool {
    rest.strip_prefix('[').is_some_and(|rest| {
        rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';')
            .starts_with('m')
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_logged_value_cannot_forge_a_line_or_move_the_terminal() {
        let memory = Memory::default();
        let seen = Arc::clone(&memory.0);
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(OneLine {
                to: move || memory.clone(),
                colours: false,
            });
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let evil = "x\r\n2026-01-01 INFO forged\u{1b}[2J";
            tracing::info!(name = %evil, "first");
            tracing::info!(name = evil, "second");
        });
        let text = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert!(!text.contains('\r') && !text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn colours_stay_where_they_are_wanted_and_nothing_else_does() {
        let text = "\u{1b}[2;31mé\u{1b}[0m \u{1b}[2J\u{9b}\u{2028}\u{202e}";
        assert_eq!(
            one_line(text, true),
            "\u{1b}[2;31mé\u{1b}[0m \\u001b[2J\\u009b\\u2028\\u202e"
        );
        assert!(!one_line(text, false).contains('\u{1b}'));
    }

    #[test]
    fn levels_are_checked() {
        let level = |level: &str| LogConfig {
            level: level.to_owned(),
            ..LogConfig::default()
        };
        assert!(level("info,portcullis::authn=debug").filter().is_ok());
        assert!(level("=,=").filter().is_err());
    }
}
