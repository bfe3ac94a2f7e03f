//! Tables of command lines: what they mean, and what is wrong with them.

use std::{env, fs, path::Path, time::Duration};

use clap::{CommandFactory, FromArgMatches, builder::Resettable};

use super::{ByteCount, Config, Flags, Formation, Problems, validate};
use crate::telemetry::LogFormat;

const MACHINE_MEMORY: ByteCount = ByteCount::mebi(1024);

/// The flags of a command line, whatever the environment that runs the tests holds.
fn flags(line: &str) -> Flags {
    let command = Flags::command().mut_args(|flag| flag.env(Resettable::Reset));
    let matches = command.try_get_matches_from(std::iter::once("kvnode").chain(line.split_whitespace()));
    Flags::from_arg_matches(&matches.expect("known flags")).expect("known flags")
}

fn config(line: &str) -> Result<Config, Problems> {
    validate(&flags(line), MACHINE_MEMORY)
}

fn valid(line: &str) -> Config {
    config(&format!("--node-name n1 --data-dir d {line}"))
        .unwrap_or_else(|problems| panic!("{line}: {problems}"))
}

fn problems_of(line: &str) -> String {
    config(&format!("--node-name n1 --data-dir d {line}")).expect_err(line).to_string()
}

fn addresses(config: &Config) -> [String; 5] {
    let (listen, advertise) = (&config.listen, &config.advertise);
    [&listen.client, &listen.peer, &listen.http, &advertise.client, &advertise.peer].map(ToString::to_string)
}

#[test]
fn all_problems_are_named_together() {
    let line = "--node-name 1n --port 70000 --shards 0 --replication-factor 2 --memory much --log-level loud \
                --log-format xml --initial-nodes n1:50051,n2=host --join n3 --bootstrap --election-ms 10";
    assert_eq!(
        config(line).expect_err("much is wrong").to_string(),
        "--node-name: '1n' does not begin with a letter\n\
         --data-dir: is required\n\
         --initial-nodes: 'n1:50051' has no '='; write NAME=HOST:PORT\n\
         --initial-nodes: 'host' has no port; write HOST:PORT\n\
         --port: '70000' is not possible; 1 to 65515 are allowed\n\
         --join: 'n3' has no port; write HOST:PORT\n\
         --bootstrap: contradicts --initial-nodes; give one of the two\n\
         --join: contradicts --initial-nodes; give one of the two\n\
         --shards: 0 is not possible; 1 to 256 are allowed\n\
         --replication-factor: 2 is not possible; 1, 3, 5 and 7 are allowed\n\
         --memory: 'much' is no number of bytes; write 1073741824 or 1Gi\n\
         --election-ms: 10 is less than two heartbeats of 150 ms: one lost heartbeat would start an election\n\
         --log-level: 'loud' is no level; error, warn, info, debug and trace are, or a filter such as \
         info,kvnode::log=debug\n\
         --log-format: 'xml' is no format; text and json are"
    );
}

#[test]
fn name_and_folder_suffice() {
    let config = valid("");
    assert_eq!(config.formation, Formation::Wait);
    assert_eq!((config.shards, config.replication_factor), (8, 3));
    assert_eq!(config.memory, MACHINE_MEMORY);
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.raft.heartbeat, Duration::from_millis(150));
    assert_eq!(config.compaction.log_retention, ByteCount::mebi(64));
    assert_eq!(config.snapshot_rate, ByteCount::mebi(64));
}

#[test]
fn a_rate_of_snapshots_is_a_number_of_bytes_and_zero_is_no_limit() {
    assert_eq!(valid("--snapshot-rate 10MB").snapshot_rate, ByteCount(10_000_000));
    assert_eq!(valid("--snapshot-rate 0").snapshot_rate, ByteCount(0));
    assert_eq!(
        problems_of("--snapshot-rate fast"),
        "--snapshot-rate: 'fast' is no number of bytes; write 1073741824 or 1Gi"
    );
}

