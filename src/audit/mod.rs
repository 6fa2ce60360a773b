//! One record per request, written when the last byte has left: also on hang-up and panic.
//!
//! A [`Record`] gathers what the stages found out and writes itself when it is dropped, so no path
//! through the program can forget it. It becomes one line of JSON on a page of its worker's; a thread
//! of its own takes the pages every 20 ms and hands them to the sink. That is what a crash of the
//! process can lose; an orderly end writes everything.
//!
//! A record is complete by construction: with `input`, the whole document that the policy could see, its
//! `answer`, and the revisions of rules and data, the decision can be made again, byte for byte. All
//! that was not deterministic is in it: the one clock reading (`received_at_ns`) and the request's id,
//! which seeds `rand` and `uuid`.
//!
//! No credential is ever in a record: those headers that carry one are in no document
//! ([`CREDENTIALS`](crate::authz::input::CREDENTIALS) and the policy's `hidden_headers`), and headers
//! that look as if they did are masked, also in what a policy answers. Values of queries are masked and bodies left out unless the
//! configuration says otherwise; `masked` and `erased` name what is missing.
//!
//! A stream that is judged again is still one record: policy, answer and input are those of the
//! decision that opened it, and when it was cut for a later no, `outcome` and `detail` say so.
//!
//! # The record, version 2
//!
//! Every member without a condition is always there; what is not known is `null`. Lines are ASCII: everything else is
//! escaped. Texts of the client are cut at the length in brackets, with `[+N bytes]` as the mark.
//!
//! | member | meaning |
//! | --- | --- |
//! | `version` | 2 |
//! | `time` | when the head of the request was read, RFC 3339, milliseconds, UTC |
//! | `received_at_ns` | the same in nanoseconds since 1970: what the policy was told |
//! | `request_id` | as in the answer's `request_id` |
//! | `decision_id` | as in the answer's `decision_id` and in the assertion |
//! | `trace_id`, `span_id` | W3C ids of the trace, and of the gateway's own span |
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
//! | `policy` | `name`, `revision`, `entrypoint`, `data` (digest of the data alone: 16 hex digits of SHA-256 over their canonical JSON), `candidate` (that decided in its place, or `null`), `bundles` (names with revisions; only when it uses any), `cached` (whether the answer was given before, to an equal question) |
//! | `decision` | `allow`, `deny`, or `null` when it did not come to that |
//! | `reason` | when refused, the stable code of why, whichever stage refused: `token.expired`, `orders.not_owner`, `policy.undefined`, `rate_limited`, …; else the policy's reason (256) |
//! | `refusal` | `code`, as in the answer, and `detail` (512), for the operator alone; `null` when not refused |
//! | `status` | of the answer; `null` when none was sent |
//! | `upstream`, `endpoint`, `attempts` | where it was forwarded, and how often that was tried |
//! | `bytes_in`, `bytes_out` | bytes of the bodies |
//! | `duration_ms` | `decision`, `head` (of the answer), `total`: milliseconds since `time`; `policy`: of the evaluation alone, `null` when there was none |
//! | `outcome` | `complete`, `client_gone`, `upstream_broke`, of tunnels also `idle_timeout`, `total_timeout`, `drained`, `protocol_violation`; `panic` |
//! | `detail` | what broke the answer's body (256) |
//! | `metadata` | only when the policy gave some: its `dynamic_metadata`, an object (4096) |
//! | `why` | only of denials, as far as it was found out: `rules` that held, and `failed`, the first condition that failed on the nearest way to yes (4096) |
//! | `edits` | only when the policy changed the request: the names of `headers`, `headers_removed`, `parameters`, `parameters_removed` |
//! | `answer_left_out`, `input_left_out` | only when it is: why `answer` or `input` is `null` although there was one |
//! | `masked`, `erased` | only when there are any: JSON Pointers into the record (`/input/request/query/token/0`) to what is masked, and to what was taken out |
//! | `answer` | what the policy's entry point gave, canonical JSON; `null` for nothing (undefined, an error, no policy) |
//! | `input` | the whole document that the policy's kind of input shows, canonical JSON; `null` when no policy was asked |

pub mod event;
mod follow;
mod ledger;
mod line;
mod mask;
mod mode;
mod queue;
pub mod read;
pub mod recent;
mod record;
mod ship;
mod sink;
mod stage;
mod texts;
pub mod traces;
pub mod why;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::ledger::{Finding, KeepConfig, LedgerConfig, PublicKey, Report, verify};
pub use self::mask::RulesConfig;
pub use self::mode::{RecordConfig, SampleConfig, WhenFull};
pub use self::record::{OpenRecord, Record};
pub use self::ship::{
    BatchConfig, RetryConfig, ShipBegin, ShipBody, ShipConfig, ShipFormat, ShipHttp, ShipStatus,
    ShipTo,
};
pub use self::sink::{AuditSink, LeftOut};
pub use self::stage::{Passed, Place, Stage};
pub use self::texts::beside_ledger;

