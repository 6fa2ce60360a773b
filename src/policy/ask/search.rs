//! Who would be let in: the fewest facts about a caller that the real policy says yes to.
//!
//! Candidates are made of what the policy compares with, of its data, and of the claims that the
//! issuer's mapping reads. A caller with all of them is asked about first; where the answer is yes,
//! facts are taken away until no more can go. Each further way in must do without one of these facts,
//! so leaving out one after the other finds all of them (a tree of hitting sets), as long as more facts
//! never take a yes away. Where they do, single facts and pairs are tried too, and the answer says so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::authn::client_certificate;
use crate::authn::supposed::Supposition;
use crate::authz::inspect::Vocabulary;
use crate::config::Document;
use crate::document::{self, Value};
use crate::policy::scenario::{Caller, Certificate, Wanted};

/// Most words that are tried as scopes, roles or names.
const MAX_WORDS: usize = 120;
/// Most words that are tried as a value of a parameter that is compared with none.
const MAX_VALUES: usize = 20;
/// Most combinations of single values that are tried in full.
const MAX_WORLDS: usize = 64;
/// Most evaluations for one question.
pub const MAX_EVALUATIONS: usize = 6_000;
/// Most ways in that are told.
const MAX_WAYS: usize = 32;
/// The subject of whom nothing else is known.
const SOMEBODY: &str = "somebody";
/// Claims that are usually lists.
const LISTS: [&str; 8] = [
    "roles",
    "groups",
    "permissions",
    "entitlements",
    "scopes",
    "scp",
    "amr",
    "teams",
];

/// A fact about a caller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// A scope.
    Scope(String),
    /// A role, by the issuer's mapping.
    Role(String),
    /// An element of a claim that is a list.
    Item(String, String),
    /// The subject.
    Subject(String),
    /// The client.
    Client(String),
    /// A claim with one value: its dotted path, and the value as JSON.
    Claim(String, String),
    /// A header.
    Header(String, String),
    /// A parameter of the query.
    Query(String, String),
    /// The address.
    Address(IpAddr),
    /// The certificate's SPIFFE id.
    Spiffe(String),
}

impl Fact {
    /// In words.
    pub fn words(&self) -> String {
        match self {
            Self::Scope(name) => format!("scope {name}"),
            Self::Role(name) => format!("role {name}"),
            Self::Item(path, name) => format!("claim {path} with {name}"),
            Self::Subject(name) => format!("subject {name}"),
            Self::Client(name) => format!("client {name}"),
            Self::Claim(path, value) => format!("claim {path} = {value}"),
            Self::Header(name, value) => format!("header {name}: {value}"),
            Self::Query(name, value) => format!("query {name}={value}"),
            Self::Address(address) => format!("from {address}"),
            Self::Spiffe(id) => format!("certificate {id}"),
        }
    }

    /// Facts with the same key exclude each other; `None` where any number goes together.
    fn key(&self) -> Option<String> {
        match self {
            Self::Scope(_) | Self::Role(_) | Self::Item(..) => None,
            Self::Subject(_) => Some("subject".to_owned()),
            Self::Client(_) => Some("client".to_owned()),
            Self::Claim(path, _) => Some(format!("claim {path}")),
            Self::Header(name, _) => Some(format!("header {name}")),
            Self::Query(name, _) => Some(format!("query {name}")),
            Self::Address(_) => Some("address".to_owned()),
            Self::Spiffe(_) => Some("certificate".to_owned()),
        }
    }
}

/// How somebody proves who they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// Nothing is proven.
    Nothing,
    /// A token of this issuer's block.
    Token(String),
    /// A client certificate.
    Certificate,
}

impl Proof {
    /// In words.
    pub fn words(&self) -> String {
        match self {
            Self::Nothing => "no credential".to_owned(),
            Self::Token(issuer) => format!("token of {issuer}"),
            Self::Certificate => "client certificate".to_owned(),
        }
    }

