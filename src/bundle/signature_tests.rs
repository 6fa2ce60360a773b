use super::*;

// Tokens, keys and hashes of OPA's own tests (v1/bundle/verify_test.go): facts, not code.
const HS256: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6ImZvbyJ9.eyJmaWxlcyI6W3sibmFtZSI6ImRiL3VhbTIvZW50aXRsZW1lbnRzL2RhdGEuanNvbiIsImhhc2giOiJjMjEzMTU0NGM3MTZhMjVhNWUzMWY1MDQzMDBmNTI0MGU4MjM1Y2FkYjlhNTdmMGJkMWI2ZjRiZDc0YjI2NjEyIiwiYWxnb3JpdGhtIjoic2hhMjU2In0seyJuYW1lIjoiZGIvdWFtMi9wb2xpY3kvb3BhLXBvbGljeS5yZWdvIiwiaGFzaCI6IjQyY2ZlNjc2OGI1N2JiNWY3NTAzYzE2NWMyOGRkMDdhYzViODEzNTU0ZWJjODUwZjJjYzM1ODQzZTcxMzdiMWQifV0sImlhdCI6MTU5MjI0ODAyNywiaXNzIjoiSldUU2VydmljZSIsInNjb3BlIjoid3JpdGUifQ.u7b_h88osJpU6VQLhIUmZjblsPNCO_kTqsVtpEAHavs";
const HS256_KEYID_CLAIM: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJmaWxlcyI6W3sibmFtZSI6ImRiL3VhbTIvZW50aXRsZW1lbnRzL2RhdGEuanNvbiIsImhhc2giOiJjMjEzMTU0NGM3MTZhMjVhNWUzMWY1MDQzMDBmNTI0MGU4MjM1Y2FkYjlhNTdmMGJkMWI2ZjRiZDc0YjI2NjEyIiwiYWxnb3JpdGhtIjoic2hhMjU2In0seyJuYW1lIjoiZGIvdWFtMi9wb2xpY3kvb3BhLXBvbGljeS5yZWdvIiwiaGFzaCI6IjQyY2ZlNjc2OGI1N2JiNWY3NTAzYzE2NWMyOGRkMDdhYzViODEzNTU0ZWJjODUwZjJjYzM1ODQzZTcxMzdiMWQifV0sImlhdCI6MTU5MjI0ODAyNywiaXNzIjoiSldUU2VydmljZSIsImtleWlkIjoiZm9vIiwic2NvcGUiOiJ3cml0ZSJ9.4nrInalqppAc9EjsNUD9Y35amVpDGoRk4bkxzdY8fhs";
const RS256: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6ImZvbyJ9.eyJmaWxlcyI6W3sibmFtZSI6ImRiL3VhbTIvZW50aXRsZW1lbnRzL2RhdGEuanNvbiIsImhhc2giOiJjMjEzMTU0NGM3MTZhMjVhNWUzMWY1MDQzMDBmNTI0MGU4MjM1Y2FkYjlhNTdmMGJkMWI2ZjRiZDc0YjI2NjEyIiwiYWxnb3JpdGhtIjoic2hhMjU2In0seyJuYW1lIjoiZGIvdWFtMi9wb2xpY3kvb3BhLXBvbGljeS5yZWdvIiwiaGFzaCI6IjQyY2ZlNjc2OGI1N2JiNWY3NTAzYzE2NWMyOGRkMDdhYzViODEzNTU0ZWJjODUwZjJjYzM1ODQzZTcxMzdiMWQifV0sImlhdCI6MTU5MjI1MTQwNiwiaXNzIjoiSldUU2VydmljZSIsInNjb3BlIjoid3JpdGUifQ.UZcX_Qj29o213nwZ5mysiyNcgAp1AOqCkDLkj1KGZ7Cw3l17TbkF8t3FJd654sf762NGcABA0WQ2zxq-labXl_d5TKQmq23lurO3qLHI1cKQPyoxPbddGo78sJpMwWsiMyEYcyyKC9FpNUpa8cT81GPo4q9Zui8TAD0wtHh2YxBL7E8QYLJxcLMJTJxVBgrQGLXFT7vYRc6hJz9Vu-i0SWuLBGxOCmYoHr4DWFfy0IhAbhiUFyLRpukfBPjCJNYY5LgaZdN6LaYivtIEUms5jUuXubBimLJm7KOT5-bgJMXTcUsbrbl2Ma7PwG5IOKjjgyEvH8KVfGFZSzNrpuxKmA";
const RSA: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA9KaakMv1XKKDaSch3PFR
3a27oaHp1GNTTNqvb1ZaHZXp+wuhYDwc/MTE67x9GCifvQBWzEGorgTq7aisiOyl
vKifwz6/wQ+62WHKG/sqKn2Xikp3P63aBIPlZcHbkyyRmL62yeyuzYoGvLEYel+m
z5SiKGBwviSY0Th2L4e5sGJuk2HOut6emxDi+E2Fuuj5zokFJvIT6Urlq8f3h6+l
GeR6HUOXqoYVf7ff126GP7dticTVBgibxkkuJFmpvQSW6xmxruT4k6iwjzbZHY7P
ypZ/TdlnuGC1cOpAVyU7k32IJ9CRbt3nwEf5U54LRXLLQjFixWZHwKdDiMTF4ws0
+wIDAQAB
-----END PUBLIC KEY-----";
const RSA_SHORT: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDMYfnvWtC8Id5bPKae5yXSxQTt
+Zpul6AnnZWfI2TtIarvjHBFUtXRo96y7hoL4VWOPKGCsRqMFDkrbeUjRrx8iL91
4/srnyf6sh9c8Zk04xEOpK1ypvBz+Ks4uZObtjnnitf0NBGdjMKxveTq+VE7BWUI
yQjtQ8mbDOsiLLvh7wIDAQAB
-----END PUBLIC KEY-----";

