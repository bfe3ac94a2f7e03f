//! `kvctl scan`.

use anyhow::Result;
use clap::Args;
use kv_client::{KeyRange, ScanOptions};
use serde_json::json;

use crate::{
    command::read::Reading,
    context::Context,
    exit::Exit,
    output::{self, Format},
    text,
};

/// Which keys.
#[derive(Clone, Debug, Default, Args)]
pub struct Range {
    /// Keys that begin with this
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<String>,
    /// From this key on
    #[arg(long)]
    start: Option<String>,
    /// Up to this key, which is not included
    #[arg(long)]
    end: Option<String>,
}

impl Range {
    /// The same for the client.
    pub fn parse(&self, context: &Context) -> Result<KeyRange> {
        let key = |text: &Option<String>| context.key(text.as_deref().unwrap_or_default());
        if self.prefix.is_some() {
            return Ok(KeyRange::prefix(key(&self.prefix)?));
        }
        Ok(KeyRange::between(key(&self.start)?, key(&self.end)?))
    }
}

/// Lists keys and values in order; `-o json` prints one document a line.
#[derive(Debug, Args)]
pub struct Scan {
    #[command(flatten)]
    range: Range,
    /// At most this many keys; 0: all
    #[arg(long, default_value_t = 0)]
    limit: u64,
    /// From the greatest key to the least
    #[arg(long)]
    reverse: bool,
    /// Leave values out
    #[arg(long)]
    keys_only: bool,
    /// Print the number of keys only
    #[arg(long, conflicts_with_all = ["limit", "reverse", "keys_only"])]
    count: bool,
    #[command(flatten)]
    reading: Reading,
}

impl Scan {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let range = self.range.parse(context)?;
        let client = context.client_at(self.reading.node.as_deref()).await?;
        let read = self.reading.options();
        if self.count {
            let count = client.count(range, read).await?;
            match context.format {
                Format::Table => output::line(&count.to_string())?,
                Format::Json => output::line(&json!({ "count": count }).to_string())?,
            }
            return Ok(Exit::Ok);
        }
        let mut scan = client.scan(ScanOptions {
            limit: self.limit,
            keys_only: self.keys_only,
            reverse: self.reverse,
            read,
            ..range.into()
        });
        // Printed as pages come: a scan may be longer than memory.
        while let Some(page) = scan.next_page().await? {
            for kv in &page.kvs {
                match context.format {
                    Format::Json => output::line(&output::key_value(kv).to_string())?,
                    Format::Table if self.keys_only => output::line(&text::show(&kv.key))?,
                    Format::Table => {
                        output::line(&format!("{}\t{}", text::show(&kv.key), output::cell(&kv.value)))?;
                    }
                }
            }
        }
        Ok(Exit::Ok)
    }
}
