//! `kvctl delete`.

use anyhow::Result;
use clap::Args;
use serde_json::{Value as Json, json};

use crate::{
    command::write::{Conditions, explain},
    context::Context,
    exit::Exit,
    output::{self, Format},
    text,
};

/// Deletes a key.
#[derive(Debug, Args)]
pub struct Delete {
    /// The key
    key: String,
    #[command(flatten)]
    conditions: Conditions,
    /// Print what was there before
    #[arg(long)]
    prev: bool,
}

impl Delete {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let key = context.key(&self.key)?;
        let reply = context.client.delete_with(&key, self.conditions.options(self.prev)).await?;
        if context.format == Format::Json {
            output::json(&json!({
                "applied": reply.applied,
                "replayed": reply.replayed,
                "previous": reply.previous.as_ref().map_or(Json::Null, output::key_value),
                "header": output::header(&reply.header),
            }))?;
        }
        if !reply.applied {
            // The outcome of an earlier attempt leaves out what was there.
            let is_known = reply.previous.is_some() || reply.replayed;
            if self.conditions.precondition().is_some() && is_known {
                explain(&key, reply.previous.as_ref(), reply.replayed);
                return Ok(Exit::Precondition);
            }
            eprintln!("{} is absent", text::show(&key));
            return Ok(Exit::Absent);
        }
        if context.format == Format::Table {
            output::line("ok")?;
            if let Some(previous) = &reply.previous {
                output::line(&format!("was {}", output::cell(&previous.value)))?;
            }
        }
        Ok(Exit::Ok)
    }
}