fn verifier(key: Key, keyid: Option<&str>, scope: &str) -> Verifier {
    Verifier {
        keys: [("foo".to_owned(), key)].into(),
        keyid: keyid.map(ToOwned::to_owned),
        scope: scope.to_owned(),
        exclude: Vec::new(),
    }
}

fn opas_secret() -> Key {
    Key::short_secret(SigningAlgorithm::HS256, b"secret")
}

fn rsa(algorithm: SigningAlgorithm) -> Key {
    Key::new(algorithm, &Secret::new(RSA.as_bytes().to_vec())).unwrap()
}

fn wrapped(token: &str) -> Vec<u8> {
    serde_json::json!({ "signatures": [token] })
        .to_string()
        .into_bytes()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Fault>, words: &str) {
    let fault = outcome.expect_err(words);
    assert_eq!(fault.kind, Kind::Signature);
    assert!(fault.to_string().contains(words), "{fault}");
}

#[test]
fn signatures_of_opas_own_tests_are_judged_as_opa_does() {
    let (payload, keyid, _) = verifier(opas_secret(), None, "write")
        .payload(&wrapped(HS256))
        .map(|(payload, keyid, _)| (payload, keyid, ()))
        .unwrap();
    assert_eq!((payload.files.len(), keyid.as_str()), (2, "foo"));
    assert_eq!(payload.iat, Some(1_592_248_027));
    let ok =
        |key, keyid, scope, token| verifier(key, keyid, scope).payload(&wrapped(token)).is_ok();
    assert!(ok(opas_secret(), None, "write", HS256_KEYID_CLAIM));
    assert!(ok(opas_secret(), Some("foo"), "write", HS256));
    assert!(ok(rsa(SigningAlgorithm::RS256), None, "write", RS256));
    let judge = |key, scope, token| {
        verifier(key, None, scope)
            .payload(&wrapped(token))
            .map(|(payload, ..)| payload)
    };
    refused(
        judge(opas_secret(), "bad_scope", HS256),
        "its scope is `write`, and must be `bad_scope`",
    );
    refused(judge(opas_secret(), "", HS256), "its scope is");
    let other = Key::short_secret(SigningAlgorithm::HS256, b"bad_secret");
    refused(judge(other, "write", HS256), "not of the key `foo`");
    let short = Key::new(
        SigningAlgorithm::RS256,
        &Secret::new(RSA_SHORT.as_bytes().to_vec()),
    );
    if let Ok(short) = short {
        refused(judge(short, "write", RS256), "not of the key");
    }
    let none = Verifier {
        keys: BTreeMap::new(),
        ..verifier(opas_secret(), None, "write")
    };
    refused(
        none.payload(&wrapped(HS256)).map(|(p, ..)| p),
        "there is no key `foo`",
    );
}