    /// The proofs that a route takes.
    pub fn of_route(names: &[impl AsRef<str>]) -> Vec<Self> {
        names
            .iter()
            .map(|name| match name.as_ref() {
                "anonymous" => Self::Nothing,
                client_certificate::NAME => Self::Certificate,
                issuer => Self::Token(issuer.to_owned()),
            })
            .collect()
    }
}

/// Facts that may matter, by what can prove them.
#[derive(Debug, Clone, Default)]
pub struct Universe {
    /// Any of them may be there together.
    pub sets: Vec<Fact>,
    /// One of each may be there.
    pub scalars: Vec<Vec<Fact>>,
}

impl Universe {
    /// What a policy's words make of a caller with this proof.
    pub fn of(vocabulary: &Vocabulary, proof: &Proof, document: &Document) -> Self {
        let mut universe = Self::default();
        let mut scalars: BTreeMap<String, Vec<Fact>> = BTreeMap::new();
        let fits = |word: &&String| {
            let is_word = word.contains(|c: char| c.is_alphabetic());
            word.len() <= 100 && !word.contains(char::is_whitespace) && is_word
        };
        let plain = |words: &BTreeSet<String>| -> Vec<String> {
            words.iter().filter(fits).take(MAX_WORDS).cloned().collect()
        };
        let (data, all) = (plain(&vocabulary.data), plain(&vocabulary.words));
        let mapping = match proof {
            Proof::Token(issuer) => document.issuers.get(issuer).map(|block| &block.claims),
            Proof::Nothing | Proof::Certificate => None,
        };
        let compared = |path: &[String]| {
            let texts = vocabulary.compared(path).filter_map(document::text);
            texts.map(ToString::to_string).collect::<Vec<_>>()
        };
        // What stands beside it in the text, and what data may have for it.
        let texts = |path: &[String]| -> Vec<String> {
            let mut texts = compared(path);
            texts.retain(|word| fits(&word));
            texts.extend(data.iter().cloned());
            if texts.is_empty() {
                texts.clone_from(&all);
            }
            texts
        };
        // Names that a rule of its own compares with stand anywhere.
        let anywhere = |path: &[String]| -> Vec<String> {
            let mut texts = texts(path);
            texts.extend(all.iter().cloned());
            texts
        };
        let mut add = |fact: Fact, sets: &mut Vec<Fact>| match fact.key() {
            None if !sets.contains(&fact) => sets.push(fact),
            None => {}
            Some(key) => {
                let known = scalars.entry(key).or_default();
                if !known.contains(&fact) {
                    known.push(fact);
                }
            }
        };
        let sets = &mut universe.sets;
        for path in &vocabulary.reads {
            let names: Vec<&str> = path.iter().map(String::as_str).collect();
            match (names.as_slice(), proof) {
                (["identity", "scopes", ..], Proof::Token(_)) => {
                    for word in anywhere(path) {
                        add(Fact::Scope(word), sets);
                    }
                }
                (["identity", "roles", ..], Proof::Token(_)) => {
                    for word in anywhere(path) {
                        add(Fact::Role(word), sets);
                    }
                }
                (["identity", "subject" | "id"], Proof::Token(_)) => {
                    for word in texts(path) {
                        add(Fact::Subject(word), sets);
                    }
                }
                (["identity", "client"], Proof::Token(_)) => {
                    for word in texts(path) {
                        add(Fact::Client(word), sets);
                    }
                }
                (["identity", "claims", claim @ ..], Proof::Token(_)) if !claim.is_empty() => {
                    let dotted = claim.join(".");
                    let is_roles = mapping
                        .and_then(|mapping| mapping.roles.as_ref())
                        .is_some_and(|roles| *roles == dotted);
                    let is_scopes = mapping.is_some_and(|mapping| mapping.scopes == dotted);
                    let last = claim.last().copied().unwrap_or_default();
                    if is_roles {
                        for word in anywhere(path) {
                            add(Fact::Role(word), sets);
                        }
                    } else if is_scopes {
                        for word in anywhere(path) {
                            add(Fact::Scope(word), sets);
                        }
                    } else if LISTS.contains(&last) {
                        for word in anywhere(path) {
                            add(Fact::Item(dotted.clone(), word), sets);
                        }
                    } else {
                        for value in claim_values(vocabulary, path) {
                            add(Fact::Claim(dotted.clone(), value), sets);
                        }
                    }
                }
                (["request", "headers", name], _) => {
                    for value in vocabulary.compared(path).filter_map(document::text) {
                        add(Fact::Header((*name).to_owned(), value.to_string()), sets);
                    }
                }
                (["request", "query", name], _) => {
                    let mut first = path.clone();
                    first.push("0".to_owned());
                    let mut values = compared(path);
                    values.extend(compared(&first));
                    if values.is_empty() {
                        values = all.iter().take(MAX_VALUES).cloned().collect();
                    }
                    for value in values {
                        add(Fact::Query((*name).to_owned(), value), sets);
                    }
                }
                (["source", "address"], _) => {
                    for word in &vocabulary.words {
                        let word = word.split('/').next().unwrap_or_default();
                        if let Ok(address) = word.parse() {
                            add(Fact::Address(address), sets);
                        }
                    }
                }
                (["source", "tls", ..], Proof::Certificate | Proof::Token(_))
                | (["identity", ..], Proof::Certificate) => {
                    for word in vocabulary
                        .words
                        .iter()
                        .filter(|word| word.starts_with("spiffe://"))
                    {
                        add(Fact::Spiffe(word.clone()), sets);
                    }
                }
                _ => {}
            }
        }
        universe.scalars = scalars.into_values().collect();
        universe
    }

