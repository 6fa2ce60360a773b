//! The gateway that is running, as a tool reaches it: through its admin listener.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::scenario::Unanswered;
use crate::admin::{self, Admin};
use crate::config::{self, Document};
use crate::metrics::Metrics;
use crate::schema::{Compile, Secret};

/// Where the admin listener is.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AdminArgs {
    /// The configuration of the gateway that runs
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "gateway.yaml",
        env = "PORTCULLIS_CONFIG"
    )]
    pub(super) config: PathBuf,
    /// Its admin listener, instead of what the configuration says: `http://127.0.0.1:9901`
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The admin token: `env:NAME` or `file:PATH`, instead of what the configuration says
    #[arg(long, value_name = "SECRET")]
    token: Option<String>,
}

/// A listener that can be asked, and the configuration if it could be read.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) admin: Admin,
    pub(super) document: Option<Document>,
}

impl AdminArgs {
    /// Finds the listener. Without `--admin` the configuration must be readable and have one.
    pub(super) fn find(&self) -> Result<Running, Unanswered> {
        let named = self.admin.as_deref().map(address).transpose()?;
        let token = self.token.as_deref().map(secret).transpose()?;
        let document = match config::read_document(&self.config) {
            Ok(document) => Some(document),
            // With a listener that is named, the configuration need not be here.
            Err(_) if named.is_some() => None,
            Err(problems) => return Err(Unanswered::Configuration(self.config.clone(), problems)),
        };
        let mut cx = Compile::new(&self.config, Arc::new(Metrics::default()));
        let section = document.as_ref().map(|document| {
            let mut section = document.admin.clone();
            if token.is_some() {
                section.token = None;
                section.allow_remote = true;
                section.address = None;
            }
            section
        });
        let compiled = section.and_then(|section| section.compile(&mut cx));
        let (problems, _) = cx.finish();
        let admin = match (compiled, named) {
            (Some(compiled), _) => Admin {
                address: named.or(document.as_ref().and_then(|it| it.admin.address)),
                token: token.or(compiled.token),
                ..compiled
            },
            (None, Some(address)) => Admin {
                address: Some(address),
                token,
                hosts: Vec::new(),
            },
            (None, None) => return Err(Unanswered::Configuration(self.config.clone(), problems)),
        };
        Ok(Running { admin, document })
    }
}

impl Running {
    /// Asks for a page: status and document.
    pub(super) fn get(&self, path: &str) -> Result<(u16, Value), String> {
        admin::ask(&self.admin, "GET", path, &Value::Null).map_err(|error| error.to_string())
    }

    /// Sends a document.
    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<(u16, Value), String> {
        admin::ask(&self.admin, method, path, body).map_err(|error| error.to_string())
    }

    /// Where it is.
    pub(super) fn place(&self) -> String {
        self.admin
            .address
            .map_or_else(|| "no admin listener".to_owned(), |at| at.to_string())
    }
}

/// What an answer with another status than 200 says.
pub(super) fn refused(status: u16, answer: &Value) -> String {
    let said = answer.get("error").and_then(Value::as_str);
    let hint = if status == 401 {
        "; name the token with `--token env:NAME`"
    } else {
        ""
    };
    format!(
        "the admin listener answers {status}: {}{hint}",
        said.unwrap_or("nothing")
    )
}

fn address(text: &str) -> Result<SocketAddr, Unanswered> {
    let wrong = |why: &str| {
        Unanswered::Question(format!(
            "`--admin {}`: {why}; write it like http://127.0.0.1:9901",
            text.escape_default()
        ))
    };
    if text.starts_with("https://") {
        return Err(wrong("the admin listener speaks plain HTTP"));
    }
    let place = text.strip_prefix("http://").unwrap_or(text);
    let place = place.strip_suffix('/').unwrap_or(place);
    let mut found = place
        .to_socket_addrs()
        .map_err(|error| wrong(&error.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address"))
}

/// Never the secret itself: a command line is everybody's to read.
fn secret(reference: &str) -> Result<Secret, Unanswered> {
    let wrong = |why: String| Unanswered::Question(format!("`--token`: {why}"));
    let text = if let Some(name) = reference.strip_prefix("env:") {
        std::env::var(name).map_err(|error| wrong(format!("{name}: {error}")))?
    } else if let Some(path) = reference.strip_prefix("file:") {
        std::fs::read_to_string(path).map_err(|error| wrong(format!("{path}: {error}")))?
    } else {
        return Err(wrong(
            "write `env:NAME` or `file:PATH`, not the token itself".to_owned(),
        ));
    };
    Ok(Secret::new(text.trim_end().as_bytes().into()))
}
