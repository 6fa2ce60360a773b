//! What responders have said, for all workers: bounded, asked for once at a time, and not asked for
//! again at once when nobody answers.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use moka::sync::Cache;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::chain::{Authority, Link};
use super::config::{OcspConfig, OcspMode, is_allowed};
use super::ocsp::{Answer, AnswerError, CertificateStatus, Freshness, Inquiry};

/// Most questions that wait to be asked; further ones count as unanswered.
const MAX_WAITING: usize = 1024;

/// The first pause after a question was not answered; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Most responders whose silence is remembered.
const MAX_SILENT: usize = 64;

/// What is known of a certificate's standing with its responder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It said so, and that is believed for so long.
    Said(CertificateStatus, SystemTime),
    /// It is being asked.
    Asked,
    /// It did not answer, and is not asked again before then.
    Silent(SystemTime),
}

/// Asks responders.
pub(crate) struct Ocsp {
    pub(super) mode: OcspMode,
    config: OcspConfig,
    answers: Cache<[u8; 32], Arc<Entry>>,
    silent: Mutex<HashMap<Arc<str>, Silence>>,
    queue: mpsc::Sender<Question>,
    /// Until the task that asks has begun.
    questions: Mutex<Option<mpsc::Receiver<Question>>>,
}

/// A question on its way to a responder.
#[derive(Debug)]
pub struct Question {
    /// Where it goes.
    pub url: Arc<str>,
    inquiry: Inquiry,
    entry: Arc<Entry>,
    done: bool,
}

#[derive(Debug, Default)]
struct Entry(Mutex<State>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    said: Option<(CertificateStatus, SystemTime)>,
    /// `thisUpdate` of the newest answer.
    issued: Option<SystemTime>,
    asked: bool,
    silent: Option<Silence>,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    until: SystemTime,
    pause: Duration,
}

impl Silence {
    fn after(previous: Option<Self>, now: SystemTime) -> Self {
        let pause = previous.map_or(FIRST_PAUSE, |before| (before.pause * 2).min(LAST_PAUSE));
        Self {
            until: now + pause,
            pause,
        }
    }
}

impl Entry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    /// Who signed the certificate that it is about.
    pub(super) fn issuer(&self) -> Arc<Authority> {
        self.inquiry.issuer()
    }

    /// The body to send, as `application/ocsp-request`.
    pub fn body(&self) -> Vec<u8> {
        self.inquiry.question()
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // One that was never asked must not look as if it were under way for ever.
        if !self.done {
            self.entry.state().asked = false;
        }
    }
}

impl Ocsp {
    pub(super) fn new(config: &OcspConfig, previous: Option<&Self>) -> Self {
        let (queue, questions) = mpsc::channel(MAX_WAITING);
        let same = previous.filter(|previous| previous.config.max_answers == config.max_answers);
        Self {
            mode: config.mode,
            config: config.clone(),
            // A clone is the same cache.
            answers: same.map_or_else(
                || {
                    Cache::builder()
                        .max_capacity(u64::from(config.max_answers))
                        .build()
                },
                |previous| previous.answers.clone(),
            ),
            silent: Mutex::default(),
            queue,
            questions: Mutex::new(Some(questions)),
        }
    }

    /// The questions to be asked; given out once.
    pub(crate) fn questions(&self) -> Option<mpsc::Receiver<Question>> {
        let mut questions = self
            .questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        questions.take()
    }

    /// The section.
    pub(crate) fn config(&self) -> &OcspConfig {
        &self.config
    }

    /// How many certificates are held answers for.
    pub(crate) fn len(&self) -> u64 {
        self.answers.entry_count()
    }

    /// What is known of a certificate now. Has the responder asked when that is nothing, or when it
    /// ends soon.
    pub(super) fn ask(&self, link: &Link, now: SystemTime) -> Known {
        let entry = self
            .answers
            .get_with(link.id(), || Arc::new(Entry::default()));
        let mut state = entry.state();
        let said = state.said.filter(|(_, until)| *until > now);
        if let Some((status, until)) = said {
            // Ahead of its end, so that nobody has to wait for the next one.
            if until > now + self.ahead() {
                return Known::Said(status, until);
            }
        }
        if !state.asked && state.silent.is_none_or(|silence| silence.until <= now) {
            match self.send(link, &entry, now) {
                Ok(()) => state.asked = true,
                Err(silence) => state.silent = Some(silence),
            }
        }
        match (said, state.asked, state.silent) {
            (Some((status, until)), _, _) => Known::Said(status, until),
            (None, true, _) => Known::Asked,
            (None, false, Some(silence)) => Known::Silent(silence.until),
            (None, false, None) => Known::Silent(now + FIRST_PAUSE),
        }
    }

