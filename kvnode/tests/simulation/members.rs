//! Members of a group come and go, in simulated time: who leaves the voters leaves wholly and disturbs nobody, and what was
//! decided on an older membership is refused.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use kv_proto::{
    disk::v1::{LogId, Member, Put, operation::Kind},
    peer::v1::{GroupDescription, Progress, Refusal},
};
use kv_topology::NodeId;
use kvnode::{group::replica::GroupControl, refusal, router::store::Store};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    clients::{KEYS, question},
    scenes::{CALM, leader, play, replica, write},
    world::{World, replica_of},
};

fn control(world: &World, node: NodeId) -> Arc<dyn GroupControl> {
    replica(world, node).control
}

fn described(world: &World, led_by: NodeId) -> GroupDescription {
    control(world, led_by).describe().unwrap()
}

/// The log id of a group's membership, its voters and all its members.
fn members(group: &GroupDescription) -> (Option<LogId>, BTreeSet<u64>, BTreeSet<u64>) {
    let stored = group.membership.clone().unwrap();
    let membership = stored.membership.unwrap();
    assert_eq!(membership.voters.len(), 1, "uniform");
    let voters = membership.voters[0].replica_ids.iter().copied().collect();
    (stored.log_id, voters, membership.members.iter().map(|member| member.replica_id).collect())
}

fn ids(nodes: &[NodeId]) -> BTreeSet<u64> {
    nodes.iter().map(|node| replica_of(*node).get()).collect()
}

fn progress(group: &GroupDescription, node: NodeId) -> Progress {
    let of_node = |progress: &&Progress| progress.replica_id == replica_of(node).get();
    *group.progress.iter().find(of_node).unwrap()
}

fn but(nodes: &[NodeId], other: NodeId) -> Vec<NodeId> {
    nodes.iter().copied().filter(|node| *node != other).collect()
}

/// Lets one replica leave, and says which membership was before.
async fn leave(world: &World, led_by: NodeId, leaving: NodeId) -> Option<LogId> {
    let (before, ..) = members(&described(world, led_by));
    let voters = ids(&but(&world.node_ids(), leaving));
    control(world, led_by).change_voters(voters, before).await.unwrap();
    before
}

fn reason(result: Result<(), Refusal>) -> String {
    result.unwrap_err().reason
}

fn put() -> Kind {
    let value = Bytes::from_static(b"v");
    let value_crc32c = crc32c::crc32c(&value);
    Kind::Put(Put { key: KEYS[0].into(), value, value_crc32c, ..Put::default() })
}

/// How long a read takes at a node that answers wherever it can.
async fn time_of_a_read(world: &World, node: NodeId) -> Duration {
    let (running, question) = (world.running(node).unwrap(), question(KEYS[0]));
    let (answer, answered) = oneshot::channel();
    let (router, asked) = (running.router.clone(), Instant::now());
    running.tasks.spawner().spawn("read", async move {
        answer.send(Store::read(&*router, question, asked + Duration::from_secs(10)).await).ok();
    });
    answered.await.unwrap().unwrap();
    asked.elapsed()
}

#[test]
fn who_leaves_the_voters_is_no_member_any_more_and_disturbs_nobody() {
    play(1, 5, async |world| {
        let nodes = world.node_ids();
        let led_by = leader(&world, &nodes).await;
        let left = but(&nodes, led_by)[0];
        let stay = but(&nodes, left);
        let before = leave(&world, led_by, left).await;
        let (now, voters, all) = members(&described(&world, led_by));
        assert_eq!((&voters, &all), (&ids(&stay), &ids(&stay)), "it is no learner either");

        let again = control(&world, led_by).change_voters(ids(&nodes), before).await;
        assert_eq!(reason(again), refusal::MEMBERSHIP_CHANGED, "decided on what was before");
        let alone = control(&world, led_by).change_voters(ids(&but(&stay, led_by)), now).await;
        assert_eq!(reason(alone), refusal::LEADER_WOULD_LEAVE);
        let follower = but(&stay, led_by)[0];
        let elsewhere = control(&world, follower).change_voters(ids(&nodes), now).await;
        assert_eq!(reason(elsewhere), refusal::NOT_LEADER);

        let term = described(&world, led_by).term;
        sleep(CALM * 10).await;
        assert_eq!(leader(&world, &stay).await, led_by);
        assert_eq!(described(&world, led_by).term, term, "its elections come to nothing");
    });
}

#[test]
fn a_node_whose_replica_has_left_reads_and_writes_elsewhere_at_once() {
    play(2, 5, async |world| {
        let nodes = world.node_ids();
        let led_by = leader(&world, &nodes).await;
        let left = but(&nodes, led_by)[0];
        let stay = but(&nodes, left);
        leave(&world, led_by, left).await;
        write(&world, left, put()).await;
        let time = time_of_a_read(&world, left).await;
        assert!(time < Duration::from_secs(1), "it waits for no entries that do not come: {time:?}");
        let next = but(&stay, led_by)[0];
        control(&world, led_by).transfer_leader(replica_of(next)).await.unwrap();
        write(&world, left, put()).await;
        world.crash(led_by);
        sleep(CALM).await;
        write(&world, left, put()).await;
        let time = time_of_a_read(&world, left).await;
        assert!(time < Duration::from_secs(3), "{time:?}");
    });
}

