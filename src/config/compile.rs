//! Document to snapshot: each room compiles its part, and the parts are put together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::document::Document;
use super::read::{Blocks, Said};
use super::{lint, revision};
use crate::admin::Admin;
use crate::authz::KnownBundles;
use crate::bundle::Bundles;
use crate::candidate::{Candidates, Ground, Settings};
use crate::clock;
use crate::limit::LimitSet;
use crate::request::Rules;
use crate::revocation::Known;
use crate::route::{Declared, Parts, RouteTable};
use crate::schema::{Compile, Named, Span};
use crate::snapshot::Snapshot;

/// The most worker threads.
const MAX_WORKERS: usize = 1_024;

/// Names that mean something else in `authn` and `policy`.
const RESERVED: [&str; 4] = [
    "anonymous",
    "client_certificate",
    "public",
    "authentication_failures",
];

/// What comes out of a document.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) snapshot: Snapshot,
    pub(super) document: Arc<Document>,
    pub(super) admin: Admin,
}

pub(super) fn compile(
    said: Said,
    file: &Path,
    bytes: &[u8],
    previous: Option<&Snapshot>,
    cx: &mut Compile,
) -> Option<Compiled> {
    let mut effective = said.settings.clone();
    said.listeners.good.clone_into(&mut effective.listeners);
    said.issuers.good.clone_into(&mut effective.issuers);
    said.bundles.good.clone_into(&mut effective.bundles);
    said.policies.good.clone_into(&mut effective.policies);
    said.candidates.good.clone_into(&mut effective.candidates);
    said.limits.good.clone_into(&mut effective.limits);
    said.upstreams.good.clone_into(&mut effective.upstreams);
    effective.routes = said.routes;

    check_settings(&said.settings, cx);
    if said.listeners.names.is_empty() {
        cx.at("listeners", |cx| {
            cx.problem_help(
                "there is no listener",
                "add one, such as `local: { address: \"127.0.0.1:8080\", plaintext: true }`",
            );
        });
    }
    for (section, names) in [
        ("issuers", &said.issuers.names),
        ("policies", &said.policies.names),
        ("candidates", &said.candidates.names),
        ("limits", &said.limits.names),
    ] {
        for name in names
            .iter()
            .filter(|name| RESERVED.contains(&name.as_str()))
        {
            cx.at(section, |cx| {
                cx.at(name.clone(), |cx| {
                    cx.key_problem(format!("the name `{name}` is reserved"), "choose another")
                });
            });
        }
    }

    let listeners = declared("listeners", said.listeners, cx, |name, config, cx| {
        config.compile(name, previous.and_then(|old| old.listeners.get(name)), cx)
    });
    let issuers = declared("issuers", said.issuers, cx, |name, config, cx| {
        config.compile_among(name, previous.map(|old| &old.issuers), cx)
    });
    let hub = previous.map_or_else(Default::default, |old| Arc::clone(&old.bundles.hub));
    let bundles = declared("bundles", said.bundles, cx, |name, config, cx| {
        let previous = previous.and_then(|old| old.bundles.named.get(name));
        config.compile(name, previous, &hub, cx)
    });
    let known = KnownBundles {
        compiled: &bundles.compiled,
        names: &bundles.names,
        mandatory: true,
    };
    let mut policies = declared("policies", said.policies, cx, |name, config, cx| {
        let previous = previous.and_then(|old| old.policies.get(name));
        config.compile_among(name, previous, &known, cx)
    });
    // What one of them could not use is given up for all: a bundle decides whole or not at all.
    for policy in policies.compiled.values_mut() {
        *policy = policy.settled();
    }
    let routes_of: BTreeMap<String, String> = effective
        .routes
        .iter()
        .map(|route| (route.name.clone(), route.policy.clone().unwrap_or_default()))
        .collect();
    let candidate_settings = Settings {
        time: said.settings.candidate_time,
        state: said.settings.candidate_state.clone(),
    };
    let before = previous.map(|old| &*old.candidates);
    let book = candidate_settings.compile(before, cx);
    let ground = Ground {
        blocks: &effective.policies,
        policies: &policies.compiled,
        names: &policies.names,
        routes: &routes_of,
        bundles: &KnownBundles {
            mandatory: false,
            ..known
        },
        previous: before,
        book: &book,
    };
    let candidates = declared("candidates", said.candidates, cx, |name, config, cx| {
        config.compile(name, &ground, cx)
    });
    let upstreams = declared("upstreams", said.upstreams, cx, |name, config, cx| {
        config.compile(name, previous.and_then(|old| old.upstreams.get(name)), cx)
    });
    let settings = said.settings;
    let limit_names = said.limits.names;
    let limits_whole = limit_names.len() == said.limits.good.len();
    let limits = LimitSet::compile(
        said.limits.good,
        settings.authentication_failures,
        previous.map(|old| &old.limits),
        cx,
    );

    let certificates = settings
        .client_certificate
        .compile(previous.map(|old| &old.certificates));
    let parts = Parts {
        audit: &settings.audit,
        listeners: &listeners,
        issuers: &issuers,
        certificates: &certificates,
        policies: &policies,
        // A set that lacks a block would call it unknown.
        limits: limits.as_ref().filter(|_| limits_whole),
        limit_names: &limit_names,
        upstreams: &upstreams,
    };
    let before = previous.map(|old| &old.routes);
    let routes = RouteTable::compile(&effective.routes, said.places, &parts, before, cx);
    let identity = cx.at("identity", |cx| {
        settings
            .identity
            .compile(previous.map(|old| &old.identity), cx)
    });
    let known = Known {
        issuers: &issuers.compiled,
        issuer_names: &issuers.names,
        listener_names: &listeners.names,
    };
    let revocation = cx.at("revocation", |cx| {
        settings
            .revocation
            .compile(previous.map(|old| &old.revocation), &known, cx)
    });
    let audit = cx.at("audit", |cx| {
        settings.audit.compile(previous.map(|old| &old.audit), cx)
    });
    let tracing = cx.at("telemetry", |cx| {
        settings
            .telemetry
            .compile(previous.map(|old| &old.tracing), cx)
    });

    let admin = cx.at("admin", |cx| settings.admin.compile(cx));

    let declared_names = [
        ("issuers", &issuers.names),
        ("bundles", &bundles.names),
        ("policies", &policies.names),
        ("limits", &limit_names),
        ("upstreams", &upstreams.names),
    ];
    lint::lint(&effective, &declared_names, cx);
    if cx.errors() > 0 {
        return None;
    }
    // Everything was read by now, so the digest covers what was compiled.
    let revision = revision(bytes, cx.digest());
    let identity = kept(identity, "identity", cx)?;
    let rules = Rules {
        owned: owned(&identity),
        trusted_proxies: settings
            .trusted_proxies
            .iter()
            .map(|network| network.get())
            .collect(),
    };
    let candidates = Candidates::new(
        candidates.compiled,
        &policies.compiled,
        rules.clone(),
        candidate_settings.time,
        book,
    );
    let document = Arc::new(effective);
    let snapshot = Snapshot {
        revision: revision.into(),
        compiled_at: clock::now(),
        effective: Arc::<Document>::clone(&document),
        files: std::iter::once(file.to_path_buf())
            .chain(cx.watched().map(Path::to_path_buf))
            .collect(),
        rules,
        listeners: listeners.compiled,
        issuers: issuers.compiled,
        certificates,
        bundles: Bundles {
            named: bundles.compiled,
            hub,
        },
        policies: policies.compiled,
        candidates: Arc::new(candidates),
        limits: kept(limits, "limits", cx)?,
        upstreams: upstreams.compiled,
        identity,
        revocation: kept(revocation, "revocation", cx)?,
        routes,
        audit: kept(audit, "audit", cx)?,
        tracing: kept(tracing, "telemetry", cx)?,
        head_timeout: settings.head_timeout.get(),
        drain_timeout: settings.drain_timeout.get(),
        metrics: Arc::clone(&cx.metrics),
        epoch: Arc::clone(&cx.epoch),
    };
    Some(Compiled {
        snapshot,
        document,
        admin: kept(admin, "admin", cx)?,
    })
}

