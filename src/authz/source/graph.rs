//! Who calls whom: no circle, and no path deeper than a worker's stack is known to bear.
//!
//! regorus evaluates recursion until the stack ends, and an overflown stack takes the process with
//! it; no timer and no `catch_unwind` stops that.

use std::collections::{BTreeMap, HashSet};

use crate::authz::source::remark::Remark;

/// Longest chain of rules that call one another, each counted with its loops: what 2 MiB of stack
/// bear in a build without optimisation, with room to spare.
pub(in crate::authz) const MAX_CALL_WEIGHT: usize = 96;

/// A rule or a builtin.
#[derive(Debug)]
pub(in crate::authz) struct Node {
    pub(in crate::authz) name: String,
    pub(in crate::authz) file: String,
    pub(in crate::authz) at: (usize, usize),
    pub(in crate::authz) calls: BTreeMap<usize, (usize, usize)>,
    pub(in crate::authz) weight: usize,
    pub(in crate::authz) ref_head: bool,
    /// How many arguments it takes; `None` for rules that are no functions.
    pub(in crate::authz) arity: Option<usize>,
}

/// The rules and builtins of a policy, and the calls between them.
#[derive(Debug, Default)]
pub(in crate::authz) struct Graph {
    pub(in crate::authz) nodes: Vec<Node>,
    /// Paths from `data`, and `#name` for builtins.
    pub(in crate::authz) index: BTreeMap<Vec<String>, usize>,
}

impl Graph {
    /// Reports every circle once, at the call that closes it.
    pub(in crate::authz) fn circles(&self, remarks: &mut Vec<Remark>) {
        let mut state = vec![0u8; self.nodes.len()];
        for start in 0..self.nodes.len() {
            // An explicit stack: the graph of a hostile policy is as deep as it likes.
            let mut trail: Vec<(usize, Vec<usize>)> = Vec::new();
            self.enter(start, &mut state, &mut trail);
            while let Some((node, rest)) = trail.last_mut() {
                let node = *node;
                let Some(next) = rest.pop() else {
                    if let Some(state) = state.get_mut(node) {
                        *state = 2;
                    }
                    trail.pop();
                    continue;
                };
                match state.get(next) {
                    Some(0) => self.enter(next, &mut state, &mut trail),
                    Some(1) => remarks.extend(self.circle(node, next, &trail)),
                    _ => {}
                }
            }
        }
    }

    fn enter(&self, node: usize, state: &mut [u8], trail: &mut Vec<(usize, Vec<usize>)>) {
        if let (Some(seen @ 0), Some(found)) = (state.get_mut(node), self.nodes.get(node)) {
            *seen = 1;
            trail.push((node, found.calls.keys().copied().collect()));
        }
    }

    fn circle(&self, from: usize, to: usize, trail: &[(usize, Vec<usize>)]) -> Option<Remark> {
        let caller = self.nodes.get(from)?;
        let mut names: Vec<&str> = trail
            .iter()
            .map(|(node, _)| *node)
            .skip_while(|node| *node != to)
            .filter_map(|node| self.nodes.get(node))
            .map(|node| node.name.as_str())
            .collect();
        names.extend(self.nodes.get(to).map(|node| node.name.as_str()));
        let at = caller.calls.get(&to).copied().unwrap_or(caller.at);
        Some(Remark::error(
            &caller.file,
            Some(at),
            format!("recursion: {}", names.join(" calls ")),
            "a rule may not depend on itself, neither directly nor by others; walk structures with a comprehension or `graph.reachable`",
        ))
    }

    /// Reports the deepest chain of calls when it is too deep; only asked when there is no circle.
    pub(in crate::authz) fn depth(&self, remarks: &mut Vec<Remark>) {
        if remarks.iter().any(|r| r.message.starts_with("recursion")) {
            return;
        }
        let mut heavy = vec![None::<usize>; self.nodes.len()];
        let mut worst: Option<(usize, usize)> = None;
        for start in 0..self.nodes.len() {
            let mut stack = vec![start];
            while let Some(&top) = stack.last() {
                let Some(node) = self.nodes.get(top) else {
                    break;
                };
                let open = node
                    .calls
                    .keys()
                    .find(|callee| heavy.get(**callee).copied().flatten().is_none());
                if let Some(&open) = open {
                    stack.push(open);
                    continue;
                }
                let below = node
                    .calls
                    .keys()
                    .filter_map(|callee| heavy.get(*callee).copied().flatten())
                    .max()
                    .unwrap_or(0);
                let weight = node.weight.saturating_add(below);
                if let Some(slot) = heavy.get_mut(top) {
                    *slot = Some(weight);
                }
                if worst.is_none_or(|(_, most)| weight > most) {
                    worst = Some((top, weight));
                }
                stack.pop();
            }
        }
        if let Some((node, weight)) = worst.filter(|(_, weight)| *weight > MAX_CALL_WEIGHT)
            && let Some(node) = self.nodes.get(node)
        {
            let remark = Remark::error(
                &node.file,
                Some(node.at),
                format!(
                    "{} calls too deep: rules and loops one inside the other weigh {weight}, at most {MAX_CALL_WEIGHT} fit a worker's stack",
                    node.name
                ),
                "break the chain: let rules build on sets and objects instead of on one another",
            );
            remarks.push(remark);
        }
    }

    /// A rule head with a path that the entry point reaches, and where.
    pub(in crate::authz) fn ref_head(&self, entrypoint: &str) -> Option<(String, usize, usize)> {
        let path: Vec<String> = entrypoint.split('.').map(str::to_owned).collect();
        let mut open: Vec<usize> = self.index.get(&path).copied().into_iter().collect();
        let mut seen: HashSet<usize> = HashSet::new();
        while let Some(index) = open.pop() {
            let Some(node) = self.nodes.get(index) else {
                continue;
            };
            if !seen.insert(index) {
                continue;
            }
            if node.ref_head {
                return Some((node.file.clone(), node.at.0, node.at.1));
            }
            open.extend(node.calls.keys());
        }
        None
    }
}