    /// How many facts there are.
    pub fn size(&self) -> usize {
        self.sets.len() + self.scalars.iter().map(Vec::len).sum::<usize>()
    }
}

/// Values that a claim may be compared with: numbers have neighbours, and what is only looked for may
/// be `true`.
fn claim_values(vocabulary: &Vocabulary, path: &[String]) -> Vec<String> {
    let mut values: BTreeSet<String> = BTreeSet::new();
    for value in vocabulary.compared(path) {
        if let Ok(text) = value.to_json_str() {
            values.insert(text);
        }
        if let Ok(number) = value.as_i64() {
            values.extend([number - 1, number + 1].map(|near| near.to_string()));
        }
    }
    if values.is_empty() {
        values.insert("true".to_owned());
        let words = vocabulary.words.iter().take(MAX_WORLDS);
        values.extend(words.map(|word| serde_json::Value::from(word.as_str()).to_string()));
    } else {
        values.insert("true".to_owned());
    }
    values.into_iter().collect()
}

/// A caller of whom these facts are true, and the request that they then send.
pub fn caller(
    facts: &[&Fact],
    proof: &Proof,
    document: &Document,
    wanted: &Wanted,
) -> (Caller, Wanted) {
    let mut wanted = wanted.clone();
    let mut caller = Caller::anonymous();
    if *proof == Proof::Certificate {
        caller.certificate = Some(Certificate::default());
    }
    let mut claims = serde_json::Map::new();
    let mapping = match proof {
        Proof::Token(issuer) => document.issuers.get(issuer).map(|block| &block.claims),
        Proof::Nothing | Proof::Certificate => None,
    };
    let mut lists: BTreeMap<String, Vec<serde_json::Value>> = BTreeMap::new();
    let mut scopes: Vec<&str> = Vec::new();
    let mut subject = SOMEBODY;
    for fact in facts {
        match fact {
            Fact::Scope(name) => scopes.push(name),
            Fact::Role(name) => {
                if let Some(path) = mapping.and_then(|mapping| mapping.roles.clone()) {
                    lists.entry(path).or_default().push(name.as_str().into());
                }
            }
            Fact::Item(path, name) => {
                lists
                    .entry(path.clone())
                    .or_default()
                    .push(name.as_str().into());
            }
            Fact::Subject(name) => subject = name,
            Fact::Client(name) => {
                let path = mapping.and_then(|mapping| mapping.client.clone());
                let path = path.unwrap_or_else(|| "client_id".to_owned());
                put(&mut claims, &path, name.as_str().into());
            }
            Fact::Claim(path, value) => {
                put(
                    &mut claims,
                    path,
                    serde_json::from_str(value).unwrap_or_default(),
                );
            }
            Fact::Header(name, value) => {
                let _ = wanted.header(&format!("{name}: {value}"));
            }
            Fact::Query(name, value) => {
                let sign = if wanted.target.contains('?') {
                    '&'
                } else {
                    '?'
                };
                wanted.target.push(sign);
                let encoded = |text: &str| {
                    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>()
                };
                let pair = format!("{}={}", encoded(name), encoded(value));
                wanted.target.push_str(&pair);
            }
            Fact::Address(address) => caller.address = Some(*address),
            Fact::Spiffe(id) => caller.certificate = Some(Certificate::spiffe(id)),
        }
    }
    for (path, items) in lists {
        put(&mut claims, &path, items.into());
    }
    if let (Proof::Token(issuer), Some(mapping)) = (proof, mapping) {
        put(&mut claims, &mapping.subject, subject.into());
        if !scopes.is_empty() {
            put(&mut claims, &mapping.scopes, scopes.join(" ").into());
        }
        let claims = document::from_json(serde_json::Value::from(claims).to_string().as_bytes());
        caller.supposition = Supposition::Claims {
            claims: claims.unwrap_or_else(|_| Value::new_object()),
            issuer: Some(issuer.clone()),
        };
    }
    (caller, wanted)
}

