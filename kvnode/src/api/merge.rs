//! One ordered walk over the keys of many shards: a pure k-way merge over their pages.
//!
//! A cursor for each shard holds what is left of its last page. [`Merge::wanted`] says which pages are missing,
//! [`Merge::supply`] takes them, [`Merge::peek`] and [`Merge::pop`] give keys in order while every cursor that is not
//! at its end holds one. It holds one page of each shard at most, and reads nothing itself.

use std::{cmp::Ordering, collections::VecDeque};

use bytes::Bytes;
use kv_proto::{kv::v1::KeyValue, peer::v1::ScannedPage};
use kv_topology::ShardId;

use super::range::Range;

/// A shard gave keys out of order, or outside of what it was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("shard {0} answered a page out of order")]
pub struct OutOfOrder(pub ShardId);

/// The walk.
#[derive(Debug)]
pub struct Merge {
    reverse: bool,
    cursors: Vec<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    shard: ShardId,
    ready: VecDeque<KeyValue>,
    /// What the shard may have behind `ready`; `None` at its end.
    rest: Option<Range>,
}

impl Merge {
    /// A walk over `range`, upwards or downwards.
    pub fn new(shards: impl IntoIterator<Item = ShardId>, range: &Range, reverse: bool) -> Self {
        let rest = (!range.is_empty()).then(|| range.clone());
        let cursor = |shard| Cursor { shard, ready: VecDeque::new(), rest: rest.clone() };
        Self { reverse, cursors: shards.into_iter().map(cursor).collect() }
    }

    /// The pages without which the next key is not known.
    pub fn wanted(&self) -> Vec<(ShardId, Range)> {
        let missing = self.cursors.iter().filter(|cursor| cursor.ready.is_empty());
        missing.filter_map(|cursor| cursor.rest.clone().map(|rest| (cursor.shard, rest))).collect()
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
            (Some(rest), None) => *rest != asked,
            (None, _) => true,
        };
        if !(inside && ordered && beyond) {
            return Err(OutOfOrder(shard));
        }
        cursor.ready = page.kvs.into();
        cursor.rest = rest;
        Ok(())
    }

    /// The next key; `None` at the end, and while pages are wanted.
    pub fn peek(&self) -> Option<&KeyValue> {
        self.first().and_then(|number| self.cursors[number].ready.front())
    }

    /// Takes the next key.
    pub fn pop(&mut self) -> Option<KeyValue> {
        self.first().and_then(|number| self.cursors[number].ready.pop_front())
    }

    /// Whether every shard is at its end.
    pub fn is_done(&self) -> bool {
        self.cursors.iter().all(|cursor| cursor.ready.is_empty() && cursor.rest.is_none())
    }

    fn first(&self) -> Option<usize> {
        let mut first: Option<(usize, &Bytes)> = None;
        for (number, cursor) in self.cursors.iter().enumerate() {
            match (cursor.ready.front(), &cursor.rest) {
                (None, Some(_)) => return None,
                (None, None) => {}
                (Some(kv), _) => match first {
                    Some((_, least)) if !comes_before(self.reverse, &kv.key, least) => {}
                    _ => first = Some((number, &kv.key)),
                },
            }
        }
        first.map(|(number, _)| number)
    }
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
