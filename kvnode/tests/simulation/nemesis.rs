//! Whoever makes things go wrong: crashes of one or all nodes, some aimed at what is not on disk yet; isolation and
//! one-way cuts; loss, repetition and delay; slow disks; leaders sent away. Compaction needs no help: logs are small.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use kv_proto::peer::v1::{TransferLeader, control_request::Request};
use kv_topology::NodeId;
use kvnode::router::Replicas;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    clients::Book,
    oracles::{Oracles, WATCH_EVERY},
    weather::{Conditions, Moment},
    world::{SHARD, World, replica_of},
};

/// Faults between two periods of calm.
const FAULTS_PER_STORM: u64 = 12;
/// After this everything works again: an election, a snapshot, the longest pause between two dials.
const CALM_SETTLE: Duration = Duration::from_secs(12);
/// In this, something must be written.
const CALM_PROBE: Duration = Duration::from_secs(6);
/// Longest pause between two faults, ms.
const PAUSE_MS: u64 = 3_000;

/// After a moment that was aimed at, ms: what was said has arrived by then, and a slow disk has not synced yet.
const STRUCK_WITHIN_MS: u64 = 12;
/// Longest time that a voter is down who is to come back to the old leader, ms: less than an election takes.
const BETRAYER_DOWN_MS: u64 = 50;
/// How long a candidate that has won is alone, ms, at most: the old leader connects to the voter again, and commits.
const USURPER_ALONE_MS: u64 = 2_500;
/// Longest sync in trouble, ms.
const STORM_SYNC_MS: u64 = 10;

/// Makes trouble for so long, with periods of calm in which the group must work.
pub async fn rage(
    world: &Arc<World>,
    book: &Arc<Mutex<Book>>,
    aimed: &mut mpsc::UnboundedReceiver<Moment>,
    length: Duration,
) {
    let raging = async {
        loop {
            {
                let mut now = world.conditions.lock().unwrap();
                (now.aim, now.sync_ms) = (true, STORM_SYNC_MS);
            }
            for _ in 0..FAULTS_PER_STORM {
                let pause = world.dice.millis(100, PAUSE_MS);
                // Moments are taken as they come; the time-out is the pause.
                timeout(pause, take_aim(world, aimed)).await.ok();
                strike(world);
            }
            calm(world);
            sleep(CALM_SETTLE).await;
            let before = book.lock().unwrap().acknowledged_writes;
            sleep(CALM_PROBE).await;
            if book.lock().unwrap().acknowledged_writes == before {
                world.violated(format!("liveness: no write in {} s of calm", CALM_PROBE.as_secs()));
            }
        }
    };
    timeout(length, raging).await.ok();
    calm(world);
}

/// Looks at the world all the time.
pub async fn watch(world: Arc<World>, oracles: Arc<Mutex<Oracles>>) {
    loop {
        sleep(WATCH_EVERY).await;
        oracles.lock().unwrap().look(&world);
    }
}

/// Ends all faults, and starts who is down.
fn calm(world: &Arc<World>) {
    world.event(format_args!("calm"));
    world.network.heal();
    *world.conditions.lock().unwrap() = Conditions::CALM;
    world.node_ids().into_iter().for_each(|node| world.start(node));
}

async fn take_aim(world: &Arc<World>, aimed: &mut mpsc::UnboundedReceiver<Moment>) {
    while let Some(moment) = aimed.recv().await {
        match moment {
            Moment::Voted(node) => {
                world.event(format_args!("{node} voted: power loss"));
                let after = world.dice.millis(0, STRUCK_WITHIN_MS);
                world.bounce(node, after);
            }
            Moment::Acknowledged(node) => {
                world.event(format_args!("{node} acknowledged: power loss"));
                let all = world.dice.below(2) == 0;
                let after = world.dice.millis(0, STRUCK_WITHIN_MS);
                let struck = world.node_ids().into_iter().filter(|other| all || *other == node);
                struck.for_each(|node| world.bounce(node, after));
            }
            Moment::Granted { voter, candidate, heard_after } => {
                let deserted = world.conditions.lock().unwrap().deserted.take();
                if let Some(leader) = deserted.filter(|leader| ![voter, candidate].contains(leader)) {
                    drop(tokio::spawn(betray(world.clone(), leader, voter, candidate, heard_after)));
                }
            }
        }
    }
    // Nobody aims any more.
    std::future::pending::<()>().await;
}

fn strike(world: &Arc<World>) {
    let (one, other) = (world.any_node(), world.any_node());
    match world.dice.below(14) {
        0 | 1 => world.bounce(one, Duration::ZERO),
        2 => world.node_ids().into_iter().for_each(|node| world.bounce(node, world.dice.millis(0, 20))),
        3 => {
            world.event(format_args!("isolate {one}"));
            world.network.isolate(one);
        }
        4 | 5 if one != other => {
            world.event(format_args!("cut {one}>{other}"));
            world.network.cut(one, other);
        }
        6 => {
            let mut now = world.conditions.lock().unwrap();
            now.loss = world.dice.below(150);
            now.repeated = world.dice.below(200);
            now.flight_ms = 1 + world.dice.below(40);
            now.late = world.dice.below(40);
        }
        7 | 8 => {
            let mut now = world.conditions.lock().unwrap();
            now.sync_ms = 1 + world.dice.below(30);
            now.slow_disk = (world.dice.below(2) == 0).then_some(one);
        }
        9 => {
            world.event(format_args!("sever {one}"));
            world.network.sever(|way| way.from == one || way.to == one);
        }
        10 => transfer(world.clone()),
        11 | 12 => desert(world),
        _ => {
            world.event(format_args!("heal"));
            world.network.heal();
        }
    }
}

/// Cuts the leader off: the next vote is the moment to [`betray`].
fn desert(world: &Arc<World>) {
    let Some(leader) = world.leader() else { return };
    world.event(format_args!("desert {leader}"));
    world.network.isolate(leader);
    world.conditions.lock().unwrap().deserted = Some(leader);
}

/// A vote that its voter forgets: power loss as soon as the candidate has heard of it, and then the voter is back with
/// the old leader, while the candidate, which has won by that vote, hears nobody and is not heard. If the voter has
/// forgotten, the two commit what the new leader overwrites when it is back.
async fn betray(world: Arc<World>, leader: NodeId, voter: NodeId, candidate: NodeId, heard_after: Duration) {
    sleep(heard_after).await;
    world.event(format_args!("{voter} voted for {candidate}: power loss, and back to {leader}"));
    world.crash(voter);
    world.network.heal();
    for other in world.node_ids().into_iter().filter(|node| *node != candidate) {
        world.network.cut(candidate, other);
        world.network.cut(other, candidate);
    }
    sleep(world.dice.millis(0, BETRAYER_DOWN_MS)).await;
    world.start(voter);
    sleep(world.dice.millis(USURPER_ALONE_MS / 2, USURPER_ALONE_MS)).await;
    world.network.heal();
}

/// Asks every node to give the leadership to one of them; who leads may do so.
#[allow(clippy::needless_pass_by_value, reason = "like its siblings")]
fn transfer(world: Arc<World>) {
    let to = world.any_node();
    world.event(format_args!("transfer to {to}"));
    for node in world.node_ids() {
        let Some(replica) = world.running(node).and_then(|running| running.replicas.replica(SHARD)) else {
            continue;
        };
        if replica.control.leader() != Some(node) {
            continue;
        }
        let request = TransferLeader { group_id: replica.group.get(), to_replica: replica_of(to).get() };
        let world = world.clone();
        drop(tokio::spawn(async move { world.control(node, Request::TransferLeader(request)).await }));
    }
}
