//! Permits to restart a node on purpose.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kv_cluster_tests::{
    Cluster, Load, LoadPlan, Plan,
    admin::Admin,
    journal::{self, Locked},
    operations::PERMIT_TTL,
    seed,
    status::replica,
};
use kv_proto::admin::v1::{NodeStatus, Objection, Permit, Role};
use rand::seq::SliceRandom;
use tokio::time::{MissedTickBehavior, interval};

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_restarted_with_permits_and_no_request_fails() {
    let mut random = seed::generator("all_nodes_are_restarted_with_permits_and_no_request_fails");
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let load = Load::start(LoadPlan::of_programs(), cluster.addresses(), &mut random);
    let mut order = [0, 1, 2];
    order.shuffle(&mut random);
    for node in order {
        load.must_progress(200).await;
        cluster.restart_with_permit((node + 1) % order.len(), node).await;
    }
    cluster.wait_settled(0).await;
    cluster.wait_even_leaders(0).await;
    load.must_progress(200).await;
    let verdict = load.finish().await.without_errors();
    eprintln!("the longest that a client waited: {:?}", verdict.longest_wait());
    let journal = cluster.order(0, "the journal", async |admin: Admin| admin.journal().await).await;
    let locked = journal::locked(&journal).unwrap_or_else(|error| panic!("{error}"));
    assert!(locked.permits >= order.len(), "{locked:?}");
}

/// Of a permit that is to expire.
const SHORT_TTL: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_is_for_one_node_until_it_is_given_back_or_expires() {
    let Some(mut cluster) = Cluster::start(Plan::nodes(3)).await else { return };
    let shards: BTreeSet<u32> = (0..=3).collect();
    cluster.wait_settled(0).await;
    cluster.wait_even_leaders(0).await;
    let token = cluster.wait_permit(0, 1, PERMIT_TTL).await.token;
    cluster.wait_objection(0, 2, "PERMIT_OPEN").await;
    hands_over_for_its_token_only(&cluster, &token).await;
    cluster.release(0, &token).await;
    // Done already is done.
    cluster.release(2, &token).await;
    cluster.wait_status(1, "readiness and leaderships, again,", |status| status.ready && leads(status)).await;

    // Each shard that would suffer is named.
    cluster.nodes[2].kill();
    let names_all = |objections: &[Objection]| {
        let at_risk = objections.iter().filter(|objection| objection.reason == "QUORUM_AT_RISK");
        at_risk.filter_map(|objection| objection.shard_id).collect::<BTreeSet<u32>>() == shards
    };
    let objections = cluster.wait_objections(0, 1, "of all shards", names_all).await;
    assert!(objections.iter().all(|objection| !objection.message.is_empty()), "{objections:?}");

    // Nobody needs the dead one. Its permit is over without anybody who gives it back.
    let expired = cluster.wait_permit(0, 2, SHORT_TTL).await.token;
    let id = cluster.cluster_status(0).await.permits.first().map_or(0, |permit| permit.node_id);
    let overdue = |permits: &[Permit]| match permits {
        [permit] if permit.overdue && permit.node_id == id => Ok(()),
        permits => Err(format!("{permits:?}")),
    };
    cluster.wait_cluster(0, "an overdue permit", |cluster| overdue(&cluster.permits)).await;
    cluster.wait_objection(1, 0, "QUORUM_AT_RISK").await;
    // As soon as it has caught up, it counts again.
    cluster.nodes[2].start();
    let forgotten =
        |permits: &[Permit]| if permits.is_empty() { Ok(()) } else { Err(format!("{permits:?}")) };
    cluster.wait_cluster(0, "no permit", |cluster| forgotten(&cluster.permits)).await;
    assert_eq!(cluster.node_id(2).await, id, "the permit was that of node 2");
    let late = async |admin: Admin| admin.hand_over("n3", &expired).await;
    cluster.wait_refused(0, "PERMIT_UNKNOWN", "a hand-over with an expired permit", late).await;
    let token = cluster.wait_permit(2, 0, PERMIT_TTL).await.token;
    cluster.release(2, &token).await;
    let journal = cluster.order(0, "the journal", async |admin: Admin| admin.journal().await).await;
    let locked = journal::locked(&journal).unwrap_or_else(|error| panic!("{error}"));
    assert!(locked.permits >= 3, "{locked:?}");
}