#[test]
fn the_algorithm_is_the_keys_and_not_the_tokens() {
    let judge = |key, token: &str| {
        verifier(key, Some("foo"), "write")
            .payload(&wrapped(token))
            .map(|(p, ..)| p)
    };
    refused(
        judge(rsa(SigningAlgorithm::PS256), RS256),
        "signed with RS256, and the key `foo` is for PS256",
    );
    refused(judge(rsa(SigningAlgorithm::RS384), RS256), "for RS384");
    refused(
        judge(rsa(SigningAlgorithm::RS256), HS256),
        "signed with HS256",
    );
    let body = RS256.split('.').nth(1).unwrap();
    for alg in ["none", "None", "", "rs256"] {
        let head = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"{alg}\",\"kid\":\"foo\"}}"));
        refused(
            judge(rsa(SigningAlgorithm::RS256), &format!("{head}.{body}.")),
            "the key `foo` is for RS256",
        );
    }
    // The public key as the shared secret of an HMAC.
    let head = URL_SAFE_NO_PAD.encode("{\"alg\":\"HS256\",\"kid\":\"foo\"}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, RSA.as_bytes());
    let tag = hmac::sign(&key, format!("{head}.{body}").as_bytes());
    let forged = format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode(tag));
    refused(
        judge(rsa(SigningAlgorithm::RS256), &forged),
        "signed with HS256",
    );
    let mixed = Key::new(
        SigningAlgorithm::HS256,
        &Secret::new(RSA.as_bytes().to_vec()),
    );
    assert!(mixed.unwrap_err().contains("no shared secret"));
    let short = Key::new(SigningAlgorithm::HS256, &Secret::new(b"secret".to_vec()));
    assert!(short.unwrap_err().contains("shorter than 32 bytes"));
    let crit = URL_SAFE_NO_PAD.encode("{\"alg\":\"RS256\",\"kid\":\"foo\",\"crit\":[\"b64\"]}");
    refused(
        judge(rsa(SigningAlgorithm::RS256), &format!("{crit}.{body}.")),
        "crit",
    );
}

#[test]
fn a_file_of_signatures_holds_one_jwt() {
    let judge = |text: &str| {
        verifier(opas_secret(), None, "write")
            .payload(text.as_bytes())
            .map(|(p, ..)| p)
    };
    for (text, words) in [
        ("{}", "holds 0 signatures"),
        ("{\"signatures\": []}", "holds 0 signatures"),
        ("{\"signatures\": [\"a\", \"b\"]}", "holds 2 signatures"),
        ("[]", "not what OPA writes"),
        ("{\"signatures\": [\"a.b\"]}", "no JWT"),
        ("{\"signatures\": [\"a.b.c.d\"]}", "no JWT"),
        ("{\"signatures\": [\"!.e30.e30\"]}", "no base64url"),
        (
            "{\"signatures\": [\"e30.e30.e30\"]}",
            "its header cannot be read",
        ),
        (
            "{\"signatures\": [\"x\"], \"plugin\": \"custom\"}",
            "plug-in",
        ),
    ] {
        refused(judge(text), words);
    }
}

