//! A disk under recovery: it is looked at, and rewritten as a whole.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kv_proto::{
    admin::v1::{
        GroupOfShard, InspectResponse, RecordOnDisk, ReplaceGroupRequest, ReplaceGroupResponse,
        ReplicaOnDisk, RewriteMeta, RewriteRequest, RewriteResponse,
    },
    disk::v1::{MetaCommand, MetaRecord, ReplicaDescriptor, meta_command::Command},
    kv::v1::ReadOptions,
    peer::v1::{ReadRequest, Refusal, ScanPage, read_request::Read, refusal::Kind},
};
use kv_topology::{ReplicaId, ShardId};
use tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use super::{
    inspect,
    on_disk::{self, OnDisk},
    order::{self, failed},
};
use crate::{
    log::hub::rewrite::Rewrite,
    meta::envelope,
    node::{
        hands::{meta_outcome, operation_of},
        map_feed::MapFeed,
        store::NodeStore,
        stores::Stores,
    },
    refusal,
    router::{Maps as _, store::Store},
    state::on_disk::Foreseen,
    state_machine::replica::ReadyEntry,
};

/// The node was not started with `--recovery`, or was.
const WRONG_MODE: &str = "WRONG_MODE";
/// The request is for another cluster than this disk's.
const OTHER_CLUSTER: &str = "OTHER_CLUSTER";
/// There is no such replica on this disk.
const REPLICA_NOT_HERE: &str = "REPLICA_NOT_HERE";
/// The group has a leader: it is not to be replaced.
const GROUP_IS_ALIVE: &str = "GROUP_IS_ALIVE";

/// A group that answers nothing for so long has no leader: several elections.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// What is left after that for the decision, at least: meta may be electing.
const DECISION: Duration = Duration::from_secs(2);
/// Who asks waits less long than it takes to see that a group has no leader.
const DEADLINE_TOO_SHORT: &str = "DEADLINE_TOO_SHORT";

/// Who this node is: the answer to Inspect without replicas and record.
pub type Head = Box<dyn Fn() -> InspectResponse + Send + Sync>;

/// A disk, and what of its node can be asked.
pub struct Site {
    /// Who this node is.
    pub head: Head,
    /// Log and state.
    pub stores: Arc<Stores>,
    /// What the node last heard of its cluster.
    pub maps: Arc<MapFeed>,
    /// The cluster, of a running node.
    pub store: Arc<NodeStore>,
    /// One rewriting at a time.
    pub writing: Mutex<()>,
}

/// What meta came to.
struct Decided {
    record: Arc<MetaRecord>,
    /// `None`: it is on disk already.
    rewrite: Option<Rewrite>,
}

impl Site {
    /// What is on the disk.
    pub async fn inspect(&self) -> InspectResponse {
        let mut replicas = Vec::new();
        let mut meta: Option<OnDisk> = None;
        for descriptor in self.stores.log.descriptors() {
            let is_out = !descriptor.quarantine_reason.is_empty() || descriptor.removed;
            if is_out && (descriptor.replaced_by_group_id == 0 || descriptor.removed) {
                replicas.push(inspect::unread(&descriptor, ""));
                continue;
            }
            match on_disk::read(&self.stores.log, &self.stores.state, descriptor.clone()).await {
                Ok(found) => {
                    replicas.push(inspect::replica(&found));
                    if descriptor.shard_id == 0 && !is_out {
                        meta = Some(found);
                    }
                }
                Err(error) => replicas.push(inspect::unread(&descriptor, &error.to_string())),
            }
        }
        replicas.sort_by_key(|replica: &ReplicaOnDisk| (replica.shard_id, replica.replica_id));
        let (record, settled) = self.records(meta).await;
        InspectResponse { replicas, record: Some(record), settled, ..(self.head)() }
    }

