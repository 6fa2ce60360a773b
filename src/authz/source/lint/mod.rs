//! What would bite: things that a policy's text shows and that still load.
//!
//! Findings are about the author's own text, before anything is rewritten for the engine. Each has a
//! stable name, by which a comment of the text can waive it:
//!
//! | name | what it finds |
//! | --- | --- |
//! | `input-path` | a member of `input` that no request has |
//! | `data-path` | a path of `data` that neither data nor a rule gives |
//! | `compare` | a comparison that can never hold, or always does |
//! | `never-holds` | statements of one body that contradict each other |
//! | `fails-open` | a denial that vanishes when a value is missing |
//! | `always-allows` | an answer that is yes whatever is asked |
//! | `no-default` | an entry point that does not always answer |
//! | `unreachable` | a rule that neither the entry point nor a test reaches |
//! | `unused` | an import or a variable that nothing uses |

pub(in crate::authz) mod holds;
pub(in crate::authz) mod reach;
pub(in crate::authz) mod walk;
pub(in crate::authz) mod world;

use std::collections::{BTreeMap, BTreeSet};

use regorus::Value;
use regorus::unstable::{Module, Ref};

use crate::authz::source::types::Type;
use world::World;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// It cannot be meant.
    Error,
    /// It may be meant.
    Warning,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its stable name.
    pub rule: &'static str,
    /// How bad it is.
    pub weight: Weight,
    /// The file.
    pub file: String,
    /// Line and column, from 1.
    pub at: (usize, usize),
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: String,
    /// A path below `input` without which a denial would vanish; tried by whoever can run the policy.
    pub(in crate::authz) missing: Option<Vec<String>>,
}

/// What is known beside the text.
#[derive(Clone)]
pub(in crate::authz) struct Known<'k> {
    pub(in crate::authz) input: &'k Type,
    pub(in crate::authz) data: &'k Value,
    /// Whether `data` is all there will be.
    pub(in crate::authz) data_is_whole: bool,
    /// Rules that are asked for, as `data.orders.decision`; where there are none, no rule is out of
    /// reach.
    pub(in crate::authz) entrypoints: &'k [String],
    pub(in crate::authz) test_files: &'k dyn Fn(&str) -> bool,
}

/// All findings in these modules, in the order of files and lines.
pub(in crate::authz) fn lint(modules: &[Ref<Module>], known: &Known<'_>) -> Vec<Finding> {
    let world = World::of(modules, known);
    let mut walked = walk::walk(&world);
    let mut found = std::mem::take(&mut walked.findings);
    reach::reach(&world, &walked, &mut found);
    holds::holds(&world, &mut found);
    let waived = waivers(modules);
    found.retain(|finding| !is_waived(finding, &waived));
    found.sort_by(|a, b| (&a.file, a.at, a.rule).cmp(&(&b.file, b.at, b.rule)));
    found.dedup_by(|a, b| a.file == b.file && a.at == b.at && a.rule == b.rule);
    found
}

/// What comments waive, by file: lines with names; line 0 for the whole file, no names for all.
type Waivers = BTreeMap<String, Vec<(usize, BTreeSet<String>)>>;

/// `# portcullis: ignore[name, other]` on the line or the line above, `ignore-file[…]` for all lines.
fn waivers(modules: &[Ref<Module>]) -> Waivers {
    let mut waivers = Waivers::new();
    for module in modules {
        let source = &module.package.span.source;
        for (index, line) in source.contents().lines().enumerate() {
            let Some((before, said)) = line.split_once("# portcullis: ignore") else {
                continue;
            };
            let (whole, said) = match said.strip_prefix("-file") {
                Some(said) => (true, said),
                None => (false, said),
            };
            let names: BTreeSet<String> = said
                .strip_prefix('[')
                .and_then(|said| said.split_once(']'))
                .map(|(names, _)| {
                    names
                        .split(',')
                        .map(|name| name.trim().to_owned())
                        .collect()
                })
                .unwrap_or_default();
            let line = match (whole, before.trim().is_empty()) {
                (true, _) => 0,
                (false, true) => index + 2,
                (false, false) => index + 1,
            };
            waivers
                .entry(source.get_path().clone())
                .or_default()
                .push((line, names));
        }
    }
    waivers
}

fn is_waived(finding: &Finding, waivers: &Waivers) -> bool {
    waivers
        .get(&finding.file)
        .into_iter()
        .flatten()
        .any(|(line, names)| {
            (*line == 0 || *line == finding.at.0)
                && (names.is_empty() || names.contains(finding.rule))
        })
}

#[cfg(test)]
mod tests;
