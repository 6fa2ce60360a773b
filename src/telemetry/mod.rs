//! Logs and traces: where they go, and which requests are traced.
//!
//! Metrics live in [`crate::metrics`], records in [`crate::audit`]. Nothing here ever delays a
//! request: spans go into a bounded queue and are lost, and counted, when it is full.

mod context;
mod export;
mod logging;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

pub use self::context::{Hex, NotHex, SpanId, TraceContext, TraceId};
pub use self::export::Finished;
pub use self::logging::{LogConfig, LogFormat, LoggingFailed, init_logging};

use self::export::{Exporter, Target};
use crate::metrics::Metrics;
use crate::schema::Compile;
use crate::tls::client::ClientTlsConfig;

/// The `telemetry` section: logs and traces.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// The program's own log, on standard error. Read once, at the start.
    pub log: LogConfig,
    /// Where spans go. Without it none are made; the callers' trace context is handed on anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingConfig>,
}

/// Spans by OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TracingConfig {
    /// The collector's base, `http://HOST:PORT` or `https://HOST:PORT`; spans are posted as JSON to
    /// `/v1/traces` below it. The port is 4318 when none is given.
    pub endpoint: String,
    /// Whom to trust and what to present, for an `https://` endpoint.
    #[serde(default)]
    pub tls: ClientTlsConfig,
    /// The share of requests that are recorded, 0 to 1.
    #[serde(default = "default_ratio")]
    pub sample_ratio: f64,
    /// Whether a caller's `sampled` flag makes us record. Off by default: anybody could fill the
    /// collector with it. Switch it on behind a proxy of one's own that samples.
    #[serde(default)]
    pub follow_parent: bool,
    /// `service.name` of the spans.
    #[serde(default = "default_service")]
    pub service_name: String,
}

const fn default_ratio() -> f64 {
    0.01
}

fn default_service() -> String {
    "portcullis".to_owned()
}

impl TelemetryConfig {
    /// Compiles the section; takes over `previous` with its exporter when nothing changed.
    pub fn compile(
        self,
        previous: Option<&Arc<Tracing>>,
        cx: &mut Compile,
    ) -> Option<Arc<Tracing>> {
        let before = cx.errors();
        cx.at("log", |cx| self.log.check(cx));
        // With TLS there are files behind the section, which may have changed.
        let no_files = |config: &TracingConfig| config.tls == ClientTlsConfig::default();
        if let Some(previous) = previous
            && previous.config == self.tracing
            && self.tracing.as_ref().is_none_or(no_files)
            && cx.errors() == before
        {
            return Some(Arc::clone(previous));
        }
        let sampling = match &self.tracing {
            None => None,
            Some(config) => cx.at("tracing", |cx| {
                if !(0.0..=1.0).contains(&config.sample_ratio) {
                    cx.at("sample_ratio", |cx| {
                        cx.problem_help(
                            format!("{} is not between 0 and 1", config.sample_ratio),
                            "0.01 records one request in a hundred",
                        );
                    });
                }
                let target = Target::compile(&config.endpoint, &config.tls, cx)?;
                Some(Sampling {
                    threshold: threshold(config.sample_ratio),
                    follow_parent: config.follow_parent,
                    exporter: Exporter::new(target, &config.service_name, Arc::clone(&cx.metrics)),
                })
            }),
        };
        (cx.errors() == before).then(|| {
            Arc::new(Tracing {
                config: self.tracing,
                sampling,
                metrics: Arc::clone(&cx.metrics),
                active: AtomicBool::new(false),
            })
        })
    }
}

