//! What the nodes of a cluster take of the machine's memory, as Linux counts it, and what they may take.

use std::fs;

use kv_cluster_tests::{Cluster, Node, Plan};

pub const MIB: u64 = 1 << 20;

/// What each node may use in all, MiB: little, so that too much of anything shows.
const NODE_MEMORY_MIB: u64 = 256;

/// Nodes that are told what they may use.
pub fn bounded(plan: Plan) -> Plan {
    plan.with_flag("--memory", format!("{NODE_MEMORY_MIB}Mi"))
}

/// All nodes of a [`bounded`] cluster; none where the system does not tell.
pub struct Memory(Vec<Watched>);

/// A node's process: what it had, and the most that it has had since then.
struct Watched {
    node: String,
    process: u32,
    before: u64,
}

impl Memory {
    /// From now on.
    pub fn watch(cluster: &Cluster) -> Self {
        Self(cluster.nodes.iter().filter_map(Watched::begin).collect())
    }

    /// The most that each has had, all of them together, bytes.
    pub fn peaks(&self) -> u64 {
        self.0.iter().map(Watched::peak).sum()
    }

    /// Tells what each took.
    ///
    /// # Panics
    /// When it is more than it may.
    pub fn check(&self) {
        for watched in &self.0 {
            let Watched { node, before, .. } = watched;
            let peak = watched.peak();
            println!("{node} grew by {} MiB to {}", peak.saturating_sub(*before) / MIB, peak / MIB);
            assert!(peak <= NODE_MEMORY_MIB * MIB, "{node} took {} MiB", peak / MIB);
        }
    }
}

impl Watched {
    fn begin(node: &Node) -> Option<Self> {
        let process = node.process_id()?;
        // 5: the peak begins anew.
        fs::write(format!("/proc/{process}/clear_refs"), "5").ok()?;
        Some(Self { node: node.name.clone(), process, before: bytes(process, "VmRSS:")? })
    }

    fn peak(&self) -> u64 {
        bytes(self.process, "VmHWM:").expect("the node runs")
    }
}

fn bytes(process: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
