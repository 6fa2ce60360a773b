//! Client certificates as they are configured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::list::List;
use super::{ClientTrust, Parts};
use crate::clock;
use crate::schema::{Compile, Size, Span};
use crate::tls::pem;
use crate::tls::server::Files;

/// Largest `max_size` of a list that is fetched.
const MAX_LIST: Size = Size::mib(64);

/// Certificates of clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClientCertificatesConfig {
    /// `none` does not ask for one. `optional` asks; who presents one that does not verify is
    /// turned away, not treated as anonymous. `required` turns away who presents none.
    pub mode: ClientCertificateMode,
    /// PEM files of the authorities whose certificates are believed. Never the system's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<PathBuf>,
    /// PEM files of revocation lists. When there are any, every authority in a chain, the
    /// intermediate ones too, needs a list that has not expired and bears its signature: an unknown
    /// status is a refusal. The files are watched; a file that cannot be read does not load.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revocation_lists: Vec<PathBuf>,
    /// Revocation lists that are fetched and kept fresh. They count as those of files do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution_points: Option<DistributionPointsConfig>,
    /// What becomes of a certificate of which no list in force speaks, or that its responder does not
    /// know.
    pub unknown_status: UnknownStatus,
    /// Whether responders are asked about clients' own certificates (RFC 6960).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ocsp: Option<OcspConfig>,
}

/// Whether clients present certificates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificateMode {
    /// They are not asked.
    #[default]
    None,
    /// They may.
    Optional,
    /// They must.
    Required,
}

/// What becomes of a certificate whose standing nobody can tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownStatus {
    /// It is refused.
    #[default]
    Refuse,
    /// It is let in, with a warning in the log.
    Allow,
}

/// Where revocation lists are fetched. Lists are signed, so `http` is allowed; what is fetched is
/// believed only with the signature of an authority in a client's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DistributionPointsConfig {
    /// URLs of lists, in DER or PEM form.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Prefixes, each ending in `/`, of URLs that may be fetched when a certificate of a verified
    /// chain names them as its distribution point. No other URL of a certificate is ever fetched:
    /// who may issue certificates could otherwise have the gateway ask anything of anybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from_certificates: Vec<String>,
    /// Longest time between two fetches of a list, 1s to 7d; one that ends earlier is fetched
    /// earlier.
    pub refresh: Span,
    /// Longest fetch.
    pub timeout: Span,
    /// Largest list, up to 64MiB.
    pub max_size: Size,
    /// How long a new connection waits for a list that is being fetched for the first time.
    pub wait: Span,
    /// PEM files of the authorities of `https` servers. Default: those of the public web.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<PathBuf>,
    /// A folder in which fetched lists are kept, so that a restart does not depend on their servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
}

impl Default for DistributionPointsConfig {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            from_certificates: Vec::new(),
            refresh: Span::seconds(3600),
            timeout: Span::seconds(10),
            max_size: Size::mib(16),
            wait: Span::seconds(2),
            authorities: Vec::new(),
            store: None,
        }
    }
}

/// Whether and how responders are asked about clients' own certificates. Intermediates are left to
/// revocation lists. Clients staple nothing that we would see: the TLS library does not ask them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OcspConfig {
    /// `off`; `prefer` lets in, with a warning, whom no responder speaks of in time; `require` does
    /// not. A certificate that its responder does not know is refused by both.
    pub mode: OcspMode,
    /// The responder that is asked, whatever certificates name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub responder: Option<String>,
    /// Prefixes, each ending in `/`, of responders that are asked when a certificate names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from_certificates: Vec<String>,
    /// How long an answer may take; so long a new connection waits for it.
    pub timeout: Span,
    /// How long an answer is believed at least, even if it says that it ends earlier, 1s to 1h.
    pub minimum: Span,
    /// How long an answer is believed at most, even if it says that it ends later, up to 7d.
    pub maximum: Span,
    /// How far the responder's clock and ours may differ.
    pub leeway: Span,
    /// Whether answers must carry a number of ours. It keeps old answers from being sent again
    /// before they end, and responders that answer from a cache cannot do it.
    pub nonce: bool,
    /// Most certificates whose answers are kept.
    pub max_answers: u32,
    /// PEM files of the authorities of `https` responders. Default: those of the public web.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<PathBuf>,
}

impl Default for OcspConfig {
    fn default() -> Self {
        Self {
            mode: OcspMode::Off,
            responder: None,
            from_certificates: Vec::new(),
            timeout: Span::seconds(2),
            minimum: Span::seconds(10),
            maximum: Span::seconds(3600),
            leeway: Span::seconds(60),
            nonce: false,
            max_answers: 100_000,
            authorities: Vec::new(),
        }
    }
}

/// Whether responders are asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OcspMode {
    /// They are not.
    #[default]
    Off,
    /// They are; silence lets in.
    Prefer,
    /// They are; silence refuses.
    Require,
}

