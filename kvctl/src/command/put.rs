//! `kvctl put`.

use std::{io::Read as _, path::PathBuf};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Args;
use serde_json::{Value as Json, json};

use crate::{
    command::write::{Conditions, explain},
    context::Context,
    exit::{Exit, usage},
    output::{self, Format},
};

/// Inline values have at most 1 MiB; larger ones are uploaded.
const MAX_VALUE_BYTES: u64 = 1024 * 1024;

/// Writes a key.
#[derive(Debug, Args)]
pub struct Put {
    /// The key
    key: String,
    /// The value
    #[arg(required_unless_present_any = ["file", "stdin"], conflicts_with_all = ["file", "stdin"])]
    value: Option<String>,
    /// Read the value from a file
    #[arg(long, value_name = "FILE", conflicts_with = "stdin")]
    file: Option<PathBuf>,
    /// Read the value from standard input
    #[arg(long)]
    stdin: bool,
    #[command(flatten)]
    conditions: Conditions,
    /// Print what was there before
    #[arg(long)]
    prev: bool,
}

impl Put {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let key = context.key(&self.key)?;
        let value = self.value()?;
        let reply = context.client.put_with(&key, value, self.conditions.options(self.prev)).await?;
        if context.format == Format::Json {
            output::json(&json!({
                "applied": reply.applied,
                "mod_revision": reply.mod_revision,
                "version": reply.version,
                "replayed": reply.replayed,
                "previous": reply.previous.as_ref().map_or(Json::Null, output::key_value),
                "header": output::header(&reply.header),
            }))?;
        }
        if !reply.applied {
            explain(&key, reply.previous.as_ref(), reply.replayed);
            return Ok(Exit::Precondition);
        }
        if context.format == Format::Table {
            output::line(&format!("ok, revision {}, version {}", reply.mod_revision, reply.version))?;
            if let Some(previous) = &reply.previous {
                output::line(&format!("was {}", output::cell(&previous.value)))?;
            }
        }
        Ok(Exit::Ok)
    }

    fn value(&self) -> Result<Bytes> {
        let mut bytes = Vec::new();
        match (&self.value, &self.file) {
            (Some(value), _) => return Ok(Bytes::copy_from_slice(value.as_bytes())),
            (None, Some(path)) => {
                let subject = || format!("cannot read {}", path.display());
                let file = std::fs::File::open(path).with_context(subject)?;
                file.take(MAX_VALUE_BYTES + 1).read_to_end(&mut bytes).with_context(subject)?;
            }
            (None, None) => {
                let input = std::io::stdin().lock();
                input
                    .take(MAX_VALUE_BYTES + 1)
                    .read_to_end(&mut bytes)
                    .context("cannot read standard input")?;
            }
        }
        if bytes.len() as u64 > MAX_VALUE_BYTES {
            return Err(usage("the value has more than 1 MiB; `kvctl upload` takes values of any size"));
        }
        Ok(bytes.into())
    }
}
