//! Nodes in network namespaces of their own, joined by a bridge: real packets that are really lost. Needs root and
//! `ip`; a test that cannot have them says so and is skipped, and with `CI=true` it fails.
//!
//! Clients are in the namespace of the test, on the bridge too. A cut in one direction is a wrong hardware address: what
//! one node sends to another then reaches nobody, silently, while what the other says still arrives. A node that is
//! unplugged hears nobody, clients included.
//!
//! Everything is named after the process id of the test, and removed when it is dropped; what a killed test has left
//! behind is removed by the next one.

use std::{
    env,
    net::Ipv4Addr,
    path::Path,
    process::{self, Command, Stdio},
};

use crate::ports::PortBlock;

/// The client port of each node: every namespace has ports of its own.
const CLIENT_PORT: u16 = 50_051;
/// The last byte of the bridge's address; node `i` has `i + 1`.
const BRIDGE_HOST: u8 = 254;
/// Nobody's.
const WRONG_HARDWARE_ADDRESS: &str = "02:00:00:00:00:01";
/// Before the process id in every name.
const NAME: &str = "kvt";

/// Namespaces, one for each node, by index.
#[derive(Debug)]
pub struct Namespaces {
    nodes: usize,
}

/// Whether this process may make namespaces; where not, the reason is printed.
///
/// # Panics
/// When it may not, in CI.
pub fn available() -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if ip(&["netns", "list"]).is_err() {
        "`ip netns` does not work here"
    } else {
        return true;
    };
    assert!(env::var("CI").as_deref() != Ok("true"), "network namespaces: {missing}");
    eprintln!("SKIPPED: network namespaces: {missing}");
    false
}

impl Namespaces {
    /// Makes a namespace for each of so many nodes, at most 200.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn create(nodes: usize) -> Self {
        remove_leftovers();
        remove(process::id());
        let this = Self { nodes };
        must(&["link", "add", &bridge(), "type", "bridge"]);
        must(&["addr", "add", &format!("{}/24", address(BRIDGE_HOST)), "dev", &bridge()]);
        must(&["link", "set", &bridge(), "up"]);
        for node in 0..nodes {
            let (name, port) = (namespace(node), port(node));
            must(&["netns", "add", &name]);
            must(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            must(&["link", "set", &port, "master", &bridge(), "up"]);
            let own = format!("{}/24", this.ports(node).host);
            must(&["-n", &name, "addr", "add", &own, "dev", "eth0"]);
            must(&["-n", &name, "link", "set", "lo", "up"]);
            must(&["-n", &name, "link", "set", "eth0", "up"]);
        }
        this
    }

    /// Where a node listens.
    ///
    /// # Panics
    /// When there are too many nodes.
    pub fn ports(&self, node: usize) -> PortBlock {
        let host = u8::try_from(node + 1).ok().filter(|host| *host < BRIDGE_HOST).expect("few nodes");
        PortBlock { host: address(host), client: CLIENT_PORT }
    }

    /// What runs `program` in a node's namespace, as the same process.
    pub fn command(&self, node: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace(node)]).arg(program);
        command
    }

    /// Loses everything that `from` says to `to`.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        let to = self.ports(to).host.to_string();
        let neighbour = ["neigh", "replace", &to, "lladdr", WRONG_HARDWARE_ADDRESS];
        must(&[&["-n", &namespace(from)], &neighbour[..], &["dev", "eth0", "nud", "permanent"]].concat());
    }

    /// Cuts a node from all others, both ways. Clients still reach it.
    pub fn cut_off(&self, node: usize) {
        for other in (0..self.nodes).filter(|other| *other != node) {
            self.cut_one_way(node, other);
            self.cut_one_way(other, node);
        }
    }

    /// Takes a node's cable out.
    pub fn unplug(&self, node: usize) {
        must(&["link", "set", &port(node), "down"]);
    }

    /// Ends all cuts and puts all cables in.
    pub fn heal(&self) {
        for node in 0..self.nodes {
            must(&["-n", &namespace(node), "neigh", "flush", "dev", "eth0", "nud", "permanent"]);
            must(&["link", "set", &port(node), "up"]);
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove(process::id());
    }
}

fn namespace(node: usize) -> String {
    format!("{NAME}{}-{node}", process::id())
}

fn bridge() -> String {
    format!("{NAME}{}", process::id())
}

/// The bridge's end of a node's cable.
fn port(node: usize) -> String {
    format!("{NAME}{}p{node}", process::id())
}

/// In a network of this process, one of 512 in 198.18.0.0/15, which is nobody's but for tests (RFC 2544).
fn address(host: u8) -> Ipv4Addr {
    let [.., high, low] = process::id().to_be_bytes();
    Ipv4Addr::new(198, 18 | (high & 1), low, host)
}

/// Removes what processes that are no more have left.
fn remove_leftovers() {
    let Ok(list) = ip(&["netns", "list"]) else { return };
    let owners = list.lines().filter_map(|line| {
        let name = line.split_whitespace().next()?;
        name.strip_prefix(NAME)?.split('-').next()?.parse::<u32>().ok()
    });
    owners.filter(|owner| !Path::new(&format!("/proc/{owner}")).exists()).for_each(remove);
}

/// Removes what a process has. What cannot be removed now is removed by the next test.
fn remove(owner: u32) {
    let Ok(list) = ip(&["netns", "list"]) else { return };
    let own = format!("{NAME}{owner}-");
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        if let Some(node) = name.strip_prefix(&own) {
            // The system removes a namespace when it has the time, and cables would stay until then.
            let _ = ip(&["link", "del", &format!("{NAME}{owner}p{node}")]);
            let _ = ip(&["netns", "del", name]);
        }
    }
    let _ = ip(&["link", "del", &format!("{NAME}{owner}")]);
}

fn must(arguments: &[&str]) {
    ip(arguments).unwrap_or_else(|error| panic!("ip {}: {error}", arguments.join(" ")));
}

fn ip(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
