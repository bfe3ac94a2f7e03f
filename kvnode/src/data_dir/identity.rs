//! Whose disk this is: the file `IDENTITY`, written first of all.
//!
//! The disk UUID is what the cluster knows a disk by; a new disk under an old name is a new node. The boot counter
//! lets the cluster tell a restored or cloned volume from the disk that it knew.

use std::path::Path;

use kv_proto::disk::v1::{Founding, NodeIdentity};
use prost::Message;
use rand::Rng;
use uuid::{Builder, Uuid};

use super::{DataDirError, IDENTITY, small_file};
use crate::config::NodeName;

/// The format of a data folder that this version writes, and the only one that it reads. Of format 1 the Raft logs were in a
/// RocksDB; it was never released.
pub const FORMAT: u32 = 2;

/// Content of `IDENTITY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Drawn when the folder was first used.
    pub disk_uuid: Uuid,
    /// The name of its node.
    pub node_name: String,
    /// Starts of the folder, this one included: 1 at the first.
    pub boot_counter: u64,
    /// `None` until the node belongs to a cluster.
    pub membership: Option<Membership>,
    /// The cluster that is being founded here. With a membership, its first record may not be committed yet; without,
    /// nobody has heard of it and it may be forgotten.
    pub founding: Option<Founding>,
    /// Why the cluster goes on without this folder. Its replicas never start again.
    pub fenced: Option<String>,
}

/// The cluster that a disk belongs to, and the node that it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Minted at bootstrap. Not empty.
    pub cluster_id: String,
    /// Minted by the meta group. Not 0.
    pub node_id: u64,
}

impl Identity {
    /// Of a folder that was never started.
    pub(super) fn new(name: &NodeName, rng: &mut impl Rng) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        Self {
            disk_uuid: Builder::from_random_bytes(bytes).into_uuid(),
            node_name: name.to_string(),
            boot_counter: 0,
            membership: None,
            founding: None,
            fenced: None,
        }
    }

    /// Reads the folder's; `None` when it has none.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, DataDirError> {
        let path = folder.join(IDENTITY);
        let Some(content) = small_file::read_checked(&path).map_err(DataDirError::small_file)? else {
            return Ok(None);
        };
        let damaged = |reason: String| DataDirError::Damaged { path: path.clone(), reason };
        let stored = NodeIdentity::decode(content.as_slice()).map_err(|error| damaged(error.to_string()))?;
        match stored.format {
            0 => return Err(damaged("it has no format stamp".to_owned())),
            FORMAT => {}
            found => return Err(DataDirError::OtherFormat { path: folder.to_owned(), found }),
        }
        decode(stored).map(Some).map_err(damaged)
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), DataDirError> {
        let content = encode(self).encode_to_vec();
        small_file::write_checked(&folder.join(IDENTITY), &content).map_err(DataDirError::small_file)
    }

    pub(super) fn check_name(&self, folder: &Path, name: &NodeName) -> Result<(), DataDirError> {
        if self.node_name == name.as_str() {
            return Ok(());
        }
        let found = self.node_name.clone();
        Err(DataDirError::AnotherNode { path: folder.to_owned(), found, wanted: name.clone() })
    }
}

fn encode(identity: &Identity) -> NodeIdentity {
    let Identity { disk_uuid, node_name, boot_counter, membership, founding, fenced } = identity.clone();
    let (cluster_id, node_id) = membership.map(|own| (own.cluster_id, own.node_id)).unwrap_or_default();
    NodeIdentity {
        format: FORMAT,
        disk_uuid: disk_uuid.as_bytes().to_vec().into(),
        node_name,
        boot_counter,
        cluster_id,
        node_id,
        founding,
        fenced: fenced.unwrap_or_default(),
    }
}

fn decode(stored: NodeIdentity) -> Result<Identity, String> {
    let NodeIdentity { format: _, disk_uuid, node_name, boot_counter, cluster_id, node_id, founding, fenced } =
        stored;
    let disk_uuid = Uuid::from_slice(&disk_uuid)
        .map_err(|_| format!("its disk UUID has {} bytes, not 16", disk_uuid.len()))?;
    let membership = match (cluster_id.is_empty(), node_id) {
        (true, 0) => None,
        (false, 1..) => Some(Membership { cluster_id, node_id }),
        (true, _) => return Err("it names a node id without a cluster".to_owned()),
        (false, _) => return Err("it names a cluster without a node id".to_owned()),
    };
    let fenced = (!fenced.is_empty()).then_some(fenced);
    Ok(Identity { disk_uuid, node_name, boot_counter, membership, founding, fenced })
}
