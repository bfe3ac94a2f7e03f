//! `kvctl bench --compare`: another program starts both systems, loads them in turns and prints one table.

use std::{env, ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use clap::{ArgMatches, Args, FromArgMatches, ValueEnum, parser::ValueSource};

use crate::exit::{Exit, usage};

/// Is beside this program where KvCluster is built; it needs the programs of etcd.
const PROGRAM: &str = "kv-compare";
/// Where `scripts/bench` puts these, in the cache of the user.
const ETCD_PROGRAMS: &str = "kvcluster/etcd";
/// Names another folder.
const ETCD_PROGRAMS_VARIABLE: &str = "KV_ETCD_PROGRAMS";

/// What kv-compare understands as `kvctl bench` means it. The rest of its flags have no equal here.
const HANDED_ON: [&str; 5] = ["workload", "clients", "seconds", "keys", "value_size"];
/// What would be without effect.
const REFUSED: [&str; 16] = [
    "operations",
    "warm_up_seconds",
    "read_percent",
    "connections",
    "no_fill",
    "stale",
    "unary",
    "no_sessions",
    "through_nodes",
    "seed",
    "addr",
    "timeout",
    "direct",
    "output",
    "hex",
    "base64",
];

/// The other system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// etcd, of the version that `make bench` builds
    Etcd,
}

/// What the command line says itself: the defaults of `kvctl bench` are not those of kv-compare.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// For kv-compare.
    words: Vec<OsString>,
    /// The first that it would not get.
    refused: Option<&'static str>,
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // In a shell there are fewer flags, and asking for one that there is not is a bug.
        let is_given = |flag: &str| {
            matches.ids().any(|id| id == flag) && matches.value_source(flag) == Some(ValueSource::CommandLine)
        };
        let mut words = Vec::new();
        for name in HANDED_ON.into_iter().filter(|name| is_given(name)) {
            words.push(if name == "workload" { "--workloads".into() } else { flag(name).into() });
            words.extend(matches.get_raw(name).into_iter().flatten().map(ToOwned::to_owned));
        }
        Ok(Self { words, refused: REFUSED.into_iter().find(|name| is_given(name)) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// It has no flags of its own.
impl Args for Given {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command
    }
}

impl Given {
    /// The words for kv-compare.
    ///
    /// # Errors
    /// A flag is given that it would not get.
    fn handed_on(self) -> Result<Vec<OsString>> {
        let Some(name) = self.refused else { return Ok(self.words) };
        Err(usage(format!(
            "{} cannot be used with --compare, which starts clusters of its own; `kvctl bench --compare etcd -- --help` tells \
             what {PROGRAM} takes",
            flag(name)
        )))
    }
}

/// As people write it.
fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// Hands what was given and `words` over, and ends as the program does.
pub fn compare(peer: Peer, given: Given, words: Vec<OsString>) -> Result<Exit> {
    let Peer::Etcd = peer;
    let given = given.handed_on()?;
    // A link to this program stands elsewhere than what was built with it.
    let here = env::current_exe().and_then(|program| program.canonicalize()).context("where kvctl is")?;
    let program = here.with_file_name(PROGRAM);
    if !program.exists() {
        return Err(usage(format!(
            "{} is not there: run `make bench` once, which builds it",
            program.display()
        )));
    }
    let mut command = Command::new(program);
    if env::var_os(ETCD_PROGRAMS_VARIABLE).is_none() {
        let etcd = cache().join(ETCD_PROGRAMS);
        if !etcd.join("etcd").exists() {
            let etcd = etcd.display();
            return Err(usage(format!(
                "no etcd in {etcd}: run `make bench` once, which builds it, or set {ETCD_PROGRAMS_VARIABLE}"
            )));
        }
        command.env(ETCD_PROGRAMS_VARIABLE, etcd);
    }
    let status = command.args(given).args(words).status().context(PROGRAM)?;
    Ok(if status.success() { Exit::Ok } else { Exit::Unavailable })
}

fn cache() -> PathBuf {
    let stated = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    stated.or_else(|| Some(env::home_dir()?.join(".cache"))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::{self, Cli};

    fn handed_on(line: &str) -> Result<Vec<OsString>> {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            cli::Command::Bench(bench) => bench.given.handed_on(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_given_is_handed_on_and_no_default() {
        let words = |line| handed_on(line).unwrap();
        assert!(words("kvctl bench --compare etcd").is_empty());
        assert_eq!(
            words("kvctl bench get --compare etcd --clients 64 --value-size 4096"),
            ["--workloads", "get", "--clients", "64", "--value-size", "4096"]
        );
        // Also where it is the default of `kvctl bench`.
        assert_eq!(
            words("kvctl bench put --seconds=10 --keys 10000 --compare etcd -- --rounds 1"),
            ["--workloads", "put", "--seconds", "10", "--keys", "10000"]
        );
    }

    #[test]
    fn what_would_be_without_effect_is_refused_by_name() {
        for line in [
            "kvctl bench --compare etcd --stale",
            "kvctl bench --compare etcd --warm-up-seconds 0 --clients 1",
            "kvctl --addr localhost:1 bench --compare etcd",
            "kvctl bench --compare etcd --output json",
        ] {
            let problem = handed_on(line).unwrap_err().to_string();
            assert!(line.contains(problem.split(' ').next().unwrap()), "{problem}");
        }
    }

    #[test]
    fn every_flag_is_handed_on_or_refused() {
        let kvctl = Cli::command();
        let flags = kvctl.get_arguments().chain(kvctl.find_subcommand("bench").unwrap().get_arguments());
        let flags: BTreeSet<&str> = flags.map(|flag| flag.get_id().as_str()).collect();
        let own = ["compare", "words"];
        let known: BTreeSet<&str> = HANDED_ON.into_iter().chain(REFUSED).chain(own).collect();
        assert_eq!(flags, known);
    }
}
