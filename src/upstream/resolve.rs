//! Endpoints and the addresses behind their names. Names are resolved on the control thread; the
//! request path only reads the last good answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls_pki_types::ServerName;
use tokio::net::lookup_host;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::request::Host;

/// Most addresses of one name that are used.
const MAX_ADDRESSES: usize = 64;
/// Longest time to resolve one name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a name is tried again that has no address yet.
const RETRY_UNRESOLVED: Duration = Duration::from_secs(1);

/// One endpoint as the configuration names it.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// `host:port`, for records; the host in brackets when it is an IPv6 address.
    pub(super) label: Arc<str>,
    /// What `Host` says when the endpoint's own is asked for: without the scheme's default port.
    pub(super) authority: String,
    /// Whether it is spoken to over TLS.
    pub(super) secure: bool,
    /// Whose certificate it has to show.
    pub(super) server_name: ServerName<'static>,
    name: String,
    port: u16,
}

impl Endpoint {
    /// Reads `http://host:port` or `https://host:port`. `server_name` replaces the host as the name
    /// in the certificate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str, server_name: Option<&str>) -> Result<Self, &'static str> {
        let (secure, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            (false, rest)
        } else {
            return Err("it has no http or https scheme");
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err("it has a path; the client's path is forwarded as it was judged");
        }
        let host = Host::parse(authority).map_err(|_| "the host or the port is not valid")?;
        let default = if secure { 443 } else { 80 };
        let port = host.port().unwrap_or(default);
        if port == 0 {
            return Err("the port is 0");
        }
        let name = host.name().trim_matches(['[', ']']).to_owned();
        let server_name = ServerName::try_from(server_name.unwrap_or(&name).to_owned());
        let authority = if port == default {
            host.name().to_owned()
        } else {
            format!("{}:{port}", host.name())
        };
        let server_name = match server_name {
            Ok(server_name) => server_name,
            // Without TLS nobody reads it, and names such as `my_service` are fine.
            Err(_) if !secure => ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into()),
            Err(_) => return Err("no certificate can carry that name"),
        };
        Ok(Self {
            label: format!("{}:{port}", host.name()).into(),
            authority,
            secure,
            server_name,
            name,
            port,
        })
    }

    fn literal(&self) -> Option<SocketAddr> {
        let address: IpAddr = self.name.parse().ok()?;
        Some(SocketAddr::new(address, self.port))
    }
}

/// One address of an endpoint: what is balanced over and connected to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) address: SocketAddr,
}

impl Target {
    /// Whether this is the same place under the same name.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.address == other.address && self.endpoint.label == other.endpoint.label
    }
}

/// The endpoints of an upstream and their addresses.
#[derive(Debug)]
pub(super) struct Targets {
    endpoints: Vec<Arc<Endpoint>>,
    interval: Duration,
    current: ArcSwap<Vec<Target>>,
    resolved: Notify,
    active: AtomicBool,
}

impl Targets {
    /// Address literals are there at once; names come with [`Targets::activate`].
    pub(super) fn new(endpoints: Vec<Arc<Endpoint>>, interval: Duration) -> Self {
        let literals = endpoints.iter().filter_map(|endpoint| {
            Some(Target {
                endpoint: Arc::clone(endpoint),
                address: endpoint.literal()?,
            })
        });
        Self {
            current: ArcSwap::from_pointee(literals.collect()),
            endpoints,
            interval,
            resolved: Notify::new(),
            active: AtomicBool::new(false),
        }
    }

    /// The addresses of this moment.
    pub(super) fn current(&self) -> Arc<Vec<Target>> {
        self.current.load_full()
    }

    /// The addresses of this moment, if they are others than `seen`.
    pub(super) fn newer(&self, seen: Option<&Arc<Vec<Target>>>) -> Option<Arc<Vec<Target>>> {
        let current = self.current.load();
        let known = seen.is_some_and(|seen| Arc::ptr_eq(seen, &current));
        (!known).then(|| Arc::clone(&current))
    }

    /// Whether no endpoint has an address yet.
    pub(super) fn is_empty(&self) -> bool {
        self.current.load().is_empty()
    }

    /// The addresses, waiting for the first answer for at most `wait` when there are none yet.
    pub(super) async fn available(&self, wait: Duration) -> Arc<Vec<Target>> {
        let mut resolved = std::pin::pin!(self.resolved.notified());
        // Registered before the look, so that an answer in between is not missed.
        resolved.as_mut().enable();
        let targets = self.current();
        if !targets.is_empty() {
            return targets;
        }
        // Running out of time leaves the list empty, which the caller reports.
        let _ = timeout(wait, resolved).await;
        self.current()
    }

