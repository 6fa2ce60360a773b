//! One record per request, written when the last byte has left: also on hang-up and panic.
//!
//! A [`Record`] gathers what the stages found out and writes itself when it is dropped, so no path
//! through the program can forget it. It becomes one line of JSON on a page of its worker's; a thread
//! of its own takes the pages every 20 ms and hands them to the sink. That is what a crash of the
//! process can lose; an orderly end writes everything. No credential, cookie or header value is ever in a record, but the
//! client's `User-Agent`. Queries are masked unless the configuration says otherwise.
//!
//! # The record, version 1
//!
//! Every member is always there; what is not known is `null`. Lines are ASCII: everything else is
//! escaped. Texts of the client are cut at the length in brackets, with `[+N bytes]` as the mark.
//!
//! | member | meaning |
//! | --- | --- |
//! | `version` | 1 |
//! | `time` | when the head of the request was read, RFC 3339, milliseconds, UTC |
//! | `request_id` | as in the answer's `request_id` |
//! | `decision_id` | as in the answer's `decision_id` and in the assertion |
//! | `trace_id` | W3C trace id |
//! | `listener` | the listener's name |
//! | `client` | the client's address after the rules for trusted proxies |
//! | `peer` | address and port of the connection |
//! | `tls` | `version`, `server_name` (253), `certificate_sha256`; `null` without TLS |
//! | `method` | (32) |
//! | `host` | name and port asked for (260) |
//! | `path` | the canonical path; the path as sent when it has none (2048) |
//! | `query` | by `audit.query`: names with masked values, as sent, or `null` (1024) |
//! | `protocol` | `HTTP/1.0`, `HTTP/1.1`, `HTTP/2` |
//! | `user_agent` | (256) |
//! | `route` | the route's name |
//! | `caller` | `method`, `issuer` (256), `subject` (256), `client` (256), `token_id` (128); `null` when nobody was authenticated, `{"method": "anonymous", …}` where that is allowed |
//! | `policy` | `name`, `revision` |
//! | `decision` | `allow`, `deny`, or `null` when it did not come to that |
//! | `reason` | when refused, the stable code of why, whichever stage refused: `token.expired`, `orders.not_owner`, `policy.undefined`, `rate_limited`, …; else the policy's reason (256) |
//! | `refusal` | `code`, as in the answer, and `detail` (512), for the operator alone; `null` when not refused |
//! | `status` | of the answer; `null` when none was sent |
//! | `upstream`, `endpoint`, `attempts` | where it was forwarded, and how often that was tried |
//! | `bytes_in`, `bytes_out` | bytes of the bodies |
//! | `duration_ms` | `decision`, `head` (of the answer), `total`: milliseconds since `time` |
//! | `outcome` | `complete`, `client_gone`, `upstream_broke`, of tunnels also `idle_timeout`, `total_timeout`, `drained`, `protocol_violation`; `panic` |
//! | `detail` | what broke the answer's body (256) |
//! | `metadata` | only when the policy gave some: its `dynamic_metadata`, an object (4096) |
//! | `edits` | only when the policy changed the request: the names of `headers`, `headers_removed`, `parameters`, `parameters_removed` |

mod follow;
mod ledger;
mod line;
mod queue;
mod record;
mod sink;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::ledger::{Finding, KeepConfig, LedgerConfig, PublicKey, Report, verify};
pub use self::record::{OpenRecord, Record};
pub use self::sink::AuditSink;

use self::ledger::Pen;
use self::queue::Queue;
use self::sink::{AppendFile, Standard};
use crate::metrics::Metrics;
use crate::schema::Compile;

/// The smallest queue: below it, ordinary bursts would lose records.
const LEAST_QUEUE: usize = 16;

/// The largest queue; with lines of 1 KiB, about 1 GiB.
const LARGEST_QUEUE: usize = 1_048_576;

/// The `audit` section: one record per request, as a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// Where records go: `stdout` (default), `stderr`, `{ file: PATH }`, `{ ledger: … }`, or `none`,
    /// which must be said. A file is appended to, and opened anew within a second when it was moved
    /// away. Its path is relative to the working directory. A ledger is a folder of files in which
    /// `portcullis audit verify` finds every change.
    pub sink: SinkConfig,
    /// How many records may be open or waiting, 16 to 1,048,576.
    pub queue: usize,
    /// What happens when so many are: `drop` loses records and counts them, `refuse` turns new
    /// requests away with 503 until there is room, so that nothing happens unrecorded.
    pub when_full: WhenFull,
    /// What becomes of queries, which often hold secrets: `keys` keeps the names and masks the
    /// values, `full` keeps everything, `none` nothing.
    pub query: QueryMode,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            sink: SinkConfig::Stdout,
            queue: 65_536,
            when_full: WhenFull::Drop,
            query: QueryMode::Keys,
        }
    }
}

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "SinkShape")]
pub enum SinkConfig {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Nowhere.
    None,
    /// The end of a file.
    File(PathBuf),
    /// A folder of chained and signed records.
    Ledger(LedgerConfig),
}

