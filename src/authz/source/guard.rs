//! What may reach the parser at all.
//!
//! regorus's parser tries every `[` and `{` as a comprehension first and starts over when it is
//! none, so a literal nested in the first place of a literal costs three times as much with every
//! level: fourteen levels take seconds, eighteen minutes. Whoever can save a policy file could hang
//! `check` and reload, so the cost is counted on the tokens before the parser sees them.

use std::num::NonZeroU32;

use regorus::unstable::{Lexer, Source, TokenKind};

/// Longest file, bytes.
pub(in crate::authz) const MAX_FILE_BYTES: usize = 1024 * 1024;
/// Most lines of a file.
pub(in crate::authz) const MAX_LINES: usize = 20_000;
/// Longest line, columns.
pub(in crate::authz) const MAX_COLUMNS: usize = 16_384;
/// Deepest nesting of `[`, `{` and `(` together.
pub(in crate::authz) const MAX_NESTING: usize = 16;
/// Deepest chain of literals that each stand first in the one around them.
pub(in crate::authz) const MAX_LITERAL_NESTING: usize = 8;
/// Most tokens the parser may look at, counting repetitions.
pub(in crate::authz) const MAX_PARSE_COST: u64 = 5_000_000;

/// What keeps a file from the parser, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::authz) struct Finding {
    pub(in crate::authz) line: Option<usize>,
    pub(in crate::authz) column: Option<usize>,
    pub(in crate::authz) message: String,
    pub(in crate::authz) help: String,
}

struct Open {
    weight: u64,
    literals: usize,
    close: &'static str,
}

/// Checks size, line length and nesting of one module.
pub(in crate::authz) fn examine(text: &str) -> Result<(), Finding> {
    let finding = |line, column, message: String, help: &str| Finding {
        line,
        column,
        message,
        help: help.to_owned(),
    };
    if text.len() > MAX_FILE_BYTES {
        return Err(finding(
            None,
            None,
            format!("the file is larger than {MAX_FILE_BYTES} bytes"),
            "move tables into data files, split the policy into modules",
        ));
    }
    for (index, line) in text.lines().enumerate() {
        if index >= MAX_LINES {
            return Err(finding(
                Some(index + 1),
                Some(1),
                format!("the file has more than {MAX_LINES} lines"),
                "split the policy into modules",
            ));
        }
        if line.chars().count() > MAX_COLUMNS {
            return Err(finding(
                Some(index + 1),
                Some(MAX_COLUMNS + 1),
                format!("the line is longer than {MAX_COLUMNS} columns"),
                "break the line, or move the table into a data file",
            ));
        }
    }
    nesting(text)
}

fn nesting(text: &str) -> Result<(), Finding> {
    // A text that cannot be cut into tokens is the parser's to explain, with the position.
    let Ok(source) = Source::from_contents(String::new(), text.to_owned()) else {
        return Ok(());
    };
    let mut lexer = Lexer::new(&source);
    lexer.set_max_col(NonZeroU32::MAX);
    let mut open: Vec<Open> = Vec::new();
    let mut cost: u64 = 0;
    while let Ok(token) = lexer.next_token() {
        let place = (
            usize::try_from(token.1.line).ok(),
            usize::try_from(token.1.col).ok(),
        );
        let (weight, literals) = open.last().map_or((1, 0), |o| (o.weight, o.literals));
        cost = cost.saturating_add(weight);
        if cost > MAX_PARSE_COST {
            return Err(Finding {
                line: place.0,
                column: place.1,
                message: "the file takes too long to parse: literals are nested inside literals".to_owned(),
                help: "give inner arrays and objects a name of their own, or move them into a data file"
                    .to_owned(),
            });
        }
        match token.0 {
            TokenKind::Eof => break,
            TokenKind::Symbol => {}
            TokenKind::String | TokenKind::RawString | TokenKind::Number | TokenKind::Ident => {
                continue;
            }
        }
        match token.1.text() {
            bracket @ ("[" | "{" | "(") => {
                let literal = bracket != "(";
                open.push(Open {
                    weight: if literal {
                        weight.saturating_mul(3)
                    } else {
                        weight
                    },
                    literals: literals + usize::from(literal),
                    close: match bracket {
                        "[" => "]",
                        "{" => "}",
                        _ => ")",
                    },
                });
                let deep = open.len() > MAX_NESTING;
                if deep || literals + usize::from(literal) > MAX_LITERAL_NESTING {
                    return Err(Finding {
                        line: place.0,
                        column: place.1,
                        message: format!(
                            "brackets are nested deeper than {} levels",
                            if deep { MAX_NESTING } else { MAX_LITERAL_NESTING }
                        ),
                        help: "give the inner expression a name of its own, or move it into a data file"
                            .to_owned(),
                    });
                }
            }
            // An unbalanced file is refused by the parser; here it must only not confuse us.
            close @ ("]" | "}" | ")") if open.last().is_some_and(|o| o.close == close) => {
                open.pop();
            }
            "," => {
                // Only what stands first is tried twice; the rest of a literal is read once.
                let outer = open
                    .len()
                    .checked_sub(2)
                    .and_then(|index| open.get(index))
                    .map_or(1, |o| o.weight);
                if let Some(last) = open.last_mut() {
                    last.weight = outer;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_that_would_hang_the_parser_are_refused_before_it() {
        for (open, close) in [("[", "]"), ("{", "}"), ("{1: ", "}")] {
            let deep = format!("package p\nx := {}1{}", open.repeat(18), close.repeat(18));
            let finding = examine(&deep).unwrap_err();
            assert_eq!(finding.line, Some(2), "{finding:?}");
        }
        let wide = format!("package p\nx := [\n{}\n]", "[[[[[[1]]]]]],\n".repeat(9_000));
        assert!(
            examine(&wide)
                .unwrap_err()
                .message
                .contains("too long to parse")
        );
    }

    #[test]
    fn brackets_in_strings_and_comments_do_not_count() {
        let text = format!(
            "package p\n# {0}\nx := \"{0}\"\ny := `{0}`\n",
            "[".repeat(300)
        );
        assert_eq!(examine(&text), Ok(()));
    }

    #[test]
    fn size_lines_and_columns_are_bounded() {
        assert!(examine(&"#\n".repeat(MAX_LINES)).is_ok());
        assert!(examine(&"#\n".repeat(MAX_LINES + 1)).is_err());
        assert!(examine(&format!("#{}", "x".repeat(MAX_COLUMNS - 1))).is_ok());
        assert!(examine(&format!("#{}", "x".repeat(MAX_COLUMNS))).is_err());
        assert!(examine(&"# comment\n".repeat(MAX_FILE_BYTES / 10 + 1)).is_err());
    }

    #[test]
    fn an_ordinary_policy_passes() {
        let text = "package p\nallow if {\n  every r in input.x {\n    some s in {\"a\", \"b\"}\n    s in [r.a[0], {\"k\": [1]}]\n  }\n}\n";
        assert_eq!(examine(text), Ok(()));
    }
}
