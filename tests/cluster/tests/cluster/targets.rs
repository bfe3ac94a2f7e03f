//! What may become of a leadership or a replica depends on where it is to go.

use std::time::{Duration, Instant};

use kv_cluster_tests::{
    Cluster, Load, LoadPlan, Plan,
    admin::Admin,
    api::{in_words, reason},
    seed,
    settled::{placed_at, stands_still},
    status::{leader, replica},
    wait::{DEADLINE, SLOW_POLL, wait_until_every},
};
use kv_proto::admin::v1::DiskLevel;

/// Of the shard whose leaderships are given away.
const SHARD: u32 = 1;
/// A transfer that does not come about is given up within this time.
const BOUND: Duration = Duration::from_secs(15);
/// Refusals that say nothing of the target: a leader is being elected, or the map is old.
const PASSING: [&str; 5] = [
    "NOT_APPLIED_NO_LEADER",
    "NOT_APPLIED_NOT_LEADER",
    "NOT_APPLIED_UNREACHABLE",
    "NOT_APPLIED_STARTING",
    "NOT_APPLIED_EXPIRED",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_leadership_goes_to_whom_it_is_given_if_that_one_can_take_it() {
    let Some(mut cluster) = Cluster::start(Plan::nodes(4)).await else { return };
    cluster.wait_settled(0).await;
    cluster.put(0, "k", "v").await;
    cluster.wait_caught_up().await;
    let all = cluster.all_but(&[]);
    let statuses = cluster.statuses().await;
    let holds =
        |node: &usize| statuses[*node].as_ref().is_some_and(|status| replica(status, SHARD).is_some());
    let leads = leader(&statuses, SHARD).expect("a settled cluster");
    let (holders, others): (Vec<usize>, Vec<usize>) = all.into_iter().partition(holds);
    let to = *holders.iter().find(|node| **node != leads).expect("three nodes hold it");

    let name = &cluster.nodes[to].name;
    let transfer = async |admin: Admin| admin.transfer_leader(SHARD, name).await;
    let led = cluster.order(0, format!("shard {SHARD} led by {name}"), transfer).await;
    assert_eq!(led, cluster.node_id(to).await);
    cluster.wait_leader(SHARD, &[to]).await;

    let said = wait_turned_down(&cluster, 0, others[0]).await;
    assert!(!said.is_empty());
    let unknown = async |admin: Admin| admin.transfer_leader(SHARD, "n9").await;
    cluster.wait_refused(0, "NODE_UNKNOWN", "a leadership for nobody", unknown).await;

    // One that does not answer, and that nobody wished to lead.
    let paused = *holders.iter().find(|node| ![leads, to].contains(node)).expect("three nodes hold it");
    let via = (paused + 1) % 4;
    cluster.nodes[paused].pause();
    let said = wait_turned_down(&cluster, via, paused).await;
    eprintln!("to a node that does not answer: {said}");
    cluster.wait_leader(SHARD, &cluster.all_but(&[paused])).await;
    cluster.put(via, "k", "w").await;
    cluster.nodes[paused].resume();
    cluster.wait_settled(via).await;
}

/// Asks for a transfer until it is turned down for a reason that lies with its target, and gives what was said.
async fn wait_turned_down(cluster: &Cluster, via: usize, to: usize) -> String {
    let (admin, name) = (cluster.admin(via), &cluster.nodes[to].name);
    let what = format!("a refusal to let {name} lead shard {SHARD}");
    let turned_down = wait_until_every(SLOW_POLL, &what, DEADLINE, || async {
        let begin = Instant::now();
        let answer = admin.transfer_leader(SHARD, name).await;
        assert!(begin.elapsed() < BOUND, "an answer after {:?}: {answer:?}", begin.elapsed());
        let status = match answer {
            Ok(leads) => return Ok(Err(leads)),
            Err(status) => status,
        };
        match reason(&status) {
            Some(reason) if !PASSING.contains(&reason.as_str()) => Ok(Ok(in_words(&status))),
            Some(_) | None => Err(in_words(&status)),
        }
    });
    match turned_down.await.unwrap_or_else(|error| panic!("{error}")) {
        Ok(said) => said,
        Err(leads) => panic!("{what} was expected, and #{leads} leads it"),
    }
}

const MIB: u64 = 1 << 20;
/// Of a node's volume with room.
const ROOMY: u64 = 4096 * MIB;
/// Less than the soft limit, and not so little that the node could not start.
const SMALL: u64 = 220 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_room_gets_no_replicas_until_it_has_some() {
    let mut random = seed::generator("a_node_without_room_gets_no_replicas_until_it_has_some");
    let plan = Plan::nodes(3).with_volumes(ROOMY);
    let plan = plan.with_flag("--disk-soft-limit", "256Mi").with_flag("--disk-hard-limit", "64Mi");
    let Some(mut cluster) = Cluster::start(plan).await else { return };
    let load = Load::start(LoadPlan::of_programs(), cluster.addresses(), &mut random);
    let full = cluster.prepare_node();
    cluster.nodes[full].put_on_volume(SMALL).expect("a volume can be prepared");
    cluster.nodes[full].start();
    let is_full = |status: &kv_proto::admin::v1::NodeStatus| status.disk_level() != DiskLevel::DiskEnough;
    cluster.wait_status(full, "a full disk", is_full).await;
    let roomy = cluster.add_node();
    let ids = cluster.wait_active(0, &[full, roomy]).await;

    // Nine replicas of data are even on four nodes when each has two of them.
    let wanted = cluster.wanted();
    let shared = cluster.wait_cluster(0, "replicas on all nodes with room", |cluster| {
        stands_still(cluster, wanted)?;
        let held = ids.iter().map(|id| placed_at(cluster, *id));
        let [full, roomy] = &held.collect::<Vec<_>>()[..] else { unreachable!("two were added") };
        let data = roomy.iter().filter(|shard| **shard != 0).count();
        if full.is_empty() && data >= 2 {
            return Ok(());
        }
        Err(format!("without room: {full:?}, with room: {roomy:?}"))
    });
    shared.await;
    load.must_progress(100).await;
    cluster.nodes[full].volume().resize(ROOMY).expect("resized");
    cluster.wait_settled(0).await;
    load.must_progress(100).await;
    load.finish().await.without_errors();
}
