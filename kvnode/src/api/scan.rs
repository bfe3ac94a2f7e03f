//! Scan: one ordered keyspace over all shards.
//!
//! A scan is pulled by its reply: pages are read when HTTP/2 has room for another message, and nothing goes on when
//! the client is gone. It holds one page of each shard and one message, and needs room for that among what the node may
//! hold for its clients; where there is little, it lets its pages go with each message and reads them again. Each message
//! carries the token that resumes after it; a resumed scan reads new snapshots.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use kv_proto::{
    kv::v1::{KeyValue, ScanRequest, ScanResponse},
    peer::v1::{ReplyContext, ScanPage, ScannedPage, read_request, read_response},
};
use kv_topology::{ClusterMap, ShardId};
use prost::Message;
use tokio::time::Instant;

use super::{
    context::{Context, unexpected},
    deadline::Deadline,
    error::Refused,
    header,
    kv::Caller,
    limits::{
        SCAN_MESSAGE_BYTES, SCAN_PAGE_BYTES, SCAN_PAGE_KEYS_MAX, SCAN_PAGES_AT_ONCE, SCAN_ROOM_BYTES,
        SCAN_WINDOW_BYTES,
    },
    merge::{Merge, Wanted},
    page_token::{PageToken, Walk},
    quota::{ConnectionQuota, ReplyBytes, Share},
    range::{Range, successor},
    validate,
};
use crate::router::store::Store;

/// A running scan.
struct Scan<S> {
    context: Arc<Context<S>>,
    /// Of the client; `None` without a server around it.
    connection: Option<Arc<ConnectionQuota>>,
    /// For the pages, and for the message that was made last: it was sent when the next one is asked for.
    room: Option<Room>,
    map: Arc<ClusterMap>,
    deadline: Deadline,
    request: ScanRequest,
    /// As asked for; tokens are bound to it.
    range: Range,
    merge: Merge,
    /// Keys that may still be returned.
    keys_left: u64,
    /// Bytes that may still be returned.
    bytes_left: u64,
    /// The last key that was returned; empty: none yet.
    last_key: Bytes,
    /// Who answered last, by shard.
    contexts: BTreeMap<ShardId, ReplyContext>,
    /// Whether its last message is on its way.
    is_over: bool,
}

/// What a scan holds of what a node may read for its clients.
enum Room {
    /// As many bytes as it has.
    Bytes(ReplyBytes),
    /// Those of a large reply.
    Large(#[allow(dead_code, reason = "held, not read")] Share),
}

/// The pieces of a message that is being filled.
#[derive(Default)]
struct Filling {
    kvs: Vec<KeyValue>,
    bytes: usize,
}

/// What ended a message.
#[derive(PartialEq)]
enum Fill {
    /// It is large enough, and more follows.
    Full,
    /// Nothing more may be returned.
    Limited,
    /// There is nothing more.
    Done,
    /// Pages are missing.
    Wanting,
}

/// The messages of a scan.
///
/// # Errors
/// When the request is wrong or the map is not known; later refusals end the stream.
pub fn scan<S: Store>(
    context: Arc<Context<S>>,
    request: ScanRequest,
    caller: &Caller,
) -> Result<impl Stream<Item = Result<ScanResponse, Refused>> + Send + use<S>, Refused> {
    validate::scan(&request)?;
    let map = context.map()?;
    let range = Range::of(request.range.clone());
    let walk = walk(request.reverse);
    let mut rest = range.clone();
    if !request.page_token.is_empty() {
        let position = PageToken::decode(&request.page_token, walk, &range)?.position;
        *if request.reverse { &mut rest.end } else { &mut rest.start } = position;
    }
    let unlimited = |limit| if limit == 0 { u64::MAX } else { limit };
    let scan = Scan {
        merge: Merge::new(data_shards(&map), &rest, request.reverse),
        keys_left: unlimited(request.limit),
        bytes_left: unlimited(request.max_bytes),
        last_key: Bytes::new(),
        contexts: BTreeMap::new(),
        connection: caller.connection().cloned(),
        room: None,
        is_over: false,
        deadline: caller.deadline,
        context,
        map,
        request,
        range,
    };
    Ok(messages(scan))
}

/// The shards that hold keys.
pub fn data_shards(map: &ClusterMap) -> impl Iterator<Item = ShardId> + use<> {
    let shards: Vec<_> = map.shards.keys().copied().filter(|shard| !shard.is_meta()).collect();
    shards.into_iter()
}

fn walk(reverse: bool) -> Walk {
    if reverse { Walk::Reverse } else { Walk::Forward }
}

fn messages<S: Store>(scan: Scan<S>) -> impl Stream<Item = Result<ScanResponse, Refused>> + Send {
    stream::try_unfold(Some(scan), |scan| async move {
        let Some(mut scan) = scan.filter(|scan| !scan.is_over) else { return Ok(None) };
        // Counting needs the order of keys only to know where a limit falls.
        if scan.request.count_only && scan.request.limit == 0 {
            return Ok(Some((scan.count().await?, None)));
        }
        scan.make_room().await?;
        let (message, ended) = scan.message().await?;
        scan.settle(message.encoded_len());
        scan.is_over = ended;
        Ok(Some((message, Some(scan))))
    })
}

impl<S: Store> Scan<S> {
    /// For making a message. Whoever has to wait for it holds nothing.
    async fn make_room(&mut self) -> Result<(), Refused> {
        let Some(connection) = &self.connection else { return Ok(()) };
        // The last message was sent.
        self.room = None;
        if let Some(held) = connection.reply_bytes_now(SCAN_ROOM_BYTES) {
            self.room = Some(Room::Bytes(held));
            return Ok(());
        }
        self.merge.let_go();
        let deadline = self.deadline.step(Instant::now());
        self.room = Some(Room::Large(connection.large_reply(deadline).await?));
        Ok(())
    }

