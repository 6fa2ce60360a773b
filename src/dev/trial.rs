//! `portcullis dev --try`: sends every scene over real sockets, rotates keys, reloads, and compares.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde::Serialize;
use tokio_rustls::TlsConnector;

use super::client::{Answer, Call, CallError};
use super::pki::Pki;
use super::scenes::{Places, Scene, scenes};
use super::terminal::{Terminal, Tone, shorten};
use super::token::{Request, TokenError};
use super::workspace::RECORDS;
use crate::metrics::Metrics;
use crate::schema::Compile;
use crate::tls::client::ClientTlsConfig;

/// How long a change (rotated keys, a reload) may take to be seen.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often is looked. Slow enough that refused attempts do not count as an attack.
const INTERVAL: Duration = Duration::from_millis(400);
/// How much of an answer is shown.
const SHOWN_ANSWER: usize = 110;
/// An order of alice.
const OWN_ORDER: &str = "/orders/1001";
/// Widths of the table's columns but the last.
const WIDTHS: [usize; 3] = [58, 8, 8];

/// Why the requests could not be tried at all.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// No tokens.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The development certificates do not load.
    #[error("the development certificates do not load: {0}")]
    Certificates(String),
    /// A file of the scratch copy could not be changed.
    #[error("cannot change {}", path.display())]
    Change {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// What was tried.
    pub request: String,
    /// What had to come of it.
    pub expected: String,
    /// What came of it.
    pub got: String,
    /// Whether that is the same.
    pub ok: bool,
    /// The answer, shortened.
    pub answer: String,
}

/// Tries everything against a gateway that runs a scratch copy.
pub(super) struct Trial<'a, W> {
    pub(super) places: &'a Places,
    /// The folder of the scratch copy, which is changed to try reloads.
    pub(super) scratch: &'a Path,
    /// Where the table goes; nowhere when a machine reads the result.
    pub(super) terminal: Option<Terminal<W>>,
    outcomes: Vec<Outcome>,
    /// Requests that the gateway answered.
    sent: usize,
}

impl<'a, W: Write> Trial<'a, W> {
    pub(super) fn new(
        places: &'a Places,
        scratch: &'a Path,
        terminal: Option<Terminal<W>>,
    ) -> Self {
        Self {
            places,
            scratch,
            terminal,
            outcomes: Vec::new(),
            sent: 0,
        }
    }

    /// Tries everything, in order; the table grows as it goes.
    pub(super) async fn run(mut self) -> Result<Vec<Outcome>, TrialError> {
        self.headline();
        for scene in scenes(self.places).await? {
            self.scene(&scene).await?;
        }
        self.rotation().await?;
        if self.places.admin.is_some() {
            self.reload().await?;
            self.revocation().await?;
        }
        self.records().await?;
        self.summary();
        Ok(self.outcomes)
    }

    async fn scene(&mut self, scene: &Scene) -> Result<(), TrialError> {
        let mut call = Call::new(scene.method.clone(), scene.url.clone());
        call.headers.clone_from(&scene.headers);
        call.body = scene.body.to_owned();
        call.tls = Some(connector(&self.places.pki, scene.certificate)?);

        let mut first = None;
        let mut last = self.send(&call).await;
        for _ in 1..scene.times {
            if let Ok(answer) = &last {
                first.get_or_insert(answer.status);
                if answer.status == scene.status {
                    break;
                }
            }
            last = self.send(&call).await;
        }
        match last {
            Ok(answer) => {
                let fault = (answer.status == scene.status)
                    .then(|| scene.check.fault(&answer, first.unwrap_or(answer.status)))
                    .flatten();
                self.record(scene.title, scene.status, &answer, fault);
            }
            Err(error) => self.failed(scene.title, scene.status, &error),
        }
        Ok(())
    }

    /// New keys are accepted without a restart; withdrawn ones are not accepted any more.
    async fn rotation(&mut self) -> Result<(), TrialError> {
        let issuer = self.places.issuer.clone();
        let before = Request::user("alice").mint(&issuer).await?;
        self.post(
            "key rotation: the issuer signs with new keys",
            format!("{issuer}/rotate"),
            200,
        )
        .await;
        let after = Request::user("alice").mint(&issuer).await?;
        self.wait_for("a token signed with a new key", OWN_ORDER, &after, 200)
            .await?;
        self.wait_for(
            "a token signed with the key before it",
            OWN_ORDER,
            &before,
            200,
        )
        .await?;

        let drop = format!("{issuer}/rotate?drop=1");
        self.post("the issuer withdraws all earlier keys", drop, 200)
            .await;
        let last = Request::user("alice").mint(&issuer).await?;
        self.wait_for("a token signed with the newest key", OWN_ORDER, &last, 200)
            .await?;
        self.wait_for(
            "a token signed with a withdrawn key",
            OWN_ORDER,
            &before,
            401,
        )
        .await
    }

