//! `kvctl node remove`.

use anyhow::Result;
use clap::Args;
use kv_client::admin::RemoveNodeRequest;
use serde_json::json;

use super::done;
use crate::{
    actor::{self, Because},
    context::Context,
    exit::Exit,
    named::met,
};

/// Takes a node out of the cluster for good: one that is drained, or with --lost one that will not come back.
///
/// Should it be started again, it is told so, sets its data aside and joins as a new node.
#[derive(Debug, Args)]
pub struct Remove {
    /// The node, by name or id
    node: String,
    /// It will not come back: what it holds is rebuilt elsewhere. Refused while it answers
    #[arg(long)]
    lost: bool,
    /// Also when it has the only replica of a shard: the data of that shard are gone then
    #[arg(long, requires = "lost")]
    accept_data_loss: bool,
    #[command(flatten)]
    because: Because,
}

impl Remove {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let request = RemoveNodeRequest {
            node: self.node.clone(),
            lost: self.lost,
            accept_data_loss: self.accept_data_loss,
            actor: actor::name(),
            reason: self.because.reason,
        };
        let reply = context.client.remove_node(request).await?;
        let document = json!({ "node": reply.node_id, "state": "removed" });
        let exit = done(context, &format!("{} is removed", met(&self.node, reply.node_id)), &document)?;
        if self.lost {
            eprintln!("`kvctl status` shows what is being rebuilt");
        }
        Ok(exit)
    }
}
