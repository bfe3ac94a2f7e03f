//! Loads and their checks.
//!
//! Too much load for real clusters: a [`burst`], a [`hot_shard`], and readers that stand still, of many kinds
//! ([`slow_reader`], [`standing_scans`], [`standing_gets`], [`standing_downloads`]).
//!
//! The checked load finds planted bugs: it runs against a store in memory that lies on request.
//! A bug that happens once may stay hidden: what it spoiled is overwritten before anybody reads it. So a load runs until
//! the bug has happened [`STRIKES`] times, however long that takes. What a checker says first of it is a matter of
//! chance, too: a test names every true thing that may be said.

mod burst;
mod hot_shard;
mod memory;
mod pressure;
mod slow_reader;
mod standing;
mod standing_downloads;
mod standing_gets;
mod standing_scans;
mod store;

use std::{any::Any, net::SocketAddr, sync::Arc};

use kv_cluster_tests::{DEADLINE, Load, LoadPlan, seed, verdict::Verdict, wait_until};
use kv_proto::kv::v1::kv_server::KvServer;
use store::{Bug, Store};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// More than half of the bugs that happen are seen: that so many all stay hidden is a matter of millions of runs.
const STRIKES: u64 = 20;

/// Acknowledged writes of an honest store that must be believed.
const BELIEVED_WRITES: u64 = 2_000;

/// What any violation says that is about the order of events.
const NO_ORDER: &str = "no order of the operations";

/// Two addresses of one store.
async fn serve(store: &Arc<Store>) -> (Vec<SocketAddr>, Vec<JoinHandle<()>>) {
    let (mut addresses, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        addresses.push(listener.local_addr().expect("bound"));
        let service = KvServer::from_arc(Arc::clone(store));
        let incoming = TcpListenerStream::new(listener);
        servers.push(tokio::spawn(async move {
            Server::builder().add_service(service).serve_with_incoming(incoming).await.expect("it serves");
        }));
    }
    (addresses, servers)
}

/// Small values, read and written one by one.
fn single_keys() -> LoadPlan {
    LoadPlan { keys: 6, ..LoadPlan::default() }
}

/// Every kind of request.
fn all_kinds() -> LoadPlan {
    LoadPlan { keys: 24, pairs: 3, upload_bytes: 70_000, ..LoadPlan::of_all_kinds() }
}

/// Runs a load until the bug has happened often enough, or enough writes were acknowledged without one, and gives the
/// verdict, or what it said against the store.
async fn run(bug: Bug, plan: LoadPlan) -> Result<Verdict, String> {
    let mut random = seed::generator("load");
    let store = Arc::new(Store::new(bug));
    let (addresses, servers) = serve(&store).await;
    let load = Load::start(plan, addresses, &mut random);
    if bug == Bug::None {
        load.must_progress(BELIEVED_WRITES).await;
    } else {
        let struck = wait_until(format!("{STRIKES} times {bug:?}"), DEADLINE, || async {
            let strikes = store.strikes();
            if strikes >= STRIKES { Ok(()) } else { Err(format!("{strikes} times")) }
        });
        struck.await.unwrap_or_else(|error| panic!("{error}"));
    }
    let verdict = tokio::spawn(load.finish()).await;
    servers.iter().for_each(JoinHandle::abort);
    verdict.map_err(|error| text_of(&*error.into_panic()))
}

/// What a panic said.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .expect("a panic says something")
}

/// The load must be judged, and one of these be said.
async fn is_found(bug: Bug, plan: LoadPlan, signs: &[&str]) {
    let violation = run(bug, plan).await.expect_err("the bug has happened");
    assert!(signs.iter().any(|sign| violation.contains(sign)), "none of {signs:?} is said: {violation}");
}

/// Nothing may be said against an honest store. A machine that stands still for as long as a request may take loses
/// replies, which is no fault of the store.
async fn is_believed(plan: LoadPlan) {
    let verdict = run(Bug::None, plan).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert!(verdict.acknowledged_writes >= BELIEVED_WRITES, "{verdict:?}");
    let refusals: Vec<_> = verdict.errors.keys().filter(|name| !name.starts_with("transport: ")).collect();
    assert!(refusals.is_empty(), "it refuses nothing: {refusals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_store_passes() {
    is_believed(single_keys()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_store_passes_with_every_kind_of_request() {
    is_believed(all_kinds()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_stale_read_is_found() {
    is_found(Bug::StaleRead, single_keys(), &["did not grow", NO_ORDER, "write is lost"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_lost_write_is_found() {
    is_found(Bug::LostWrite, single_keys(), &["write is lost", "did not grow", NO_ORDER]).await;
}

/// It is read twice, it turns a read around, or it stands at the end in the place of a later write.
#[tokio::test(flavor = "multi_thread")]
async fn planted_second_application_is_found() {
    is_found(Bug::AppliedTwice, single_keys(), &["applied twice", NO_ORDER, "write is lost"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_was_said_to_be_refused_is_found() {
    is_found(Bug::RefusedButDone, single_keys(), &["a refused write became visible", NO_ORDER]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_flipped_byte_is_found() {
    is_found(Bug::FlippedByte, single_keys(), &["byte 50"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_that_goes_back_is_found() {
    let signs = ["did not grow", "share a mod revision", "applied twice", NO_ORDER, "write is lost"];
    is_found(Bug::RevisionBack, single_keys(), &signs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_blind_swap_is_found() {
    is_found(Bug::BlindSwap, single_keys(), &[NO_ORDER]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_torn_transaction_is_found() {
    is_found(Bug::TornTransaction, all_kinds(), &["tore its pair", "tears"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_scan_that_mixes_moments_is_found() {
    is_found(Bug::MixedScan, all_kinds(), &["tears", "did not grow", NO_ORDER]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_hole_in_a_scan_is_found() {
    is_found(Bug::ScanWithAHole, all_kinds(), &["tears", NO_ORDER]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_survivor_of_a_deleted_range_is_found() {
    is_found(Bug::SurvivorOfARange, all_kinds(), &[NO_ORDER, "write is lost"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_damage_of_a_download_is_found() {
    is_found(Bug::DamagedDownload, all_kinds(), &["byte 30 of"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_loss_in_a_bulk_write_is_found() {
    is_found(Bug::LostBulk, all_kinds(), &["write is lost", "did not grow", NO_ORDER]).await;
}
