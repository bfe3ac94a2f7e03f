//! How our groups are configured: openraft's settings, each with its reason.

use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy};

/// Most entries in one AppendEntries request; the log reader bounds its bytes.
const PAYLOAD_ENTRIES_MAX: u64 = 1_024;
/// Phases of silence and of heartbeats of a leader without a quorum: longer than its lease and an election.
const QUORUM_LOSS_PROBE: Duration = Duration::from_secs(2);
/// Time for a whole snapshot to be sent and installed; the transport bounds its idle time much lower.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Timing of Raft. Equal on all nodes of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// The shortest silence after which a follower campaigns.
    pub election_min: Duration,
    /// The longest one.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(900),
        }
    }
}

/// A follower that answered entries within this time needs no heartbeat: as long as there are writes, groups send none. A heartbeat
/// that was left out goes out one interval and two ticks later, which must be within every election time-out.
fn silence_before_heartbeat(timing: Timing) -> Duration {
    let latest = timing.election_min.saturating_sub(timing.heartbeat * 3 / 2 + Duration::from_millis(1));
    timing.heartbeat.min(latest)
}

/// The configuration of every group of a node.
///
/// # Errors
/// When the timing contradicts itself.
pub fn raft_config(timing: Timing) -> Result<Config, ConfigError> {
    let probe = QUORUM_LOSS_PROBE.max(timing.election_max * 3);
    let config = Config {
        cluster_name: "kvcluster".to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        heartbeat_min_interval: Some(ms(silence_before_heartbeat(timing))),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        install_snapshot_timeout: ms(SNAPSHOT_TIMEOUT),
        max_payload_entries: PAYLOAD_ENTRIES_MAX,
        // Ours: by bytes of log, in `compaction`.
        snapshot_policy: SnapshotPolicy::Never,
        // It counts entries; what the log keeps is decided in bytes, by what a snapshot reports.
        max_in_snapshot_log_to_keep: 0,
        quorum_loss_probe_interval: Some(ms(probe)),
        // A node that comes back does not disturb a healthy leader.
        enable_pre_vote: Some(true),
        // A restarted leader would lead on without asking anybody.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate()
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_timing_is_valid() {
        let config = raft_config(Timing::default()).unwrap();
        assert_eq!(config.heartbeat_interval, 150);
        assert_eq!(config.enable_pre_vote, Some(true));
        assert_eq!(config.heartbeat_min_interval, Some(150));
    }

    #[test]
    fn heartbeats_are_left_out_only_where_that_starts_no_election() {
        for heartbeat in [1, 2, 20, 150, 400, 1_000] {
            for election in [heartbeat + 1, heartbeat * 2, heartbeat * 5 / 2 + 1, heartbeat * 10] {
                let timing = Timing {
                    heartbeat: Duration::from_millis(heartbeat),
                    election_min: Duration::from_millis(election),
                    election_max: Duration::from_millis(election * 2),
                };
                let config = raft_config(timing).unwrap_or_else(|error| panic!("{timing:?}: {error}"));
                let left_out = config.heartbeat_min_interval.unwrap();
                assert!(
                    left_out <= heartbeat
                        && left_out + heartbeat * 3 / 2 < election.max(heartbeat * 3 / 2 + 1),
                    "{timing:?}"
                );
            }
        }
    }
}