/// How the sink is written: a word, or a mapping with one key.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum SinkShape {
    Word(SinkWord),
    Place(SinkPlace),
}

#[derive(Clone, Copy, JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum SinkWord {
    Stdout,
    Stderr,
    None,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum SinkPlace {
    /// A file that is appended to.
    File(PathBuf),
    /// A folder of chained and signed records.
    Ledger(LedgerConfig),
}

impl From<SinkShape> for SinkConfig {
    fn from(shape: SinkShape) -> Self {
        match shape {
            SinkShape::Word(SinkWord::Stdout) => Self::Stdout,
            SinkShape::Word(SinkWord::Stderr) => Self::Stderr,
            SinkShape::Word(SinkWord::None) => Self::None,
            SinkShape::Place(SinkPlace::File(file)) => Self::File(file),
            SinkShape::Place(SinkPlace::Ledger(ledger)) => Self::Ledger(ledger),
        }
    }
}

impl Serialize for SinkConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Not derived: YAML would write a tag (`!file`).
        match self {
            Self::Stdout => serializer.serialize_str("stdout"),
            Self::Stderr => serializer.serialize_str("stderr"),
            Self::None => serializer.serialize_str("none"),
            Self::File(file) => serializer.collect_map([("file", file)]),
            Self::Ledger(ledger) => serializer.collect_map([("ledger", ledger)]),
        }
    }
}

/// Not `untagged`, which would not say what is wrong within a mapping.
impl<'de> Deserialize<'de> for SinkConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrPlace;

        impl<'de> Visitor<'de> for WordOrPlace {
            type Value = SinkShape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`stdout`, `stderr`, `none`, `{ file: PATH }` or `{ ledger: … }`")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<SinkShape, E> {
                match word {
                    "stdout" => Ok(SinkShape::Word(SinkWord::Stdout)),
                    "stderr" => Ok(SinkShape::Word(SinkWord::Stderr)),
                    "none" => Ok(SinkShape::Word(SinkWord::None)),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SinkShape, A::Error> {
                let place = SinkPlace::deserialize(MapAccessDeserializer::new(&mut map))?;
                if map.next_key::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::custom("there is one place for records, not two"));
                }
                Ok(SinkShape::Place(place))
            }
        }
        deserializer.deserialize_any(WordOrPlace).map(Self::from)
    }
}

/// What happens when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// Records are lost and counted.
    Drop,
    /// New requests are turned away.
    Refuse,
}

/// What becomes of queries in records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueryMode {
    /// Names stay, values are masked.
    Keys,
    /// Everything stays.
    Full,
    /// Nothing stays.
    None,
}

impl AuditConfig {
    /// Compiles the section; takes over `previous` (open file, queue) when nothing changed.
    pub fn compile(
        mut self,
        previous: Option<&Arc<Audit>>,
        cx: &mut Compile,
    ) -> Option<Arc<Audit>> {
        let before = cx.errors();
        let key = match &mut self.sink {
            SinkConfig::Ledger(ledger) => {
                cx.at("sink", |cx| cx.at("ledger", |cx| ledger.check(cx)))
            }
            SinkConfig::Stdout | SinkConfig::Stderr | SinkConfig::None | SinkConfig::File(_) => {
                None
            }
        };
        if let Some(previous) = previous
            && previous.config == self
            && previous.key == key
        {
            return Some(Arc::clone(previous));
        }
        if !(LEAST_QUEUE..=LARGEST_QUEUE).contains(&self.queue) {
            cx.at("queue", |cx| {
                cx.problem_help(
                    format!(
                        "{} is not between {LEAST_QUEUE} and {LARGEST_QUEUE}",
                        self.queue
                    ),
                    "the default is 65536 records",
                );
            });
        }
        if let SinkConfig::File(path) = &self.sink
            && let Err(error) = AppendFile::probe(path)
        {
            cx.at("sink", |cx| {
                cx.problem_help(
                    format!("cannot append to {}: {error}", path.display()),
                    "the path is relative to the working directory; its folder must exist",
                );
            });
        }
        if self.sink == SinkConfig::None && self.when_full == WhenFull::Refuse {
            cx.at("when_full", |cx| {
                cx.problem_help(
                    "`refuse` promises that nothing happens unrecorded, but there is no sink",
                    "choose a sink, or remove `when_full`",
                );
            });
        }
        (cx.errors() == before).then(|| {
            let mut audit = Audit::new(self, Arc::clone(&cx.metrics));
            audit.key = key;
            Arc::new(audit)
        })
    }
}

