//! The flags and their environment variables, as they were given.
//!
//! All values are text: were they parsed here, the first malformed one would end the process and hide the others.

use clap::{Parser, builder::FalseyValueParser};

/// Words of the command line; an absent flag takes the environment variable of its name.
#[derive(Clone, Debug, Default, Parser)]
#[command(
    name = "kvnode",
    version,
    about = "A node of a KvCluster: a sharded, replicated, durable key-value server",
    after_help = "\
Start a cluster of three on one machine (n2 and n3 likewise, with --port 50151 and 50251):
  kvnode --node-name n1 --port 50051 --data-dir ./n1 \\
    --initial-nodes n1=127.0.0.1:50051,n2=127.0.0.1:50151,n3=127.0.0.1:50251

A node that is told nothing about a cluster waits for a call of admin.v1.Admin/Bootstrap."
)]
pub struct Flags {
    /// Name of the node; begins with a letter, then letters, digits, '-', '_' and '.'
    #[arg(long, env = "KVNODE_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Data folder; created when absent
    #[arg(long, env = "KVNODE_DATA_DIR", value_name = "PATH")]
    pub data_dir: Option<String>,

    /// Sets three ports: N for clients, N+10 for peers, N+20 for HTTP [default: 50051, 50061 and 9090]
    #[arg(long, env = "KVNODE_PORT", value_name = "N", help_heading = "Addresses")]
    pub port: Option<String>,

    /// Where to listen for clients [default: port 50051 on the loopback address, or on all interfaces when the
    /// node's own address in --advertise-client or --initial-nodes is another one; there is no authentication yet]
    #[arg(long, env = "KVNODE_CLIENT_LISTEN", value_name = "HOST:PORT", help_heading = "Addresses")]
    pub client_listen: Option<String>,

    /// Where to listen for other nodes [default: as for clients, port 50061]
    #[arg(long, env = "KVNODE_PEER_LISTEN", value_name = "HOST:PORT", help_heading = "Addresses")]
    pub peer_listen: Option<String>,

    /// Where to serve /livez, /readyz and /metrics [default: as for clients, port 9090]
    #[arg(long, env = "KVNODE_HTTP_LISTEN", value_name = "HOST:PORT", help_heading = "Addresses")]
    pub http_listen: Option<String>,

    /// Where clients and other nodes reach the client port [default: the entry in --initial-nodes, else where it
    /// listens]
    #[arg(long, env = "KVNODE_ADVERTISE_CLIENT", value_name = "HOST:PORT", help_heading = "Addresses")]
    pub advertise_client: Option<String>,

    /// Where other nodes reach the peer port [default: the host of --advertise-client and the port of
    /// --peer-listen]
    #[arg(long, env = "KVNODE_ADVERTISE_PEER", value_name = "HOST:PORT", help_heading = "Addresses")]
    pub advertise_peer: Option<String>,