    /// A good change is taken up, a bad one changes nothing.
    async fn reload(&mut self) -> Result<(), TrialError> {
        let token = Request::user("alice").mint(&self.places.issuer).await?;
        let data = self.scratch.join("policies/data.yaml");
        let policy = self.scratch.join("policies/orders.rego");
        let original = read(&data)?;

        write(
            &data,
            &original.replace("\"1003\": alice", "\"1003\": dave"),
        )?;
        self.post_reload("reload: order 1003 now belongs to dave", 200)
            .await;
        self.wait_for(
            "alice reads what is no longer hers",
            "/orders/1003",
            &token,
            403,
        )
        .await?;
        write(&data, &original)?;
        self.post_reload("reload: it is hers again", 200).await;
        self.wait_for("alice reads it again", "/orders/1003", &token, 200)
            .await?;

        write(
            &data,
            &original.replace("\"1001\": alice", "\"1001\": dave"),
        )?;
        self.post_reload(
            "reload: a change that fails the policy's tests is refused",
            422,
        )
        .await;
        write(&data, &original)?;
        write(&policy, "package orders\n\ndecision := {\n")?;
        self.post_reload("reload: a policy that does not parse is refused", 422)
            .await;
        self.wait_for(
            "the policy before it is still in force",
            OWN_ORDER,
            &token,
            200,
        )
        .await
    }

