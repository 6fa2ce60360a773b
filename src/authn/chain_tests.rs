//! Which credential decides.

use super::*;
use crate::authn::client_certificate::ClientCertificateConfig;
use crate::authn::testing::{BLOCK, Signer, claims, compile, jwks, request, request_with};
use crate::clock;
use crate::metrics::Metrics;
use crate::schema::Problem;

struct Bench {
    signer: Signer,
    issuers: Named<Arc<jwt::Issuer>>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::new("ES256", "es");
        std::fs::write(folder.path().join("jwks.json"), jwks(&[&signer])).unwrap();
        let mut issuers = Named::new();
        issuers.insert(
            "dev".to_owned(),
            compile(folder.path(), BLOCK, None).unwrap(),
        );
        issuers.insert(
            "twin".to_owned(),
            compile(folder.path(), BLOCK, None).unwrap(),
        );
        let other = BLOCK.replace("127.0.0.1:9400", "127.0.0.1:9999");
        issuers.insert(
            "other".to_owned(),
            compile(folder.path(), &other, None).unwrap(),
        );
        Self { signer, issuers }
    }

    fn chain(&self, names: &[&str]) -> Result<Chain, Vec<Problem>> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut cx = Compile::new("gateway.yaml".as_ref(), Arc::<Metrics>::default());
        let certificates = ClientCertificateConfig::default().compile(None);
        let chain = cx.at("authn", |cx| {
            Chain::compile(&names, &self.issuers, &certificates, cx)
        });
        chain.ok_or_else(|| cx.finish().0)
    }
}

async fn code(chain: &Chain, headers: &[(&str, &str)]) -> &'static str {
    match chain
        .authenticate(
            &Recent::default(),
            &request_with(headers, None, clock::now()),
        )
        .await
    {
        Ok(Caller::Anonymous) => "anonymous",
        Ok(Caller::Known(_)) => "known",
        Err(Failure::Missing) => "missing",
        Err(Failure::Confused) => "confused",
        Err(Failure::Unavailable { .. }) => "unavailable",
        Err(Failure::Rejected { code, .. }) => code,
    }
}

#[tokio::test]
async fn a_bad_credential_is_refused_even_where_nobody_in_particular_may_come() {
    let bench = Bench::new();
    let chain = bench
        .chain(&["dev", "client_certificate", "anonymous"])
        .unwrap();
    let good = bench.signer.token(&claims());
    assert!(chain.takes_bearer());
    assert_eq!(code(&chain, &[]).await, "anonymous");
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        assert_eq!(
            code(&chain, &[("authorization", &format!("{scheme} {good}"))]).await,
            "known"
        );
    }
    for bad in [
        "Bearer".to_owned(),
        "Bearer ".into(),
        format!("Bearer  {good}"),
        format!("Bearer {good} "),
        format!("Bearer\t{good}"),
        format!("Bearer {good},Bearer {good}"),
        format!("Bearer {good} {good}"),
        "Bearer opaque".into(),
        "Bearer \"x\"".into(),
        format!("Bearer,{good}"),
        "Bearer ..".into(),
    ] {
        assert_eq!(
            code(&chain, &[("authorization", &bad)]).await,
            "token.malformed",
            "{bad:.20}"
        );
    }
    for other in [
        "Basic YTpi",
        "DPoP abc",
        "Bearerx y",
        "Negotiate",
        "B\u{65}arer2 x",
    ] {
        assert_eq!(
            code(&chain, &[("authorization", other)]).await,
            "anonymous",
            "{other}"
        );
    }
}

#[tokio::test]
async fn several_authorization_headers_are_refused_on_every_route() {
    let bench = Bench::new();
    let good = format!("Bearer {}", bench.signer.token(&claims()));
    for names in [&["dev"][..], &["anonymous"], &["client_certificate"]] {
        let chain = bench.chain(names).unwrap();
        let twice = [
            ("authorization", good.as_str()),
            ("authorization", good.as_str()),
        ];
        assert_eq!(code(&chain, &twice).await, "confused", "{names:?}");
        let mixed = [
            ("authorization", "Basic x"),
            ("authorization", good.as_str()),
        ];
        assert_eq!(code(&chain, &mixed).await, "confused", "{names:?}");
    }
}

#[tokio::test]
async fn a_route_without_issuers_ignores_bearer_tokens_and_one_without_anonymous_misses_them() {
    let bench = Bench::new();
    let good = format!("Bearer {}", bench.signer.token(&claims()));
    let open = bench.chain(&["anonymous"]).unwrap();
    assert!(!open.takes_bearer());
    assert_eq!(code(&open, &[("authorization", &good)]).await, "anonymous");
    let closed = bench.chain(&["client_certificate"]).unwrap();
    assert_eq!(code(&closed, &[("authorization", &good)]).await, "missing");
    let chain = bench.chain(&["dev"]).unwrap();
    assert_eq!(code(&chain, &[]).await, "missing");
    assert_eq!(
        code(&chain, &[("authorization", "Basic x")]).await,
        "missing"
    );
    let other = bench.chain(&["other"]).unwrap();
    assert_eq!(
        code(&other, &[("authorization", &good)]).await,
        "token.issuer"
    );
    let both = bench
        .chain(&["other", "client_certificate", "dev"])
        .unwrap();
    assert_eq!(code(&both, &[("authorization", &good)]).await, "known");
}

#[tokio::test]
async fn the_caller_is_known_by_the_token_of_the_header_only() {
    let bench = Bench::new();
    let chain = bench.chain(&["dev"]).unwrap();
    let token = bench.signer.token(&claims());
    let caller = chain
        .authenticate(&Recent::default(), &request(&token))
        .await
        .unwrap();
    assert_eq!(&*caller.identity().unwrap().subject, "alice");
    assert_eq!(
        code(&chain, &[("x-access-token", &token), ("cookie", &token)]).await,
        "missing"
    );
}

#[test]
fn mistakes_in_the_list_of_methods_are_problems() {
    let bench = Bench::new();
    for (names, path) in [
        (&[][..], "authn"),
        (&["dvv"], "authn[0]"),
        (&["anonymous", "dev"], "authn[1]"),
        (&["dev", "dev"], "authn[1]"),
        (&["dev", "twin"], "authn[1]"),
    ] {
        let problems = bench.chain(names).unwrap_err();
        assert_eq!(problems[0].path, path, "{names:?}");
        assert!(problems[0].help.is_some());
    }
    let help = bench.chain(&["devv"]).unwrap_err()[0].help.clone();
    assert_eq!(help.as_deref(), Some("did you mean `dev`?"));
}

#[test]
fn the_module_documents_every_code() {
    let text = include_str!("mod.rs");
    for code in code::ALL {
        assert!(text.contains(&format!("//! | `{code}` |")), "{code}");
    }
}

#[test]
fn the_identity_of_another_rooms_test_reads_like_a_real_one() {
    let claims = crate::document::object([("scope", "a b")].map(|(k, v)| (k, Value::from(v))));
    let identity = Identity::for_tests("alice", claims, clock::now());
    assert_eq!(&*identity.id, "https://issuer.test|alice");
    assert_eq!(identity.scopes.len(), 2);
}