    /// Dials the peer port of these nodes here instead of where they advertise it (NAT, tests of partitions)
    #[arg(
        long,
        env = "KVNODE_PEER_ADDRESS_OVERRIDE",
        value_name = "NAME=HOST:PORT,…",
        value_delimiter = ',',
        help_heading = "Addresses"
    )]
    pub peer_address_override: Vec<String>,

    /// All nodes of a new cluster, this one included, by name and client address; any order of starting
    #[arg(
        long,
        env = "KVNODE_INITIAL_NODES",
        value_name = "NAME=HOST:PORT,…",
        value_delimiter = ',',
        help_heading = "Forming a cluster (ignored once the node belongs to one)"
    )]
    pub initial_nodes: Vec<String>,

    /// Makes a cluster of this node alone, unless a node of --join already has one
    #[arg(
        long,
        env = "KVNODE_BOOTSTRAP",
        value_parser = FalseyValueParser::new(),
        help_heading = "Forming a cluster (ignored once the node belongs to one)"
    )]
    pub bootstrap: bool,

    /// Joins the cluster of the node with this client address; may be given several times
    #[arg(
        long,
        env = "KVNODE_JOIN",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        help_heading = "Forming a cluster (ignored once the node belongs to one)"
    )]
    pub join: Vec<String>,

    /// Data shards of a new cluster, 1 to 256 [default: 8]
    #[arg(
        long,
        env = "KVNODE_SHARDS",
        value_name = "N",
        help_heading = "Forming a cluster (ignored once the node belongs to one)"
    )]
    pub shards: Option<String>,

    /// Replicas of each shard of a new cluster: 1, 3, 5 or 7 [default: 3]
    #[arg(
        long,
        env = "KVNODE_REPLICATION_FACTOR",
        value_name = "N",
        help_heading = "Forming a cluster (ignored once the node belongs to one)"
    )]
    pub replication_factor: Option<String>,

    /// Starts no replica and speaks to no other node: `kvctl recover` looks at the disk, and may let it go on alone, when a
    /// quorum is lost for good; see docs/recovery.md
    #[arg(long, env = "KVNODE_RECOVERY", value_parser = FalseyValueParser::new(), help_heading = "Recovery")]
    pub recovery: bool,

    /// Zone of the node: replicas are spread over zones
    #[arg(long, env = "KVNODE_ZONE", value_name = "ZONE", help_heading = "Resources")]
    pub zone: Option<String>,

    /// What the process may use in all, in bytes or as 1Gi [default: the limit of its cgroup, else a quarter of
    /// the machine's memory]
    #[arg(long, env = "KVNODE_MEMORY", value_name = "BYTES", help_heading = "Resources")]
    pub memory: Option<String>,

    /// Log kept for each shard behind the compacted part [default: 64Mi]
    #[arg(long, env = "KVNODE_LOG_RETENTION_BYTES", value_name = "BYTES", help_heading = "Resources")]
    pub log_retention_bytes: Option<String>,

    /// Bytes a second that the node sends in snapshots: to replicas that are moved to other nodes or have fallen far behind; 0:
    /// no limit [default: 64Mi]
    #[arg(long, env = "KVNODE_SNAPSHOT_RATE", value_name = "BYTES", help_heading = "Resources")]
    pub snapshot_rate: Option<String>,

    /// error, warn, info, debug or trace, or a filter such as info,kvnode::log=debug [default: info]
    #[arg(long, env = "KVNODE_LOG_LEVEL", value_name = "LEVEL", help_heading = "Logs")]
    pub log_level: Option<String>,

    /// text or json [default: text]
    #[arg(long, env = "KVNODE_LOG_FORMAT", value_name = "FORMAT", help_heading = "Logs")]
    pub log_format: Option<String>,

    /// Milliseconds between heartbeats. For tests
    #[arg(long, env = "KVNODE_HEARTBEAT_MS", value_name = "MS", hide = true)]
    pub heartbeat_ms: Option<String>,

    /// Election time-out, as MIN-MAX or MIN alone. For tests
    #[arg(long, env = "KVNODE_ELECTION_MS", value_name = "MIN-MAX", hide = true)]
    pub election_ms: Option<String>,

    /// The longest time between two flushes of the state. For tests of compaction
    #[arg(long, env = "KVNODE_FLUSH_INTERVAL", value_name = "DURATION", hide = true)]
    pub flush_interval: Option<String>,

    /// Free space below which the node takes no proposals. For tests of a full disk
    #[arg(long, env = "KVNODE_DISK_SOFT_LIMIT", value_name = "BYTES", hide = true)]
    pub disk_soft_limit: Option<String>,

    /// Free space below which the node takes no entries. For tests of a full disk
    #[arg(long, env = "KVNODE_DISK_HARD_LIMIT", value_name = "BYTES", hide = true)]
    pub disk_hard_limit: Option<String>,

    /// Size of the ballast file; 0: none. For tests, and for several nodes on one small disk
    #[arg(long, env = "KVNODE_BALLAST", value_name = "BYTES", hide = true)]
    pub ballast: Option<String>,
}
