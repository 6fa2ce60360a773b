//! Documents under somebody's signature that are no credentials: lists that operators publish.
//!
//! As with tokens the form is strict, and the `typ` says what the document is for, so that nothing
//! else that the same key has signed can be passed off as one.

use super::algorithm::{self, Algorithm};
use super::jws::{self, Jws};
use super::keys::{Found, KeySet};

/// The public keys that documents of one kind are signed with.
#[derive(Debug)]
pub struct SealKeys {
    keys: KeySet,
}

/// Why a document is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsealed(&'static str);

impl SealKeys {
    /// Reads a JWK Set (RFC 7517). Shared secrets in it are left out: who may verify with one may also
    /// sign.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        match KeySet::parse(bytes) {
            Ok(keys) => Ok(Self { keys }),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Why keys of the set were left out.
    pub fn notes(&self) -> &[String] {
        &self.keys.notes
    }

    /// What is sealed in a compact JWS of exactly this type (lower case, without `application/`).
    ///
    /// # Errors
    /// [`Unsealed`]: its form, its type, its key or its signature is wrong.
    pub fn open(&self, text: &str, token_type: &str) -> Result<Vec<u8>, Unsealed> {
        let jws = Jws::parse(text).map_err(|_| Unsealed("it is no compact JWS"))?;
        let named = jws.token_type.as_deref().map(jws::media_type);
        if named.as_deref() != Some(token_type) {
            return Err(Unsealed("its `typ` is another one"));
        }
        let algorithm = Algorithm::from_name(&jws.algorithm)
            .filter(|algorithm| !algorithm.is_symmetric())
            .ok_or(Unsealed("its `alg` is unknown or symmetric"))?;
        let key = match self.keys.find(jws.key_id.as_deref(), algorithm) {
            Found::Key(key) => key,
            Found::Mismatch => return Err(Unsealed("its key is not for its `alg`")),
            Found::Ambiguous => return Err(Unsealed("it names no key and several fit")),
            Found::Unknown => return Err(Unsealed("its key is not in the set")),
        };
        if algorithm::verify(algorithm, &key.material, &jws) {
            Ok(jws.payload)
        } else {
            Err(Unsealed("its signature is wrong"))
        }
    }
}
