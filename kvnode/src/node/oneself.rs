//! What a node tells other nodes of itself as a whole, and does when they ask.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kv_proto::{
    admin::v1::Phase,
    peer::v1::{NodeDescription, Refusal, ReplicaSize},
};
use tokio::time::Instant;

use super::{core::Core, record::read_record, requests::Oneself};
use crate::{http::Verdict, refusal};

/// For reading the record of meta: the caller waits for it, and for the leaderships to go.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// The node that answers. It holds what answers for it, and so is not held by it.
pub struct OfCore(pub Weak<Core>);

impl Oneself for OfCore {
    fn describe(&self) -> NodeDescription {
        let going = || NodeDescription { stopping: true, ..NodeDescription::default() };
        self.0.upgrade().map_or_else(going, |core| core.describe())
    }

    fn hand_over(&self, token: String) -> BoxFuture<'static, Result<(), Refusal>> {
        let core = self.0.upgrade();
        async move {
            let core: Arc<Core> =
                core.ok_or_else(|| refusal::not_applied(refusal::STOPPING, "the node is stopping"))?;
            core.hand_over(&token).await
        }
        .boxed()
    }
}

impl Core {
    fn describe(&self) -> NodeDescription {
        let member = self.member.get();
        let space = self.disk.space();
        let sizes = self.stores.sizes.all().into_iter();
        NodeDescription {
            stopping: member.is_some_and(|member| member.replicas.are_leaving()),
            unfit_replica_ids: self.stores.quarantined().iter().map(|replica| replica.replica_id).collect(),
            caught_up: self.phase().0 == Phase::Running && self.caught_up() == Verdict::Ok,
            boot_counter: super::core::lock(&self.dir).identity().boot_counter,
            disk_used_bytes: space.map_or(0, |space| space.total.0.saturating_sub(space.free.0)),
            disk_total_bytes: space.map_or(0, |space| space.total.0),
            sizes: sizes.map(|(id, bytes)| ReplicaSize { replica_id: id.get(), bytes }).collect(),
        }
    }

    async fn hand_over(&self, token: &str) -> Result<(), Refusal> {
        let member = self.member.get().ok_or_else(|| {
            refusal::not_applied(refusal::STARTING, "this node does not belong to a cluster yet")
        })?;
        let record = read_record(&*member.router, Instant::now() + READ_TIMEOUT).await?;
        member.hand_over.begin(record, token).await
    }
}
