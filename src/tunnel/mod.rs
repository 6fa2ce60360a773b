//! Tunnels: exchanges that have become streams of bytes in both directions.
//!
//! A WebSocket (over HTTP/1.1 and HTTP/2) and a `CONNECT` begin as requests and go the whole way of a
//! request: route, limits, authentication, revocation, policy. What they open then lives here, on the
//! worker that has opened it, under the lease of its permission, until one side ends it, it is idle
//! for too long, has lived for long enough, or may not go on. `relay` moves the bytes, `frames` knows
//! where those of a WebSocket begin and end.
//!
//! Nothing here decides who may open what: a route says which upgrades it has ([`Upgrades`]), and all
//! others are answered as if nobody had asked, or not at all.

mod frames;
mod relay;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Version;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::relay::{Counts, Ended, Kind, Limits, Relay, Stop};
use crate::audit::OpenRecord;
use crate::lease::Hold;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::request::{InboundRequest, Upgrade};
use crate::schema::{Compile, Span};
use crate::upstream::Far;

pub use self::relay::Near;

/// What a route may open instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpgradeName {
    /// WebSocket, by `Upgrade` over HTTP/1.1 and by extended CONNECT (RFC 8441) over HTTP/2. The
    /// request is matched and judged as the GET that it is.
    WebSocket,
    /// `CONNECT host:port`, over both protocols: matched by `hosts`, with `/` as its path and without
    /// being named in `methods`. The bytes go to an endpoint of the route's upstream, never to the
    /// host that the client names, and nothing is added to them.
    Connect,
}

/// How long tunnels may live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TunnelConfig {
    /// Longest time without a byte in either direction; pings are bytes. Default `5m`.
    pub idle_timeout: Span,
    /// Longest life of a tunnel, whatever goes through it. Default `12h`.
    pub total_timeout: Span,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Span::seconds(300),
            total_timeout: Span::seconds(12 * 3600),
        }
    }
}

/// What a route opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgrades {
    websocket: bool,
    connect: bool,
    limits: Limits,
}

impl TunnelConfig {
    /// Compiles the keys `upgrades` and `tunnels` of a route; both are reported from here.
    pub fn compile(&self, upgrades: &[UpgradeName], cx: &mut Compile) -> Upgrades {
        cx.at("upgrades", |cx| {
            for (index, name) in upgrades.iter().enumerate() {
                if upgrades.iter().take(index).any(|other| other == name) {
                    cx.at(format!("[{index}]"), |cx| {
                        cx.problem_help("it is there twice", "remove one");
                    });
                }
            }
        });
        cx.at("tunnels", |cx| {
            for (key, span) in [
                ("idle_timeout", self.idle_timeout),
                ("total_timeout", self.total_timeout),
            ] {
                if span.get().is_zero() {
                    cx.at(key, |cx| {
                        cx.problem_help(
                            "no tunnel would stay open",
                            "every wait has a bound: write one such as `5m`",
                        );
                    });
                }
            }
            if upgrades.is_empty() && *self != Self::default() {
                cx.problem_help(
                    "the route opens no tunnels",
                    "say which in `upgrades`, or remove this",
                );
            }
        });
        Upgrades {
            websocket: upgrades.contains(&UpgradeName::WebSocket),
            connect: upgrades.contains(&UpgradeName::Connect),
            limits: Limits {
                idle: self.idle_timeout.get(),
                total: self.total_timeout.get(),
            },
        }
    }
}

impl Upgrades {
    /// Whether `CONNECT` is taken.
    pub fn connect(&self) -> bool {
        self.connect
    }

    /// Whether what the request has opened elsewhere may be opened here.
    pub fn still_open(&self, request: &InboundRequest) -> bool {
        match &request.upgrade {
            None => true,
            Some(Upgrade::Connect) => self.connect,
            Some(Upgrade::WebSocket { .. } | Upgrade::Faulty(_)) => self.websocket,
        }
    }

