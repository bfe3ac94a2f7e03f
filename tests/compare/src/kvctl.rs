//! `kvctl bench`, run as a program.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use kv_cluster_tests::{
    Cluster,
    binary::{self, Binary},
};
use serde::de::DeserializeOwned;

/// Loads one cluster.
#[derive(Debug)]
pub struct Kvctl {
    program: PathBuf,
    addresses: String,
}

impl Kvctl {
    /// For this cluster.
    ///
    /// # Errors
    /// When kvctl was not built.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let program = binary::find(Binary::Kvctl).context("kvctl was not built")?;
        let addresses: Vec<String> = cluster.addresses().iter().map(ToString::to_string).collect();
        Ok(Self { program, addresses: addresses.join(",") })
    }

    /// Runs `kvctl bench` with this workload, flags without a value, and flags with one. The answer is what it tells, or
    /// the part of it that the caller wants.
    ///
    /// # Errors
    /// When it fails, or tells something else.
    pub fn bench<R: DeserializeOwned>(
        &self,
        workload: &str,
        switches: &[&str],
        values: &[(&str, u64)],
    ) -> Result<R> {
        let mut command = Command::new(&self.program);
        command.args(["--addr", &self.addresses, "-o", "json", "bench", workload]).args(switches);
        for (flag, value) in values {
            command.args([flag, &value.to_string() as &str]);
        }
        let output = command.output().context("kvctl bench")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kvctl bench: {}: {said}", output.status);
        serde_json::from_slice(&output.stdout).context("what kvctl bench printed")
    }
}

/// The key with this number, as `kvctl bench` names it.
pub fn key(number: u64) -> String {
    format!("bench/{number:010}")
}
