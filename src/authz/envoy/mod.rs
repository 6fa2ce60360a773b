//! Policies that were written for OPA's Envoy plugin: what they see, and what their answers mean.
//!
//! `document` builds the plugin's `input`, `part` writes the part of it that a decision depends on,
//! `told` writes it for the record, and `answer` reads what the plugin takes for an answer. The differences are few and deliberate;
//! `document` and `answer` name theirs.

pub(super) mod answer;
pub(super) mod document;
pub(super) mod part;
#[cfg(test)]
mod tests;
mod told;

pub(super) use document::{Want, document};
pub(super) use told::told;
