//! What commands that read have in common: consistency, and which node answers.

use clap::Args;
use kv_client::{Consistency, ReadOptions};

/// How to read.
#[derive(Clone, Debug, Default, Args)]
pub struct Reading {
    /// Any replica may answer with what it has, which may be old
    #[arg(long)]
    stale: bool,
    /// Ask this node, by name or id; its address is looked up in the registry
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// The asked node answers from its own replica
    #[arg(long)]
    serve_at_node: bool,
}

impl Reading {
    /// The same as options of a read.
    pub fn options(&self) -> ReadOptions {
        let consistency = if self.stale { Consistency::STALE } else { Consistency::Linearizable };
        ReadOptions { consistency, serve_at_node: self.serve_at_node }
    }
}
