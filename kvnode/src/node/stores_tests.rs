//! What a node does when a database, or both, or a part of one is lost.

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use clap::Parser;
use kv_proto::disk::v1::ReplicaDescriptor;
use kv_topology::{ReplicaId, ShardId};
use openraft::{
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};
use openraft_rt_tokio::TokioRuntime;
use rand::{SeedableRng, rngs::StdRng};

use super::{
    memory::MemoryPlan,
    stores::{Stores, StoresError},
};
use crate::{
    config::{ByteCount, Config, Flags, validate},
    data_dir::DataDir,
    group::type_config::TokioConfig,
    log::{
        LogDevice,
        codec::{Entry, LeaderId, LogId},
        device::Write,
        keys::{self, Place},
        recovery,
    },
    runtime::Tasks,
    state::hub::MachineOptions,
    state_machine::raft::AlwaysDurable,
};

/// Purged up to entry 4, its state on disk up to 9.
const CUT: u64 = 11;
/// Never purged.
const WHOLE: u64 = 12;
/// Told to be hosted, and nothing more.
const EMPTY: u64 = 13;

fn config(path: &Path) -> Config {
    let flags = ["kvnode", "--node-name", "n1", "--ballast", "0", "--data-dir"];
    let flags = Flags::parse_from(flags.into_iter().map(Into::into).chain([path.as_os_str().to_owned()]));
    validate(&flags, ByteCount(1 << 30)).expect("a valid configuration")
}

async fn open(path: &Path) -> Result<(Stores, DataDir, Tasks), StoresError> {
    let config = config(path);
    let dir = DataDir::open(path, &config.node_name, &mut StdRng::seed_from_u64(1)).expect("a data folder");
    let tasks = Tasks::new("node");
    let fatal = Arc::new(|reason: &str| panic!("{reason}"));
    Ok((
        Stores::open(
            &dir,
            &config,
            &MemoryPlan::of(config.memory),
            &tasks.spawner(),
            fatal,
            &crate::metrics::LogMetrics::default(),
        )
        .await?,
        dir,
        tasks,
    ))
}

fn log_id(index: u64) -> LogId {
    LogId::new(LeaderId { term: 1, node_id: 1 }, index)
}

async fn append(stores: &Stores, id: u64) {
    let mut log = stores.log.replica::<TokioRuntime>(ReplicaId(id)).expect("a log");
    let (sender, flushed) = TokioConfig::oneshot();
    let entries = (0..10).map(|index| Entry::new_blank(log_id(index)));
    log.append(entries, IOFlushed::signal(sender)).await.expect("appended");
    flushed.await.expect("told").expect("durable");
}

async fn apply(stores: &Stores, id: u64) {
    use openraft::storage::RaftStateMachine;
    let options =
        MachineOptions { durability: AlwaysDurable, retention: Arc::new(|| None), meta_observer: None };
    let mut machine = stores.state.machine(ReplicaId(id), ShardId(1), options).expect("a machine");
    let entries = (0..10).map(|index| Ok((Entry::new_blank(log_id(index)), None)));
    RaftStateMachine::<TokioConfig>::apply(&mut machine, futures::stream::iter(entries))
        .await
        .expect("applied");
}

/// A data folder with three replicas, as an orderly stop leaves it.
async fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let (stores, _dir, tasks) = open(folder.path()).await.expect("opened");
    for id in [CUT, WHOLE, EMPTY] {
        let replica = ReplicaDescriptor { replica_id: id, shard_id: 1, group_id: 1, ..Default::default() };
        stores.host(replica).await.expect("kept");
    }
    for id in [CUT, WHOLE] {
        append(&stores, id).await;
        apply(&stores, id).await;
    }
    stores.state.flush().await.expect("flushed");
    let mut cut = stores.log.replica::<TokioRuntime>(ReplicaId(CUT)).expect("a log");
    cut.purge(log_id(4)).await.expect("purged");
    stores.close().await.expect("closed");
    drop((cut, stores));
    tasks.shutdown().await;
    folder
}

/// Opens it, and says which replicas are quarantined and why.
async fn quarantined(path: &Path) -> Vec<(u64, String)> {
    let (stores, _dir, tasks) = open(path).await.expect("opened");
    let found = stores.quarantined().into_iter();
    let found = found.map(|replica| (replica.replica_id, replica.quarantine_reason)).collect();
    stores.close().await.expect("closed");
    drop(stores);
    tasks.shutdown().await;
    found
}

fn ids(quarantined: &[(u64, String)]) -> Vec<u64> {
    quarantined.iter().map(|(id, _)| *id).collect()
}

fn garble_state(state: &Path) {
    fs::write(state.join("db/CURRENT"), "no manifest").expect("written");
}

fn garble_log(raftlog: &Path) {
    for segment in fs::read_dir(raftlog.join("segments")).expect("segments") {
        fs::write(segment.expect("a segment").path(), "no segment").expect("written");
    }
}

#[tokio::test]
async fn a_sound_folder_loses_nothing() {
    let folder = filled().await;
    assert_eq!(quarantined(folder.path()).await, []);
}

#[tokio::test]
async fn with_the_log_all_replicas_are_lost_whatever_is_left_of_it() {
    for harm in [garble_log, |log: &Path| fs::remove_dir_all(log).expect("removed")] {
        let folder = filled().await;
        harm(&folder.path().join("raftlog"));
        let lost = quarantined(folder.path()).await;
        assert_eq!(ids(&lost), [CUT, WHOLE, EMPTY]);
        assert!(lost.iter().all(|(_, reason)| reason.contains("its Raft log")), "{lost:?}");
        assert_eq!(quarantined(folder.path()).await, lost, "for ever");
    }
}