#[test]
fn addresses_follow_from_each_other() {
    let local = |client: u16, peer: u16, http: u16| {
        [client, peer, http, client, peer].map(|port| format!("127.0.0.1:{port}"))
    };
    assert_eq!(addresses(&valid("")), local(50051, 50061, 9090));
    assert_eq!(addresses(&valid("--port 50151")), local(50151, 50161, 50171));
    assert_eq!(
        addresses(&valid("--port 50151 --initial-nodes n1=127.0.0.1:50151,n2=127.0.0.1:50251")),
        local(50151, 50161, 50171),
        "a cluster on one machine is not open to others",
    );
    assert_eq!(
        addresses(&valid("--initial-nodes n1=10.0.0.1:50051,n2=10.0.0.2:50051")),
        ["0.0.0.0:50051", "0.0.0.0:50061", "0.0.0.0:9090", "10.0.0.1:50051", "10.0.0.1:50061"],
        "a node that others reach at an address listens there",
    );
    assert_eq!(
        addresses(&valid(
            "--client-listen [::]:1 --peer-listen [::]:2 --http-listen [::]:3 --advertise-client h:9"
        )),
        ["[::]:1", "[::]:2", "[::]:3", "h:9", "h:2"],
    );
    assert_eq!(
        addresses(&valid("--advertise-client h:9 --advertise-peer p:8 --http-listen 127.0.0.1:7")),
        ["0.0.0.0:50051", "0.0.0.0:50061", "127.0.0.1:7", "h:9", "p:8"],
    );
    assert_eq!(
        addresses(&valid("--client-listen 10.0.0.1:5")),
        ["10.0.0.1:5", "127.0.0.1:50061", "127.0.0.1:9090", "10.0.0.1:5", "10.0.0.1:50061"],
    );
}

#[test]
fn ways_to_form_a_cluster() {
    let formation = |line: &str| valid(line).formation;
    assert_eq!(formation("--bootstrap"), Formation::Bootstrap { ask: vec![] });
    let n2 = "127.0.0.1:50151".parse().expect("an address");
    let n3 = "127.0.0.1:50251".parse().expect("an address");
    assert_eq!(formation("--join 127.0.0.1:50151 --join 127.0.0.1:50251"), Formation::Join(vec![n2, n3]));
    assert!(matches!(
        formation("--bootstrap --join 127.0.0.1:50151"),
        Formation::Bootstrap { ask } if ask.len() == 1
    ));
    let Formation::InitialNodes(nodes) = formation("--initial-nodes n2=h2:1,n1=h1:1,n3=h3:1") else {
        panic!("a list was given")
    };
    let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["n2", "n1", "n3"], "the first bootstraps, so the order is kept");
}

#[test]
fn contradictions_name_the_flag_to_change() {
    for (line, expected) in [
        (
            "--initial-nodes n2=h:1",
            "--initial-nodes: this node, n1, is not in the list; all nodes get the same list",
        ),
        ("--initial-nodes n1=h:1,n1=h:2", "--initial-nodes: names n1 twice"),
        ("--initial-nodes n1=h:1,n2=h:1", "--initial-nodes: gives h:1 to two nodes"),
        (
            "--initial-nodes n1=0.0.0.0:1",
            "--initial-nodes: 0.0.0.0:1 means all interfaces; it is no address that others can dial",
        ),
        (
            "--port 50051 --peer-listen 127.0.0.1:50051",
            "--peer-listen: 127.0.0.1:50051 is taken by --client-listen",
        ),
        (
            "--http-listen 127.0.0.1:50061",
            "--http-listen: 127.0.0.1:50061 is taken by another of the three ports",
        ),
        (
            "--client-listen 0.0.0.0:5",
            "--advertise-client: is required with --client-listen 0.0.0.0:5: it is no address that others can dial",
        ),
        (
            "--join n2.example:5",
            "--advertise-client: is required with --join n2.example:5: other machines cannot reach 127.0.0.1:50051",
        ),
        ("--peer-address-override n2=h:1,n2=h:2", "--peer-address-override: names n2 twice"),
        ("--memory 1Mi", "--memory: 1Mi is too little; a node needs 192Mi"),
        ("--election-ms 900-500", "--election-ms: 900-500 is no range"),
        ("--flush-interval 0s", "--flush-interval: 0 is not possible"),
        (
            "--disk-soft-limit 1Gi --disk-hard-limit 2Gi",
            "--disk-hard-limit: 2Gi is more than --disk-soft-limit 1Gi",
        ),
    ] {
        assert_eq!(problems_of(line), expected, "{line}");
    }
}

