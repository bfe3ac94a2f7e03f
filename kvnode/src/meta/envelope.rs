//! What comes with each command for the journal: who asks, why, and when by the clock of this machine. For people: nothing
//! is decided by it.

use std::time::{SystemTime, UNIX_EPOCH};

use kv_proto::disk::v1::{MetaCommand, meta_command::Command};

/// The command, asked now by `actor` (`controller at n1`, `kvctl`, `n3`) because of `reason`.
pub fn command(actor: impl Into<String>, reason: impl Into<String>, command: Command) -> MetaCommand {
    MetaCommand { command: Some(command), actor: actor.into(), reason: reason.into(), unix_ms: unix_ms() }
}

/// Milliseconds since 1970 by the clock of this machine; 0: it stands before that.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
