//! A block of `bundles` in the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::archive::{self, Bounds, Files};
use super::fault::{Fault, Kind};
use super::poll::{Remote, Timing};
use super::signature::{Key, SigningAlgorithm, Verifier};
use super::{Bundle, Hub, Reader, Source};
use crate::fetch::{Fetcher, Target};
use crate::kept;
use crate::schema::{Compile, ContentDigest, Named, Secret, SecretRef, Size, Span};

/// Shortest and longest time for one download.
const TIMEOUT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// Shortest and longest pause between two questions.
const DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(86_400));
/// Shortest and longest time that the server may keep a question.
const LONG_POLL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1_800));
/// Least and most bytes of an archive.
const SIZE: (Size, Size) = (Size::kib(1), Size::mib(256));
/// Least and most bytes of an archive that is unpacked.
const UNPACKED: (Size, Size) = (Size::kib(1), Size::mib(1024));
/// Most asterisks in a pattern: each multiplies the ways to match.
const MAX_STARS: usize = 4;

/// One block of the `bundles` section: policies and data in OPA's bundle format, from a file or an
/// HTTP server. Policies name it in their `bundles`.
///
/// A bundle is taken whole or not at all: unpacked within bounds, verified, tried with every policy
/// that uses it, and put in force for all of them at once. When any of this fails, the one before stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// A `.tar.gz` of at most 16 MiB, or a folder that is read as one. It is watched. Either this or
    /// `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Where a `.tar.gz` is downloaded from, again and again: https; http on a loopback address, or
    /// where `signing` says what to believe. Redirects are not followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Sent to the server as `Authorization: Bearer …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretRef>,
    /// Further headers for the server; each value is a reference to a secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, SecretRef>,
    /// Files with the certificate authorities (PEM) that are trusted. Default: the public web's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<PathBuf>,
    /// Longest time for one download, `1s` to `10m`. A question that the server keeps
    /// (`long_polling_timeout`) has so much more.
    #[serde(default = "thirty_seconds")]
    pub timeout: Span,
    /// How often the server is asked.
    #[serde(default)]
    pub polling: PollingConfig,
    /// Largest archive as it comes, `1KiB` to `256MiB`.
    #[serde(default = "max_size")]
    pub max_size: Size,
    /// Largest archive when it is unpacked, `1KiB` to `1GiB`. Its documents may hold one value for every
    /// 8 bytes of it.
    #[serde(default = "max_unpacked")]
    pub max_unpacked: Size,
    /// Who must have signed it. Default: nobody; the server and the way from it are believed, and a
    /// bundle that is signed all the same is refused, as OPA does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<SigningConfig>,
    /// A file of the gateway's own in which the last good bundle is kept, so that it can start when
    /// the server is out of reach. It is verified again when it is read. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<PathBuf>,
    /// What happens to a bundle that is older than the one in force, by `iat` of its signature or by
    /// `metadata.sequence` of its manifest.
    #[serde(default)]
    pub rollback: RollbackRule,
}

/// What happens to an older bundle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RollbackRule {
    /// It is refused, and so is one that no longer says how old it is.
    #[default]
    Refuse,
    /// It is taken, with a warning in the log.
    Allow,
}

/// How often the server of a bundle is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PollingConfig {
    /// Shortest pause between two questions, `100ms` to `1d`.
    pub min_delay: Span,
    /// Longest pause, `100ms` to `1d`. Each is somewhere between the two, so that many gateways do
    /// not come at once. After failures pauses grow from a second to this.
    pub max_delay: Span,
    /// How long the server may keep a question until there is something new, `1s` to `30m`. It is
    /// kept up as long as the server answers with the content type
    /// `application/vnd.openpolicyagent.bundles`. Default: the server is asked at intervals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_polling_timeout: Option<Span>,
}

impl Default for PollingConfig {
    fn default() -> Self {
        Self {
            min_delay: Span::seconds(60),
            max_delay: Span::seconds(120),
            long_polling_timeout: None,
        }
    }
}