    /// The newest that this node knows: what its own replica of meta comes to, or what it heard. And what of that is surely
    /// decided, when it is not the same.
    async fn records(&self, meta: Option<OnDisk>) -> (RecordOnDisk, Option<RecordOnDisk>) {
        let (kept, heard) = (self.stores.kept.meta(), self.maps.meta());
        let heard = if heard.epoch > kept.epoch { heard } else { Arc::new(kept) };
        let only_heard = || (inspect::record(&heard, false), None);
        let Some(meta) = meta else { return only_heard() };
        let foreseen = async {
            let whole = self.foresee(&meta, &[]).await?.record;
            Ok::<_, Refusal>((whole, self.surely(&meta).await?.record))
        };
        match foreseen.await {
            // A replica that was put there and never had anything knows less than the node.
            Ok((whole, _)) if whole.epoch == 0 => only_heard(),
            Ok((whole, surely)) => {
                let decided = if heard.epoch > surely.epoch { &heard } else { &surely };
                let differs = !meta.is_alone() && *decided != whole;
                let settled = differs.then(|| inspect::record(decided, false));
                (inspect::record(&whole, true), settled)
            }
            Err(refused) => {
                tracing::error!(reason = refused.reason, message = refused.message, "meta cannot be read");
                only_heard()
            }
        }
    }

    /// The state of meta with all of its log applied, and then these entries.
    async fn foresee(&self, meta: &OnDisk, rewrite: &[&Rewrite]) -> Result<Foreseen, Refusal> {
        let mut entries = on_disk::unapplied(&self.stores.log, meta).await.map_err(internal)?;
        let appended = rewrite.iter().flat_map(|rewrite| rewrite.entries.iter().cloned());
        entries.extend(appended.map(on_disk::ready_entry));
        self.applied(meta, entries).await
    }

    /// The state of meta as far as its replica knew it to be committed.
    async fn surely(&self, meta: &OnDisk) -> Result<Foreseen, Refusal> {
        let mut entries = on_disk::unapplied(&self.stores.log, meta).await.map_err(internal)?;
        entries.retain(|entry| meta.committed.is_some_and(|committed| entry.id.index <= committed.index));
        self.applied(meta, entries).await
    }

    async fn applied(&self, meta: &OnDisk, entries: Vec<ReadyEntry>) -> Result<Foreseen, Refusal> {
        let (state, id) = (self.stores.state.clone(), meta.id());
        let foreseen =
            self.stores.state.blocking("foresee meta", move || state.foresee_meta(id, &entries)).await;
        foreseen.map_err(internal)?.map_err(internal)
    }

    /// Rewrites what was asked for, all of it or nothing.
    ///
    /// # Errors
    /// Why nothing was written; or, as `INTERNAL`, what failed after that.
    pub async fn rewrite(&self, request: RewriteRequest) -> Result<RewriteResponse, Refusal> {
        let head = (self.head)();
        if !head.recovering {
            return Err(failed(WRONG_MODE, "this node runs: stop it, and start it with --recovery"));
        }
        check_cluster(&head, &request.cluster_id)?;
        if !head.fenced.is_empty() {
            return Err(failed(order::REPLICA_UNFIT, format!("this folder is fenced: {}", head.fenced)));
        }
        let _one_at_a_time = self.writing.lock().await;
        let envelope = |command| envelope::command(&*request.actor, &*request.reason, command);
        let decided = match &request.meta {
            Some(order) => Some(self.decide(order, head.node_id, &envelope).await?),
            None => None,
        };
        let groups = self.groups(&request, decided.as_ref().map(|decided| &*decided.record))?;
        let of = |shard: u32| groups.get(&shard).copied().unwrap_or_default();
        let mut rewrites = Vec::new();
        for order in &request.replicas {
            let found = self.read(order.replica_id, order.shard_id).await?;
            rewrites.extend(order::replica(order, &found, head.node_id, of(order.shard_id))?);
        }
        for order in &request.fences {
            let descriptor = self.descriptor(order.replica_id, order.shard_id)?;
            rewrites.extend(order::fence(order, &descriptor, of(order.shard_id))?);
        }
        let (record, of_meta) =
            decided.map_or((None, None), |decided| (Some(decided.record), decided.rewrite));
        rewrites.extend(of_meta);
        for rewrite in &rewrites {
            let ReplicaDescriptor { replica_id: replica, shard_id: shard, group_id: group, .. } =
                rewrite.descriptor;
            let entries = rewrite.entries.len();
            tracing::warn!(replica, shard, group, entries, "a replica is rewritten");
        }
        self.stores.log.rewrite(rewrites).await.map_err(internal)?;
        self.keep(record.as_deref()).await?;
        let groups = groups.into_iter().map(|(shard_id, group_id)| GroupOfShard { shard_id, group_id });
        Ok(RewriteResponse { groups: groups.collect(), epoch: record.map_or(0, |record| record.epoch) })
    }

