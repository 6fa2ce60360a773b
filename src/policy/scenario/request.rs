//! Which request is meant: flags, or one pasted from somewhere.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Uri, Version};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Unanswered;
use crate::clock;
use crate::request::{Host, Scheme};

/// Largest pasted request, in bytes.
const MAX_PASTED: u64 = 256 << 10;

/// The host when nobody says one.
const NOWHERE: &str = "localhost";

/// How a request is described on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RequestArgs {
    /// The method, and the URL or path behind it
    #[arg(value_name = "METHOD", required_unless_present = "request")]
    pub method: Option<String>,
    /// `https://api.example.test/orders/7`, or `/orders/7`
    #[arg(value_name = "URL", required_unless_present = "request")]
    pub url: Option<String>,
    /// Read the request from a file (`-`: standard input) as it goes over the wire
    #[arg(long, value_name = "FILE", conflicts_with_all = ["method", "url"])]
    pub request: Option<PathBuf>,
    /// A header, as in `x-tenant: acme`; may be repeated
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// The listener it comes to; by default one that fits the URL
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
    /// The address it comes from
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,
    /// When it comes, in RFC 3339; by default now
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
}

/// A request that somebody asks about.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The method.
    pub method: Method,
    /// Scheme of the URL, if it has one.
    pub scheme: Option<Scheme>,
    /// Host and port, if it says them.
    pub host: Option<String>,
    /// Path and query.
    pub target: String,
    /// Its headers, without `Host` and without a bearer token.
    pub headers: HeaderMap,
    /// The bearer token that it brought.
    pub token: Option<String>,
    /// HTTP/1.1 or HTTP/2.
    pub version: Version,
    /// The listener it comes to.
    pub listener: Option<String>,
    /// The address it comes from.
    pub from: Option<IpAddr>,
    /// When it comes.
    pub at: SystemTime,
    /// What follows the headers; empty when nothing does.
    pub body: String,
}

fn question(text: impl Into<String>) -> Unanswered {
    Unanswered::Question(text.into())
}

impl RequestArgs {
    /// Reads what was said.
    ///
    /// # Errors
    /// A sentence about the part that cannot be read.
    pub fn read(&self) -> Result<Wanted, Unanswered> {
        let mut wanted = match (&self.request, &self.method, &self.url) {
            (Some(file), _, _) => Wanted::pasted(&text_of(file)?)?,
            (None, Some(method), Some(url)) => Wanted::of(method, url)?,
            (None, _, _) => {
                return Err(question(
                    "no request: say METHOD and URL, or `--request FILE`",
                ));
            }
        };
        for header in &self.headers {
            wanted.header(header)?;
        }
        wanted.listener.clone_from(&self.listener);
        wanted.from = self.from;
        if let Some(at) = &self.at {
            wanted.at = time(at)?;
        }
        Ok(wanted)
    }
}

/// A time in RFC 3339, or `now`.
///
/// # Errors
/// A sentence.
pub fn time(text: &str) -> Result<SystemTime, Unanswered> {
    if text == "now" {
        return Ok(clock::now());
    }
    OffsetDateTime::parse(text, &Rfc3339)
        .map(SystemTime::from)
        .map_err(|_| question(format!("`{text}` is no time such as 2026-01-15T10:30:00Z")))
}

fn text_of(file: &Path) -> Result<String, Unanswered> {
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        io::stdin().take(MAX_PASTED + 1).read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|open| open.take(MAX_PASTED + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| question(format!("cannot read {}: {error}", file.display())))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_PASTED {
        return Err(question(format!(
            "{} is larger than {} KiB",
            file.display(),
            MAX_PASTED >> 10
        )));
    }
    String::from_utf8(bytes).map_err(|_| question(format!("{} is not UTF-8", file.display())))
}

