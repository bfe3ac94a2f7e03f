//! `kvctl batch-get`.

use anyhow::Result;
use clap::Args;
use kv_client::GetOptions;
use serde_json::{Map, Value as Json};

use crate::{
    command::read::Reading,
    context::Context,
    exit::Exit,
    output::{self, Format},
    text,
};

/// Reads many keys in one call. Exits with 3 when one of them is absent.
#[derive(Debug, Args)]
pub struct BatchGet {
    /// The keys
    #[arg(required = true)]
    keys: Vec<String>,
    #[command(flatten)]
    reading: Reading,
}

impl BatchGet {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let keys = self.keys.iter().map(|key| context.key(key)).collect::<Result<Vec<_>>>()?;
        let client = context.client_at(self.reading.node.as_deref()).await?;
        let options = GetOptions { read: self.reading.options(), metadata_only: false };
        let replies = client.batch_get(&keys, options).await?;
        let mut exit = Exit::Ok;
        for (key, reply) in keys.iter().zip(replies) {
            match (reply.kv, context.format) {
                (Some(kv), Format::Json) => output::line(&output::key_value(&kv).to_string())?,
                (Some(kv), Format::Table) => {
                    output::line(&format!("{}\t{}", text::show(key), output::cell(&kv.value)))?;
                }
                (None, Format::Json) => {
                    let mut object = Map::new();
                    text::set(&mut object, "key", key);
                    object.insert("absent".to_owned(), true.into());
                    output::line(&Json::Object(object).to_string())?;
                    exit = Exit::Absent;
                }
                (None, Format::Table) => {
                    eprintln!("{} is absent", text::show(key));
                    exit = Exit::Absent;
                }
            }
        }
        Ok(exit)
    }
}
