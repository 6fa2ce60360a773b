use super::*;

#[test]
fn an_unsigned_token_holds_the_claims_and_passes_nowhere() {
    let claims = document::object([("sub", Value::from("alice"))]);
    let token = unsigned_token(&claims);
    let jws = Jws::parse(&token);
    // Its signature is no canonical base64url of any length that an algorithm has.
    assert!(jws.is_err() || jws.is_ok_and(|jws| &*jws.algorithm == "none"));
}
