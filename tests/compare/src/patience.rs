//! Waits that are longer than those of the tests: what is measured here moves gigabytes, or hundreds of replicas.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kv_cluster_tests::Cluster;
use kv_proto::admin::v1::ClusterStatus;
use tokio::time::sleep;

/// How often it is looked whether the cluster is as it should be.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Returns when the cluster is so, as the node `via` sees it.
///
/// # Errors
/// When it is not after `timeout`: what was missing at last.
pub async fn reach(
    cluster: &Cluster,
    via: usize,
    what: &str,
    timeout: Duration,
    is_so: impl Fn(&ClusterStatus) -> Result<(), String>,
) -> Result<()> {
    let begun = Instant::now();
    let mut missing = String::new();
    while begun.elapsed() < timeout {
        match cluster.admin(via).cluster_status().await {
            Ok(status) => match is_so(&status) {
                Ok(()) => return Ok(()),
                Err(left) => missing = left,
            },
            Err(status) => status.message().clone_into(&mut missing),
        }
        sleep(LOOK_EVERY).await;
    }
    bail!("no {what} after {} s: {missing}", timeout.as_secs())
}
