//! Orders that a cluster must take, and refusals that it must give, on a machine that may stand still for seconds: each is
//! repeated until it is answered so, or until a deadline says that the cluster is broken. An order that was taken may be
//! given again.

use std::{
    fmt::{self, Display},
    time::Duration,
};

use kv_proto::admin::v1::{ClusterStatus, NodeInfo, NodeState, NodeStatus, Objection, RequestPermitResponse};
use tonic::Status;

use crate::{
    admin::{Admin, Removal},
    api::{in_words, reason},
    cluster::Cluster,
    settled,
    wait::{DEADLINE, SLOW_POLL, wait_until_every},
};

/// Longer than any restart. A permit whose token was lost with its reply is over in time for another one.
pub const PERMIT_TTL: Duration = Duration::from_secs(30);

impl Cluster {
    /// Gives an order to the node `via` until it is taken.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn order<T>(
        &self,
        via: usize,
        what: impl Display,
        order: impl AsyncFn(Admin) -> Result<T, Status>,
    ) -> T {
        let admin = self.admin(via);
        let taken = wait_until_every(SLOW_POLL, what, DEADLINE, || async {
            order(admin.clone()).await.map_err(|status| in_words(&status))
        });
        taken.await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Gives an order to the node `via` until it is refused for this reason, and gives what was said then.
    ///
    /// # Panics
    /// When it is taken, or that takes too long.
    pub async fn wait_refused<T: fmt::Debug>(
        &self,
        via: usize,
        expected: &str,
        what: impl Display,
        order: impl AsyncFn(Admin) -> Result<T, Status>,
    ) -> String {
        let admin = self.admin(via);
        let what = format!("{expected} as the answer to {what}");
        let answered = wait_until_every(SLOW_POLL, &what, DEADLINE, || async {
            match order(admin.clone()).await {
                Ok(reply) => Ok(Err(reply)),
                Err(status) if reason(&status).as_deref() == Some(expected) => {
                    Ok(Ok(status.message().to_owned()))
                }
                Err(status) => Err(in_words(&status)),
            }
        });
        match answered.await.unwrap_or_else(|error| panic!("{error}")) {
            Ok(message) => message,
            Err(reply) => panic!("{what} was expected, and it was taken: {reply:?}"),
        }
    }

    /// The id of a node that runs.
    ///
    /// # Panics
    /// When it does not belong to the cluster in time.
    pub async fn node_id(&self, node: usize) -> u64 {
        // Before it belongs to one it has none.
        let id = |status: &NodeStatus| status.node.as_ref().map_or(0, |node| node.node_id);
        id(&self.wait_status(node, "membership", |status| id(status) != 0).await)
    }

    /// The whole cluster as the node `via` sees it.
    ///
    /// # Panics
    /// When it does not answer in time.
    pub async fn cluster_status(&self, via: usize) -> ClusterStatus {
        self.order(via, "the status of the cluster", async |admin| admin.cluster_status().await).await
    }

    /// Waits until the registry, as the node `via` knows it, has the node with this id in this state.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_state(&self, via: usize, node_id: u64, state: NodeState) -> NodeInfo {
        let admin = self.admin(via);
        let what = format!("#{node_id} in the state {state:?}");
        let reached = wait_until_every(SLOW_POLL, what, DEADLINE, || async {
            let nodes = admin.nodes().await.map_err(|status| in_words(&status))?;
            let known = nodes.into_iter().find(|node| node.node_id == node_id).ok_or("it is not known")?;
            if known.state() == state { Ok(known) } else { Err(format!("{:?}", known.state())) }
        });
        reached.await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until these nodes take part, and gives their ids in this order.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_active(&self, via: usize, nodes: &[usize]) -> Vec<u64> {
        let mut ids = Vec::new();
        for node in nodes {
            let id = self.node_id(*node).await;
            self.wait_state(via, id, NodeState::Active).await;
            ids.push(id);
        }
        ids
    }

    /// Drains a node by way of `via`. Returns when the drain has begun.
    ///
    /// # Panics
    /// When it is not taken in time.
    pub async fn drain(&self, via: usize, node: usize) {
        let name = &self.nodes[node].name;
        let drain = async |admin: Admin| admin.drain(name, "a test wants it empty").await;
        let state = self.order(via, format!("the drain of {name}"), drain).await;
        assert!(matches!(state, NodeState::Draining | NodeState::Drained), "{name} is {state:?}");
    }

    /// Drains a node, and waits until it is empty.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn drain_to_the_end(&self, via: usize, node: usize) {
        let id = self.node_id(node).await;
        self.drain(via, node).await;
        self.wait_state(via, id, NodeState::Drained).await;
    }

    /// Cancels the drain of a node.
    ///
    /// # Panics
    /// When it is not taken in time.
    pub async fn undrain(&self, via: usize, node: usize) {
        let name = &self.nodes[node].name;
        let undrain = async |admin: Admin| admin.undrain(name, "a test wants it back").await;
        let state = self.order(via, format!("the end of the drain of {name}"), undrain).await;
        assert_eq!(state, NodeState::Active, "{name}");
    }

    /// Removes the node with this id.
    ///
    /// # Panics
    /// When that is not taken in time.
    pub async fn remove(&self, via: usize, node_id: u64, removal: Removal) {
        let id = node_id.to_string();
        let what = format!("the removal of #{node_id}, {removal:?}");
        let admin = self.admin(via);
        let removed = wait_until_every(SLOW_POLL, what, DEADLINE, || async {
            // Done already is done, and a node that is gone is not known by its id to everybody.
            let nodes = admin.nodes().await.map_err(|status| in_words(&status))?;
            let known = nodes.iter().find(|node| node.node_id == node_id);
            if known.is_none_or(|node| node.state() == NodeState::Removed) {
                return Ok(());
            }
            match admin.remove(&id, removal).await {
                Ok(_) => Err("taken, and not known yet".to_owned()),
                Err(status) => Err(in_words(&status)),
            }
        });
        removed.await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Asks by way of `via` for the permit to restart a node until it is granted.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_permit(&self, via: usize, node: usize, ttl: Duration) -> RequestPermitResponse {
        let (admin, name) = (self.admin(via), &self.nodes[node].name);
        let granted = wait_until_every(SLOW_POLL, format!("a permit for {name}"), DEADLINE, || async {
            let answer = admin.permit(name, ttl).await.map_err(|status| in_words(&status))?;
            if answer.granted { Ok(answer) } else { Err(in_sentences(&answer.objections)) }
        });
        let granted = granted.await.unwrap_or_else(|error| panic!("{error}"));
        assert!(!granted.token.is_empty() && granted.objections.is_empty(), "{granted:?}");
        granted
    }

    /// Waits until a permit to restart a node would meet such objections, asked by way of `via`, and then asks for it: it must
    /// meet them. They are given.
    ///
    /// # Panics
    /// When it is granted, or that takes too long.
    pub async fn wait_objections(
        &self,
        via: usize,
        node: usize,
        what: &str,
        are_these: impl Fn(&[Objection]) -> bool,
    ) -> Vec<Objection> {
        let (admin, name) = (self.admin(via), &self.nodes[node].name);
        let what = format!("objections to a permit for {name}, {what}");
        let mut objections = Vec::new();
        // A node that died a moment ago was heard of lately: what would be said shows when that is over.
        for dry_run in [true, false] {
            let refused = wait_until_every(SLOW_POLL, &what, DEADLINE, || async {
                let asked = if dry_run {
                    admin.would_permit(name).await
                } else {
                    admin.permit(name, PERMIT_TTL).await
                };
                let answer = asked.map_err(|status| in_words(&status))?;
                assert!(dry_run || !answer.granted, "{what}, were expected: {answer:?}");
                if are_these(&answer.objections) {
                    Ok(answer.objections)
                } else {
                    Err(in_sentences(&answer.objections))
                }
            });
            objections = refused.await.unwrap_or_else(|error| panic!("{error}"));
        }
        objections
    }

    /// The same for one reason.
    ///
    /// # Panics
    /// When the permit is granted, or that takes too long.
    pub async fn wait_objection(&self, via: usize, node: usize, reason: &str) -> Vec<Objection> {
        let has_it = |objections: &[Objection]| objections.iter().any(|objection| objection.reason == reason);
        self.wait_objections(via, node, reason, has_it).await
    }

    /// Gives a permit back.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn release(&self, via: usize, token: &str) {
        self.order(via, "the release of a permit", async |admin: Admin| admin.release(token).await).await;
    }

    /// Waits until the leaders of the data shards are spread evenly.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_even_leaders(&self, via: usize) {
        self.wait_cluster(via, "leaders that are spread evenly", settled::has_even_leaders).await;
    }

    /// The indexes of all nodes but these.
    pub fn all_but(&self, some: &[usize]) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| !some.contains(node)).collect()
    }
}

/// Objections for people.
pub fn in_sentences(objections: &[Objection]) -> String {
    let sentence = |objection: &Objection| {
        let shard = objection.shard_id.map_or(String::new(), |shard| format!(" of shard {shard}"));
        format!("{}{shard}: {}", objection.reason, objection.message)
    };
    objections.iter().map(sentence).collect::<Vec<_>>().join("; ")
}