    /// How long before its end an answer is asked for again.
    fn ahead(&self) -> Duration {
        (self.config.timeout.get() * 2).min(self.config.minimum.get() / 2)
    }

    fn send(&self, link: &Link, entry: &Arc<Entry>, now: SystemTime) -> Result<(), Silence> {
        let silence = Silence {
            until: now + FIRST_PAUSE,
            pause: FIRST_PAUSE,
        };
        let url = match &self.config.responder {
            Some(url) => Some(Arc::from(url.as_str())),
            None => link
                .responders
                .iter()
                .find(|url| is_allowed(url, &self.config.from_certificates))
                .map(Arc::clone),
        };
        let (Some(url), Some(inquiry)) = (url, Inquiry::about(link, self.config.nonce)) else {
            return Err(Silence {
                until: now + LAST_PAUSE,
                pause: LAST_PAUSE,
            });
        };
        if let Some(known) = self.silent().get(&url).filter(|known| known.until > now) {
            return Err(*known);
        }
        let question = Question {
            url,
            inquiry,
            entry: Arc::clone(entry),
            done: false,
        };
        match self.queue.try_send(question) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(mut question) | TrySendError::Closed(mut question)) => {
                // The caller holds the entry, and says itself that nothing was asked.
                question.done = true;
                Err(silence)
            }
        }
    }

    fn silent(&self) -> MutexGuard<'_, HashMap<Arc<str>, Silence>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a question got no answer at all.
    pub(super) fn unanswered(&self, mut question: Question, now: SystemTime) {
        question.done = true;
        {
            let mut silent = self.silent();
            if silent.len() >= MAX_SILENT {
                silent.retain(|_, silence| silence.until > now);
            }
            let silence = Silence::after(silent.get(&question.url).copied(), now);
            if silent.len() < MAX_SILENT {
                silent.insert(Arc::clone(&question.url), silence);
            }
        }
        Self::note_silence(&question, now);
    }

    fn note_silence(question: &Question, now: SystemTime) {
        let mut state = question.entry.state();
        state.asked = false;
        state.silent = Some(Silence::after(state.silent, now));
    }

    /// Takes an answer. Gives what it says, and whether somebody may have to go because of it.
    pub(super) fn answered(
        &self,
        mut question: Question,
        body: &[u8],
        now: SystemTime,
        revoked: impl Fn(&[u8]) -> bool,
    ) -> Result<(CertificateStatus, bool), AnswerError> {
        question.done = true;
        self.silent().remove(&question.url);
        let fresh = Freshness {
            leeway: self.config.leeway.get(),
            maximum: self.config.maximum.get(),
        };
        let believed = question.inquiry.believe(body, now, fresh, revoked);
        let Answer {
            status,
            issued,
            ends,
        } = match believed {
            Ok(answer) => answer,
            Err(error) => {
                Self::note_silence(&question, now);
                return Err(error);
            }
        };
        let until = ends.unwrap_or(now).clamp(
            now + self.config.minimum.get(),
            now + self.config.maximum.get(),
        );
        let mut state = question.entry.state();
        // An answer from before the last one is one that somebody has kept.
        if state.issued.is_some_and(|before| issued < before) {
            drop(state);
            Self::note_silence(&question, now);
            return Err(AnswerError::Stale);
        }
        // Once for each certificate: who was refused before comes again as often as it likes.
        let worse = status != CertificateStatus::Good
            && state.said.is_none_or(|(before, _)| before != status);
        *state = State {
            said: Some((status, until)),
            issued: Some(issued),
            asked: false,
            silent: None,
        };
        drop(state);
        Ok((status, worse))
    }
}

