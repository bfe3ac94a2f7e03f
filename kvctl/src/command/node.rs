//! `kvctl node`: what nodes there are, and what may be wished of them.

mod drain;
mod empty;
mod label;
mod list;
mod permit;
mod remove;

use anyhow::Result;
use clap::{Args, Subcommand};
use kv_client::admin::{ClusterStatus, HandOverRequest, NodeState, Phase, UndrainNodeRequest};
use serde_json::{Value as Json, json};

use crate::{
    actor::{self, Because},
    context::Context,
    exit::Exit,
    named::{met, unmet},
    output::{self, Format},
};

pub use list::{json_of, table};

/// Nodes. Each is called by its name or its id.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Names, addresses, state, what each leads and holds, and how far it lags
    #[command(alias = "ls")]
    List,
    Drain(drain::Drain),
    Undrain(Undrain),
    Remove(remove::Remove),
    Permit(permit::Permit),
    HandOver(HandOver),
    Label(label::Label),
}

impl Node {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        match self {
            Self::List => list::run(context).await,
            Self::Drain(drain) => drain.run(context).await,
            Self::Undrain(undrain) => undrain.run(context).await,
            Self::Remove(remove) => remove.run(context).await,
            Self::Permit(permit) => permit.run(context).await,
            Self::HandOver(hand_over) => hand_over.run(context).await,
            Self::Label(label) => label.run(context).await,
        }
    }
}

/// Cancels a drain, also half way: what has moved stays where it is until the balance says otherwise.
#[derive(Debug, Args)]
pub struct Undrain {
    /// The node, by name or id
    node: String,
    #[command(flatten)]
    because: Because,
}

impl Undrain {
    async fn run(self, context: &Context) -> Result<Exit> {
        let request =
            UndrainNodeRequest { node: self.node.clone(), actor: actor::name(), reason: self.because.reason };
        let reply = context.client.undrain_node(request).await?;
        let state = state_name(reply.state());
        let text = format!("{} is {state}", met(&self.node, reply.node_id));
        done(context, &text, &json!({ "node": reply.node_id, "state": state }))
    }
}

/// Lets a node with a permit give its leaderships away before it is stopped; returns when they are gone.
///
/// The node takes none until its permit is over: it is about to be restarted, and says that it is not ready.
#[derive(Debug, Args)]
pub struct HandOver {
    /// The node, by name or id
    node: String,
    /// What `kvctl node permit` printed
    #[arg(long, value_name = "TOKEN")]
    permit: String,
}

impl HandOver {
    async fn run(self, context: &Context) -> Result<Exit> {
        let request = HandOverRequest { node: self.node.clone(), permit_token: self.permit };
        context.client.hand_over(request).await?;
        let text = format!("{} leads nothing any more: restart it now", unmet(&self.node));
        done(context, &text, &json!({ "handed_over": true }))
    }
}

/// Says that something is done.
pub fn done(context: &Context, text: &str, document: &Json) -> Result<Exit> {
    match context.format {
        Format::Table => output::line(text)?,
        Format::Json => output::json(document)?,
    }
    Ok(Exit::Ok)
}

/// What a person reads of a phase.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "unknown",
        Phase::Empty => "empty",
        Phase::Starting => "starting",
        Phase::Joining => "joining",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
        Phase::Failed => "failed",
        Phase::Recovering => "recovering",
    }
}

/// What a person reads of a state.
pub fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified => "unknown",
        NodeState::Joining => "joining",
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Drained => "drained",
        NodeState::Lost => "lost",
        NodeState::Removed => "removed",
    }
}

/// The name of a node, or its id where the registry does not know it.
pub fn name_of(status: &ClusterStatus, node: u64) -> String {
    let infos = status.nodes.iter().filter_map(|view| view.info.as_ref());
    match infos.into_iter().find(|info| info.node_id == node) {
        Some(info) => info.name.clone(),
        None => format!("#{node}"),
    }
}
