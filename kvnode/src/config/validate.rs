//! Flags to configuration, or to everything that is wrong with them.
//!
//! Each part is read by a function of its own, notes its problems and goes on; a part that could not be read is
//! `None`, and checks that need it are left out, so that one mistake is named once.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use super::{
    Advertise, ByteCount, Compaction, Config, DiskLimits, Flags, Formation, HostPort, InitialNode, Listen,
    NodeName, Problems, RaftTiming, machine::MIN_MEMORY, quantity::parse_duration,
};
use crate::telemetry::{LogConfig, LogFilter, LogFormat};

/// Client, peer and HTTP port when none is given.
const DEFAULT_PORTS: [u16; 3] = [50051, 50061, 9090];
/// What `--port N` means for the peer and the HTTP port.
const PORT_STEPS: [u16; 3] = [0, 10, 20];
const LOOPBACK: &str = "127.0.0.1";
const ALL_INTERFACES: &str = "0.0.0.0";

/// More groups than this cost heartbeats and memory without use on one node; see the design, chapter 8.
const MAX_SHARDS: u32 = 256;
const DEFAULT_SHARDS: u32 = 8;
const DEFAULT_REPLICATION_FACTOR: u32 = 3;
const DEFAULT_LOG_RETENTION: ByteCount = ByteCount::mebi(64);
/// Less than a network of 1 Gbit/s carries, so that clients keep half of it.
const DEFAULT_SNAPSHOT_RATE: ByteCount = ByteCount::mebi(64);
const DEFAULT_FLUSH_INTERVAL: Duration = Duration::from_secs(300);
/// Starting values of the design, chapter 5.2.
const DEFAULT_HEARTBEAT_MS: u64 = 150;
const DEFAULT_ELECTION_MS: (u64, u64) = (500, 900);

/// The configuration that these flags mean on a machine where a node may use `machine_memory`.
///
/// # Errors
/// When a value is malformed or two contradict each other: all problems together.
pub fn validate(flags: &Flags, machine_memory: ByteCount) -> Result<Config, Problems> {
    let mut problems = Problems::default();
    let node_name = required(&mut problems, "--node-name", flags.node_name.as_deref(), NodeName::from_str);
    let data_dir = required(&mut problems, "--data-dir", flags.data_dir.as_deref(), |text| {
        Ok::<_, String>(PathBuf::from(text))
    });
    let initial_nodes = read_initial_nodes(&mut problems, flags, node_name.as_ref());
    let addresses = read_addresses(&mut problems, flags, node_name.as_ref(), &initial_nodes);
    let formation = read_formation(&mut problems, flags, initial_nodes, addresses.as_ref());
    let peer_address_overrides = read_overrides(&mut problems, flags);
    let shards = number_in(&mut problems, "--shards", flags.shards.as_deref(), DEFAULT_SHARDS, |shards| {
        (1..=MAX_SHARDS).contains(&shards).then_some(()).ok_or("1 to 256 are allowed")
    });
    let replication_factor = number_in(
        &mut problems,
        "--replication-factor",
        flags.replication_factor.as_deref(),
        DEFAULT_REPLICATION_FACTOR,
        |factor| [1, 3, 5, 7].contains(&factor).then_some(()).ok_or("1, 3, 5 and 7 are allowed"),
    );
    let memory = read_memory(&mut problems, flags, machine_memory);
    let raft = read_raft_timing(&mut problems, flags);
    let compaction = read_compaction(&mut problems, flags);
    let snapshot_rate = optional(
        &mut problems,
        "--snapshot-rate",
        flags.snapshot_rate.as_deref(),
        DEFAULT_SNAPSHOT_RATE,
        ByteCount::from_str,
    );
    let disk = read_disk_limits(&mut problems, flags);
    let log = read_log(&mut problems, flags);

    if !problems.is_empty() {
        return Err(problems);
    }
    let (Some(node_name), Some(data_dir), Some((listen, advertise))) = (node_name, data_dir, addresses)
    else {
        unreachable!("what is missing has noted its problem");
    };
    Ok(Config {
        node_name,
        data_dir,
        listen,
        advertise,
        formation,
        shards,
        replication_factor,
        zone: flags.zone.clone().unwrap_or_default(),
        peer_address_overrides,
        memory,
        raft,
        compaction,
        snapshot_rate,
        recovery: flags.recovery,
        disk,
        log,
    })
}

