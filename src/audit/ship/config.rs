//! A block of `audit.ship` in the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::http::Server;
use super::{Destination, Ship};
use crate::audit::sink::AppendFile;
use crate::fetch::{Fetcher, Target};
use crate::schema::{Compile, ContentDigest, SecretRef, Size, Span};

/// Shortest and longest time for one delivery.
const TIMEOUT: (Span, Span) = (Span::millis(100), Span::seconds(120));
/// Smallest and largest delivery.
const SIZE: (Size, Size) = (Size::kib(4), Size::mib(16));
/// Fewest and most records of a delivery.
const RECORDS: (usize, usize) = (1, 100_000);
/// Longest time that records wait for company.
const WAIT: (Span, Span) = (Span::millis(1), Span::seconds(60));
/// Shortest and longest pause after a failure.
const DELAY: (Span, Span) = (Span::millis(10), Span::seconds(3600));

/// One block of `audit.ship`: somewhere else where the records of the ledger go, each at least once and
/// in their order. How far it got is kept beside the ledger: neither a restart nor a sink that is away
/// loses anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShipConfig {
    /// Where to: `{ http: … }`, `{ file: PATH }` or `stdout`. A file is appended to, and opened anew
    /// when it was moved away.
    pub to: ShipTo,
    /// `portcullis`: the records as they are; `opa`: events as OPA's decision logs have them, of the
    /// records of requests that a policy was asked about.
    #[serde(default)]
    pub format: ShipFormat,
    /// Where a sink begins that was never shipped to: with the `oldest` record of the ledger, or with
    /// the `newest`.
    #[serde(default)]
    pub begin: ShipBegin,
    /// How many records go at once.
    #[serde(default)]
    pub batch: BatchConfig,
    /// What happens after a failure.
    #[serde(default)]
    pub retry: RetryConfig,
}

/// Where records are shipped to.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "ToShape")]
pub enum ShipTo {
    /// Standard output.
    Stdout,
    /// The end of a file.
    File(PathBuf),
    /// A server.
    Http(ShipHttp),
}

/// How records are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShipFormat {
    /// As they are.
    #[default]
    Portcullis,
    /// As events of OPA's decision log.
    Opa,
}

/// Where a new sink begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShipBegin {
    /// With the first record there is.
    #[default]
    Oldest,
    /// With the next record.
    Newest,
}

/// A server that records are posted to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShipHttp {
    /// Where records are posted: https, or http on a loopback address. Any 2xx says that they were
    /// taken. Redirects are not followed.
    pub url: String,
    /// Sent to the server as `Authorization: Bearer …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretRef>,
    /// Further headers for the server; each value is a reference to a secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, SecretRef>,
    /// Files with the certificate authorities (PEM) that are trusted. Default: the public web's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<PathBuf>,
    /// Longest time for one delivery, `100ms` to `2m`.
    #[serde(default = "ten_seconds")]
    pub timeout: Span,
    /// Whether what is posted is compressed (`Content-Encoding: gzip`).
    #[serde(default = "yes")]
    pub gzip: bool,
    /// `array`: a JSON array of records, as OPA posts them; `lines`: one record on each line.
    #[serde(default)]
    pub body: ShipBody,
}

/// What is posted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShipBody {
    /// A JSON array.
    #[default]
    Array,
    /// JSON, one document on each line.
    Lines,
}

/// How many records go at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// Most bytes before they are compressed, `4KiB` to `16MiB`; a record that is larger goes alone.
    /// About three times as much is in memory, however far the sink is behind.
    pub size: Size,
    /// Most records, 1 to 100,000.
    pub records: usize,
    /// How long records wait for company, `1ms` to `1m`.
    pub wait: Span,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            size: Size::mib(1),
            records: 1000,
            wait: Span::seconds(1),
        }
    }
}

/// What happens after a failure: the same is tried again, until it is taken. Pauses double, each by
/// chance between half and all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// The first pause, `10ms` to `1h`.
    pub min_delay: Span,
    /// The longest pause, `10ms` to `1h`; also the longest that a server may wish for with
    /// `Retry-After`.
    pub max_delay: Span,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            min_delay: Span::millis(500),
            max_delay: Span::seconds(30),
        }
    }
}

