//! How many files and sockets the process may have open, and what part of them clients may take.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Below this, tables, logs and other nodes' sockets may lack descriptors while clients have theirs: a warning.
pub const OPEN_FILES_WANTED: u64 = 4_096;
/// Clients get a quarter: the rest is for tables, logs and other nodes, without which nobody is served.
const CLIENTS_DIVISOR: u64 = 4;

/// Raises the soft limit to the hard one, and says what it is then.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Refused: what there was stays.
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).ok();
    }
    limit()
}

/// The limit now.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Connections of clients that such a limit leaves room for; at least one.
pub fn for_clients(limit: u64) -> usize {
    usize::try_from(limit / CLIENTS_DIVISOR).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_get_all_descriptors() {
        assert_eq!(for_clients(1_024), 256);
        assert_eq!(for_clients(0), 1);
        assert!(for_clients(u64::MAX) > 1_000_000);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let raised = raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX), raised);
    }
}
