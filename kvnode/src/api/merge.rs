//! One ordered walk over the keys of many shards: a pure k-way merge over their pages.
//!
//! A cursor for each shard holds what is left of its last page. [`Merge::wanted`] says which pages are missing,
//! [`Merge::supply`] takes them, [`Merge::peek`] and [`Merge::pop`] give keys in order while no page is missing that may
//! hold an earlier one. It holds one page of each shard at most, and reads nothing itself. A value too large for a page is
//! read when it is its turn; and all pages can be let go, to be read again.

use std::{cmp::Ordering, collections::VecDeque};

use bytes::Bytes;
use kv_proto::{kv::v1::KeyValue, peer::v1::ScannedPage};
use kv_topology::ShardId;
use prost::Message;

use super::{
    limits::SCAN_KEY_BYTES,
    range::{Range, successor},
};

/// A shard gave keys out of order, or outside of what it was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("shard {0} answered a page out of order")]
pub struct OutOfOrder(pub ShardId);

/// The walk.
#[derive(Debug)]
pub struct Merge {
    range: Range,
    reverse: bool,
    cursors: Vec<Cursor>,
    /// Of all that is ready.
    bytes: usize,
}

#[derive(Debug)]
struct Cursor {
    shard: ShardId,
    ready: VecDeque<KeyValue>,
    /// What the shard may have behind `ready`; `None` at its end.
    rest: Option<Range>,
    /// Whether `rest` begins with a value that was left out of a page.
    large: bool,
}

/// A page that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Of which shard.
    pub shard: ShardId,
    /// Of which keys.
    pub range: Range,
    /// Whether it is to begin with its first key, whatever the size of its value. Other values too large for a page are to be
    /// left out.
    pub first_whole: bool,
}

impl Cursor {
    /// What is missing, if it may come before this key; any comes before none.
    fn missing_before(&self, reverse: bool, key: Option<&Bytes>) -> Option<&Range> {
        let rest = self.rest.as_ref().filter(|_| self.ready.is_empty())?;
        let is_earlier = key.is_none_or(|key| match reverse {
            true => rest.end.is_empty() || rest.end > *key,
            false => rest.start < *key,
        });
        is_earlier.then_some(rest)
    }
}

impl Merge {
    /// A walk over `range`, upwards or downwards.
    pub fn new(shards: impl IntoIterator<Item = ShardId>, range: &Range, reverse: bool) -> Self {
        let rest = (!range.is_empty()).then(|| range.clone());
        let cursor = |shard| Cursor { shard, ready: VecDeque::new(), rest: rest.clone(), large: false };
        let cursors = shards.into_iter().map(cursor).collect();
        Self { range: range.clone(), reverse, cursors, bytes: 0 }
    }

    /// The pages without which the next key is not known.
    pub fn wanted(&self) -> Vec<Wanted> {
        let head = self.head().map(|(_, key)| key);
        let missing = |cursor: &Cursor| {
            let range = cursor.missing_before(self.reverse, head)?.clone();
            Some(Wanted { shard: cursor.shard, range, first_whole: cursor.large })
        };
        let (mut large, pages): (Vec<_>, Vec<_>) =
            self.cursors.iter().filter_map(missing).partition(|wanted| wanted.first_whole);
        if !pages.is_empty() {
            return pages;
        }
        // One large value at a time: the first of them.
        large.sort_unstable_by(|one, other| match self.reverse {
            true => other.range.end.cmp(&one.range.end),
            false => one.range.start.cmp(&other.range.start),
        });
        large.truncate(1);
        large
    }

