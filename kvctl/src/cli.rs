//! The command line.

use std::{env::VarError, time::Duration};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use kv_client::Address;

use crate::{
    command,
    exit::{self, usage},
    output::Format,
    time,
};

/// Talks to a KvCluster.
#[derive(Debug, Parser)]
#[command(name = "kvctl", version, about, after_help = exit::HELP)]
pub struct Cli {
    /// What every command has.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command has.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Nodes to talk to, separated by commas, with or without http:// [env: KVCTL_ADDR] [default: 127.0.0.1:50051]
    // Read by us: clap would show the flag as given in the usage of each command.
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub addr: Option<String>,
    /// How long an operation may take, and a stream may stand still: 500ms, 10s, 2m
    #[arg(long, global = true, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Ask the leader of each key's shard instead of one node; every node's address must be reachable
    #[arg(long, global = true)]
    pub direct: bool,
    /// Tables for people or JSON for programs
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Format,
    /// Keys on the command line are hexadecimal
    #[arg(long, global = true, conflicts_with = "base64")]
    pub hex: bool,
    /// Keys on the command line are base64
    #[arg(long, global = true)]
    pub base64: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a key
    #[command(visible_alias = "set")]
    Put(command::put::Put),
    /// Read a key
    Get(command::get::Get),
    /// Delete a key
    #[command(visible_alias = "del")]
    Delete(command::delete::Delete),
    /// List keys in order
    Scan(command::scan::Scan),
    /// Read many keys
    BatchGet(command::batch_get::BatchGet),
    /// Make many independent writes, one JSON document a line
    Bulk(command::bulk::Bulk),
    /// Compare, then do one thing or the other, atomically
    Txn(command::txn::Txn),
    /// Delete a range of keys, step by step
    DeleteRange(command::delete_range::DeleteRange),
    /// Upload a file as the value of a key
    Upload(command::upload::Upload),
    /// Download the value of a key into a file, verified
    Download(command::download::Download),
    /// Many commands over one connection
    Shell(command::shell::Shell),
    /// How the cluster is
    Status(command::status::Status),
    /// Shards
    #[command(subcommand)]
    Shard(command::shard::Shard),
    /// Nodes, each called by its name or its id: n3, 3; texts write ids as #3
    #[command(subcommand)]
    Node(command::node::Node),
    /// Wishes of the whole cluster
    #[command(subcommand)]
    Cluster(command::cluster::Cluster),
    /// What was done in the cluster, when, by whom, and why; the newest at the bottom
    ///
    /// The cluster keeps the last 10,000 entries of this journal. Times are those of the clock of who did it.
    Why(command::why::Why),
    /// Go on after a quorum was lost for good: from what survived, on the word of a person
    #[command(subcommand)]
    Recover(command::recover::Recover),
    /// Measure throughput and latency
    Bench(command::bench::Bench),
    /// Print a completion script for a shell
    Completion(command::completion::Completion),
    /// Run a local cluster until Ctrl-C
    Dev(command::dev::Dev),
}

/// Names nodes where `--addr` does not.
const ADDR_VARIABLE: &str = "KVCTL_ADDR";
const ADDR_DEFAULT: &str = "127.0.0.1:50051";

impl Global {
    /// The nodes to talk to.
    pub fn addresses(&self) -> Result<Vec<Address>> {
        let (list, from) = match (&self.addr, std::env::var(ADDR_VARIABLE)) {
            (Some(list), _) => (list.clone(), "--addr"),
            (None, Ok(list)) if !list.is_empty() => (list, ADDR_VARIABLE),
            (None, Err(VarError::NotUnicode(_))) => return Err(usage(format!("{ADDR_VARIABLE} is no text"))),
            (None, Ok(_) | Err(VarError::NotPresent)) => (ADDR_DEFAULT.to_owned(), "the default"),
        };
        Address::parse_list(&list).map_err(|error| usage(format!("{from}: {error}")))
    }
}

/// A time limit: 1 ms to a day. Beyond that it is a mistake, and sums with the clock must not overflow.
fn duration(text: &str) -> Result<Duration, String> {
    time::parse_within(text, Duration::from_millis(1), Duration::from_secs(24 * 3600))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_time_limit_is_more_than_nothing_and_at_most_a_day() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        for text in ["0s", "25h", "99999999m"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
