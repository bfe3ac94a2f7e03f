//! What the transport asks of those who write and read snapshots, and the order that chunks must keep.
//!
//! The life of a transfer: the leader offers it on `bulk`; the receiver opens a sink, which names its new generation;
//! the sender writes its files for that replica and generation and sends them in chunks, a window of them ahead of the
//! acknowledgements; the last chunk says what the snapshot holds; the receiver finishes, hands it to its Raft, and
//! answers with its vote. Whoever gives up drops its end.

use std::{future::Future, io};

use kv_proto::peer::v1::{SnapshotChunk, SnapshotEnd};
use kv_topology::{Generation, ReplicaId};
use tokio::sync::mpsc;

/// Reads a snapshot of a local replica for another one.
pub trait SnapshotOut: Send + Sync + 'static {
    /// What openraft holds for a snapshot.
    type Data: Send + 'static;

    /// Begins to read: keys are written for the replica and generation that will hold them. The chunks carry their
    /// CRC32C; the last one carries what the snapshot holds. Dropping the receiver ends the reading.
    fn stream(
        &self,
        data: Self::Data,
        target: ReplicaId,
        generation: Generation,
    ) -> mpsc::Receiver<io::Result<SnapshotChunk>>;
}

/// Opens sinks for snapshots of local replicas.
pub trait SnapshotInFactory: Send + Sync + 'static {
    /// What openraft is given to install.
    type Data: Send + 'static;
    /// The sink.
    type In: SnapshotIn<Data = Self::Data>;

    /// Opens a sink for a snapshot of `replica`, under a generation of its own.
    fn open(&self, replica: ReplicaId) -> impl Future<Output = io::Result<(Generation, Self::In)>> + Send;
}

/// Stages the chunks of one snapshot. Dropping it discards them.
pub trait SnapshotIn: Send + 'static {
    /// What openraft is given to install.
    type Data: Send + 'static;

    /// Takes the next chunk, and checks its CRC32C. Chunks arrive in order, without gaps.
    fn accept(&mut self, chunk: SnapshotChunk) -> impl Future<Output = io::Result<()>> + Send;

    /// All chunks were accepted: verifies and syncs them, and tells what the snapshot holds.
    fn finish(self) -> impl Future<Output = io::Result<(SnapshotEnd, Self::Data)>> + Send;
}

/// For replicas that are given no snapshots and send none: every transfer fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSnapshots<D>(std::marker::PhantomData<fn() -> D>);

impl<D: Send + 'static> SnapshotOut for NoSnapshots<D> {
    type Data = D;

    fn stream(&self, _: D, _: ReplicaId, _: Generation) -> mpsc::Receiver<io::Result<SnapshotChunk>> {
        mpsc::channel(1).1
    }
}

impl<D: Send + 'static> SnapshotInFactory for NoSnapshots<D> {
    type Data = D;
    type In = NoSnapshots<D>;

    async fn open(&self, _: ReplicaId) -> io::Result<(Generation, Self)> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<D: Send + 'static> SnapshotIn for NoSnapshots<D> {
    type Data = D;

    async fn accept(&mut self, _: SnapshotChunk) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn finish(self) -> io::Result<(SnapshotEnd, D)> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Where the next chunk must begin.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    file: u32,
    offset: u64,
}

/// What a chunk is, seen from the position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Next,
    /// It was taken before.
    Repeated,
    Gap,
}

impl Position {
    /// Moves past a chunk if it is the next one.
    pub(super) fn advance(&mut self, chunk: &SnapshotChunk) -> Place {
        let at = (chunk.file, chunk.offset);
        if at < (self.file, self.offset) {
            return Place::Repeated;
        }
        if at > (self.file, self.offset) {
            return Place::Gap;
        }
        let next = match chunk.end_of_file {
            true => self.file.checked_add(1).map(|file| (file, 0)),
            false => self.offset.checked_add(chunk.data.len() as u64).map(|offset| (self.file, offset)),
        };
        match next {
            None => Place::Gap,
            Some((file, offset)) => {
                (self.file, self.offset) = (file, offset);
                Place::Next
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_one_another() {
        let chunk = |file, offset, bytes: usize, end_of_file| SnapshotChunk {
            file,
            offset,
            data: vec![0; bytes].into(),
            end_of_file,
            ..SnapshotChunk::default()
        };
        let mut position = Position::default();
        assert_eq!(position.advance(&chunk(0, 0, 10, false)), Place::Next);
        assert_eq!(position.advance(&chunk(0, 0, 10, false)), Place::Repeated);
        assert_eq!(position.advance(&chunk(0, 20, 10, false)), Place::Gap);
        assert_eq!(position.advance(&chunk(0, 10, 10, true)), Place::Next);
        assert_eq!(position.advance(&chunk(0, 20, 10, true)), Place::Repeated);
        assert_eq!(position.advance(&chunk(2, 0, 10, true)), Place::Gap);
        assert_eq!(position.advance(&chunk(1, 0, 0, true)), Place::Next);
        assert_eq!(position, Position { file: 2, offset: 0 });
    }
}