    /// Lets meta decide, here and now, in its own log.
    async fn decide(
        &self,
        order: &RewriteMeta,
        node_id: u64,
        envelope: &(dyn Fn(Command) -> MetaCommand + Sync),
    ) -> Result<Decided, Refusal> {
        let found = self.read(order.replica_id, 0).await?;
        let before = self.foresee(&found, &[]).await?.record;
        let made = order::meta(order, &found, node_id, &|command| envelope(command))?;
        let Foreseen { record, outcomes } = self.foresee(&found, &[&made.rewrite]).await?;
        order::check_outcomes(outcomes.last().map_or(&[][..], Vec::as_slice), made.required)?;
        let group_id = record.shards.iter().find(|shard| shard.shard_id == 0).map(|shard| shard.group_id);
        let group_id =
            group_id.ok_or_else(|| failed(order::REPLICA_UNFIT, "meta never had a record here"))?;
        if made.was_alone && record.epoch == before.epoch {
            return Ok(Decided { record: before, rewrite: None });
        }
        if made.was_alone {
            order::check_end(&found, order.last.as_ref())?;
        }
        let descriptor = ReplicaDescriptor { group_id, ..made.rewrite.descriptor.clone() };
        Ok(Decided { record, rewrite: Some(Rewrite { descriptor, ..made.rewrite }) })
    }

    /// The group of each shard that a request is about: as it says, or as meta decided in the same request.
    fn groups(
        &self,
        request: &RewriteRequest,
        decided: Option<&MetaRecord>,
    ) -> Result<BTreeMap<u32, u64>, Refusal> {
        let in_record = |shard: u32| {
            let known = decided.and_then(|record| record.shards.iter().find(|known| known.shard_id == shard));
            known.map(|known| known.group_id)
        };
        let of_replicas = request.replicas.iter().map(|order| (order.shard_id, order.new_group_id));
        let of_fences = request.fences.iter().map(|order| (order.shard_id, order.new_group_id));
        let of_meta = request.meta.iter().flat_map(|meta| &meta.replace).map(|order| (order.shard_id, 0));
        let meta = request.meta.iter().map(|_| (0, 0));
        let mut groups = BTreeMap::new();
        for (shard, given) in of_replicas.chain(of_fences).chain(of_meta).chain(meta) {
            let group = if given == 0 { in_record(shard) } else { Some(given) };
            let group = group.ok_or_else(|| {
                failed(
                    order::GROUP_IS_ANOTHER,
                    format!("nobody has said in which group shard {shard} goes on"),
                )
            })?;
            groups.insert(shard, group);
        }
        Ok(groups)
    }

    fn descriptor(&self, replica: u64, shard: u32) -> Result<ReplicaDescriptor, Refusal> {
        let known = self.stores.log.descriptor(ReplicaId(replica)).filter(|known| known.shard_id == shard);
        known.ok_or_else(|| {
            failed(REPLICA_NOT_HERE, format!("this disk has no replica {replica} of shard {shard}"))
        })
    }

    async fn read(&self, replica: u64, shard: u32) -> Result<OnDisk, Refusal> {
        let descriptor = self.descriptor(replica, shard)?;
        let read = on_disk::read(&self.stores.log, &self.stores.state, descriptor).await;
        read.map_err(|error| failed(order::REPLICA_UNFIT, format!("replica {replica}: {error}")))
    }

    /// Outside the log too, so that the next start knows it before meta has said anything. What a crash leaves out here
    /// comes from the log.
    async fn keep(&self, record: Option<&MetaRecord>) -> Result<(), Refusal> {
        let (kept, record) = (self.stores.kept.clone(), record.cloned());
        let descriptors = self.stores.log.descriptors();
        let keeping = spawn_blocking(move || {
            descriptors.iter().try_for_each(|descriptor| kept.keep_hosted(descriptor))?;
            record.map_or(Ok(()), |record| kept.keep_meta(record))
        });
        keeping.await.map_err(internal)?.map_err(internal)
    }