use self::event::Labels;
use self::ledger::Pen;
use self::mask::{Masker, Rules};
use self::queue::Queue;
use self::recent::{Keeper, Recent};
use self::ship::Ships;
use self::sink::{AppendFile, Standard};
use self::stage::Stages;
use self::texts::Texts;
use self::why::Reasons;
use crate::authz::Policy;
use crate::authz::told::{Queries, Telling};
use crate::authz::workbench::why::Text;
use crate::metrics::Metrics;
use crate::schema::{Compile, Named, Size, Span};

/// The smallest queue: below it, ordinary bursts would lose records.
const LEAST_QUEUE: usize = 16;

/// The largest queue. Lines are about 2 KiB with their input, and 20 KiB and more with long headers; when
/// more than 4 KiB for each place wait (see `queue`), further ones come without: 4 GiB and what lines
/// without input take.
const LARGEST_QUEUE: usize = 1_048_576;

/// Bounds of `patience`.
const PATIENCE: (Span, Span) = (Span::millis(10), Span::seconds(30));
/// Least and most that a record holds of a policy's input.
const INPUT_LIMIT: (Size, Size) = (Size::kib(1), Size::mib(1));

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
    /// requests away with 503 until there is room, so that nothing happens unrecorded; `block` lets them
    /// wait for it first; `spill` is `refuse` with a ledger, which has room while the disk has. A route
    /// may say otherwise with its `record`.
    pub when_full: WhenFull,
    /// How long a request waits for room with `block`, `10ms` to `30s`.
    pub patience: Span,
    /// Where the records of the ledger go besides, by name, at most 8: each at least once and in their
    /// order, however long a sink is away. Needs `sink: { ledger: … }`.
    pub ship: Named<ShipConfig>,
    /// What becomes of queries, which often hold secrets: `keys` keeps the names and masks the
    /// values, `full` keeps everything, `none` nothing.
    pub query: QueryMode,
    /// Whether records hold the whole document that the policy could see, so that a decision can be
    /// explained and made again: `full` (default), or `none`.
    pub input: InputMode,
    /// Longest such document, `1KiB` to `1MiB`; the record of a longer one says that it was left out.
    pub input_limit: Size,
    /// Whether these documents hold request bodies, as far as a policy is shown them. Default `false`.
    pub bodies: bool,
    /// Rules in Rego about which records are kept, and what is masked in them. Default: all records, as
    /// they are.
    pub rules: Option<RulesConfig>,
    /// How many of the last records stay in memory, to be looked at through the admin listener
    /// (`/decisions`, `portcullis tail`, `portcullis explain`): at most 65,536, and 16 MiB of them; `0`
    /// keeps none.
    pub recent: usize,
    /// Whether denials get the condition that failed into their record, as the member `why`. That takes
    /// at most 5 % of one core, none of it from requests; what is left without can be explained later.
    pub why: bool,
}