#[tokio::test]
async fn a_log_whose_descriptors_cannot_be_read_is_lost() {
    let folder = filled().await;
    let raftlog = folder.path().join("raftlog");
    let device = recovery::open(&raftlog).expect("sound").device;
    let garbage = Write::Put(keys::encode(ReplicaId(CUT), Place::Descriptor), Bytes::from_static(b"garbage"));
    device.write(&[garbage], true).expect("written");
    drop(device);
    assert_eq!(ids(&quarantined(folder.path()).await), [CUT, WHOLE, EMPTY]);
    assert!(folder.path().join("raftlog.damaged-1/segments").exists());
}

#[tokio::test]
async fn a_lost_state_comes_back_from_a_log_that_is_whole_and_only_from_there() {
    let folder = filled().await;
    garble_state(&folder.path().join("state"));
    let lost = quarantined(folder.path()).await;
    assert_eq!(ids(&lost), [CUT, EMPTY]);
    assert!(lost.iter().all(|(_, reason)| reason.contains("its state was lost")), "{lost:?}");
    assert!(folder.path().join("set-aside-1/state/db").exists());
    assert_eq!(quarantined(folder.path()).await, lost, "for ever");
}

#[tokio::test]
async fn with_both_databases_all_replicas_are_lost() {
    let folder = filled().await;
    garble_log(&folder.path().join("raftlog"));
    garble_state(&folder.path().join("state"));
    assert_eq!(ids(&quarantined(folder.path()).await), [CUT, WHOLE, EMPTY]);
}

#[tokio::test]
async fn a_lost_list_is_made_again_from_the_log_and_is_needed_without_one() {
    let folder = filled().await;
    let list = folder.path().join("CLUSTER");
    fs::write(&list, "garbage").expect("written");
    assert_eq!(quarantined(folder.path()).await, []);
    fs::remove_dir_all(folder.path().join("raftlog")).expect("removed");
    assert_eq!(ids(&quarantined(folder.path()).await), [CUT, WHOLE, EMPTY]);

    let folder = filled().await;
    fs::write(folder.path().join("CLUSTER"), "garbage").expect("written");
    garble_log(&folder.path().join("raftlog"));
    let refused = open(folder.path()).await.map(drop).expect_err("nobody knows which replicas were there");
    assert!(matches!(refused, StoresError::LostTrack(_)), "{refused}");
}

/// What is left of a replica: its descriptor, its place in the list, its state.
fn traces(stores: &Stores, id: u64) -> (bool, bool, bool) {
    let replica = ReplicaId(id);
    (
        stores.log.descriptor(replica).is_some(),
        stores.kept.hosted().iter().any(|hosted| hosted.replica_id == id),
        stores.state.replicas_on_disk().expect("readable").contains(&replica),
    )
}

#[tokio::test]
async fn a_removal_that_was_cut_off_goes_on_at_the_next_start_and_leaves_nothing() {
    for done in 0..=3 {
        let folder = filled().await;
        let (stores, dir, tasks) = open(folder.path()).await.expect("opened");
        assert_eq!(traces(&stores, CUT), (true, true, true));
        assert!(stores.condemn(ReplicaId(CUT)).await.expect("noted"));
        if done >= 1 {
            stores.state.remove_replicas(vec![ReplicaId(CUT)]).await.expect("removed");
        }
        if done >= 2 {
            stores.kept.forget_hosted(&[ReplicaId(CUT)]).expect("forgotten");
        }
        if done >= 3 {
            stores.log.remove_replica(ReplicaId(CUT)).await.expect("removed");
        }
        stores.close().await.expect("closed");
        drop((stores, dir));
        tasks.shutdown().await;

        let (stores, dir, tasks) = open(folder.path()).await.expect("opened");
        let left = if done < 3 { vec![ReplicaId(CUT)] } else { Vec::new() };
        assert_eq!(stores.condemned(), left, "after step {done}");
        assert_eq!(stores.quarantined(), [], "what is removed is not lost: after step {done}");
        stores.erase(left).await.expect("erased");
        assert_eq!(traces(&stores, CUT), (false, false, false), "after step {done}");
        stores.close().await.expect("closed");
        drop((stores, dir));
        tasks.shutdown().await;

        let (stores, dir, tasks) = open(folder.path()).await.expect("opened");
        assert_eq!(traces(&stores, CUT), (false, false, false), "it stays so: after step {done}");
        assert_eq!((stores.condemned(), stores.quarantined()), (Vec::new(), Vec::new()));
        assert_eq!(traces(&stores, WHOLE), (true, true, true), "others are left alone");
        assert!(!stores.condemn(ReplicaId(CUT)).await.expect("there is none"));
        stores.close().await.expect("closed");
        drop((stores, dir));
        tasks.shutdown().await;
    }
}

#[tokio::test]
async fn a_condemned_replica_is_not_lost_with_the_state() {
    let folder = filled().await;
    let (stores, dir, tasks) = open(folder.path()).await.expect("opened");
    assert!(stores.condemn(ReplicaId(CUT)).await.expect("noted"));
    stores.close().await.expect("closed");
    drop((stores, dir));
    tasks.shutdown().await;
    garble_state(&folder.path().join("state"));
    assert_eq!(ids(&quarantined(folder.path()).await), [EMPTY]);
}
