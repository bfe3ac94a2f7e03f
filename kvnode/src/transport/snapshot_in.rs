//! The receiving side of a snapshot.

use std::{io, sync::Arc, time::Duration};

use kv_proto::peer::v1::{
    SnapshotAccept, SnapshotChunk, SnapshotChunkAck, SnapshotEnd, frame::Body, refusal,
};
use kv_topology::{Generation, ReplicaId};
use openraft::{
    Raft,
    storage::{RaftStateMachine, Snapshot, SnapshotMeta},
};
use openraft_rt::AsyncRuntime;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};

use super::{
    answers::Reply,
    codec::{Vote, decode_end, encode_done},
    snapshot::{Place, Position, SnapshotIn, SnapshotInFactory},
};
use crate::group::type_config::TypeConfig;

/// An offered snapshot.
pub(super) struct Transfer {
    pub(super) offer: Reply,
    /// The connection holds the sending end: it ends when the sender gives up or the connection breaks.
    pub(super) chunks: mpsc::Receiver<(Reply, SnapshotChunk)>,
    pub(super) idle: Duration,
    /// The place among those that the node receives at once.
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) received_bytes: Counter,
}

/// Receives a snapshot and hands it to the replica's Raft.
pub(super) async fn receive<RT, SM, F>(
    replica: ReplicaId,
    raft: Raft<TypeConfig<RT>, SM>,
    factory: Arc<F>,
    vote: Vote,
    mut transfer: Transfer,
) where
    RT: AsyncRuntime,
    SM: RaftStateMachine<TypeConfig<RT>>,
    F: SnapshotInFactory<Data = SM::SnapshotData>,
{
    let (generation, mut sink) = match factory.open(replica).await {
        Ok(opened) => opened,
        Err(error) => {
            return transfer.offer.refuse(refusal::Kind::NotApplied, "SNAPSHOT_SINK", error.to_string());
        }
    };
    let Generation(number) = generation;
    tracing::info!(replica = replica.0, generation = number, "receiving a snapshot");
    transfer.offer.send(Body::SnapshotAccept(SnapshotAccept { generation: number }));
    let Some(last) = collect(&mut sink, &mut transfer.chunks, transfer.idle, &transfer.received_bytes).await
    else {
        tracing::info!(replica = replica.0, generation = number, "snapshot given up");
        return;
    };
    let finished = sink.finish().await.and_then(|(end, data)| Ok((checked(&end, &vote)?, data)));
    let (meta, data) = match finished {
        Ok(finished) => finished,
        Err(error) => {
            tracing::warn!(replica = replica.0, generation = number, %error, "snapshot refused");
            return last.refuse(refusal::Kind::NotApplied, "SNAPSHOT_INVALID", error.to_string());
        }
    };
    match raft.install_full_snapshot(vote, Snapshot { meta, snapshot: data }).await {
        Ok(response) => last.send(Body::SnapshotDone(encode_done(&response.vote))),
        Err(fatal) => last.refuse(refusal::Kind::NotApplied, "REPLICA_STOPPED", fatal.to_string()),
    }
    drop(transfer.permit);
}

/// Takes chunks until the last one, whose reply it returns. `None`: the transfer was given up.
async fn collect(
    sink: &mut impl SnapshotIn,
    chunks: &mut mpsc::Receiver<(Reply, SnapshotChunk)>,
    idle: Duration,
    received_bytes: &Counter,
) -> Option<Reply> {
    let mut position = Position::default();
    loop {
        let (reply, chunk) = timeout(idle, chunks.recv()).await.ok()??;
        let ack = SnapshotChunkAck { file: chunk.file, offset: chunk.offset };
        let is_last = chunk.end.is_some();
        match position.advance(&chunk) {
            Place::Repeated => continue,
            Place::Gap => {
                reply.refuse(
                    refusal::Kind::InvalidArgument,
                    "SNAPSHOT_GAP",
                    "chunks do not follow one another",
                );
                return None;
            }
            Place::Next => {}
        }
        received_bytes.inc_by(chunk.data.len() as u64);
        if let Err(error) = sink.accept(chunk).await {
            tracing::warn!(%error, "snapshot refused");
            reply.refuse(refusal::Kind::NotApplied, "SNAPSHOT_SINK", error.to_string());
            return None;
        }
        if is_last {
            return Some(reply);
        }
        reply.send(Body::SnapshotChunkAck(ack));
    }
}

type Meta = SnapshotMeta<super::codec::LeaderId, u64, crate::group::type_config::Member>;

/// What openraft would panic on is refused here.
fn checked(end: &SnapshotEnd, vote: &Vote) -> io::Result<Meta> {
    let (last_log_id, last_membership) =
        decode_end(end, vote).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}