/// Who must have signed a bundle, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigningConfig {
    /// The keys that may have signed, by their ids.
    pub keys: Named<SigningKeyConfig>,
    /// The id of the one key that counts. Default: the one that the signature names (`kid` of its
    /// header, or `keyid`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyid: Option<String>,
    /// What the signature's `scope` must be. Default: it must have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// Names of files in the bundle that need no hash; `*` stands for anything but a slash. What
    /// matches decides all the same, as it does in OPA.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_files: Vec<String>,
}

/// One key for bundles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigningKeyConfig {
    /// The only algorithm for this key.
    pub algorithm: SigningAlgorithm,
    /// A public key or a certificate in PEM (`file:keys/bundles.pem`); for `HS*` a secret of at least
    /// 32 bytes.
    pub key: SecretRef,
}

const fn thirty_seconds() -> Span {
    Span::seconds(30)
}

const fn max_size() -> Size {
    Size::mib(16)
}

const fn max_unpacked() -> Size {
    Size::mib(64)
}

impl BundleConfig {
    /// Compiles one block. A file is read here; what is downloaded is taken over from `previous`, or
    /// read from where it is kept.
    pub fn compile(
        self,
        name: &str,
        previous: Option<&Arc<Bundle>>,
        hub: &Arc<Hub>,
        cx: &mut Compile,
    ) -> Option<Arc<Bundle>> {
        let before = cx.errors();
        self.check(cx);
        let mut marks = Marks::default();
        let verifier = self.verifier(&mut marks, cx);
        marks.add(format!("{self:?}").as_bytes());
        let remote = self.remote(&mut marks, cx);
        let fingerprint = marks.digest();
        let kept = self
            .persist
            .as_ref()
            .map(|path| Arc::from(cx.place_of(path)));
        let reader = Reader {
            bounds: Bounds {
                packed: self.max_size.get(),
                unpacked: self.max_unpacked.get(),
            },
            verifier,
            rollback: self.rollback,
        };
        if self.signing.is_none() {
            cx.warning(
                "the bundle is not verified: whoever can replace it decides",
                "have it signed, and name the keys in `signing`",
            );
        }
        if let Some(path) = &self.file {
            let read = cx.at("file", |cx| read_file(path, &reader.bounds, cx));
            let (files, packed) = read.filter(|_| cx.errors() == before)?;
            return self.local(name, &files, packed, reader, fingerprint, previous, hub, cx);
        }
        let remote = remote.filter(|_| cx.errors() == before)?;
        if let Some(previous) = previous
            && previous.fingerprint == fingerprint
        {
            if previous.active().is_none() {
                absent(cx);
            }
            return Some(Arc::clone(previous));
        }
        let bundle = Bundle::new(
            name,
            Source::Remote(Arc::new(remote)),
            reader,
            hub,
            &cx.metrics,
        )
        .marked(fingerprint)
        .kept_in(kept.clone());
        // What another source brought is good until this one has brought something, unless it would
        // not be believed any more.
        let earlier = previous
            .and_then(|previous| previous.active())
            .filter(|content| bundle.reader.believes(content));
        if let Some(earlier) = earlier {
            bundle.begin_with(earlier, false);
        } else if let Some(path) = kept {
            match kept::read(&path, bundle.reader.bounds.packed) {
                Ok(None) => {}
                Ok(Some(bytes)) => match bundle.reader.read(&bytes) {
                    Ok(content) => bundle.begin_with(Arc::new(content), true),
                    Err(fault) => cx.at("persist", |cx| {
                        cx.warning(
                            format!("the bundle that was kept in {} is not used: {fault}", path.display()),
                            "it is written anew when one has been downloaded",
                        );
                    }),
                },
                Err(error) => cx.at("persist", |cx| {
                    cx.warning(
                        format!("the bundle that was kept in {} is not used: {error}", path.display()),
                        "the file and its folder must belong to the gateway's user, and nobody else may write there",
                    );
                }),
            }
        }
        if bundle.active().is_none() {
            absent(cx);
        }
        Some(Arc::new(bundle))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what a file and a download share, and what not"
    )]
    fn local(
        &self,
        name: &str,
        files: &Files,
        packed: usize,
        reader: Reader,
        fingerprint: ContentDigest,
        previous: Option<&Arc<Bundle>>,
        hub: &Arc<Hub>,
        cx: &mut Compile,
    ) -> Option<Arc<Bundle>> {
        let earlier = previous.and_then(|previous| previous.active());
        let outcome = reader.take(files, packed).and_then(|content| {
            let same = earlier
                .as_ref()
                .is_some_and(|earlier| earlier.digest == content.digest);
            if let Some(earlier) = &earlier
                && !same
                && reader.believes(earlier)
            {
                reader.newer(name, earlier, &content)?;
            }
            Ok((content, same))
        });
        match outcome {
            Ok((_, true))
                if previous.is_some_and(|previous| previous.fingerprint == fingerprint) =>
            {
                previous.inspect(|previous| previous.unchanged()).cloned()
            }
            Ok((content, _)) => {
                let bundle =
                    Bundle::new(name, Source::File, reader, hub, &cx.metrics).marked(fingerprint);
                bundle.begin_with(Arc::new(content), false);
                Some(Arc::new(bundle))
            }
            Err(fault) => {
                if let Some(previous) = previous {
                    previous.failed(&fault);
                }
                let help = fault
                    .help
                    .clone()
                    .unwrap_or_else(|| "mend the bundle".to_owned());
                let message = Fault {
                    help: None,
                    ..fault
                }
                .to_string();
                cx.at("file", |cx| cx.problem_help(message, help));
                None
            }
        }
    }

    fn check(&self, cx: &mut Compile) {
        match (&self.file, &self.url) {
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => cx.problem_help(
                "the bundle says neither where it is nor where it comes from",
                "add `url: https://…`, or `file:` with a `.tar.gz` or a folder",
            ),
            (Some(_), Some(_)) => cx.at("file", |cx| {
                cx.problem_help("the bundle has both `file` and `url`", "remove one of them");
            }),
        }
        if self.file.is_some() {
            for (key, said) in [
                ("token", self.token.is_some()),
                ("headers", !self.headers.is_empty()),
                ("authorities", !self.authorities.is_empty()),
                ("persist", self.persist.is_some()),
            ] {
                if said {
                    cx.at(key, |cx| {
                        cx.problem_help(format!("`{key}` means nothing with `file`"), "remove it");
                    });
                }
            }
        }
        range(
            "timeout",
            self.timeout.get(),
            TIMEOUT,
            "between `1s` and `10m`",
            cx,
        );
        cx.at("polling", |cx| {
            let (min, max) = (self.polling.min_delay.get(), self.polling.max_delay.get());
            range("min_delay", min, DELAY, "between `100ms` and `1d`", cx);
            range("max_delay", max, DELAY, "between `100ms` and `1d`", cx);
            if min > max {
                cx.at("max_delay", |cx| {
                    cx.problem_help("the longest pause is shorter than the shortest", "raise it");
                });
            }
            if let Some(wait) = self.polling.long_polling_timeout {
                let hint = "between `1s` and `30m`";
                range("long_polling_timeout", wait.get(), LONG_POLL, hint, cx);
            }
        });
        for (key, size, bounds) in [
            ("max_size", self.max_size, SIZE),
            ("max_unpacked", self.max_unpacked, UNPACKED),
        ] {
            if !(bounds.0..=bounds.1).contains(&size) {
                cx.at(key, |cx| {
                    let help = format!("between `{}` and `{}`", bounds.0, bounds.1);
                    cx.problem_help("the size is out of range", help);
                });
            }
        }
        if let Some(signing) = &self.signing {
            cx.at("signing", |cx| signing.check(cx));
        }
    }

    fn verifier(&self, marks: &mut Marks, cx: &mut Compile) -> Option<Verifier> {
        let signing = self.signing.as_ref()?;
        let mut keys = BTreeMap::new();
        cx.at("signing", |cx| {
            cx.at("keys", |cx| {
                for (id, config) in &signing.keys {
                    cx.at(id.clone(), |cx| {
                        cx.at("key", |cx| {
                            let Some(content) = cx.secret(&config.key) else {
                                return;
                            };
                            let mut mark = Marks::default();
                            for part in [&signing.scope, id, config.algorithm.name()] {
                                mark.add(part.as_bytes());
                            }
                            mark.add(format!("{:?}", signing.exclude_files).as_bytes());
                            mark.add(content.expose());
                            marks.add(mark.digest().as_bytes());
                            match Key::new(config.algorithm, &content) {
                                Ok(key) => drop(keys.insert(id.clone(), key.marked(mark.digest()))),
                                Err(why) => cx.problem_help(
                                    format!("the key cannot be used: {why}"),
                                    "name the public key in PEM; for `HS*` a secret of 32 bytes or more",
                                ),
                            }
                        });
                    });
                }
            });
        });
        Some(Verifier {
            keys,
            keyid: signing.keyid.clone(),
            scope: signing.scope.clone(),
            exclude: signing.exclude_files.clone(),
        })
    }

    fn remote(&self, marks: &mut Marks, cx: &mut Compile) -> Option<Remote> {
        let url = self.url.as_deref()?;
        // A signature keeps others from changing a bundle, not from reading a secret on its way.
        let open = self.token.is_none() && self.headers.is_empty();
        let parse = if self.signing.is_some() && open {
            Target::parse_signed
        } else {
            Target::parse
        };
        let target = match parse(url) {
            Ok(target) => Some(target),
            Err(error) => {
                cx.at("url", |cx| {
                    cx.problem_help(
                        error.to_string(),
                        "write it as in `https://bundles.example.com/authz.tar.gz`; secrets belong into `token` or `headers`",
                    );
                });
                None
            }
        };
        let mut headers = Vec::new();
        if let Some(token) = &self.token
            && let Some(secret) = cx.at("token", |cx| cx.secret(token))
        {
            let mut value = b"Bearer ".to_vec();
            value.extend_from_slice(secret.expose());
            marks.add(&value);
            match HeaderValue::from_maybe_shared(bytes::Bytes::from(value)) {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    headers.push((http::header::AUTHORIZATION, value));
                }
                Err(_) => cx.at("token", |cx| {
                    cx.problem("the token cannot stand in a header")
                }),
            }
        }
        cx.at("headers", |cx| {
            for (name, reference) in &self.headers {
                cx.at(name.clone(), |cx| {
                    if let Some(header) = header(name, reference, marks, cx) {
                        if headers.iter().any(|(known, _)| *known == header.0) {
                            cx.key_problem("the header is set twice", "remove one");
                        }
                        headers.push(header);
                    }
                });
            }
        });
        let mut authorities = Vec::new();
        for (index, path) in self.authorities.iter().enumerate() {
            let place = format!("authorities[{index}]");
            authorities.extend(cx.at(place, |cx| cx.read(path)));
        }
        authorities.iter().for_each(|pem| marks.add(pem));
        let fetcher = match Fetcher::new(&authorities) {
            Ok(fetcher) => fetcher,
            Err(error) => {
                cx.at("authorities", |cx| {
                    cx.problem_help(error.to_string(), "name files with certificates in PEM");
                });
                return None;
            }
        };
        Some(Remote {
            fetcher: fetcher.with_bounds(self.timeout.get(), self.max_size.len()),
            target: target?,
            headers,
            timing: Timing {
                timeout: self.timeout.get(),
                min: self.polling.min_delay.get(),
                max: self.polling.max_delay.get(),
                wait: self.polling.long_polling_timeout.map(Span::get),
            },
        })
    }
}

