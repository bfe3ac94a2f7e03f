//! A log and a state machine in memory, and snapshots of the latter in chunks.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::RangeBounds,
    sync::{Arc, Mutex},
};

use bytes::{Buf, BufMut, Bytes};
use futures::{Stream, TryStreamExt};
use kv_proto::peer::v1::{SnapshotChunk, SnapshotEnd};
use kv_topology::{Generation, ReplicaId};
use kvnode::{
    group::type_config::{Applied, Proposal, TokioConfig},
    transport::{SnapshotIn, SnapshotInFactory, SnapshotOut, codec},
};
use openraft::{
    EntryPayload, OptionalSend, RaftLogReader, RaftSnapshotBuilder,
    alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf},
    entry::RaftEntry,
    storage::{
        EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftStateMachine, Snapshot, SnapshotMeta,
    },
};
use tokio::sync::mpsc;

type C = TokioConfig;

#[derive(Default)]
struct LogData {
    entries: BTreeMap<u64, EntryOf<C>>,
    purged: Option<LogIdOf<C>>,
    vote: Option<VoteOf<C>>,
    /// While held, appends are accepted and never reported as flushed.
    held: Option<Vec<IOFlushed<C>>>,
}

/// A log that is durable at once, unless it is held.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<LogData>>);

impl Log {
    /// Reports no flush from now on.
    pub fn hold(&self) {
        self.0.lock().unwrap().held = Some(vec![]);
    }
}

impl RaftLogReader<C> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<EntryOf<C>>, io::Error> {
        Ok(self.0.lock().unwrap().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<C>>, io::Error> {
        Ok(self.0.lock().unwrap().vote)
    }
}

impl RaftLogStorage<C> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<C>, io::Error> {
        let data = self.0.lock().unwrap();
        let last = data.entries.values().last().map(|entry| entry.log_id()).or(data.purged);
        Ok(LogState { last_purged_log_id: data.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<C>) -> Result<(), io::Error> {
        self.0.lock().unwrap().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<C>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<C>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut data = self.0.lock().unwrap();
        data.entries.extend(entries.into_iter().map(|entry| (entry.log_id().index, entry)));
        match &mut data.held {
            Some(held) => held.push(flushed),
            None => flushed.io_completed(Ok(())),
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        self.0.lock().unwrap().entries.split_off(&last.map_or(0, |id| id.index + 1));
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<C>) -> Result<(), io::Error> {
        let mut data = self.0.lock().unwrap();
        data.entries = data.entries.split_off(&(upto.index + 1));
        data.purged = Some(upto);
        Ok(())
    }
}

/// All proposals, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub last: Option<LogIdOf<C>>,
    pub membership: StoredMembershipOf<C>,
    pub proposals: Vec<Bytes>,
}

#[derive(Clone, Default)]
pub struct Machine(Arc<Mutex<State>>);

impl Machine {
    pub fn state(&self) -> State {
        self.0.lock().unwrap().clone()
    }

    fn snapshot(&self) -> SnapshotOf<C, State> {
        let state = self.state();
        Snapshot { meta: meta(&state), snapshot: state }
    }
}

fn meta(state: &State) -> SnapshotMetaOf<C> {
    SnapshotMeta { last_log_id: state.last, last_membership: state.membership.clone() }
}

impl RaftSnapshotBuilder<C> for Machine {
    type SnapshotData = State;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<C, State>, io::Error> {
        Ok(self.snapshot())
    }
}

impl RaftStateMachine<C> for Machine {
    type SnapshotData = State;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogIdOf<C>>, StoredMembershipOf<C>), io::Error> {
        let state = self.state();
        Ok((state.last, state.membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<C>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = self.0.lock().unwrap();
            state.last = Some(entry.log_id());
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(Proposal(bytes)) => state.proposals.push(bytes),
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembershipOf::<C>::new(state.last, membership);
                }
            }
            drop(state);
            if let Some(responder) = responder {
                responder.send(Applied::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, _: &SnapshotMetaOf<C>, snapshot: State) -> Result<(), io::Error> {
        *self.0.lock().unwrap() = snapshot;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<C, State>>, io::Error> {
        Ok(Some(self.snapshot()))
    }
}

/// Sends a state in chunks of 64 KiB over files of 300 KiB, and counts what becomes of transfers.
#[derive(Clone, Default)]
pub struct Snapshots(Arc<Mutex<Transfers>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    pub opened: usize,
    pub finished: usize,
    pub discarded: usize,
}

const CHUNK_BYTES: usize = 64 * 1024;
const FILE_BYTES: u64 = 300 * 1024;

impl Snapshots {
    pub fn transfers(&self) -> Transfers {
        *self.0.lock().unwrap()
    }
}

impl SnapshotOut for Snapshots {
    type Data = State;

    fn stream(&self, data: State, _: ReplicaId, _: Generation) -> mpsc::Receiver<io::Result<SnapshotChunk>> {
        let mut bytes = vec![];
        for proposal in &data.proposals {
            bytes.put_u32(u32::try_from(proposal.len()).unwrap());
            bytes.put_slice(proposal);
        }
        let mut bytes = Bytes::from(bytes);
        let (send, receive) = mpsc::channel(2);
        let (mut file, mut offset) = (0, 0);
        tokio::spawn(async move {
            loop {
                let data_of_chunk = bytes.split_to(CHUNK_BYTES.min(bytes.len()));
                let is_last = bytes.is_empty();
                let length = data_of_chunk.len() as u64;
                let end_of_file = is_last || offset + length >= FILE_BYTES;
                let end = is_last.then(|| codec::encode_end(data.last.as_ref(), &data.membership));
                let crc32c = crc32c::crc32c(&data_of_chunk);
                let chunk = SnapshotChunk { file, offset, data: data_of_chunk, crc32c, end_of_file, end };
                if send.send(Ok(chunk)).await.is_err() || is_last {
                    return;
                }
                (file, offset) = if end_of_file { (file + 1, 0) } else { (file, offset + length) };
            }
        });
        receive
    }
}

impl SnapshotInFactory for Snapshots {
    type Data = State;
    type In = Stage;

    async fn open(&self, replica: ReplicaId) -> io::Result<(Generation, Stage)> {
        let mut transfers = self.0.lock().unwrap();
        transfers.opened += 1;
        let generation = Generation(replica.0 * 1000 + transfers.opened as u64);
        Ok((generation, Stage { transfers: self.clone(), bytes: vec![], end: None, finished: false }))
    }
}

pub struct Stage {
    transfers: Snapshots,
    bytes: Vec<u8>,
    end: Option<SnapshotEnd>,
    finished: bool,
}

impl SnapshotIn for Stage {
    type Data = State;

    async fn accept(&mut self, chunk: SnapshotChunk) -> io::Result<()> {
        if crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.bytes.extend_from_slice(&chunk.data);
        self.end = chunk.end;
        Ok(())
    }

    async fn finish(mut self) -> io::Result<(SnapshotEnd, State)> {
        self.finished = true;
        self.transfers.0.lock().unwrap().finished += 1;
        let end = self.end.take().ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let mut proposals = vec![];
        while bytes.has_remaining() {
            let length = bytes.get_u32() as usize;
            proposals.push(bytes.split_to(length));
        }
        let greatest =
            codec::Vote { leader_id: codec::LeaderId { term: u64::MAX, node_id: 0 }, committed: true };
        let (last, membership) = codec::decode_end(&end, &greatest).map_err(io::Error::other)?;
        Ok((end, State { last, membership, proposals }))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.finished {
            self.transfers.0.lock().unwrap().discarded += 1;
        }
    }
}
