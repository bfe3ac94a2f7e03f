//! A cluster of etcd with its defaults, on this machine.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kv_cluster_tests::process::Process;
use tempfile::TempDir;

/// Between two looks at whether it answers.
const POLL: Duration = Duration::from_millis(50);
/// Clients and sockets that write all keys before anything is measured.
const FILL_CLIENTS: u32 = 256;
const FILL_CONNECTIONS: u32 = 16;
/// Bytes of a key, as `kvctl bench` has them: `bench/0000000001`.
const KEY_SIZE: usize = 16;
/// What a node may hold; its own default of 2 GiB is less than ten million keys take.
const QUOTA_BYTES: u64 = 32 << 30;

/// Running etcd. Dropping it ends the nodes and removes their data.
#[derive(Debug)]
pub struct Etcd {
    programs: PathBuf,
    endpoints: String,
    members: Vec<Member>,
    // In this order: the folder goes after the processes.
    nodes: Vec<Process>,
    folder: TempDir,
}

/// One node, which keeps its ports and its data over restarts.
#[derive(Debug)]
struct Member {
    name: String,
    client: String,
    peer: String,
}

impl Etcd {
    /// Starts so many nodes of the programs in this folder, and waits until all answer.
    ///
    /// # Errors
    /// When they cannot be started, or do not answer in time.
    pub fn start(programs: &Path, nodes: usize, patience: Duration) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("etcd-compare-").tempdir()?;
        let ports = free_ports(nodes * 2)?;
        let member = |index: usize| Member {
            name: format!("e{}", index + 1),
            client: format!("127.0.0.1:{}", ports[index]),
            peer: format!("http://127.0.0.1:{}", ports[nodes + index]),
        };
        let members: Vec<Member> = (0..nodes).map(member).collect();
        let endpoints: Vec<&str> = members.iter().map(|member| member.client.as_str()).collect();
        let endpoints = endpoints.join(",");
        let mut etcd = Self { programs: programs.to_owned(), endpoints, members, nodes: Vec::new(), folder };
        etcd.start_all()?;
        etcd.wait_healthy(patience)?;
        Ok(etcd)
    }

    /// Starts all nodes, on the data that they had.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_all(&mut self) -> Result<()> {
        let cluster: Vec<String> =
            self.members.iter().map(|member| format!("{}={}", member.name, member.peer)).collect();
        for Member { name, client, peer } in &self.members {
            let mut command = Command::new(self.programs.join("etcd"));
            command.args(["--name", name, "--log-level", "warn", "--initial-cluster", &cluster.join(",")]);
            command.args(["--quota-backend-bytes", &QUOTA_BYTES.to_string()]);
            command.arg("--data-dir").arg(self.data_dir(name));
            for flag in ["--listen-client-urls", "--advertise-client-urls"] {
                command.args([flag, &format!("http://{client}")]);
            }
            for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
                command.args([flag, peer]);
            }
            self.nodes.push(Process::start(command, &self.folder.path().join(format!("{name}.log")))?);
        }
        Ok(())
    }

    /// SIGTERM to all nodes at once, and waits for their ends.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn stop_all(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.terminate()?;
        }
        for mut node in self.nodes.drain(..) {
            while node.exited()?.is_none() {
                thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Waits until every node answers a linearizable read.
    ///
    /// # Errors
    /// When one does not in time.
    pub fn wait_healthy(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let output = self.program("etcdctl").args(["endpoint", "health"]).output().context("etcdctl")?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(Instant::now() < deadline, "etcd is not healthy after {patience:?}: {said}");
            thread::sleep(POLL);
        }
    }

    /// Writes keys one after the other, with many clients.
    ///
    /// # Errors
    /// When its benchmark fails.
    pub fn fill(&self, keys: u64, value_size: u32) -> Result<()> {
        let mut command = self.put_benchmark(keys, value_size);
        command.args(["--clients", &FILL_CLIENTS.to_string(), "--conns", &FILL_CONNECTIONS.to_string()]);
        command.args(["--sequential-keys", "--total", &keys.to_string()]);
        let output = command.output().context("etcd-benchmark")?;
        ensure!(output.status.success(), "etcd-benchmark: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(!said.contains("Error distribution:"), "etcd did not take all keys: {said}");
        Ok(())
    }

    /// Its own benchmark, which writes keys out of so many.
    pub fn put_benchmark(&self, keys: u64, value_size: u32) -> Command {
        let mut command = self.program("etcd-benchmark");
        let numbers = [
            ("--key-space-size", keys),
            ("--key-size", KEY_SIZE as u64),
            ("--val-size", u64::from(value_size)),
        ];
        command.arg("put");
        for (flag, number) in numbers {
            command.args([flag, &number.to_string()]);
        }
        command
    }

    /// One of its programs, told where the nodes are.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.args(["--endpoints", &self.endpoints]);
        command
    }

    /// Ids of its nodes.
    pub fn processes(&self) -> Vec<u32> {
        self.nodes.iter().map(Process::id).collect()
    }

    /// Where each node keeps its data.
    pub fn data_dirs(&self) -> Vec<PathBuf> {
        self.members.iter().map(|member| self.data_dir(&member.name)).collect()
    }

    fn data_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    // All at once, so that none is given out twice.
    let listeners: io::Result<Vec<_>> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    listeners?.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
