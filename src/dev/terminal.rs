//! Text for people: aligned, in colour on a terminal, plain when piped.

use std::env;
use std::io::{self, IsTerminal as _, Write};

/// Standard output, and whether it takes colours.
#[derive(Debug)]
pub(super) struct Terminal<W> {
    out: W,
    colours: bool,
}

/// How a piece of text is set off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
}

impl Terminal<io::Stdout> {
    /// Standard output; colours only on a terminal, and not against the user's wish
    /// (<https://no-color.org>).
    pub(super) fn standard() -> Self {
        let out = io::stdout();
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colours = out.is_terminal() && !refused;
        Self { out, colours }
    }
}

impl<W: Write> Terminal<W> {
    /// Prints a line. Nobody reads on after a failure, so it is not reported.
    pub(super) fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}");
        let _ = self.out.flush();
    }

    /// The text, set off if colours are taken.
    pub(super) fn tone(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.colours => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Good => "32",
            Tone::Bad => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Prints cells in columns of these widths; the last column is as wide as it is.
    pub(super) fn row(&mut self, cells: &[(Tone, &str)], widths: &[usize]) {
        let mut line = String::new();
        for (index, (tone, text)) in cells.iter().enumerate() {
            line.push_str(&self.tone(*tone, text));
            if index + 1 < cells.len() {
                let width = widths.get(index).copied().unwrap_or_default();
                let gap = width.saturating_sub(text.chars().count()) + 2;
                line.extend(std::iter::repeat_n(' ', gap));
            }
        }
        self.line(&line);
    }
}

/// The text in one line of at most `width` characters, control characters left out.
pub(super) fn shorten(text: &str, width: usize) -> String {
    let mut characters = text.chars().filter(|c| !c.is_control());
    let mut short: String = characters.by_ref().take(width).collect();
    if characters.next().is_some() {
        short.pop();
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piped_output_is_plain_and_aligned() {
        let mut terminal = Terminal {
            out: Vec::new(),
            colours: false,
        };
        let widths = [8, 4];
        terminal.row(
            &[
                (Tone::Strong, "request"),
                (Tone::Strong, "got"),
                (Tone::Plain, "ok"),
            ],
            &widths,
        );
        terminal.row(
            &[(Tone::Plain, "read"), (Tone::Bad, "403"), (Tone::Bad, "NO")],
            &widths,
        );
        let text = String::from_utf8(terminal.out).unwrap();
        assert_eq!(text, "request   got   ok\nread      403   NO\n");
    }

    #[test]
    fn answers_are_shown_without_control_characters() {
        assert_eq!(shorten("a\x1b[31mb\nc", 80), "a[31mbc");
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("abcd", 4), "abcd");
    }
}
