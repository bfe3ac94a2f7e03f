//! Uploads a file and downloads it again, verified. Needs a running cluster: `kvctl dev`.
//!
//! `cargo run --release --example upload_download -- FILE COPY`

use anyhow::{Context, bail};
use kv_client::{Client, DownloadOptions, UploadOptions, UploadSource};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(copy)) = (arguments.next(), arguments.next()) else {
        bail!("usage: upload_download FILE COPY");
    };
    let client = Client::connect("127.0.0.1:50051")?;

    let sent = client.upload("example-file", UploadSource::file(&file), UploadOptions::default()).await?;
    println!("{} bytes are visible", sent.size_bytes);

    let download = client.download("example-file", DownloadOptions::default()).await?;
    let mut download = download.context("somebody deleted it meanwhile")?;
    let mut sink = tokio::fs::File::create(&copy).await?;
    // An error here means that the copy is not to be trusted.
    let received = download.write_to(&mut sink).await?;
    println!("{received} bytes came back, and their SHA-256 is right");
    Ok(())
}
