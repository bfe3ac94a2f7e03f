//! Command line of KvCluster.
//!
//! [`cli`] says what can be asked, [`command`] has a file for each noun, [`exit`] says how a command ended, in numbers
//! for scripts and in words for people. Everything goes through the client library: kvctl decides nothing about
//! retries or routing.

mod actor;
mod advice;
mod cli;
mod command;
mod context;
mod exit;
mod named;
mod output;
mod text;
mod time;

use std::{num::NonZeroUsize, process::ExitCode, thread};

use clap::Parser;
use tokio::runtime::Builder;

use crate::{
    cli::{Cli, Command},
    context::Context,
};

/// Below this number of cores one thread loads a cluster, as one thread serves in kvnode: more only switch contexts, and a
/// connection writes what many tasks have asked for at once.
const CORES_FOR_WORKERS: usize = 4;

fn runtime(command: &Command) -> Builder {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    if cores < CORES_FOR_WORKERS && matches!(command, Command::Bench(_)) {
        Builder::new_current_thread()
    } else {
        Builder::new_multi_thread()
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match runtime(&cli.command).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return exit::Exit::Error.into();
        }
    };
    let exit = runtime.block_on(async {
        let context = match Context::new(&cli.global) {
            Ok(context) => context,
            Err(error) => return exit::report(&error),
        };
        let exit = match Box::pin(cli.command.run(&context)).await {
            Ok(exit) => exit,
            Err(error) => exit::report(&error),
        };
        // Nobody will ask for the outcomes that the sessions of its writes keep.
        context.client.close().await;
        exit
    });
    // A terminal's read on standard input cannot be interrupted; it must not keep the process.
    runtime.shutdown_background();
    exit.into()
}
