//! A cluster of real processes on this machine.
//!
//! It is planned, started, harmed and dropped; dropping it ends every process that it started, by its id, and
//! removes the data. When the test fails, the nodes' logs are printed and the folder is kept.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use kv_proto::admin::v1::{GetNodeStatusRequest, NodeStatus};
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::{
    admin::Admin,
    api::{Api, Read},
    binary::{self, Binary},
    failpoints,
    namespaces::Namespaces,
    network::Network,
    node::{Node, Program},
    ports::PortBlock,
    settled::Wanted,
    status,
    wait::{DEADLINE, wait_until},
};

/// Clusters at a time: one with its load uses a quarter of a core, and waits for elections and time-outs else.
static FEW_AT_A_TIME: Semaphore = Semaphore::const_new(2);

/// Namespaces are named after the process, so it has one set of them.
static NAMESPACES: Semaphore = Semaphore::const_new(1);

/// How often a start is repeated because somebody took a port.
const START_ATTEMPTS: usize = 3;

/// A node that does not say how it is for this long counts as silent.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);

/// Lines of each node's log that a failed test prints.
const PRINTED_LOG_LINES: usize = 80;

/// Data shards of a cluster under test, unless planned otherwise: a few groups, so that the machine is not busy
/// with heartbeats.
const DATA_SHARDS: usize = 3;

/// Replicas of each shard, unless planned otherwise.
const REPLICATION_FACTOR: usize = 3;

/// How the nodes find one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forming {
    /// All are named on each command line.
    InitialNodes,
    /// The first makes a cluster of itself; the others join it.
    Join,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Plan {
    nodes: usize,
    data_shards: usize,
    replication_factor: usize,
    forming: Forming,
    network: bool,
    namespaces: bool,
    power_loss: bool,
    volume_bytes: Option<u64>,
    open_files: Option<u32>,
    failpoints: bool,
    arguments: Vec<String>,
}

impl Plan {
    /// So many nodes, named on each command line.
    pub fn nodes(nodes: usize) -> Self {
        Self {
            nodes,
            data_shards: DATA_SHARDS,
            replication_factor: REPLICATION_FACTOR,
            forming: Forming::InitialNodes,
            network: false,
            namespaces: false,
            power_loss: false,
            volume_bytes: None,
            open_files: None,
            failpoints: false,
            arguments: Vec::new(),
        }
    }

    /// One node, to which others are added with [`Cluster::add_node`].
    pub fn growing() -> Self {
        Self { forming: Forming::Join, ..Self::nodes(1) }
    }

    /// Another number of data shards.
    pub fn with_shards(self, data_shards: usize) -> Self {
        Self { data_shards, ..self }
    }

    /// Another number of replicas of each shard.
    pub fn with_replication_factor(self, replication_factor: usize) -> Self {
        Self { replication_factor, ..self }
    }

    /// A network that can be cut, at the cost of a proxy between each two nodes.
    pub fn with_network(self) -> Self {
        Self { network: true, ..self }
    }

    /// Each node in a network namespace of its own, see [`crate::namespaces::available`].
    pub fn with_namespaces(self) -> Self {
        Self { namespaces: true, ..self }
    }

    /// Nodes whose power can be lost.
    pub fn with_power_loss(self) -> Self {
        Self { power_loss: true, ..self }
    }

    /// Nodes each on a volume of this size, which can be changed. Not together with power loss.
    pub fn with_volumes(self, bytes: u64) -> Self {
        Self { volume_bytes: Some(bytes), ..self }
    }

    /// Nodes that may have so many files and sockets open at once.
    pub fn with_open_files(self, limit: u32) -> Self {
        Self { open_files: Some(limit), ..self }
    }

    /// Nodes that die where they are told to, see [`Cluster::arm`].
    pub fn with_failpoints(self) -> Self {
        Self { failpoints: true, ..self }
    }

    /// One more flag for every node.
    pub fn with_flag(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.arguments.extend([flag.to_owned(), value.into()]);
        self
    }
}

