//! The form of JSON over which OPA computes hashes: members in the order of their names, no blanks,
//! strings as Go writes them, numbers as they stand in the text.
//!
//! Numbers are why this is a reader of its own: any other makes floating-point numbers of them, and
//! `1.0` and `1` have different hashes.

use crate::document::{self, Value};

/// How deep arrays and objects may nest.
const MAX_DEPTH: usize = document::MAX_DEPTH;

/// The canonical text of a JSON document.
///
/// # Errors
/// Why it is none; a member that occurs twice is one reason.
pub(super) fn json(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut reader = Reader { text, at: 0 };
    let canonical = reader.value(0)?;
    reader.blanks();
    if reader.at == text.len() {
        Ok(canonical)
    } else {
        Err("something follows the document".to_owned())
    }
}

/// The canonical text of a YAML document, which OPA turns into JSON first.
///
/// # Errors
/// Why it is none.
pub(super) fn yaml(text: &[u8]) -> Result<Vec<u8>, String> {
    // What is JSON is read as such.
    if let Ok(canonical) = json(text) {
        return Ok(canonical);
    }
    let value = document::from_yaml(text).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    write(&value, &mut out)?;
    Ok(out)
}

struct Reader<'t> {
    text: &'t [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.blanks();
        let taken = self.peek() == Some(byte);
        self.at += usize::from(taken);
        taken
    }

    fn wrong<T>(&self) -> Result<T, String> {
        Err(format!("this is no JSON at byte {}", self.at + 1))
    }

    fn value(&mut self, depth: usize) -> Result<Vec<u8>, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.blanks();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(|text| encoded(&text)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => self.wrong(),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<Vec<u8>, String> {
        if self
            .text
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(word))
        {
            self.at += word.len();
            Ok(word.to_vec())
        } else {
            self.wrong()
        }
    }

    fn object(&mut self, depth: usize) -> Result<Vec<u8>, String> {
        self.at += 1;
        let mut members: Vec<(String, Vec<u8>)> = Vec::new();
        if !self.take(b'}') {
            loop {
                self.blanks();
                if self.peek() != Some(b'"') {
                    return self.wrong();
                }
                let name = self.string()?;
                if !self.take(b':') {
                    return self.wrong();
                }
                members.push((name, self.value(depth + 1)?));
                if self.take(b'}') {
                    break;
                }
                if !self.take(b',') {
                    return self.wrong();
                }
            }
        }
        members.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
        let mut out = vec![b'{'];
        let mut before: Option<&str> = None;
        for (name, value) in &members {
            if before == Some(name) {
                return Err(format!("`{name}` occurs twice"));
            }
            if before.is_some() {
                out.push(b',');
            }
            out.extend_from_slice(&encoded(name));
            out.push(b':');
            out.extend_from_slice(value);
            before = Some(name);
        }
        out.push(b'}');
        Ok(out)
    }

    fn array(&mut self, depth: usize) -> Result<Vec<u8>, String> {
        self.at += 1;
        let mut out = vec![b'['];
        if !self.take(b']') {
            loop {
                out.extend_from_slice(&self.value(depth + 1)?);
                if self.take(b']') {
                    break;
                }
                if !self.take(b',') {
                    return self.wrong();
                }
                out.push(b',');
            }
        }
        out.push(b']');
        Ok(out)
    }

    fn string(&mut self) -> Result<String, String> {
        let begin = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
                None => return self.wrong(),
            }
        }
        self.at += 1;
        let token = self.text.get(begin..self.at).unwrap_or_default();
        serde_json::from_slice(token).or_else(|_| {
            self.at = begin;
            self.wrong()
        })
    }

    fn number(&mut self) -> Result<Vec<u8>, String> {
        let begin = self.at;
        while matches!(
            self.peek(),
            Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')
        ) {
            self.at += 1;
        }
        let token = self.text.get(begin..self.at).unwrap_or_default();
        if is_number(token) {
            Ok(token.to_vec())
        } else {
            self.at = begin;
            self.wrong()
        }
    }
}

