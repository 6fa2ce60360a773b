//! Which certificate answers which server name.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The certificates of a listener, by the names in them.
///
/// Clients that name no server, or an unknown one, get the first certificate: health checks and
/// clients that dial an address must be able to connect, and a name is no secret. What they reach
/// is decided by the request's host, not by the name in the handshake.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what follows the `*`: `.example.test`.
    wildcards: HashMap<String, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Adds a certificate for these names. The first one added, and others for the same names (an
    /// RSA one beside an ECDSA one), are the default.
    pub(super) fn add(&mut self, key: Arc<CertifiedKey>, names: &[String]) {
        let shares_default = self.default.first().is_none_or(|first| {
            names.iter().any(|name| {
                self.find(&name.to_ascii_lowercase())
                    .is_some_and(|keys| keys.iter().any(|known| Arc::ptr_eq(known, first)))
            })
        });
        if shares_default {
            self.default.push(Arc::clone(&key));
        }
        for name in names {
            let name = name.to_ascii_lowercase();
            let list = match name.strip_prefix('*') {
                Some(suffix) if suffix.starts_with('.') => self.wildcards.entry(suffix.to_owned()),
                _ => self.exact.entry(name),
            };
            list.or_default().push(Arc::clone(&key));
        }
    }

    /// The certificates for a server name in lower case.
    fn find(&self, name: &str) -> Option<&Vec<Arc<CertifiedKey>>> {
        if let Some(exact) = self.exact.get(name) {
            return Some(exact);
        }
        // RFC 6125 section 6.4.3: the wildcard stands for one whole label.
        let name = name.strip_prefix('*').unwrap_or(name);
        let dot = name.find('.')?;
        self.wildcards.get(name.get(dot..)?)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello
            .server_name()
            .and_then(|name| self.find(&name.to_ascii_lowercase()));
        let keys = named.unwrap_or(&self.default);
        keys.iter()
            .find(|key| key.key.choose_scheme(hello.signature_schemes()).is_some())
            .or_else(|| keys.first())
            .map(Arc::clone)
    }
}
