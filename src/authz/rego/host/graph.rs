//! Graphs: objects of nodes to their neighbours.

use std::collections::BTreeSet;

use regorus::Value;

use super::args::{elements, object, spent};
use super::{Answer, MAX_ELEMENTS, engines};

/// Most edges that are followed.
pub(super) const MAX_EDGES: usize = 100_000;

pub(super) fn reachable(args: &[Value]) -> Answer {
    let graph = object(args, 0)?;
    let mut open: Vec<&Value> = elements(args, 1)?;
    let mut found: BTreeSet<Value> = BTreeSet::new();
    let mut edges = open.len();
    while let Some(node) = open.pop() {
        if found.contains(node) {
            continue;
        }
        let Some(neighbours) = graph.get(node) else {
            continue;
        };
        let before = open.len();
        match neighbours {
            Value::Array(items) => open.extend(items.iter()),
            Value::Set(items) => open.extend(items.iter()),
            _ => {}
        }
        edges = edges.saturating_add(open.len().saturating_sub(before));
        found.insert(node.clone());
        if edges > MAX_EDGES || found.len() > MAX_ELEMENTS {
            return spent(format!(
                "follows at most {MAX_EDGES} edges to {MAX_ELEMENTS} nodes"
            ));
        }
    }
    Ok(Value::from(found))
}

/// Most steps over all paths: a graph where all lead to all has more of them than time.
const MAX_STEPS: usize = 20_000;

pub(super) fn reachable_paths(args: &[Value]) -> Answer {
    let graph = object(args, 0)?;
    // Nodes with the length of the path to them; what is longer than the path at hand was left.
    let mut open: Vec<(usize, &Value)> = Vec::new();
    open.extend(elements(args, 1)?.into_iter().map(|node| (0, node)));
    let mut path: Vec<&Value> = Vec::new();
    let mut steps = 0usize;
    while let Some((length, node)) = open.pop() {
        path.truncate(length);
        steps = steps.saturating_add(1).saturating_add(length);
        if steps > MAX_STEPS {
            return spent(format!("follows all paths for at most {MAX_STEPS} steps"));
        }
        if path.contains(&node) {
            continue;
        }
        path.push(node);
        match graph.get(node) {
            Some(Value::Array(items)) => open.extend(items.iter().map(|n| (length + 1, n))),
            Some(Value::Set(items)) => open.extend(items.iter().map(|n| (length + 1, n))),
            _ => {}
        }
    }
    engines("graph.reachable_paths", args)
}
