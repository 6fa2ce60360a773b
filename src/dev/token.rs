//! `portcullis token`: asks the running development issuer for an access token.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use http::Method;
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;

use super::client::{Call, CallError};
use super::form::Form;
use super::issuer::keys::Algorithm;
use super::issuer::{CLIENT_ID, CLIENT_SECRET};
use super::workspace::issuer_url;
use crate::schema::Span;

/// How long ago an expired token ended: well beyond any sane leeway.
const EXPIRED_FOR: i64 = 600;
/// Where the development issuer is when nothing else is said.
const DEFAULT_ISSUER: &str = "http://127.0.0.1:9400";

/// `portcullis token`.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// Whose token: alice (a customer), bob (a clerk) or carol (an admin)
    #[arg(long, default_value = "alice")]
    pub user: String,
    /// A client's own token instead of a user's; needs --client-secret
    #[arg(long, requires = "client_secret", conflicts_with = "user")]
    pub client_id: Option<String>,
    /// The secret of --client-id
    #[arg(
        long,
        requires = "client_id",
        env = "PORTCULLIS_CLIENT_SECRET",
        hide_env_values = true
    )]
    pub client_secret: Option<String>,
    /// How long it is good for: 30s, 5m, 1h
    #[arg(long, default_value = "1h", value_parser = span)]
    pub expires: Span,
    /// A token that ended ten minutes ago
    #[arg(long, conflicts_with = "expires")]
    pub expired: bool,
    /// The audience; default is the one the shipped gateway.yaml wants
    #[arg(long)]
    pub audience: Option<String>,
    /// Scopes, separated by spaces; default is all that the user has
    #[arg(long)]
    pub scope: Option<String>,
    /// How it is signed: ES256, RS256 or EdDSA
    #[arg(long, default_value_t)]
    pub alg: Algorithm,
    /// How the user logged in; the example's policy wants urn:example:mfa for admins
    #[arg(long)]
    pub acr: Option<String>,
    /// The development issuer; default is the loopback issuer in the configuration
    #[arg(long)]
    pub issuer: Option<String>,
    /// The configuration that names the issuer
    #[arg(long, default_value = "gateway.yaml")]
    pub config: PathBuf,
    /// `text` prints the token alone, `json` the issuer's whole answer
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

fn span(text: &str) -> Result<Span, String> {
    Span::deserialize(text.into_deserializer())
        .map_err(|error: serde::de::value::Error| error.to_string())
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nobody answers.
    #[error(
        "no development issuer answers at {issuer}: start one with `portcullis dev`, or name another with --issuer"
    )]
    Unreachable {
        /// Where we asked.
        issuer: String,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The issuer said no.
    #[error("the issuer refused: {0}")]
    Refused(String),
    /// It answered something that is no token response.
    #[error("{0} answered, but not with a token: is it a development issuer?")]
    NotAnIssuer(String),
}

/// What is asked of the issuer.
#[derive(Debug, Clone, Default)]
pub(super) struct Request {
    pub(super) client: Option<(String, String)>,
    pub(super) user: Option<String>,
    pub(super) expires_in: Option<i64>,
    pub(super) audience: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) alg: Algorithm,
    pub(super) acr: Option<String>,
}

impl Request {
    /// A plain token of a user.
    pub(super) fn user(name: &str) -> Self {
        Self {
            user: Some(name.to_owned()),
            ..Self::default()
        }
    }

    /// The same, ended ten minutes ago.
    pub(super) fn expired(mut self) -> Self {
        self.expires_in = Some(-EXPIRED_FOR);
        self
    }

    fn form(&self) -> Form {
        let mut form = Form::default();
        let (id, secret) = match &self.client {
            Some((id, secret)) => (id.as_str(), secret.as_str()),
            None => (CLIENT_ID, CLIENT_SECRET),
        };
        form.push("grant_type", "client_credentials");
        form.push("client_id", id);
        form.push("client_secret", secret);
        form.push("alg", self.alg.name());
        if let Some(seconds) = self.expires_in {
            form.push("expires_in", seconds.to_string());
        }
        for (name, value) in [
            ("user", &self.user),
            ("audience", &self.audience),
            ("scope", &self.scope),
            ("acr", &self.acr),
        ] {
            if let Some(value) = value {
                form.push(name, value.as_str());
            }
        }
        form
    }

