//! The standing of an open connection's certificate, judged again whenever something may have
//! changed.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{Chain, ClientTrust, Judgement, Lapse, Stage};
use crate::clock;
use crate::epoch::Epoch;

/// How long before its end a standing is judged again, so that a responder can be asked in time.
pub(crate) const AHEAD: Duration = Duration::from_secs(2);

/// Who believes a connection's certificate in the configuration that is in force.
#[derive(Debug)]
pub enum Believer {
    /// Its listener does, or not.
    Trust(Arc<ClientTrust>),
    /// Its listener asks for no certificates any more.
    Nobody,
    /// Its listener is gone, and its connections are being drained: whoever admitted them.
    Gone,
}

/// The standing of one connection's certificate. Once lost, it stays lost: the client may begin a new
/// connection and show what it has.
pub struct Standing {
    chain: Arc<Chain>,
    /// What admitted it; judges it when its listener is gone from the configuration.
    own: Arc<ClientTrust>,
    /// One more than the epoch at which it was last found good; zero for never.
    seen: AtomicU64,
    /// Milliseconds since 1970 until which that holds if the epoch does not move.
    until: AtomicU64,
    /// Of what found it good.
    version: AtomicU64,
    lost: OnceLock<Lapse>,
    ended: Notify,
}

impl Standing {
    pub(in crate::tls) fn new(chain: Arc<Chain>, own: Arc<ClientTrust>) -> Self {
        Self {
            chain,
            own,
            seen: AtomicU64::new(0),
            until: AtomicU64::new(0),
            version: AtomicU64::new(0),
            lost: OnceLock::new(),
            ended: Notify::new(),
        }
    }

    /// Whether it was found good and nothing has changed since: two loads beside the epoch's.
    pub fn holds(&self, epoch: &Epoch, now: SystemTime) -> bool {
        self.seen.load(Ordering::Acquire) == epoch.now().wrapping_add(1)
            && millis(now) < self.until.load(Ordering::Acquire)
    }

    /// Why it was lost, when it was.
    pub fn lost(&self) -> Option<Lapse> {
        self.lost.get().copied()
    }

    /// Resolves when it is lost.
    pub async fn ended(&self) {
        let ended = self.ended.notified();
        if self.lost.get().is_none() {
            ended.await;
        }
    }

    /// Judges it by what is in force now, as `find` gives it. Does not wait for anybody: while
    /// somebody is being asked, nothing has changed.
    ///
    /// # Errors
    /// [`Lapse`]; from then on for ever.
    pub fn look(
        &self,
        find: impl Fn() -> Believer,
        epoch: &Epoch,
        now: SystemTime,
    ) -> Result<(), Lapse> {
        match self.judge(&find, epoch, now, Stage::Open).1 {
            Judgement::Good(_) | Judgement::Waiting => Ok(()),
            Judgement::Lost(lapse) => Err(lapse),
        }
    }

    /// As [`Standing::look`], but waits for what is being asked, for as long as the configuration
    /// allows; then it decides without.
    ///
    /// # Errors
    /// [`Lapse`]; from then on for ever.
    pub async fn settle(
        &self,
        find: impl Fn() -> Believer,
        epoch: &Epoch,
        now: SystemTime,
    ) -> Result<(), Lapse> {
        let begun = Instant::now();
        let mut now = now;
        let mut stage = Stage::Open;
        loop {
            // What comes between this and the judgement is not missed.
            let mut news = self.believer(&find).news.subscribe();
            let (trust, judgement) = self.judge(&find, epoch, now, stage);
            match judgement {
                Judgement::Good(_) => return Ok(()),
                Judgement::Lost(lapse) => return Err(lapse),
                Judgement::Waiting if stage == Stage::Last => return Ok(()),
                Judgement::Waiting => {}
            }
            // Where silence lets in, who has been let in does not wait for it again.
            let vouched = self.seen.load(Ordering::Acquire) != 0 && !trust.insists();
            let deadline = begun + trust.patience();
            if vouched || !matches!(timeout_at(deadline, news.changed()).await, Ok(Ok(()))) {
                stage = Stage::Last;
            }
            now = clock::now();
        }
    }

    fn believer(&self, find: &impl Fn() -> Believer) -> Arc<ClientTrust> {
        match find() {
            Believer::Trust(trust) => trust,
            Believer::Nobody | Believer::Gone => Arc::clone(&self.own),
        }
    }

