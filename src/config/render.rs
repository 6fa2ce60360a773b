//! Problems for people: the message, the line of the file, and a caret under the place.

use std::collections::HashMap;
use std::path::Path;

use crate::schema::{Problem, Severity};

/// How text for people is decorated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For pipes and files: no colour, no source lines, one problem per line and its help.
    Plain,
    /// For terminals without colour (`NO_COLOR`): source lines and carets.
    Lines,
    /// For terminals: colour too.
    Colour,
}

/// The longest part of a source line that is shown, in characters.
const WIDTH: usize = 100;

/// Writes problems for people.
pub fn render(problems: &[Problem], style: Style) -> String {
    if style == Style::Plain {
        return problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect();
    }
    let mut sources: HashMap<&Path, Option<String>> = HashMap::new();
    let mut text = String::new();
    for problem in problems {
        let source = sources
            .entry(&problem.file)
            .or_insert_with(|| source(&problem.file));
        write(problem, source.as_deref(), style, &mut text);
    }
    text
}

/// The text of a file whose problems are shown; the same bound as for loading it.
fn source(file: &Path) -> Option<String> {
    super::document_bytes(file)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
}

fn write(problem: &Problem, source: Option<&str>, style: Style, text: &mut String) {
    let paint = |code: &'static str| if style == Style::Colour { code } else { "" };
    let reset = paint("\x1b[0m");
    let (word, colour) = match problem.severity {
        Severity::Error => ("error", paint("\x1b[1;31m")),
        Severity::Warning => ("warning", paint("\x1b[1;33m")),
    };
    let mut place = problem.file.display().to_string();
    for number in [problem.line, problem.column].into_iter().flatten() {
        place.push_str(&format!(":{number}"));
    }
    let path = if problem.path.is_empty() {
        String::new()
    } else {
        format!("{}: ", problem.path)
    };
    let bold = paint("\x1b[1m");
    let message = printable(&problem.message);
    text.push_str(&format!(
        "{colour}{word}{reset}{bold}: {path}{message}{reset}\n"
    ));
    text.push_str(&format!("  --> {place}\n"));
    let line = problem
        .line
        .and_then(|line| source?.lines().nth(line.checked_sub(1)?));
    if let (Some(number), Some(line)) = (problem.line, line) {
        let column = problem.column.unwrap_or(1).saturating_sub(1);
        // A long line is shown from shortly before the place.
        let skipped = column.saturating_sub(WIDTH / 2);
        let shown: String = line.chars().skip(skipped).take(WIDTH).collect();
        let gutter = number.to_string();
        let blank = " ".repeat(gutter.len());
        let indent: String = shown
            .chars()
            .take(column - skipped)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        text.push_str(&format!(" {gutter} | {}\n", printable(shown.trim_end())));
        text.push_str(&format!(" {blank} | {indent}{colour}^{reset}\n"));
    }
    if let Some(help) = &problem.help {
        let green = paint("\x1b[32m");
        text.push_str(&format!("  {green}help{reset}: {}\n", printable(help)));
    }
    text.push('\n');
}

/// A file must not be able to write to the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gateway.yaml");
        std::fs::write(&file, "a: 1\nlisteners:\n  local: { adress: x }\n").unwrap();
        let problem = Problem {
            severity: Severity::Error,
            file,
            line: Some(3),
            column: Some(12),
            path: "listeners.local.adress".into(),
            message: "unknown key `adress`".into(),
            help: Some("did you mean `address`?".into()),
        };
        let text = render(std::slice::from_ref(&problem), Style::Lines);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "error: listeners.local.adress: unknown key `adress`"
        );
        assert_eq!(lines[2], " 3 |   local: { adress: x }");
        assert_eq!(lines[3].find('^'), lines[2].find("adress"));
        assert_eq!(lines[4], "  help: did you mean `address`?");
        assert!(render(&[problem], Style::Colour).contains("\x1b[1;31merror"));
    }

    #[test]
    fn a_file_cannot_write_to_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
