//! Downloads: a value of any size as a stream, verified.
//!
//! The length is verified always, the SHA-256 when the whole value is read. A value that is overwritten meanwhile is still
//! read whole, since the node keeps it for its reader. A stream that breaks is resumed at the next byte, at any node, as
//! long as the key still holds the same write.

use bytes::Bytes;
use futures::{Stream, stream};
use kv_proto::kv::v1 as proto;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    time::timeout_at,
};
use tonic::{Code, Streaming};

use crate::{
    call::Call,
    client::{Client, read_route},
    error::{Error, Result},
    options::ReadOptions,
    pool::Node,
    retry::Kind,
    upload::hex,
    value::{Blob, Header, KeyValue},
};

/// What to download, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DownloadOptions {
    /// First byte.
    pub offset: u64,
    /// Number of bytes; 0: to the end.
    pub length: u64,
    /// How to read.
    pub read: ReadOptions,
}

/// A download under way.
#[derive(Debug)]
pub struct Download {
    call: Call,
    request: proto::DownloadRequest,
    header: Header,
    kv: KeyValue,
    blob: Blob,
    length_bytes: u64,
    received_bytes: u64,
    /// Only when the whole value is read and its hash is known.
    hasher: Option<Sha256>,
    open: Option<(Node, Streaming<proto::DownloadResponse>)>,
    done: bool,
}

/// A stream whose first message came.
struct Opened {
    node: Node,
    stream: Streaming<proto::DownloadResponse>,
    header: Header,
    kv: KeyValue,
    blob: Blob,
    length_bytes: u64,
}

/// A node that keeps the bytes no longer, and whose key has others, says so with this reason.
const VALUE_REPLACED: &str = "VALUE_REPLACED";

impl Client {
    /// Downloads a value, uploaded or inline. `None`: the key is absent.
    ///
    /// The timeout bounds each standstill, not the whole transfer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn download(
        &self,
        key: impl AsRef<[u8]>,
        options: DownloadOptions,
    ) -> Result<Option<Download>> {
        let key = Bytes::copy_from_slice(key.as_ref());
        let mut call = self.call("Download", Kind::Read, read_route(&key, options.read)).transfer();
        let request = proto::DownloadRequest {
            key,
            offset: options.offset,
            length: options.length,
            options: Some(options.read.into()),
        };
        let Some(opened) = open(&mut call, &request).await? else { return Ok(None) };
        let whole = options.offset == 0 && opened.length_bytes == opened.blob.size_bytes;
        let hasher = (whole && !opened.blob.sha256.is_empty()).then(Sha256::new);
        Ok(Some(Download {
            call,
            request,
            header: opened.header,
            kv: opened.kv,
            blob: opened.blob,
            length_bytes: opened.length_bytes,
            received_bytes: 0,
            hasher,
            open: Some((opened.node, opened.stream)),
            done: false,
        }))
    }
}

impl Download {
    /// Where the first answer was made.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The key, described.
    pub fn key_value(&self) -> &KeyValue {
        &self.kv
    }

    /// Size and SHA-256 of the whole value, inline values included.
    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    /// Bytes that this download gives in all.
    pub fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// Whether the SHA-256 is verified at the end: the whole value is read, and its hash is known.
    pub fn is_verified(&self) -> bool {
        self.hasher.is_some() || (self.done && self.received_bytes == self.blob.size_bytes)
    }

    /// The next bytes; `None`: all came, and they were verified.
    ///
    /// # Errors
    /// See [`Error`]. Bytes that were returned before an error are not verified.
    pub async fn next_piece(&mut self) -> Result<Option<Bytes>> {
        while !self.done {
            let (node, mut stream) = match self.open.take() {
                Some(open) => open,
                None => self.resume().await?,
            };
            match timeout_at(self.call.deadline(), stream.message()).await {
                Ok(Ok(Some(message))) => {
                    let piece = self.took(message)?;
                    self.open = Some((node, stream));
                    if !piece.is_empty() {
                        return Ok(Some(piece));
                    }
                }
                Ok(Ok(None)) => self.verify()?,
                Ok(Err(status)) if self.received_bytes < self.length_bytes => {
                    self.call.failed_at(&node, &status).await?;
                }
                // All bytes came; what became of the stream behind them does not matter.
                Ok(Err(_)) => self.verify()?,
                Err(_) => {
                    let failure = self.call.silence_of(&node);
                    self.call.failed(failure).await?;
                }
            }
        }
        Ok(None)
    }

