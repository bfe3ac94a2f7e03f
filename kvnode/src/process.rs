//! The kvnode process: flags in, a node, signals, out.

use std::{num::NonZeroUsize, panic, process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use rand::{SeedableRng, rngs::StdRng};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::Config,
    node::{Node, points::Points},
    runtime::{lasting::THREADS, open_files},
    telemetry,
};

/// Below this number of cores one thread runs all tasks: more only switch contexts. Its queue is first in, first out, so
/// that a connection writes what many calls have answered at once, and not after each of them.
const CORES_FOR_WORKERS: usize = 4;

/// The node begins anew when it is started again: `EX_TEMPFAIL` of sysexits.h.
const START_AGAIN: u8 = 75;

/// For the threads of a node that has stopped: a database that is closed waits for what it writes.
const THREADS_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs to the end. `points` is told what the node passes; see [`crate::node::points`].
pub fn main(points: Points) -> ExitCode {
    match run(points) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(reason)) => {
            eprintln!("kvnode: {reason}: start it again");
            ExitCode::from(START_AGAIN)
        }
        Err(error) => {
            eprintln!("kvnode: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(points: Points) -> anyhow::Result<Option<String>> {
    let config = Config::of_this_process()?;
    telemetry::start(&config.log)?;
    end_with_any_panic();
    let open_files = open_files::raise_limit();
    if open_files < open_files::OPEN_FILES_WANTED {
        tracing::warn!(open_files, wanted = open_files::OPEN_FILES_WANTED, "few files may be open at once");
    }
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut runtime = if cores < CORES_FOR_WORKERS {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = runtime.worker_threads((cores / 2).max(1)).enable_all().build()?;
    let ended = runtime.block_on(serve(config, points));
    // What its tasks hold of the databases goes with it, and the threads end when the rest has gone.
    drop(runtime);
    if !THREADS.wait(THREADS_TIMEOUT) {
        tracing::warn!("threads of the node did not end in time");
    }
    ended
}

/// Until it is asked to stop, or wants to be started again: why.
async fn serve(config: Config, points: Points) -> anyhow::Result<Option<String>> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let rng = StdRng::from_rng(&mut rand::rng());
    let node = Node::start_with(config, rng, Arc::new(end_process), points).await?;
    let start_again = tokio::select! {
        biased;
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        reason = node.over() => Some(reason),
    };
    tracing::info!(start_again, "stopping");
    // A second signal ends the wait: everything acknowledged is on disk.
    tokio::select! {
        biased;
        () = node.stop() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(start_again)
}

/// One policy for all panics: docs/adr/0003. The node hears of those of its own tasks; this is for those of the libraries'
/// tasks and threads, which nobody watches.
fn end_with_any_panic() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        print(panic);
        end_process("a panic");
    }));
}

/// A device failed, or something panicked: what is in memory may never be on disk, and nobody may rely on it.
fn end_process(reason: &str) {
    tracing::error!(reason, "the node ends");
    eprintln!("kvnode: {reason}");
    std::process::abort();
}
