//! `portcullis policy routes`: every route, who may try, who may, and what is open.

use std::process::ExitCode;

use serde_json::json;

use crate::policy::scenario::{Ground, Unanswered};
use crate::policy::show::{ConfigArgs, Format, Page, Tone, aside, count, say_json};
use crate::route::RouteConfig;

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct RoutesArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only routes that somebody without a credential gets through, or to the policy of
    #[arg(long)]
    unauthenticated: bool,
    /// How to write the answer
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// How open a route is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Openness {
    /// A credential and a policy.
    Closed,
    /// A credential, and then everybody.
    AnyCaller,
    /// No credential; the policy decides.
    AnonymousToPolicy,
    /// Nothing is asked.
    Open,
}

impl Openness {
    /// How open this route is.
    pub fn of(route: &RouteConfig) -> Self {
        let anonymous = route.authn.iter().flatten().any(|name| name == "anonymous");
        let public = route.policy.as_deref() == Some("public");
        match (anonymous, public) {
            (false, false) => Self::Closed,
            (false, true) => Self::AnyCaller,
            (true, false) => Self::AnonymousToPolicy,
            (true, true) => Self::Open,
        }
    }

    /// A word for machines.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::AnyCaller => "any_caller",
            Self::AnonymousToPolicy => "anonymous_to_policy",
            Self::Open => "open",
        }
    }

    /// Words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Closed => "",
            Self::AnyCaller => "every verified caller",
            Self::AnonymousToPolicy => "no credential; the policy decides",
            Self::Open => "open to everybody",
        }
    }
}

/// The methods of a route, as the file has them.
pub fn methods(route: &RouteConfig) -> String {
    route
        .methods
        .as_ref()
        .map_or_else(|| "any".to_owned(), |methods| methods.join(" "))
}

/// Answers.
///
/// # Errors
/// When the configuration does not load.
pub fn run(args: &RoutesArgs) -> Result<ExitCode, Unanswered> {
    let ground = Ground::load(&args.config.config)?;
    aside(ground.note(&args.config.config.display().to_string()));
    let all = &ground.document.routes;
    let shown: Vec<&RouteConfig> = all
        .iter()
        .filter(|route| !args.unauthenticated || Openness::of(route) >= Openness::AnonymousToPolicy)
        .collect();
    match args.format {
        Format::Json => say_json(&json!({
            "file": ground.file,
            "revision": ground.snapshot.revision,
            "routes": shown.iter().map(|route| json!({
                "name": route.name, "hosts": route.hosts, "path": route.path,
                "methods": route.methods, "listeners": route.listeners, "headers": route.headers,
                "authentication": route.authn, "policy": route.policy, "limits": route.limits,
                "upstream": route.upstream, "labels": route.labels,
                "openness": Openness::of(route).word(),
            })).collect::<Vec<_>>(),
        })),
        Format::Text => page(&shown, all.len(), args.unauthenticated).show(),
    }
    Ok(ExitCode::SUCCESS)
}

fn page(shown: &[&RouteConfig], all: usize, unauthenticated: bool) -> Page {
    let mut page = Page::new();
    let heads = [
        "ROUTE",
        "METHODS",
        "HOST",
        "PATH",
        "CREDENTIAL",
        "POLICY",
        "LIMITS",
        "",
    ];
    let mut rows = vec![heads.map(|head| (Tone::Faint, head.to_owned())).to_vec()];
    for route in shown {
        let openness = Openness::of(route);
        let tone = match openness {
            Openness::Closed => Tone::Plain,
            Openness::AnyCaller | Openness::AnonymousToPolicy => Tone::Warn,
            Openness::Open => Tone::Bad,
        };
        let or_none = |text: String| {
            if text.is_empty() {
                "none".to_owned()
            } else {
                text
            }
        };
        rows.push(vec![
            (Tone::Strong, route.name.clone()),
            (Tone::Plain, methods(route)),
            (Tone::Plain, route.hosts.join(" ")),
            (Tone::Plain, route.path.clone()),
            (
                Tone::Plain,
                route
                    .authn
                    .iter()
                    .flatten()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
            (Tone::Plain, route.policy.clone().unwrap_or_default()),
            (Tone::Plain, or_none(route.limits.join(" "))),
            (tone, openness.words().to_owned()),
        ]);
    }
    if shown.is_empty() {
        page.line(&[(
            Tone::Good,
            "no route lets anybody through without a credential",
        )]);
    } else {
        page.table(&rows);
    }
    let open = shown
        .iter()
        .filter(|route| Openness::of(route) >= Openness::AnonymousToPolicy)
        .count();
    let text = if unauthenticated {
        format!("{} of {} ask for no credential", open, count(all, "route"))
    } else {
        format!("{}, {open} without a credential", count(all, "route"))
    };
    page.line(&[(Tone::Faint, &text)]);
    page
}
