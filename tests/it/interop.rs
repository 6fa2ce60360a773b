//! Real issuers and real clients, as people use them.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::gateway::{Builder, World};
use crate::support::issuer::{Issuer, Key};
use crate::support::tools::{Script, oidc_provider, program, python};
use crate::support::upstream::Upstream;

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/interop")
        .join(name)
}

#[test]
fn tokens_of_a_certified_provider_pass_and_wrong_ones_do_not() {
    let (Some(folder), Some(node)) = (oidc_provider(), program("node")) else {
        return;
    };
    let mut provider = Script::start(
        Command::new(node)
            .arg(script("provider.mjs"))
            .env("PORTCULLIS_OIDC_PROVIDER_DIR", folder),
    );
    let hello: Value = serde_json::from_str(&provider.line()).unwrap();
    let audience = "urn:portcullis:orders";
    let mut token = |alg: &str, flow: &str, audience: &str, ttl: u64| {
        let answer = provider.ask(
            &json!({"do": "token", "alg": alg, "flow": flow, "audience": audience, "ttl": ttl}),
        );
        answer["access_token"]
            .as_str()
            .unwrap_or_else(|| panic!("no token: {answer}"))
            .to_owned()
    };
    let mut tokens = Vec::new();
    for alg in ["RS256", "PS256", "ES256", "EdDSA"] {
        for flow in ["client_credentials", "authorization_code"] {
            tokens.push((alg, flow, token(alg, flow, audience, 300)));
        }
    }
    let other = token("ES256", "client_credentials", "urn:portcullis:other", 300);
    let brief = token("ES256", "client_credentials", audience, 1);
    let unused = token("RS256", "client_credentials", audience, 300);

    let upstream = Upstream::start();
    let stand_in = Issuer::start(&[]);
    let gateway = Builder::guarded(&upstream, &stand_in)
        .with(|document| {
            let issuer = &mut document["issuers"]["main"];
            issuer["issuer"] = hello["issuer"].clone();
            issuer["audiences"] = json!([audience]);
            issuer["leeway"] = json!("0s");
            issuer["refresh"] = json!({"interval": "1s", "minimum": "1s"});
        })
        .start();
    for (alg, flow, token) in &tokens {
        let answer = gateway.bearer("/a", token);
        assert_eq!(answer.status, 200, "{alg} {flow}: {}", answer.text());
    }
    assert_eq!(gateway.bearer("/a", &other).status, 401, "another audience");
    eventually("expiry", || {
        (gateway.bearer("/a", &brief).status == 401).then_some(())
    });

    // Rotated with overlap: both generations pass. Without: the old one is out.
    provider.ask(&json!({"do": "rotate", "overlap": true}));
    let fresh = provider.ask(&json!({"do": "token", "alg": "ES256", "audience": audience}));
    let fresh = fresh["access_token"].as_str().unwrap();
    eventually("the new key", || {
        (gateway.bearer("/a", fresh).status == 200).then_some(())
    });
    assert_eq!(
        gateway.bearer("/a", &unused).status,
        200,
        "the old key within the overlap"
    );
    provider.ask(&json!({"do": "rotate", "overlap": false}));
    eventually("the old key's end", || {
        (gateway.bearer("/a", &unused).status == 401).then_some(())
    });
}

#[test]
fn grpc_calls_of_every_kind_pass() {
    let Some(python) = python() else { return };
    let mut server = Script::start(
        Command::new(&python)
            .arg(script("grpc_calls.py"))
            .arg("serve"),
    );
    let port: u16 = server.line().parse().unwrap();
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let gateway = Builder::guarded(&upstream, &issuer)
        .with(|document| {
            document["upstreams"]["main"] =
                json!({"endpoints": [format!("http://127.0.0.1:{port}")], "protocol": "http2"});
        })
        .start();
    let output = Command::new(&python)
        .arg(script("grpc_calls.py"))
        .args([
            "call",
            &gateway.address().port().to_string(),
            &key.token(&issuer.claims("alice")),
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let answers: Value = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(answers["unary"], "echo hello");
    assert_eq!(answers["trailers"], "yes");
    assert_eq!(answers["server_stream"], json!(["0", "1", "2", "3", "4"]));
    assert_eq!(answers["client_stream"], "6");
    assert_eq!(answers["both"], json!(["re a", "re b"]));
    assert_eq!(answers["status"], "FAILED_PRECONDITION: told to: x");
    assert!(
        answers["deadline"]
            .as_str()
            .unwrap()
            .starts_with("DEADLINE_EXCEEDED"),
        "{answers}"
    );
    assert!(
        answers["without_token"]
            .as_str()
            .unwrap()
            .starts_with("UNAUTHENTICATED"),
        "{answers}"
    );
}

#[test]
fn load_generators_see_no_error() {
    let (Some(h2load), Some(wrk)) = (program("h2load"), program("wrk")) else {
        return;
    };
    let world = World::with(|builder| builder.with(|document| document["workers"] = json!(2)));
    let address = world.gateway.address();
    let url = format!("http://{address}/load");
    let token = format!("authorization: Bearer {}", world.token("alice"));
    for arguments in [
        vec!["-n3000", "-c20", "-m10", "-H", &token, &url],
        vec!["--h1", "-n3000", "-c20", "-H", &token, &url],
    ] {
        let output = Command::new(&h2load).args(&arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("3000 succeeded, 0 failed, 0 errored"),
            "{arguments:?}\n{text}"
        );
        assert!(text.contains("status codes: 3000 2xx"), "{text}");
    }
    let output = Command::new(wrk)
        .args(["-t1", "-c10", "-d2s", "-H", &token, &url])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("Requests/sec")
            && !text.contains("Non-2xx")
            && !text.contains("Socket errors"),
        "{text}"
    );
}

#[test]
fn curl_speaks_to_it_over_both_versions() {
    let Some(curl) = program("curl") else { return };
    let world = World::start();
    let url = format!("http://{}/a", world.gateway.address());
    let token = format!("authorization: Bearer {}", world.token("alice"));
    for version in ["--http1.1", "--http2-prior-knowledge", "--http1.0"] {
        let output = Command::new(&curl)
            .args([
                "-sS",
                "-w",
                "%{http_code}",
                "-H",
                &token,
                "-H",
                "Host: api.example.test",
                version,
                &url,
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            text,
            "hello200",
            "{version}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
