//! Readers that ask for much and stand still before they read it: meanwhile every node stays within its memory, and others go
//! on. In the end each reader has all that it asked for, or was told to come again.
//!
//! A reader opens its reply as far as the transport allows, waits at the gate, and reads.

use std::{future::Future, time::Instant};

use kv_cluster_tests::{Cluster, metrics::scrape};
use kv_proto::kv::v1::{GetRequest, GetResponse};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tonic::{
    Request, Response, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::{
    memory::{MIB, Memory},
    pressure::{DEADLINE, Ends, steady},
};

/// Rounds of the small load while readers stand still, at most.
const ROUNDS_MAX: usize = 8;
/// What a round of the small load by itself may add to all nodes together, bytes: nobody else takes anything any more.
const STILL_BYTES: u64 = 2 * MIB;

/// Where readers stand still.
#[derive(Clone)]
pub struct Gate(watch::Receiver<bool>);

/// A gate, and what opens it.
pub fn gate() -> (watch::Sender<bool>, Gate) {
    let (opens, gate) = watch::channel(false);
    (opens, Gate(gate))
}

impl Gate {
    /// Waits until readers may read.
    pub async fn opened(mut self) {
        self.0.wait_for(|opened| *opened).await.expect("the test goes on");
    }
}

/// Readers of one kind.
pub struct Standing {
    opens: watch::Sender<bool>,
    gate: Gate,
    readers: JoinSet<Result<(), Status>>,
    begun: Instant,
}

impl Standing {
    /// None yet.
    pub fn begin() -> Self {
        let (opens, gate) = gate();
        Self { opens, gate, readers: JoinSet::new(), begun: Instant::now() }
    }

    /// One more, who waits at the gate before it reads; its error is that its call was refused.
    pub fn add<R>(&mut self, reader: impl FnOnce(Gate) -> R)
    where
        R: Future<Output = Result<(), Status>> + Send + 'static,
    {
        self.readers.spawn(reader(self.gate.clone()));
    }

    /// Serves the small load of another address until no node takes more for those who stand still, who have places of
    /// `limit` at the first node; then lets them read, and tells how their calls ended.
    ///
    /// # Panics
    /// When a node takes more than it may, a call of the small load fails, or a reader has neither all that it asked for nor
    /// a time to come again.
    pub async fn check(self, cluster: &Cluster, memory: &Memory, limit: &str) -> Ends {
        for round in 0..ROUNDS_MAX {
            let taken = memory.peaks();
            let took = steady(cluster, &format!("beside/{round}")).await;
            println!("beside readers that stand still the small load took {took:?}");
            if memory.peaks() <= taken + STILL_BYTES {
                break;
            }
        }
        let shown = scrape(cluster.nodes[0].ports.http_address()).expect("metrics");
        let series = format!("kv_api_in_use{{limit=\"{limit}\"}}");
        let standing = shown.get(&series).copied().unwrap_or_default();
        println!("{standing} of {} readers stand still", self.readers.len());
        assert!(standing > 0.0, "nobody stands still");
        memory.check();

        let ends = self.read().await;
        println!("readers: {ends}");
        memory.check();
        assert!(ends.done() > 0, "nobody was served: {ends}");
        ends.assert_refused_by_places();
        ends
    }

    async fn read(mut self) -> Ends {
        self.opens.send(true).expect("there is a gate");
        let mut ends = Ends::default();
        let all = async {
            while let Some(reader) = self.readers.join_next().await {
                ends.unary(reader.expect("it is told nothing else"), self.begun.elapsed());
            }
        };
        timeout(DEADLINE, all).await.expect("all come to their end in time");
        ends
    }
}

/// A unary get as far as the head of its reply; the value is read when somebody reads it.
pub async fn begin_get(channel: Channel, key: String) -> Result<Streaming<GetResponse>, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("a connection");
    let mut request = Request::new(GetRequest { key: key.into(), ..GetRequest::default() });
    request.set_timeout(DEADLINE);
    let path = PathAndQuery::from_static("/kv.v1.Kv/Get");
    let codec = ProstCodec::<GetRequest, GetResponse>::default();
    grpc.server_streaming(request, path, codec).await.map(Response::into_inner)
}