    fn judge(
        &self,
        find: &impl Fn() -> Believer,
        epoch: &Epoch,
        now: SystemTime,
        stage: Stage,
    ) -> (Arc<ClientTrust>, Judgement) {
        if let Some(lapse) = self.lost() {
            return (Arc::clone(&self.own), Judgement::Lost(lapse));
        }
        // Read first, and what is in force after it: a change in between leaves a number behind that
        // is not the current one, so this judgement is not believed for long.
        let before = epoch.now();
        let trust = match find() {
            Believer::Trust(trust) => trust,
            Believer::Gone => Arc::clone(&self.own),
            Believer::Nobody => {
                self.lose(Lapse::Authority);
                return (Arc::clone(&self.own), Judgement::Lost(Lapse::Authority));
            }
        };
        let version = trust.version();
        let until = self.until.load(Ordering::Acquire);
        if version == self.version.load(Ordering::Acquire) && millis(now + AHEAD) < until {
            // The epoch has moved for another reason, as it does for every revoked token.
            self.seen.store(before.wrapping_add(1), Ordering::Release);
            let until = SystemTime::UNIX_EPOCH + Duration::from_millis(until);
            return (trust, Judgement::Good(until));
        }
        let judgement = trust.judge(&self.chain, now, stage);
        match judgement {
            Judgement::Good(until) => {
                self.until.store(millis(until), Ordering::Release);
                self.version.store(version, Ordering::Release);
                self.seen.store(before.wrapping_add(1), Ordering::Release);
            }
            Judgement::Waiting => {}
            Judgement::Lost(lapse) => self.lose(lapse),
        }
        (trust, judgement)
    }

    fn lose(&self, lapse: Lapse) {
        if self.lost.set(lapse).is_ok() {
            self.seen.store(0, Ordering::Release);
            self.ended.notify_waiters();
        }
    }

    /// When the first certificate of the chain ends.
    pub fn until(&self) -> SystemTime {
        self.chain.until
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing")
            .field("lost", &self.lost())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::clients::ClientCertificatesConfig;
    use crate::tls::server::{ClientCertificateMode, ServerTlsConfig};
    use crate::tls::testing::{Authority as Signer, compile};

    fn trust(signer: &Signer) -> Arc<ClientTrust> {
        let (chain, key) = signer.server(&["a.test"]);
        let files = [("a.pem", chain), ("a.key", key), ("ca.pem", signer.pem())];
        let config: ServerTlsConfig =
            serde_yaml::from_str("certificates: [{ chain: a.pem, key: a.key }]").unwrap();
        let config = ServerTlsConfig {
            client_certificates: ClientCertificatesConfig {
                mode: ClientCertificateMode::Required,
                authorities: vec!["ca.pem".into()],
                ..ClientCertificatesConfig::default()
            },
            ..config
        };
        let (tls, problems) = compile(&files, |cx| config.compile(None, cx));
        assert!(problems.is_empty(), "{problems:?}");
        Arc::clone(tls.unwrap().clients().unwrap())
    }

    fn standing(signer: &Signer, trust: &Arc<ClientTrust>) -> Standing {
        let (leaf, ..) = signer.leaf(|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        });
        let chain = trust.chain(&[leaf], clock::now()).unwrap();
        Standing::new(chain, Arc::clone(trust))
    }

    #[test]
    fn a_change_between_look_and_memo_is_not_lost() {
        let (ours, theirs) = (Signer::new("ours"), Signer::new("theirs"));
        let (before, after) = (trust(&ours), trust(&theirs));
        let standing = standing(&ours, &before);
        let epoch = Epoch::default();
        let now = clock::now();
        assert!(!standing.holds(&epoch, now));
        // Another configuration comes into force right after the old one was found.
        let find = || {
            let found = Believer::Trust(Arc::clone(&before));
            epoch.advance();
            found
        };
        assert_eq!(standing.look(find, &epoch, now), Ok(()));
        assert!(!standing.holds(&epoch, now), "judged by what is gone");
        let find = || Believer::Trust(Arc::clone(&after));
        assert_eq!(standing.look(find, &epoch, now), Err(Lapse::Authority));
        // For ever.
        let find = || Believer::Trust(Arc::clone(&before));
        assert_eq!(standing.look(find, &epoch, now), Err(Lapse::Authority));
        assert!(!standing.holds(&epoch, now));
    }

    #[test]
    fn what_was_found_good_holds_until_something_changes_or_ends() {
        let ours = Signer::new("ours");
        let trust = trust(&ours);
        let one = standing(&ours, &trust);
        let epoch = Epoch::default();
        let now = clock::now();
        let find = || Believer::Trust(Arc::clone(&trust));
        assert_eq!(one.look(find, &epoch, now), Ok(()));
        assert!(one.holds(&epoch, now));
        assert!(!one.holds(&epoch, one.until()));
        epoch.advance();
        assert!(!one.holds(&epoch, now));
        assert_eq!(one.look(|| Believer::Gone, &epoch, now), Ok(()));
        assert!(one.holds(&epoch, now));
        assert_eq!(one.look(find, &epoch, one.until()), Err(Lapse::Expired));
        let other = standing(&ours, &trust);
        let refused = other.look(|| Believer::Nobody, &epoch, now);
        assert_eq!(refused, Err(Lapse::Authority));
    }
}
