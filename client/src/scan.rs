//! Scans: pages that follow each other by token, whichever node serves them and however often a stream breaks.

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use kv_proto::kv::v1 as proto;
use tokio::time::timeout_at;
use tonic::Streaming;

use crate::{
    call::Call,
    client::Client,
    error::{Error, Result},
    options::{KeyRange, ReadOptions, ScanOptions},
    pool::Node,
    retry::Kind,
    routing::Route,
    value::{Header, KeyValue},
};

/// Keys of one shard at one moment, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// Where it was made.
    pub header: Header,
    /// Empty when only counted.
    pub kvs: Vec<KeyValue>,
    /// Keys of this page, when only counted.
    pub count: u64,
    /// Goes on after this page; empty: the range is exhausted.
    pub next_page_token: Bytes,
}

/// A scan under way. Each page is a snapshot of its shards; the whole is none.
#[derive(Debug)]
pub struct Scan {
    call: Call,
    request: proto::ScanRequest,
    limit: Budget,
    max_bytes: Budget,
    open: Option<(Node, Streaming<proto::ScanResponse>)>,
    done: bool,
}

/// What is left of a limit; `None`: there is none.
#[derive(Clone, Copy, Debug)]
struct Budget(Option<u64>);

impl Budget {
    fn new(limit: u64) -> Self {
        Self((limit != 0).then_some(limit))
    }

    fn spend(&mut self, amount: u64) {
        self.0 = self.0.map(|left| left.saturating_sub(amount));
    }

    fn is_spent(self) -> bool {
        self.0 == Some(0)
    }

    /// As the wire says it; ask [`Self::is_spent`] first, since 0 means none.
    fn get(self) -> u64 {
        self.0.unwrap_or(0)
    }
}

impl Client {
    /// Scans keys in order. Broken streams are resumed behind the last page that came whole.
    pub fn scan(&self, options: impl Into<ScanOptions>) -> Scan {
        Scan::new(self, options.into(), false)
    }

    /// Counts keys.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count(&self, range: KeyRange, read: ReadOptions) -> Result<u64> {
        let mut scan = Scan::new(self, ScanOptions { read, ..range.into() }, true);
        let mut count = 0;
        while let Some(page) = scan.next_page().await? {
            count += page.count;
        }
        Ok(count)
    }
}

impl Scan {
    fn new(client: &Client, options: ScanOptions, count_only: bool) -> Self {
        let (limit, max_bytes) = (Budget::new(options.limit), Budget::new(options.max_bytes));
        let request = proto::ScanRequest {
            range: Some(options.range.into()),
            limit: options.limit,
            max_bytes: options.max_bytes,
            keys_only: options.keys_only,
            count_only,
            reverse: options.reverse,
            page_token: options.page_token,
            options: Some(options.read.into()),
        };
        let call = client.call("Scan", Kind::Read, Route::Any);
        Self { call, request, limit, max_bytes, open: None, done: false }
    }

    /// The next page; `None`: the range or a limit is exhausted.
    ///
    /// # Errors
    /// When a page could not be had until the deadline, which starts anew with each page. [`Self::page_token`] still
    /// tells how far the scan came.
    pub async fn next_page(&mut self) -> Result<Option<ScanPage>> {
        while !self.done {
            let (node, mut stream) = match self.open.take() {
                Some(open) => open,
                None => self.open().await?,
            };
            match timeout_at(self.call.deadline(), stream.message()).await {
                Ok(Ok(Some(message))) => {
                    let page = self.took(message);
                    self.open = Some((node, stream));
                    return Ok(Some(page));
                }
                Ok(Ok(None)) => self.ended(),
                Ok(Err(status)) => self.call.failed_at(&node, &status).await?,
                Err(_) => {
                    let failure = self.call.silence_of(&node);
                    self.call.failed(failure).await?;
                }
            }
        }
        Ok(None)
    }

    /// Goes on after the last page that was returned; empty: at the beginning, or exhausted.
    pub fn page_token(&self) -> &Bytes {
        &self.request.page_token
    }

    /// The keys of all pages, one by one. Ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<KeyValue>> + Send {
        stream::try_unfold(self, |mut scan| async move {
            Ok::<_, Error>(scan.next_page().await?.map(|page| (page, scan)))
        })
        .map_ok(|page| stream::iter(page.kvs).map(Ok))
        .try_flatten()
    }

    async fn open(&mut self) -> Result<(Node, Streaming<proto::ScanResponse>)> {
        loop {
            let node = self.call.node().await?;
            let mut kv = node.kv();
            match timeout_at(self.call.deadline(), kv.scan(self.call.request(self.request.clone()))).await {
                Ok(Ok(reply)) => return Ok((node, reply.into_inner())),
                Ok(Err(status)) => self.call.failed_at(&node, &status).await?,
                Err(_) => {
                    let failure = self.call.silence_of(&node);
                    self.call.failed(failure).await?;
                }
            }
        }
    }

    fn took(&mut self, message: proto::ScanResponse) -> ScanPage {
        let page = ScanPage {
            header: message.header.into(),
            kvs: message.kvs.into_iter().map(KeyValue::from).collect(),
            count: message.count,
            next_page_token: message.next_page_token,
        };
        self.call.client.core().learn(&page.header);
        self.call.progressed();
        let bytes = page.kvs.iter().map(|kv| kv.key.len() + kv.inline().map_or(0, Bytes::len)).sum::<usize>();
        self.limit.spend(page.kvs.len() as u64);
        self.max_bytes.spend(bytes as u64);
        self.request.limit = self.limit.get();
        self.request.max_bytes = self.max_bytes.get();
        self.request.page_token = page.next_page_token.clone();
        if page.next_page_token.is_empty() || self.limit.is_spent() || self.max_bytes.is_spent() {
            self.done = true;
        }
        page
    }

    /// The stream ended in order. A token means that there is more to ask for, unless the node's byte budget for the
    /// whole call is what ended it.
    fn ended(&mut self) {
        self.done = self.request.page_token.is_empty() || self.request.max_bytes != 0;
    }
}