    /// Who is logged out everywhere loses what is open, too.
    async fn revocation(&mut self) -> Result<(), TrialError> {
        let Some(admin) = &self.places.admin else {
            return Ok(());
        };
        let token = Request::user("carol").mint(&self.places.issuer).await?;
        let mut live = Call::new(Method::GET, self.places.public("/live"));
        live.headers
            .push(("authorization", format!("Bearer {token}")));
        live.tls = Some(connector(&self.places.pki, None)?);
        let open = tokio::spawn(async move { live.send().await });
        let metrics = Call::new(Method::GET, admin.page("/metrics"));
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let answer = metrics.send().await;
            let page = answer.map(|answer| answer.body).unwrap_or_default();
            if String::from_utf8_lossy(&page).contains("\nportcullis_streams 1\n") {
                break;
            }
            tokio::time::sleep(INTERVAL).await;
        }
        let mut revoke = Call::new(Method::POST, admin.page("/revocations/logout"));
        revoke.headers.push(admin.header());
        let issuer = &self.places.issuer;
        revoke.body = serde_json::json!({"issuer": issuer, "subject": "carol"}).to_string();
        let title = "log carol out everywhere";
        match revoke.send().await {
            Ok(answer) => self.record(title, 200, &answer, None),
            Err(error) => self.failed(title, 200, &error),
        }
        self.sent += 1;
        let title = "the event stream that she had open ends and says why";
        match open.await {
            Ok(Ok(answer)) => {
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                let said = text.contains("event: portcullis.ended\ndata: {\"code\":\"revoked\"}");
                let fault = (!said).then(|| "a last event with the code `revoked`".to_owned());
                self.record(title, 200, &answer, fault);
            }
            Ok(Err(error)) => self.failed(title, 200, &error),
            Err(error) => self.failed(title, 200, &error),
        }
        self.wait_for("her token opens nothing any more", "/admin/x", &token, 401)
            .await
    }

    async fn post_reload(&mut self, title: &str, status: u16) {
        let Some(admin) = &self.places.admin else {
            return;
        };
        let mut call = Call::new(Method::POST, admin.page("/reload"));
        call.headers.push(admin.header());
        match call.send().await {
            Ok(answer) => self.record(title, status, &answer, None),
            Err(error) => self.failed(title, status, &error),
        }
    }

    /// Every request so far left one record, and nothing else did.
    async fn records(&mut self) -> Result<(), TrialError> {
        let file = self.scratch.join(RECORDS);
        let began = Instant::now();
        let mut records = read(&file)?.lines().count();
        while records < self.sent && began.elapsed() < PATIENCE {
            tokio::time::sleep(INTERVAL).await;
            records = read(&file)?.lines().count();
        }
        self.push(Outcome {
            request: "audit: one record for each request".to_owned(),
            expected: self.sent.to_string(),
            got: records.to_string(),
            ok: records == self.sent,
            answer: shorten(
                read(&file)?.lines().last().unwrap_or_default(),
                SHOWN_ANSWER,
            ),
        });
        Ok(())
    }

    /// Sends a request, and counts it if it is one that the gateway records.
    async fn send(&mut self, call: &Call) -> Result<Answer, CallError> {
        let answer = call.send().await;
        if call.url.starts_with("https:") && answer.is_ok() {
            self.sent += 1;
        }
        answer
    }

    async fn post(&mut self, title: &str, url: String, status: u16) {
        let call = Call::new(Method::POST, url);
        match call.send().await {
            Ok(answer) => self.record(title, status, &answer, None),
            Err(error) => self.failed(title, status, &error),
        }
    }

    /// Reads an order until the answer has this status, or patience ends.
    async fn wait_for(
        &mut self,
        title: &str,
        path: &str,
        token: &str,
        status: u16,
    ) -> Result<(), TrialError> {
        let mut call = Call::new(Method::GET, self.places.public(path));
        call.headers
            .push(("authorization", format!("Bearer {token}")));
        call.tls = Some(connector(&self.places.pki, None)?);
        let began = Instant::now();
        loop {
            let answer = self.send(&call).await;
            let right = answer.as_ref().is_ok_and(|answer| answer.status == status);
            if right || began.elapsed() >= PATIENCE {
                match answer {
                    Ok(answer) => self.record(title, status, &answer, None),
                    Err(error) => self.failed(title, status, &error),
                }
                return Ok(());
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn record(&mut self, title: &str, status: u16, answer: &Answer, fault: Option<String>) {
        let text = match (&fault, answer.json()) {
            (Some(fault), _) => format!("expected {fault}"),
            (None, serde_json::Value::Null) => String::from_utf8_lossy(&answer.body).into_owned(),
            (None, document) => document.to_string(),
        };
        self.push(Outcome {
            request: title.to_owned(),
            expected: status.to_string(),
            got: answer.status.to_string(),
            ok: answer.status == status && fault.is_none(),
            answer: shorten(&text, SHOWN_ANSWER),
        });
    }

    fn failed(&mut self, title: &str, status: u16, error: &dyn std::error::Error) {
        self.push(Outcome {
            request: title.to_owned(),
            expected: status.to_string(),
            got: "none".to_owned(),
            ok: false,
            answer: shorten(&error.to_string(), SHOWN_ANSWER),
        });
    }

    fn push(&mut self, outcome: Outcome) {
        if let Some(terminal) = &mut self.terminal {
            let (tone, mark) = match outcome.ok {
                true => (Tone::Good, "ok"),
                false => (Tone::Bad, "NO"),
            };
            terminal.row(
                &[
                    (Tone::Plain, &outcome.request),
                    (Tone::Plain, &outcome.expected),
                    (tone, &outcome.got),
                    (tone, mark),
                ],
                &WIDTHS,
            );
            let shown = terminal.tone(Tone::Faint, &format!("    {}", outcome.answer));
            terminal.line(&shown);
        }
        self.outcomes.push(outcome);
    }

    fn headline(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            let cells = ["request", "expected", "got", "ok"].map(|text| (Tone::Strong, text));
            terminal.row(&cells, &WIDTHS);
        }
    }

    fn summary(&mut self) {
        let all = self.outcomes.len();
        let wrong = self.outcomes.iter().filter(|outcome| !outcome.ok).count();
        if let Some(terminal) = &mut self.terminal {
            let text = match wrong {
                0 => terminal.tone(Tone::Good, &format!("all {all} did what they say")),
                _ => terminal.tone(
                    Tone::Bad,
                    &format!("{wrong} of {all} did not do what they say"),
                ),
            };
            terminal.line("");
            terminal.line(&text);
        }
    }
}

/// TLS that trusts the development authority and shows a client certificate, or none.
fn connector(pki: &Pki, certificate: Option<&str>) -> Result<TlsConnector, TrialError> {
    let config = ClientTlsConfig {
        authorities: vec!["ca.pem".into()],
        certificate: certificate.map(|name| format!("{name}.pem").into()),
        key: certificate.map(|name| format!("{name}.key").into()),
        ..ClientTlsConfig::default()
    };
    // Paths are relative to the folder of the file that the context is about.
    let mut cx = Compile::new(&pki.authority(), Arc::new(Metrics::default()));
    let compiled = config.compile(&[b"http/1.1"], &mut cx);
    compiled.map(TlsConnector::from).ok_or_else(|| {
        let (problems, _) = cx.finish();
        let texts: Vec<String> = problems.into_iter().map(|p| p.message).collect();
        TrialError::Certificates(texts.join("; "))
    })
}

fn read(path: &Path) -> Result<String, TrialError> {
    fs::read_to_string(path).map_err(|source| TrialError::Change {
        path: path.to_path_buf(),
        source,
    })
}

/// Replaces a file in one step, as an editor or a deployment does.
fn write(path: &Path, text: &str) -> Result<(), TrialError> {
    let beside = path.with_extension("new");
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|source| TrialError::Change {
            path: path.to_path_buf(),
            source,
        })
}
