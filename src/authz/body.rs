//! The body as a policy sees it: parsed in one way, or refused.
//!
//! What is not said to be JSON or a form is `null`, and so is what was not read in full. What is said
//! to be one and is not, or is one in two ways (a member that occurs twice, two content types, an
//! encoding), is no body that policy and upstream could agree on: such a request is refused.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::HeaderValue;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::input::{MAX_QUERY_PARAMETERS, Unreadable};
use crate::document::{Value, from_json};
use crate::request::InboundRequest;
use crate::schema::{Compile, Size};

/// Largest body that a policy may be shown.
const MAX: Size = Size::mib(1);
/// Most fields of a form.
const MAX_FIELDS: usize = MAX_QUERY_PARAMETERS;

/// What a policy is shown of request bodies.
///
/// The gateway reads the body before it asks the policy, and forwards it unchanged afterwards. Each
/// request under way may hold `max` of memory, an open stream as long as it lasts. Calls of gRPC and
/// requests for another protocol are never waited for: their body counts as truncated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BodyConfig {
    /// How much of it is read, up to `1MiB`. Default `64KiB`.
    pub max: Size,
    /// What becomes of a longer one. Default `refuse`.
    pub when_larger: WhenLarger,
}

impl Default for BodyConfig {
    fn default() -> Self {
        Self {
            max: Size::kib(64),
            when_larger: WhenLarger::default(),
        }
    }
}

/// What becomes of a request whose body is larger than a policy is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhenLarger {
    /// It is refused with status 413.
    #[default]
    Refuse,
    /// The policy is asked without it: `null`, and told so.
    Truncate,
}

/// How much of a body is to be read before a policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyTerms {
    /// Bytes.
    pub max: usize,
    /// What becomes of more.
    pub when_larger: WhenLarger,
}

impl BodyConfig {
    pub(super) fn check(&self, cx: &mut Compile) {
        if self.max.get() == 0 || self.max > MAX {
            cx.at("max", |cx| {
                cx.problem_help(
                    "the size of the body that a policy is shown is out of range",
                    format!("up to `{MAX}`: it is held in memory while the request lasts"),
                );
            });
        }
    }

    pub(super) fn terms(&self) -> BodyTerms {
        BodyTerms {
            max: self.max.len(),
            when_larger: self.when_larger,
        }
    }
}

/// What a body is said to be.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Json,
    Form,
    Multipart(String),
    Other,
}

/// The body as a document; `null` for none, for other types, and for what was not read in full.
///
/// # Errors
/// [`Unreadable::Body`] for what can be read in two ways, or is not what it is said to be.
pub(super) fn parsed(request: &InboundRequest) -> Result<Value, Unreadable> {
    let Some(excerpt) = &request.excerpt else {
        return Ok(Value::Null);
    };
    if !excerpt.whole || excerpt.bytes.is_empty() {
        return Ok(Value::Null);
    }
    let kind = kind(request)?;
    let encoded = request
        .headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    let bytes = &excerpt.bytes[..];
    match kind {
        Kind::Other => Ok(Value::Null),
        _ if encoded => Err(Unreadable::Body("is encoded")),
        Kind::Json => from_json(bytes).map_err(|_| Unreadable::Body("is no unambiguous JSON")),
        Kind::Form => form(bytes),
        Kind::Multipart(boundary) => multipart(bytes, &boundary),
    }
}

fn kind(request: &InboundRequest) -> Result<Kind, Unreadable> {
    let Ok(field) = request.single(&CONTENT_TYPE) else {
        return Err(Unreadable::Body("has several content types"));
    };
    let Some(field) = field.map(HeaderValue::to_str) else {
        return Ok(Kind::Other);
    };
    let Ok(field) = field else {
        return Err(Unreadable::Body("has a content type that is no text"));
    };
    let (essence, parameters) = field.split_once(';').unwrap_or((field, ""));
    let essence = essence.trim().to_ascii_lowercase();
    // A list of types is one for some and another for others.
    if field.contains(',') && !essence.starts_with("multipart/") {
        return Err(Unreadable::Body("has several content types"));
    }
    Ok(match essence.as_str() {
        "application/json" => Kind::Json,
        other if other.starts_with("application/") && other.ends_with("+json") => Kind::Json,
        "application/x-www-form-urlencoded" => Kind::Form,
        "multipart/form-data" => Kind::Multipart(
            parameter(parameters, "boundary").ok_or(Unreadable::Body("has no boundary"))?,
        ),
        _ => Kind::Other,
    })
}