    /// Keeps room for a message of so many bytes and for the pages that are left, or else lets the pages go.
    fn settle(&mut self, message_bytes: usize) {
        let Some(connection) = &self.connection else { return };
        if let Some(Room::Bytes(held)) = &mut self.room {
            if message_bytes + self.merge.bytes() > held.count() {
                self.merge.let_go();
            }
            held.keep(message_bytes + self.merge.bytes());
            return;
        }
        // The share of a large reply is for others as soon as there is room for what is left.
        self.merge.let_go();
        if let Some(held) = connection.reply_bytes_now(message_bytes) {
            self.room = Some(Room::Bytes(held));
        }
    }

    async fn message(&mut self) -> Result<(ScanResponse, bool), Refused> {
        let mut filling = Filling::default();
        let mut count = 0;
        loop {
            let fill = self.fill(&mut filling, &mut count);
            let token = match fill {
                Fill::Wanting => {
                    self.read_pages().await?;
                    continue;
                }
                Fill::Done => Bytes::new(),
                Fill::Full | Fill::Limited => self.token(),
            };
            let header = Some(header::of_many(self.contexts.values(), &self.map.cluster_id));
            let message = ScanResponse { header, kvs: filling.kvs, count, next_page_token: token };
            return Ok((message, fill != Fill::Full));
        }
    }

    /// Moves keys from the pages into the message.
    fn fill(&mut self, filling: &mut Filling, count: &mut u64) -> Fill {
        loop {
            if self.merge.is_done() {
                return Fill::Done;
            }
            let Some(next) = self.merge.peek() else { return Fill::Wanting };
            let bytes = next.encoded_len();
            let is_over_budget = bytes as u64 > self.bytes_left && !self.last_key.is_empty();
            if self.keys_left == 0 || (is_over_budget && !self.request.count_only) {
                return Fill::Limited;
            }
            if filling.bytes >= SCAN_MESSAGE_BYTES {
                return Fill::Full;
            }
            let Some(kv) = self.merge.pop() else { return Fill::Wanting };
            self.keys_left -= 1;
            *count += 1;
            self.last_key = kv.key.clone();
            if !self.request.count_only {
                self.bytes_left = self.bytes_left.saturating_sub(bytes as u64);
                filling.bytes += bytes;
                filling.kvs.push(kv);
            }
        }
    }

    fn token(&self) -> Bytes {
        let position = if self.request.reverse { self.last_key.clone() } else { successor(&self.last_key) };
        PageToken { shard: 0, position }.encode(walk(self.request.reverse), &self.range)
    }

    async fn read_pages(&mut self) -> Result<(), Refused> {
        let keys_only = self.request.keys_only || self.request.count_only;
        let pages = self.wanted_pages(keys_only, false).await?;
        for (shard, page) in pages {
            self.merge.supply(shard, page).map_err(|error| Refused::Bug(error.to_string()))?;
        }
        Ok(())
    }

    async fn count(&mut self) -> Result<ScanResponse, Refused> {
        let mut count = 0;
        while !self.merge.is_done() {
            for (shard, mut page) in self.wanted_pages(true, true).await? {
                count += page.count;
                page.kvs.clear();
                self.merge.supply(shard, page).map_err(|error| Refused::Bug(error.to_string()))?;
            }
        }
        let header = Some(header::of_many(self.contexts.values(), &self.map.cluster_id));
        Ok(ScanResponse { header, count, ..ScanResponse::default() })
    }

    async fn wanted_pages(
        &mut self,
        keys_only: bool,
        count_only: bool,
    ) -> Result<Vec<(ShardId, ScannedPage)>, Refused> {
        let now = Instant::now();
        if self.deadline.has_passed(now) {
            return Err(Refused::Expired);
        }
        let deadline = self.deadline.step(now);
        let shards = self.map.shards.len() as u64;
        let page = ScanPage {
            // One more than may be returned tells whether there is more.
            limit: if count_only { 0 } else { self.keys_left.saturating_add(1).min(SCAN_PAGE_KEYS_MAX) },
            max_bytes: (SCAN_WINDOW_BYTES / shards).clamp(*SCAN_PAGE_BYTES.start(), *SCAN_PAGE_BYTES.end()),
            keys_only,
            count_only,
            reverse: self.request.reverse,
            ..ScanPage::default()
        };
        let (context, options) = (&self.context, self.request.options);
        let reads = self.merge.wanted().into_iter().map(|Wanted { shard, range, alone }| {
            let Range { start, end } = range;
            let large_apart = !alone;
            let (limit, max_bytes) = if alone { (1, 0) } else { (page.limit, page.max_bytes) };
            let read = ScanPage { start, end, limit, max_bytes, large_apart, ..page.clone() };
            let read = read_request::Read::Scan(read);
            async move { context.read(shard, options, read, deadline).await.map(|read| (shard, read)) }
        });
        let answers: Vec<_> = stream::iter(reads).buffered(SCAN_PAGES_AT_ONCE).try_collect().await?;
        let mut pages = Vec::with_capacity(answers.len());
        for (shard, (context, read)) in answers {
            self.contexts.extend(context.map(|context| (shard, context)));
            match read {
                read_response::Read::Scan(page) => pages.push((shard, page)),
                other => return Err(unexpected("ScanPage", &other)),
            }
        }
        Ok(pages)
    }
}
