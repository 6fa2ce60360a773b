//! What a published set makes of odd keys.

use serde_json::{Value as Json, json};

use super::*;
use crate::authn::testing::Signer;

fn parse(keys: Json) -> Result<KeySet, BadSet> {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
}

fn with(jwk: &Json, name: &str, value: Json) -> Json {
    let mut jwk = jwk.clone();
    jwk[name] = value;
    jwk
}

fn is_left_out(jwk: Json) -> bool {
    let good = Signer::new("EdDSA", "good").jwk();
    let set = parse(json!([jwk, good])).unwrap();
    assert!(matches!(
        set.find(Some("good"), Algorithm::EdDSA),
        Found::Key(_)
    ));
    let out = set.len() == 1;
    assert_eq!(out, set.notes.iter().any(|note| note.contains("left out")));
    out
}

#[test]
fn one_odd_key_is_left_out_and_the_others_stay() {
    let rsa = Signer::new("RS256", "odd").jwk();
    let ec = Signer::new("ES256", "odd").jwk();
    assert!(!is_left_out(rsa.clone()) && !is_left_out(ec.clone()));
    let small = jws::encode(&[0xff; 128]);
    let padded = format!("{}=", rsa["n"].as_str().unwrap());
    for jwk in [
        json!(1),
        json!({}),
        json!({"kty": "new-kind", "kid": "x"}),
        json!({"kty": "oct", "k": "c2VjcmV0", "kid": "x"}),
        with(&rsa, "use", json!("enc")),
        with(&rsa, "use", json!(["sig"])),
        with(&rsa, "key_ops", json!(["encrypt"])),
        with(&rsa, "key_ops", json!("verify")),
        with(&rsa, "alg", json!("RSA-OAEP")),
        with(&rsa, "alg", json!("ES256")),
        with(&rsa, "alg", json!("HS256")),
        with(&rsa, "alg", json!("none")),
        with(&rsa, "alg", json!(null)),
        with(&rsa, "kid", json!(7)),
        with(&rsa, "kid", json!("")),
        with(&rsa, "kid", json!("k".repeat(jws::MAX_KEY_ID + 1))),
        with(&rsa, "n", json!(small)),
        with(&rsa, "n", json!(jws::encode(&[0xff; 1025]))),
        with(&rsa, "n", json!(padded)),
        with(&rsa, "n", json!("")),
        with(&rsa, "e", json!("AQ")),
        with(&rsa, "e", json!("Ag")),
        with(&rsa, "e", json!("AA")),
        with(&ec, "crv", json!("P-384")),
        with(&ec, "crv", json!("secp256k1")),
        with(&ec, "x", ec["y"].clone()),
        with(&ec, "x", json!(jws::encode(&[0; 32]))),
        with(&ec, "x", json!(jws::encode(&[1; 33]))),
        json!({"kty": "OKP", "crv": "X25519", "x": jws::encode(&[9; 32])}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": jws::encode(&[9; 31])}),
    ] {
        assert!(is_left_out(jwk.clone()), "{jwk}");
    }
}

#[test]
fn keys_that_share_an_id_are_all_left_out() {
    let (a, b) = (
        Signer::new("ES256", "a").jwk(),
        Signer::new("EdDSA", "b").jwk(),
    );
    let twin = Signer::new("ES256", "a").jwk();
    let set = parse(json!([a, b, twin])).unwrap();
    assert!(matches!(
        set.find(Some("a"), Algorithm::ES256),
        Found::Unknown
    ));
    assert!(matches!(set.find(None, Algorithm::ES256), Found::Unknown));
    assert!(matches!(
        set.find(Some("b"), Algorithm::EdDSA),
        Found::Key(_)
    ));
    assert_eq!(parse(json!([a, a])).unwrap_err(), BadSet::Empty);
}

#[test]
fn a_set_without_names_is_asked_by_algorithm_alone() {
    let bare = |signer: Signer| {
        let mut jwk = signer.jwk();
        jwk.as_object_mut().unwrap().remove("kid");
        jwk
    };
    let (a, b) = (
        bare(Signer::new("ES256", "a")),
        bare(Signer::new("EdDSA", "b")),
    );
    let set = parse(json!([a, b])).unwrap();
    for id in [None, Some("anything")] {
        assert!(matches!(set.find(id, Algorithm::ES256), Found::Key(_)));
        assert!(matches!(set.find(id, Algorithm::RS256), Found::Unknown));
    }
    let set = parse(json!([a, bare(Signer::new("ES256", "c"))])).unwrap();
    let found = set.find(Some("a"), Algorithm::ES256);
    assert!(matches!(found, Found::Ambiguous));
    // One key with a name: a name that is not there is unknown again.
    let set = parse(json!([a, Signer::new("EdDSA", "d").jwk()])).unwrap();
    let found = set.find(Some("a"), Algorithm::ES256);
    assert!(matches!(found, Found::Unknown));
}

#[test]
fn a_key_without_an_algorithm_is_for_those_of_its_kind() {
    let mut jwk = Signer::new("RS256", "k").jwk();
    jwk.as_object_mut().unwrap().remove("alg");
    jwk["key_ops"] = json!(["verify", "sign"]);
    let set = parse(json!([jwk])).unwrap();
    for (algorithm, fits) in [
        (Algorithm::RS256, true),
        (Algorithm::PS512, true),
        (Algorithm::ES256, false),
        (Algorithm::EdDSA, false),
        (Algorithm::HS256, false),
    ] {
        let found = matches!(set.find(Some("k"), algorithm), Found::Key(_));
        assert_eq!(found, fits, "{algorithm}");
    }
}

#[test]
fn published_private_members_are_ignored_and_noted() {
    let jwk = with(&Signer::new("ES256", "k").jwk(), "d", json!("secret"));
    let set = parse(json!([jwk])).unwrap();
    assert_eq!(set.len(), 1);
    assert!(set.notes[0].contains("private"));
    assert!(!format!("{set:?}").contains("secret\""));
}

#[test]
fn sets_have_a_form_and_a_size() {
    let jwk = Signer::new("ES256", "k").jwk();
    assert_eq!(
        parse(Json::Array(vec![jwk; MAX_KEYS + 1])).unwrap_err(),
        BadSet::TooMany
    );
    assert_eq!(parse(json!([])).unwrap_err(), BadSet::Empty);
    for text in ["", "[]", "{}", r#"{"keys":1}"#, r#"{"keys":[]}x"#] {
        assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn moduli_of_the_broken_generator_are_recognised() {
    // A power of 65537 is one modulo every prime.
    let mut product = vec![1u8];
    for _ in 0..120 {
        let mut carry = 0u32;
        for byte in product.iter_mut().rev() {
            carry += u32::from(*byte) * 65_537;
            *byte = u8::try_from(carry & 0xff).unwrap();
            carry >>= 8;
        }
        while carry > 0 {
            product.insert(0, u8::try_from(carry & 0xff).unwrap());
            carry >>= 8;
        }
    }
    assert!(is_roca(&product));
    let sound = jws::decode(Signer::new("RS256", "k").jwk()["n"].as_str().unwrap()).unwrap();
    assert!(!is_roca(&sound));
}

#[test]
fn thumbprints_are_those_of_rfc_7638_and_go_by_material_alone() {
    let jwk = json!({
        "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_\
              BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FD\
              W2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQF\
              h6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
    });
    let other = with(&with(&jwk, "kid", json!("other")), "alg", json!("PS256"));
    let set = parse(json!([jwk, other])).unwrap();
    for key in &set.keys {
        let thumbprint = key.thumbprint().map(|thumbprint| &**thumbprint);
        assert_eq!(
            thumbprint,
            Some("NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs")
        );
    }
}

#[test]
fn a_key_reads_as_the_same_from_the_jwk_that_is_made_of_it() {
    for algorithm in ["RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"] {
        let mut open = Signer::new(algorithm, "open").jwk();
        open.as_object_mut().unwrap().remove("alg");
        let named = Signer::new(algorithm, "named").jwk();
        let mut nameless = named.clone();
        nameless.as_object_mut().unwrap().remove("kid");
        for jwk in [open, named, nameless] {
            let first = parse(json!([jwk])).unwrap();
            let again = parse(json!([first.keys[0].jwk().unwrap()])).unwrap();
            assert!(first.fingerprints().eq(again.fingerprints()), "{jwk}");
        }
    }
}

#[test]
fn private_members_are_not_written_down() {
    let jwk = with(&Signer::new("ES256", "leak").jwk(), "d", json!("c2VjcmV0"));
    let set = parse(json!([jwk])).unwrap();
    assert!(!set.keys[0].jwk().unwrap().to_string().contains("c2VjcmV0"));
}
