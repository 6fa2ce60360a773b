//! Answers on the terminal: aligned, in colour on a terminal, plain when piped, or JSON.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::Style;

/// How to write an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For machines
    Json,
}

/// The configuration that a question is about.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgs {
    /// The configuration file
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "gateway.yaml",
        env = "PORTCULLIS_CONFIG"
    )]
    pub config: PathBuf,
}

/// How a piece of text is set off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    Plain,
    /// A heading.
    Strong,
    /// Beside the point.
    Faint,
    /// Yes.
    Good,
    /// No.
    Bad,
    /// Maybe.
    Warn,
}

/// Text for people that is being written.
#[derive(Debug)]
pub struct Page {
    text: String,
    colours: bool,
}

impl Page {
    /// A page for standard output.
    pub fn new() -> Self {
        Self {
            text: String::new(),
            colours: style(&io::stdout()) == Style::Colour,
        }
    }

    /// The text, set off if colours are taken. What came from a file cannot write to the terminal.
    pub fn tone(&self, tone: Tone, text: &str) -> String {
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect();
        let code = match tone {
            _ if !self.colours => return text,
            Tone::Plain => return text,
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Warn => "1;33",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A line of pieces.
    pub fn line(&mut self, pieces: &[(Tone, &str)]) {
        let line: String = pieces
            .iter()
            .map(|(tone, text)| self.tone(*tone, text))
            .collect();
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// A label and what it is about, aligned with the others.
    pub fn fact(&mut self, label: &str, tone: Tone, text: &str) {
        let label = format!("  {label:<14} ");
        self.line(&[(Tone::Faint, &label), (tone, text)]);
    }

    /// Rows in columns as wide as their widest cell; the last is as wide as it is.
    pub fn table(&mut self, rows: &[Vec<(Tone, String)>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = rows.iter().filter_map(|row| row.get(column));
                cells
                    .map(|(_, text)| text.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for row in rows {
            let mut line = String::new();
            for (column, (tone, text)) in row.iter().enumerate() {
                line.push_str(&self.tone(*tone, text));
                if column + 1 < row.len() {
                    let width = widths.get(column).copied().unwrap_or(0);
                    let blank = width.saturating_sub(text.chars().count()) + 2;
                    line.push_str(&" ".repeat(blank));
                }
            }
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }

    /// Text that is already written.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Writes it to standard output.
    pub fn show(self) {
        say(&self.text);
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes to standard output; a reader that went away is no error of ours.
pub fn say(text: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Tells something on standard error, beside the answer.
pub fn aside(note: Option<String>) {
    if let Some(note) = note {
        let _ = writeln!(io::stderr(), "note: {note}");
    }
}

/// Writes JSON to standard output.
pub fn say_json(value: &serde_json::Value) {
    say(&format!("{value:#}\n"));
}

/// Colour on terminals only, and not where the user asked for none (<https://no-color.org>).
pub fn style(stream: &impl IsTerminal) -> Style {
    let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match (stream.is_terminal(), plain) {
        (false, _) => Style::Plain,
        (true, true) => Style::Lines,
        (true, false) => Style::Colour,
    }
}

/// `1 route`, `2 routes`.
pub fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// How long work may take before anything is said of it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells on standard error, if that is a terminal, how far long work is.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    begun: Instant,
    told: Option<Instant>,
    on: bool,
}

impl Progress {
    /// Nothing is said before a second is over.
    pub fn of(what: &'static str) -> Self {
        Self {
            what,
            begun: Instant::now(),
            told: None,
            on: io::stderr().is_terminal(),
        }
    }

    /// So many of so many are done.
    pub fn at(&mut self, done: usize, all: usize) {
        let now = Instant::now();
        let due = match self.told {
            None => now.duration_since(self.begun) > PATIENCE,
            Some(told) => now.duration_since(told) > PATIENCE / 5,
        };
        if self.on && due {
            self.told = Some(now);
            let _ = write!(io::stderr(), "\r\x1b[K{}: {done} of {all}", self.what);
        }
    }

    /// Takes the line away.
    pub fn done(self) {
        if self.told.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
