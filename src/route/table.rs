//! The index over all routes. See [`route`](super) for which route takes a request.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use foldhash::fast::FixedState;
use http::{HeaderName, HeaderValue, Method};
use matchit::Router;

use super::template::Template;
use super::{Match, Route};
use crate::authz::Policy;
use crate::request::{CanonicalPath, InboundRequest, Upgrade};
use crate::schema::{Compile, Turn};

/// How many routes may share a host and a path template: each is asked in turn.
const MAX_SHARING: usize = 256;

/// What a route asks of a request beside its host and path.
#[derive(Debug, PartialEq)]
pub(super) struct Conditions {
    /// Shared where a route names none: there may be thousands of them.
    pub(super) methods: Cow<'static, [Method]>,
    pub(super) methods_named: bool,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// `None` for all.
    pub(super) listeners: Option<Vec<Arc<str>>>,
    /// Whether `CONNECT` is taken beside `methods`.
    pub(super) connect: bool,
}

/// Which hosts a route is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum HostPattern {
    /// This name.
    Exact(String),
    /// Any name below this one, at any depth; stored as `.example.test`.
    Below(String),
    /// Any.
    Any,
}

/// Where a route applies.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) template: Template,
    pub(super) hosts: Vec<HostPattern>,
    pub(super) conditions: Conditions,
    /// Where it stands in the document: `routes[3]`.
    pub(super) place: String,
}

impl Entry {
    /// Whether both are found by the same requests. Their names, and where they stand in the file, are for
    /// messages alone.
    fn applies_as(&self, other: &Self) -> bool {
        let Self {
            name: _,
            template,
            hosts,
            conditions,
            place: _,
        } = self;
        (template, hosts, conditions) == (&other.template, &other.hosts, &other.conditions)
    }
}

/// All routes of a configuration, indexed.
#[derive(Default)]
pub struct RouteTable {
    /// In the order of the file; the index speaks of them by position.
    routes: Vec<Arc<Route>>,
    index: Arc<Index>,
}

impl RouteTable {
    /// Indexes the routes and reports those that take each other's requests. The index of `previous` is
    /// taken over when it would be the same: with thousands of routes it is most of what they take.
    pub(super) fn build(
        routes: Vec<(Entry, Arc<Route>)>,
        previous: Option<&Self>,
        cx: &mut Compile,
    ) -> Self {
        let (entries, routes): (Vec<Entry>, _) = routes.into_iter().unzip();
        let index = match previous {
            Some(previous) if previous.index.is_of(&entries) => Arc::clone(&previous.index),
            Some(_) | None => Arc::new(Index::build(entries, cx)),
        };
        Self { routes, index }
    }

    #[cfg(test)]
    pub(crate) fn is_indexed_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.index, &other.index)
    }

    /// The same routes, with other policies where there are some; `None` for those that stay.
    pub fn with_policies(&self, other: impl Fn(&Arc<Policy>) -> Option<Arc<Policy>>) -> Self {
        let routes = self.routes.iter().map(|route| match other(&route.policy) {
            Some(policy) => Arc::new(route.with_policy(policy)),
            None => Arc::clone(route),
        });
        Self {
            routes: routes.collect(),
            index: Arc::clone(&self.index),
        }
    }

    /// The most specific route for this request.
    pub fn find(&self, request: &InboundRequest) -> Option<Match<'_>> {
        let (position, params) = self.index.find(request)?;
        Some(Match {
            route: self.routes.get(position)?,
            params,
        })
    }

    /// All routes, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter()
    }
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.routes.iter().map(|route| &route.name))
            .finish()
    }
}

/// The values of a template's parameters, by name.
type Params = Vec<(Arc<str>, String)>;

/// From request to the position of a route.
#[derive(Default)]
struct Index {
    entries: Vec<Entry>,
    // A fast hash: what is in here comes from the configuration alone.
    exact: HashMap<String, Paths, FixedState>,
    /// By suffix with its leading dot.
    below: HashMap<String, Paths, FixedState>,
    any: Paths,
}