/// A running cluster. Nodes are named by their index, from 0.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, running or not.
    pub nodes: Vec<Node>,
    /// The network between them; empty unless planned.
    pub network: Network,
    /// The namespaces that they are in; none unless planned.
    pub namespaces: Option<Namespaces>,
    plan: Plan,
    binary: PathBuf,
    folder: Option<TempDir>,
    // Given back when all else is gone.
    _permits: Vec<SemaphorePermit<'static>>,
}

impl Cluster {
    /// Starts the cluster and waits until it serves everything. `None`: there is no binary, and the test is skipped.
    ///
    /// # Panics
    /// When it does not come up in time.
    pub async fn start(plan: Plan) -> Option<Self> {
        let binary = if plan.failpoints { Binary::KvnodeWithFailpoints } else { Binary::Kvnode };
        let binary = binary::find(binary)?;
        for attempt in 1.. {
            let mut cluster = Self::launch(&binary, plan.clone()).await;
            if attempt < START_ATTEMPTS && cluster.met_a_busy_port().await {
                continue;
            }
            cluster.wait_whole().await;
            for node in &cluster.nodes {
                assert!(node.is_watched(), "{} does not run under the power-loss shim", node.name);
            }
            return Some(cluster);
        }
        None
    }

    /// Starts the processes of `binary` and waits for nothing.
    ///
    /// # Panics
    /// When they cannot be started.
    pub async fn launch(binary: &Path, plan: Plan) -> Self {
        let mut permits = Vec::new();
        if plan.namespaces {
            permits.push(NAMESPACES.acquire().await.expect("the semaphore is never closed"));
        }
        permits.push(FEW_AT_A_TIME.acquire().await.expect("the semaphore is never closed"));
        let folder =
            tempfile::Builder::new().prefix("kvcluster-test-").tempdir().expect("a temporary folder");
        let namespaces = plan.namespaces.then(|| Namespaces::create(plan.nodes));
        let find = |node| match &namespaces {
            Some(namespaces) => namespaces.ports(node),
            None => PortBlock::find().expect("free ports"),
        };
        let ports: Vec<PortBlock> = (0..plan.nodes).map(find).collect();
        let peers: Vec<SocketAddr> = ports.iter().map(|block| block.peer_address()).collect();
        let network =
            if plan.network { Network::start(&peers).await.expect("free ports") } else { Network::default() };
        let (binary, nodes, folder) = (binary.to_owned(), Vec::new(), Some(folder));
        let mut cluster = Self { nodes, network, namespaces, plan, binary, folder, _permits: permits };
        for index in 0..ports.len() {
            cluster.push_node(index, &ports);
        }
        cluster.start_all();
        cluster
    }

