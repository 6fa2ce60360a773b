//! What loads and should still be known: open doors, and parts that nothing uses.
//!
//! Lints read the effective document as a value, the text that operators see too, by the names of
//! its keys. They never decide anything.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use serde_yaml::Value;

use super::document::Document;
use crate::revocation::RevocationConfig;
use crate::schema::Compile;

/// Reports warnings; `declared` are the names in each section that routes refer to.
pub(super) fn lint(document: &Document, declared: &[(&str, &BTreeSet<String>)], cx: &mut Compile) {
    open_routes(document, cx);
    unused(document, declared, cx);
    revocation(document, cx);
    // Not the whole document: with all its routes as values it takes more memory than anything else.
    each(&document.listeners, "listeners", cx, plaintext_listener);
    each(&document.issuers, "issuers", cx, jwt_type);
    each(&document.upstreams, "upstreams", cx, plaintext_upstream);
}

fn open_routes(document: &Document, cx: &mut Compile) {
    for (index, route) in document.routes.iter().enumerate() {
        let methods = route.authn.as_deref().unwrap_or_default();
        let anonymous = methods.iter().position(|method| method == "anonymous");
        let public = route.policy.as_deref() == Some("public");
        cx.at(format!("routes[{index}]"), |cx| match (anonymous, public) {
            (Some(_), true) => cx.at("policy", |cx| {
                cx.warning(
                    format!("route `{}` is open to everybody", route.name),
                    "nothing is proven and nothing decided: make sure that this is meant",
                );
            }),
            (Some(at), false) => cx.at("authn", |cx| {
                cx.at(format!("[{at}]"), |cx| {
                    cx.warning(
                        format!(
                            "route `{}` lets callers through without a credential",
                            route.name
                        ),
                        "its policy decides with `input.identity` null: make sure that it does",
                    );
                });
            }),
            (None, true) => cx.at("policy", |cx| {
                cx.warning(
                    format!("route `{}` lets every verified caller through", route.name),
                    "anybody with a token of its issuers gets in: name a policy to decide",
                );
            }),
            (None, false) => {}
        });
    }
}

fn unused(document: &Document, declared: &[(&str, &BTreeSet<String>)], cx: &mut Compile) {
    let mut used: BTreeSet<(&str, &str)> = BTreeSet::new();
    for route in &document.routes {
        let authn = route
            .authn
            .iter()
            .flatten()
            .map(|name| ("issuers", name.as_str()));
        let limits = route.limits.iter().map(|name| ("limits", name.as_str()));
        used.extend(authn.chain(limits));
        used.extend(route.policy.as_deref().map(|name| ("policies", name)));
        used.insert(("upstreams", route.upstream.as_str()));
    }
    for policy in document.policies.values() {
        used.extend(policy.bundles.iter().map(|name| ("bundles", name.as_str())));
    }
    for candidate in document.candidates.values() {
        let bundles = candidate.bundles.iter().flatten();
        used.extend(bundles.map(|name| ("bundles", name.as_str())));
    }
    if cx.errors() > 0 {
        // Routes that did not load may have used them.
        return;
    }
    for (section, names) in declared {
        for name in names
            .iter()
            .filter(|name| !used.contains(&(section, name.as_str())))
        {
            cx.at(*section, |cx| {
                cx.at(name.clone(), |cx| {
                    let user = if *section == "bundles" {
                        "policy"
                    } else {
                        "route"
                    };
                    cx.warning(
                        format!("no {user} uses `{name}`"),
                        format!("remove it, or name it in a {user}"),
                    );
                });
            });
        }
    }
}

/// Entries that would end too early, or with the process. Where the section says nothing, nobody has
/// asked for revocations yet.
fn revocation(document: &Document, cx: &mut Compile) {
    let section = &document.revocation;
    if *section == RevocationConfig::default() {
        return;
    }
    if section.store.is_none() {
        cx.at("revocation", |cx| {
            cx.warning(
                "what is revoked is forgotten when the gateway ends",
                "name a file: `store: revocations.jsonl`",
            );
        });
    }
    let longest = section.longest_life;
    for (name, issuer) in &document.issuers {
        let message = match issuer.max_age {
            Some(age) if age <= longest => continue,
            Some(age) => format!(
                "tokens may live for {age}, and entries that revoke them end after {longest}"
            ),
            None => format!(
                "tokens may live for any time, and entries that revoke them end after {longest}"
            ),
        };
        cx.at("issuers", |cx| {
            cx.at(name.clone(), |cx| {
                cx.warning(
                    message,
                    format!(
                        "set `max_age: {longest}` or less, or a longer `revocation.longest_life`"
                    ),
                );
            });
        });
    }
}

fn each(blocks: &impl Serialize, section: &str, cx: &mut Compile, check: fn(&Value, &mut Compile)) {
    let Ok(Value::Mapping(blocks)) = serde_yaml::to_value(blocks) else {
        return;
    };
    for (name, block) in &blocks {
        cx.at(section, |cx| {
            cx.at(name.as_str().unwrap_or_default(), |cx| check(block, cx));
        });
    }
}

fn plaintext_listener(listener: &Value, cx: &mut Compile) {
    let plaintext = listener.get("plaintext").and_then(Value::as_bool) == Some(true);
    let address = listener.get("address").and_then(Value::as_str);
    let address = address.and_then(|text| text.parse::<SocketAddr>().ok());
    if plaintext && let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
        cx.at("plaintext", |cx| {
            cx.warning(
                format!("tokens cross the network in the clear on {address}"),
                "give the listener `tls`, or bind it to a loopback address",
            );
        });
    }
}

fn jwt_type(issuer: &Value, cx: &mut Compile) {
    let types = issuer.get("token_types").and_then(Value::as_sequence);
    for (index, kind) in types.into_iter().flatten().enumerate() {
        if kind
            .as_str()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("jwt"))
        {
            cx.at("token_types", |cx| {
                cx.at(format!("[{index}]"), |cx| {
                    cx.warning(
                        "tokens of type `JWT` are accepted: the type does not tell access tokens from others",
                        "have the issuer send `at+jwt` (RFC 9068) and remove `JWT`",
                    );
                });
            });
        }
    }
}

fn plaintext_upstream(upstream: &Value, cx: &mut Compile) {
    let endpoints = upstream.get("endpoints").and_then(Value::as_sequence);
    for (index, endpoint) in endpoints.into_iter().flatten().enumerate() {
        let Some(authority) = endpoint
            .as_str()
            .and_then(|text| text.strip_prefix("http://"))
        else {
            continue;
        };
        if !loopback(authority) {
            cx.at("endpoints", |cx| {
                cx.at(format!("[{index}]"), |cx| {
                    cx.warning(
                        "identity headers cross the network in the clear",
                        "use `https://`, or make sure that something else protects the way",
                    );
                });
            });
        }
    }
}

fn loopback(authority: &str) -> bool {
    let authority = authority.split('/').next().unwrap_or_default();
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>()
        .map_or(bare == "localhost", |address| address.is_loopback())
}