#[test]
fn a_cgroup_that_gives_too_little_is_told_unless_somebody_decided() {
    let validated = |line: &str| {
        let line = format!("--node-name n1 --data-dir d {line}");
        validate(&flags(&line), ByteCount::mebi(64)).map_err(|problems| problems.to_string())
    };
    let told = validated("").expect_err("too little");
    assert!(
        told.contains("--memory: the limit of the cgroup, 64Mi, is too little; a node needs 192Mi"),
        "{told}"
    );
    assert_eq!(validated("--memory 192Mi").expect("as it was told").memory, ByteCount::mebi(192));
}

#[test]
fn a_joining_node_may_say_its_address_by_what_it_listens_on() {
    let config = valid("--join n2.example:5 --client-listen 10.0.0.1:5");
    assert_eq!(config.advertise.client.to_string(), "10.0.0.1:5");
}

#[test]
fn times_for_tests_are_taken() {
    let config =
        valid("--heartbeat-ms 20 --election-ms 100 --flush-interval 500ms --log-retention-bytes 1Mi");
    assert_eq!(config.raft.election_max, Duration::from_millis(180));
    assert_eq!(config.compaction.flush_interval, Duration::from_millis(500));
    assert_eq!(valid("--election-ms 400-401").raft.election_max, Duration::from_millis(401));
}

#[test]
fn recovery_is_asked_for_and_goes_with_the_usual_flags() {
    assert!(!valid("").recovery);
    let config = valid("--recovery --initial-nodes n1=127.0.0.1:50051,n2=127.0.0.1:50151");
    assert!(config.recovery);
    assert!(matches!(config.formation, Formation::InitialNodes(_)), "its unit file stays as it is");
}

#[test]
fn an_empty_value_is_an_absent_one() {
    let mut flags = flags("--node-name n1 --data-dir d");
    flags.port = Some(String::new());
    flags.join = vec![String::new()];
    flags.initial_nodes = vec![String::new()];
    let config = validate(&flags, MACHINE_MEMORY).expect("as if absent");
    assert_eq!(config.formation, Formation::Wait);
    assert_eq!(config.listen.client.port(), 50051);
}

/// Compares a generated document with its committed text, or writes it for `make fix`.
pub fn assert_written_down(document: &str, expected: &str) {
    let path = Path::new("..").join(document);
    if env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&path, expected).expect("written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{document} is out of date, run `make fix`");
}

/// Every flag with its variable and meaning, as a table for people.
fn reference() -> String {
    let command = Flags::command();
    let mut rows = String::new();
    for flag in command.get_arguments() {
        let (Some(long), Some(variable), Some(help)) = (flag.get_long(), flag.get_env(), flag.get_help())
        else {
            continue;
        };
        let values = flag.get_value_names().filter(|_| flag.get_action().takes_values()).unwrap_or_default();
        let value: String = values.iter().map(|name| format!(" {name}")).collect();
        let help =
            if flag.is_hide_set() { format!("{help} (not shown by --help)") } else { help.to_string() };
        let variable = variable.to_string_lossy();
        rows.push_str(&format!("| `--{long}{value}` | `{variable}` | {help} |\n"));
    }
    format!(
        "# Configuration of kvnode\n\n\
         By flag or by environment variable; the flag wins, and an empty value counts as absent. All problems are \
         named at once, before anything is touched. `make fix` writes this file.\n\n\
         | Flag | Variable | Meaning |\n|---|---|---|\n{rows}"
    )
}

#[test]
fn the_reference_of_flags_is_written_down() {
    assert_written_down("docs/configuration.md", &reference());
}
