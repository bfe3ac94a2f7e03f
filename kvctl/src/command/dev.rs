//! `kvctl dev`: a local cluster of kvnode processes, until Ctrl-C.
//!
//! Nothing is decided here but ports and folders: the nodes find each other by `--initial-nodes`, the first one
//! bootstraps once, and a rerun finds the data of the last one. A node that exits is reported and not restarted, so
//! that killing one shows what the others do.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kv_client::{Address, Client};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, timeout},
};

use crate::{
    exit::{Exit, usage},
    output,
};

/// Ports of a node: N, N+10 for peers, N+20 for HTTP.
const PORTS: [u16; 3] = [0, 10, 20];
/// The next node's ports.
const PORT_STEP: u16 = 100;
/// A cluster that is not ready by then will not be.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(200);
/// A node hands its leaderships over and closes its databases; longer, and it hangs.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Lines of a log that are shown when its node died.
const LOG_TAIL_LINES: usize = 20;
/// Of those, at most this much is read.
const LOG_TAIL_BYTES: u64 = 64 * 1024;

/// Runs a local cluster until Ctrl-C; a rerun keeps the data.
#[derive(Debug, Args)]
pub struct Dev {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Where data and logs are kept, a folder for each node
    #[arg(long, default_value = ".data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Port of the first node; the others follow in steps of 100
    #[arg(long, default_value_t = 50051, value_parser = clap::value_parser!(u16).range(1..=64_000))]
    port: u16,
    /// The kvnode binary; beside kvctl unless given
    #[arg(long, value_name = "PATH")]
    kvnode: Option<PathBuf>,
}

/// A node's place on this machine.
#[derive(Clone, Debug)]
struct Plan {
    name: String,
    port: u16,
    data_dir: PathBuf,
}

impl Plan {
    /// Beside the data folder, in which a node tolerates nothing but its own files.
    fn log(&self) -> PathBuf {
        self.data_dir.with_extension("log")
    }
}

/// A running node. Killed when dropped, should nobody have stopped it.
struct Running {
    plan: Plan,
    child: Child,
    /// Reported already.
    exited: bool,
}

impl Dev {
    /// Runs to the end.
    pub async fn run(self) -> Result<Exit> {
        let kvnode = self.find_kvnode()?;
        let plans = self.plans();
        check_ports(&plans)?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        // The terminal was closed: nobody would stop the nodes later.
        let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        let mut nodes = Vec::new();
        for plan in &plans {
            nodes.push(start(&kvnode, plan, &plans)?);
        }
        let outcome = tokio::select! {
            biased;
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = hangup.recv() => Ok(()),
            outcome = live(&mut nodes, &plans) => outcome,
        };
        eprintln!("stopping the nodes; the data stay in {}", self.data_dir.display());
        stop(nodes).await;
        outcome.map(|()| Exit::Ok)
    }

    fn find_kvnode(&self) -> Result<PathBuf> {
        let path = match &self.kvnode {
            Some(path) => path.clone(),
            None => std::env::current_exe().context("cannot find kvctl itself")?.with_file_name("kvnode"),
        };
        if path.is_file() {
            return Ok(path);
        }
        Err(usage(format!(
            "there is no kvnode at {}: build it with `cargo build --release`, or say --kvnode PATH",
            path.display()
        )))
    }

    fn plans(&self) -> Vec<Plan> {
        let plan = |number: u16| {
            let name = format!("n{}", number + 1);
            Plan { port: self.port + PORT_STEP * number, data_dir: self.data_dir.join(&name), name }
        };
        (0..self.nodes).map(plan).collect()
    }
}

/// Names every busy port before anything is started.
fn check_ports(plans: &[Plan]) -> Result<()> {
    let ports = plans.iter().flat_map(|plan| PORTS.map(|offset| (&plan.name, plan.port + offset)));
    let busy: Vec<String> = ports
        .filter(|(_, port)| TcpListener::bind(("127.0.0.1", *port)).is_err())
        .map(|(name, port)| format!("{port} ({name})"))
        .collect();
    if busy.is_empty() {
        return Ok(());
    }
    Err(usage(format!(
        "busy ports: {}. Is a cluster running already? --port chooses others",
        busy.join(", ")
    )))
}