/// Whether records hold what the policy could see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InputMode {
    /// All of it, but for what is masked.
    Full,
    /// Nothing.
    None,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            sink: SinkConfig::Stdout,
            queue: 65_536,
            when_full: WhenFull::Drop,
            patience: Span::seconds(1),
            ship: Named::new(),
            query: QueryMode::Keys,
            input: InputMode::Full,
            input_limit: Size::kib(16),
            bodies: false,
            rules: None,
            recent: recent::USUAL,
            why: true,
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
    /// What records hold of a policy's input.
    fn telling(&self) -> Option<Telling> {
        (self.input == InputMode::Full).then(|| Telling {
            queries: match self.query {
                QueryMode::Keys => Queries::Names,
                QueryMode::Full => Queries::Whole,
                QueryMode::None => Queries::Nothing,
            },
            bodies: self.bodies,
            limit: self.input_limit.len(),
        })
    }

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
        let ships = cx.at("ship", |cx| self.ships(cx));
        let marks = |ships: &Ships| ships.values().map(|ship| ship.mark()).collect::<Vec<_>>();
        let rules = cx.at("rules", |cx| {
            let before = previous.and_then(|audit| audit.rules.as_ref());
            self.rules
                .as_ref()
                .and_then(|rules| rules.compile(before, cx))
        });
        let same_rules = |audit: &Audit| match (&audit.rules, &rules) {
            (None, None) => true,
            (Some(before), Some(rules)) => before.are(rules),
            (None, Some(_)) | (Some(_), None) => false,
        };
        if let Some(previous) = previous
            && previous.config == self
            && previous.key == key
            && same_rules(previous)
            && marks(&previous.ships) == marks(&ships)
            && cx.errors() == before
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
        if !(INPUT_LIMIT.0..=INPUT_LIMIT.1).contains(&self.input_limit) {
            cx.at("input_limit", |cx| {
                cx.problem_help(
                    "the longest input of a record is out of range",
                    format!("between `{}` and `{}`", INPUT_LIMIT.0, INPUT_LIMIT.1),
                );
            });
        }
        if self.input == InputMode::None && self.bodies {
            cx.at("bodies", |cx| {
                cx.problem_help(
                    "bodies are part of `input`, of which nothing is kept",
                    "leave one of them out",
                );
            });
        }
        if self.recent > recent::LARGEST {
            cx.at("recent", |cx| {
                cx.problem_help(
                    format!("{} is more than {}", self.recent, recent::LARGEST),
                    "the default is 4096 records; what should be kept for longer needs a sink",
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
        cx.at("when_full", |cx| self.when_full.check(&self, cx));
        if !(PATIENCE.0..=PATIENCE.1).contains(&self.patience) {
            cx.at("patience", |cx| {
                let text = format!(
                    "{} is not between {} and {}",
                    self.patience, PATIENCE.0, PATIENCE.1
                );
                cx.problem_help(text, "the default is 1s");
            });
        }
        (cx.errors() == before).then(|| {
            let mut audit = Audit::new(self, Arc::clone(&cx.metrics));
            audit.key = key;
            audit.ships = ships;
            if let Some(rules) = rules {
                let labels = Labels::new(audit.recent.instance(), []);
                let metrics = Arc::clone(&audit.metrics);
                audit.add_stage(Box::new(Masker::new(&rules, labels, metrics)));
                audit.rules = Some(rules);
            }
            if let Some(previous) = previous {
                audit.recent = Arc::clone(&previous.recent);
                audit.texts = Arc::clone(&previous.texts);
            }
            if audit.config.why {
                let metrics = Arc::clone(&audit.metrics);
                let reasons = Reasons::new(Arc::clone(&audit.texts), metrics);
                audit.add_stage(Box::new(reasons));
            }
            if audit.config.recent > 0 {
                audit.add_stage(Box::new(Keeper(Arc::clone(&audit.recent))));
            }
            Arc::new(audit)
        })
    }

    fn ships(&self, cx: &mut Compile) -> Ships {
        if !self.ship.is_empty() && !matches!(self.sink, SinkConfig::Ledger(_)) {
            cx.problem_help(
                "records are shipped from a ledger, and there is none",
                "add `sink: { ledger: { folder: audit } }` beside it: what a sink has not taken is kept there",
            );
        }
        if let SinkConfig::Ledger(ledger) = &self.sink
            && !self.ship.is_empty()
            && ledger.keep.size.is_none()
        {
            cx.warning(
                "the ledger has no bound: while a sink is away it grows until the disk is full",
                "set `keep: { size: 20GiB }` in `sink.ledger`: what is removed unshipped is counted and written down",
            );
        }
        if let SinkConfig::Ledger(ledger) = &self.sink {
            for (name, record) in ship::orphans(&ledger.folder, self.ship.keys()) {
                cx.warning(
                    format!(
                        "the ledger has the cursor of a sink `{name}`, which is configured no more and got as \
                         far as record {record}"
                    ),
                    format!(
                        "if it has another name now, stop the gateway and rename `ship/{name}.json` in {}, or it \
                         gets everything once more; if it is gone for good, remove that file",
                        ledger.folder.display()
                    ),
                );
            }
        }
        if self.ship.len() > ship::MOST {
            cx.problem_help(
                format!(
                    "there are {} sinks, and at most {}",
                    self.ship.len(),
                    ship::MOST
                ),
                "let one of them hand records on",
            );
        }
        let mut ships = Ships::new();
        for (name, config) in &self.ship {
            cx.at(name.clone(), |cx| {
                let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                if name.is_empty() || name.len() > 64 || !name.bytes().all(known) {
                    cx.key_problem(
                        "this cannot be the name of a sink",
                        "use up to 64 letters, digits, `-` and `_`: a file is called so",
                    );
                }
                if let Some(ship) = config.compile(name, cx) {
                    ships.insert(name.clone(), ship);
                }
            });
        }
        ships
    }
}

/// The ledger of a folder as a sink, for [`Audit::to_sink`] and for whoever writes records of his own.
///
/// # Errors
/// Why nothing can be written there.
pub fn ledger(config: &LedgerConfig) -> std::io::Result<Box<dyn AuditSink>> {
    let pen = Pen::new(config, &Ships::new())?;
    pen.adopt(&Ships::new(), &Labels::new("", []));
    Ok(Box::new(pen))
}

/// Where records go.
#[derive(Debug)]
pub struct Audit {
    config: AuditConfig,
    /// What of the configuration is for the input; `None` when none is kept.
    telling: Option<Telling>,
    /// Thumbprint of the key that signs a ledger: the file may hold another one than before.
    key: Option<String>,
    /// Where the records of a ledger go besides.
    ships: Ships,
    metrics: Arc<Metrics>,
    rules: Option<Rules>,
    /// What becomes of lines before the sink gets them.
    stages: Stages,
    /// The last records; the same object in every configuration of a process.
    recent: Arc<Recent>,
    /// The policies behind the records; likewise.
    texts: Arc<Texts>,
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
            telling: config.telling(),
            recent: Recent::new(config.recent),
            texts: Arc::default(),
            config,
            key: None,
            ships: Ships::new(),
            metrics,
            rules: None,
            stages: Stages::default(),
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
        let stages = Stages::default();
        let queue = Queue::begin(sink, stages.clone(), config.queue, Arc::clone(&metrics))?;
        Ok(Self {
            telling: config.telling(),
            recent: Recent::new(0),
            texts: Arc::default(),
            config,
            key: None,
            ships: Ships::new(),
            metrics,
            rules: None,
            stages,
            queue: OnceLock::from(Some(queue)),
            pen: OnceLock::new(),
        })
    }

    /// Hands every line to this stage before the sink gets it: from now on, so before the first
    /// record when it is to see all.
    pub fn add_stage(&self, stage: Box<dyn Stage>) {
        self.stages.add(stage);
    }

    /// The last records.
    pub fn recent(&self) -> &Arc<Recent> {
        &self.recent
    }

    /// These policies decide from now on: their texts are kept, to tell why.
    pub fn decided_by<'p>(&self, policies: impl Iterator<Item = &'p Arc<Policy>>) {
        let ledger = match &self.config.sink {
            SinkConfig::Ledger(ledger) => Some(ledger.folder.as_path()),
            SinkConfig::Stdout | SinkConfig::Stderr | SinkConfig::None | SinkConfig::File(_) => {
                None
            }
        };
        self.texts.in_force(policies, ledger);
    }

    /// The text of this revision of a policy, if it is still to be had. May read a file.
    pub fn text(&self, policy: &str, revision: &str) -> Option<Arc<Text>> {
        self.texts.find(policy, revision)
    }

    /// Whether records go nowhere, by the configuration.
    pub fn is_off(&self) -> bool {
        self.config.sink == SinkConfig::None
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
            let (stages, metrics) = (self.stages.clone(), Arc::clone(&self.metrics));
            Queue::begin(sink, stages, self.config.queue, metrics)
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

    /// This configuration is in force from now on, and with it the key and bounds of its ledger, and
    /// the sinks behind that.
    pub fn adopt(&self) {
        self.recent.bound(self.config.recent);
        if let Some(pen) = self.pen.get() {
            pen.adopt(&self.ships, &Labels::new(self.recent.instance(), []));
        }
    }

    /// What is known of the sinks behind the ledger.
    pub fn shipping(&self) -> BTreeMap<String, ShipStatus> {
        self.pen
            .get()
            .map_or_else(BTreeMap::new, |pen| pen.fleet().status())
    }

    /// Whether a ledger that is not the one of `current` has records that a sink has not got yet.
    pub fn left_behind(&self, current: &Self) -> bool {
        self.pen.get().is_some_and(|pen| {
            current.pen.get().is_none_or(|other| !pen.is_same(other))
                && pen
                    .fleet()
                    .status()
                    .values()
                    .any(|ship| ship.behind_records > 0)
        })
    }

    /// Ships what is left in the ledger, for at most so long; a sink that does not take it is not
    /// waited for. Gives the sinks that are behind, and by how many records: nothing is lost, the next
    /// start goes on there. Blocks: for the end of the program.
    pub fn deliver(&self, patience: Duration) -> Vec<(String, u64)> {
        let Some(pen) = self.pen.get() else {
            return Vec::new();
        };
        let behind = pen.fleet().finish(patience);
        // What became of records on the way is signed, too.
        pen.rest();
        behind
    }

    fn pen(&self, config: &LedgerConfig) -> std::io::Result<Pen> {
        if let Some(pen) = self.pen.get() {
            return Ok(pen.clone());
        }
        let pen = Pen::new(config, &self.ships)?;
        Ok(self.pen.get_or_init(|| pen).clone())
    }

    /// Whether the sink failed at the last try.
    pub fn failing(&self) -> bool {
        self.queue
            .get()
            .and_then(Option::as_ref)
            .is_some_and(Queue::failing)
    }

    /// Whether requests may be taken: `false` only when nothing may happen unrecorded and there is no
    /// room. For the readiness page; a request asks its own record, see [`Record::room`].
    pub fn accepting(&self) -> bool {
        self.config.when_full.loses() || self.queue().is_some_and(Queue::has_room)
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
