//! Texts and patterns, bounded before the work begins.

use regorus::Value;

use super::args::{any, elements, few, made, object, short, spent, text, wrong};
use super::{Answer, Failed, MAX_ELEMENTS, MAX_PATTERN, MAX_SUBJECT, MAX_TEXT, engines};

/// Widest field of a format.
pub(super) const MAX_WIDTH: u32 = 256;
/// Most steps of a search for several texts in one.
pub(super) const MAX_STEPS: usize = 4_000_000;
/// Most members and elements of what is turned into text.
pub(super) const MAX_PRINTED: usize = 100_000;

pub(super) fn concat(args: &[Value]) -> Answer {
    let delimiter = text(args, 0)?;
    let parts = elements(args, 1)?;
    let mut out = String::new();
    for (index, part) in parts.iter().enumerate() {
        let Value::String(part) = part else {
            return wrong("takes texts as its second argument");
        };
        if index > 0 {
            out.push_str(delimiter);
        }
        out.push_str(part);
        short(out.len(), MAX_TEXT)?;
    }
    made(out)
}

pub(super) fn replace(args: &[Value]) -> Answer {
    let (subject, old, new) = (text(args, 0)?, text(args, 1)?, text(args, 2)?);
    let found = subject.matches(old).count();
    let length = found
        .saturating_mul(new.len())
        .saturating_add(subject.len());
    short(length, MAX_TEXT)?;
    made(subject.replace(old, new))
}

/// As Go's `strings.Replacer`: one pass, the first pattern that fits at a place wins.
pub(super) fn replace_n(args: &[Value]) -> Answer {
    let patterns = object(args, 0)?;
    let subject = text(args, 1)?;
    few(patterns.len())?;
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for (old, new) in patterns.iter_sorted() {
        match (old, new) {
            (Value::String(old), Value::String(new)) => pairs.push((old.as_ref(), new.as_ref())),
            _ => return wrong("takes an object of texts as its first argument"),
        }
    }
    if pairs.len().saturating_mul(subject.len()) > MAX_STEPS {
        return spent("would look for too many texts in too long a text");
    }
    let mut out = String::new();
    let mut rest = subject;
    // An empty pattern fits before every character once, not again where another one ended.
    let mut ended = false;
    loop {
        short(out.len(), MAX_TEXT)?;
        let fit = pairs
            .iter()
            .find(|(old, _)| rest.starts_with(old) && !(old.is_empty() && ended));
        match fit {
            Some((old, new)) if !old.is_empty() => {
                out.push_str(new);
                rest = rest.get(old.len()..).unwrap_or("");
                ended = true;
                continue;
            }
            Some((_, new)) => out.push_str(new),
            None => {}
        }
        ended = false;
        let mut chars = rest.chars();
        let Some(c) = chars.next() else { break };
        out.push(c);
        rest = chars.as_str();
    }
    made(out)
}

/// Without overlaps; an empty text is found before every character and at the end.
pub(super) fn count(args: &[Value]) -> Answer {
    let (subject, part) = (text(args, 0)?, text(args, 1)?);
    Ok(Value::from(subject.matches(part).count()))
}

pub(super) fn any_match(args: &[Value], name: &str) -> Answer {
    let size = |index: usize| match args.get(index) {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Set(items)) => items.len(),
        _ => 1,
    };
    if size(0).saturating_mul(size(1)) > MAX_STEPS {
        return spent("would compare too many texts");
    }
    engines(name, args)
}

pub(super) fn sprintf(args: &[Value]) -> Answer {
    let format = text(args, 0)?;
    short(format.len(), MAX_SUBJECT)?;
    widths(format)?;
    printable(any(args, 1)?)?;
    verbs(format, super::args::array(args, 1)?)?;
    // What is neither number nor text is its own text to the format.
    let values = super::args::array(args, 1)?
        .iter()
        .map(|value| match value {
            Value::Number(_) | Value::String(_) => value.clone(),
            other => Value::from(shown(other)),
        });
    let values = Value::from(values.collect::<Vec<_>>());
    let answer = engines("sprintf", &[Value::from(format), values])?;
    if let Value::String(text) = &answer {
        short(text.len(), MAX_TEXT)?;
    }
    Ok(answer)
}