    /// Adds a node that joins by way of one of the others.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn add_node(&mut self) -> usize {
        let index = self.prepare_node();
        self.nodes[index].start();
        index
    }

    /// Adds such a node and does not start it yet.
    ///
    /// # Panics
    /// When there are no free ports.
    pub fn prepare_node(&mut self) -> usize {
        let index = self.nodes.len();
        let mut ports: Vec<PortBlock> = self.nodes.iter().map(|node| node.ports).collect();
        ports.push(PortBlock::find().expect("free ports"));
        self.push_node(index, &ports);
        index
    }

    /// Another node under the name of this one, with a disk and ports of its own, which would join. Not started yet.
    ///
    /// # Panics
    /// When there are no free ports, or no folder can be made.
    pub fn namesake(&self, of: usize) -> Node {
        let mut ports: Vec<PortBlock> = self.nodes.iter().map(|node| node.ports).collect();
        ports.push(PortBlock::find().expect("free ports"));
        let folder = self.folder().join("namesakes");
        fs::create_dir_all(&folder).expect("a folder");
        self.new_node(self.nodes[of].name.clone(), &folder, ports.len() - 1, &ports)
    }

    /// Starts all nodes that do not run.
    pub fn start_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
    }

    /// SIGKILL to all nodes.
    pub fn kill_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
    }

    /// Ctrl-C to all nodes at once, and waits for their orderly ends.
    ///
    /// # Panics
    /// When one does not end in time, or not well.
    pub async fn stop_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::interrupt);
        for node in &mut self.nodes {
            node.ended(DEADLINE).await.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// A connection to the node with this index.
    pub fn api(&self, node: usize) -> Api {
        self.nodes[node].api()
    }

    /// The administration of the node with this index.
    pub fn admin(&self, node: usize) -> Admin {
        Admin::new(self.nodes[node].ports.client_address())
    }

    /// Client addresses of all nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.ports.client_address()).collect()
    }

    /// Client addresses of these nodes.
    pub fn addresses_of(&self, nodes: &[usize]) -> Vec<SocketAddr> {
        nodes.iter().map(|node| self.nodes[*node].ports.client_address()).collect()
    }

    /// What the cluster was planned to be like.
    pub fn wanted(&self) -> Wanted {
        Wanted { data_shards: self.plan.data_shards, replication_factor: self.plan.replication_factor }
    }

    /// What each node says of itself; `None`: it does not answer.
    pub async fn statuses(&self) -> Vec<Option<NodeStatus>> {
        self.statuses_of(&(0..self.nodes.len()).collect::<Vec<_>>()).await
    }

    /// What each of these nodes says of itself.
    pub async fn statuses_of(&self, nodes: &[usize]) -> Vec<Option<NodeStatus>> {
        let mut statuses = Vec::new();
        for node in nodes {
            let mut api = self.api(*node);
            let answer = timeout(STATUS_DEADLINE, api.admin.get_node_status(GetNodeStatusRequest {})).await;
            statuses.push(answer.ok().and_then(Result::ok).map(tonic::Response::into_inner));
        }
        statuses
    }

    /// Waits until every node is ready and every shard has a leader and its voters.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_whole(&self) {
        let voters = self.voters();
        let whole = wait_until("a whole cluster", DEADLINE, || async {
            status::is_whole(&self.statuses().await, self.plan.data_shards, voters)
        });
        whole.await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits until every replica has applied what is committed.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_caught_up(&self) {
        let caught_up = wait_until("replicas that have caught up", DEADLINE, || async {
            status::is_caught_up(&self.statuses().await)
        });
        caught_up.await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits until one of the nodes in `among` leads `shard`, and says which.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn wait_leader(&self, shard: u32, among: &[usize]) -> usize {
        let what = format!("a leader of shard {shard} among the nodes {among:?}");
        let led = wait_until(what, DEADLINE, || async {
            let mut statuses = self.statuses().await;
            for (index, status) in statuses.iter_mut().enumerate() {
                if !among.contains(&index) {
                    *status = None;
                }
            }
            status::leader(&statuses, shard).ok_or_else(|| "none of them leads".to_owned())
        });
        led.await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The shard that holds `key`, or would: it is asked for by a read, since a write would be missing in the history
    /// of a load that uses the key.
    ///
    /// # Panics
    /// When the key cannot be read in time.
    pub async fn shard_of(&self, key: &str) -> u32 {
        self.get(0, key, Read::Linearizable).await.header.expect("every reply has one").shard_id
    }

    /// Voters that each shard of this cluster must have: as many as there are nodes, up to the replication factor, in
    /// odd numbers.
    fn voters(&self) -> usize {
        let voters = self.nodes.len().min(self.plan.replication_factor);
        if voters.is_multiple_of(2) { voters - 1 } else { voters }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_ref().expect("kept until the end").path()
    }

    fn push_node(&mut self, index: usize, ports: &[PortBlock]) {
        let mut node = self.new_node(name_of(index), self.folder(), index, ports);
        if let Some(bytes) = self.plan.volume_bytes {
            node.put_on_volume(bytes).expect("a volume can be prepared");
        }
        self.nodes.push(node);
    }

    /// A node below `folder`, with the ports at `index`, that finds the others at theirs.
    fn new_node(&self, name: String, folder: &Path, index: usize, ports: &[PortBlock]) -> Node {
        let mut arguments = self.plan.arguments.clone();
        // Every test would write it anew for each node.
        if !arguments.iter().any(|flag| flag == "--ballast") {
            arguments.extend(["--ballast".to_owned(), "0".to_owned()]);
        }
        arguments.extend(["--shards".to_owned(), self.plan.data_shards.to_string()]);
        arguments.extend(["--replication-factor".to_owned(), self.plan.replication_factor.to_string()]);
        arguments.extend(self.forming_arguments(index, ports));
        let overrides: Vec<String> = (0..ports.len())
            .filter_map(|other| Some(format!("{}={}", name_of(other), self.network.address(index, other)?)))
            .collect();
        if !overrides.is_empty() {
            arguments.extend(["--peer-address-override".to_owned(), overrides.join(",")]);
        }
        let program = match &self.namespaces {
            Some(namespaces) => Program::by(&namespaces.command(index, &self.binary)),
            None if self.plan.failpoints => Program::by(&failpoints::command(self.folder(), &self.binary)),
            None => Program::here(&self.binary),
        };
        let program = match self.plan.open_files {
            Some(limit) => program.with_open_files(limit),
            None => program,
        };
        let node = Node::new(program, folder, name, ports[index], arguments, self.plan.power_loss);
        node.expect("a node can be prepared")
    }

    fn forming_arguments(&self, index: usize, ports: &[PortBlock]) -> Vec<String> {
        match self.plan.forming {
            Forming::InitialNodes if index < self.plan.nodes => {
                let nodes: Vec<String> = ports
                    .iter()
                    .take(self.plan.nodes)
                    .enumerate()
                    .map(|(index, block)| format!("{}={}", name_of(index), block.client_address()))
                    .collect();
                vec!["--initial-nodes".to_owned(), nodes.join(",")]
            }
            Forming::Join if index == 0 => vec!["--bootstrap".to_owned()],
            Forming::Join | Forming::InitialNodes => {
                let others: Vec<String> =
                    ports[..index].iter().map(|block| block.client_address().to_string()).collect();
                vec!["--join".to_owned(), others.join(",")]
            }
        }
    }

    /// Waits until all nodes answer; true when one ended instead because a port was busy.
    ///
    /// # Panics
    /// When a node ended for another reason.
    async fn met_a_busy_port(&mut self) -> bool {
        let nodes = std::cell::RefCell::new(&mut self.nodes);
        let answered = wait_until("an answer from every node", DEADLINE, || {
            let ended = nodes.borrow_mut().iter_mut().position(|node| !node.is_running());
            let apis: Vec<Api> = nodes.borrow().iter().map(Node::api).collect();
            async move {
                if ended.is_some() {
                    return Ok(ended);
                }
                for mut api in apis {
                    api.admin
                        .get_node_status(GetNodeStatusRequest {})
                        .await
                        .map_err(|status| status.to_string())?;
                }
                Ok::<_, String>(None)
            }
        });
        let ended = answered.await.unwrap_or_else(|error| panic!("{error}"));
        let Some(ended) = ended.map(|index| &self.nodes[index]) else { return false };
        let log = ended.log_tail(PRINTED_LOG_LINES);
        assert!(log.contains("in use"), "{} ended at its start:\n{log}", ended.name);
        true
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
        if !thread::panicking() {
            return;
        }
        for node in &self.nodes {
            eprintln!("---- last lines of {} ----\n{}", node.name, node.log_tail(PRINTED_LOG_LINES));
        }
        if let Some(folder) = self.folder.take() {
            eprintln!("---- data and logs are kept in {}", folder.keep().display());
        }
    }
}

fn name_of(index: usize) -> String {
    format!("n{}", index + 1)
}
