//! How a loaded node is relieved when no single step helps: one thing goes to a node that passes another one on.

use std::collections::{BTreeMap, VecDeque, btree_map::Entry};

use crate::NodeId;

/// Steps, one after the other, that bring something from a loaded node to one with at least two fewer. Each is what moves
/// and where to; `ways` tells those that begin at a node.
pub(crate) fn relieving_path<T: Copy>(
    loads: &BTreeMap<NodeId, usize>,
    ways: impl Fn(NodeId) -> Vec<(T, NodeId)>,
) -> Option<Vec<(T, NodeId)>> {
    let mut sources: Vec<(NodeId, usize)> = loads.iter().map(|(node, load)| (*node, *load)).collect();
    sources.sort_by_key(|(node, load)| (usize::MAX - load, *node));
    sources.into_iter().take_while(|(_, load)| *load >= 2).find_map(|(source, load)| {
        // Breadth first, so that as little as possible moves.
        let mut reached: BTreeMap<NodeId, Option<(T, NodeId)>> = BTreeMap::from([(source, None)]);
        let mut open = VecDeque::from([source]);
        while let Some(node) = open.pop_front() {
            if loads[&node] + 2 <= load {
                return Some(trace_back(&reached, node));
            }
            for (what, next) in ways(node) {
                if let Entry::Vacant(unreached) = reached.entry(next) {
                    unreached.insert(Some((what, node)));
                    open.push_back(next);
                }
            }
        }
        None
    })
}

/// The steps that led to `target`, last one first.
fn trace_back<T: Copy>(reached: &BTreeMap<NodeId, Option<(T, NodeId)>>, target: NodeId) -> Vec<(T, NodeId)> {
    let mut steps = Vec::new();
    let mut at = target;
    while let Some((what, before)) = reached[&at] {
        steps.push((what, at));
        at = before;
    }
    steps
}