/// Puts a value at a dotted path; a name with a scheme is one name, dots and all.
fn put(
    into: &mut serde_json::Map<String, serde_json::Value>,
    path: &str,
    value: serde_json::Value,
) {
    match path.split_once('.').filter(|_| !path.contains("://")) {
        None => {
            into.insert(path.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = into
                .entry(first)
                .or_insert_with(|| serde_json::Map::new().into());
            if let Some(inner) = inner.as_object_mut() {
                put(inner, rest, value);
            }
        }
    }
}

/// One way in: facts of which none can be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The facts.
    pub facts: Vec<Fact>,
    /// The policy's reason.
    pub reason: Option<String>,
}

/// What a search found.
#[derive(Debug, Clone, Default)]
pub struct Ways {
    /// The ways in.
    pub ways: Vec<Way>,
    /// How often the policy was asked.
    pub evaluations: usize,
    /// How many facts there were to choose from.
    pub facts: usize,
    /// Why there may be more ways than these; none when every combination was decided.
    pub unsure: Option<&'static str>,
}

/// A yes with its reason, or a no.
pub type Answer = Option<Option<String>>;

struct Search<'s, E> {
    ask: E,
    left: usize,
    asked: usize,
    known: BTreeMap<Vec<&'s Fact>, Answer>,
    ways: Vec<Way>,
    unsure: Option<&'static str>,
}

/// Finds the ways in among these facts. `ask` says what the policy says of a caller with some of them.
pub fn search(universe: &Universe, budget: usize, ask: impl FnMut(&[&Fact]) -> Answer) -> Ways {
    let mut search = Search {
        ask,
        left: budget,
        asked: 0,
        known: BTreeMap::new(),
        ways: Vec::new(),
        unsure: None,
    };
    for world in worlds(universe, &mut search.unsure) {
        let all: Vec<&Fact> = universe.sets.iter().chain(world).collect();
        search.all_ways(all);
        if search.left == 0 || search.ways.len() >= MAX_WAYS {
            search.unsure = Some("there were too many combinations to try them all");
            break;
        }
    }
    let mut ways: Vec<Way> = Vec::new();
    search.ways.sort_by_key(|way| way.facts.len());
    for way in search.ways {
        let wider = |known: &Way| known.facts.iter().all(|fact| way.facts.contains(fact));
        if !ways.iter().any(wider) {
            ways.push(way);
        }
    }
    Ways {
        ways,
        evaluations: search.asked,
        facts: universe.size(),
        unsure: search.unsure,
    }
}

