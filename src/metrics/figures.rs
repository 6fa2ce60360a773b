//! The few numbers that the admin page shows, as values and not as text.
//!
//! The families can be encoded and nothing else, so the chosen ones are encoded alone and read back.

use std::collections::BTreeMap;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

use super::Metrics;

/// One number of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// The family: `requests`, `refusals`, `decisions`, `limited`, `limit_overflows`, `attempts`,
    /// `retries` or `in_flight`.
    pub family: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What was counted since the start, or how many there are.
    pub value: i64,
}

impl Figure {
    /// The value of a label; empty when it has none of this name.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

impl Metrics {
    /// What was counted of requests, decisions, limits and upstreams.
    pub fn figures(&self) -> Vec<Figure> {
        let mut chosen = Registry::default();
        let r = &mut chosen;
        r.register("requests", "", self.requests.clone());
        r.register("refusals", "", self.refusals.clone());
        r.register("decisions", "", self.decisions.clone());
        r.register("limited", "", self.limited.clone());
        r.register("limit_overflows", "", self.limit_overflows.clone());
        r.register("attempts", "", self.upstream_attempts.clone());
        r.register("retries", "", self.upstream_retries.clone());
        r.register("in_flight", "", self.upstream_in_flight.clone());
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode_registry(&mut text, &chosen);
        text.lines().filter_map(read).collect()
    }

    /// How many streams are open that last only as long as their permission.
    pub fn open_streams(&self) -> i64 {
        self.streams.get()
    }
}

/// One line of the text format; `None` for comments.
fn read(line: &str) -> Option<Figure> {
    let (head, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let (name, rest) = head.split_once('{').unwrap_or((head, ""));
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while let Some((label, after)) = rest.split_once("=\"") {
        let mut text = String::new();
        let mut end = after.len();
        let mut characters = after.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    end = at + 1;
                    break;
                }
                '\\' => match characters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, escaped)) => text.push(escaped),
                    None => return None,
                },
                other => text.push(other),
            }
        }
        labels.insert(label.to_owned(), text);
        rest = after.get(end..).unwrap_or_default().trim_start_matches(',');
    }
    Some(Figure {
        family: name.strip_suffix("_total").unwrap_or(name).to_owned(),
        labels,
        value,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_counted_comes_back_with_its_labels() {
        let metrics = Metrics::default();
        let strange = "a\"} 1\nb\\,c=\"d";
        metrics
            .route(strange)
            .request(Some(403), None, Duration::ZERO, 0);
        metrics.limited("per-address");
        metrics.upstream_attempt("main", "ok");
        metrics.upstream_in_flight("main", 2);
        metrics.upstream_in_flight("main", -1);
        let figures = metrics.figures();
        let value = |family: &str, label: &str, is: &str| {
            figures
                .iter()
                .filter(|figure| figure.family == family && figure.label(label) == is)
                .map(|figure| figure.value)
                .sum::<i64>()
        };
        assert_eq!(value("requests", "route", strange), 1);
        assert_eq!(value("requests", "status", "4xx"), 1);
        assert_eq!(value("limited", "limit", "per-address"), 1);
        assert_eq!(value("attempts", "outcome", "ok"), 1);
        assert_eq!(value("in_flight", "upstream", "main"), 1);
    }
}