    /// Asks the issuer; the answer is its token response (RFC 6749 section 5.1).
    pub(super) async fn send(&self, issuer: &str) -> Result<serde_json::Value, TokenError> {
        let issuer = issuer.trim_end_matches('/');
        let mut call = Call::new(Method::POST, format!("{issuer}/token"));
        call.headers.push((
            "content-type",
            "application/x-www-form-urlencoded".to_owned(),
        ));
        call.body = self.form().encode();
        let answer = call
            .send()
            .await
            .map_err(|source: CallError| TokenError::Unreachable {
                issuer: issuer.to_owned(),
                source: source.into(),
            })?;
        let document = answer.json();
        if access_token(&document).is_some() {
            return Ok(document);
        }
        Err(match answer.text("/error_description").as_str() {
            "none" => TokenError::NotAnIssuer(issuer.to_owned()),
            description => TokenError::Refused(description.to_owned()),
        })
    }

    /// Asks the issuer for the token alone.
    pub(super) async fn mint(&self, issuer: &str) -> Result<String, TokenError> {
        let document = self.send(issuer).await?;
        Ok(access_token(&document).unwrap_or_default().to_owned())
    }
}

fn access_token(document: &serde_json::Value) -> Option<&str> {
    document.get("access_token")?.as_str()
}

impl TokenArgs {
    fn request(&self) -> Request {
        let client = self.client_id.clone().zip(self.client_secret.clone());
        let life = i64::try_from(self.expires.get().as_secs()).unwrap_or(i64::MAX);
        let request = Request {
            user: client.is_none().then(|| self.user.clone()),
            client,
            expires_in: Some(life),
            audience: self.audience.clone(),
            scope: self.scope.clone(),
            alg: self.alg,
            acr: self.acr.clone(),
        };
        if self.expired {
            request.expired()
        } else {
            request
        }
    }

    /// `--issuer`, else the loopback issuer of the configuration, else the usual place.
    fn issuer(&self) -> String {
        self.issuer
            .clone()
            .or_else(|| configured(&self.config))
            .unwrap_or_else(|| DEFAULT_ISSUER.to_owned())
    }
}

fn configured(config: &Path) -> Option<String> {
    issuer_url(&fs::read_to_string(config).ok()?)
}

/// Gets the token; the text is what goes to standard output.
pub(super) async fn run(args: &TokenArgs) -> Result<String, TokenError> {
    let document = args.request().send(&args.issuer()).await?;
    Ok(match args.format {
        Format::Json => document.to_string(),
        Format::Text => access_token(&document).unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::issuer::Issuer;
    use super::super::service::bind;
    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        token: TokenArgs,
    }

    fn parse(arguments: &[&str]) -> Result<TokenArgs, clap::Error> {
        Cli::try_parse_from([&["token"], arguments].concat()).map(|cli| cli.token)
    }

    #[test]
    fn odd_arguments_are_refused() {
        for arguments in [
            &["--alg", "none"][..],
            &["--expires", "5"],
            &["--expires", "5m", "--expired"],
            &["--client-id", "reporting"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }

    #[tokio::test]
    async fn the_token_alone_is_printed() {
        let issuer = Issuer::start(bind(0).unwrap()).unwrap();
        let args = parse(&["--issuer", &issuer.url, "--user", "bob", "--alg", "eddsa"]).unwrap();
        let token = run(&args).await.unwrap();
        assert_eq!(token.split('.').count(), 3);
        assert!(!token.contains(char::is_whitespace));
    }

    #[tokio::test]
    async fn a_missing_issuer_is_explained() {
        let port = bind(0).unwrap().local_addr().unwrap().port();
        let args = parse(&["--issuer", &format!("http://127.0.0.1:{port}")]).unwrap();
        let error = run(&args).await.unwrap_err();
        assert!(error.to_string().contains("portcullis dev"), "{error}");
    }
}