/// Where records go.
#[derive(Debug)]
pub struct Audit {
    config: AuditConfig,
    /// Thumbprint of the key that signs a ledger: the file may hold another one than before.
    key: Option<String>,
    metrics: Arc<Metrics>,
    /// Begun by the first record, so that checking a configuration starts no thread.
    queue: OnceLock<Option<Queue>>,
    /// The sink, when it is a ledger.
    pen: OnceLock<Pen>,
}

impl Default for Audit {
    /// An audit that keeps nothing.
    fn default() -> Self {
        let config = AuditConfig {
            sink: SinkConfig::None,
            ..AuditConfig::default()
        };
        Self::new(config, Arc::default())
    }
}

impl Audit {
    fn new(config: AuditConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            config,
            key: None,
            metrics,
            queue: OnceLock::new(),
            pen: OnceLock::new(),
        }
    }

    /// An audit that hands its lines to this sink, whatever `config` names.
    ///
    /// # Errors
    /// The system's, when there can be no further thread.
    pub fn to_sink(
        sink: Box<dyn AuditSink>,
        config: AuditConfig,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let queue = Queue::begin(sink, config.queue, Arc::clone(&metrics))?;
        Ok(Self {
            config,
            key: None,
            metrics,
            queue: OnceLock::from(Some(queue)),
            pen: OnceLock::new(),
        })
    }

    fn queue(&self) -> Option<&Queue> {
        let begin = || {
            let sink: Box<dyn AuditSink> = match &self.config.sink {
                SinkConfig::None => return None,
                SinkConfig::Stdout => Box::new(Standard::Output),
                SinkConfig::Stderr => Box::new(Standard::Error),
                SinkConfig::File(path) => Box::new(AppendFile::new(path.clone())),
                SinkConfig::Ledger(ledger) => match self.pen(ledger) {
                    Ok(pen) => Box::new(pen),
                    Err(error) => {
                        tracing::error!(%error, "no audit ledger");
                        return None;
                    }
                },
            };
            Queue::begin(sink, self.config.queue, Arc::clone(&self.metrics))
                .inspect_err(|error| tracing::error!(%error, "no thread for audit records"))
                .ok()
        };
        self.queue.get_or_init(begin).as_ref()
    }

    /// Opens the sink, so that a file that cannot be written is known before the first request.
    ///
    /// # Errors
    /// Why records cannot be kept.
    pub fn begin(&self) -> std::io::Result<()> {
        if let SinkConfig::File(path) = &self.config.sink
            && let Err(error) = AppendFile::new(path.clone()).refresh()
        {
            let text = format!("cannot append audit records to {}: {error}", path.display());
            return Err(std::io::Error::new(error.kind(), text));
        }
        if let SinkConfig::Ledger(ledger) = &self.config.sink {
            self.pen(ledger).map_err(|error| {
                let text = format!("no audit ledger in {}: {error}", ledger.folder.display());
                std::io::Error::new(error.kind(), text)
            })?;
        }
        if self.config.sink != SinkConfig::None && self.queue().is_none() {
            return Err(std::io::Error::other("no thread for audit records"));
        }
        Ok(())
    }

    /// This configuration is in force from now on, and with it the key and bounds of its ledger.
    pub fn adopt(&self) {
        if let Some(pen) = self.pen.get() {
            pen.adopt();
        }
    }

    fn pen(&self, config: &LedgerConfig) -> std::io::Result<Pen> {
        if let Some(pen) = self.pen.get() {
            return Ok(pen.clone());
        }
        let pen = Pen::new(config)?;
        Ok(self.pen.get_or_init(|| pen).clone())
    }

    /// Whether the sink failed at the last try.
    pub fn failing(&self) -> bool {
        self.queue
            .get()
            .and_then(Option::as_ref)
            .is_some_and(Queue::failing)
    }

    /// Whether requests may be taken: `false` only with `when_full: refuse` and no room. For the
    /// readiness page; a request asks its own record, see [`Record::has_room`].
    pub fn accepting(&self) -> bool {
        self.config.when_full == WhenFull::Drop || self.queue().is_some_and(Queue::has_room)
    }

    /// How many records wait for the sink.
    pub fn waiting(&self) -> usize {
        self.queue
            .get()
            .and_then(Option::as_ref)
            .map_or(0, Queue::waiting)
    }

    /// Waits until the sink has taken every record that is queued; `false` when `patience` ended
    /// first. Blocks: for the end of the program.
    pub fn close(&self, patience: Duration) -> bool {
        let queue = self.queue.get().and_then(Option::as_ref);
        let done = queue.is_none_or(|queue| queue.drain(patience));
        if let Some(pen) = self.pen.get() {
            pen.rest();
        }
        done
    }
}

#[cfg(test)]
mod tests;
