//! Metrics of the cluster as its meta group knows it. Each node shows what it has heard of it last.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::add;

/// The cluster as its meta group knows it.
#[derive(Clone, Debug, Default)]
pub struct MetaMetrics {
    nodes: Family<StateLabels, Gauge>,
    moves: Gauge,
    moves_begun: Counter,
    permits_open: Gauge,
}

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes in each state.
    pub nodes: Vec<(&'static str, usize)>,
    /// Moves of replicas that are under way.
    pub moves: usize,
    /// Those that were ever begun.
    pub moves_begun: u64,
    /// Permits that are open: one at most.
    pub permits_open: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    /// Such as `active`.
    state: &'static str,
}

impl MetaMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            nodes: add(
                registry,
                "kv_meta_nodes",
                "Nodes in each state, as this node has heard of it last",
                Family::default(),
            ),
            moves: add(
                registry,
                "kv_meta_moves",
                "Replicas that move to another node, as this node has heard of it last",
                Gauge::default(),
            ),
            moves_begun: add(
                registry,
                "kv_meta_moves_begun",
                "Moves of replicas that were begun since the cluster was founded",
                Counter::default(),
            ),
            permits_open: add(
                registry,
                "kv_meta_permits_open",
                "1: a node may be restarted on purpose, and no group changes its voters meanwhile",
                Gauge::default(),
            ),
        }
    }

    /// Shows them.
    pub fn show(&self, counts: &Counts) {
        let Counts { nodes, moves, moves_begun, permits_open } = counts;
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        for (state, count) in nodes {
            self.nodes.get_or_create(&StateLabels { state }).set(number(*count));
        }
        self.moves.set(number(*moves));
        self.permits_open.set(number(*permits_open));
        // It only grows; two that look at the same time may count a move twice.
        self.moves_begun.inc_by(moves_begun.saturating_sub(self.moves_begun.get()));
    }
}
