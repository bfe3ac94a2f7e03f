//! `kvctl get`.

use anyhow::Result;
use clap::Args;
use kv_client::{GetOptions, KeyValue, Value};
use serde_json::{Value as Json, json};

use crate::{
    command::read::Reading,
    context::Context,
    exit::Exit,
    output::{self, Format},
    text,
};

/// Reads a key. The bytes go to standard output as they are, with a line end only on a terminal and in a shell.
///
/// The value of an uploaded key is not printed, `kvctl download` has it; --metadata and -o json describe it.
#[derive(Debug, Args)]
pub struct Get {
    /// The key
    key: String,
    #[command(flatten)]
    reading: Reading,
    /// Print revisions and size instead of the value
    #[arg(long)]
    metadata: bool,
}

impl Get {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let key = context.key(&self.key)?;
        let client = context.client_at(self.reading.node.as_deref()).await?;
        let options = GetOptions { read: self.reading.options(), metadata_only: self.metadata };
        let reply = client.get_with(&key, options).await?;
        if context.format == Format::Json {
            output::json(&json!({
                "kv": reply.kv.as_ref().map_or(Json::Null, output::key_value),
                "header": output::header(&reply.header),
            }))?;
        }
        let Some(kv) = &reply.kv else {
            eprintln!("{} is absent", text::show(&key));
            return Ok(Exit::Absent);
        };
        if context.format == Format::Json {
            return Ok(Exit::Ok);
        }
        if self.metadata {
            return describe(kv).map(|()| Exit::Ok);
        }
        match &kv.value {
            Value::Inline(bytes) => output::raw(bytes, context.is_shell)?,
            Value::Blob(blob) => {
                eprintln!(
                    "{} was uploaded and has {}: kvctl download {} FILE",
                    text::show(&key),
                    text::size(blob.size_bytes),
                    self.key
                );
                // Whoever reads standard output takes it for the value.
                return Ok(Exit::Error);
            }
            Value::Omitted => {}
        }
        Ok(Exit::Ok)
    }
}

fn describe(kv: &KeyValue) -> Result<()> {
    output::line(&format!("create revision  {}", kv.create_revision))?;
    output::line(&format!("mod revision     {}", kv.mod_revision))?;
    output::line(&format!("version          {}", kv.version))?;
    if let Value::Blob(blob) = &kv.value {
        output::line(&format!("size             {} bytes", blob.size_bytes))?;
        output::line(&format!("sha256           {}", text::hex(&blob.sha256)))?;
    }
    Ok(())
}