impl ClientCertificatesConfig {
    /// Compiles the section; `previous` is what was in force before, whose fetched lists and answers
    /// go on being good.
    pub(in crate::tls) fn compile(
        &self,
        previous: Option<&Arc<ClientTrust>>,
        files: &mut Files,
        cx: &mut Compile,
    ) -> Option<Arc<ClientTrust>> {
        if self.mode == ClientCertificateMode::None {
            if *self != Self::default() {
                cx.problem_help(
                    "authorities or revocation are configured, but clients are not asked for certificates",
                    "set `mode` to `optional` or `required`",
                );
            }
            return None;
        }
        let mut roots = RootCertStore::empty();
        if self.authorities.is_empty() {
            cx.problem_help(
                "client certificates need authorities to believe",
                "name PEM files under `authorities`; the system's authorities are never used",
            );
        }
        for (index, path) in self.authorities.iter().enumerate() {
            let found = within("authorities", index, cx, |cx| {
                let text = files.read(path, cx)?;
                pem::authorities(&[text.to_vec()])
                    .map_err(|error| {
                        cx.problem_help(
                            format!("{}: {error}", path.display()),
                            "name a PEM file with certificates of authorities",
                        );
                    })
                    .ok()
            });
            roots
                .roots
                .extend(found.into_iter().flat_map(|found| found.roots));
        }
        let mut lists = Vec::new();
        for (index, path) in self.revocation_lists.iter().enumerate() {
            let found = within("revocation_lists", index, cx, |cx| {
                let text = files.read(path, cx)?;
                read_lists(path, &text, cx)
            });
            lists.extend(found.unwrap_or_default());
        }
        if let Some(points) = &self.distribution_points {
            cx.at("distribution_points", |cx| points.check(files, cx));
        }
        if let Some(ocsp) = &self.ocsp {
            cx.at("ocsp", |cx| ocsp.check(files, cx));
        }
        if roots.is_empty() {
            return None;
        }
        Some(Arc::new(ClientTrust::new(
            Parts {
                place: cx.place(),
                mandatory: self.mode == ClientCertificateMode::Required,
                roots,
                files: lists,
                config: self.clone(),
                epoch: Arc::clone(&cx.epoch),
            },
            previous.map(Arc::as_ref),
        )))
    }

    /// Whether revocation lists decide about certificates.
    pub(super) fn has_lists(&self) -> bool {
        !self.revocation_lists.is_empty() || self.distribution_points.is_some()
    }

    /// Whether responders are asked.
    pub(super) fn ocsp(&self) -> Option<&OcspConfig> {
        self.ocsp.as_ref().filter(|ocsp| ocsp.mode != OcspMode::Off)
    }
}

fn within<R>(key: &str, index: usize, cx: &mut Compile, step: impl FnOnce(&mut Compile) -> R) -> R {
    cx.at(key, |cx| cx.at(format!("[{index}]"), step))
}

fn read_lists(path: &Path, text: &[u8], cx: &mut Compile) -> Option<Vec<Arc<List>>> {
    let help = "name a PEM file (`X509 CRL`) with revocation lists";
    let found = match pem::revocation_lists(text) {
        Ok(found) => found,
        Err(error) => {
            cx.problem_help(format!("{}: {error}", path.display()), help);
            return None;
        }
    };
    let now = clock::now();
    let mut lists = Vec::new();
    for (index, der) in found.iter().enumerate() {
        let number = index + 1;
        match List::read(der) {
            Ok(list) => {
                // No problem: a gateway that does not start, or does not take up anything else,
                // protects no better than one that refuses these clients.
                if list.ends() <= now {
                    cx.warning(
                        format!("{}: revocation list {number} has expired", path.display()),
                        "every certificate of its authority is refused until there is a newer one",
                    );
                }
                lists.push(Arc::new(list));
            }
            Err(error) => cx.problem_help(
                format!("{}: revocation list {number}: {error}", path.display()),
                help,
            ),
        }
    }
    Some(lists)
}

impl DistributionPointsConfig {
    fn check(&self, files: &mut Files, cx: &mut Compile) {
        if self.urls.is_empty() && self.from_certificates.is_empty() {
            cx.problem_help(
                "no distribution point is named",
                "name lists under `urls`, or prefixes of URLs under `from_certificates`",
            );
        }
        if self.urls.len() > super::lists::MAX_POINTS {
            cx.at("urls", |cx| {
                cx.problem(format!(
                    "more than {} distribution points",
                    super::lists::MAX_POINTS
                ));
            });
        }
        prefixes(&self.from_certificates, cx);
        span("refresh", self.refresh, 1, 7 * 86_400, cx);
        span("timeout", self.timeout, 1, 300, cx);
        span("wait", self.wait, 0, 30, cx);
        if self.max_size < Size::kib(1) || self.max_size > MAX_LIST {
            cx.at("max_size", |cx| {
                cx.problem(format!(
                    "{} is not between 1KiB and {MAX_LIST}",
                    self.max_size
                ));
            });
        }
        https_authorities(&self.authorities, files, cx);
        if let Some(store) = &self.store {
            let folder = cx.unwatched(store);
            if !folder.is_dir() {
                cx.at("store", |cx| {
                    cx.problem_help(
                        format!("{} is not a folder", folder.display()),
                        "make it, writable for the gateway",
                    );
                });
            }
        }
    }
}