impl SigningConfig {
    fn check(&self, cx: &mut Compile) {
        if self.keys.is_empty() {
            cx.at("keys", |cx| {
                cx.problem_help(
                    "there is no key",
                    "name one: `main: { algorithm: ES256, key: file:main.pem }`",
                );
            });
        }
        if let Some(keyid) = &self.keyid
            && !self.keys.contains_key(keyid)
        {
            cx.at("keyid", |cx| {
                let known = self.keys.keys().map(String::as_str);
                let help = crate::schema::known_names(keyid, known);
                cx.problem_help(format!("there is no key `{}`", keyid.escape_debug()), help);
            });
        }
        for (index, pattern) in self.exclude_files.iter().enumerate() {
            cx.at(format!("exclude_files[{index}]"), |cx| {
                if pattern.contains(['[', '\\']) || pattern.matches('*').count() > MAX_STARS {
                    cx.problem_help(
                        "the pattern is none that is understood",
                        format!("use `*` (at most {MAX_STARS}) and `?`"),
                    );
                } else {
                    cx.warning(
                        format!("files of the bundle called `{pattern}` are not verified and decide all the same"),
                        "have them signed too, and remove the pattern",
                    );
                }
            });
        }
    }
}

/// A digest over all that makes a bundle what it is, secrets included.
#[derive(Default)]
struct Marks(Vec<u8>);

