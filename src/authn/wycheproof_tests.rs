//! Published vectors (C2SP/wycheproof), when they lie beside the project; in CI they must.
//!
//! Where we judge otherwise is listed in [`CHOICES`], with the reason.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::algorithm::{Algorithm, verify};
use super::jws::{Jws, decode};
use super::keys::{Found, KeySet};
use crate::schema::Secret;

/// Cases of the signature file that we judge the other way, and why.
const CHOICES: &[(u64, &str)] = &[
    (
        346,
        "PS384 under a key published for PS256: a key is used for its own `alg` only",
    ),
    (
        350,
        "PS384 under a key published for PS256: a key is used for its own `alg` only",
    ),
    (
        347,
        "ES512 under a key whose `alg` is `ES521`, which is no registered name",
    ),
    (
        351,
        "ES512 under a key whose `alg` is `ES521`, which is no registered name",
    ),
    (
        367,
        "called invalid, but byte for byte the token of case 357, which is valid",
    ),
    (
        370,
        "called invalid, but byte for byte the token of case 357, which is valid",
    ),
    (
        372,
        "called valid with `?` inside the header's base64url, which has one spelling for us",
    ),
    (
        373,
        "called valid with `?` inside the payload's base64url, which has one spelling for us",
    ),
];

/// The folder of the vectors: `PORTCULLIS_VECTORS`, else `shared/vectors` beside the project or beside
/// the folder that holds it (as with worktrees).
fn vectors() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PORTCULLIS_VECTORS") {
        return Some(named.into());
    }
    let project = std::env::var("CARGO_MANIFEST_DIR");
    let project = project.unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let project = Path::new(&project).canonicalize().unwrap();
    project
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("shared/vectors"))
        .find(|vectors| vectors.is_dir())
}

fn load(file: &str) -> Option<Value> {
    let path = vectors().map(|folder| folder.join("wycheproof").join(file));
    if let Some(path) = &path
        && let Ok(bytes) = std::fs::read(path)
    {
        return Some(serde_json::from_slice(&bytes).unwrap());
    }
    // Whoever says where they are wants them tried, and so does CI.
    let must = std::env::var("CI").is_ok_and(|ci| !ci.is_empty() && ci != "false")
        || std::env::var_os("PORTCULLIS_VECTORS").is_some();
    assert!(
        !must,
        "{file} is not there (looked at {path:?}); set PORTCULLIS_VECTORS"
    );
    println!("skipped: {file} is not there (looked at {path:?})");
    None
}

/// Whether one of our ways to hold keys accepts the token: a published set, or a secret.
fn accepts(group: &Value, token: &str) -> bool {
    let Ok(jws) = Jws::parse(token) else {
        return false;
    };
    let Some(algorithm) = Algorithm::from_name(&jws.algorithm) else {
        return false;
    };
    let set = match group.get("public") {
        Some(keys) => {
            let text = if keys.get("keys").is_some() {
                keys.to_string()
            } else {
                serde_json::json!({ "keys": [keys] }).to_string()
            };
            KeySet::parse(text.as_bytes()).ok()
        }
        None => secret(&group["private"], &jws),
    };
    let Some(set) = set else { return false };
    let kid = jws
        .key_id
        .as_deref()
        .filter(|_| group.get("public").is_some());
    match set.find(kid, algorithm) {
        Found::Key(key) => verify(algorithm, &key.material, &jws),
        Found::Mismatch | Found::Ambiguous | Found::Unknown => false,
    }
}

/// The suite keeps secrets as JWKs; we take them from the configuration, with their algorithm.
fn secret(keys: &Value, jws: &Jws<'_>) -> Option<KeySet> {
    let all = keys.get("keys").and_then(Value::as_array);
    let mut named = all.map_or_else(|| vec![keys], |all| all.iter().collect());
    if named.iter().any(|key| key["kty"] != "oct") {
        // No configuration has secrets beside other keys.
        return None;
    }
    if let Some(kid) = &jws.key_id {
        named.retain(|key| key["kid"].as_str() == Some(kid));
    }
    let [key] = named.as_slice() else { return None };
    let algorithm = Algorithm::from_name(key["alg"].as_str()?)?;
    let bytes = decode(key["k"].as_str()?)?;
    let long_enough = algorithm
        .signature_length()
        .is_some_and(|length| bytes.len() >= length);
    long_enough.then(|| KeySet::of_secret(&Secret::new(bytes), &[algorithm]))
}

fn run(file: &str) {
    let Some(suite) = load(file) else { return };
    let mut differs = Vec::new();
    let mut cases = 0;
    for group in suite["testGroups"].as_array().unwrap() {
        for case in group["tests"].as_array().unwrap() {
            let Some(token) = case["jws"].as_str() else {
                // JWE: never accepted.
                let jwe = case["jwe"].as_str().unwrap_or_default();
                assert!(Jws::parse(jwe).is_err(), "{}", case["tcId"]);
                continue;
            };
            cases += 1;
            let id = case["tcId"].as_u64().unwrap();
            let valid = case["result"] == "valid";
            let choice = file == "json_web_signature_test.json"
                && CHOICES.iter().any(|(choice, _)| *choice == id);
            if accepts(group, token) != (valid != choice) {
                differs.push(format!(
                    "{id} {} {} {}",
                    case["result"], group["comment"], case["comment"]
                ));
            }
        }
    }
    assert!(cases > 0);
    assert!(
        differs.is_empty(),
        "{file}: {} of {cases}: {differs:#?}",
        differs.len()
    );
}

#[test]
fn signatures_are_judged_as_wycheproof_says() {
    run("json_web_signature_test.json");
}

#[test]
fn keys_are_judged_as_wycheproof_says() {
    run("json_web_key_test.json");
}

#[test]
fn mixtures_are_judged_as_wycheproof_says() {
    run("json_web_crypto_test.json");
}