/// The templates of one host; each leads to the entries that share it, best first.
#[derive(Default)]
struct Paths {
    router: Router<usize>,
    groups: Vec<Vec<usize>>,
}

impl Index {
    /// Whether it leads to these, one by one. It was found to be without ties then.
    fn is_of(&self, entries: &[Entry]) -> bool {
        let pairs = self.entries.iter().zip(entries);
        self.entries.len() == entries.len() && { pairs }.all(|(ours, other)| ours.applies_as(other))
    }

    fn build(entries: Vec<Entry>, cx: &mut Compile) -> Self {
        let mut index = Self::default();
        let mut by_host: BTreeMap<HostPattern, BTreeMap<String, Vec<usize>>> = BTreeMap::new();
        // Empty tails, indexed like templates, but only where no route says that path itself.
        let mut tails = by_host.clone();
        let mut turn = Turn::begin();
        for (position, entry) in entries.iter().enumerate() {
            for host in &entry.hosts {
                let paths = by_host.entry(host.clone()).or_default();
                paths
                    .entry(entry.template.key())
                    .or_default()
                    .push(position);
                if let Some(path) = entry.template.without_tail() {
                    let paths = tails.entry(host.clone()).or_default();
                    paths.entry(path).or_default().push(position);
                }
            }
            turn.pause();
        }
        for (host, mut templates) in by_host {
            for (path, positions) in tails.remove(&host).unwrap_or_default() {
                templates.entry(path).or_insert(positions);
            }
            let paths = Paths::build(templates, &entries, cx);
            match host {
                HostPattern::Exact(name) => drop(index.exact.insert(name, paths)),
                HostPattern::Below(suffix) => drop(index.below.insert(suffix, paths)),
                HostPattern::Any => index.any = paths,
            }
        }
        index.entries = entries;
        index
    }

    fn find(&self, request: &InboundRequest) -> Option<(usize, Params)> {
        let path = request.path.as_str();
        let (group, values) = self
            .paths(request.host.name())
            .find_map(|paths| paths.find(path))?;
        let (position, entry) = group
            .iter()
            .filter_map(|position| Some((*position, self.entries.get(*position)?)))
            .find(|(_, entry)| entry.conditions.accept(request))?;
        let mut params = Params::with_capacity(values.len());
        let mut values = values.iter();
        for name in entry.template.names() {
            // A route found by its empty tail has one name more than the path has values.
            let value = values
                .next()
                .map_or_else(String::new, |(_, raw)| decode(raw));
            params.push((Arc::clone(name), value));
        }
        Some((position, params))
    }

    /// The path indexes that may hold this host's routes, most specific first.
    fn paths<'t>(&'t self, host: &'t str) -> impl Iterator<Item = &'t Paths> {
        // Address literals have no parents, and often nobody asks for any.
        let literal = self.below.is_empty()
            || host.starts_with('[')
            || host.parse::<std::net::Ipv4Addr>().is_ok();
        let suffixes = host.match_indices('.').filter_map(move |(dot, _)| {
            // `.example.test` itself is no name below `example.test`.
            if literal || dot == 0 {
                None
            } else {
                host.get(dot..)
            }
        });
        self.exact
            .get(host)
            .into_iter()
            .chain(suffixes.filter_map(|suffix| self.below.get(suffix)))
            .chain(std::iter::once(&self.any))
    }
}

impl Paths {
    fn build(templates: BTreeMap<String, Vec<usize>>, entries: &[Entry], cx: &mut Compile) -> Self {
        let mut paths = Self::default();
        let mut turn = Turn::begin();
        for (template, mut group) in templates {
            let rank = |index: &usize| entries.get(*index).map(|entry| entry.conditions.rank());
            // Stable: equal ones stay in the order of the file. That order never decides, since
            // equal ones that overlap are a problem.
            group.sort_by_key(|index| std::cmp::Reverse(rank(index)));
            check_ties(&group, entries, cx);
            if let Err(error) = paths.router.insert(template.as_str(), paths.groups.len()) {
                cx.problem(format!(
                    "the path template `{template}` cannot be indexed: {error}"
                ));
                continue;
            }
            paths.groups.push(group);
            turn.pause();
        }
        paths
    }

