//! `kvctl why`: the journal.

use std::collections::BTreeSet;

use anyhow::Result;
use clap::Args;
use kv_client::{
    Client,
    admin::{GetJournalRequest, JournalEntry, NodeInfo, NodeState},
};
use serde_json::json;

use crate::{
    command::shard,
    context::Context,
    exit::Exit,
    output::{self, Format},
    text, time,
};

/// Most entries that are asked for at once.
const PAGE_ENTRIES_MAX: u32 = 1_000;

/// What was done, when, by whom and why, on what evidence; the newest at the bottom.
#[derive(Debug, Args)]
pub struct Why {
    /// Only about this shard; `meta` or 0: the meta group
    #[arg(long, value_parser = shard::parse, conflicts_with = "node")]
    shard: Option<u32>,
    /// Only about this node, by name or id
    #[arg(long)]
    node: Option<String>,
    /// The newest so many; 0: all
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: u32,
}

impl Why {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let mut entries = self.newest(&context.client).await?;
        entries.reverse();
        match context.format {
            Format::Table => {
                table(&entries)?;
                // What was asked for is told already: who else does not answer is no failure.
                let nodes = context.client.nodes().await.unwrap_or_default();
                if let Some(legend) = legend(&entries, &nodes) {
                    eprintln!("{legend}");
                }
            }
            Format::Json => output::json(&entries.iter().map(document).collect())?,
        }
        Ok(Exit::Ok)
    }

    /// The newest first.
    async fn newest(&self, client: &Client) -> Result<Vec<JournalEntry>> {
        let mut entries: Vec<JournalEntry> = Vec::new();
        let mut before = 0;
        loop {
            let had = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            let left = if self.limit == 0 { PAGE_ENTRIES_MAX } else { self.limit.saturating_sub(had) };
            if left == 0 {
                return Ok(entries);
            }
            let page = client
                .journal(GetJournalRequest {
                    shard_id: self.shard,
                    node: self.node.clone().unwrap_or_default(),
                    limit: left.min(PAGE_ENTRIES_MAX),
                    before,
                })
                .await?;
            entries.extend(page.entries);
            // One that does not go back would be asked for for ever.
            if page.next_before == 0 || (before != 0 && page.next_before >= before) {
                return Ok(entries);
            }
            before = page.next_before;
        }
    }
}

fn table(entries: &[JournalEntry]) -> Result<()> {
    if entries.is_empty() {
        eprintln!("the journal has nothing about it");
        return Ok(());
    }
    let show = |text: &str| text::show(text.as_bytes());
    let row = |entry: &JournalEntry| {
        [time::utc(entry.unix_ms), show(&entry.actor), show(&entry.event), show(&entry.reason)]
    };
    output::table(["TIME", "WHO", "WHAT", "WHY"], entries.iter().map(row).collect())
}

/// Whose ids these are: the journal calls nodes by them, since names come again.
fn legend(entries: &[JournalEntry], nodes: &[NodeInfo]) -> Option<String> {
    let meant: BTreeSet<u64> = entries.iter().flat_map(|entry| entry.node_ids.iter().copied()).collect();
    let named = nodes.iter().filter(|node| meant.contains(&node.node_id)).map(|node| {
        let gone = if node.state() == NodeState::Removed { ", removed" } else { "" };
        format!("#{} is {}{gone}", node.node_id, node.name)
    });
    let named: Vec<String> = named.collect();
    (!named.is_empty()).then(|| named.join("; "))
}

fn document(entry: &JournalEntry) -> serde_json::Value {
    json!({
        "sequence": entry.sequence,
        "unix_ms": entry.unix_ms,
        "time": time::utc(entry.unix_ms),
        "epoch": entry.epoch,
        "actor": entry.actor,
        "event": entry.event,
        "reason": entry.reason,
        "shard": entry.shard_id,
        "nodes": entry.node_ids,
    })
}
