//! DeleteRange: shard after shard, in entries of at most 1,000 keys.
//!
//! Each message tells what one entry deleted and carries the token that goes on after it. The token names a shard
//! and a key in it, and the way in which slots were spread over shards: when that has changed, the deletion begins
//! again at the first shard, which finds what is left.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use kv_proto::{
    disk::v1::{self as disk, operation},
    kv::v1::{DeleteRangeRequest, DeleteRangeResponse},
    peer::v1::{DeleteRangeOutcome, outcome},
};
use kv_topology::{ClusterMap, ShardId};
use tokio::time::Instant;

use super::{
    context::{Context, unexpected},
    deadline::Deadline,
    error::Refused,
    header,
    limits::DELETE_RANGE_KEYS_MAX,
    page_token::{PageToken, Walk},
    range::Range,
    scan::data_shards,
    validate::{self, Violation},
};
use crate::router::store::Store;

/// Length of the fingerprint of the layout in a token, bytes.
const LAYOUT_BYTES: usize = 4;

struct Deletion<S> {
    context: Arc<Context<S>>,
    map: Arc<ClusterMap>,
    deadline: Deadline,
    range: Range,
    /// The shard at work and those after it, last first.
    shards: Vec<ShardId>,
    /// Where the shard at work goes on.
    start: Bytes,
}

/// The messages of a deletion.
///
/// # Errors
/// When the request is wrong or the map is not known; later refusals end the stream.
pub fn delete_range<S: Store>(
    context: Arc<Context<S>>,
    request: DeleteRangeRequest,
    deadline: Deadline,
) -> Result<impl Stream<Item = Result<DeleteRangeResponse, Refused>> + Send + use<S>, Refused> {
    validate::delete_range(&request)?;
    let map = context.map()?;
    let range = Range::of(request.range);
    let mut shards: Vec<_> = data_shards(&map).collect();
    let mut start = range.start.clone();
    if !request.page_token.is_empty()
        && let Some((shard, position)) = resumed(&request.page_token, &range, &map)?
    {
        shards.retain(|other| *other >= shard);
        start = position;
    }
    shards.reverse();
    let deletion = Deletion { context, map, deadline, range, shards, start };
    Ok(stream::try_unfold(Some(deletion), |deletion| async move {
        let Some(mut deletion) = deletion else { return Ok(None) };
        let message = deletion.message().await?;
        let ended = message.next_page_token.is_empty();
        Ok(Some((message, (!ended).then_some(deletion))))
    }))
}

/// Where to go on; `None`: from the beginning, because slots have moved since.
fn resumed(token: &Bytes, range: &Range, map: &ClusterMap) -> Result<Option<(ShardId, Bytes)>, Refused> {
    let PageToken { shard, position } = PageToken::decode(token, Walk::Delete, range)?;
    let garbled = || Violation::new("page_token", "not one of ours");
    let (layout_then, key) = position.split_first_chunk::<LAYOUT_BYTES>().ok_or_else(garbled)?;
    let is_same = *layout_then == layout(map);
    Ok(is_same.then(|| (ShardId(shard), position.slice_ref(key))))
}

/// Which shard owns which slots, as a fingerprint.
fn layout(map: &ClusterMap) -> [u8; LAYOUT_BYTES] {
    let mut crc = 0;
    for (shard, entry) in &map.shards {
        crc = crc32c::crc32c_append(crc, &shard.get().to_be_bytes());
        for range in &entry.slots {
            crc = crc32c::crc32c_append(crc, &range.first.get().to_be_bytes());
            crc = crc32c::crc32c_append(crc, &range.last.get().to_be_bytes());
        }
    }
    crc.to_be_bytes()
}

impl<S: Store> Deletion<S> {
    /// Deletes until there is something to tell.
    async fn message(&mut self) -> Result<DeleteRangeResponse, Refused> {
        let mut message = DeleteRangeResponse::default();
        while let Some(shard) = self.shards.last().copied().filter(|_| !self.range.is_empty()) {
            let DeleteRangeOutcome { deleted, next_key } = self.step(shard, &mut message).await?;
            if next_key.is_empty() {
                self.shards.pop();
                self.start = self.range.start.clone();
            } else if next_key < self.start || (deleted == 0 && next_key == self.start) {
                return Err(Refused::Bug("a deletion that does not advance".to_owned()));
            } else {
                self.start = next_key;
            }
            message.deleted += deleted;
            if deleted > 0 {
                break;
            }
        }
        message.next_page_token = self.token();
        Ok(message)
    }

    async fn step(
        &mut self,
        shard: ShardId,
        message: &mut DeleteRangeResponse,
    ) -> Result<DeleteRangeOutcome, Refused> {
        let now = Instant::now();
        if self.deadline.has_passed(now) {
            return Err(Refused::Expired);
        }
        let step = disk::DeleteRange {
            start: self.start.clone(),
            end: self.range.end.clone(),
            limit: DELETE_RANGE_KEYS_MAX,
        };
        let written =
            self.context.write(shard, operation::Kind::DeleteRange(step), self.deadline.step(now)).await?;
        match written {
            (context, outcome::Result::DeleteRange(outcome)) => {
                message.header = Some(header::of(context.as_ref(), &self.map.cluster_id));
                Ok(outcome)
            }
            (_, other) => Err(unexpected("DeleteRange", &other)),
        }
    }

    fn token(&self) -> Bytes {
        let Some(shard) = self.shards.last().filter(|_| !self.range.is_empty()) else { return Bytes::new() };
        let position = [&layout(&self.map)[..], &self.start].concat().into();
        PageToken { shard: shard.get(), position }.encode(Walk::Delete, &self.range)
    }
}
