//! Renewing the permissions of open streams.
//!
//! HTTP/2 has a place for it: a request on the connection of the streams. `POST
//! /.well-known/portcullis/renew` with a fresh token in `Authorization` has every stream of the same
//! caller on that connection judged again as if it had come with that token; those for which the
//! answer is yes live on under it. What it says no to stays as it was, under its old permission.
//! HTTP/1.1 has no such place: its clients connect again.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, Version};
use serde_json::json;

use crate::authn::Failure;
use crate::body::{self, Body};
use crate::refusal::Refusal;
use crate::request::InboundRequest;

/// Where renewals are sent. Never a route's.
const PATH: &str = "/.well-known/portcullis/renew";

/// Whether this request renews the permissions of other streams of its connection.
pub fn is_renewal(request: &InboundRequest) -> bool {
    request.version == Version::HTTP_2
        && request.method == Method::POST
        && request.path.as_str() == PATH
}

/// What came of a renewal.
#[derive(Debug, Default)]
pub struct Renewal {
    renewed: u32,
    kept: u32,
    /// Why the first of them was not renewed.
    refusal: Option<Refusal>,
}

impl Renewal {
    /// A stream lives on under the new credential.
    pub fn renewed(&mut self) {
        self.renewed += 1;
    }

    /// A stream stays under its old permission: it is somebody else's, or the answer was no.
    pub fn kept(&mut self, refusal: Option<Refusal>) {
        self.kept += 1;
        if self.refusal.is_none() {
            self.refusal = refusal;
        }
    }

    /// The answer to the renewal.
    ///
    /// # Errors
    /// Why no stream was renewed.
    pub fn answer(self) -> Result<Response<Body>, Refusal> {
        if self.renewed == 0 {
            return Err(match (self.refusal, self.kept) {
                (Some(refusal), _) => refusal,
                (None, 0) => Refusal::NoRoute,
                (None, _) => Refusal::Unauthenticated {
                    failure: Failure::Rejected {
                        code: "token.subject",
                        reason: "the streams of this connection are somebody else's".to_owned(),
                        issuer: None,
                    },
                    bearer: true,
                },
            });
        }
        let document = json!({"renewed": self.renewed, "kept": self.kept});
        let mut response = Response::new(body::full(document.to_string()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}