impl OcspConfig {
    fn check(&self, files: &mut Files, cx: &mut Compile) {
        if self.mode != OcspMode::Off
            && self.responder.is_none()
            && self.from_certificates.is_empty()
        {
            cx.problem_help(
                "there is no responder to ask",
                "name one under `responder`, or prefixes of URLs under `from_certificates`",
            );
        }
        prefixes(&self.from_certificates, cx);
        let timeout = self.timeout.get();
        if timeout < Duration::from_millis(50) || timeout > Duration::from_secs(30) {
            cx.at("timeout", |cx| {
                cx.problem(format!("{} is not between 50ms and 30s", self.timeout));
            });
        }
        span("minimum", self.minimum, 1, 3600, cx);
        span("maximum", self.maximum, 1, 7 * 86_400, cx);
        span("leeway", self.leeway, 0, 3600, cx);
        if self.minimum > self.maximum {
            cx.at("minimum", |cx| {
                cx.problem("`minimum` is longer than `maximum`")
            });
        }
        if !(1..=10_000_000).contains(&self.max_answers) {
            cx.at("max_answers", |cx| {
                cx.problem(format!(
                    "{} is not between 1 and 10000000",
                    self.max_answers
                ));
            });
        }
        https_authorities(&self.authorities, files, cx);
    }
}

/// A prefix has to end a whole part of the path, or `https://a.test` would allow `a.test.evil`.
fn prefixes(prefixes: &[String], cx: &mut Compile) {
    for (index, prefix) in prefixes.iter().enumerate() {
        let host = prefix
            .strip_prefix("http://")
            .or_else(|| prefix.strip_prefix("https://"));
        let good = prefix.ends_with('/')
            && host.is_some_and(|rest| !rest.starts_with('/') && !rest.contains(['@', '?', '#']));
        if !good {
            within("from_certificates", index, cx, |cx| {
                cx.problem_help(
                    format!("`{prefix}` is not a prefix of URLs"),
                    "write scheme, host and path up to a `/`: `http://pki.example.test/crl/`",
                );
            });
        }
    }
}

fn span(key: &str, value: Span, least: u64, most: u64, cx: &mut Compile) {
    let (least, most) = (Span::seconds(least), Span::seconds(most));
    if value < least || value > most {
        cx.at(key, |cx| {
            cx.problem(format!("{value} is not between {least} and {most}"));
        });
    }
}

fn https_authorities(paths: &[PathBuf], files: &mut Files, cx: &mut Compile) {
    for (index, path) in paths.iter().enumerate() {
        within("authorities", index, cx, |cx| {
            let Some(text) = files.read(path, cx) else {
                return;
            };
            if let Err(error) = pem::authorities(&[text.to_vec()]) {
                cx.problem_help(
                    format!("{}: {error}", path.display()),
                    "name a PEM file with certificates of authorities",
                );
            }
        });
    }
}

/// Whether a URL that a certificate names begins with one of these prefixes, and cannot be read as
/// another place: by a parent folder, an encoded slash, or something that a parser would drop.
pub(super) fn is_allowed(url: &str, prefixes: &[String]) -> bool {
    let Some(rest) = prefixes
        .iter()
        .find_map(|prefix| url.strip_prefix(&**prefix))
    else {
        return false;
    };
    let lower = rest.to_ascii_lowercase();
    !rest.starts_with('/')
        && rest
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~/%?=&+,()!:".contains(&byte))
        && !["%2e", "%2f", "%5c", "//"]
            .iter()
            .any(|hidden| lower.contains(hidden))
        && rest
            .split(['/', '?'])
            .all(|segment| !matches!(segment, "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_cannot_name_another_place_by_way_of_an_allowed_one() {
        let prefixes = ["http://pki.test/crl/".to_owned()];
        for good in [
            "http://pki.test/crl/a.crl",
            "http://pki.test/crl/My%20CA(1)+.crl",
            "http://pki.test/crl/x/y?ca=1",
        ] {
            assert!(is_allowed(good, &prefixes), "{good}");
        }
        for bad in [
            "http://pki.test/crl",
            "http://pki.test/admin",
            "https://pki.test/crl/a.crl",
            "http://pki.test/crl/../admin",
            "http://pki.test/crl/%2E%2e/admin",
            "http://pki.test/crl/..%2fadmin",
            "http://pki.test/crl/..%5Cadmin",
            "http://pki.test/crl/\\..\\admin",
            "http://pki.test/crl/a\r\nx: y",
            "http://pki.test/crl//evil",
            "http://pki.test/crl/a#b",
            "http://pki.test/crl/./a",
            "http://user@pki.test/crl/a.crl",
            "http://pki.test.evil/crl/a.crl",
            "ldap://pki.test/crl/",
        ] {
            assert!(!is_allowed(bad, &prefixes), "{bad}");
        }
    }
}
