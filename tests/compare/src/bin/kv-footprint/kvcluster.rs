//! kvnodes.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kv_cluster_tests::{
    Cluster, Node, Plan,
    api::{Api, Read},
    wait::wait_until,
};
use kv_compare::kvctl::{Kvctl, key};
use serde::de::IgnoredAny;

use crate::Options;

const PATIENCE: Duration = Duration::from_secs(600);
/// For each shard: so many that none is left out, as good as ever.
const KEYS_PER_SHARD: u64 = 16;

pub struct Subject {
    cluster: Cluster,
    value_size: u32,
    /// That a started node must answer.
    asked_keys: u64,
}

impl Subject {
    /// A new cluster.
    pub async fn new(options: &Options) -> Result<Self> {
        let plan = Plan::nodes(options.nodes).with_shards(options.shards);
        let cluster = Cluster::start(plan).await.context("kvnode was not built")?;
        let asked_keys = options.shards as u64 * KEYS_PER_SHARD;
        Ok(Self { cluster, value_size: options.value_size, asked_keys })
    }
}

impl crate::Subject for Subject {
    const NAME: &'static str = "KvCluster";

    async fn fill(&self, keys: u64) -> Result<()> {
        ensure!(keys >= self.asked_keys, "--keys: {keys} are fewer than {}", self.asked_keys);
        let values = [
            ("--clients", 1),
            ("--seconds", 1),
            ("--warm-up-seconds", 0),
            ("--keys", keys),
            ("--value-size", u64::from(self.value_size)),
        ];
        // Which writes all keys before it reads.
        Kvctl::of(&self.cluster)?.bench::<IgnoredAny>("get", &[], &values)?;
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        self.cluster.nodes.iter_mut().for_each(Node::terminate);
        for node in &mut self.cluster.nodes {
            node.ended(PATIENCE).await?;
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<()> {
        self.cluster.start_all();
        for node in &self.cluster.nodes {
            let api = node.api();
            wait_until(format!("answers of {}", node.name), PATIENCE, || {
                answers(api.clone(), self.asked_keys)
            })
            .await?;
        }
        Ok(())
    }

    fn processes(&self) -> Vec<u32> {
        self.cluster.nodes.iter().filter_map(Node::process_id).collect()
    }

    fn data_dirs(&self) -> Vec<PathBuf> {
        self.cluster.nodes.iter().map(|node| node.data_dir.clone()).collect()
    }
}

/// Whether a node reads all of the first keys.
async fn answers(mut api: Api, keys: u64) -> Result<(), String> {
    for number in 0..keys {
        let read = api.get(&key(number), Read::Linearizable).await;
        let read = read.map_err(|status| status.message().to_owned())?;
        if read.kv.is_none() {
            return Err(format!("{} is gone", key(number)));
        }
    }
    Ok(())
}
