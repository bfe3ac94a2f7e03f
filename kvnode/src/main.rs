//! The kvnode process: flags in, a node, signals, out.

use std::{num::NonZeroUsize, process::ExitCode, sync::Arc, thread};

use anyhow::Context as _;
use kvnode::{config::Config, node::Node, telemetry};
use rand::{SeedableRng, rngs::StdRng};
use tokio::signal::unix::{SignalKind, signal};

/// Below this number of cores more worker threads only switch contexts.
const CORES_FOR_MORE_WORKERS: usize = 4;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvnode: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let config = Config::of_this_process()?;
    telemetry::start(&config.log)?;
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = if cores < CORES_FOR_MORE_WORKERS { 1 } else { cores / 2 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let rng = StdRng::from_rng(&mut rand::rng());
    let node = Node::start(config, rng, Arc::new(end_process)).await?;
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    // A second signal ends the wait: everything acknowledged is on disk.
    tokio::select! {
        biased;
        () = node.stop() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// A device failed: what is in memory may never be on disk, and nobody may rely on it.
fn end_process(reason: &str) {
    tracing::error!(reason, "the node ends");
    eprintln!("kvnode: {reason}");
    std::process::abort();
}