fn widths(format: &str) -> Result<(), Failed> {
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        let mut width: u32 = 0;
        while let Some(&c) = chars.peek() {
            if let Some(digit) = c.to_digit(10) {
                width = width.saturating_mul(10).saturating_add(digit);
            } else if c.is_numeric() {
                return wrong("has a width in digits other than 0 to 9");
            } else if c == '.' {
                // A precision is as costly as a width.
                width = 0;
            } else if !matches!(c, '+' | '-' | '#' | ' ') {
                break;
            }
            if width > MAX_WIDTH {
                return spent(format!(
                    "asks for a field wider than {MAX_WIDTH} characters"
                ));
            }
            chars.next();
        }
        chars.next();
    }
    Ok(())
}

/// The engine leaves out what it cannot format, so that different values look equal: only what it does
/// format is asked of it.
fn verbs(format: &str, values: &regorus::value::Array) -> Result<(), Failed> {
    let mut values = values.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        let mut how = String::new();
        while let Some(c) = chars.next_if(|c| "+-# .0123456789".contains(*c)) {
            how.push(c);
        }
        let Some(verb) = chars.next() else {
            return wrong("ends in the midst of a verb");
        };
        if verb == '%' && how.is_empty() {
            continue;
        }
        let Some(value) = values.next() else {
            return wrong("has more verbs than values");
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let plain = how.is_empty();
        let fits = match (verb, value) {
            ('v', _) => plain,
            // A number that Go's own have no room for is a text to OPA.
            ('s', Value::Number(number)) => {
                plain && number.as_i64().is_none() && number.as_u64().is_none()
            }
            ('s', _) => plain,
            ('d' | 'x' | 'X' | 'o' | 'b', Value::Number(number)) if number.is_integer() => {
                plain || how.strip_prefix('0').is_some_and(digits)
            }
            ('c', Value::Number(number)) => plain && number.is_integer(),
            ('e' | 'E' | 'f' | 'F' | 'g' | 'G', Value::Number(_)) => {
                plain || how.strip_prefix('.').is_some_and(digits)
            }
            _ => false,
        };
        if !fits {
            return wrong(
                "has a verb that does not fit its value, or a flag or width that is not known here; `%v` writes any value",
            );
        }
    }
    Ok(())
}

