//! The majority of the disks is lost for good: the cluster goes on from what survived, and the lost disks stay out when they come
//! back.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use kv_cluster_tests::{
    Cluster, Plan,
    api::Read,
    binary::{self, Binary},
    status,
    wait::{DEADLINE, wait_until},
};
use kv_proto::{
    admin::v1::{NodeStatus, Phase, Role},
    kv::v1::key_value::Value,
};
use tokio::task::spawn_blocking;

const SHARDS: usize = 3;
/// Enough for some in every shard.
const KEYS: usize = 60;
/// The node whose disk survives, and those whose disks are lost.
const SURVIVOR: usize = 0;
const LOST: [usize; 2] = [1, 2];
/// What no shard gives out in the time of a test.
const REVISION_GAP: u64 = 1_000_000;

fn key(number: usize) -> String {
    format!("key/{number:03}")
}

/// A cluster of which one disk survived and was recovered, and the disks of the others.
struct Drill {
    cluster: Cluster,
    /// Of the others, as they were when all power was lost.
    aside: Vec<PathBuf>,
    /// That the cluster had before.
    old_groups: BTreeSet<u64>,
}

impl Drill {
    /// Three nodes with a load; the survivor misses the end of it; then two disks are gone, and the third one is recovered.
    /// `None`: there are no binaries.
    async fn recovered() -> Option<Self> {
        let kvctl = binary::find(Binary::Kvctl)?;
        let mut cluster = Cluster::start(Plan::nodes(3).with_shards(SHARDS)).await?;
        for number in 0..KEYS {
            cluster.put(number % 3, &key(number), format!("kept {number}")).await;
        }
        cluster.wait_caught_up().await;
        let old_groups = groups(&cluster.status(SURVIVOR).await);
        cluster.nodes[SURVIVOR].kill();
        for number in 0..KEYS / 2 {
            cluster.put(LOST[number % 2], &key(number), format!("lost {number}")).await;
        }
        cluster.put(LOST[0], "only-there", "lost").await;
        cluster.kill_all();
        let mut aside = Vec::new();
        for lost in LOST {
            let folder = cluster.nodes[lost].data_dir.clone();
            let copy = folder.with_extension("aside");
            copy_folder(&folder, &copy);
            cluster.nodes[lost].wipe();
            aside.push(copy);
        }
        let mut drill = Self { cluster, aside, old_groups };
        drill.recover(&kvctl).await;
        Some(drill)
    }

    async fn recover(&mut self, kvctl: &Path) {
        self.cluster.nodes[SURVIVOR].start_with(&["--recovery"]);
        let status = self
            .cluster
            .wait_status(SURVIVOR, "recovery", |status| status.phase() == Phase::Recovering)
            .await;
        assert!(!status.ready && status.replicas.is_empty(), "{status:?}");
        let address = self.cluster.nodes[SURVIVOR].ports.client_address().to_string();
        let all = ["recover", "all", "--nodes", &address, "--without", "n2", "--without", "n3"];
        let unsure = run(kvctl, &[&all[..], &["--yes", "another"]].concat()).await;
        assert!(!unsure.status.success(), "{unsure:?}");
        let sure = [&all[..], &["--yes", &status.cluster_id]].concat();
        for attempt in ["the first time", "again, as after a crash in between"] {
            let done = run(kvctl, &sure).await;
            assert!(done.status.success(), "{attempt}: {done:?}");
        }
        self.cluster.nodes[SURVIVOR].kill();
        self.cluster.nodes[SURVIVOR].start();
    }

