//! A group of replicas in simulated time, under faults: the real log, state store, transport, proposer, read gate and
//! router of every node, in one thread, decided by a seed. The same seed gives the same run, event for event.
//!
//! `KV_SIM_SEEDS` asks for more seeds, `KV_SIM_FIRST` for others, `KV_SIM_SECONDS` for longer ones; `KV_SIM_SEED` and
//! `KV_SIM_BUG` choose the run of `one_seed`, and `KV_SIM_TRACE` prints its events.

#![allow(clippy::unwrap_used, reason = "a test: a panic is its verdict")]

mod clients;
mod counters;
mod dice;
mod members;
mod nemesis;
mod oracles;
mod run;
mod runtime;
mod scenes;
mod watch;
mod weather;
mod world;

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Instant,
};

use kvnode::log::PlantedBug;
use run::{Bug, Plan, Report};

/// Seeds of every test run: three minutes on two cores.
const SEEDS: u64 = 500;
/// Simulated seconds of each.
const SECONDS: u64 = 200;
/// Threads that run seeds.
const THREADS: usize = 2;
/// Seeds within which a planted bug must be caught.
const SEEDS_TO_CATCH: u64 = 100;
/// Seeds that are run twice.
const SEEDS_REPEATED: u64 = 3;

const NONE: Bug = Bug::Log(PlantedBug::None);

fn number(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is no number")))
}

fn plan(seed: u64, bug: Bug) -> Plan {
    Plan { seed, seconds: number("KV_SIM_SECONDS", SECONDS), bug }
}

fn assert_holds(plan: Plan, report: &Report) {
    assert!(report.violations.is_empty(), "{}\nreplay: {}", report.violations.join("\n"), plan.command());
    assert!(report.acknowledged_writes > 0, "nothing was written\nreplay: {}", plan.command());
    assert!(report.increments > 0, "nothing was counted\nreplay: {}", plan.command());
}

#[test]
fn one_seed() {
    let bug = match env::var("KV_SIM_BUG").as_deref() {
        Err(_) | Ok("None") => NONE,
        Ok("AcknowledgeBeforeSync") => Bug::Log(PlantedBug::AcknowledgeBeforeSync),
        Ok("ForgetVote") => Bug::Log(PlantedBug::ForgetVote),
        Ok("VoteNotSynced") => Bug::Log(PlantedBug::VoteNotSynced),
        Ok("ForgetSessions") => Bug::ForgetSessions,
        Ok(other) => panic!("KV_SIM_BUG: unknown bug {other}"),
    };
    let plan = plan(number("KV_SIM_SEED", 1), bug);
    let began = Instant::now();
    let report = plan.run();
    println!("{report:#?}\n{:.2} s", began.elapsed().as_secs_f64());
    assert_holds(plan, &report);
}

/// The second run is in another thread.
#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in 0..SEEDS_REPEATED {
        let plan = plan(seed, NONE);
        let other = thread::spawn(move || plan.run());
        assert_eq!(plan.run(), other.join().unwrap(), "{}", plan.command());
    }
}

#[test]
fn replicas_keep_their_promises_under_faults() {
    let (first, seeds) = (number("KV_SIM_FIRST", 0), number("KV_SIM_SEEDS", SEEDS));
    let next = AtomicU64::new(first);
    let (operations, crashes, leaders) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (undecided, increments) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= first + seeds {
                return;
            }
            let plan = plan(seed, NONE);
            let report = plan.run();
            assert_holds(plan, &report);
            operations.fetch_add(report.operations as u64, Relaxed);
            crashes.fetch_add(report.crashes, Relaxed);
            leaders.fetch_add(report.leaders as u64, Relaxed);
            increments.fetch_add(report.increments, Relaxed);
            undecided.fetch_add(report.undecided_keys as u64, Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let simulated = seeds * plan(0, NONE).seconds;
    println!(
        "{seeds} seeds, {simulated} simulated seconds in {seconds:.1} s: {crashes:?} crashes, {leaders:?} leaders, \
         {operations:?} operations, {increments:?} increments, {undecided:?} keys undecided"
    );
}

/// The seeds until a planted bug shows.
fn is_caught(bug: Bug) {
    for seed in 0..SEEDS_TO_CATCH {
        let report = plan(seed, bug).run();
        if let Some(violation) = report.violations.first() {
            println!("{bug:?}: caught by seed {seed}: {violation}");
            return;
        }
    }
    panic!("{bug:?} was not caught within {SEEDS_TO_CATCH} seeds");
}

#[test]
fn an_acknowledgement_before_the_sync_is_caught() {
    is_caught(Bug::Log(PlantedBug::AcknowledgeBeforeSync));
}

#[test]
fn a_forgotten_vote_is_caught() {
    is_caught(Bug::Log(PlantedBug::ForgetVote));
}

#[test]
fn a_vote_that_was_not_synced_is_caught() {
    is_caught(Bug::Log(PlantedBug::VoteNotSynced));
}

#[test]
fn a_retry_that_is_applied_again_is_caught() {
    is_caught(Bug::ForgetSessions);
}