/// An empty value, as an unset variable of a manifest leaves it, is an absent one.
fn given(value: Option<&str>) -> Option<&str> {
    value.map(str::trim).filter(|text| !text.is_empty())
}

fn list(values: &[String]) -> impl Iterator<Item = &str> {
    values.iter().map(|text| text.trim()).filter(|text| !text.is_empty())
}

fn required<T, E: std::fmt::Display>(
    problems: &mut Problems,
    flag: &'static str,
    value: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    match given(value) {
        Some(text) => problems.take(flag, parse(text)),
        None => {
            problems.note(flag, "is required");
            None
        }
    }
}

/// The value or `default`, which also stands in for a value whose problem was noted.
fn optional<T, E: std::fmt::Display>(
    problems: &mut Problems,
    flag: &'static str,
    value: Option<&str>,
    default: T,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> T {
    match given(value) {
        Some(text) => problems.take(flag, parse(text)).unwrap_or(default),
        None => default,
    }
}

fn number_in(
    problems: &mut Problems,
    flag: &'static str,
    value: Option<&str>,
    default: u32,
    check: impl FnOnce(u32) -> Result<(), &'static str>,
) -> u32 {
    optional(problems, flag, value, default, |text| {
        let number = text.parse::<u32>().map_err(|_| format!("'{text}' is no number"))?;
        check(number).map_err(|allowed| format!("{number} is not possible; {allowed}"))?;
        Ok::<_, String>(number)
    })
}

fn named_address(text: &str) -> Result<(NodeName, HostPort), String> {
    let (name, address) =
        text.split_once('=').ok_or_else(|| format!("'{text}' has no '='; write NAME=HOST:PORT"))?;
    Ok((name.trim().parse()?, dialable(address.trim())?))
}

fn dialable(text: &str) -> Result<HostPort, String> {
    let address: HostPort = text.parse()?;
    if address.is_unspecified() {
        return Err(format!("{address} means all interfaces; it is no address that others can dial"));
    }
    Ok(address)
}

fn read_initial_nodes(problems: &mut Problems, flags: &Flags, own: Option<&NodeName>) -> Vec<InitialNode> {
    const FLAG: &str = "--initial-nodes";
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let mut nodes = Vec::new();
    let mut malformed = false;
    for text in list(&flags.initial_nodes) {
        let Some((name, client)) = problems.take(FLAG, named_address(text)) else {
            malformed = true;
            continue;
        };
        if !names.insert(name.clone()) {
            problems.note(FLAG, format!("names {name} twice"));
        }
        if !addresses.insert(client.clone()) {
            problems.note(FLAG, format!("gives {client} to two nodes"));
        }
        nodes.push(InitialNode { name, client });
    }
    if let Some(own) = own
        && !nodes.is_empty()
        && !malformed
        && !names.contains(own)
    {
        problems.note(FLAG, format!("this node, {own}, is not in the list; all nodes get the same list"));
    }
    nodes
}

/// Where to listen and what to advertise. Each defaults to what the other says; see the flags' help.
fn read_addresses(
    problems: &mut Problems,
    flags: &Flags,
    own: Option<&NodeName>,
    initial_nodes: &[InitialNode],
) -> Option<(Listen, Advertise)> {
    let ports = read_ports(problems, flags);
    let told = match given(flags.advertise_client.as_deref()) {
        Some(text) => Some(problems.take("--advertise-client", dialable(text))?),
        None => {
            let entry = initial_nodes.iter().find(|node| Some(&node.name) == own);
            entry.map(|node| node.client.clone())
        }
    };
    let default_host = match &told {
        Some(address) if !address.is_loopback() => ALL_INTERFACES,
        Some(_) | None => LOOPBACK,
    };
    let mut listen = |flag, value: &Option<String>, port| {
        let default = HostPort::new(default_host, port);
        optional(problems, flag, value.as_deref(), default, HostPort::from_str)
    };
    let listen = Listen {
        client: listen("--client-listen", &flags.client_listen, ports[0]),
        peer: listen("--peer-listen", &flags.peer_listen, ports[1]),
        http: listen("--http-listen", &flags.http_listen, ports[2]),
    };
    check_distinct(problems, &listen);
    let client = match told {
        Some(address) => address,
        None if listen.client.is_unspecified() => {
            problems.note(
                "--advertise-client",
                format!(
                    "is required with --client-listen {}: it is no address that others can dial",
                    listen.client
                ),
            );
            return None;
        }
        None => listen.client.clone(),
    };
    let same_host = HostPort::new(client.host(), listen.peer.port());
    let peer = optional(problems, "--advertise-peer", flags.advertise_peer.as_deref(), same_host, dialable);
    Some((listen, Advertise { client, peer }))
}

fn read_ports(problems: &mut Problems, flags: &Flags) -> [u16; 3] {
    optional(problems, "--port", flags.port.as_deref(), DEFAULT_PORTS, |text| {
        let first = text.parse::<u16>().ok().filter(|port| *port > 0);
        let ports = first.and_then(|first| {
            let [client, peer, http] = PORT_STEPS.map(|step| first.checked_add(step));
            Some([client?, peer?, http?])
        });
        ports
            .ok_or_else(|| format!("'{text}' is not possible; 1 to {} are allowed", u16::MAX - PORT_STEPS[2]))
    })
}

fn check_distinct(problems: &mut Problems, listen: &Listen) {
    if listen.peer == listen.client {
        problems.note("--peer-listen", format!("{} is taken by --client-listen", listen.peer));
    }
    if listen.http == listen.client || listen.http == listen.peer {
        problems.note("--http-listen", format!("{} is taken by another of the three ports", listen.http));
    }
}

fn read_formation(
    problems: &mut Problems,
    flags: &Flags,
    initial_nodes: Vec<InitialNode>,
    addresses: Option<&(Listen, Advertise)>,
) -> Formation {
    let mut join = Vec::new();
    for text in list(&flags.join) {
        join.extend(problems.take("--join", dialable(text)));
    }
    if list(&flags.initial_nodes).next().is_some() {
        if flags.bootstrap {
            problems.note("--bootstrap", "contradicts --initial-nodes; give one of the two");
        }
        if list(&flags.join).next().is_some() {
            problems.note("--join", "contradicts --initial-nodes; give one of the two");
        }
        return Formation::InitialNodes(initial_nodes);
    }
    if let (Some((_, advertise)), Some(far)) = (addresses, join.iter().find(|address| !address.is_loopback()))
        && advertise.client.is_loopback()
    {
        problems.note(
            "--advertise-client",
            format!("is required with --join {far}: other machines cannot reach {}", advertise.client),
        );
    }
    match (flags.bootstrap, join.is_empty()) {
        (true, _) => Formation::Bootstrap { ask: join },
        (false, true) => Formation::Wait,
        (false, false) => Formation::Join(join),
    }
}

fn read_overrides(problems: &mut Problems, flags: &Flags) -> BTreeMap<NodeName, HostPort> {
    const FLAG: &str = "--peer-address-override";
    let mut overrides = BTreeMap::new();
    for text in list(&flags.peer_address_override) {
        let Some((name, address)) = problems.take(FLAG, named_address(text)) else { continue };
        if overrides.insert(name.clone(), address).is_some() {
            problems.note(FLAG, format!("names {name} twice"));
        }
    }
    overrides
}

fn read_memory(problems: &mut Problems, flags: &Flags, machine: ByteCount) -> ByteCount {
    const FLAG: &str = "--memory";
    if given(flags.memory.as_deref()).is_none() && machine < MIN_MEMORY {
        problems.note(
            FLAG,
            format!("the limit of the cgroup, {machine}, is too little; a node needs {MIN_MEMORY}"),
        );
    }
    optional(problems, FLAG, flags.memory.as_deref(), machine, |text| {
        let memory: ByteCount = text.parse()?;
        if memory < MIN_MEMORY {
            return Err(format!("{memory} is too little; a node needs {MIN_MEMORY}"));
        }
        Ok(memory)
    })
}

fn read_raft_timing(problems: &mut Problems, flags: &Flags) -> RaftTiming {
    let milliseconds = |text: &str| match text.trim().parse::<u32>() {
        Ok(number) if number > 0 => Ok(u64::from(number)),
        Ok(_) | Err(_) => Err(format!("'{text}' is no number of milliseconds")),
    };
    let heartbeat = optional(
        problems,
        "--heartbeat-ms",
        flags.heartbeat_ms.as_deref(),
        DEFAULT_HEARTBEAT_MS,
        milliseconds,
    );
    let (min, max) =
        optional(problems, "--election-ms", flags.election_ms.as_deref(), DEFAULT_ELECTION_MS, |text| {
            match text.split_once('-') {
                Some((min, max)) => Ok::<_, String>((milliseconds(min)?, milliseconds(max)?)),
                // The same spread as the default has.
                None => milliseconds(text).map(|min| (min, min * 9 / 5)),
            }
        });
    if min >= max {
        problems.note("--election-ms", format!("{min}-{max} is no range"));
    }
    if heartbeat * 2 > min {
        problems.note(
            "--election-ms",
            format!("{min} is less than two heartbeats of {heartbeat} ms: one lost heartbeat would start an election"),
        );
    }
    RaftTiming {
        heartbeat: Duration::from_millis(heartbeat),
        election_min: Duration::from_millis(min),
        election_max: Duration::from_millis(max),
    }
}

fn read_compaction(problems: &mut Problems, flags: &Flags) -> Compaction {
    Compaction {
        log_retention: optional(
            problems,
            "--log-retention-bytes",
            flags.log_retention_bytes.as_deref(),
            DEFAULT_LOG_RETENTION,
            ByteCount::from_str,
        ),
        flush_interval: optional(
            problems,
            "--flush-interval",
            flags.flush_interval.as_deref(),
            DEFAULT_FLUSH_INTERVAL,
            |text| match parse_duration(text) {
                Ok(Duration::ZERO) => Err("0 is not possible".to_owned()),
                other => other,
            },
        ),
    }
}

fn read_disk_limits(problems: &mut Problems, flags: &Flags) -> DiskLimits {
    let mut limit = |flag, value: &Option<String>| {
        optional(problems, flag, value.as_deref(), None, |text| text.parse::<ByteCount>().map(Some))
    };
    let limits = DiskLimits {
        soft: limit("--disk-soft-limit", &flags.disk_soft_limit),
        hard: limit("--disk-hard-limit", &flags.disk_hard_limit),
        ballast: limit("--ballast", &flags.ballast),
    };
    if let (Some(soft), Some(hard)) = (limits.soft, limits.hard)
        && hard > soft
    {
        problems.note("--disk-hard-limit", format!("{hard} is more than --disk-soft-limit {soft}"));
    }
    limits
}

fn read_log(problems: &mut Problems, flags: &Flags) -> LogConfig {
    LogConfig {
        filter: optional(
            problems,
            "--log-level",
            flags.log_level.as_deref(),
            LogFilter::default(),
            LogFilter::from_str,
        ),
        format: optional(
            problems,
            "--log-format",
            flags.log_format.as_deref(),
            LogFormat::default(),
            LogFormat::from_str,
        ),
    }
}
