//! `kvctl upload`.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    task::{self, Poll},
};

use anyhow::{Context as _, Result};
use clap::Args;
use indicatif::ProgressBar;
use kv_client::{UploadOptions, UploadSource};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

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
/// A file is read twice: its SHA-256 goes first, so that the cluster refuses other bytes before they are visible.
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
        let reply = if self.file == Path::new("-") {
            let bar = progress::bar(None);
            let source = UploadSource::reader(Counted { reader: tokio::io::stdin(), bar: bar.clone() });
            let options = UploadOptions { precondition, ..UploadOptions::default() };
            let reply = context.client.upload(&key, source, options).await;
            bar.finish_and_clear();
            reply?
        } else {
            let (size_bytes, sha256) = digest(&self.file).await?;
            let options = UploadOptions { precondition, size_bytes: Some(size_bytes), sha256: Some(sha256) };
            let bar = progress::bar(Some(size_bytes));
            let source = self.source(&bar).await?;
            let reply = context.client.upload(&key, source, options).await;
            bar.finish_and_clear();
            reply?
        };
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
            explain(&key, reply.kv.as_ref());
            return Ok(Exit::Precondition);
        }
        if context.format == Format::Table {
            output::line(&format!("ok, {} bytes, sha256 {}", reply.size_bytes, text::hex(&reply.sha256)))?;
        }
        Ok(Exit::Ok)
    }

    /// Where nobody watches, the library reads the file, and again when it has to.
    async fn source(&self, bar: &ProgressBar) -> Result<UploadSource> {
        if bar.is_hidden() {
            return Ok(UploadSource::file(&self.file));
        }
        let reader = tokio::fs::File::open(&self.file).await.with_context(|| cannot_read(&self.file))?;
        Ok(UploadSource::reader(Counted { reader, bar: bar.clone() }))
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

/// A reader that moves a bar.
struct Counted<R> {
    reader: R,
    bar: ProgressBar,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.reader).poll_read(context, buffer);
        self.bar.inc((buffer.filled().len() - before) as u64);
        poll
    }
}