    /// Waits until these nodes serve every shard with so many voters.
    async fn wait_whole(&self, nodes: &[usize], voters: usize) {
        let whole = wait_until(format!("a whole cluster of the nodes {nodes:?}"), DEADLINE, || async {
            let statuses = self.cluster.statuses_of(nodes).await;
            for status in statuses.iter().flatten() {
                assert!(self.of_old_groups(status).is_empty(), "it goes on in new groups: {status:?}");
            }
            status::is_whole(&statuses, SHARDS, voters)
        });
        whole.await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Replicas of groups that were given up, each with its role.
    fn of_old_groups(&self, status: &NodeStatus) -> Vec<(u64, Role)> {
        let old = status.replicas.iter().filter(|replica| self.old_groups.contains(&replica.group_id));
        old.map(|replica| (replica.group_id, replica.role())).collect()
    }

    /// Everything up to the last entry of the survivor is there, whichever node is asked, and nothing after it.
    async fn serves_what_survived(&self, nodes: &[usize]) {
        for node in nodes {
            for number in 0..KEYS {
                let found = self.value(*node, &key(number)).await;
                assert_eq!(found, Some(format!("kept {number}")), "{} at node {node}", key(number));
            }
            assert_eq!(self.value(*node, "only-there").await, None, "at node {node}");
        }
    }

    async fn value(&self, node: usize, key: &str) -> Option<String> {
        let got = self.cluster.get(node, key, Read::Linearizable).await;
        got.kv.and_then(|kv| match kv.value {
            Some(Value::Inline(bytes)) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            _ => None,
        })
    }

    /// The lost disks are found again.
    fn bring_back(&mut self) {
        for (lost, copy) in LOST.into_iter().zip(&self.aside) {
            let folder = self.cluster.nodes[lost].data_dir.clone();
            // A node may have tried to start there.
            fs::remove_dir_all(&folder).ok();
            fs::rename(copy, folder).expect("moved");
            self.cluster.nodes[lost].start();
        }
    }

    /// Waits until the lost nodes run and nothing of an old group is left on them. `may_have_run`: before they heard of it.
    async fn wait_out(&self, may_have_run: bool) {
        let out = wait_until("lost nodes without what they had", DEADLINE, || async {
            for status in self.cluster.statuses_of(&LOST).await {
                let status = status.ok_or_else(|| "one does not answer".to_owned())?;
                let old = self.of_old_groups(&status);
                let fenced = old.iter().all(|(_, role)| *role == Role::Quarantined);
                assert!(fenced || may_have_run, "something of the old groups takes part: {status:?}");
                if status.phase() != Phase::Running || !old.is_empty() {
                    return Err(format!("{status:?}"));
                }
            }
            Ok(())
        });
        out.await.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn groups(status: &NodeStatus) -> BTreeSet<u64> {
    status.replicas.iter().map(|replica| replica.group_id).collect()
}

async fn run(kvctl: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(kvctl);
    command.args(arguments);
    spawn_blocking(move || command.output()).await.expect("it does not panic").expect("kvctl starts")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_majority_is_given_up_and_stays_out_when_it_comes_back() {
    let Some(mut drill) = Drill::recovered().await else { return };
    drill.wait_whole(&[SURVIVOR], 1).await;
    drill.serves_what_survived(&[SURVIVOR]).await;
    let put = drill.cluster.put(SURVIVOR, &key(0), "new").await;
    assert!(put.mod_revision > REVISION_GAP, "no revision that was lost is given out again: {put:?}");
    drill.cluster.put(SURVIVOR, &key(0), "kept 0").await;

    // It grows back.
    let (fourth, fifth) = (drill.cluster.add_node(), drill.cluster.add_node());
    let nodes = [SURVIVOR, fourth, fifth];
    drill.wait_whole(&nodes, 3).await;
    drill.serves_what_survived(&nodes).await;

    // A majority of the old groups comes back. They ask before they start anything, and are told.
    drill.bring_back();
    drill.wait_out(false).await;
    for lost in LOST {
        let log = drill.cluster.nodes[lost].log_tail(400);
        assert!(log.contains("replica is fenced"), "{log}");
    }
    // What they are asked they answer as everybody else.
    drill.serves_what_survived(&LOST).await;
    drill.cluster.put(LOST[0], "after", "all").await;
    assert_eq!(drill.value(SURVIVOR, "after").await, Some("all".to_owned()));
    drill.wait_whole(&[SURVIVOR, LOST[0], LOST[1], fourth, fifth], 3).await;
}

/// Where a majority of the lost disks runs while nobody can tell it, it goes on as the cluster that it was: nothing can keep it from
/// that. It ends when it hears of the recovery.
#[tokio::test(flavor = "multi_thread")]
async fn majority_that_came_back_unnoticed_is_fenced_once_it_hears_of_the_recovery() {
    let Some(mut drill) = Drill::recovered().await else { return };
    drill.wait_whole(&[SURVIVOR], 1).await;
    drill.cluster.nodes[SURVIVOR].kill();
    drill.bring_back();
    drill.cluster.wait_leader(0, &LOST).await;
    drill.cluster.put(LOST[0], "unheard", "of").await;
    assert!(!drill.of_old_groups(&drill.cluster.status(LOST[0]).await).is_empty());

    drill.cluster.nodes[SURVIVOR].start();
    drill.wait_out(true).await;
    assert_eq!(drill.value(LOST[0], "unheard").await, None, "it was of a cluster that is over");
    drill.serves_what_survived(&[SURVIVOR, LOST[0], LOST[1]]).await;
    // And for good: it is on their disks.
    for lost in LOST {
        drill.cluster.nodes[lost].kill();
        drill.cluster.nodes[lost].start();
    }
    drill.wait_out(false).await;
}

/// Two nodes that have a data shard in common, and not meta.
fn pair_to_lose(hosted: &[BTreeSet<u32>]) -> Option<[usize; 2]> {
    let pairs = (0..hosted.len()).flat_map(|one| (0..one).map(move |other| [other, one]));
    pairs.into_iter().find(|[one, other]| {
        let common = &hosted[*one] & &hosted[*other];
        !common.is_empty() && !common.contains(&0)
    })
}

/// Shards have lost their quorum and meta has not: it decides where it runs, and the survivors are written after that.
#[tokio::test(flavor = "multi_thread")]
async fn shards_that_lost_their_quorum_go_on_while_meta_works() {
    let Some(kvctl) = binary::find(Binary::Kvctl) else { return };
    let Some(mut cluster) = Cluster::start(Plan::nodes(5).with_shards(6)).await else { return };
    for number in 0..KEYS {
        cluster.put(number % 5, &key(number), format!("kept {number}")).await;
    }
    cluster.wait_caught_up().await;
    let mut hosted = Vec::new();
    for node in 0..5 {
        let shards = cluster.status(node).await.replicas.into_iter().map(|replica| replica.shard_id);
        hosted.push(shards.collect::<BTreeSet<u32>>());
    }
    let lost = pair_to_lose(&hosted).unwrap_or_else(|| panic!("no such pair: {hosted:?}"));
    let of_lost = &hosted[lost[0]] & &hosted[lost[1]];
    for node in lost {
        cluster.nodes[node].kill();
        cluster.nodes[node].wipe();
    }

    let survivors = cluster.all_but(&lost);
    let addresses: Vec<String> =
        survivors.iter().map(|node| cluster.nodes[*node].ports.client_address().to_string()).collect();
    let (nodes, cluster_id) = (addresses.join(","), cluster.status(survivors[0]).await.cluster_id);
    let [one, other] = lost.map(|node| format!("n{}", node + 1));
    let recover =
        ["recover", "all", "--nodes", &nodes, "--without", &one, "--without", &other, "--yes", &cluster_id];
    let decided = run(&kvctl, &recover).await;
    let told = String::from_utf8_lossy(&decided.stdout).into_owned();
    assert!(decided.status.success() && told.contains("start it with --recovery"), "{decided:?}");
    for shard in &of_lost {
        assert!(told.contains(&format!("shard {shard}: decided, group ")), "{told}");
    }
    // Each survivor's node hears of it, and closes it out.
    for node in &survivors {
        let closed_out = |status: &NodeStatus| {
            let mut own = status.replicas.iter().filter(|replica| of_lost.contains(&replica.shard_id));
            own.all(|replica| replica.role() == Role::Quarantined)
        };
        cluster.wait_status(*node, "survivors that are closed out", closed_out).await;
    }
    for node in &survivors {
        cluster.nodes[*node].kill();
        cluster.nodes[*node].start_with(&["--recovery"]);
    }
    for node in &survivors {
        cluster.wait_status(*node, "recovery", |status| status.phase() == Phase::Recovering).await;
    }
    let written = run(&kvctl, &recover).await;
    assert!(written.status.success(), "{written:?}");
    for node in &survivors {
        cluster.nodes[*node].kill();
        cluster.nodes[*node].start();
    }
    for node in &survivors {
        for number in 0..KEYS {
            let got = cluster.get(*node, &key(number), Read::Linearizable).await;
            let found = got.kv.and_then(|kv| kv.value);
            assert_eq!(
                found,
                Some(Value::Inline(format!("kept {number}").into())),
                "{} at node {node}",
                key(number)
            );
        }
        cluster.put(*node, &key(0), "kept 0").await;
    }
}
