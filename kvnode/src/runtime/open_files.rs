//! How many files and sockets the process may have open, and who may take how many of them.
//!
//! Each use has its part, and the parts leave room: a flood of sockets must never take the descriptors of a database,
//! whose lack ends the node.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Below this, a warning: databases and other nodes may have fewer than they would use, and clients far fewer.
pub const OPEN_FILES_WANTED: u64 = 4_096;
/// The HTTP port's connections, and what every process has open: standard streams, the runtime's, locks, logs.
const FIXED: u64 = crate::http::MAX_CONNECTIONS as u64 + 64;

/// Descriptors by use. A quarter of all stays for what has no bound of its own here: connections to other nodes, the
/// databases' logs, and the files of compactions and snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// Connections of clients; at least one.
    pub clients: usize,
    /// Connections that other nodes made; at least as many as three nodes need.
    pub peers: usize,
    /// Tables of the state.
    pub state_tables: i32,
    /// Segments of the log that stay open, at least one.
    pub log_segments: usize,
}

impl OpenFiles {
    /// Divides `limit` descriptors.
    pub fn of(limit: u64) -> Self {
        /// Two sockets of each of two other nodes, twice while they reconnect.
        const PEERS_MIN: usize = 8;
        let divided = limit.saturating_sub(FIXED);
        let (quarter, eighth) = (divided / 4, divided / 8);
        let sockets = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        // RocksDB itself raises what is too small for it.
        let tables = |number: u64| i32::try_from(number).unwrap_or(i32::MAX);
        Self {
            clients: sockets(quarter).max(1),
            peers: sockets(eighth).max(PEERS_MIN),
            state_tables: tables(quarter),
            log_segments: sockets(eighth).max(1),
        }
    }

    /// Divides what this process may have.
    pub fn of_this_process() -> Self {
        Self::of(limit())
    }
}

/// Raises the soft limit to the hard one, and says what it is then.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Refused: what there was stays.
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).ok();
    }
    limit()
}

/// How many files this process may have open, sockets included.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_together_leave_a_quarter() {
        for limit in [512, 1_024, 4_096, 65_536, 1 << 20] {
            let OpenFiles { clients, peers, state_tables, log_segments } = OpenFiles::of(limit);
            let tables = u64::try_from(state_tables).expect("positive");
            let taken = (clients + peers + log_segments) as u64 + tables + FIXED;
            assert!(taken <= limit - (limit - FIXED) / 4, "{taken} of {limit}");
        }
        let small = OpenFiles { clients: 224, peers: 112, state_tables: 224, log_segments: 112 };
        assert_eq!(OpenFiles::of(1_024), small);
    }

    #[test]
    fn what_is_wanted_gives_every_part_what_it_wants() {
        let OpenFiles { clients, peers, state_tables, log_segments } = OpenFiles::of(OPEN_FILES_WANTED);
        assert!(clients >= 900 && peers >= 450 && state_tables >= 900 && log_segments >= 256);
    }

    #[test]
    fn absurd_limits_leave_something_for_everybody() {
        let none = OpenFiles::of(0);
        assert_eq!((none.clients, none.peers, none.state_tables), (1, 8, 0));
        assert!(OpenFiles::of(u64::MAX).clients > 1_000_000);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let raised = raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX), raised);
    }
}
