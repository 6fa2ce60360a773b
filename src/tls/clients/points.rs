//! Where revocation lists are to be fetched: what is configured, and what certificates name within
//! the prefixes that are allowed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use super::chain::Link;
use super::config::{DistributionPointsConfig, is_allowed};
use super::lists::MAX_POINTS;

/// How long nobody has to name a distribution point before its place may go to another one.
const UNNAMED: Duration = Duration::from_secs(3600);

/// The distribution points of a listener.
#[derive(Debug)]
pub(crate) struct Points {
    config: DistributionPointsConfig,
    known: Mutex<HashMap<Arc<str>, Point>>,
    /// Rung when there is another one.
    pub(crate) added: Notify,
}

/// One distribution point.
#[derive(Debug, Clone)]
struct Point {
    configured: bool,
    /// Whether a fetch has ended, well or badly.
    tried: bool,
    named: SystemTime,
    last_error: Option<String>,
}

/// One distribution point, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointStatus {
    /// Its URL.
    pub url: Arc<str>,
    /// When its list was issued and when it ends, when there is one.
    pub list: Option<(SystemTime, SystemTime)>,
    /// How many certificates that lists.
    pub entries: usize,
    /// Why the last fetch failed, when it did.
    pub last_error: Option<String>,
}

impl Points {
    pub(super) fn new(config: &DistributionPointsConfig, now: SystemTime) -> Self {
        let known = config.urls.iter().take(MAX_POINTS).map(|url| {
            let point = Point {
                configured: true,
                tried: false,
                named: now,
                last_error: None,
            };
            (Arc::from(url.as_str()), point)
        });
        Self {
            known: Mutex::new(known.collect()),
            config: config.clone(),
            added: Notify::new(),
        }
    }

    /// The section.
    pub(crate) fn config(&self) -> &DistributionPointsConfig {
        &self.config
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Arc<str>, Point>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a place is still one of ours, or may become one.
    pub(super) fn wants(config: &DistributionPointsConfig, url: &str) -> bool {
        config.urls.iter().any(|known| known == url) || is_allowed(url, &config.from_certificates)
    }

    /// All URLs, and whether somebody configured them.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, bool)> {
        self.known()
            .iter()
            .map(|(url, point)| (Arc::clone(url), point.configured))
            .collect()
    }

    /// Whether this one is still to be fetched.
    pub(crate) fn holds(&self, url: &str) -> bool {
        self.known().contains_key(url)
    }

    /// Takes up what a certificate of a verified chain names. Gives places that had to go.
    pub(super) fn name(&self, link: &Link, now: SystemTime) -> Vec<Arc<str>> {
        let mut gone = Vec::new();
        if self.config.from_certificates.is_empty() {
            return gone;
        }
        let mut known = self.known();
        for url in &link.points {
            if let Some(point) = known.get_mut(url) {
                point.named = now;
                continue;
            }
            if !is_allowed(url, &self.config.from_certificates) {
                continue;
            }
            if known.len() >= MAX_POINTS {
                let oldest = known
                    .iter()
                    .filter(|(_, point)| !point.configured && point.named + UNNAMED < now)
                    .min_by_key(|(_, point)| point.named)
                    .map(|(url, _)| Arc::clone(url));
                let Some(oldest) = oldest else { continue };
                known.remove(&oldest);
                gone.push(oldest);
            }
            let point = Point {
                configured: false,
                tried: false,
                named: now,
                last_error: None,
            };
            known.insert(Arc::clone(url), point);
            self.added.notify_one();
        }
        gone
    }

    /// Whether a list of this certificate's issuer may still come: something has never been tried.
    pub(super) fn pending(&self, link: &Link) -> bool {
        self.known()
            .iter()
            .any(|(url, point)| !point.tried && (point.configured || link.points.contains(url)))
    }

    /// Whether every configured point has been tried, and which of them failed.
    pub(super) fn failures(&self) -> Vec<(Arc<str>, Option<String>)> {
        self.known()
            .iter()
            .filter(|(_, point)| !point.tried || point.last_error.is_some())
            .map(|(url, point)| (Arc::clone(url), point.last_error.clone()))
            .collect()
    }

    /// Notes how a fetch has ended. Gives whether its error is news.
    pub(super) fn tried(&self, url: &str, error: Option<String>) -> bool {
        let mut known = self.known();
        let Some(point) = known.get_mut(url) else {
            return false;
        };
        point.tried = true;
        let news = point.last_error != error;
        point.last_error = error;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::tls::clients::Authority;
    use crate::tls::testing::Authority as Signer;

    #[test]
    fn certificates_cannot_name_more_places_than_are_kept_nor_push_out_configured_ones() {
        let pem = Signer::new("ca").pem().into_bytes();
        let roots = crate::tls::pem::authorities(&[pem]).unwrap();
        let issuer = Arc::new(Authority::of_anchor(&roots.roots[0]));
        let config = DistributionPointsConfig {
            urls: vec!["http://configured.test/a.crl".to_owned()],
            from_certificates: vec!["http://pki.test/".to_owned()],
            ..DistributionPointsConfig::default()
        };
        let now = clock::now();
        let points = Points::new(&config, now);
        let named = |url: &str| Link {
            serial: Box::new([1]),
            issuer: Arc::clone(&issuer),
            authority: false,
            points: Box::new([Arc::from(url)]),
            responders: Box::default(),
        };
        points.name(&named("http://elsewhere.test/x.crl"), now);
        assert_eq!(points.all().len(), 1);
        for index in 0..200 {
            points.name(&named(&format!("http://pki.test/{index}")), now);
        }
        assert_eq!(points.all().len(), MAX_POINTS);
        // Those that nobody has named for long make room, one for one.
        let later = now + UNNAMED + Duration::from_secs(1);
        points.name(&named("http://pki.test/0"), later);
        let gone = points.name(&named("http://pki.test/new"), later);
        assert_eq!((gone.len(), points.all().len()), (1, MAX_POINTS));
        assert!(points.holds("http://pki.test/0") && points.holds("http://pki.test/new"));
        assert!(points.holds("http://configured.test/a.crl"));
    }
}