impl fmt::Debug for Ocsp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ocsp")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Authority as Signer;

    fn ocsp(config: OcspConfig) -> Ocsp {
        let config = OcspConfig {
            mode: OcspMode::Require,
            responder: Some("http://127.0.0.1:9/".to_owned()),
            ..config
        };
        Ocsp::new(&config, None)
    }

    fn link(issuer: &Arc<Authority>, serial: u32) -> Link {
        Link {
            serial: serial.to_be_bytes().into(),
            issuer: Arc::clone(issuer),
            authority: false,
            points: Box::default(),
            responders: Box::new([Arc::from("http://elsewhere.test/")]),
        }
    }

    fn issuer() -> Arc<Authority> {
        let pem = Signer::new("ca").pem().into_bytes();
        let roots = crate::tls::pem::authorities(&[pem]).unwrap();
        Arc::new(Authority::of_anchor(&roots.roots[0]))
    }

    #[test]
    fn one_certificate_is_asked_about_once_and_many_only_up_to_the_bound() {
        let ocsp = ocsp(OcspConfig::default());
        let issuer = issuer();
        let now = crate::clock::now();
        for _ in 0..3 {
            assert_eq!(ocsp.ask(&link(&issuer, 0), now), Known::Asked);
        }
        for serial in 1..u32::try_from(MAX_WAITING).unwrap() {
            assert_eq!(ocsp.ask(&link(&issuer, serial), now), Known::Asked);
        }
        // No room: as if it did not answer, and later it is asked.
        assert!(matches!(
            ocsp.ask(&link(&issuer, 1 << 30), now),
            Known::Silent(_)
        ));
        let mut questions = ocsp.questions().unwrap();
        assert!(ocsp.questions().is_none());
        let mut waiting = 0;
        while questions.try_recv().is_ok() {
            waiting += 1;
        }
        assert_eq!(waiting, MAX_WAITING);
        // Questions that were dropped are not under way any more.
        assert_eq!(ocsp.ask(&link(&issuer, 0), now), Known::Asked);
        assert!(questions.try_recv().is_ok());
        let later = now + FIRST_PAUSE;
        assert_eq!(ocsp.ask(&link(&issuer, 1 << 30), later), Known::Asked);
    }

    #[test]
    fn a_silent_responder_is_left_alone_for_ever_longer_and_not_for_ever() {
        let ocsp = ocsp(OcspConfig::default());
        let issuer = issuer();
        let mut questions = ocsp.questions().unwrap();
        let mut now = crate::clock::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert_eq!(ocsp.ask(&link(&issuer, 1), now), Known::Asked);
            ocsp.unanswered(questions.try_recv().unwrap(), now);
            let Known::Silent(until) = ocsp.ask(&link(&issuer, 1), now) else {
                panic!("asked again at once");
            };
            // Nobody else has to wait for it either.
            assert!(matches!(ocsp.ask(&link(&issuer, 2), now), Known::Silent(_)));
            pauses.push(until.duration_since(now).unwrap().as_secs());
            now = until;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn only_allowed_responders_of_certificates_are_asked() {
        let mut config = OcspConfig {
            mode: OcspMode::Require,
            from_certificates: vec!["http://ocsp.test/".to_owned()],
            ..OcspConfig::default()
        };
        let (issuer, now) = (issuer(), crate::clock::now());
        let first = Ocsp::new(&config, None);
        assert!(matches!(
            first.ask(&link(&issuer, 1), now),
            Known::Silent(_)
        ));
        config.from_certificates = vec!["http://elsewhere.test/".to_owned()];
        let second = Ocsp::new(&config, None);
        assert_eq!(second.ask(&link(&issuer, 1), now), Known::Asked);
        let question = second.questions().unwrap().try_recv().unwrap();
        assert_eq!(&*question.url, "http://elsewhere.test/");
    }

    #[test]
    fn answers_are_kept_for_so_many_certificates_and_no_more() {
        let ocsp = ocsp(OcspConfig {
            max_answers: 10,
            ..OcspConfig::default()
        });
        let (issuer, now) = (issuer(), crate::clock::now());
        for serial in 0..500 {
            let _ = ocsp.ask(&link(&issuer, serial), now);
        }
        ocsp.answers.run_pending_tasks();
        assert!(ocsp.len() <= 10, "{}", ocsp.len());
    }
}
