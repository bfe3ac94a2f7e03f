//! What openraft sees of a replica's state: [`StateMachine`] and its [`SnapshotBuilder`].
//!
//! Entries go to the apply thread in chunks, each only after the log holds it durably: a flush of the store that
//! beat the log's sync would leave a state ahead of its log. Snapshots are not stored: what is offered to a
//! follower is read when it is sent, and "building" one means waiting until the state is on disk and saying up to
//! which entry, so that openraft purges the log up to there and no further.

use std::{
    fmt,
    future::Future,
    io,
    sync::{Arc, PoisonError},
};

use futures::{FutureExt, Stream, TryStreamExt};
use kv_proto::disk::v1;
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf},
    storage::{EntryResponder, RaftStateMachine, Snapshot},
};
use openraft_rt::AsyncRuntime;
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::{
    apply::ApplyError,
    record,
    replica::{Payload, ReadyEntry, Replica},
    worker::{Answer, Job, MetaObserver},
};
use crate::{
    group::type_config::{Applied, TypeConfig},
    log::codec,
    state::{
        StateError,
        engine::with_view,
        hub::{MachineOptions, ReplicaShared, Retention, Shared},
        keys,
        snapshot::{SnapshotData, SnapshotSource, StagedSnapshot},
    },
};

/// Entries that are handed to the apply thread at once, bytes; at least one entry.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Entries that are handed to the apply thread at once. Bounds their responders.
const CHUNK_ENTRIES_MAX: usize = 1_024;
/// Memberships remembered for snapshots that are held back: each lower bound than the oldest reports nothing new.
const MEMBERSHIPS_MAX: usize = 16;

/// Knows what of a replica's log is durable.
pub trait Durability: Send + Sync + 'static {
    /// Waits until the entry at `index` and all before it are on disk.
    ///
    /// # Errors
    /// The log failed or stops.
    fn wait_durable(&self, index: u64) -> impl Future<Output = io::Result<()>> + Send;
}

/// A log whose entries are durable before they are handed to apply: for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysDurable;

impl Durability for AlwaysDurable {
    async fn wait_durable(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A replica's state, as openraft drives it.
pub struct StateMachine<D> {
    shared: Arc<Shared>,
    replica: Arc<ReplicaShared>,
    jobs: mpsc::Sender<Job>,
    durability: D,
    retention: Retention,
    observer: Option<MetaObserver>,
    /// Dropped with it: who waits for its end is told.
    _here: oneshot::Sender<()>,
}

impl<D> fmt::Debug for StateMachine<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "state machine of {}", self.replica.id)
    }
}

/// Entries on their way to the apply thread.
#[derive(Default)]
struct Chunk {
    entries: Vec<(ReadyEntry, Option<Answer>)>,
    bytes: usize,
}

impl Chunk {
    fn push<RT: AsyncRuntime>(&mut self, (entry, responder): EntryResponder<TypeConfig<RT>>) {
        let payload = match entry.payload {
            EntryPayload::Blank => Payload::Blank,
            EntryPayload::Normal(proposal) => Payload::Proposal(proposal.0),
            EntryPayload::Membership(membership) => {
                Payload::Membership(codec::membership_to_disk(&membership))
            }
        };
        let entry = ReadyEntry { id: codec::log_id_to_disk(&entry.log_id), payload };
        let answer = responder
            .map(|responder| -> Answer { Box::new(move |outcomes| responder.send(Applied(outcomes))) });
        self.bytes += entry.bytes();
        self.entries.push((entry, answer));
    }

    fn is_full(&self) -> bool {
        self.bytes >= CHUNK_BYTES_MAX || self.entries.len() >= CHUNK_ENTRIES_MAX
    }
}

