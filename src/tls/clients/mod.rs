//! Whom a listener believes among clients with certificates: at the handshake, and for as long as a
//! connection lasts.
//!
//! A chain is verified once, by signatures and dates, and what it rests on is kept ([`Chain`]): its
//! serial numbers, who signed them, the configured authority at its end, the first of its dates. From
//! then on it can be judged again at any time against what is in force by then ([`ClientTrust`]), for
//! the price of a few look-ups: by the handshake that resumes a session, and by every request of an
//! open connection after the process's [`Epoch`] has moved ([`Standing`]).
//!
//! The path is verified by rustls-webpki, the revocation lists are ours: that library asks for a
//! signature over the whole list in every handshake, and takes the first list of an issuer's name
//! that it is given, also when a newer one, or one of the right key, comes after it.

mod answers;
mod chain;
mod config;
mod list;
mod lists;
mod ocsp;
mod points;
mod standing;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use moka::sync::Cache;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use tokio::sync::watch;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use self::answers::Known;
use self::chain::anchor_id;
use self::list::List;
use self::lists::{Lists, Status};
use super::provider;
use crate::clock;
use crate::epoch::Epoch;

pub(crate) use self::answers::Ocsp;
pub use self::answers::Question;
pub use self::chain::{Authority, Chain, Link};
pub use self::config::{
    ClientCertificateMode, ClientCertificatesConfig, DistributionPointsConfig, OcspConfig,
    OcspMode, UnknownStatus,
};
pub use self::list::ListError;
pub use self::lists::Taken;
pub use self::ocsp::{AnswerError, CertificateStatus, MAX_ANSWER};
pub use self::points::PointStatus;
pub(crate) use self::points::Points;
pub(crate) use self::standing::AHEAD;
pub use self::standing::{Believer, Standing};

/// Most chains that are remembered as verified: a client that comes again, and a session that is
/// resumed, cost no signatures of their chain.
const MAX_CHAINS: u64 = 4096;

/// How long one is remembered.
const CHAIN_KEPT: Duration = Duration::from_secs(3600);

/// Most intermediate authorities whose keys are remembered.
const MAX_AUTHORITIES: usize = 256;

/// How often an operator is told that somebody's standing is not known.
const TELL_EVERY: u64 = 10;

/// Why a certificate that was good at its handshake is good no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Lapse {
    /// It, or one above it, was revoked.
    #[error("the certificate was revoked")]
    Revoked,
    /// It, or one above it, has ended.
    #[error("the certificate has expired")]
    Expired,
    /// The authority that it leads to is not believed any more.
    #[error("the authority of the certificate is no longer believed")]
    Authority,
    /// Whether it was revoked cannot be told.
    #[error("the standing of the certificate is not known")]
    Unknown,
}

impl Lapse {
    /// The stable code of the record.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Revoked => "certificate.revoked",
            Self::Expired => "certificate.expired",
            Self::Authority => "certificate.authority",
            Self::Unknown => "certificate.status_unknown",
        }
    }
}

/// When a chain is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// At the handshake: responders are asked, and heard later. Whom they refuse is told so by the
    /// answer to its first request, and leaves a record.
    Handshake,
    /// Afterwards.
    Open,
    /// The same, and who has not answered by now does not count any more.
    Last,
}

/// What is to be done with a chain now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It is good, and nothing but a change of the epoch ends that before this time.
    Good(SystemTime),
    /// Somebody is being asked.
    Waiting,
    /// It is not.
    Lost(Lapse),
}

/// What a trust is made of.
pub(super) struct Parts {
    place: String,
    mandatory: bool,
    roots: RootCertStore,
    files: Vec<Arc<List>>,
    config: ClientCertificatesConfig,
    epoch: Arc<Epoch>,
}

/// By what they are, and whether they may sign lists.
type Met = HashMap<([u8; 32], bool), Arc<Authority>>;

