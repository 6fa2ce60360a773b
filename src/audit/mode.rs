//! How a route's requests are recorded: what happens when there is no room, and which share is kept.

use std::fmt;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{AuditConfig, SinkConfig};
use crate::schema::{Compile, Share};

/// What happens to a request when there is no room for its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// It goes on; the record is lost and counted.
    Drop,
    /// It is turned away with 503.
    Refuse,
    /// It waits, for as long as `audit.patience` says, and is turned away then.
    Block,
    /// As `refuse`, and there must be a ledger, so that there is room for as long as the disk has some,
    /// however long other sinks are away.
    Spill,
}

impl WhenFull {
    /// Whether something may happen without a record.
    pub(super) fn loses(self) -> bool {
        self == Self::Drop
    }

    /// Reports what `audit` has not got that this needs.
    pub(super) fn check(self, audit: &AuditConfig, cx: &mut Compile) {
        match (self, &audit.sink) {
            (Self::Refuse | Self::Block, SinkConfig::None) => cx.problem_help(
                format!("`{self}` promises that nothing happens unrecorded, but there is no sink"),
                "choose a sink in `audit`, or remove this",
            ),
            (
                Self::Spill,
                SinkConfig::None | SinkConfig::Stdout | SinkConfig::Stderr | SinkConfig::File(_),
            ) => cx.problem_help(
                "`spill` keeps records on the disk, in a ledger, and there is none",
                "write `audit: { sink: { ledger: { folder: audit } } }`, or choose `block`",
            ),
            (Self::Drop | Self::Refuse | Self::Block | Self::Spill, _) => {}
        }
    }
}

impl fmt::Display for WhenFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "drop",
            Self::Refuse => "refuse",
            Self::Block => "block",
            Self::Spill => "spill",
        })
    }
}

/// How requests of a route are recorded: a word for what happens when there is no room, or a mapping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(with = "RecordShape")]
pub struct RecordConfig {
    /// What happens when there is no room.
    pub when_full: Option<WhenFull>,
    /// Which share is kept.
    pub sample: SampleConfig,
}

/// Which share of the records is kept. What is left out is counted, and the ledger says how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Of requests that were allowed, and whose answer went out whole with a status below 500.
    pub allow: Share,
    /// Of requests that were refused with a status below 500.
    pub deny: Share,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            allow: Share::ALL,
            deny: Share::ALL,
        }
    }
}

impl SampleConfig {
    fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "it is there for the schema")]
enum RecordShape {
    Word(WhenFull),
    Parts(RecordParts),
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct RecordParts {
    /// What happens when there is no room. Default: as `audit.when_full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    when_full: Option<WhenFull>,
    /// Which share of the records is kept. Default: all.
    #[serde(skip_serializing_if = "SampleConfig::is_all")]
    sample: SampleConfig,
}

impl Serialize for RecordConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.when_full {
            Some(when_full) if self.sample.is_all() => when_full.serialize(serializer),
            when_full => RecordParts {
                when_full,
                sample: self.sample,
            }
            .serialize(serializer),
        }
    }
}

/// Not `untagged`, which would not say what is wrong within a mapping.
impl<'de> Deserialize<'de> for RecordConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrParts;

        impl<'de> Visitor<'de> for WordOrParts {
            type Value = RecordConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "`block`, `spill`, `refuse`, `drop` or `{ sample: { allow: 1% }, when_full: … }`",
                )
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<RecordConfig, E> {
                let words = [
                    WhenFull::Block,
                    WhenFull::Spill,
                    WhenFull::Refuse,
                    WhenFull::Drop,
                ];
                let found = words.into_iter().find(|known| known.to_string() == word);
                let Some(when_full) = found else {
                    return Err(E::invalid_value(Unexpected::Str(word), &self));
                };
                Ok(RecordConfig {
                    when_full: Some(when_full),
                    ..RecordConfig::default()
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RecordConfig, A::Error> {
                let parts = RecordParts::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RecordConfig {
                    when_full: parts.when_full,
                    sample: parts.sample,
                })
            }
        }
        deserializer.deserialize_any(WordOrParts)
    }
}

impl RecordConfig {
    /// Whether nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Reports what is wrong with it, given what `audit` says.
    pub fn check(&self, audit: &AuditConfig, cx: &mut Compile) {
        if let Some(when_full) = self.when_full {
            when_full.check(audit, cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_route_records_is_a_word_or_parts_and_is_written_as_it_was_read() {
        for (text, when_full, allow, deny) in [
            ("block", Some(WhenFull::Block), "100%", "100%"),
            ("spill", Some(WhenFull::Spill), "100%", "100%"),
            ("drop", Some(WhenFull::Drop), "100%", "100%"),
            ("{ sample: { allow: 1% } }", None, "1%", "100%"),
            (
                "{ when_full: refuse, sample: { allow: 0.1%, deny: 10% } }",
                Some(WhenFull::Refuse),
                "0.1%",
                "10%",
            ),
        ] {
            let read: RecordConfig = serde_yaml::from_str(text).unwrap();
            assert_eq!(read.when_full, when_full, "{text}");
            let shares = (read.sample.allow.to_string(), read.sample.deny.to_string());
            assert_eq!(shares, (allow.to_owned(), deny.to_owned()), "{text}");
            let written = serde_yaml::to_string(&read).unwrap();
            assert_eq!(
                serde_yaml::from_str::<RecordConfig>(&written).unwrap(),
                read
            );
        }
        for text in [
            "sample",
            "yes",
            "{ allow: 1% }",
            "{ sample: { allow: 1 } }",
            "[]",
        ] {
            assert!(
                serde_yaml::from_str::<RecordConfig>(text).is_err(),
                "{text}"
            );
        }
    }
}