    /// The bytes as a stream. Ends after an error; only its regular end means that they are verified.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> + Send {
        stream::try_unfold(self, |mut download| async move {
            Ok(download.next_piece().await?.map(|piece| (piece, download)))
        })
    }

    /// Writes everything, flushes, and returns the number of bytes.
    ///
    /// # Errors
    /// See [`Error`]. After an error, what was written is to be thrown away.
    pub async fn write_to(&mut self, sink: &mut (impl AsyncWrite + Unpin)) -> Result<u64> {
        while let Some(piece) = self.next_piece().await? {
            sink.write_all(&piece).await.map_err(Error::Sink)?;
        }
        sink.flush().await.map_err(Error::Sink)?;
        Ok(self.received_bytes)
    }

    fn took(&mut self, message: proto::DownloadResponse) -> Result<Bytes> {
        let Some(proto::download_response::Part::Data(data)) = message.part else {
            return Err(Error::protocol("Download", "a second header"));
        };
        self.received_bytes += data.len() as u64;
        if self.received_bytes > self.length_bytes {
            return Err(self.length_mismatch());
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&data);
        }
        self.call.progressed();
        Ok(data)
    }

    /// The stream ended in order: everything must be there, unharmed.
    fn verify(&mut self) -> Result<()> {
        self.done = true;
        if self.received_bytes != self.length_bytes {
            return Err(self.length_mismatch());
        }
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let found = hasher.finalize();
        if found[..] == self.blob.sha256[..] {
            return Ok(());
        }
        Err(Error::ChecksumMismatch {
            operation: "Download",
            expected: hex(&self.blob.sha256),
            found: hex(&found),
        })
    }

    fn length_mismatch(&self) -> Error {
        Error::LengthMismatch {
            operation: "Download",
            expected_bytes: self.length_bytes,
            found_bytes: self.received_bytes,
        }
    }

    /// Opens the rest again and makes sure that it is the rest of the same value.
    async fn resume(&mut self) -> Result<(Node, Streaming<proto::DownloadResponse>)> {
        let rest_bytes = self.length_bytes - self.received_bytes;
        let request = proto::DownloadRequest {
            offset: self.request.offset + self.received_bytes,
            length: rest_bytes,
            ..self.request.clone()
        };
        let opened = open(&mut self.call, &request).await?.ok_or(Error::ValueReplaced)?;
        if opened.kv.mod_revision != self.kv.mod_revision || opened.blob != self.blob {
            return Err(Error::ValueReplaced);
        }
        if opened.length_bytes != rest_bytes {
            return Err(Error::protocol("Download", "another length than asked for"));
        }
        Ok((opened.node, opened.stream))
    }
}

/// Opens a stream and takes its header. `None`: the key is absent.
async fn open(call: &mut Call, request: &proto::DownloadRequest) -> Result<Option<Opened>> {
    loop {
        let node = call.node().await?;
        let mut kv = node.kv();
        // No deadline is forwarded: it would bound the whole transfer.
        let first = async {
            let mut stream = kv.download(request.clone()).await?.into_inner();
            let message = stream.message().await?;
            Ok::<_, tonic::Status>((message, stream))
        };
        let status = match timeout_at(call.deadline(), first).await {
            Ok(Ok((message, stream))) => return opened(call, node, message, stream),
            Ok(Err(status)) => status,
            Err(_) => {
                let failure = call.silence_of(&node);
                call.failed(failure).await?;
                continue;
            }
        };
        let failure = call.failure_of(&node, &status);
        if failure.reason.as_deref() == Some(VALUE_REPLACED) {
            return Err(Error::ValueReplaced);
        }
        if failure.code == Code::NotFound && failure.reason.is_some() {
            return Ok(None);
        }
        call.failed_at(&node, &status).await?;
    }
}

fn opened(
    call: &Call,
    node: Node,
    message: Option<proto::DownloadResponse>,
    stream: Streaming<proto::DownloadResponse>,
) -> Result<Option<Opened>> {
    let Some(proto::download_response::Part::Header(header)) = message.and_then(|message| message.part)
    else {
        return Err(Error::protocol("Download", "the header is missing"));
    };
    let place = Header::from(header.header);
    call.client.core().learn(&place);
    let Some(kv) = header.kv else { return Ok(None) };
    let blob = header.blob.map(Blob::from).ok_or_else(|| Error::protocol("Download", "no description"))?;
    Ok(Some(Opened { node, stream, header: place, kv: kv.into(), blob, length_bytes: header.length_bytes }))
}