fn start(kvnode: &Path, plan: &Plan, plans: &[Plan]) -> Result<Running> {
    std::fs::create_dir_all(&plan.data_dir)
        .with_context(|| format!("cannot make {}", plan.data_dir.display()))?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(plan.log())
        .with_context(|| format!("cannot write {}", plan.log().display()))?;
    let initial: Vec<String> =
        plans.iter().map(|plan| format!("{}=127.0.0.1:{}", plan.name, plan.port)).collect();
    let child = Command::new(kvnode)
        .args(["--node-name", &plan.name, "--port", &plan.port.to_string()])
        .arg("--data-dir")
        .arg(&plan.data_dir)
        .args(["--initial-nodes", &initial.join(",")])
        // Several nodes share one disk, and nobody reserves space on a laptop.
        .args(["--ballast", "0"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share a log file")?)
        .stderr(log)
        // Ctrl-C of the terminal goes to kvctl only, which then stops the nodes in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", kvnode.display()))?;
    Ok(Running { plan: plan.clone(), child, exited: false })
}

/// Waits until the cluster is ready, says so, and watches the nodes for as long as one of them runs.
async fn live(nodes: &mut [Running], plans: &[Plan]) -> Result<()> {
    eprintln!("starting {} nodes", plans.len());
    wait_until_ready(nodes, plans).await?;
    greet(plans)?;
    loop {
        report_exits(nodes)?;
        if nodes.iter().all(|node| node.exited) {
            bail!("no node is left");
        }
        sleep(READY_POLL).await;
    }
}

/// Of all nodes, as `--addr` and `KVCTL_ADDR` take them.
fn addresses(plans: &[Plan]) -> String {
    let addresses: Vec<String> = plans.iter().map(|plan| format!("127.0.0.1:{}", plan.port)).collect();
    addresses.join(",")
}

/// Ready: every shard has a leader, and every node answers.
async fn wait_until_ready(nodes: &mut [Running], plans: &[Plan]) -> Result<()> {
    let addresses = Address::parse_list(&addresses(plans))?;
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut last = "no answer yet".to_owned();
    while Instant::now() < deadline {
        if report_exits(nodes)? {
            bail!("a node exited before the cluster was ready");
        }
        // A client that has met nobody: an old one would wait for a node that has exited, which is to be told at once.
        let client =
            Client::builder(addresses.clone()).timeout(Duration::from_secs(2)).fail_fast(true).build()?;
        match client.cluster_status().await {
            Ok(status) => {
                let answering = status.nodes.iter().filter(|node| node.status.is_some()).count();
                let led = status.shards.iter().filter(|shard| shard.leader_node_id != 0).count();
                let has_data_shards = status.shards.iter().any(|shard| shard.shard_id != 0);
                if answering == plans.len() && has_data_shards && led == status.shards.len() {
                    return Ok(());
                }
                last = format!(
                    "{answering} of {} nodes answer, {led} of {} shards have a leader",
                    plans.len(),
                    status.shards.len()
                );
            }
            Err(error) => last = error.to_string(),
        }
        sleep(READY_POLL).await;
    }
    bail!(
        "the cluster is not ready after {} s: {last}; see {}",
        READY_TIMEOUT.as_secs(),
        plans[0].log().display()
    )
}

/// Says which nodes have exited since the last time, with the end of their logs.
fn report_exits(nodes: &mut [Running]) -> Result<bool> {
    let mut any = false;
    for node in nodes.iter_mut().filter(|node| !node.exited) {
        if let Some(status) = node.child.try_wait().context("cannot watch a node")? {
            node.exited = true;
            any = true;
            eprintln!("{} has exited: {status}. The end of {}:", node.plan.name, node.plan.log().display());
            eprintln!("{}", log_tail(&node.plan.log()));
        }
    }
    Ok(any)
}

fn log_tail(path: &Path) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
        }
        Err(error) => format!("cannot read it: {error}"),
    }
}

fn greet(plans: &[Plan]) -> Result<()> {
    let port = plans[0].port;
    output::line(&format!("The cluster is ready: {} nodes on 127.0.0.1.", plans.len()))?;
    for plan in plans {
        output::line(&format!("  {}  127.0.0.1:{}  log {}", plan.name, plan.port, plan.log().display()))?;
    }
    output::line(&format!(
        "
Talk to it, from another terminal:
  export KVCTL_ADDR={}
  kvctl put greeting hello
  kvctl get greeting
  kvctl status
  grpcurl -plaintext -d '{{\"key\":\"greeting\"}}' 127.0.0.1:{port} kv.v1.KvText/Get

Ctrl-C stops it; the data stay.",
        addresses(plans)
    ))
}

/// SIGTERM to all at once, so that nobody hands leaderships to one that goes too; SIGKILL to those that hang.
async fn stop(mut nodes: Vec<Running>) {
    for node in nodes.iter().filter(|node| !node.exited) {
        if let Some(id) = node.child.id() {
            terminate(id).await;
        }
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    for node in nodes.iter_mut().filter(|node| !node.exited) {
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left, node.child.wait()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => eprintln!("cannot wait for {}: {error}", node.plan.name),
            Err(_) => {
                eprintln!(
                    "{} did not stop within {} s and is killed",
                    node.plan.name,
                    STOP_TIMEOUT.as_secs()
                );
                if let Err(error) = node.child.kill().await {
                    eprintln!("cannot kill {}: {error}", node.plan.name);
                }
            }
        }
    }
}

/// Sends SIGTERM. By the `kill` program: the call itself would need unsafe code.
async fn terminate(id: u32) {
    let sent = Command::new("kill").arg("-TERM").arg(id.to_string()).status().await;
    if !sent.is_ok_and(|status| status.success()) {
        eprintln!("cannot send SIGTERM to process {id}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_all_nodes_are_read_where_they_are_pasted() {
        let dev = Dev { nodes: 3, data_dir: ".data".into(), port: 50_051, kvnode: None };
        let list = addresses(&dev.plans());
        assert_eq!(list, "127.0.0.1:50051,127.0.0.1:50151,127.0.0.1:50251");
        let parsed: Vec<String> =
            Address::parse_list(&list).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(parsed.join(","), list);
    }
}