/// Whom a listener believes.
pub struct ClientTrust {
    /// Where it is configured, for logs.
    place: String,
    mandatory: bool,
    roots: RootCertStore,
    subjects: Vec<DistinguishedName>,
    anchors: HashSet<[u8; 32]>,
    /// By name, the configured ones.
    authorities: HashMap<Box<[u8]>, Vec<Arc<Authority>>>,
    /// Intermediates of chains that were verified.
    met: Mutex<Met>,
    config: ClientCertificatesConfig,
    lists: Lists,
    points: Option<Points>,
    ocsp: Option<Ocsp>,
    chains: Cache<[u8; 32], Arc<Chain>>,
    epoch: Arc<Epoch>,
    /// Rises when something that was asked for has come, or has not.
    news: watch::Sender<u64>,
    /// Tells this object, and what it believes, from all others and from what it believed before.
    version: AtomicU64,
    told: AtomicU64,
    started: AtomicBool,
}

/// A number that no [`ClientTrust`] has had.
fn fresh_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl ClientTrust {
    fn new(parts: Parts, previous: Option<&Self>) -> Self {
        let Parts {
            place,
            mandatory,
            roots,
            files,
            config,
            epoch,
        } = parts;
        let mut authorities: HashMap<Box<[u8]>, Vec<Arc<Authority>>> = HashMap::new();
        for anchor in &roots.roots {
            let authority = Arc::new(Authority::of_anchor(anchor));
            authorities
                .entry(authority.name.clone())
                .or_default()
                .push(authority);
        }
        let points = config.distribution_points.as_ref();
        let lists = Lists::new(files, previous.map(|previous| &previous.lists), |url| {
            points.is_some_and(|points| Points::wants(points, url))
        });
        let met = previous.map(|previous| {
            let met = previous.met.lock().unwrap_or_else(PoisonError::into_inner);
            met.clone()
        });
        Self {
            place,
            mandatory,
            subjects: roots.subjects(),
            anchors: roots.roots.iter().map(anchor_id).collect(),
            authorities,
            met: Mutex::new(met.unwrap_or_default()),
            lists,
            points: points.map(|points| Points::new(points, clock::now())),
            ocsp: config
                .ocsp()
                .map(|ocsp| Ocsp::new(ocsp, previous.and_then(|previous| previous.ocsp.as_ref()))),
            chains: Cache::builder()
                .max_capacity(MAX_CHAINS)
                .time_to_live(CHAIN_KEPT)
                .build(),
            roots,
            config,
            epoch,
            news: watch::Sender::new(0),
            version: AtomicU64::new(fresh_version()),
            told: AtomicU64::new(0),
            started: AtomicBool::new(false),
        }
    }

    /// Whether there is something to fetch or to ask, and nobody has begun yet.
    pub(crate) fn begin(&self) -> bool {
        (self.points.is_some() || self.ocsp.is_some())
            && !self.started.swap(true, Ordering::Relaxed)
    }

    /// Where lists are fetched.
    pub(crate) fn points(&self) -> Option<&Points> {
        self.points.as_ref()
    }

    /// Who is asked.
    pub(crate) fn ocsp(&self) -> Option<&Ocsp> {
        self.ocsp.as_ref()
    }

    /// The chain that these certificates make now, leaf first.
    pub(super) fn chain(
        self: &Arc<Self>,
        certificates: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<Arc<Chain>, Error> {
        let Some((leaf, intermediates)) = certificates.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        self.verified(leaf, intermediates, now)
    }

    /// Verifies a chain, or remembers that it was. A chain that is lost is none.
    fn verified(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<Arc<Chain>, Error> {
        let key = key(leaf, intermediates);
        if let Some(chain) = self.chains.get(&key)
            && !matches!(
                self.judge(&chain, now, Stage::Handshake),
                Judgement::Lost(_)
            )
        {
            return Ok(chain);
        }
        let at = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| Error::FailedToGetCurrentTime)?;
        let certificate = EndEntityCert::try_from(leaf).map_err(pki_error)?;
        let found = Mutex::new(None);
        let judge = |path: &VerifiedPath<'_>| {
            let chain =
                Chain::of(path, |authority| self.share(authority)).ok_or(webpki::Error::BadDer)?;
            match self.judge(&chain, now, Stage::Handshake) {
                Judgement::Good(_) | Judgement::Waiting => {
                    *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain);
                    Ok(())
                }
                Judgement::Lost(Lapse::Revoked) => Err(webpki::Error::CertRevoked),
                Judgement::Lost(Lapse::Unknown) => Err(webpki::Error::UnknownRevocationStatus),
                Judgement::Lost(Lapse::Authority | Lapse::Expired) => {
                    Err(webpki::Error::UnknownIssuer)
                }
            }
        };
        certificate
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                &self.roots.roots,
                intermediates,
                UnixTime::since_unix_epoch(at),
                KeyUsage::client_auth(),
                None,
                Some(&judge),
            )
            .map_err(pki_error)?;
        let chain = found
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let chain = Arc::new(chain);
        self.chains.insert(key, Arc::clone(&chain));
        Ok(chain)
    }

    /// One object for one authority, and its key for the lists that come later.
    fn share(&self, authority: Authority) -> Arc<Authority> {
        if let Some(known) = self.authorities.get(&authority.name)
            && let Some(known) = known
                .iter()
                .find(|known| known.id == authority.id && authority.signs_lists)
        {
            return Arc::clone(known);
        }
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (authority.id, authority.signs_lists);
        if let Some(known) = met.get(&key) {
            return Arc::clone(known);
        }
        let authority = Arc::new(authority);
        if met.len() >= MAX_AUTHORITIES {
            // Whoever is still used comes again with the next chain.
            met.clear();
        }
        met.insert(key, Arc::clone(&authority));
        authority
    }

    /// What a chain is worth now.
    pub(crate) fn judge(&self, chain: &Chain, now: SystemTime, stage: Stage) -> Judgement {
        let last = stage == Stage::Last;
        if chain.until <= now {
            return Judgement::Lost(Lapse::Expired);
        }
        if !self.anchors.contains(&chain.anchor) {
            return Judgement::Lost(Lapse::Authority);
        }
        let mut until = chain.until;
        let mut waiting = false;
        let allow = self.config.unknown_status == UnknownStatus::Allow;
        let mut unspoken = false;
        if self.config.has_lists() {
            for link in &chain.links {
                match self.by_lists(link, now) {
                    Status::Revoked => return Judgement::Lost(Lapse::Revoked),
                    Status::Good(end) => until = until.min(end),
                    // The responder speaks of it, or nobody does.
                    Status::Unknown if self.ocsp.is_some() && !link.authority => unspoken = true,
                    Status::Unknown => {
                        let pending = self.points.as_ref().is_some_and(|p| p.pending(link));
                        if pending && !last {
                            waiting = true;
                        } else {
                            self.tell(link, allow);
                            if !allow {
                                return Judgement::Lost(Lapse::Unknown);
                            }
                        }
                    }
                }
            }
        }
        if let (Some(ocsp), Some(leaf)) = (&self.ocsp, chain.leaf()) {
            let require = ocsp.mode == OcspMode::Require || (unspoken && !allow);
            let silent = match ocsp.ask(leaf, now) {
                _ if stage == Stage::Handshake => None,
                Known::Said(CertificateStatus::Good, end) => {
                    until = until.min(end);
                    None
                }
                Known::Said(CertificateStatus::Revoked, _) => {
                    return Judgement::Lost(Lapse::Revoked);
                }
                // Whoever signs certificates and keeps the responder knows what was issued.
                Known::Said(CertificateStatus::Unknown, end) => Some((end, !allow)),
                Known::Asked if !last => {
                    waiting = true;
                    None
                }
                Known::Asked => Some((now + Duration::from_secs(1), require)),
                Known::Silent(end) => Some((end, require)),
            };
            if let Some((end, refused)) = silent {
                self.tell_silence(leaf, refused);
                if refused {
                    return Judgement::Lost(Lapse::Unknown);
                }
                until = until.min(end);
            }
        }
        if waiting {
            Judgement::Waiting
        } else {
            Judgement::Good(until)
        }
    }

    fn by_lists(&self, link: &Link, now: SystemTime) -> Status {
        if let Some(points) = &self.points {
            for gone in points.name(link, now) {
                self.lists.forget(&gone);
            }
        }
        self.lists.status(link, now)
    }

    /// Takes a list that was fetched, in DER or PEM form.
    ///
    /// # Errors
    /// [`ListError`]; what was held before goes on being held.
    pub(crate) fn take_list(
        &self,
        url: &Arc<str>,
        body: &[u8],
        now: SystemTime,
    ) -> Result<Taken, ListError> {
        let taken = self.read_list(url, body, now);
        if matches!(taken, Ok(Taken { changed: true, .. })) {
            self.changed();
        }
        taken
    }

    /// The list of a place, which its server says is still the one.
    ///
    /// # Errors
    /// [`ListError::Expired`] when there is none that can be believed.
    pub(crate) fn held_list(&self, url: &str, now: SystemTime) -> Result<Taken, ListError> {
        let list = self.lists.of(url).ok_or(ListError::Expired)?;
        list.timely(now)?;
        Ok(Taken {
            changed: false,
            issued: list.issued(),
            ends: list.ends(),
            entries: list.len(),
            verified: list.is_believed(),
        })
    }

    /// What is believed has changed, and the change is in force.
    fn changed(&self) {
        self.version.store(fresh_version(), Ordering::SeqCst);
        self.epoch.advance();
    }

    /// Changes whenever a judgement may come out otherwise, but for the clock's doing.
    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn read_list(&self, url: &Arc<str>, body: &[u8], now: SystemTime) -> Result<Taken, ListError> {
        let pem = body
            .trim_ascii_start()
            .starts_with(b"-----BEGIN ")
            .then(|| CertificateRevocationListDer::from_pem_slice(body))
            .transpose()
            .map_err(|_| ListError::Unreadable)?;
        let list = List::read(pem.as_ref().map_or(body, AsRef::as_ref))?;
        let configured = self.authorities.get(&list.issuer);
        let mut known: Vec<Arc<Authority>> = configured.cloned().unwrap_or_default();
        let before = known.len();
        {
            let met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
            let same = met.values().filter(|met| met.name == list.issuer);
            known.extend(same.map(Arc::clone));
        }
        // The keys of configured authorities are all there; an intermediate may have another one
        // that no chain has shown yet.
        let all = before > 0 && known.len() == before;
        self.lists.take(url, list, &known, all, now)
    }

    /// Notes how a fetch has ended, for those who wait for it. Gives whether an error is news.
    pub(crate) fn point_tried(&self, url: &str, error: Option<String>) -> bool {
        let news = self
            .points
            .as_ref()
            .is_some_and(|points| points.tried(url, error));
        self.news.send_modify(|news| *news += 1);
        news
    }

    /// Takes the answer to a question.
    ///
    /// # Errors
    /// [`AnswerError`]; the question counts as unanswered.
    pub(crate) fn answered(
        &self,
        question: Question,
        body: &[u8],
        now: SystemTime,
    ) -> Result<CertificateStatus, AnswerError> {
        let Some(ocsp) = &self.ocsp else {
            return Err(AnswerError::Other);
        };
        let issuer = question.issuer();
        let revoked = |serial: &[u8]| {
            let link = Link {
                serial: serial.into(),
                issuer: Arc::clone(&issuer),
                authority: false,
                points: Box::default(),
                responders: Box::default(),
            };
            self.lists.status(&link, now) == Status::Revoked
        };
        let answered = ocsp.answered(question, body, now, revoked);
        if matches!(answered, Ok((_, true))) {
            self.changed();
        }
        self.news.send_modify(|news| *news += 1);
        answered.map(|(status, _)| status)
    }

    /// Notes that a responder could not be asked.
    pub(crate) fn unanswered(&self, question: Question, now: SystemTime) {
        if let Some(ocsp) = &self.ocsp {
            ocsp.unanswered(question, now);
        }
        self.news.send_modify(|news| *news += 1);
    }

    /// Whether who was let in once has to be vouched for again, or waits in vain.
    fn insists(&self) -> bool {
        // With lists a silent responder is not passed over either: nobody may have spoken.
        let lists = self.config.has_lists() && !self.allows_unknown();
        let required = |ocsp: &Ocsp| ocsp.mode == OcspMode::Require || lists;
        self.ocsp.as_ref().is_some_and(required) || !self.allows_unknown() && self.points.is_some()
    }

    /// How long a new connection waits for what is being asked.
    fn patience(&self) -> Duration {
        let points = self.points.as_ref().map(|points| points.config().wait);
        let ocsp = self.ocsp.as_ref().map(|ocsp| ocsp.config().timeout);
        points
            .into_iter()
            .chain(ocsp)
            .max()
            .map_or(Duration::ZERO, crate::schema::Span::get)
    }

    /// The configured authorities of which no list in force speaks, in words: those whose clients
    /// are refused. Empty where lists are not asked for.
    pub fn without_lists(&self, now: SystemTime) -> Vec<String> {
        if !self.config.has_lists() {
            return Vec::new();
        }
        let all = self.authorities.values().flatten();
        let mut missing: Vec<String> = all
            .filter(|authority| !self.lists.has(authority, now))
            .map(|authority| authority.text.clone())
            .collect();
        missing.sort();
        missing
    }

    /// Whether lists are to be fetched and none has come since the start. Those that certificates name
    /// are not waited for: they come with the first client.
    pub fn is_blind(&self) -> bool {
        let points = self.config.distribution_points.as_ref();
        points.is_some_and(|points| !points.urls.is_empty()) && self.lists.is_empty()
    }

    /// Distribution points and their lists, for operators.
    pub fn point_statuses(&self) -> Vec<PointStatus> {
        let Some(points) = &self.points else {
            return Vec::new();
        };
        let failures: HashMap<Arc<str>, Option<String>> = points.failures().into_iter().collect();
        let mut all: Vec<PointStatus> = points
            .all()
            .into_iter()
            .map(|(url, _)| {
                let list = self.lists.of(&url);
                PointStatus {
                    list: list.as_ref().map(|list| (list.issued(), list.ends())),
                    entries: list.map_or(0, |list| list.len()),
                    last_error: failures.get(&url).cloned().flatten(),
                    url,
                }
            })
            .collect();
        all.sort_by(|a, b| a.url.cmp(&b.url));
        all
    }

    /// How many certificates answers of responders are held for; `None` where none are asked.
    pub fn answers(&self) -> Option<u64> {
        self.ocsp.as_ref().map(Ocsp::len)
    }

    /// Whether clients without a certificate are turned away.
    pub fn is_mandatory(&self) -> bool {
        self.mandatory
    }

    /// Whether who is not spoken of is let in.
    pub fn allows_unknown(&self) -> bool {
        self.config.unknown_status == UnknownStatus::Allow
    }

    /// Ours to mend, and caused only by clients with a certificate of an authority that we believe;
    /// said now and then.
    fn tell(&self, link: &Link, allowed: bool) {
        if self.may_tell() {
            tracing::warn!(
                at = %self.place,
                authority = %link.issuer.text,
                serves = allowed,
                "no revocation list of this authority is in force: it is missing, has expired, or is \
                 not signed by it"
            );
        }
    }

    fn tell_silence(&self, link: &Link, refused: bool) {
        if self.may_tell() {
            tracing::warn!(
                at = %self.place,
                authority = %link.issuer.text,
                refused,
                "no responder of this authority says that a client's certificate is good"
            );
        }
    }

    fn may_tell(&self) -> bool {
        let now = clock::unix_seconds(clock::now());
        self.told
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |told| {
                (told + TELL_EVERY <= now).then_some(now)
            })
            .is_ok()
    }
}

fn key(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for certificate in std::iter::once(leaf).chain(intermediates) {
        context.update(&certificate.len().to_be_bytes());
        context.update(certificate);
    }
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    out
}

/// The words of rustls for what its verifier of paths says.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library may add variants; they are counted as what is left over"
)]
fn pki_error(error: webpki::Error) -> Error {
    use webpki::Error as Path;
    let error = match error {
        Path::BadDer | Path::BadDerTime | Path::TrailingData(_) => CertificateError::BadEncoding,
        Path::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        Path::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        Path::InvalidCertValidity => CertificateError::Expired,
        Path::UnknownIssuer => CertificateError::UnknownIssuer,
        Path::CertRevoked => CertificateError::Revoked,
        Path::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        Path::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Path::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(error)
}

impl ClientCertVerifier for ClientTrust {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        self.verified(leaf, intermediates, now)
            .map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl fmt::Debug for ClientTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTrust")
            .field("place", &self.place)
            .field("authorities", &self.roots.len())
            .finish_non_exhaustive()
    }
}
