//! The journal of the meta group among its state: entries that come with the commands they tell of, and leave in the order
//! in which they came. Under the generation as all else, so that a snapshot carries it.

use std::ops::ControlFlow;

use bytes::Bytes;
use kv_proto::{
    disk::v1::JournalEntry,
    peer::v1::{JournalEntries, JournalPage},
};
use prost::Message;

use super::{
    limits::{JOURNAL_ENTRIES_KEPT, JOURNAL_PAGE_ENTRIES_MAX, READ_BYTES_MAX},
    overlay::Overlay,
    value,
};
use crate::{
    meta::journal::subjects,
    state::{Direction, StateError, View, keys::Scope},
};

/// Adds an entry, and forgets the one that is too old by now.
pub(crate) fn keep(overlay: &mut Overlay<'_>, scope: Scope, entry: &JournalEntry) {
    overlay.put(scope.journal(entry.sequence), entry.encode_to_vec());
    if let Some(old) = entry.sequence.checked_sub(JOURNAL_ENTRIES_KEPT).filter(|old| *old > 0) {
        overlay.delete(scope.journal(old));
    }
}

/// The newest entries before a sequence that are about what is asked for: as many as are asked for and fit.
///
/// # Errors
/// Damage, and failures of the store.
pub(crate) fn page(
    view: &dyn View,
    scope: Scope,
    request: &JournalPage,
) -> Result<JournalEntries, StateError> {
    let limit = match request.limit as usize {
        0 => JOURNAL_PAGE_ENTRIES_MAX,
        asked => asked.min(JOURNAL_PAGE_ENTRIES_MAX),
    };
    let mut page = JournalEntries::default();
    let (mut bytes, mut damage) = (0, None);
    view.scan(&scope.journal_before(request.before), Direction::Reverse, &mut |_, found| {
        let entry: JournalEntry =
            match value::decode(scope.replica, "an entry of the journal", Bytes::copy_from_slice(found)) {
                Ok(entry) => entry,
                Err(error) => {
                    damage = Some(error);
                    return ControlFlow::Break(());
                }
            };
        if !is_about(&entry, request) {
            return ControlFlow::Continue(());
        }
        let is_full = page.entries.len() == limit || bytes + found.len() > READ_BYTES_MAX;
        if let Some(last) = page.entries.last().filter(|_| is_full) {
            page.next_before = last.sequence;
            return ControlFlow::Break(());
        }
        bytes += found.len();
        page.entries.push(entry);
        ControlFlow::Continue(())
    })?;
    damage.map_or(Ok(page), Err)
}

fn is_about(entry: &JournalEntry, request: &JournalPage) -> bool {
    if request.shard_id.is_none() && request.node_id.is_none() {
        return true;
    }
    let subjects = subjects(entry);
    request.shard_id.is_none_or(|shard| subjects.shards.contains(&shard))
        && request.node_id.is_none_or(|node| subjects.nodes.contains(&node))
}