/// Which single values go together: all combinations where they are few, else each by itself.
fn worlds<'u>(universe: &'u Universe, unsure: &mut Option<&'static str>) -> Vec<Vec<&'u Fact>> {
    let product = universe
        .scalars
        .iter()
        .try_fold(1usize, |product, values| {
            product.checked_mul(values.len() + 1)
        })
        .unwrap_or(usize::MAX);
    if product <= MAX_WORLDS {
        let mut worlds: Vec<Vec<&Fact>> = vec![Vec::new()];
        for values in &universe.scalars {
            let mut more = Vec::new();
            for world in &worlds {
                for value in values {
                    let mut with = world.clone();
                    with.push(value);
                    more.push(with);
                }
            }
            // The fullest first: they show most ways at once.
            more.append(&mut worlds);
            worlds = more;
        }
        return worlds;
    }
    *unsure =
        Some("values of which a caller has one were tried one by one and in few combinations");
    let first: Vec<&Fact> = universe
        .scalars
        .iter()
        .filter_map(|values| values.first())
        .collect();
    let mut worlds = vec![Vec::new(), first.clone()];
    for (index, values) in universe.scalars.iter().enumerate() {
        for value in values {
            worlds.push(vec![value]);
            let mut changed = first.clone();
            if let Some(slot) = changed.get_mut(index) {
                *slot = value;
            }
            worlds.push(changed);
        }
    }
    worlds
}