    /// The entries of the most specific template, and the values of its parameters. They are still
    /// encoded: an encoded slash must not make a segment.
    fn find<'p>(&self, path: &'p str) -> Option<(&[usize], matchit::Params<'_, 'p>)> {
        let found = self.router.at(path).ok()?;
        Some((self.groups.get(*found.value)?, found.params))
    }
}

/// Decodes a part of a canonical path; a tail keeps its slashes.
fn decode(raw: &str) -> String {
    if !raw.as_bytes().contains(&b'%') {
        return raw.to_owned();
    }
    CanonicalPath::parse(&format!("/{raw}"))
        .map(|path| path.segments().collect::<Vec<_>>().join("/"))
        .unwrap_or_default()
}

fn check_ties(group: &[usize], entries: &[Entry], cx: &mut Compile) {
    let group: Vec<&Entry> = group
        .iter()
        .filter_map(|index| entries.get(*index))
        .collect();
    if let Some(beyond) = group.get(MAX_SHARING) {
        cx.at(beyond.place.clone(), |cx| {
            cx.problem_help(
                format!("more than {MAX_SHARING} routes share this host and path"),
                "each of them is asked in turn for every request: use fewer",
            );
        });
        return;
    }
    for (position, second) in group.iter().enumerate() {
        for first in group.iter().take(position) {
            if first.conditions.rank() == second.conditions.rank()
                && first.conditions.overlaps(&second.conditions)
            {
                report_tie(first, second, cx);
            }
        }
    }
}

fn report_tie(first: &Entry, second: &Entry, cx: &mut Compile) {
    let line = cx
        .locate(&first.place)
        .map_or_else(String::new, |at| format!(", line {}", at.line));
    cx.at(second.place.clone(), |cx| {
        let problem = format!(
            "route `{}` takes the same requests as route `{}` ({}{line})",
            second.name, first.name, first.place,
        );
        // Several hosts in common are one mistake.
        let place = cx.place();
        if !cx.problems().iter().any(|p| p.path == place && p.message == problem) {
            cx.problem_help(
                problem,
                "tell them apart by host, path, methods, headers or listeners: neither is more specific",
            );
        }
    });
}

impl Conditions {
    /// How specific they are; more is asked first.
    fn rank(&self) -> (usize, bool, bool) {
        (
            self.headers.len(),
            self.listeners.is_some(),
            self.methods_named,
        )
    }

    fn accept(&self, request: &InboundRequest) -> bool {
        let connects = self.connect && request.upgrade == Some(Upgrade::Connect);
        (connects || self.methods.contains(&request.method))
            && self
                .listeners
                .as_ref()
                .is_none_or(|names| names.contains(&request.conn.listener))
            && self.headers.iter().all(|(name, value)| {
                // Several values are not "the" value: another reader may take another one.
                let mut values = request.headers.get_all(name).iter();
                values.next() == Some(value) && values.next().is_none()
            })
    }

    /// Whether one request may meet both.
    fn overlaps(&self, other: &Self) -> bool {
        let listeners = match (&self.listeners, &other.listeners) {
            (Some(ours), Some(theirs)) => ours.iter().any(|name| theirs.contains(name)),
            _ => true,
        };
        let headers = self.headers.iter().all(|(name, value)| {
            other
                .headers
                .iter()
                .all(|(other, wanted)| other != name || wanted == value)
        });
        let methods = self
            .methods
            .iter()
            .any(|method| other.methods.contains(method));
        listeners && headers && (methods || (self.connect && other.connect))
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
