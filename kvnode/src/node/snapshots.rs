//! Joins the state store's snapshots to the transport that carries them.

use std::{io, sync::Arc};

use kv_proto::peer::v1::{SnapshotChunk, SnapshotEnd};
use kv_topology::{Generation, ReplicaId};
use tokio::sync::mpsc;

use super::points::Points;
use crate::{
    runtime::Spawner,
    state::{
        hub::StateHub,
        snapshot::{SnapshotData, SnapshotStage},
    },
    transport::{SnapshotIn, SnapshotInFactory, SnapshotOut},
};

/// Chunks between the reader of the state and the stream: the stream's window bounds the rest.
const CHUNKS_AHEAD: usize = 2;

/// Reads snapshots that go out.
pub struct Outgoing {
    /// Owns the task that holds a snapshot while it is sent.
    pub spawner: Spawner,
}

impl SnapshotOut for Outgoing {
    type Data = SnapshotData;

    fn stream(
        &self,
        data: SnapshotData,
        target: ReplicaId,
        generation: Generation,
    ) -> mpsc::Receiver<io::Result<SnapshotChunk>> {
        let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
        self.spawner.spawn("outgoing snapshot", async move {
            if let Err(error) = send(&data, target, generation, &chunks).await {
                // Nobody listens any more when this fails.
                chunks.send(Err(error)).await.ok();
            }
            // While it is held, the log that follows the snapshot is kept.
            chunks.closed().await;
            drop(data);
        });
        stream
    }
}

async fn send(
    data: &SnapshotData,
    target: ReplicaId,
    generation: Generation,
    chunks: &mpsc::Sender<io::Result<SnapshotChunk>>,
) -> io::Result<()> {
    let SnapshotData::OnDemand(source) = data else {
        return Err(io::Error::other("a received snapshot is not sent on"));
    };
    let mut read = source.stream(target, generation)?;
    while let Some(chunk) = read.recv().await {
        if chunks.send(chunk).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Makes room for snapshots that come in.
pub struct Incoming {
    /// Where they are staged.
    pub state: Arc<StateHub>,
    /// Told what is there.
    pub points: Points,
}

impl SnapshotInFactory for Incoming {
    type Data = SnapshotData;
    type In = Staging;

    async fn open(&self, replica: ReplicaId) -> io::Result<(Generation, Staging)> {
        let stage = self.state.stage_snapshot(replica)?;
        Ok((stage.generation(), Staging { stage, points: self.points.clone() }))
    }
}

/// One snapshot that comes in.
pub struct Staging {
    stage: SnapshotStage,
    points: Points,
}

impl SnapshotIn for Staging {
    type Data = SnapshotData;

    async fn accept(&mut self, chunk: SnapshotChunk) -> io::Result<()> {
        Ok(self.stage.accept(chunk).await?)
    }

    async fn finish(self) -> io::Result<(SnapshotEnd, SnapshotData)> {
        let staged = self.stage.finish()?;
        (self.points)("received-snapshot");
        Ok((staged.end.clone(), SnapshotData::Staged(staged)))
    }
}
