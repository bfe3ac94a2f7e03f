//! `kvctl upload`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use kv_client::{UploadOptions, UploadSource};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt as _;

use crate::{
    command::{
        progress,
        write::{Conditions, explain},
    },
    context::Context,
    exit::{Exit, usage},
    output::{self, Format},
    text,
};

/// Bytes read at a time while a file is hashed.
const HASH_BYTES: usize = 256 * 1024;

/// Uploads a file of any size as the value of a key. It is visible whole or not at all.
///
/// A file is read twice: its SHA-256 goes first, so that the cluster refuses other bytes before they are visible. When the
/// connection breaks, the upload goes on where the cluster has got to; one from standard input ends instead.
#[derive(Debug, Args)]
pub struct Upload {
    /// The key
    key: String,
    /// The file; -: standard input
    file: PathBuf,
    #[command(flatten)]
    conditions: Conditions,
}

impl Upload {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let key = context.key(&self.key)?;
        let precondition = self.conditions.precondition();
        let (source, options) = if self.file == Path::new("-") {
            (
                UploadSource::reader(tokio::io::stdin()),
                UploadOptions { precondition, ..UploadOptions::default() },
            )
        } else {
            let (size_bytes, sha256) = digest(&self.file).await?;
            let options = UploadOptions { precondition, size_bytes: Some(size_bytes), sha256: Some(sha256) };
            (UploadSource::file(&self.file), options)
        };
        let bar = progress::bar(options.size_bytes);
        let moved = bar.clone();
        let source = source.observed_by(move |position| moved.set_position(position));
        let reply = context.client.upload(&key, source, options).await;
        bar.finish_and_clear();
        let reply = reply?;
        if context.format == Format::Json {
            output::json(&json!({
                "applied": reply.applied,
                "size_bytes": reply.size_bytes,
                "sha256": text::hex(&reply.sha256),
                "kv": reply.kv.as_ref().map_or(Json::Null, output::key_value),
                "header": output::header(&reply.header),
            }))?;
        }
        if !reply.applied {
            explain(&key, reply.kv.as_ref(), false);
            return Ok(Exit::Precondition);
        }
        if context.format == Format::Table {
            output::line(&format!("ok, {} bytes, sha256 {}", reply.size_bytes, text::hex(&reply.sha256)))?;
        }
        Ok(Exit::Ok)
    }
}

/// Length and SHA-256 of a file.
async fn digest(path: &Path) -> Result<(u64, [u8; 32])> {
    let mut file = tokio::fs::File::open(path).await.with_context(|| cannot_read(path))?;
    if file.metadata().await.with_context(|| cannot_read(path))?.is_dir() {
        return Err(usage(format!("{} is a folder", path.display())));
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASH_BYTES];
    let mut size_bytes = 0;
    loop {
        let read = file.read(&mut buffer).await.with_context(|| cannot_read(path))?;
        if read == 0 {
            return Ok((size_bytes, hasher.finalize().into()));
        }
        hasher.update(&buffer[..read]);
        size_bytes += read as u64;
    }
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}
