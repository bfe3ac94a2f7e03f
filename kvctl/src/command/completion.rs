//! `kvctl completion`.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use crate::{cli::Cli, exit::Exit};

/// Prints a completion script: `source <(kvctl completion bash)`.
#[derive(Debug, Args)]
pub struct Completion {
    /// For which shell
    shell: Shell,
}

impl Completion {
    /// Runs to the end.
    pub fn run(self) -> Result<Exit> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "kvctl", &mut script);
        std::io::Write::write_all(&mut std::io::stdout().lock(), &script)?;
        Ok(Exit::Ok)
    }
}
