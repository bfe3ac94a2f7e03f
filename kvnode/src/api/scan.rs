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
        SCAN_KEY_BYTES, SCAN_MESSAGE_BYTES, SCAN_MESSAGE_ROOM_BYTES, SCAN_PAGE_BYTES, SCAN_PAGES_AT_ONCE,
        SCAN_ROOM_BYTES, SCAN_ROOM_WAIT_MAX, SCAN_WINDOW_BYTES,
    },
    merge::{self, Merge, Wanted},
    page_token::{PageToken, Walk},
    quota::{ConnectionQuota, ReplyBytes, Sending},
    range::{Range, successor},
    validate,
};
use crate::{net::places::Line, router::store::Store};

/// A running scan.
struct Scan<S> {
    context: Arc<Context<S>>,
    /// Of the client; `None` without a server around it.
    connection: Option<Arc<ConnectionQuota>>,
    /// What is being sent holds room of its own.
    sending: Sending,
    /// For what is made, and for the pages that are left.
    room: Option<ReplyBytes>,
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
    sending: Sending,
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
        sending,
        room: None,
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
        let Some(mut scan) = scan else { return Ok(None) };
        // Counting needs the order of keys only to know where a limit falls.
        if scan.request.count_only && scan.request.limit == 0 {
            return Ok(Some((scan.count().await?, None)));
        }
        scan.make_room().await?;
        let (message, ended, bytes) = scan.message().await?;
        scan.settle(bytes);
        Ok(Some((message, (!ended).then_some(scan))))
    })
}

impl<S: Store> Scan<S> {
    /// For making a message. Whoever has to wait for it holds nothing.
    async fn make_room(&mut self) -> Result<(), Refused> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let bytes = SCAN_ROOM_BYTES.min(connection.reply_bytes_max());
        self.sending.clear();
        self.room = None;
        self.room = connection.reply_bytes_now(bytes);
        if self.room.is_none() {
            self.merge.let_go();
            let now = Instant::now();
            let first = self.deadline.step(now);
            let later =
                self.deadline.call().unwrap_or(now + SCAN_ROOM_WAIT_MAX).min(now + SCAN_ROOM_WAIT_MAX);
            let deadline = if self.last_key.is_empty() { first } else { later };
            self.room = Some(connection.reply_bytes(bytes, Line::Usual, deadline).await?);
        }
        Ok(())
    }

    /// Gives room to a message that takes so many bytes; keeps it for the pages that are left, if there is some for another
    /// scan, and else lets them go.
    fn settle(&mut self, message_bytes: usize) {
        let Some((connection, room)) = self.connection.as_ref().zip(self.room.as_mut()) else { return };
        let sent = room.split(message_bytes);
        self.sending.set(vec![sent.into()]);
        let wanted = room.count() + message_bytes;
        room.keep(self.merge.bytes());
        if self.merge.bytes() > room.count() || connection.reply_bytes_now(wanted).is_none() {
            self.merge.let_go();
            self.room = None;
        }
    }

    /// The next message, whether it is the last, and what it takes, bytes.
    async fn message(&mut self) -> Result<(ScanResponse, bool, usize), Refused> {
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
            return Ok((message, fill != Fill::Full, filling.bytes));
        }
    }

    /// Moves keys from the pages into the message.
    fn fill(&mut self, filling: &mut Filling, count: &mut u64) -> Fill {
        loop {
            if self.merge.is_done() {
                return Fill::Done;
            }
            if filling.bytes >= SCAN_MESSAGE_BYTES {
                return Fill::Full;
            }
            let Some(next) = self.merge.peek() else { return Fill::Wanting };
            let bytes = next.encoded_len();
            let is_over_budget = bytes as u64 > self.bytes_left && !self.last_key.is_empty();
            if self.keys_left == 0 || (is_over_budget && !self.request.count_only) {
                return Fill::Limited;
            }
            let Some(kv) = self.merge.pop() else { return Fill::Wanting };
            self.keys_left -= 1;
            *count += 1;
            self.last_key = kv.key.clone();
            if !self.request.count_only {
                self.bytes_left = self.bytes_left.saturating_sub(bytes as u64);
                filling.bytes += merge::weight(&kv);
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

    /// Of each shard: all pages together have what the message leaves of the room.
    fn page_bytes(&self) -> usize {
        let room = self.room.as_ref().map_or(SCAN_ROOM_BYTES, ReplyBytes::count);
        let window = room.saturating_sub(SCAN_MESSAGE_ROOM_BYTES).min(SCAN_WINDOW_BYTES);
        (window / self.map.shards.len().max(1)).clamp(*SCAN_PAGE_BYTES.start(), *SCAN_PAGE_BYTES.end())
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
        let page_bytes = self.page_bytes();
        let page_keys = (page_bytes / SCAN_KEY_BYTES) as u64;
        let page = ScanPage {
            // One more than may be returned tells whether there is more.
            limit: if count_only { 0 } else { self.keys_left.saturating_add(1).min(page_keys) },
            max_bytes: page_bytes as u64,
            keys_only,
            count_only,
            large_apart: true,
            reverse: self.request.reverse,
            ..ScanPage::default()
        };
        let (context, options) = (&self.context, self.request.options);
        let reads = self.merge.wanted().into_iter().map(|Wanted { shard, range, first_whole }| {
            let Range { start, end } = range;
            let read = read_request::Read::Scan(ScanPage { start, end, first_whole, ..page.clone() });
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
