//! A restart on purpose as the operator does it: with a permit, and a hand-over before the stop.

use crate::{admin::Admin, cluster::Cluster, operations::PERMIT_TTL, wait::DEADLINE};

impl Cluster {
    /// Restarts a node by way of another one: permit, hand-over, SIGTERM, start, ready, release.
    ///
    /// # Panics
    /// When a step of it takes too long.
    pub async fn restart_with_permit(&mut self, via: usize, node: usize) {
        assert_ne!(via, node, "somebody must be there meanwhile");
        let token = self.wait_permit(via, node, PERMIT_TTL).await.token;
        let name = self.nodes[node].name.clone();
        let hand_over = async |admin: Admin| admin.hand_over(&name, &token).await;
        self.order(via, format!("the hand-over of {name}"), hand_over).await;
        self.restart(node).await;
        self.wait_status(node, "readiness", |status| status.ready).await;
        self.release(via, &token).await;
    }

    /// SIGTERM, and a start when it has ended.
    ///
    /// # Panics
    /// When it does not end in time, or not well.
    pub async fn restart(&mut self, node: usize) {
        self.nodes[node].terminate();
        self.nodes[node].ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
        self.nodes[node].start();
    }
}
