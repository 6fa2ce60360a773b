//! A small PKI in memory, and a folder to compile configurations in.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;

use crate::metrics::Metrics;
use crate::schema::{Compile, Problem};

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.pem.clone()
    }

    /// A leaf: its DER form, its PEM form, its key.
    pub(crate) fn leaf(
        &self,
        adjust: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        adjust(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (
            certificate.der().clone(),
            certificate.pem(),
            key.serialize_pem(),
        )
    }

    /// A server certificate for these DNS names, and its key.
    pub(crate) fn server(&self, names: &[&str]) -> (String, String) {
        let (_, chain, key) = self.leaf(|params| {
            params.subject_alt_names = names
                .iter()
                .map(|name| SanType::DnsName((*name).try_into().unwrap()))
                .collect();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        (chain, key)
    }

    /// A client certificate with these URI names, and its key.
    pub(crate) fn client(&self, name: &str, uris: &[&str]) -> (String, String) {
        let (_, chain, key) = self.leaf(|params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names = uris
                .iter()
                .map(|uri| SanType::URI((*uri).try_into().unwrap()))
                .collect();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        (chain, key)
    }
}

/// Runs `step` in a fresh folder with these files, and gives what it made and the problems.
pub(crate) fn compile<T>(
    files: &[(&str, String)],
    step: impl FnOnce(&mut Compile) -> T,
) -> (T, Vec<Problem>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    compile_in(folder.path(), step)
}

/// Runs `step` for a configuration in `folder`.
pub(crate) fn compile_in<T>(
    folder: &Path,
    step: impl FnOnce(&mut Compile) -> T,
) -> (T, Vec<Problem>) {
    let mut cx = Compile::new(&folder.join("gateway.yaml"), Arc::new(Metrics::default()));
    let made = step(&mut cx);
    (made, cx.finish().0)
}