impl<D: Durability> StateMachine<D> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        replica: Arc<ReplicaShared>,
        jobs: mpsc::Sender<Job>,
        options: MachineOptions<D>,
        here: oneshot::Sender<()>,
    ) -> Self {
        let MachineOptions { durability, retention, meta_observer: observer } = options;
        Self { shared, replica, jobs, durability, retention, observer, _here: here }
    }

    /// Waits for the log, then for the apply thread.
    async fn submit(&self, chunk: Chunk) -> io::Result<()> {
        let Some((last, _)) = chunk.entries.last() else { return Ok(()) };
        self.durability.wait_durable(last.id.index).await?;
        let memberships: Vec<_> =
            chunk.entries.iter().filter_map(|(entry, _)| membership_of(entry)).collect();
        let (done, result) = oneshot::channel();
        let job = Job {
            replica: self.replica.replica.clone(),
            id: self.replica.id,
            entries: chunk.entries,
            observer: self.observer.clone(),
            progress: self.replica.progress.clone(),
            done,
        };
        let ended = || io::Error::other("the apply thread has ended");
        self.jobs.send(job).await.map_err(|_| ended())?;
        result.await.map_err(|_| ended())?.map_err(|error| self.stopped(&error))?;
        self.remember(memberships);
        Ok(())
    }

    /// Tells the node why this replica stops.
    fn stopped(&self, error: &ApplyError) -> io::Error {
        if let ApplyError::State(error) = error {
            self.shared.hooks.tell(error);
        }
        tracing::error!(replica = self.replica.id.0, shard = self.replica.shard.0, %error, "replica stops applying");
        io::Error::other(error.clone())
    }

    fn remember(&self, memberships: Vec<v1::StoredMembership>) {
        let mut known = self.replica.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(memberships);
        let excess = known.len().saturating_sub(MEMBERSHIPS_MAX);
        known.drain(..excess);
    }

    fn builder(&self) -> SnapshotBuilder {
        SnapshotBuilder {
            shared: self.shared.clone(),
            replica: self.replica.clone(),
            retention: self.retention.clone(),
        }
    }

    async fn install(&self, meta: &record::SnapshotMeta, staged: StagedSnapshot) -> io::Result<()> {
        let announced = meta.last_log_id.as_ref().map(codec::log_id_to_disk);
        if staged.replica != self.replica.id || staged.end.last_log_id != announced {
            return Err(StateError::BadSnapshot("it is not the one that was announced".to_owned()).into());
        }
        if staged.generation <= self.replica.lock().scope().generation {
            return Err(StateError::BadSnapshot("a later one was installed before it".to_owned()).into());
        }
        let (engine, id, shard) = (self.shared.engine.clone(), self.replica.id, self.replica.shard);
        let heads = self.shared.heads.clone();
        let work = move || {
            let generation = staged.generation;
            staged.install(engine.as_ref())?;
            let loaded = with_view(engine.as_ref(), |view| Replica::load(view, id, shard))?.with_heads(heads);
            // Views that are open still see them.
            engine.delete_range(keys::generations(id, kv_topology::Generation(1), generation))?;
            Ok::<Replica, StateError>(loaded)
        };
        let loaded = self.shared.workers.blocking("install a snapshot", work).await?;
        let loaded = loaded.inspect_err(|error| self.shared.hooks.tell(error))?;
        self.remember(loaded.record().membership.iter().cloned().collect());
        let (meta, applied) = (loaded.meta().cloned(), loaded.record().applied);
        self.replica.progress.tell_all(&loaded);
        *self.replica.lock() = loaded;
        if let (Some(observer), Some(meta)) = (&self.observer, meta) {
            observer(meta);
        }
        if let Some(applied) = applied {
            self.replica.progress.advance(applied.index);
        }
        Ok(())
    }
}

fn membership_of(entry: &ReadyEntry) -> Option<v1::StoredMembership> {
    match &entry.payload {
        Payload::Membership(membership) => {
            Some(v1::StoredMembership { log_id: Some(entry.id), membership: Some(membership.clone()) })
        }
        Payload::Blank | Payload::Proposal(_) => None,
    }
}

