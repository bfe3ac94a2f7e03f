//! A node that was started with `--recovery`: its stores are open, its replicas do not start, and it speaks to no other node.
//!
//! Opening the folder is all that it does by itself, as any start does: the start is counted, what a crash cut short is
//! finished, and a database that is damaged as a whole is set aside.

use std::{path::Path, sync::Arc};

use kv_proto::admin::v1::{InspectResponse, Phase};
use rand::rngs::StdRng;
use tokio::sync::Mutex;

use super::core::{Core, lock};
use crate::{
    config::Config,
    data_dir::{DataDir, has_identity},
    recovery::{service::RecoveryService, site::Site},
};

/// What a person reads of such a node.
const MESSAGE: &str = "started with --recovery: it answers `kvctl recover` and nothing else; start it without the flag to serve";

/// Opens the data folder. Under `--recovery` it must be one of a member of a cluster: no other has anything to recover, and none
/// is made.
///
/// # Errors
/// When it cannot be used.
pub fn open_folder(config: &Config, rng: &mut StdRng) -> anyhow::Result<DataDir> {
    if config.recovery {
        refuse_unless_there(&config.data_dir)?;
    }
    let dir = DataDir::open(&config.data_dir, &config.node_name, rng)?;
    let folder = dir.path().display();
    let is_member = dir.identity().membership.is_some();
    anyhow::ensure!(
        is_member || !config.recovery,
        "--recovery: data folder {folder} belongs to no cluster, there is nothing to recover"
    );
    Ok(dir)
}

fn refuse_unless_there(path: &Path) -> anyhow::Result<()> {
    let folder = path.display();
    anyhow::ensure!(
        has_identity(path),
        "--recovery: {folder} is no data folder of kvnode: it holds no IDENTITY"
    );
    Ok(())
}

/// Says what this node is.
pub(super) fn enter(core: &Core) {
    tracing::warn!("started with --recovery: no replica starts, nothing is served");
    core.enter(Phase::Recovering, MESSAGE);
}

/// The service, of a node under `--recovery` and of one that runs.
pub(super) fn service(core: &Arc<Core>) -> RecoveryService {
    let me = Arc::downgrade(core);
    RecoveryService::new(Site {
        head: Box::new(move || me.upgrade().map(|core| head(&core)).unwrap_or_default()),
        stores: core.stores.clone(),
        maps: core.maps.clone(),
        store: core.store.clone(),
        writing: Mutex::default(),
    })
}

fn head(core: &Core) -> InspectResponse {
    let own = core.own_info();
    let identity = core.identity();
    InspectResponse {
        node_id: own.node_id,
        node_name: own.name,
        cluster_id: identity.map(|identity| identity.cluster_id).unwrap_or_default(),
        disk_uuid: own.disk_uuid,
        version: own.version,
        recovering: core.config.recovery,
        fenced: lock(&core.dir).identity().fenced.clone().unwrap_or_default(),
        ..InspectResponse::default()
    }
}