#[test]
fn hashes_are_opas() {
    // From OPA's test of `.manifest`: MD5 is not taken here, so the canonical form is what is compared.
    let manifest = br#"{"revision": "quickbrownfaux"}"#;
    assert_eq!(
        hash(".manifest", manifest, "SHA-256").unwrap(),
        hex(digest::digest(&digest::SHA256, br#"{"revision":"quickbrownfaux"}"#).as_ref())
    );
    let spaced = hash("a/data.json", b"{ \"b\": 1,\n \"a\": [1.0] }", "SHA-512").unwrap();
    assert_eq!(
        spaced,
        hash("data.json", b"{\"a\":[1.0],\"b\":1}", "SHA-512").unwrap()
    );
    assert_ne!(
        spaced,
        hash("data.json", b"{\"a\":[1],\"b\":1}", "SHA-512").unwrap()
    );
    // Other files, and `data.yml`, by their bytes.
    assert_ne!(
        hash("data.yml", b"a: 1", "SHA-256"),
        hash("data.yml", b"a:  1", "SHA-256")
    );
    assert_eq!(
        hash("data.yaml", b"a: 1", "SHA-256"),
        hash("data.yaml", b"a:  1", "SHA-256")
    );
    assert_ne!(
        hash("x.json", b"{}", "SHA-256"),
        hash("x.json", b"{ }", "SHA-256")
    );
    for weak in ["MD5", "SHA-1", "SHA-224", "sha256", "SHA-512-224"] {
        assert!(
            hash("x", b"", weak).unwrap_err().contains("SHA-512-256"),
            "{weak}"
        );
    }
    assert!(hash("x", b"", "").is_err());
}

/// A signed bundle, after whatever is done to its payload and files.
fn signed(change: impl FnOnce(&mut Payload, &mut Files)) -> Result<Signed, Fault> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
    let mut files: Files = [
        ("data.json", "{\"a\": 1}"),
        ("p.rego", "package p"),
        ("x/notes.txt", "x"),
    ]
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .into();
    let hashed = files.iter().map(|(name, content)| Hashed {
        name: name.clone(),
        hash: hash(name, content, "SHA-256").unwrap(),
        algorithm: "SHA-256".to_owned(),
    });
    let mut payload = Payload {
        files: hashed.collect(),
        scope: None,
        keyid: None,
        iss: None,
        iat: Some(7),
    };
    change(&mut payload, &mut files);
    let head = URL_SAFE_NO_PAD.encode("{\"alg\":\"HS256\",\"kid\":\"foo\"}");
    let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&payload).unwrap());
    let tag = hmac::sign(&key, format!("{head}.{body}").as_bytes());
    let token = format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode(tag));
    files.insert(SIGNATURES.to_owned(), wrapped(&token));
    let mut verifier = verifier(opas_secret(), None, "");
    verifier.exclude = vec!["*/notes.???".to_owned()];
    verifier.verify(&files)
}

#[test]
fn every_file_is_listed_and_every_listed_file_is_there_as_it_was() {
    let good = signed(|_, _| {}).unwrap();
    assert_eq!((good.keyid.as_str(), good.issued_at), ("foo", Some(7)));
    assert_eq!(good.unverified, ["x/notes.txt"]);
    refused(
        signed(|_, files| drop(files.insert("evil.rego".to_owned(), b"package p".to_vec()))),
        "evil.rego: the signature does not list the file",
    );
    refused(
        signed(|_, files| drop(files.remove("p.rego"))),
        "p.rego: the signature lists the file, and it is not there",
    );
    refused(
        signed(|_, files| drop(files.insert("p.rego".to_owned(), b"package q".to_vec()))),
        "p.rego: the file is not the one that was signed",
    );
    refused(
        signed(|payload, _| payload.files[0].algorithm = "MD5".to_owned()),
        "hashed with MD5",
    );
    refused(
        signed(|payload, _| payload.files[1].name = "data.json".to_owned()),
        "listed twice",
    );
    // What is excluded may change, and its hash may be missing.
    signed(|_, files| drop(files.insert("x/notes.txt".to_owned(), b"y".to_vec()))).unwrap();
    signed(|payload, _| payload.files.retain(|file| file.name != "x/notes.txt")).unwrap();
    signed(|payload, _| payload.files[0].name.insert(0, '/')).unwrap();
}

#[test]
fn patterns_stop_at_slashes() {
    for (pattern, name, fits) in [
        ("*.json", "a.json", true),
        ("*.json", "x/a.json", false),
        ("x/*", "x/a", true),
        ("x/*", "x/a/b", false),
        ("?", "a", true),
        ("?", "/", false),
        ("a*b*c", "aXbYc", true),
        ("", "", true),
        ("", "a", false),
    ] {
        assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
    }
}