const fn ten_seconds() -> Span {
    Span::seconds(10)
}

const fn yes() -> bool {
    true
}

/// How the destination is written: a word, or a mapping with one key.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum ToShape {
    Word(ToWord),
    Place(ToPlace),
}

#[derive(Clone, Copy, JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum ToWord {
    Stdout,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ToPlace {
    /// A file that is appended to.
    File(PathBuf),
    /// A server that records are posted to.
    Http(ShipHttp),
}

impl From<ToShape> for ShipTo {
    fn from(shape: ToShape) -> Self {
        match shape {
            ToShape::Word(ToWord::Stdout) => Self::Stdout,
            ToShape::Place(ToPlace::File(file)) => Self::File(file),
            ToShape::Place(ToPlace::Http(http)) => Self::Http(http),
        }
    }
}

impl Serialize for ShipTo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Not derived: YAML would write a tag (`!file`).
        match self {
            Self::Stdout => serializer.serialize_str("stdout"),
            Self::File(file) => serializer.collect_map([("file", file)]),
            Self::Http(http) => serializer.collect_map([("http", http)]),
        }
    }
}

/// Not `untagged`, which would not say what is wrong within a mapping.
impl<'de> Deserialize<'de> for ShipTo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrPlace;

        impl<'de> Visitor<'de> for WordOrPlace {
            type Value = ToShape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`stdout`, `{ file: PATH }` or `{ http: … }`")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<ToShape, E> {
                match word {
                    "stdout" => Ok(ToShape::Word(ToWord::Stdout)),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ToShape, A::Error> {
                let place = ToPlace::deserialize(MapAccessDeserializer::new(&mut map))?;
                if map.next_key::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::custom(
                        "there is one place for each block, not two: add a block",
                    ));
                }
                Ok(ToShape::Place(place))
            }
        }
        deserializer.deserialize_any(WordOrPlace).map(Self::from)
    }
}

impl ShipConfig {
    /// Compiles one block, and reports what is wrong with it.
    pub(in crate::audit) fn compile(&self, name: &str, cx: &mut Compile) -> Option<Arc<Ship>> {
        let before = cx.errors();
        cx.at("batch", |cx| self.batch.check(cx));
        cx.at("retry", |cx| self.retry.check(cx));
        let mut mark = ContentDigest::of(format!("{self:?}").as_bytes());
        let destination = cx.at("to", |cx| match &self.to {
            ShipTo::Stdout => Some(Destination::Stdout),
            ShipTo::File(path) => cx.at("file", |cx| {
                let path = cx.place_of(path);
                if let Err(error) = AppendFile::probe(&path) {
                    cx.problem_help(
                        format!("cannot append to {}: {error}", path.display()),
                        "its folder must exist",
                    );
                }
                Some(Destination::File(path))
            }),
            ShipTo::Http(http) => cx.at("http", |cx| http.compile(&mut mark, cx)),
        });
        let destination = destination.filter(|_| cx.errors() == before)?;
        Some(Arc::new(Ship {
            name: name.into(),
            mark,
            destination,
            format: self.format,
            begin: self.begin,
            size: self.batch.size.len(),
            records: self.batch.records,
            wait: self.batch.wait.get(),
            delays: (self.retry.min_delay.get(), self.retry.max_delay.get()),
            metrics: Arc::clone(&cx.metrics),
        }))
    }
}

impl BatchConfig {
    fn check(&self, cx: &mut Compile) {
        if !(SIZE.0..=SIZE.1).contains(&self.size) {
            cx.at("size", |cx| {
                let text = format!("{} is not between {} and {}", self.size, SIZE.0, SIZE.1);
                cx.problem_help(text, "the default is 1MiB");
            });
        }
        if !(RECORDS.0..=RECORDS.1).contains(&self.records) {
            cx.at("records", |cx| {
                let text = format!(
                    "{} is not between {} and {}",
                    self.records, RECORDS.0, RECORDS.1
                );
                cx.problem_help(text, "the default is 1000");
            });
        }
        range("wait", self.wait, WAIT, cx);
    }
}