/// RFC 8259 section 6.
fn is_number(token: &[u8]) -> bool {
    fn digits(text: &[u8]) -> Option<&[u8]> {
        let count = text.iter().take_while(|b| b.is_ascii_digit()).count();
        text.get(count..).filter(|_| count > 0)
    }
    let unsigned = token.strip_prefix(b"-").unwrap_or(token);
    let whole = match unsigned.first() {
        Some(b'0') => unsigned.get(1..),
        _ => digits(unsigned),
    };
    let fraction = whole.and_then(|rest| match rest.strip_prefix(b".") {
        Some(rest) => digits(rest),
        None => Some(rest),
    });
    let exponent = fraction.and_then(|rest| {
        match rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
            Some(rest) => {
                let sign = rest.strip_prefix(b"+").or_else(|| rest.strip_prefix(b"-"));
                digits(sign.unwrap_or(rest))
            }
            None => Some(rest),
        }
    });
    exponent.is_some_and(<[u8]>::is_empty)
}

/// A string as Go's encoder writes it, when it does not care for HTML.
fn encoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
    out
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    if let Some(items) = document::items(value) {
        out.push(b'[');
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            write(item, out)?;
        }
        out.push(b']');
    } else if let Value::Object(_) = value {
        let mut names: Vec<&str> = document::names(value).collect();
        names.sort_unstable();
        out.push(b'{');
        for (at, name) in names.into_iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&encoded(name));
            out.push(b':');
            write(document::member(value, name).unwrap_or(&Value::Null), out)?;
        }
        out.push(b'}');
    } else if let Some(text) = document::text(value) {
        out.extend_from_slice(&encoded(text));
    } else if let Ok(number) = value.as_i64() {
        out.extend_from_slice(number.to_string().as_bytes());
    } else if let Ok(number) = value.as_u64() {
        out.extend_from_slice(number.to_string().as_bytes());
    } else if let Ok(number) = value.as_f64() {
        out.extend_from_slice(float(number).as_bytes());
    } else {
        let text = value.to_json_str().map_err(|error| error.to_string())?;
        out.extend_from_slice(text.as_bytes());
    }
    Ok(())
}

/// A floating-point number as Go's encoder writes it.
fn float(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{number:e}");
        match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => {
                format!("{digits}e+{exponent}")
            }
            _ => text,
        }
    } else {
        number.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        String::from_utf8(json(text.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn members_are_sorted_and_blanks_left_out_and_numbers_kept_as_they_stand() {
        assert_eq!(
            canonical(" { \"b\" : [ 1.0 , 1e2, -0 ],\n \"a\":{\"é\":null,\"Z\":true} } "),
            "{\"a\":{\"Z\":true,\"é\":null},\"b\":[1.0,1e2,-0]}"
        );
    }

    #[test]
    fn strings_are_written_as_go_writes_them() {
        assert_eq!(
            canonical("\"<a>&\\u0041\\/\\u2028\\u0001\\b\\u007f\\ud83d\\ude00\\\"\""),
            "\"<a>&A/\\u2028\\u0001\\b\u{7f}😀\\\"\""
        );
    }

    #[test]
    fn what_is_no_json_or_can_be_read_in_two_ways_is_refused() {
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "nul",
            "\"",
            "{\"a\":1 \"b\":2}",
            "{\"a\":1,\"a\":2}",
            "{\"a\":1,\"\\u0061\":2}",
            "1 2",
            "\u{feff}1",
            "\"\\ud800\"",
            "\"\n\"",
        ] {
            assert!(json(text.as_bytes()).is_err(), "{text:?}");
        }
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH + 2), "]".repeat(MAX_DEPTH + 2));
        assert!(json(deep.as_bytes()).unwrap_err().contains("deeper"));
    }

    #[test]
    fn yaml_becomes_the_json_that_go_makes_of_it() {
        let text = yaml(b"b: [1, 1.0, 1.5, 1e15, 0.0000001, true, null, x]\na: \"1\"\n").unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\"a\":\"1\",\"b\":[1,1,1.5,1000000000000000,1e-7,true,null,\"x\"]}"
        );
        assert_eq!(float(1e30), "1e+30");
        assert_eq!(yaml(b"{\"a\": 1.0}").unwrap(), b"{\"a\":1.0}");
    }
}
