//! The header of a reply: where and when it was made.

use kv_proto::{kv::v1::ResponseHeader, peer::v1::ReplyContext};

/// The header of a reply that one replica made.
pub fn of(context: Option<&ReplyContext>, cluster_id: &str) -> ResponseHeader {
    let context = context.copied().unwrap_or_default();
    ResponseHeader {
        cluster_id: cluster_id.to_owned(),
        node_id: context.node_id,
        shard_id: context.shard_id,
        revision: context.revision,
        term: context.term,
        map_epoch: context.map_epoch,
        served_by: context.served_by,
    }
}

/// The header of a reply that several shards made: it names no shard, revision or term, and no node unless it was
/// the same one for all.
pub fn of_many<'a>(contexts: impl IntoIterator<Item = &'a ReplyContext>, cluster_id: &str) -> ResponseHeader {
    let mut contexts = contexts.into_iter();
    let first = contexts.next().copied();
    let mut header = of(first.as_ref(), cluster_id);
    for context in contexts {
        header.map_epoch = header.map_epoch.max(context.map_epoch);
        if context.node_id != header.node_id {
            header.node_id = 0;
        }
        if context.shard_id != header.shard_id {
            (header.shard_id, header.revision, header.term) = (0, 0, 0);
        }
        if context.served_by != header.served_by {
            header.served_by = 0;
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(node_id: u64, shard_id: u32, map_epoch: u64) -> ReplyContext {
        ReplyContext { node_id, shard_id, revision: 7, term: 3, map_epoch, served_by: 1 }
    }

    #[test]
    fn a_reply_of_several_shards_names_none() {
        let one = of(Some(&context(2, 5, 9)), "c");
        assert_eq!((one.cluster_id.as_str(), one.node_id, one.shard_id, one.revision), ("c", 2, 5, 7));
        let same = of_many([&context(2, 5, 9), &context(2, 5, 9)], "c");
        assert_eq!(same, one);
        let many = of_many([&context(2, 5, 9), &context(3, 6, 11)], "c");
        assert_eq!((many.node_id, many.shard_id, many.revision, many.term), (0, 0, 0, 0));
        assert_eq!((many.map_epoch, many.served_by), (11, 1));
        assert_eq!(of_many([], "c"), ResponseHeader { cluster_id: "c".to_owned(), ..Default::default() });
    }
}