#[test]
fn a_learner_is_removed_and_a_voter_is_not_taken_for_one() {
    play(3, 5, async |world| {
        let nodes = world.node_ids();
        let led_by = leader(&world, &nodes).await;
        let learner = but(&nodes, led_by)[0];
        let stay = but(&nodes, learner);
        let old = leave(&world, led_by, learner).await;
        let member = Member { replica_id: replica_of(learner).get(), node_id: learner.get() };
        control(&world, led_by).add_learner(member).await.unwrap();
        write(&world, led_by, put()).await;
        sleep(CALM).await;
        let group = described(&world, led_by);
        let (now, voters, all) = members(&group);
        assert_eq!((voters, all), (ids(&stay), ids(&nodes)));
        for node in &nodes {
            let Progress { heard_ms_ago, lag_bytes, .. } = progress(&group, *node);
            assert!(heard_ms_ago.is_some_and(|ms| ms < 1_000), "{node}: {heard_ms_ago:?}");
            assert_eq!(lag_bytes, Some(0), "{node}");
        }
        let remove = |node: NodeId, expected| {
            let control = control(&world, led_by);
            async move { control.remove_learner(replica_of(node), expected).await }
        };
        assert_eq!(reason(remove(learner, old).await), refusal::MEMBERSHIP_CHANGED);
        assert_eq!(reason(remove(stay[0], now).await), refusal::MEMBERSHIP_CHANGED, "it votes");
        remove(learner, now).await.unwrap();
        assert_eq!(members(&described(&world, led_by)).2, ids(&stay));
        remove(learner, now).await.unwrap();
    });
}

#[test]
fn who_lags_is_told_in_bytes() {
    play(4, 3, async |world| {
        let nodes = world.node_ids();
        let led_by = leader(&world, &nodes).await;
        let away = but(&nodes, led_by)[0];
        world.network.isolate(away);
        for _ in 0..3 {
            write(&world, led_by, put()).await;
        }
        sleep(CALM).await;
        let group = described(&world, led_by);
        let Progress { matching_index, heard_ms_ago, lag_bytes, .. } = progress(&group, away);
        assert!(group.committed_index >= matching_index + 3, "{group:?}");
        assert!(heard_ms_ago.is_some_and(|ms| ms >= 4_000), "{heard_ms_ago:?}");
        assert!(lag_bytes.is_some_and(|bytes| (30..3_000).contains(&bytes)), "{lag_bytes:?}");
        let refused = control(&world, led_by).transfer_leader(replica_of(away)).await;
        assert_eq!(reason(refused), refusal::TARGET_NOT_READY);
        world.network.heal();
    });
}

#[test]
fn a_replica_that_stands_still_on_a_node_that_lives_counts_as_silent() {
    play(5, 3, async |world| {
        let nodes = world.node_ids();
        let led_by = leader(&world, &nodes).await;
        let still = but(&nodes, led_by)[0];
        // Its node goes on talking, and nothing is written: by its log it lacks nothing.
        control(&world, still).stop().await;
        sleep(CALM).await;
        let group = described(&world, led_by);
        let Progress { matching_index, heard_ms_ago, .. } = progress(&group, still);
        assert_eq!(matching_index, group.committed_index);
        assert!(heard_ms_ago.is_some_and(|ms| ms >= 4_000), "{heard_ms_ago:?}");
        let runs = but(&but(&nodes, led_by), still)[0];
        let Progress { heard_ms_ago, .. } = progress(&group, runs);
        assert!(heard_ms_ago.is_some_and(|ms| ms < 1_000), "{heard_ms_ago:?}");
        let refused = control(&world, led_by).transfer_leader(replica_of(still)).await;
        assert_eq!(reason(refused), refusal::TARGET_NOT_READY);
    });
}

#[test]
fn a_transfer_returns_when_the_target_leads() {
    for seed in 0..8 {
        play(seed, 3, async |world| {
            let nodes = world.node_ids();
            let led_by = leader(&world, &nodes).await;
            let next = but(&nodes, led_by)[0];
            control(&world, led_by).transfer_leader(replica_of(next)).await.unwrap();
            assert_eq!(control(&world, led_by).leader(), Some(next));
            assert!(described(&world, next).term > 0, "it leads");
            control(&world, next).transfer_leader(replica_of(next)).await.unwrap();
            let elsewhere = control(&world, led_by).transfer_leader(replica_of(led_by)).await;
            assert_eq!(reason(elsewhere), refusal::NOT_LEADER);
        });
    }
}
