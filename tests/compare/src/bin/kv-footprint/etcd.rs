//! etcd.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use kv_compare::etcd_cluster::Etcd;

use crate::Options;

/// It reads all that it has before it answers.
const PATIENCE: Duration = Duration::from_secs(600);

pub struct Subject {
    etcd: Etcd,
    value_size: u32,
}

impl Subject {
    /// A new cluster.
    pub fn new(programs: &Path, options: &Options) -> Result<Self> {
        let etcd = Etcd::start(programs, options.nodes, PATIENCE)?;
        Ok(Self { etcd, value_size: options.value_size })
    }
}

impl crate::Subject for Subject {
    const NAME: &'static str = "etcd";

    async fn fill(&self, keys: u64) -> Result<()> {
        self.etcd.fill(keys, self.value_size)
    }

    async fn stop(&mut self) -> Result<()> {
        self.etcd.stop_all()
    }

    async fn start(&mut self) -> Result<()> {
        self.etcd.start_all()?;
        self.etcd.wait_healthy(PATIENCE)
    }

    fn processes(&self) -> Vec<u32> {
        self.etcd.processes()
    }

    fn data_dirs(&self) -> Vec<PathBuf> {
        self.etcd.data_dirs()
    }
}
