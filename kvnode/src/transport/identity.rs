//! Who we are, and whether a batch is meant for us.
//!
//! A node belongs to no cluster until it has bootstrapped or joined: until then it refuses all frames.

use std::sync::OnceLock;

use kv_proto::peer::v1::{Frame, FrameBatch};
use kv_topology::NodeId;

/// The cluster that this node belongs to, and its id there. Once known it never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id, as meta minted it.
    pub cluster_id: String,
    /// This node.
    pub node: NodeId,
}

/// Why a batch, and with it its stream, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// This node belongs to no cluster yet.
    #[error("this node does not belong to a cluster yet")]
    NoClusterYet,
    /// The sender belongs to another one.
    #[error("batch of cluster {theirs}, this is cluster {ours}")]
    OtherCluster {
        /// This node's cluster.
        ours: String,
        /// The sender's.
        theirs: String,
    },
    /// The sender wanted to talk to another node, or names itself as sender.
    #[error("batch for {theirs}, this is {ours}")]
    OtherNode {
        /// This node.
        ours: NodeId,
        /// The node that was addressed.
        theirs: NodeId,
    },
    /// The stream of one node carries a batch of another.
    #[error("batch of {theirs} on the stream of {expected}")]
    OtherSender {
        /// Whose stream it is.
        expected: NodeId,
        /// Who the batch says it is from.
        theirs: NodeId,
    },
    /// Too many connections that have not said who they are.
    #[error("too many connections that have not said who they are")]
    TooManyStrangers,
}

impl Identity {
    /// Puts frames for `to` into an envelope.
    pub fn seal(&self, to: NodeId, frames: Vec<Frame>) -> FrameBatch {
        FrameBatch {
            cluster_id: self.cluster_id.clone(),
            from_node: self.node.0,
            to_node: to.0,
            frames,
            ..FrameBatch::default()
        }
    }

    /// Checks the envelope of a batch from `from`, or from whom it says when that is not known yet.
    ///
    /// # Errors
    /// When the batch is of another cluster, for another node or from another sender.
    pub fn check(&self, batch: &FrameBatch, from: Option<NodeId>) -> Result<NodeId, Refused> {
        if batch.cluster_id != self.cluster_id {
            let theirs = batch.cluster_id.chars().take(64).collect();
            return Err(Refused::OtherCluster { ours: self.cluster_id.clone(), theirs });
        }
        let sender = NodeId(batch.from_node);
        if batch.to_node != self.node.0 || sender == self.node {
            return Err(Refused::OtherNode { ours: self.node, theirs: NodeId(batch.to_node) });
        }
        match from {
            Some(expected) if expected != sender => Err(Refused::OtherSender { expected, theirs: sender }),
            _ => Ok(sender),
        }
    }
}

/// The identity once it is known.
#[derive(Debug, Default)]
pub(super) struct IdentityCell(OnceLock<Identity>);

impl IdentityCell {
    /// Sets it. False: another one is set.
    pub(super) fn set(&self, identity: &Identity) -> bool {
        self.0.get_or_init(|| identity.clone()) == identity
    }

    pub(super) fn get(&self) -> Option<&Identity> {
        self.0.get()
    }

    pub(super) fn check(&self, batch: &FrameBatch, from: Option<NodeId>) -> Result<NodeId, Refused> {
        self.get().ok_or(Refused::NoClusterYet)?.check(batch, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_batches_of_our_cluster_for_us_from_the_right_node_pass() {
        let ours = Identity { cluster_id: "a".into(), node: NodeId(1) };
        let theirs = Identity { cluster_id: "a".into(), node: NodeId(2) };
        let good = theirs.seal(NodeId(1), vec![]);
        assert_eq!(ours.check(&good, None), Ok(NodeId(2)));
        assert_eq!(ours.check(&good, Some(NodeId(2))), Ok(NodeId(2)));
        assert!(matches!(ours.check(&good, Some(NodeId(3))), Err(Refused::OtherSender { .. })));
        let foreign = FrameBatch { cluster_id: "b".into(), ..good.clone() };
        assert!(matches!(ours.check(&foreign, None), Err(Refused::OtherCluster { .. })));
        let astray = theirs.seal(NodeId(3), vec![]);
        assert!(matches!(ours.check(&astray, None), Err(Refused::OtherNode { .. })));
        assert_eq!(IdentityCell::default().check(&good, None), Err(Refused::NoClusterYet));
    }

    #[test]
    fn an_identity_never_changes() {
        let cell = IdentityCell::default();
        let identity = Identity { cluster_id: "a".into(), node: NodeId(1) };
        assert!(cell.set(&identity) && cell.set(&identity));
        assert!(!cell.set(&Identity { node: NodeId(2), ..identity }));
    }
}