/// A value may be made of the same part many times over; written out it would have no end.
pub(super) fn printable(value: &Value) -> Result<(), Failed> {
    let mut left = MAX_PRINTED;
    let mut bytes = MAX_TEXT;
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        let Some(rest) = left.checked_sub(1) else {
            return spent(format!("was given more than {MAX_PRINTED} members"));
        };
        left = rest;
        match value {
            Value::Array(items) => open.extend(items.iter().take(left.saturating_add(1))),
            Value::Set(items) => open.extend(items.iter().take(left.saturating_add(1))),
            Value::Object(members) => {
                for (key, value) in members.iter().take(left.saturating_add(1)) {
                    open.extend([key, value]);
                }
            }
            Value::String(text) => {
                let Some(rest) = bytes.checked_sub(text.len()) else {
                    return spent(format!("was given more than {MAX_TEXT} bytes of text"));
                };
                bytes = rest;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A value as OPA writes it.
fn shown(value: &Value) -> String {
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
    match value {
        Value::Array(items) => format!("[{}]", list(&mut items.iter().map(shown))),
        Value::Set(items) if items.is_empty() => "set()".to_owned(),
        Value::Set(items) => format!("{{{}}}", list(&mut items.iter_sorted().map(shown))),
        Value::Object(members) => {
            let mut members = members
                .iter_sorted()
                .map(|(key, value)| format!("{}: {}", shown(key), shown(value)));
            format!("{{{}}}", list(&mut members))
        }
        other => other.to_json_str().unwrap_or_default(),
    }
}

/// Whether a text is JSON; what is no text is none.
pub(super) fn is_json(args: &[Value]) -> Answer {
    match any(args, 0)? {
        Value::String(text) => short(text.len(), MAX_TEXT)?,
        _ => return Ok(Value::from(false)),
    }
    engines("json.is_valid", args)
}

/// A builtin that writes its first argument out.
pub(super) fn written(args: &[Value], name: &str) -> Answer {
    printable(any(args, 0)?)?;
    engines(name, args)
}

fn pattern(pattern: &str) -> Result<(), Failed> {
    if pattern.len() > MAX_PATTERN {
        return spent(format!("takes patterns of at most {MAX_PATTERN} bytes"));
    }
    Ok(())
}

/// The engine's pattern for one of RE2, which OPA uses: there `\\d`, `\\w`, `\\s` and `\\b` are of ASCII, and
/// a class knows neither `&&` nor `~~` nor a class within.
fn re2(pattern: &str) -> Result<String, Failed> {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    // Characters of a class so far; the first may be a bracket.
    let mut class: Option<usize> = None;
    while let Some(c) = chars.next() {
        let within = class.is_some();
        if let Some(seen) = &mut class {
            *seen += 1;
        }
        match (c, chars.peek()) {
            ('\\', Some(&escaped)) => {
                chars.next();
                let ranges = match escaped.to_ascii_lowercase() {
                    'd' => "0-9",
                    'w' => "0-9A-Za-z_",
                    's' => "\\t\\n\\f\\r ",
                    _ => "",
                };
                match escaped {
                    'd' | 'w' | 's' if within => out.push_str(ranges),
                    'd' | 'w' | 's' => out.push_str(&format!("[{ranges}]")),
                    'D' | 'W' | 'S' => out.push_str(&format!("[^{ranges}]")),
                    'b' if !within => out.push_str("(?-u:\\b)"),
                    'B' | 'u' | 'U' | '<' | '>' => {
                        return wrong("was given a pattern with an escape that is not known here");
                    }
                    other => out.extend(['\\', other]),
                }
            }
            ('[', Some(':')) if within => {
                // `[:alpha:]`
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            ('[' | '&' | '~', _) if within => out.extend(['\\', c]),
            ('-', Some('-')) if within => {
                return wrong("was given a class with `--`: write the minus at its end");
            }
            ('^', _) if class == Some(1) => {
                class = Some(0);
                out.push('^');
            }
            (']', _) if class.is_some_and(|seen| seen > 1) => {
                class = None;
                out.push(']');
            }
            ('[', _) => {
                class = Some(0);
                out.push('[');
            }
            ('(', Some('?')) if !within => {
                out.push('(');
                out.extend(chars.next());
                while let Some(&flag) = chars.peek()
                    && matches!(flag, 'a'..='z' | 'A'..='Z' | '-')
                {
                    // `(?P<name>…)` is no flag.
                    if matches!(flag, 'x' | 'u' | 'R') {
                        return wrong("was given a pattern with a flag that is not known here");
                    }
                    out.extend(chars.next());
                    if flag == 'P' {
                        break;
                    }
                }
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

/// Arguments with the pattern at one place in the engine's own words.
fn translated(args: &[Value], at: usize) -> Result<Vec<Value>, Failed> {
    let made = re2(text(args, at)?)?;
    let mut args = args.to_vec();
    if let Some(place) = args.get_mut(at) {
        *place = Value::from(made);
    }
    Ok(args)
}

/// A builtin that tries a pattern on a text.
pub(super) fn matched(args: &[Value], name: &str, at: usize, subject: usize) -> Answer {
    pattern(text(args, at)?)?;
    short(text(args, subject)?.len(), MAX_SUBJECT)?;
    engines(name, &translated(args, at)?)
}

pub(super) fn is_valid(args: &[Value]) -> Answer {
    match args.first() {
        Some(Value::String(text)) => pattern(text)?,
        _ => return Ok(Value::from(false)),
    }
    match translated(args, 0) {
        Ok(args) => engines("regex.is_valid", &args),
        Err(_) => Ok(Value::from(false)),
    }
}

pub(super) fn regex_replace(args: &[Value]) -> Answer {
    let (subject, old, new) = (text(args, 0)?, text(args, 1)?, text(args, 2)?);
    pattern(old)?;
    short(subject.len(), MAX_SUBJECT)?;
    // It may match before every character.
    short(
        subject.len().saturating_add(1).saturating_mul(new.len()),
        MAX_TEXT,
    )?;
    engines("regex.replace", &translated(args, 1)?)
}

/// As the library does it that OPA uses: `**` goes over delimiters, `*` and `?` do not, and a class is
/// turned round by `!` alone.
pub(super) fn glob(args: &[Value]) -> Answer {
    let glob = text(args, 0)?;
    pattern(glob)?;
    short(text(args, 2)?.len(), MAX_SUBJECT)?;
    let mut delimiters = String::new();
    match any(args, 1)? {
        Value::Null => {}
        Value::Array(given) if given.is_empty() => delimiters.push('.'),
        Value::Array(given) => {
            for delimiter in given.iter() {
                match delimiter {
                    Value::String(text) if text.chars().count() == 1 => delimiters.push_str(text),
                    _ => return wrong("takes delimiters of one character"),
                }
            }
        }
        _ => return wrong("takes an array of delimiters, or null"),
    }
    let made = glob_pattern(glob, &delimiters)?;
    engines("regex.match", &[Value::from(made), any(args, 2)?.clone()])
}

fn glob_pattern(glob: &str, delimiters: &str) -> Result<String, Failed> {
    let escaped = |c: char, out: &mut String| {
        if c.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(c);
    };
    let mut one = "(?s:.)".to_owned();
    if !delimiters.is_empty() {
        one = "[^".to_owned();
        delimiters.chars().for_each(|c| escaped(c, &mut one));
        one.push(']');
    }
    let mut out = String::from("\\A(?:");
    let mut alternatives = 0_usize;
    let mut chars = glob.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => {
                let mut over = false;
                while chars.next_if_eq(&'*').is_some() {
                    over = true;
                }
                out.push_str(if over { "(?s:.)" } else { &one });
                out.push('*');
            }
            '?' => out.push_str(&one),
            '[' => {
                out.push('[');
                if chars.next_if_eq(&'!').is_some() {
                    out.push('^');
                }
                let mut members = 0;
                loop {
                    match chars.next() {
                        None => return wrong("was given a class that does not end"),
                        Some(']') if members > 0 => break,
                        Some(']') => return wrong("was given an empty class"),
                        Some('-') if members > 0 && chars.peek().is_some_and(|c| *c != ']') => {
                            out.push('-');
                        }
                        Some('\\') => match chars.next() {
                            Some(c) => escaped(c, &mut out),
                            None => return wrong("was given a class that does not end"),
                        },
                        Some(c) => escaped(c, &mut out),
                    }
                    members += 1;
                }
                out.push(']');
            }
            '{' => {
                alternatives += 1;
                out.push_str("(?:");
            }
            ',' if alternatives > 0 => out.push('|'),
            '}' if alternatives > 0 => {
                alternatives -= 1;
                out.push(')');
            }
            '\\' => match chars.next() {
                Some(c) => escaped(c, &mut out),
                None => return wrong("was given a pattern that ends in a backslash"),
            },
            c => escaped(c, &mut out),
        }
    }
    if alternatives > 0 {
        return wrong("was given alternatives that do not end");
    }
    out.push_str(")\\z");
    Ok(out)
}

/// Whether some text matches both globs: of literals, `.`, classes, `*` and `+`.
pub(super) fn globs_match(args: &[Value]) -> Answer {
    let (one, other) = (text(args, 0)?, text(args, 1)?);
    pattern(one)?;
    pattern(other)?;
    let (one, other) = (tokens(one)?, tokens(other)?);
    if one.len().saturating_mul(other.len()) > MAX_STEPS {
        return spent("was given too long patterns");
    }
    Ok(Value::from(intersect(&one, &other)))
}

#[derive(Debug, Clone)]
struct GlobToken {
    /// `None` for any character.
    class: Option<Vec<(char, char)>>,
    /// May be left out.
    optional: bool,
    /// May come again.
    repeated: bool,
}

fn tokens(glob: &str) -> Result<Vec<GlobToken>, Failed> {
    let mut tokens: Vec<GlobToken> = Vec::new();
    let mut chars = glob.chars().peekable();
    while let Some(c) = chars.next() {
        let class = match c {
            '*' | '+' => {
                let Some(last) = tokens.last_mut().filter(|token| !token.repeated) else {
                    return wrong("was given a pattern that repeats nothing");
                };
                last.repeated = true;
                last.optional = c == '*';
                continue;
            }
            '.' => None,
            '[' => {
                let mut ranges = Vec::new();
                loop {
                    let from = match chars.next() {
                        Some(']') => break,
                        Some('\\') => chars.next(),
                        from => from,
                    };
                    let Some(from) = from else {
                        return wrong("was given a class that does not end");
                    };
                    let mut to = from;
                    if chars.peek() == Some(&'-') {
                        chars.next();
                        match chars.next() {
                            Some(end) if end != ']' => to = end,
                            _ => return wrong("was given a range without an end"),
                        }
                    }
                    if to < from {
                        return wrong("was given a range that ends before it begins");
                    }
                    ranges.push((from, to));
                }
                Some(ranges)
            }
            ']' => return wrong("was given a class that does not begin"),
            '\\' => match chars.next() {
                Some(c) => Some(vec![(c, c)]),
                None => return wrong("was given a pattern that ends in a backslash"),
            },
            c => Some(vec![(c, c)]),
        };
        tokens.push(GlobToken {
            class,
            optional: false,
            repeated: false,
        });
    }
    Ok(tokens)
}

fn share(one: &GlobToken, other: &GlobToken) -> bool {
    match (&one.class, &other.class) {
        (Some(one), Some(other)) => one
            .iter()
            .any(|(a, b)| other.iter().any(|(c, d)| a <= d && c <= b)),
        (Some(class), None) | (None, Some(class)) => !class.is_empty(),
        (None, None) => true,
    }
}

/// Both as machines that take the same characters; a place counts where something was taken of a
/// token that must be.
fn intersect(one: &[GlobToken], other: &[GlobToken]) -> bool {
    // Where a machine may stand: before a token, or in one that may come again.
    type Place = (usize, bool);
    let free = |tokens: &[GlobToken], (at, within): Place| -> Vec<Place> {
        match tokens.get(at) {
            Some(token) if within || token.optional => vec![(at.saturating_add(1), false)],
            _ => Vec::new(),
        }
    };
    let mut open: Vec<(Place, Place)> = vec![((0, false), (0, false))];
    let mut seen = std::collections::HashSet::new();
    while let Some((a, b)) = open.pop() {
        if !seen.insert((a, b)) {
            continue;
        }
        if a.0 == one.len() && b.0 == other.len() {
            return true;
        }
        open.extend(free(one, a).into_iter().map(|a| (a, b)));
        open.extend(free(other, b).into_iter().map(|b| (a, b)));
        if let (Some(x), Some(y)) = (one.get(a.0), other.get(b.0))
            && share(x, y)
        {
            let step = |(at, _): Place, token: &GlobToken| match token.repeated {
                true => (at, true),
                false => (at.saturating_add(1), false),
            };
            open.push((step(a, x), step(b, y)));
        }
    }
    false
}

/// `$"…{x}…"`: the texts as they are, what is undefined as `<undefined>`.
pub(super) fn template(args: &[Value]) -> Answer {
    let parts = super::args::array(args, 0)?;
    let mut out = String::new();
    for part in parts.iter() {
        match part {
            Value::String(text) => out.push_str(text),
            // What stood between braces, as a set of its values.
            Value::Set(values) => match (values.len(), values.first()) {
                (0, _) => out.push_str("<undefined>"),
                (1, Some(Value::String(text))) => out.push_str(text),
                (1, Some(value)) => {
                    printable(value)?;
                    out.push_str(&shown(value));
                }
                _ => return wrong("template-strings must not produce multiple outputs"),
            },
            _ => return wrong("cannot write a value"),
        }
        short(out.len(), MAX_TEXT)?;
    }
    made(out)
}

pub(super) fn split(args: &[Value]) -> Answer {
    let (subject, by) = (text(args, 0)?, text(args, 1)?);
    short(subject.len(), MAX_TEXT)?;
    let parts: Vec<Value> = if by.is_empty() {
        subject
            .chars()
            .map(|c| Value::from(c.to_string()))
            .collect()
    } else {
        subject.split(by).map(Value::from).collect()
    };
    if parts.len() > MAX_ELEMENTS {
        return spent(format!("makes more than {MAX_ELEMENTS} parts"));
    }
    Ok(Value::from(parts))
}
