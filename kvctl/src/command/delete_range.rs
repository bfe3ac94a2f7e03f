//! `kvctl delete-range`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::{
    command::scan::Range,
    context::Context,
    exit::{self, Exit, usage},
    output::{self, Format},
};

/// Deletes a range of keys in steps of at most 1,000; not atomic over the whole range.
#[derive(Debug, Args)]
pub struct DeleteRange {
    #[command(flatten)]
    range: Range,
    /// Do not ask before everything is deleted
    #[arg(long)]
    yes: bool,
}

impl DeleteRange {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let range = self.range.parse(context)?;
        if range.is_unbounded() && !self.yes && !confirmed()? {
            return Err(usage("this deletes every key: say --yes, or give --prefix, --start or --end"));
        }
        let mut deletion = context.client.delete_range(range);
        let result = deletion.finish().await;
        let deleted = match result {
            Err(error) if deletion.deleted() > 0 => {
                let exit = exit::report(&error.into());
                eprintln!("{} keys were deleted before it failed", deletion.deleted());
                // The code for failures that surely changed nothing would be wrong.
                return Ok(if exit == Exit::Unavailable { Exit::Error } else { exit });
            }
            result => result?,
        };
        match context.format {
            Format::Table => output::line(&format!("{deleted} keys deleted"))?,
            Format::Json => output::json(&json!({ "deleted": deleted }))?,
        }
        Ok(Exit::Ok)
    }
}

/// Asks, where somebody can answer.
fn confirmed() -> Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    eprint!("This deletes every key of the cluster. Type yes to go on: ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