    /// What the endpoints are called, `host:port`.
    pub(super) fn labels(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| &*endpoint.label)
    }

    /// Endpoints with at least one address, and all.
    pub(super) fn usable(&self) -> (usize, usize) {
        let current = self.current();
        let known = |endpoint: &&Arc<Endpoint>| {
            let here = |target: &Target| Arc::ptr_eq(&target.endpoint, endpoint);
            current.iter().any(here)
        };
        (
            self.endpoints.iter().filter(known).count(),
            self.endpoints.len(),
        )
    }

    /// Resolves names from now on, on the control thread, until this is dropped. Safe to repeat.
    pub(super) fn activate(self: &Arc<Self>, control: &Handle) {
        let only_literals = self.endpoints.iter().all(|e| e.literal().is_some());
        if only_literals || self.active.swap(true, Ordering::AcqRel) {
            return;
        }
        control.spawn(refresh(Arc::downgrade(self)));
    }

    /// Resolves every name once. Returns whether every endpoint has an address.
    async fn resolve(&self) -> bool {
        let before = self.current();
        let mut targets: Vec<Target> = Vec::new();
        let mut complete = true;
        for endpoint in &self.endpoints {
            let addresses = match endpoint.literal() {
                Some(address) => vec![address],
                None => lookup(endpoint).await,
            };
            if addresses.is_empty() {
                // The last good answer stays.
                let mut known = before
                    .iter()
                    .filter(|target| Arc::ptr_eq(&target.endpoint, endpoint))
                    .cloned()
                    .peekable();
                complete &= known.peek().is_some();
                targets.extend(known);
            }
            targets.extend(addresses.into_iter().map(|address| Target {
                endpoint: Arc::clone(endpoint),
                address,
            }));
        }
        let unchanged = targets.len() == before.len()
            && targets.iter().zip(before.iter()).all(|(a, b)| a.same(b));
        if !unchanged {
            self.current.store(Arc::new(targets));
        }
        self.resolved.notify_waiters();
        complete
    }
}

async fn refresh(targets: Weak<Targets>) {
    loop {
        let pause = {
            let Some(targets) = targets.upgrade() else {
                return;
            };
            let complete = targets.resolve().await;
            if complete {
                targets.interval
            } else {
                targets.interval.min(RETRY_UNRESOLVED)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// The addresses of a name, in a stable order; none when it cannot be resolved in time.
async fn lookup(endpoint: &Endpoint) -> Vec<SocketAddr> {
    let found = timeout(
        RESOLVE_TIMEOUT,
        lookup_host((endpoint.name.as_str(), endpoint.port)),
    )
    .await;
    let mut addresses: Vec<SocketAddr> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            tracing::warn!(endpoint = %endpoint.label, %error, "cannot resolve an endpoint");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!(endpoint = %endpoint.label, "resolving an endpoint takes too long");
            Vec::new()
        }
    };
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_scheme_host_and_port_only() {
        let endpoint = Endpoint::parse("http://Orders.internal:8080", None).unwrap();
        assert_eq!(&*endpoint.label, "orders.internal:8080");
        assert_eq!(endpoint.authority, "orders.internal:8080");
        let endpoint = Endpoint::parse("https://[::1]/", None).unwrap();
        assert_eq!(&*endpoint.label, "[::1]:443");
        assert_eq!(endpoint.authority, "[::1]");
        assert!(endpoint.literal().is_some());
        assert!(Endpoint::parse("http://my_service:80", None).is_ok());
        for bad in [
            "orders:80",
            "ftp://a:1",
            "http://a:0",
            "http://a/b",
            "http://u@a",
            "http://",
            "https://a?b",
        ] {
            assert!(Endpoint::parse(bad, None).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn names_are_resolved_beside_requests_and_waited_for_once() {
        let endpoint = Arc::new(Endpoint::parse("http://localhost:9", None).unwrap());
        let targets = Arc::new(Targets::new(vec![endpoint], Duration::from_secs(60)));
        assert!(targets.current().is_empty());
        assert_eq!(targets.usable(), (0, 1));
        targets.activate(&Handle::current());
        targets.activate(&Handle::current());
        let found = targets.available(Duration::from_secs(5)).await;
        assert!(found.iter().all(|target| target.address.ip().is_loopback()));
        assert!(!found.is_empty());
    }

    #[tokio::test]
    async fn the_last_good_answer_stays_when_resolving_fails() {
        let endpoint = Arc::new(Endpoint::parse("http://nowhere.invalid:9", None).unwrap());
        let targets = Targets::new(vec![Arc::clone(&endpoint)], Duration::from_secs(60));
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        targets
            .current
            .store(Arc::new(vec![Target { endpoint, address }]));
        targets.resolve().await;
        assert_eq!(targets.current().len(), 1);
        assert_eq!(targets.usable(), (1, 1));
    }
}