impl<'s, E: FnMut(&[&Fact]) -> Answer> Search<'s, E> {
    fn ask(&mut self, facts: &[&'s Fact]) -> Answer {
        let mut key = facts.to_vec();
        key.sort();
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        self.asked += 1;
        let answer = (self.ask)(&key);
        self.known.insert(key, answer.clone());
        answer
    }

    /// All ways within these facts.
    fn all_ways(&mut self, all: Vec<&'s Fact>) {
        let mut starts: Vec<Vec<&'s Fact>> = vec![all.clone()];
        if self.ask(&all).is_none() {
            starts = self.other_starts(&all);
        }
        let mut seen: BTreeSet<Vec<&'s Fact>> = BTreeSet::new();
        while let Some(start) = starts.pop() {
            if self.left == 0 || self.ways.len() >= MAX_WAYS {
                return;
            }
            if !seen.insert(start.clone()) || self.ask(&start).is_none() {
                continue;
            }
            let Some((way, reason)) = self.shrunk(start.clone()) else {
                continue;
            };
            for fact in &way {
                starts.push(
                    start
                        .iter()
                        .copied()
                        .filter(|other| other != fact)
                        .collect(),
                );
            }
            let facts: Vec<Fact> = way.into_iter().cloned().collect();
            if !self.ways.iter().any(|known| known.facts == facts) {
                self.ways.push(Way { facts, reason });
            }
        }
    }

    /// Where everything together is a no: all but one, single ones, and pairs.
    fn other_starts(&mut self, all: &[&'s Fact]) -> Vec<Vec<&'s Fact>> {
        let mut starts = vec![Vec::new()];
        for fact in all {
            let without: Vec<&Fact> = all.iter().copied().filter(|other| other != fact).collect();
            if self.ask(&without).is_some() {
                self.unsure = Some(
                    "some facts take access away: ways that avoid several of them may be missing",
                );
                starts.push(without);
            }
        }
        if starts.len() > 1 {
            return starts;
        }
        for (index, fact) in all.iter().enumerate() {
            starts.push(vec![fact]);
            for other in all.iter().skip(index + 1).take(MAX_WORDS / 4) {
                starts.push(vec![fact, other]);
            }
        }
        starts
    }

    /// The same way with nothing in it that can be left out; halves first, then one by one.
    fn shrunk(&mut self, mut facts: Vec<&'s Fact>) -> Option<(Vec<&'s Fact>, Option<String>)> {
        let mut piece = facts.len().div_ceil(2);
        while piece > 0 {
            let mut from = 0;
            while from < facts.len() {
                let without: Vec<&Fact> = facts
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| !(from..from + piece).contains(index))
                    .map(|(_, fact)| *fact)
                    .collect();
                if self.ask(&without).is_some() {
                    facts = without;
                } else {
                    from += piece;
                }
            }
            piece /= 2;
        }
        if self.left == 0 {
            // Nobody knows what of it is needed.
            return None;
        }
        facts.sort();
        let reason = self.ask(&facts)?;
        Some((facts, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn universe(sets: &[&str], subjects: &[&str]) -> Universe {
        Universe {
            sets: sets
                .iter()
                .map(|name| Fact::Role((*name).to_owned()))
                .collect(),
            scalars: vec![
                subjects
                    .iter()
                    .map(|name| Fact::Subject((*name).to_owned()))
                    .collect(),
            ],
        }
    }

    fn has(facts: &[&Fact], name: &str) -> bool {
        facts.iter().any(|fact| match fact {
            Fact::Role(role) => role == name,
            Fact::Subject(subject) => subject == name,
            Fact::Scope(_)
            | Fact::Item(..)
            | Fact::Client(_)
            | Fact::Claim(..)
            | Fact::Header(..)
            | Fact::Query(..)
            | Fact::Address(_)
            | Fact::Spiffe(_) => false,
        })
    }

    fn told(ways: &Ways) -> Vec<String> {
        let mut told: Vec<String> = ways
            .ways
            .iter()
            .map(|way| {
                way.facts
                    .iter()
                    .map(Fact::words)
                    .collect::<Vec<_>>()
                    .join(" + ")
            })
            .collect();
        told.sort();
        told
    }

    #[test]
    fn all_ways_in_are_found_and_none_has_a_fact_too_many() {
        let universe = universe(&["a", "b", "c", "d", "e"], &["alice", "bob"]);
        let ways = search(&universe, MAX_EVALUATIONS, |facts| {
            let yes = (has(facts, "a") && has(facts, "b"))
                || has(facts, "c")
                || (has(facts, "d") && has(facts, "bob"));
            yes.then_some(None)
        });
        assert_eq!(
            told(&ways),
            ["role a + role b", "role c", "role d + subject bob"]
        );
        assert_eq!(ways.unsure, None);
    }

    #[test]
    fn everybody_and_nobody_are_answers() {
        let universe = universe(&["a", "b"], &[]);
        let ways = search(&universe, MAX_EVALUATIONS, |_| Some(None));
        assert_eq!(told(&ways), [""]);
        let ways = search(&universe, MAX_EVALUATIONS, |_| None);
        assert!(ways.ways.is_empty());
    }

    #[test]
    fn a_fact_that_takes_access_away_is_seen_and_said() {
        let universe = universe(&["a", "banned", "c"], &[]);
        let ways = search(&universe, MAX_EVALUATIONS, |facts| {
            (has(facts, "a") && !has(facts, "banned")).then_some(None)
        });
        assert_eq!(told(&ways), ["role a"]);
        assert!(ways.unsure.is_some());
    }

    #[test]
    fn the_number_of_questions_is_bounded_and_its_end_is_said() {
        let names: Vec<String> = (0..100).map(|index| format!("r{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let universe = universe(&names, &[]);
        let mut asked = 0;
        let ways = search(&universe, 500, |facts| {
            asked += 1;
            // Any two of a hundred: 4950 ways.
            (facts.len() >= 2).then_some(None)
        });
        assert!(asked <= 500 && ways.evaluations == asked);
        assert!(ways.unsure.is_some());
    }
}
