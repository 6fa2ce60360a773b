//! Template strings, which the engine does not know, made into calls.

use std::ops::Range;

use super::edit::{Edit, Lines, Map, Piece, splice};

/// Deepest nesting of template strings.
pub(super) const MAX_TEMPLATES: usize = 8;

/// Template strings made into calls; `Err` with the place of one that does not end.
pub(in crate::authz) fn calls(text: &str) -> Result<(Map, String), (usize, usize)> {
    let mut names = 0;
    let edits = template_edits(text, 0..text.len(), 0, &mut names)
        .map_err(|at| Lines::of(text).place(at))?;
    if edits.is_empty() {
        return Ok((Map::default(), text.to_owned()));
    }
    Ok(Map::default().then(splice(0..text.len(), edits), text))
}

fn template_edits(
    text: &str,
    range: Range<usize>,
    depth: usize,
    names: &mut usize,
) -> Result<Vec<Edit>, usize> {
    let bytes = text.as_bytes();
    let mut edits = Vec::new();
    let mut at = range.start;
    while at < range.end {
        match bytes.get(at) {
            Some(b'#') => {
                at = text
                    .get(at..range.end)
                    .and_then(|rest| rest.find('\n'))
                    .map_or(range.end, |end| at + end);
            }
            Some(quote @ (b'"' | b'`')) => at = after_string(bytes, at, *quote),
            Some(b'$') if matches!(bytes.get(at + 1), Some(b'"' | b'`')) => {
                if depth >= MAX_TEMPLATES {
                    return Err(at);
                }
                let edit = template(text, at, depth, names)?;
                at = edit.range.end;
                edits.push(edit);
            }
            _ => at += 1,
        }
    }
    Ok(edits)
}

fn after_string(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut at = at + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if quote == b'"' => at += 1,
            b'\n' if quote == b'"' => return at,
            byte if *byte == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

fn template(text: &str, begin: usize, depth: usize, names: &mut usize) -> Result<Edit, usize> {
    let bytes = text.as_bytes();
    let quote = bytes.get(begin + 1).copied().unwrap_or(b'"');
    let mut pieces = vec![Piece::Text("internal.template_string([".to_owned(), begin)];
    let mut at = begin + 2;
    let mut literal = (at, String::new());
    let mut lines = 0;
    let flush = |literal: &mut (usize, String), pieces: &mut Vec<Piece>| {
        if !literal.1.is_empty() {
            let text = if quote == b'"' {
                format!("\"{}\", ", literal.1)
            } else {
                format!("{}, ", serde_json::Value::from(literal.1.as_str()))
            };
            pieces.push(Piece::Text(text, literal.0));
            literal.1.clear();
        }
    };
    loop {
        let rest = text.get(at..).ok_or(begin)?;
        let c = rest.chars().next().ok_or(begin)?;
        match c {
            '\\' if rest.starts_with("\\{") => {
                literal.1.push('{');
                at += 2;
            }
            '\\' if quote == b'"' => {
                literal.1.push('\\');
                let escaped = rest.chars().nth(1).ok_or(begin)?;
                literal.1.push(escaped);
                at += 1 + escaped.len_utf8();
            }
            '\n' if quote == b'"' => return Err(begin),
            c if c == char::from(quote) => break,
            '{' => {
                flush(&mut literal, &mut pieces);
                let end = closing(bytes, at).ok_or(begin)?;
                *names += 1;
                let name = format!("__portcullis_t{names}");
                pieces.push(Piece::Text(format!("{{{name} | {name} := "), at));
                let inside = at + 1..end;
                let edits = template_edits(text, inside.clone(), depth + 1, names)?;
                pieces.extend(splice(inside, edits));
                pieces.push(Piece::Text("}, ".to_owned(), end));
                at = end + 1;
                literal.0 = at;
            }
            c => {
                lines += usize::from(c == '\n');
                literal.1.push(c);
                at += c.len_utf8();
            }
        }
    }
    flush(&mut literal, &mut pieces);
    // Escaped in the call's texts; the lines that follow keep their numbers.
    pieces.push(Piece::Text(format!("\"\"]{})", "\n".repeat(lines)), at));
    Ok(Edit {
        range: begin..at + 1,
        pieces,
    })
}

/// The brace that closes the one here.
fn closing(bytes: &[u8], begin: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = begin;
    loop {
        match bytes.get(at)? {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            b'$' if matches!(bytes.get(at + 1), Some(b'"' | b'`')) => {
                at = after_template(bytes, at)?;
                continue;
            }
            quote @ (b'"' | b'`') => {
                at = after_string(bytes, at, *quote);
                continue;
            }
            b'#' => {
                while bytes.get(at)? != &b'\n' {
                    at += 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
}

fn after_template(bytes: &[u8], begin: usize) -> Option<usize> {
    let quote = *bytes.get(begin + 1)?;
    let mut at = begin + 2;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 1,
            b'{' => at = closing(bytes, at)?,
            byte if *byte == quote => return Some(at + 1),
            _ => {}
        }
        at += 1;
    }
}