    /// Leaves in the request what it may open here. A WebSocket that the route does not open stays a
    /// request: over HTTP/1.1 its answer tells the client (RFC 9110 section 7.8).
    ///
    /// # Errors
    /// When it asks for one in a way that others may read differently, and when it can be nothing
    /// else.
    pub fn admit(&self, request: &mut InboundRequest) -> Result<(), Refusal> {
        match &request.upgrade {
            None => Ok(()),
            Some(Upgrade::Connect) if self.connect => Ok(()),
            Some(Upgrade::WebSocket { .. }) if self.websocket => Ok(()),
            Some(Upgrade::Faulty(fault)) if self.websocket => {
                Err(Refusal::Malformed((*fault).into()))
            }
            Some(Upgrade::WebSocket { .. } | Upgrade::Faulty(_))
                if request.version == Version::HTTP_11 =>
            {
                request.upgrade = None;
                Ok(())
            }
            Some(Upgrade::Connect | Upgrade::WebSocket { .. } | Upgrade::Faulty(_)) => {
                Err(Refusal::NoRoute)
            }
        }
    }
}

/// What an exchange has become: both ends are there, and the client is being told.
#[derive(Debug)]
pub struct Opening {
    kind: Kind,
    limits: Limits,
    far: Far,
    hold: Hold,
    open: Open,
}

/// A tunnel with its record.
#[derive(Debug)]
pub struct Tunnel {
    opening: Opening,
    record: OpenRecord,
}

impl Opening {
    /// What this request has opened.
    pub fn new(
        request: &InboundRequest,
        upgrades: &Upgrades,
        far: Far,
        hold: Hold,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let kind = match &request.upgrade {
            Some(Upgrade::Connect) => Kind::Bytes,
            Some(Upgrade::WebSocket { .. } | Upgrade::Faulty(_)) | None => Kind::WebSocket,
        };
        Self {
            kind,
            limits: upgrades.limits,
            far,
            hold,
            open: Open::new(kind, metrics),
        }
    }

    /// The tunnel; its record stays open as long as it does.
    pub fn recorded(self, record: OpenRecord) -> Tunnel {
        Tunnel {
            opening: self,
            record,
        }
    }
}

impl Tunnel {
    /// Moves bytes until the tunnel ends. `leave` is ready when the gateway has to be gone in a
    /// moment; `keep` is dropped when the tunnel has ended. Has to run on the worker that has opened
    /// it; dropping the future closes both ends.
    pub fn run<N: Near, K>(
        self,
        near: N,
        leave: impl Future<Output = ()> + 'static,
        keep: K,
    ) -> Running<N, K> {
        let Self { opening, record } = self;
        let Opening {
            kind,
            limits,
            far,
            hold,
            open,
        } = opening;
        let counts = Counts {
            received: record.received(),
            sent: record.sent(),
        };
        hold.lease().counted_by(&counts.received, &counts.sent);
        let stop = async move {
            let mut leave = pin!(leave);
            poll_fn(|cx| {
                if let Poll::Ready(lapse) = hold.poll_lapse(cx) {
                    return Poll::Ready(Stop::lapsed(lapse.word()));
                }
                leave.as_mut().poll(cx).map(|()| Stop::drained())
            })
            .await
        };
        Running {
            relay: Relay::new(near, far, kind, limits, counts, Box::pin(stop)),
            record,
            open,
            _keep: keep,
        }
    }
}

/// A tunnel on its worker. By hand, since it is there for as long as the tunnel is, and an
/// `async fn` would hold room for each place that its parts are moved to.
pub struct Running<N, K> {
    relay: Relay<N, Far>,
    record: OpenRecord,
    open: Open,
    _keep: K,
}

impl<N: Near, K: Unpin> Future for Running<N, K> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let me = self.get_mut();
        let how = ready!(Pin::new(&mut me.relay).poll(cx));
        me.open.how = how;
        me.record.ended(how.as_str());
        Poll::Ready(())
    }
}

impl<N, K> fmt::Debug for Running<N, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

/// Counts a tunnel until it is dropped.
#[derive(Debug)]
struct Open {
    kind: Kind,
    metrics: Arc<Metrics>,
    how: Ended,
}

impl Open {
    fn new(kind: Kind, metrics: &Arc<Metrics>) -> Self {
        metrics.tunnel_opened(kind.as_str());
        Self {
            kind,
            metrics: Arc::clone(metrics),
            how: Ended::ClientGone,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics
            .tunnel_closed(self.kind.as_str(), self.how.as_str());
    }
}
