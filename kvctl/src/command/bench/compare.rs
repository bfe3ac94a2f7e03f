//! `kvctl bench --compare`: another program starts both systems, loads them in turns and prints one table.

use std::{env, ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::exit::{Exit, usage};

/// Is beside this program where KvCluster is built; it needs the programs of etcd.
const PROGRAM: &str = "kv-compare";
/// Where `scripts/bench` puts these, in the cache of the user.
const ETCD_PROGRAMS: &str = "kvcluster/etcd";
/// Names another folder.
const ETCD_PROGRAMS_VARIABLE: &str = "KV_ETCD_PROGRAMS";

/// The other system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// etcd, of the version that `make bench` builds
    Etcd,
}

/// Hands `words` over, and ends as the program does.
pub fn compare(peer: Peer, words: &[OsString]) -> Result<Exit> {
    let Peer::Etcd = peer;
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
    let status = command.args(words).status().context(PROGRAM)?;
    Ok(if status.success() { Exit::Ok } else { Exit::Unavailable })
}

fn cache() -> PathBuf {
    let stated = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    stated.or_else(|| Some(env::home_dir()?.join(".cache"))).unwrap_or_default()
}