fn invalid(error: codec::CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<RT: AsyncRuntime, D: Durability> RaftStateMachine<TypeConfig<RT>> for StateMachine<D> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<TypeConfig<RT>>>, StoredMembershipOf<TypeConfig<RT>>), io::Error> {
        let state = self.replica.lock().record().clone();
        let membership = record::stored_membership(state.membership.as_ref()).map_err(invalid)?;
        Ok((state.applied.as_ref().map(codec::log_id_from_disk), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig<RT>>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.try_next().await? {
            let mut chunk = Chunk::default();
            chunk.push::<RT>(first);
            while !chunk.is_full() {
                // Only what is ready: waiting for more would hold back the first.
                match entries.try_next().now_or_never() {
                    Some(next) => match next? {
                        Some(entry) => chunk.push::<RT>(entry),
                        None => break,
                    },
                    None => break,
                }
            }
            self.submit(chunk).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.builder()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig<RT>>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        match snapshot {
            SnapshotData::Staged(staged) => self.install(meta, staged).await,
            SnapshotData::OnDemand(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "a snapshot of our own is not installed"))
            }
        }
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig<RT>, SnapshotData>>, io::Error> {
        let builder = self.builder();
        let Some(record) = builder.persisted().await? else { return Ok(None) };
        let held = builder.replica.sending.hold(record.applied);
        let meta =
            record::snapshot_meta(record.applied.as_ref(), record.membership.as_ref()).map_err(invalid)?;
        Ok(Some(Snapshot { meta, snapshot: builder.source(held) }))
    }
}

/// Says up to which entry the log may be purged.
pub struct SnapshotBuilder {
    shared: Arc<Shared>,
    replica: Arc<ReplicaShared>,
    retention: Retention,
}

impl fmt::Debug for SnapshotBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "snapshot builder of {}", self.replica.id)
    }
}

impl SnapshotBuilder {
    /// The replica's record as a crash would leave it. Never the one in memory: it may be ahead.
    async fn persisted(&self) -> io::Result<Option<v1::ReplicaRecord>> {
        let (engine, id) = (self.shared.engine.clone(), self.replica.id);
        let name = keys::replica_record(id);
        let bytes =
            self.shared.workers.blocking("read what is on disk", move || engine.get_persisted(&name)).await?;
        let bytes = bytes.inspect_err(|error| self.shared.hooks.tell(error))?;
        let record = bytes.map(v1::ReplicaRecord::decode).transpose();
        record.map_err(|error| {
            let damage = StateError::damage(id, format!("the replica's record: {error}"));
            self.shared.hooks.tell(&damage);
            damage.into()
        })
    }

    fn source(&self, held: crate::state::snapshot::source::Held) -> SnapshotData {
        SnapshotData::OnDemand(SnapshotSource {
            engine: self.shared.engine.clone(),
            workers: self.shared.workers.clone(),
            limit: self.shared.outgoing.clone(),
            replica: self.replica.id,
            hooks: self.shared.hooks.clone(),
            _held: held,
        })
    }

    /// The membership of the entry at `id`: the newest that is not after it. `None`: it is not remembered.
    fn membership_at(&self, id: &v1::LogId) -> Option<v1::StoredMembership> {
        let known = self.replica.memberships.lock().unwrap_or_else(PoisonError::into_inner);
        let not_after = |stored: &&v1::StoredMembership| stored.log_id.is_none_or(|at| at.index <= id.index);
        known.iter().rev().find(not_after).cloned()
    }

    /// The least of what is on disk and of the bounds, with its membership. None: nothing may be purged.
    fn bounded(&self, record: v1::ReplicaRecord) -> Option<(v1::LogId, v1::StoredMembership)> {
        let persisted = record.applied?;
        let bounds = [(self.retention)(), self.replica.sending.lowest()];
        let least = bounds
            .into_iter()
            .flatten()
            .fold(persisted, |least, bound| if bound.index < least.index { bound } else { least });
        let stored = record.membership.unwrap_or_default();
        if stored.log_id.is_none_or(|at| at.index <= least.index) {
            return Some((least, stored));
        }
        self.membership_at(&least).map(|membership| (least, membership))
    }
}

impl<RT: AsyncRuntime> RaftSnapshotBuilder<TypeConfig<RT>> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig<RT>, SnapshotData>, io::Error> {
        self.shared.flushes.wait_flushed().await?;
        let record = self.persisted().await?;
        let meta = match record.and_then(|record| self.bounded(record)) {
            Some((id, membership)) => record::snapshot_meta(Some(&id), Some(&membership)).map_err(invalid)?,
            // No entry: openraft keeps what it has.
            None => record::SnapshotMeta::default(),
        };
        let held = self.replica.sending.hold(None);
        Ok(Snapshot { meta, snapshot: self.source(held) })
    }
}
