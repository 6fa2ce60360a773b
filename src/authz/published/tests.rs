use super::*;

fn listed(some: &BTreeSet<String>) -> Vec<&str> {
    some.iter().map(String::as_str).collect()
}

#[test]
fn what_is_sure_of_version_1_is_pinned() {
    let members = InputDocument::Portcullis.members();
    assert_eq!(
        listed(&members.texts),
        [
            "request.host",
            "request.id",
            "request.method",
            "request.path",
            "request.protocol",
            "request.received_at",
            "request.scheme",
            "route.name",
            "source.address",
        ]
    );
    assert_eq!(
        listed(&members.collections),
        [
            "request.headers",
            "request.query",
            "request.segments",
            "route.labels",
            "route.params",
            "signals.device",
            "signals.place",
        ]
    );
    assert_eq!(
        listed(&members.present),
        [
            "identity",
            "request",
            "request.received_at_ns",
            "route",
            "signals",
            "signals.device.known",
            "signals.place.known",
            "source",
            "source.port",
            "source.tls",
            "version",
        ]
    );
}

#[test]
fn nothing_below_what_may_be_null_or_absent_is_sure() {
    for document in InputDocument::ALL {
        assert!(document.example().is_some());
        assert!(document.paths().len() > 40, "{document:?}");
    }
    let envoy = InputDocument::Envoy;
    assert!(envoy.is_text("attributes.request.http.method"));
    assert!(envoy.is_text("attributes.request.http.headers.:path"));
    assert!(envoy.is_collection("parsed_path"));
    assert!(envoy.is_collection("attributes.request.http.headers"));
    for absent in [
        "attributes.source.principal",
        "attributes.tlsSession",
        "attributes.tlsSession.sni",
        "attributes.request.http.body",
        "parsed_body",
        "truncated_body",
        "request.method",
    ] {
        assert!(!envoy.is_present(absent), "{absent}");
    }
    for text in [
        "attributes.request.http.headers.x-tenant",
        "attributes.contextExtensions.team",
        "attributes.request.http.method",
    ] {
        assert!(envoy.is_text_or_absent(text), "{text}");
    }
    assert!(!envoy.is_text_or_absent("attributes.request.http.size"));
    assert!(!envoy.is_text_or_absent("request.headers.x"));
    let ours = InputDocument::Portcullis;
    assert!(ours.is_text_or_absent("route.params.id"));
    assert!(ours.is_text_or_absent("request.headers.x-tenant"));
    assert!(!ours.is_text_or_absent("identity.claims.n"));
    assert!(!ours.is_present("identity.subject"));
    assert!(!ours.is_present("source.tls.sni"));
    assert!(!ours.is_present("request.body"));
    assert!(!ours.is_present("attributes.request.http.method"));
}
