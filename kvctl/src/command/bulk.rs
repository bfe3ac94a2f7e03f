//! `kvctl bulk`.

use std::io::{self, BufRead as _};

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use kv_client::{BulkOperation, BulkOutcome, WriteOptions};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use crate::{
    context::Context,
    exit::{self, Exit, usage},
    output::{self, Format},
    text,
};

/// Operations that are read before they are sent.
const OPERATIONS_PER_ROUND: usize = 1000;

/// Makes many independent writes: one JSON document a line on standard input.
///
/// {"put": "key", "value": "text"}, {"put_base64": "…", "value_base64": "…"}, {"delete": "key"}.
/// Each line succeeds or fails by itself; the exit code is that of the worst.
#[derive(Debug, Args)]
pub struct Bulk {}

/// A line of input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    put: Option<String>,
    put_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    delete: Option<String>,
    delete_base64: Option<String>,
}

impl Line {
    fn parse(line: &str) -> Result<(Bytes, BulkOperation)> {
        let line: Self = serde_json::from_str(line).map_err(|error| usage(error.to_string()))?;
        let put = bytes(line.put, line.put_base64)?;
        let delete = bytes(line.delete, line.delete_base64)?;
        let value = bytes(line.value, line.value_base64)?;
        match (put, delete, value) {
            (Some(key), None, Some(value)) => {
                let operation = BulkOperation::put(&key, value, WriteOptions::default());
                Ok((key, operation))
            }
            (None, Some(key), None) => {
                let operation = BulkOperation::delete(&key, WriteOptions::default());
                Ok((key, operation))
            }
            _ => Err(usage("expected put with a value, or delete without one")),
        }
    }
}

/// The bytes of a field that may be given as text or base64.
pub fn bytes(plain: Option<String>, base64: Option<String>) -> Result<Option<Bytes>> {
    match (plain, base64) {
        (Some(text), None) => Ok(Some(text.into_bytes().into())),
        (None, Some(base64)) => text::unbase64(&base64).map(Some),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(usage("a field and its _base64 twin exclude each other")),
    }
}

impl Bulk {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let mut totals = Totals::default();
        let mut round = Vec::new();
        for (number, line) in io::stdin().lock().lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let parsed = Line::parse(&line).map_err(|error| usage(format!("line {}: {error}", number + 1)));
            match parsed {
                Ok(operation) => round.push((number + 1, operation)),
                Err(error) => {
                    send(context, std::mem::take(&mut round), &mut totals).await?;
                    totals.tell(context.format)?;
                    return Err(error);
                }
            }
            if round.len() == OPERATIONS_PER_ROUND {
                send(context, std::mem::take(&mut round), &mut totals).await?;
            }
        }
        send(context, round, &mut totals).await?;
        totals.tell(context.format)?;
        Ok(totals.exit)
    }
}

/// What became of the lines so far.
struct Totals {
    written: u64,
    absent: u64,
    failed: u64,
    exit: Exit,
}

impl Default for Totals {
    fn default() -> Self {
        Self { written: 0, absent: 0, failed: 0, exit: Exit::Ok }
    }
}

impl Totals {
    fn tell(&self, format: Format) -> Result<()> {
        match format {
            Format::Table => output::line(&format!(
                "{} applied, {} deletes of absent keys, {} failed",
                self.written, self.absent, self.failed
            )),
            Format::Json => output::line(
                &json!({ "applied": self.written, "absent": self.absent, "failed": self.failed }).to_string(),
            ),
        }
    }

    /// An unknown outcome is worse than a sure failure.
    fn fail(&mut self, exit: Exit) {
        self.failed += 1;
        if self.exit != Exit::OutcomeUnknown {
            self.exit = exit;
        }
    }
}

async fn send(
    context: &Context,
    round: Vec<(usize, (Bytes, BulkOperation))>,
    totals: &mut Totals,
) -> Result<()> {
    let (names, operations): (Vec<_>, Vec<_>) =
        round.into_iter().map(|(number, (key, operation))| ((number, key), operation)).unzip();
    let outcomes = context.client.bulk_write(operations).await;
    for ((number, key), outcome) in names.into_iter().zip(outcomes) {
        match outcome {
            BulkOutcome::Put(_) => totals.written += 1,
            BulkOutcome::Delete(reply) if reply.applied => totals.written += 1,
            BulkOutcome::Delete(_) => totals.absent += 1,
            BulkOutcome::Failed(error) => {
                totals.fail(exit::of_error(&error));
                if context.format == Format::Json {
                    let mut object = Map::new();
                    text::set(&mut object, "key", &key);
                    object.insert("line".to_owned(), number.into());
                    object.insert("error".to_owned(), error.to_string().into());
                    object.insert("may_have_happened".to_owned(), error.may_have_happened().into());
                    output::line(&Json::Object(object).to_string())?;
                }
                eprintln!("error: line {number}: {error}");
            }
        }
    }
    Ok(())
}
