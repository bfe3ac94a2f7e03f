//! One file for each command.

pub mod batch_get;
pub mod bench;
pub mod bulk;
pub mod cluster;
pub mod completion;
pub mod delete;
pub mod delete_range;
pub mod dev;
pub mod download;
pub mod get;
pub mod node;
pub mod progress;
pub mod put;
pub mod read;
pub mod recover;
pub mod scan;
pub mod shard;
pub mod shell;
pub mod status;
pub mod txn;
pub mod upload;
pub mod why;
pub mod write;

use anyhow::Result;

use crate::{cli::Command, context::Context, exit::Exit};

impl Command {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        match self {
            Self::Put(put) => put.run(context).await,
            Self::Get(get) => get.run(context).await,
            Self::Delete(delete) => delete.run(context).await,
            Self::Scan(scan) => scan.run(context).await,
            Self::BatchGet(batch_get) => batch_get.run(context).await,
            Self::Bulk(bulk) => bulk.run(context).await,
            Self::Txn(txn) => txn.run(context).await,
            Self::DeleteRange(delete_range) => delete_range.run(context).await,
            Self::Upload(upload) => upload.run(context).await,
            Self::Download(download) => download.run(context).await,
            Self::Shell(shell) => Box::pin(shell.run(context)).await,
            Self::Status(status) => status.run(context).await,
            Self::Shard(shard) => shard.run(context).await,
            Self::Node(node) => node.run(context).await,
            Self::Cluster(cluster) => cluster.run(context).await,
            Self::Why(why) => why.run(context).await,
            Self::Recover(recover) => recover.run(context).await,
            Self::Bench(bench) => bench.run(context).await,
            Self::Completion(completion) => completion.run(),
            Self::Dev(dev) => dev.run().await,
        }
    }
}
