//! `kvctl download`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use kv_client::{Download as ClientDownload, DownloadOptions};
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::{
    command::{progress, read::Reading},
    context::Context,
    exit::{Advised, Exit, usage},
    output::{self, Format},
    text,
};

/// Downloads the value of a key. The length is verified, and of a whole value the SHA-256.
///
/// The file appears only when everything came and is right; a failed download leaves nothing. On standard output the
/// bytes appear as they come: whether they were right is told by the exit code.
#[derive(Debug, Args)]
pub struct Download {
    /// The key
    key: String,
    /// The file; -: standard output
    file: PathBuf,
    #[command(flatten)]
    reading: Reading,
    /// First byte
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    offset: u64,
    /// Number of bytes; 0: to the end
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    length: u64,
}

impl Download {
    /// Runs to the end.
    pub async fn run(self, context: &Context) -> Result<Exit> {
        let key = context.key(&self.key)?;
        let client = context.client_at(self.reading.node.as_deref()).await?;
        let options =
            DownloadOptions { offset: self.offset, length: self.length, read: self.reading.options() };
        let Some(mut download) = client.download(&key, options).await? else {
            eprintln!("{} is absent", text::show(&key));
            return Ok(Exit::Absent);
        };
        if self.file == Path::new("-") {
            print(&mut download).await?;
            return Ok(Exit::Ok);
        }
        save(&mut download, &self.file).await?;
        let verified = download.is_verified();
        match context.format {
            Format::Table => {
                let how = if verified { "sha256 verified" } else { "length verified" };
                output::line(&format!("ok, {} bytes, {how}", download.length_bytes()))?;
            }
            Format::Json => output::json(&json!({
                "length_bytes": download.length_bytes(),
                "sha256_verified": verified,
                "kv": output::key_value(download.key_value()),
                "blob": output::blob(download.blob()),
                "header": output::header(download.header()),
            }))?,
        }
        Ok(Exit::Ok)
    }
}

/// Writes beside the target and renames at the end.
async fn save(download: &mut ClientDownload, target: &Path) -> Result<()> {
    let subject = || format!("cannot write {}", target.display());
    let name = target.file_name().ok_or_else(|| usage(format!("{} is no file name", target.display())))?;
    if target.is_dir() {
        return Err(usage(format!("{} is a folder", target.display())));
    }
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.part", std::process::id()));
    let temporary = Removed(target.with_file_name(temporary));
    let mut file = tokio::fs::File::create(&temporary.0).await.with_context(subject)?;
    copy(download, &mut file, &mut 0).await?;
    file.sync_all().await.with_context(subject)?;
    tokio::fs::rename(&temporary.0, target).await.with_context(subject)
}

/// A file that is gone when this is, whatever happened. Renamed away, there is nothing left to remove.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // It may have been renamed; and there is nobody to tell.
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// What was printed cannot be taken back: who reads it is told that it is not whole, or not right.
async fn print(download: &mut ClientDownload) -> Result<()> {
    let mut printed_bytes = 0;
    let copied = copy(download, &mut tokio::io::stdout(), &mut printed_bytes).await;
    copied.map_err(|error| match error {
        kv_client::Error::Sink(_) => error.into(),
        error => {
            let advice = match printed_bytes {
                0 => "nothing was printed; it is safe to try again".to_owned(),
                printed => format!(
                    "{printed} of {} bytes were printed and are not verified: throw them away, and try again",
                    download.length_bytes()
                ),
            };
            Advised { error, advice }.into()
        }
    })
}

/// Writes everything; counts what was written.
async fn copy(
    download: &mut ClientDownload,
    sink: &mut (impl AsyncWrite + Unpin),
    written_bytes: &mut u64,
) -> Result<(), kv_client::Error> {
    let bar = progress::bar(Some(download.length_bytes()));
    while let Some(piece) = download.next_piece().await? {
        sink.write_all(&piece).await.map_err(kv_client::Error::Sink)?;
        *written_bytes += piece.len() as u64;
        bar.inc(piece.len() as u64);
    }
    sink.flush().await.map_err(kv_client::Error::Sink)?;
    bar.finish_and_clear();
    Ok(())
}
