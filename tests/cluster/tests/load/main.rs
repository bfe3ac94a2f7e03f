//! The checked load finds planted bugs: it runs against a store in memory that lies on request.

mod store;

use std::{net::SocketAddr, sync::Arc};

use kv_cluster_tests::{Load, LoadPlan, seed, verdict::Verdict};
use kv_proto::kv::v1::kv_server::KvServer;
use store::{Bug, Store};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// Two addresses of one store.
async fn serve(bug: Bug) -> (Vec<SocketAddr>, Vec<JoinHandle<()>>) {
    let store = Arc::new(Store::new(bug));
    let (mut addresses, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        addresses.push(listener.local_addr().expect("bound"));
        let service = KvServer::from_arc(Arc::clone(&store));
        let incoming = TcpListenerStream::new(listener);
        servers.push(tokio::spawn(async move {
            Server::builder().add_service(service).serve_with_incoming(incoming).await.expect("it serves");
        }));
    }
    (addresses, servers)
}

/// Runs a load until so many writes are acknowledged and gives the verdict, or what the load said against it.
async fn run(bug: Bug) -> Result<Verdict, String> {
    run_plan(bug, LoadPlan { keys: 6, ..LoadPlan::default() }).await
}

/// The same with every kind of request.
async fn run_all_kinds(bug: Bug) -> Result<Verdict, String> {
    let plan = LoadPlan { keys: 24, pairs: 3, upload_bytes: 70_000, ..LoadPlan::of_all_kinds() };
    run_plan(bug, plan).await
}

async fn run_plan(bug: Bug, plan: LoadPlan) -> Result<Verdict, String> {
    let mut random = seed::generator("load");
    let (addresses, servers) = serve(bug).await;
    let load = Load::start(plan, addresses, &mut random);
    load.must_progress(2_000).await;
    let verdict = tokio::spawn(load.finish()).await;
    servers.iter().for_each(JoinHandle::abort);
    verdict.map_err(|error| *error.into_panic().downcast::<String>().expect("a formatted message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_store_passes() {
    let verdict = run(Bug::None).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert!(verdict.acknowledged_writes >= 2_000 && verdict.report.failed == 0 && verdict.errors.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_stale_read_is_found() {
    run(Bug::StaleRead).await.expect_err("reads were stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_lost_write_is_found() {
    run(Bug::LostWrite).await.expect_err("writes were lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_second_application_is_found() {
    let violation = run(Bug::AppliedTwice).await.expect_err("writes were applied twice");
    // A second application shows in one of three ways: it is read twice, it turns a read around, or it stands at the
    // end in the place of a later write.
    let shown = ["twice", "no order", "acknowledged write is lost"];
    assert!(shown.iter().any(|sign| violation.contains(sign)), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_was_said_to_be_refused_is_found() {
    let violation = run(Bug::RefusedButDone).await.expect_err("refused writes happened");
    assert!(violation.contains("refused"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_flipped_byte_is_found() {
    let violation = run(Bug::FlippedByte).await.expect_err("bytes were flipped");
    assert!(violation.contains("byte 50"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_that_goes_back_is_found() {
    let violation = run(Bug::RevisionBack).await.expect_err("revisions went back");
    assert!(violation.contains("revision"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_blind_swap_is_found() {
    run(Bug::BlindSwap).await.expect_err("conditions were ignored");
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_store_passes_with_every_kind_of_request() {
    let verdict = run_all_kinds(Bug::None).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert!(verdict.errors.is_empty(), "{:?}", verdict.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_torn_transaction_is_found() {
    let violation = run_all_kinds(Bug::TornTransaction).await.expect_err("transactions were torn");
    assert!(violation.contains("tore") || violation.contains("tears"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_scan_that_mixes_moments_is_found() {
    let violation = run_all_kinds(Bug::MixedScan).await.expect_err("a scan showed an old half");
    assert!(violation.contains("tears") || violation.contains("revision"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_hole_in_a_scan_is_found() {
    run_all_kinds(Bug::ScanWithAHole).await.expect_err("a scan left a key out");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_survivor_of_a_deleted_range_is_found() {
    run_all_kinds(Bug::SurvivorOfARange).await.expect_err("a key outlived its range");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_damage_of_a_download_is_found() {
    let violation = run_all_kinds(Bug::DamagedDownload).await.expect_err("a byte was flipped");
    assert!(violation.contains("byte"), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_loss_in_a_bulk_write_is_found() {
    run_all_kinds(Bug::LostBulk).await.expect_err("an operation was lost");
}
