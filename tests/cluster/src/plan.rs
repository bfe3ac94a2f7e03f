//! What the clients of a checked load do. Plain data.

use std::time::Duration;

/// What the clients do. The shares are relative weights.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Concurrent clients.
    pub clients: u32,
    /// Keys that they share.
    pub keys: u32,
    /// Before each key, so that loads do not meet.
    pub prefix: String,
    /// Size of each value, at least 16.
    pub value_bytes: usize,
    /// Share of reads, wherever they are served.
    pub gets: u32,
    /// Share of linearizable reads from the asked node's own replica.
    pub gets_at_node: u32,
    /// Share of unconditional writes.
    pub puts: u32,
    /// Share of deletes.
    pub deletes: u32,
    /// Share of compare-and-swaps.
    pub swaps: u32,
    /// Share of each kind of request that concerns several keys or is streamed, see [`crate::many`].
    pub many: u32,
    /// Pairs of keys that are only written together, by transactions.
    pub pairs: u32,
    /// Size of each uploaded value: more than a chunk.
    pub upload_bytes: usize,
    /// Requests for one key go through the client library: on streams, in sessions, sent again until their deadline. Else
    /// each recorded operation is one request to one node.
    pub exactly_once: bool,
    /// Of each client between two requests: a load that goes on for a minute must not outgrow its history.
    pub pause: Duration,
}

impl LoadPlan {
    /// Every kind of request that the API has.
    pub fn of_all_kinds() -> Self {
        // Of 30: a fifth is of the kinds that concern several keys.
        Self { gets: 8, gets_at_node: 4, puts: 8, deletes: 2, swaps: 4, many: 1, ..Self::default() }
    }

    /// The same for a minute or two, beside another load.
    pub fn of_all_kinds_for_minutes() -> Self {
        let Self { keys, gets_at_node, pause, .. } = Self::for_minutes();
        Self { keys, gets_at_node, pause, prefix: "kinds/".to_owned(), ..Self::of_all_kinds() }
    }

    /// All of it through the client library, for a minute or two. What ends with an error then is one that programs must
    /// handle.
    pub fn of_programs() -> Self {
        Self { exactly_once: true, gets_at_node: 0, ..Self::for_minutes() }
    }

    /// One request to one node each, for a minute or two, in which nodes may have no replica of what they are asked for.
    /// Each write that a fault leaves unknown doubles what the checker must consider for its key: so there are many keys.
    pub fn for_minutes() -> Self {
        Self { keys: 96, gets_at_node: 0, pause: Duration::from_millis(10), ..Self::default() }
    }
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            clients: 12,
            keys: 24,
            prefix: "load/".to_owned(),
            value_bytes: 100,
            gets: 4,
            gets_at_node: 2,
            puts: 6,
            deletes: 1,
            swaps: 2,
            many: 0,
            pairs: 8,
            upload_bytes: 300_000,
            exactly_once: false,
            pause: Duration::ZERO,
        }
    }
}