impl Wanted {
    /// A request with this method to this URL or path, without headers, now.
    ///
    /// # Errors
    /// A sentence.
    pub fn of(method: &str, url: &str) -> Result<Self, Unanswered> {
        let upper = method.to_ascii_uppercase();
        let parsed = Method::from_bytes(method.as_bytes())
            .ok()
            .filter(|_| method == upper)
            .ok_or_else(|| {
                let help = match Method::from_bytes(upper.as_bytes()) {
                    Ok(_) => format!("did you mean `{upper}`?"),
                    Err(_) => "it is one word, such as `GET`".to_owned(),
                };
                question(format!(
                    "`{}` is not a method: {help}",
                    method.escape_default()
                ))
            })?;
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "https" | "wss" => (Some(Scheme::Https), rest),
                "http" | "ws" => (Some(Scheme::Http), rest),
                _ => return Err(question(format!("`{url}` is no URL of http or https"))),
            },
            None => (None, url),
        };
        let (host, target) = match scheme {
            Some(_) => {
                let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (host, target) = rest.split_at(at);
                (Some(host.to_owned()), target)
            }
            None if rest.starts_with('/') => (None, rest),
            None => {
                return Err(question(format!(
                    "`{url}` is neither a URL nor a path: write https://{url} or /{url}"
                )));
            }
        };
        let target = target.split('#').next().unwrap_or_default();
        let target = if target.starts_with('/') {
            target.to_owned()
        } else {
            format!("/{target}")
        };
        Ok(Self {
            method: parsed,
            scheme,
            host: host.filter(|host| !host.is_empty()),
            target,
            headers: HeaderMap::new(),
            token: None,
            version: Version::HTTP_11,
            listener: None,
            from: None,
            at: clock::now(),
            body: String::new(),
        })
    }

    /// A request as it goes over the wire, or as tools show it: a request line and headers. The marks
    /// of `curl -v` are taken off; what follows an empty line is the body.
    ///
    /// # Errors
    /// A sentence with the line.
    pub fn pasted(text: &str) -> Result<Self, Unanswered> {
        let mut lines = text.lines().map(|line| {
            let line = line.strip_suffix('\r').unwrap_or(line);
            line.strip_prefix("> ")
                .unwrap_or(if line == ">" { "" } else { line })
        });
        let first = lines
            .by_ref()
            .find(|line| !line.trim().is_empty())
            .ok_or_else(|| question("the request is empty"))?;
        let mut words = first.split_whitespace();
        let (Some(method), Some(url)) = (words.next(), words.next()) else {
            return Err(question(format!(
                "`{first}` is no request line such as `GET /orders/7 HTTP/1.1`"
            )));
        };
        let mut wanted = Self::of(method, url)?;
        wanted.version = match words.next() {
            Some("HTTP/2" | "HTTP/2.0") => Version::HTTP_2,
            None | Some("HTTP/1.1") => Version::HTTP_11,
            Some("HTTP/1.0") => Version::HTTP_10,
            Some(other) => {
                return Err(question(format!(
                    "`{other}` is no version such as HTTP/1.1"
                )));
            }
        };
        for line in lines.by_ref().take_while(|line| !line.is_empty()) {
            wanted.header(line)?;
        }
        let body: Vec<&str> = lines.collect();
        wanted.body = body.join("\n");
        Ok(wanted)
    }

    /// Adds one header line.
    ///
    /// # Errors
    /// A sentence.
    pub fn header(&mut self, line: &str) -> Result<(), Unanswered> {
        let wrong = || {
            question(format!(
                "`{}` is no header such as `x-tenant: acme`",
                line.trim()
            ))
        };
        let (name, value) = line
            // `:authority` and its kin begin with a colon.
            .char_indices()
            .skip(1)
            .find(|(_, c)| *c == ':')
            .and_then(|(at, _)| Some((line.get(..at)?, line.get(at + 1..)?)))
            .ok_or_else(wrong)?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" | ":authority" => self.host = Some(value.to_owned()),
            ":method" | ":path" | ":scheme" => {}
            "authorization" if bearer(value).is_some() => {
                self.token = bearer(value).map(str::to_owned);
            }
            name => {
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
                let value = HeaderValue::from_str(value).map_err(|_| wrong())?;
                self.headers.append(name, value);
            }
        }
        Ok(())
    }

    /// The host without its port, where the request says one that can be read.
    pub fn host_name(&self) -> Option<String> {
        let host = Host::parse(self.host.as_deref()?).ok()?;
        Some(host.name().to_owned())
    }

    /// The request as it would arrive.
    pub(super) fn build(&self, tls: bool, bearer: Option<&str>) -> Result<Request<()>, Unanswered> {
        let cannot = |error: http::Error| question(format!("the request cannot be sent: {error}"));
        let host = self.host.as_deref().unwrap_or(NOWHERE);
        let uri: Uri = if self.version == Version::HTTP_2 {
            Uri::builder()
                .scheme(if tls { "https" } else { "http" })
                .authority(host)
                .path_and_query(self.target.as_str())
                .build()
                .map_err(cannot)?
        } else {
            Uri::try_from(self.target.as_str()).map_err(|error| cannot(error.into()))?
        };
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(uri)
            .version(self.version)
            .body(())
            .map_err(cannot)?;
        *request.headers_mut() = self.headers.clone();
        if !self.body.is_empty() {
            let length = HeaderValue::from(self.body.len());
            request.headers_mut().insert(header::CONTENT_LENGTH, length);
        }
        if self.version != Version::HTTP_2 {
            let host = HeaderValue::from_str(host)
                .map_err(|_| question(format!("`{host}` is no host")))?;
            request.headers_mut().insert(header::HOST, host);
        }
        if let Some(token) = bearer {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| question("the token holds bytes that no header can carry"))?;
            value.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        Ok(request)
    }
}

/// A path template with this value for each parameter and for each `*`.
pub fn filled(template: &str, value: &str) -> String {
    let mut path = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        path.push_str(before);
        path.push_str(value);
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    path.push_str(rest);
    path.replace('*', value)
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