impl RetryConfig {
    fn check(&self, cx: &mut Compile) {
        range("min_delay", self.min_delay, DELAY, cx);
        range("max_delay", self.max_delay, DELAY, cx);
        if self.min_delay > self.max_delay {
            cx.at("max_delay", |cx| {
                cx.problem_help("the longest pause is shorter than the first", "raise it");
            });
        }
    }
}

fn range(key: &str, span: Span, bounds: (Span, Span), cx: &mut Compile) {
    if !(bounds.0..=bounds.1).contains(&span) {
        cx.at(key, |cx| {
            let text = format!("{span} is not between {} and {}", bounds.0, bounds.1);
            cx.problem_help(text, "choose a time between");
        });
    }
}

impl ShipHttp {
    fn compile(&self, mark: &mut ContentDigest, cx: &mut Compile) -> Option<Destination> {
        let before = cx.errors();
        range("timeout", self.timeout, TIMEOUT, cx);
        let target = Target::parse(&self.url)
            .map_err(|error| {
                cx.at("url", |cx| {
                    cx.problem_help(
                        error.to_string(),
                        "write it as in `https://logs.example.com/portcullis`; secrets belong into `token` or `headers`",
                    );
                });
            })
            .ok();
        let mut add = |bytes: &[u8]| {
            let bytes = ContentDigest::of(bytes);
            *mark = ContentDigest::of(&[mark.as_bytes(), bytes.as_bytes()].concat());
        };
        let mut headers = Vec::new();
        if let Some(token) = &self.token
            && let Some(secret) = cx.at("token", |cx| cx.secret(token))
        {
            add(secret.expose());
            let value = [b"Bearer ", secret.expose()].concat();
            match sensitive(&value) {
                Some(value) => headers.push((http::header::AUTHORIZATION, value)),
                None => cx.at("token", |cx| {
                    cx.problem("the token cannot stand in a header");
                }),
            }
        }
        cx.at("headers", |cx| {
            for (name, reference) in &self.headers {
                cx.at(name.clone(), |cx| {
                    let Some(header) = settable(name) else {
                        cx.key_problem(
                            format!("`{}` is no header to set", name.escape_debug()),
                            "write a name as in `x-api-key`; some headers are the gateway's own",
                        );
                        return;
                    };
                    let Some(secret) = cx.secret(reference) else {
                        return;
                    };
                    add(secret.expose());
                    if headers.iter().any(|(known, _)| *known == header) {
                        cx.key_problem("the header is set twice", "remove one");
                    }
                    match sensitive(secret.expose()) {
                        Some(value) => headers.push((header, value)),
                        None => cx.problem("the value cannot stand in a header"),
                    }
                });
            }
        });
        let mut authorities = Vec::new();
        for (index, path) in self.authorities.iter().enumerate() {
            let place = format!("authorities[{index}]");
            authorities.extend(cx.at(place, |cx| cx.read(path)));
        }
        authorities.iter().for_each(|pem| add(pem));
        let fetcher = Fetcher::for_deliveries(&authorities)
            .map_err(|error| {
                cx.at("authorities", |cx| {
                    cx.problem_help(error.to_string(), "name files with certificates in PEM");
                });
            })
            .ok();
        let (fetcher, target) = (fetcher?, target?);
        (cx.errors() == before).then(|| {
            Destination::Http(Server {
                fetcher,
                target,
                headers,
                timeout: self.timeout.get(),
                gzip: self.gzip,
                body: self.body,
            })
        })
    }
}

fn sensitive(value: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The name of a header that may be set.
fn settable(name: &str) -> Option<HeaderName> {
    /// What belongs to the connection or to what is posted.
    const OURS: [&str; 10] = [
        "host",
        "connection",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "te",
        "upgrade",
        "expect",
        "accept-encoding",
    ];
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    (!OURS.contains(&name.as_str())).then_some(name)
}
