//! `kvctl completion`.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use crate::{
    cli::Cli,
    exit::{Exit, usage},
};

/// Prints a completion script: `source <(kvctl completion bash)`.
#[derive(Debug, Args)]
pub struct Completion {
    /// For which shell; the one of SHELL unless given
    shell: Option<Shell>,
}

impl Completion {
    /// Runs to the end.
    pub fn run(self) -> Result<Exit> {
        let shell = self.shell.or_else(Shell::from_env);
        let shell =
            shell.ok_or_else(|| usage("say for which shell: bash, elvish, fish, powershell or zsh"))?;
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "kvctl", &mut script);
        std::io::Write::write_all(&mut std::io::stdout().lock(), &script)?;
        Ok(Exit::Ok)
    }
}
