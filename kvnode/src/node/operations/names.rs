//! What a request calls by name, looked up in the record. Pure.

use kv_proto::{
    disk::v1::{MetaRecord, NodeRecord, NodeState, ShardRecord},
    peer::v1::{Refusal, refusal::Kind},
};

use crate::{
    meta::view,
    refusal::{self, NODE_UNKNOWN, SHARD_UNKNOWN},
};

/// The node that the field `field` of a request calls `name`; see [`kv_topology::ClusterMap::node_called`].
///
/// # Errors
/// There is none.
pub fn node<'a>(record: &'a MetaRecord, field: &str, name: &str) -> Result<&'a NodeRecord, Refusal> {
    let map = view::cluster_map(record).map_err(|error| refusal::internal(error.to_string()))?;
    let called = map.node_called(name);
    let node = called.and_then(|id| record.nodes.iter().find(|node| node.node_id == id.get()));
    node.ok_or_else(|| unknown(field, NODE_UNKNOWN, format!("there is no node {name}")))
}

/// The same; when nobody has that name any more, the node that was removed last of those that had it.
///
/// # Errors
/// There never was one, as far as the record knows.
pub fn node_ever<'a>(record: &'a MetaRecord, field: &str, name: &str) -> Result<&'a NodeRecord, Refusal> {
    let removed = record.nodes.iter().filter(|node| node.state() == NodeState::Removed);
    let last = || removed.filter(|node| node.name == name).max_by_key(|node| node.node_id);
    node(record, field, name).or_else(|refused| last().ok_or(refused))
}

/// The shard with this number.
///
/// # Errors
/// There is none.
pub fn shard(record: &MetaRecord, shard: u32) -> Result<&ShardRecord, Refusal> {
    let found = record.shards.iter().find(|known| known.shard_id == shard);
    found.ok_or_else(|| unknown("shard_id", SHARD_UNKNOWN, format!("there is no shard {shard}")))
}

fn unknown(field: &str, reason: &str, message: String) -> Refusal {
    Refusal { field: field.to_owned(), ..refusal::of(Kind::NotFound, reason, message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::operations::model::record;

    #[test]
    fn a_node_is_called_by_name_or_id_and_an_unknown_one_is_refused_with_its_field() {
        let mut record = record(3);
        record.nodes[1].name = "data-2".to_owned();
        for (name, id) in [("n1", 1), ("1", 1), ("data-2", 2), ("#2", 2)] {
            assert_eq!(node(&record, "node", name).expect(name).node_id, id);
        }
        let refused = node(&record, "to_node", "n9").expect_err("there is none");
        let told = (refused.kind(), refused.reason.as_str(), refused.field.as_str());
        assert_eq!(told, (Kind::NotFound, "NODE_UNKNOWN", "to_node"));
        for index in [0, 1] {
            record.nodes[index].name = "data-2".to_owned();
            record.nodes[index].state = NodeState::Removed.into();
        }
        assert_eq!(node(&record, "node", "data-2").expect_err("its name is free").reason, "NODE_UNKNOWN");
        assert_eq!(node_ever(&record, "node", "data-2").expect("of two the last").node_id, 2);
        record.nodes[2].name = "data-2".to_owned();
        assert_eq!(node_ever(&record, "node", "data-2").expect("who has it now").node_id, 3);
        assert_eq!(node_ever(&record, "node", "n9").expect_err("nobody ever").field, "node");
        assert_eq!(shard(&record, 1).expect("a data shard").shard_id, 1);
        let refused = shard(&record, 7).expect_err("there is none");
        assert_eq!((refused.reason.as_str(), refused.field.as_str()), ("SHARD_UNKNOWN", "shard_id"));
    }
}