    /// Takes a page that was wanted.
    ///
    /// # Errors
    /// When it cannot be the answer: going on would lose, repeat or disorder keys.
    pub fn supply(&mut self, shard: ShardId, page: ScannedPage) -> Result<(), OutOfOrder> {
        let reverse = self.reverse;
        let cursor = self.cursors.iter_mut().find(|cursor| cursor.shard == shard).ok_or(OutOfOrder(shard))?;
        let asked = cursor.rest.take().ok_or(OutOfOrder(shard))?;
        let inside = page.kvs.iter().all(|kv| asked.contains(&kv.key));
        let ordered = page.kvs.is_sorted_by(|one, next| comes_before(reverse, &one.key, &next.key));
        let rest = rest(reverse, &asked, &page.next_key).ok_or(OutOfOrder(shard))?;
        let beyond = match (&rest, page.kvs.last()) {
            (Some(rest), Some(last)) => !rest.contains(&last.key),
            // What was left out may be the first of all that was asked for, unless it was asked for.
            (Some(rest), None) => *rest != asked || (page.next_is_large && !cursor.large),
            (None, _) => true,
        };
        if !(inside && ordered && beyond) {
            return Err(OutOfOrder(shard));
        }
        self.bytes += page.kvs.iter().map(weight).sum::<usize>();
        cursor.ready = page.kvs.into();
        cursor.large = page.next_is_large && rest.is_some();
        cursor.rest = rest;
        Ok(())
    }

    /// The next key; `None` at the end, and while pages are wanted.
    pub fn peek(&self) -> Option<&KeyValue> {
        self.first().and_then(|number| self.cursors[number].ready.front())
    }

    /// Takes the next key.
    pub fn pop(&mut self) -> Option<KeyValue> {
        let kv = self.first().and_then(|number| self.cursors[number].ready.pop_front())?;
        self.bytes -= weight(&kv);
        Some(kv)
    }

    /// What all keys and values take that it holds, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lets go of all pages: they are wanted again.
    pub fn let_go(&mut self) {
        for cursor in &mut self.cursors {
            let Some(first) = cursor.ready.front() else { continue };
            let mut rest = self.range.clone();
            if self.reverse {
                rest.end = successor(&first.key);
            } else {
                rest.start = first.key.clone();
            }
            *cursor = Cursor { shard: cursor.shard, ready: VecDeque::new(), rest: Some(rest), large: false };
        }
        self.bytes = 0;
    }

    /// Whether every shard is at its end.
    pub fn is_done(&self) -> bool {
        self.cursors.iter().all(|cursor| cursor.ready.is_empty() && cursor.rest.is_none())
    }

    /// The cursor with the next key, unless another one may have an earlier one.
    fn first(&self) -> Option<usize> {
        let (number, key) = self.head()?;
        let is_first = |cursor: &Cursor| cursor.missing_before(self.reverse, Some(key)).is_none();
        self.cursors.iter().all(is_first).then_some(number)
    }

    /// The earliest key that is ready.
    fn head(&self) -> Option<(usize, &Bytes)> {
        let heads = self.cursors.iter().enumerate();
        let heads = heads.filter_map(|(number, cursor)| Some((number, &cursor.ready.front()?.key)));
        heads.reduce(|first, next| if comes_before(self.reverse, next.1, first.1) { next } else { first })
    }
}

/// What a key and its value take, bytes.
pub fn weight(kv: &KeyValue) -> usize {
    kv.encoded_len() + SCAN_KEY_BYTES
}

fn comes_before(reverse: bool, one: &Bytes, other: &Bytes) -> bool {
    one.cmp(other) == if reverse { Ordering::Greater } else { Ordering::Less }
}

/// What is left of `asked` when the shard goes on at `next_key`: perhaps nothing. `None`: it cannot go on there.
fn rest(reverse: bool, asked: &Range, next_key: &Bytes) -> Option<Option<Range>> {
    if next_key.is_empty() {
        return Some(None);
    }
    if *next_key < asked.start || (!asked.end.is_empty() && *next_key > asked.end) {
        return None;
    }
    let (start, end) = if reverse { (&asked.start, next_key) } else { (next_key, &asked.end) };
    let rest = Range { start: start.clone(), end: end.clone() };
    Some((!rest.is_empty()).then_some(rest))
}

#[cfg(test)]
#[path = "merge_model.rs"]
mod tests;
