use super::super::client::Call;
use super::super::service::bind;
use super::*;

fn start() -> Issuer {
    Issuer::start(bind(0).unwrap()).unwrap()
}

async fn mint(issuer: &Issuer, parameters: &[(&str, &str)]) -> (u16, Value) {
    let mut form = Form::default();
    form.push("grant_type", "client_credentials");
    form.push("client_id", CLIENT_ID);
    form.push("client_secret", CLIENT_SECRET);
    for (name, value) in parameters {
        form.push(name, *value);
    }
    let mut call = Call::new(Method::POST, format!("{}/token", issuer.url));
    call.body = form.encode();
    let answer = call.send().await.unwrap();
    (answer.status, answer.json())
}

async fn get(issuer: &Issuer, path: &str) -> Value {
    let call = Call::new(Method::GET, format!("{}{path}", issuer.url));
    call.send().await.unwrap().json()
}

fn part(token: &Value, index: usize) -> Value {
    use base64::Engine as _;
    let part = token.as_str().unwrap().split('.').nth(index).unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(part)
        .unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn discovery_names_the_issuer_and_its_keys() {
    let issuer = start();
    let discovery = get(&issuer, "/.well-known/openid-configuration").await;
    assert_eq!(discovery["issuer"], issuer.url);
    assert_eq!(discovery["jwks_uri"], format!("{}/jwks", issuer.url));
    let keys = get(&issuer, "/jwks").await;
    assert_eq!(keys["keys"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn tokens_are_access_tokens_of_rfc_9068() {
    let issuer = start();
    let (status, answer) = mint(&issuer, &[("user", "alice"), ("expires_in", "60")]).await;
    assert_eq!(status, 200);
    let token = &answer["access_token"];
    assert_eq!(part(token, 0)["typ"], "at+jwt");
    let claims = part(token, 1);
    for name in [
        "iss",
        "sub",
        "aud",
        "client_id",
        "iat",
        "exp",
        "jti",
        "scope",
    ] {
        assert!(!claims[name].is_null(), "{name}");
    }
    assert_eq!(claims["sub"], "alice");
    assert_eq!(claims["roles"], json!(["customer"]));
    assert!(claims["iat"].as_i64() <= claims["exp"].as_i64());
}

#[tokio::test]
async fn expired_tokens_can_be_asked_for() {
    let issuer = start();
    let (_, answer) = mint(&issuer, &[("user", "alice"), ("expires_in", "-600")]).await;
    let claims = part(&answer["access_token"], 1);
    let now = i64::try_from(clock::unix_seconds(clock::now())).unwrap();
    assert!(claims["exp"].as_i64().unwrap() <= now - 590);
    assert!(claims["iat"].as_i64() < claims["exp"].as_i64());
}

#[tokio::test]
async fn scopes_are_never_more_than_the_users_own() {
    let issuer = start();
    let asked = [("user", "bob"), ("scope", "orders:read orders:admin")];
    let (_, answer) = mint(&issuer, &asked).await;
    assert_eq!(answer["scope"], "orders:read");
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let issuer = start();
    for (parameters, error) in [
        (&[("user", "mallory")][..], "invalid_request"),
        (&[("alg", "none")][..], "invalid_request"),
        (&[("expires_in", "99999999")][..], "invalid_request"),
    ] {
        let (status, answer) = mint(&issuer, parameters).await;
        assert_eq!((status, answer["error"].as_str()), (400, Some(error)));
    }
    let mut call = Call::new(Method::POST, format!("{}/token", issuer.url));
    call.body = "grant_type=client_credentials&client_id=reporting&client_secret=no".to_owned();
    assert_eq!(call.send().await.unwrap().status, 401);
    call.body = "grant_type=client_credentials&user=alice".to_owned();
    call.headers = vec![(
        "authorization",
        "Basic cmVwb3J0aW5nOnJlcG9ydGluZy1kZXZlbG9wbWVudC1vbmx5".to_owned(),
    )];
    let answer = call.send().await.unwrap();
    assert_eq!(answer.status, 400, "a service gets tokens for itself only");
    call.body = "grant_type=client_credentials".to_owned();
    assert_eq!(call.send().await.unwrap().status, 200);
}

#[tokio::test]
async fn rotation_keeps_the_old_keys_for_one_generation_unless_told_otherwise() {
    let issuer = start();
    let rotate = |query: &str| Call::new(Method::POST, format!("{}/rotate{query}", issuer.url));
    let (_, before) = mint(&issuer, &[]).await;
    let old = part(&before["access_token"], 0)["kid"].clone();
    let published = async |kid: &Value| {
        let keys = get(&issuer, "/jwks").await;
        keys["keys"]
            .as_array()
            .unwrap()
            .iter()
            .any(|key| key["kid"] == *kid)
    };

    assert_eq!(rotate("").send().await.unwrap().status, 200);
    let (_, after) = mint(&issuer, &[]).await;
    let new = part(&after["access_token"], 0)["kid"].clone();
    assert_ne!(old, new);
    assert!(published(&old).await && published(&new).await);

    assert_eq!(rotate("?drop=1").send().await.unwrap().status, 200);
    assert!(!published(&old).await && !published(&new).await);
}

#[tokio::test]
async fn pages_that_reach_us_under_another_name_are_turned_away() {
    let issuer = start();
    let port = issuer.url.rsplit(':').next().unwrap();
    let call = Call::new(Method::GET, format!("http://attacker.example:{port}/jwks"));
    assert_eq!(call.send().await.unwrap().status, 421);
}