    /// Lets meta decide that a data shard goes on with one survivor, where meta works.
    ///
    /// # Errors
    /// Why it was not decided.
    pub async fn replace_group(
        &self,
        request: ReplaceGroupRequest,
        deadline: Instant,
    ) -> Result<ReplaceGroupResponse, Refusal> {
        let head = (self.head)();
        if head.recovering {
            return Err(failed(
                WRONG_MODE,
                "this node was started with --recovery, and does not speak to meta",
            ));
        }
        check_cluster(&head, &request.cluster_id)?;
        let ReplaceGroupRequest { replace, actor, reason, .. } = request;
        let replace = replace.map(|replace| order::replacement(&replace)).unwrap_or_default();
        let shard = ShardId(replace.shard_id);
        if shard.is_meta() {
            return Err(failed(
                order::GROUP_IS_ANOTHER,
                "meta cannot decide on itself: it is recovered offline",
            ));
        }
        // Cut short, a group that elects would pass for one without a leader.
        if deadline < Instant::now() + SIGN_OF_LIFE + DECISION {
            let message =
                format!("give it longer than {:?}: that is how long it may take", SIGN_OF_LIFE + DECISION);
            return Err(failed(DEADLINE_TOO_SHORT, message));
        }
        if self.is_alive(shard).await {
            let message = format!("shard {shard} has a leader, and serves");
            return Err(failed(GROUP_IS_ALIVE, message));
        }
        let command = envelope::command(actor, reason, Command::ReplaceGroup(replace));
        let written = self.store.write(ShardId::META, vec![operation_of(command)], deadline).await?;
        let epoch = meta_outcome(written)?.epoch;
        self.maps.refresh();
        let view = timeout_at(deadline, self.maps.registry.newer_than(epoch.saturating_sub(1))).await;
        let view =
            view.map_err(|_| refusal::outcome_unknown("decided, and this node has not heard of it yet"))?;
        let group = view.map.shards.get(&shard).map_or(0, |shard| shard.group.get());
        Ok(ReplaceGroupResponse { group_id: group, epoch: view.epoch() })
    }

    /// Whether anybody answers for the shard, linearizably.
    async fn is_alive(&self, shard: ShardId) -> bool {
        let page = ScanPage { limit: 1, max_bytes: 1, count_only: true, ..ScanPage::default() };
        let request = ReadRequest {
            shard_id: shard.get(),
            options: Some(ReadOptions::default()),
            read: Some(Read::Scan(page)),
            ..ReadRequest::default()
        };
        let asked = self.store.read(request, Instant::now() + SIGN_OF_LIFE);
        match timeout(SIGN_OF_LIFE, asked).await {
            Ok(Ok(_)) => true,
            Ok(Err(refused)) => is_sign_of_life(&refused),
            Err(_) => false,
        }
    }
}

/// Whether such a refusal comes from a group that works, or may: a group that is only busy must not be given up.
fn is_sign_of_life(refused: &Refusal) -> bool {
    match refused.kind() {
        // What waits here for a node that does not answer says nothing of it.
        Kind::ResourceExhausted => refused.reason != refusal::PEER_QUEUE_FULL,
        Kind::WrongShard | Kind::InvalidArgument | Kind::FailedPrecondition | Kind::NotFound => true,
        Kind::Unspecified
        | Kind::NotApplied
        | Kind::OutcomeUnknown
        | Kind::DeadlineExceeded
        | Kind::DataLoss
        | Kind::Internal => false,
    }
}

fn check_cluster(head: &InspectResponse, asked: &str) -> Result<(), Refusal> {
    if !asked.is_empty() && head.cluster_id == asked {
        return Ok(());
    }
    Err(failed(OTHER_CLUSTER, format!("this disk is of cluster {}, not of {asked}", head.cluster_id)))
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn internal(error: impl std::fmt::Display) -> Refusal {
    refusal::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_only_busy_is_alive() {
        let is_sign = |kind, reason: &str| is_sign_of_life(&refusal::of(kind, reason, "refused"));
        assert!(is_sign(Kind::ResourceExhausted, "SHARD_QUEUE_FULL"));
        assert!(!is_sign(Kind::ResourceExhausted, refusal::PEER_QUEUE_FULL), "that is this node");
        for none in [Kind::NotApplied, Kind::OutcomeUnknown, Kind::DeadlineExceeded, Kind::DataLoss] {
            assert!(!is_sign(none, ""), "{none:?}");
        }
    }
}