impl Marks {
    fn add(&mut self, bytes: &[u8]) {
        let mark = ContentDigest::of(bytes);
        self.0.extend_from_slice(mark.as_bytes());
    }

    fn digest(&self) -> ContentDigest {
        ContentDigest::of(&self.0)
    }
}

fn absent(cx: &mut Compile) {
    cx.warning(
        "the bundle is not there yet: policies that use it are not checked",
        "their routes answer 503 (`policy.unavailable`) until it has been downloaded",
    );
}

fn range(key: &str, length: Duration, bounds: (Duration, Duration), help: &str, cx: &mut Compile) {
    if length < bounds.0 || length > bounds.1 {
        cx.at(key, |cx| cx.problem_help("the time is out of range", help));
    }
}

fn header(
    name: &str,
    reference: &SecretRef,
    marks: &mut Marks,
    cx: &mut Compile,
) -> Option<(HeaderName, HeaderValue)> {
    /// What belongs to the connection or to the protocol of bundles.
    const OURS: [&str; 10] = [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
        "upgrade",
        "if-none-match",
        "prefer",
        "accept",
        "accept-encoding",
    ];
    let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
    let Some(parsed) = parsed.filter(|name| !OURS.contains(&name.as_str())) else {
        cx.key_problem(
            format!("`{}` is no header to set", name.escape_debug()),
            "write a name as in `x-api-key`; some headers are the gateway's own",
        );
        return None;
    };
    let secret: Secret = cx.secret(reference)?;
    marks.add(secret.expose());
    match HeaderValue::from_bytes(secret.expose()) {
        Ok(mut value) => {
            value.set_sensitive(true);
            Some((parsed, value))
        }
        Err(_) => {
            cx.problem("the value cannot stand in a header");
            None
        }
    }
}

/// The files of an archive or of a folder, and how many bytes they came in.
fn read_file(path: &std::path::Path, bounds: &Bounds, cx: &mut Compile) -> Option<(Files, usize)> {
    let resolved = cx.unwatched(path);
    let outcome = if resolved.is_dir() {
        let folder = cx.resolve(path);
        archive::gather(&folder, bounds).map(|files| {
            let size = files.values().map(Vec::len).sum();
            (files, size)
        })
    } else {
        let bytes = cx.read(path)?;
        archive::unpack(&bytes, bounds).map(|files| (files, bytes.len()))
    };
    match outcome {
        Ok(read) => Some(read),
        Err(fault) => {
            let help = fault
                .help
                .clone()
                .unwrap_or_else(|| "build the bundle anew".to_owned());
            let what = if fault.kind == Kind::Disk {
                "folder"
            } else {
                "bundle"
            };
            let message = format!(
                "the {what} cannot be read: {}",
                Fault {
                    help: None,
                    ..fault
                }
            );
            cx.problem_help(message, help);
            None
        }
    }
}