/// The ratio as a bound on the upper 32 bits of a span id.
fn threshold(ratio: f64) -> u64 {
    const WHOLE: u64 = 1 << 32;
    // `as` would do, but a bound found by halving needs no cast and is exact enough.
    let (mut low, mut high) = (0, WHOLE);
    while low < high {
        let middle = low + (high - low) / 2;
        let share = f64::from(u32::try_from(middle).unwrap_or(u32::MAX)) / 4_294_967_296.0;
        if share < ratio {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Whether and where traces go.
#[derive(Debug, Default)]
pub struct Tracing {
    config: Option<TracingConfig>,
    sampling: Option<Sampling>,
    metrics: Arc<Metrics>,
    active: AtomicBool,
}

#[derive(Debug)]
struct Sampling {
    threshold: u64,
    follow_parent: bool,
    exporter: Exporter,
}

impl Sampling {
    /// Our own choice, made by the random id of our own span: a caller chooses the trace's id, and
    /// so could choose to be recorded.
    fn chooses(&self, span_id: &SpanId) -> bool {
        self.threshold > 0 && span_id.upper().is_some_and(|upper| upper < self.threshold)
    }
}

impl Tracing {
    /// Continues the caller's trace (`traceparent`, `tracestate`) or begins one. The `sampled` flag
    /// that travels on is set when the caller's was, or when we record this request.
    pub fn context(&self, headers: &http::HeaderMap) -> TraceContext {
        TraceContext::of(headers, |span_id| {
            self.sampling
                .as_ref()
                .is_some_and(|sampling| sampling.chooses(span_id))
        })
    }

    /// Whether a span is made of this request.
    pub(crate) fn records(&self, trace: &TraceContext) -> bool {
        self.sampling.as_ref().is_some_and(|sampling| {
            sampling.chooses(&trace.span_id)
                || (sampling.follow_parent && trace.parent_id.is_some() && trace.sampled)
        })
    }

    /// Queues the spans of a request; lost, and counted, when the queue is full.
    pub(crate) fn export(&self, finished: Finished) {
        if let Some(sampling) = &self.sampling
            && !sampling.exporter.queue(finished)
        {
            self.metrics.spans(1, false);
        }
    }

    /// Starts sending spans on the control thread; ends when the section is dropped. Safe to call
    /// again.
    pub fn activate(&self, control: &Handle) {
        if let Some(sampling) = &self.sampling
            && !self.active.swap(true, Ordering::Relaxed)
        {
            sampling.exporter.start(control);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tracing(text: &str) -> (Option<Arc<Tracing>>, Vec<String>) {
        let config: TelemetryConfig = serde_yaml::from_str(text).unwrap();
        let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
        let tracing = cx.at("telemetry", |cx| config.compile(None, cx));
        let problems = cx.finish().0;
        (tracing, problems.into_iter().map(|p| p.path).collect())
    }

    fn with_parent(flags: &str) -> http::HeaderMap {
        let value = format!("00-{}-{}-{flags}", "a".repeat(32), "b".repeat(16));
        [("traceparent".parse().unwrap(), value.parse().unwrap())]
            .into_iter()
            .collect()
    }

    fn share(tracing: &Tracing, headers: &http::HeaderMap) -> f64 {
        let recorded = (0..2000)
            .filter(|_| tracing.records(&tracing.context(headers)))
            .count();
        f64::from(u32::try_from(recorded).unwrap()) / 2000.0
    }

    #[test]
    fn a_caller_cannot_choose_to_be_recorded() {
        let base = "endpoint: http://127.0.0.1:4318, sample_ratio: ";
        let make = |rest: &str| tracing(&format!("tracing: {{ {base}{rest} }}")).0.unwrap();
        let sampled = with_parent("01");
        assert_eq!(share(&make("0"), &sampled), 0.0);
        assert_eq!(share(&make("0, follow_parent: true"), &sampled), 1.0);
        assert_eq!(
            share(&make("0, follow_parent: true"), &with_parent("00")),
            0.0
        );
        assert_eq!(share(&make("1"), &http::HeaderMap::new()), 1.0);
        let half = share(&make("0.5"), &sampled);
        assert!((0.4..0.6).contains(&half), "{half}");
    }

    #[test]
    fn the_callers_sampled_flag_travels_on_even_when_we_record_nothing() {
        let off = Tracing::default();
        assert!(off.context(&with_parent("01")).sampled);
        assert!(!off.context(&with_parent("00")).sampled);
        assert!(!off.context(&http::HeaderMap::new()).sampled);
        assert!(!off.records(&off.context(&with_parent("01"))));
    }

    #[test]
    fn thresholds_are_exact_at_both_ends() {
        assert_eq!(threshold(0.0), 0);
        assert_eq!(threshold(1.0), 1 << 32);
        assert_eq!(threshold(0.5), 1 << 31);
    }

    #[test]
    fn every_problem_is_reported_with_its_place() {
        let (_, places) = tracing(
            "{ log: { level: '=,=' }, tracing: { endpoint: 'ftp://c:4318', sample_ratio: 2 } }",
        );
        assert_eq!(
            places,
            [
                "telemetry.log.level",
                "telemetry.tracing.sample_ratio",
                "telemetry.tracing.endpoint"
            ]
        );
    }
}
