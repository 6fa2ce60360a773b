//! Text for people: in colour on a terminal, plain when piped; and progress, on a terminal only.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::Error as PlainError;

use crate::config::{self, Style};
use crate::schema::{Problem, Span};

/// Work that takes longer than this says how far it is.
const SILENCE: Duration = Duration::from_secs(1);
/// How often it says so.
const INTERVAL: Duration = Duration::from_millis(200);

/// How a piece of text is set off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Warn,
    Faint,
    Strong,
}

/// Standard output and standard error, each with its own mind about colour.
#[derive(Debug)]
pub(super) struct Output {
    colours: bool,
    progress: bool,
    begun: Instant,
    told: Instant,
    shown: bool,
}

impl Output {
    pub(super) fn standard() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let now = Instant::now();
        Self {
            colours: io::stdout().is_terminal() && !refused,
            progress: io::stderr().is_terminal(),
            begun: now,
            told: now,
            shown: false,
        }
    }

    /// The text, set off if standard output takes colours.
    pub(super) fn tone(&self, tone: Tone, text: &str) -> String {
        if !self.colours {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Warn => "33",
            Tone::Faint => "2",
            Tone::Strong => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes to standard output; a reader that went away is no error of ours.
    pub(super) fn say(&mut self, text: &str) {
        self.quiet();
        let mut out = io::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Writes to standard error.
    pub(super) fn complain(&mut self, text: &str) {
        self.quiet();
        let mut err = io::stderr();
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }

    /// Writes problems to standard error.
    pub(super) fn problems(&mut self, problems: &[Problem]) {
        let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let style = match (io::stderr().is_terminal(), plain) {
            (false, _) => Style::Plain,
            (true, true) => Style::Lines,
            (true, false) => Style::Colour,
        };
        let text = config::render(problems, style);
        self.complain(&text);
    }

    /// Says how far the work is, when it takes long and somebody watches.
    pub(super) fn progress(&mut self, done: usize, all: usize, what: &str) {
        let now = Instant::now();
        if !self.progress || now - self.begun < SILENCE || now - self.told < INTERVAL {
            return;
        }
        self.told = now;
        self.shown = true;
        let what: String = what.chars().take(60).collect();
        let mut err = io::stderr();
        let _ = write!(err, "\r\x1b[K{done}/{all}  {what}").and_then(|()| err.flush());
    }

    /// Takes the line of progress away.
    fn quiet(&mut self) {
        if self.shown {
            let mut err = io::stderr();
            let _ = write!(err, "\r\x1b[K").and_then(|()| err.flush());
            self.shown = false;
        }
    }
}

/// `1 test`, `2 tests`.
pub(super) fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// A time with its unit.
pub(super) fn span(text: &str) -> Result<Span, String> {
    let text: serde::de::value::StrDeserializer<'_, PlainError> = text.into_deserializer();
    Span::deserialize(text).map_err(|error| error.to_string())
}
