//! Scans: pages that follow each other by token, whichever node serves them and however often a stream breaks.

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use kv_http2::client::Connection;
use kv_proto::kv::v1::{self as proto, kv_client::KvClient};
use tonic::{Response, Status, Streaming};

use crate::{
    client::Client,
    error::{Error, Result},
    options::{KeyRange, ReadOptions, ScanOptions},
    pages::{Paged, Pages},
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
    pages: Pages<proto::ScanRequest>,
    limit: Budget,
    max_bytes: Budget,
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

impl Paged for proto::ScanRequest {
    type Page = proto::ScanResponse;

    async fn send(
        mut kv: KvClient<Connection>,
        request: tonic::Request<Self>,
    ) -> std::result::Result<Response<Streaming<Self::Page>>, Status> {
        kv.scan(request).await
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
        Self { pages: Pages::new(call, request), limit, max_bytes, done: false }
    }

    /// The next page; `None`: the range or a limit is exhausted.
    ///
    /// # Errors
    /// When a page could not be had until the deadline, which starts anew with each page. [`Self::page_token`] still
    /// tells how far the scan came.
    pub async fn next_page(&mut self) -> Result<Option<ScanPage>> {
        while !self.done {
            match self.pages.next().await? {
                Some(message) => return Ok(Some(self.took(message))),
                None => self.ended(),
            }
        }
        Ok(None)
    }

    /// Goes on after the last page that was returned; empty: at the beginning, or exhausted.
    pub fn page_token(&self) -> &Bytes {
        &self.pages.request.page_token
    }

    /// The keys of all pages, one by one. Ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<KeyValue>> + Send {
        stream::try_unfold(self, |mut scan| async move {
            Ok::<_, Error>(scan.next_page().await?.map(|page| (page, scan)))
        })
        .map_ok(|page| stream::iter(page.kvs).map(Ok))
        .try_flatten()
    }

    fn took(&mut self, message: proto::ScanResponse) -> ScanPage {
        let page = ScanPage {
            header: message.header.into(),
            kvs: message.kvs.into_iter().map(KeyValue::from).collect(),
            count: message.count,
            next_page_token: message.next_page_token,
        };
        self.pages.call.client.core().learn(&page.header);
        self.pages.call.progressed();
        let bytes = page.kvs.iter().map(|kv| kv.key.len() + kv.inline().map_or(0, Bytes::len)).sum::<usize>();
        self.limit.spend(page.kvs.len() as u64);
        self.max_bytes.spend(bytes as u64);
        self.pages.request.limit = self.limit.get();
        self.pages.request.max_bytes = self.max_bytes.get();
        self.pages.request.page_token = page.next_page_token.clone();
        if page.next_page_token.is_empty() || self.limit.is_spent() || self.max_bytes.is_spent() {
            self.done = true;
        }
        page
    }

    /// The stream ended in order. A token means that there is more to ask for, unless the node's byte budget for the
    /// whole call is what ended it.
    fn ended(&mut self) {
        self.done = self.pages.request.page_token.is_empty() || self.pages.request.max_bytes != 0;
    }
}