/// The one parameter of this name; `None` also when there are two.
fn parameter(parameters: &str, name: &str) -> Option<String> {
    let mut found = None;
    for parameter in parameters.split(';') {
        let Some((known, value)) = parameter.split_once('=') else {
            continue;
        };
        let known = known.trim();
        // The extended form (RFC 8187) would be another value for those who know it.
        if known.trim_end_matches('*').eq_ignore_ascii_case(name) && known.ends_with('*') {
            return None;
        }
        if !known.eq_ignore_ascii_case(name) {
            continue;
        }
        let value = value.trim();
        let bare = match value.strip_prefix('"') {
            Some(quoted) => quoted.strip_suffix('"')?,
            None => value,
        };
        if bare.is_empty() || bare.contains(['"', '\\']) || found.is_some() {
            return None;
        }
        found = Some(bare.to_owned());
    }
    found
}

/// Fields by name, each with its values in their order.
#[derive(Default)]
struct Fields {
    by_name: BTreeMap<String, Vec<Value>>,
    count: usize,
}

impl Fields {
    fn add(&mut self, name: String, value: Value) -> Result<(), Unreadable> {
        self.count += 1;
        if self.count > MAX_FIELDS {
            return Err(Unreadable::Body("has too many fields"));
        }
        self.by_name.entry(name).or_default().push(value);
        Ok(())
    }

    fn done(self) -> Value {
        let members = self.by_name.into_iter();
        let members = members.map(|(name, values)| (Value::from(name), Value::from(values)));
        Value::from(members.collect::<BTreeMap<_, _>>())
    }
}

fn form(bytes: &[u8]) -> Result<Value, Unreadable> {
    const FLAWED: Unreadable = Unreadable::Body("is no unambiguous form");
    // Some part fields at `;`, too.
    if bytes.contains(&b';') {
        return Err(FLAWED);
    }
    let mut fields = Fields::default();
    for pair in bytes.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
        let mut halves = pair.splitn(2, |b| *b == b'=');
        let name = halves.next().unwrap_or_default();
        let value = halves.next().unwrap_or_default();
        let name = decoded(name).ok_or(FLAWED)?;
        let value = decoded(value).ok_or(FLAWED)?;
        fields.add(name, Value::from(value))?;
    }
    Ok(fields.done())
}

/// Percent signs with two digits, `+` for a space, and UTF-8 behind them.
fn decoded(text: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    let digit = |byte: Option<&u8>| {
        let digit = char::from(*byte?).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => digit(rest.next())? << 4 | digit(rest.next())?,
            other => *other,
        });
    }
    String::from_utf8(out).ok()
}

/// RFC 7578. Lines end in CR LF, names are written once and without escapes.
fn multipart(bytes: &[u8], boundary: &str) -> Result<Value, Unreadable> {
    const FLAWED: Unreadable = Unreadable::Body("is no unambiguous multipart form");
    let dashes = format!("--{boundary}");
    let delimiter = format!("\r\n{dashes}");
    let delimiter = delimiter.as_bytes();
    // The first one needs no line before it.
    let mut rest = bytes.strip_prefix(dashes.as_bytes()).ok_or(FLAWED)?;
    let mut fields = Fields::default();
    loop {
        if let Some(end) = rest.strip_prefix(b"--") {
            return match end {
                b"" | b"\r\n" => Ok(fields.done()),
                _ => Err(FLAWED),
            };
        }
        rest = rest.strip_prefix(b"\r\n").ok_or(FLAWED)?;
        let end = find(rest, delimiter).ok_or(FLAWED)?;
        let part = rest.get(..end).ok_or(FLAWED)?;
        rest = rest.get(end + delimiter.len()..).ok_or(FLAWED)?;
        let head_end = find(part, b"\r\n\r\n").ok_or(FLAWED)?;
        let head = std::str::from_utf8(part.get(..head_end).ok_or(FLAWED)?).map_err(|_| FLAWED)?;
        let content = part.get(head_end + 4..).ok_or(FLAWED)?;
        let (name, json) = part_head(head).ok_or(FLAWED)?;
        let value = if json {
            from_json(content).map_err(|_| FLAWED)?
        } else {
            Value::from(String::from_utf8_lossy(content).into_owned())
        };
        fields.add(name, value)?;
    }
}

/// The field's name, and whether it is JSON.
fn part_head(head: &str) -> Option<(String, bool)> {
    let (mut name, mut kind): (Option<String>, Option<Cow<'_, str>>) = (None, None);
    for line in head.split("\r\n") {
        let (field, value) = line.split_once(':')?;
        let value = value.trim();
        if line.contains(['\r', '\n', '\0']) {
            return None;
        }
        if field.eq_ignore_ascii_case("content-disposition") {
            let (form, parameters) = value.split_once(';')?;
            if !form.trim().eq_ignore_ascii_case("form-data") || name.is_some() {
                return None;
            }
            name = Some(parameter(parameters, "name")?);
        } else if field.eq_ignore_ascii_case("content-type") {
            if kind.is_some() {
                return None;
            }
            kind = Some(value.to_ascii_lowercase().into());
        }
    }
    let json =
        kind.is_some_and(|kind| kind.split(';').next().map(str::trim) == Some("application/json"));
    Some((name?, json))
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, needle)
}