/// A part that did not compile and did not say why must not load either.
fn kept<T>(part: Option<T>, section: &str, cx: &mut Compile) -> Option<T> {
    if part.is_none() {
        cx.at(section, |cx| cx.problem("the section cannot be used"));
    }
    part
}

fn declared<C, T>(
    section: &str,
    blocks: Blocks<C>,
    cx: &mut Compile,
    compile: impl Fn(&str, C, &mut Compile) -> Option<T>,
) -> Declared<T> {
    let mut compiled = Named::new();
    cx.at(section, |cx| {
        for (name, config) in blocks.good {
            let errors = cx.errors();
            cx.at(name.clone(), |cx| match compile(&name, config, cx) {
                Some(part) => drop(compiled.insert(name, part)),
                None if cx.errors() == errors => cx.problem("the block cannot be used"),
                None => {}
            });
        }
    });
    Declared {
        compiled,
        names: blocks.names,
    }
}

fn check_settings(settings: &Document, cx: &mut Compile) {
    if settings
        .workers
        .is_some_and(|workers| workers == 0 || workers > MAX_WORKERS)
    {
        cx.at("workers", |cx| {
            cx.problem_help(
                format!("the number of workers is 1 to {MAX_WORKERS}"),
                "leave it out for one per core",
            );
        });
    }
    if settings.head_timeout == Span::seconds(0) {
        cx.at("head_timeout", |cx| {
            cx.problem_help("no request would be in time", "write one such as `30s`")
        });
    }
    let mut seen = BTreeSet::new();
    for (index, network) in settings.trusted_proxies.iter().enumerate() {
        cx.at("trusted_proxies", |cx| {
            cx.at(format!("[{index}]"), |cx| {
                if network.get().prefix_len() == 0 {
                    cx.problem_help(
                        format!("`{network}` trusts everybody's forwarding headers"),
                        "name the addresses of your own proxies: anybody could claim any address",
                    );
                } else if !seen.insert(network.to_string()) {
                    cx.warning(format!("`{network}` is there twice"), "remove one");
                }
            });
        });
    }
}

/// Headers that only we read or write: a trace's is taken off first of all, and in other spellings here.
fn owned(identity: &crate::upstream::headers::IdentityHeaders) -> crate::request::Owned {
    let ours = [crate::audit::traces::HEADER];
    identity.owned().into_iter().chain(ours).collect()
}
