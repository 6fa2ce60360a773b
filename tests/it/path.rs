//! The path that is matched is the path the policy sees and the path the upstream gets.

use crate::support::gateway::{Builder, World};
use crate::support::upstream::Upstream;

/// Denies everything under `/admin`.
const NO_ADMIN: &str = r#"package gate

default allow := false

allow if not startswith(input.request.path, "/admin")
"#;

/// Allows everything and tells the client which path was judged.
const TELL_PATH: &str = r#"package gate

allow := {"allow": true, "headers": {"x-judged": input.request.path}}
"#;

#[test]
fn the_policy_sees_the_path_that_is_forwarded() {
    let world = World::with(|builder| builder.policy(TELL_PATH));
    let token = world.token("alice");
    for (sent, forwarded) in [
        ("/a/b", "/a/b"),
        ("/%61/b", "/a/b"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a%20b?q=%2e%2e/", "/a%20b?q=%2e%2e/"),
        ("/a:b@c!$&'()*+,=~-._", "/a:b@c!$&'()*+,=~-._"),
    ] {
        let answer = world.gateway.bearer(sent, &token);
        assert_eq!(answer.status, 200, "{sent}: {}", answer.text());
        assert_eq!(world.upstream.last().path(), forwarded, "{sent}");
        let judged = forwarded.split('?').next();
        assert_eq!(answer.header("x-judged"), judged, "{sent}");
    }
}

#[test]
fn no_spelling_of_a_denied_path_reaches_the_upstream() {
    let world = World::with(|builder| builder.policy(NO_ADMIN));
    let token = world.token("alice");
    for path in [
        "/admin",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "//admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/./admin",
        "/%2e/admin",
        "/..;/admin",
        "/x;/../admin",
        "/admin;a=b/x",
        "/%2fadmin",
        "/x%2f..%2fadmin",
        "/x/..%2fadmin",
        "/%252e%252e/admin",
        "/%5cadmin",
        "/\\admin",
        "/x\\..\\admin",
        "/admin%00",
        "/admin%0a",
        "/admin%09",
        "/.//admin",
        "///admin",
        "/x/..//admin",
        "/%c0%ae%c0%ae/admin",
        "/admin/../admin",
        "/api../admin",
        "/a/%2e%2E%2fadmin",
        "/admin#/public",
        "/%u0061dmin",
        "/x/.%2e/admin",
        "/%2e%2e;/admin",
        "/admin%3b/x",
    ] {
        let before = world.upstream.seen().len();
        let answer = world.gateway.bearer(path, &token);
        let reached = world.upstream.seen().split_off(before);
        // `/api../admin` is an honest path of two segments and may pass as it is.
        if path == "/api../admin" {
            assert_eq!(reached[0].path(), path);
            continue;
        }
        assert!(
            matches!(answer.status, 400 | 403),
            "{path}: {}",
            answer.status
        );
        assert!(
            reached.is_empty(),
            "{path} reached the upstream as {:?}",
            reached[0].line
        );
    }
}

#[test]
fn a_route_may_allow_an_ambiguous_form_and_forwards_its_normal_form() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| {
            document["routes"][0]["paths"] =
                serde_json::json!({"merge_slashes": true, "resolve_dot_segments": true, "allow_encoded_slash": true});
        })
        .start();
    for (sent, forwarded) in [
        ("/a//b", "/a/b"),
        ("/a/./c/../b", "/a/b"),
        ("/a%2fb", "/a%2Fb"),
        ("//admin", "/admin"),
    ] {
        assert_eq!(gateway.get(sent, &[]).status, 200, "{sent}");
        assert_eq!(upstream.last().path(), forwarded, "{sent}");
    }
    assert_eq!(gateway.get("/a;b", &[]).status, 400);
    assert_eq!(gateway.get("/../a", &[]).status, 400);
    // Allowing the slash allows no folder change behind it.
    for path in ["/x/..%2fadmin", "/x%2f..%2fadmin", "/x%2f%2e%2e/admin"] {
        assert_eq!(gateway.get(path, &[]).status, 400, "{path}");
    }
}