/// Node 1 has the permit with this token.
async fn hands_over_for_its_token_only(cluster: &Cluster, token: &str) {
    let wrong = async |admin: Admin| admin.hand_over("n2", "wrong").await;
    cluster.wait_refused(0, "PERMIT_UNKNOWN", "a hand-over with a wrong token", wrong).await;
    let another = async |admin: Admin| admin.hand_over("n1", token).await;
    cluster.wait_refused(0, "PERMIT_UNKNOWN", "a hand-over of another node", another).await;
    cluster.wait_status(1, "leaderships, since nobody asked properly,", leads).await;
    let hand_over = async |admin: Admin| admin.hand_over("n2", token).await;
    cluster.order(0, "the hand-over of n2", hand_over).await;
    cluster.wait_status(1, "no leaderships and no readiness", |status| !leads(status) && !status.ready).await;
}

fn leads(status: &NodeStatus) -> bool {
    (0..=3).any(|shard| replica(status, shard).is_some_and(|replica| replica.role() == Role::Leader))
}

/// A permit is asked for, or given back, once in a while: in between voters have time to change.
const SEEK_EVERY: Duration = Duration::from_millis(250);
/// One whose token was lost with its reply is over soon.
const SOUGHT_TTL: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_and_a_change_of_voters_are_never_under_way_together() {
    let mut random = seed::generator("a_permit_and_a_change_of_voters_are_never_under_way_together");
    let Some(cluster) = Cluster::start(Plan::nodes(4).with_shards(5)).await else { return };
    let load = Load::start(LoadPlan::of_programs(), cluster.addresses(), &mut random);
    let stopped = Arc::new(AtomicBool::new(false));
    let admins: Vec<Admin> = (0..4).map(|node| cluster.admin(node)).collect();
    let seeker = tokio::spawn(seek_permits(admins, stopped.clone()));
    let mut order = [0, 1, 2, 3];
    order.shuffle(&mut random);
    for node in &order[..2] {
        let via = (node + 1) % 4;
        cluster.drain_to_the_end(via, *node).await;
        cluster.undrain(via, *node).await;
    }
    // Beside the permits of the seeker.
    cluster.wait_settled(0).await;
    stopped.store(true, Ordering::Relaxed);
    let answers = seeker.await.expect("the seeker does not panic");
    load.must_progress(50).await;
    load.finish().await.without_errors();
    let journal = cluster.order(0, "the journal", async |admin: Admin| admin.journal().await).await;
    let locked = journal::locked(&journal).unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{locked:?}; answers: {answers:?}");
    let Locked { permits, changes } = locked;
    assert!(permits > 1 && changes > 1, "{locked:?}: neither was in the other's way");
}

/// Asks for permits again and again, and gives them back. How often each answer was given.
async fn seek_permits(admins: Vec<Admin>, stopped: Arc<AtomicBool>) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    let mut ticks = interval(SEEK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for (number, admin) in (0..admins.len()).zip(&admins).cycle() {
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        ticks.tick().await;
        let Ok(answer) = admin.permit(&format!("n{}", number + 1), SOUGHT_TTL).await else { continue };
        let said =
            answer.objections.first().map_or("granted", |objection| objection.reason.as_str()).to_owned();
        *answers.entry(said).or_default() += 1;
        if answer.granted {
            ticks.tick().await;
            // What is not given back expires.
            admin.release(&answer.token).await.ok();
        }
    }
    answers
}
