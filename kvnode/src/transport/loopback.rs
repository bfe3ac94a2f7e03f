//! Connections between transports in one process, and everything that can go wrong on the way.
//!
//! For tests and simulation: batches pass through a [`Weather`], which loses, delays and repeats their frames, and through
//! [`Loopback::cut`], which swallows everything in one direction while both sides believe in the connection, until their
//! own time-outs tell them. [`Loopback::sever`] breaks connections at once. Time is tokio's; the weather brings its own
//! randomness; the tasks belong to the spawner that was handed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture};
use kv_proto::peer::v1::{Frame, FrameBatch};
use kv_topology::NodeId;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    conduit::{Accept, Broken, Conduit, Connection, Lane, OUTBOUND_BATCHES},
    identity::Refused,
};
use crate::runtime::{Spawner, Tasks};

/// One way between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
}

/// Decides what happens to each frame. Keep-alives (batches without frames) are asked about with `None`.
pub trait Weather: Send + Sync + 'static {
    /// When copies of this frame arrive, counted from now: none, one or more. An earlier arrival overtakes.
    fn arrivals(&self, way: Way, lane: Lane, frame: Option<&Frame>) -> Vec<Duration>;
}

/// Everything arrives, at once and in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calm;

impl Weather for Calm {
    fn arrivals(&self, _: Way, _: Lane, _: Option<&Frame>) -> Vec<Duration> {
        vec![Duration::ZERO]
    }
}

/// The network between the nodes of one process. A handle, cheap to clone.
#[derive(Clone)]
pub struct Loopback(Arc<Inner>);

struct Inner {
    spawner: Spawner,
    weather: Box<dyn Weather>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, Arc<dyn Accept>>,
    cuts: BTreeSet<Way>,
    next: u64,
    open: BTreeMap<u64, (Way, Tasks)>,
}

impl Loopback {
    /// A network under this weather.
    pub fn new(spawner: Spawner, weather: impl Weather) -> Self {
        Self(Arc::new(Inner { spawner, weather: Box::new(weather), state: Mutex::default() }))
    }

    /// What a node dials with.
    pub fn conduit(&self, from: NodeId) -> LoopbackConduit {
        LoopbackConduit { network: self.clone(), from }
    }

    /// Puts a node on the network.
    pub fn attach(&self, node: NodeId, accept: Arc<dyn Accept>) {
        self.state().nodes.insert(node, accept);
    }

    /// Takes a node off the network: its connections break, and dialling it fails.
    pub fn detach(&self, node: NodeId) {
        self.state().nodes.remove(&node);
        self.sever(|way| way.from == node || way.to == node);
    }

    /// Swallows everything that is sent this way from now on.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.state().cuts.insert(Way { from, to });
    }

    /// Cuts a node off in both directions.
    pub fn isolate(&self, node: NodeId) {
        let others: Vec<NodeId> = self.state().nodes.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.state().cuts.clear();
    }

    /// Breaks the connections whose dialling way is `chosen`, at once.
    pub fn sever(&self, chosen: impl Fn(Way) -> bool) {
        let broken: Vec<(Way, Tasks)> = {
            let mut state = self.state();
            let numbers: Vec<u64> =
                state.open.iter().filter(|(_, (way, _))| chosen(*way)).map(|(number, _)| *number).collect();
            numbers.iter().filter_map(|number| state.open.remove(number)).collect()
        };
        drop(broken);
    }

    fn is_cut(&self, way: Way) -> bool {
        self.state().cuts.contains(&way)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dials from one node.
pub struct LoopbackConduit {
    network: Loopback,
    from: NodeId,
}

impl Conduit for LoopbackConduit {
    fn connect(&self, to: NodeId, lane: Lane) -> BoxFuture<'_, Result<Connection, Broken>> {
        Box::pin(async move { self.network.connect(Way { from: self.from, to }, lane) })
    }
}

type Item = Result<FrameBatch, Refused>;
type Arrived = Result<FrameBatch, Broken>;

/// Batches that one direction of a connection holds, once arrived, before the receiver takes them.
const ARRIVED_BATCHES: usize = 1024;

impl Loopback {
    fn connect(&self, way: Way, lane: Lane) -> Result<Connection, Broken> {
        let back = Way { from: way.to, to: way.from };
        let accept = self.state().nodes.get(&way.to).cloned();
        let accept = accept.ok_or_else(|| Broken::Connect(format!("{} is not on the network", way.to)))?;
        let tasks = self.0.spawner.scope("loopback");
        let (dialled, accepted) = (self.pipe(&tasks, way, lane), self.pipe(&tasks, back, lane));
        {
            let mut state = self.state();
            let number = state.next;
            state.next += 1;
            state.open.retain(|_, (_, tasks)| !tasks.spawner().running().is_empty());
            state.open.insert(number, (way, tasks));
        }
        let end = |outbound, arrived| Connection { outbound, inbound: ReceiverStream::new(arrived).boxed() };
        accept.accept(lane, end(accepted.0, dialled.1));
        Ok(end(dialled.0, accepted.1))
    }

    /// One direction: what is put in comes out when the weather lets it.
    fn pipe(&self, tasks: &Tasks, way: Way, lane: Lane) -> (mpsc::Sender<Item>, mpsc::Receiver<Arrived>) {
        let (sender, sent) = mpsc::channel(OUTBOUND_BATCHES);
        let (arrive, arrived) = mpsc::channel(ARRIVED_BATCHES);
        let flight = Flight { network: self.clone(), way, lane, in_air: BTreeMap::new(), next: 0 };
        tasks.spawner().spawn("loopback", flight.run(sent, arrive));
        (sender, arrived)
    }
}

/// What is on its way in one direction.
struct Flight {
    network: Loopback,
    way: Way,
    lane: Lane,
    /// By arrival; the number keeps the order of what arrives together.
    in_air: BTreeMap<(Instant, u64), Arrived>,
    next: u64,
}

impl Flight {
    async fn run(mut self, mut sent: mpsc::Receiver<Item>, arrive: mpsc::Sender<Arrived>) {
        let mut is_open = true;
        loop {
            self.land(&arrive);
            if !is_open && self.in_air.is_empty() || arrive.is_closed() {
                return;
            }
            let next = self.in_air.first_key_value().map(|((at, _), _)| *at);
            let landing = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = landing => {}
                item = sent.recv(), if is_open => match item {
                    Some(Ok(batch)) => self.take_off(batch),
                    Some(Err(refused)) => self.insert(Duration::ZERO, Err(Broken::Refused(refused))),
                    None => is_open = false,
                },
                () = arrive.closed() => return,
            }
        }
    }

    fn take_off(&mut self, mut batch: FrameBatch) {
        let frames = std::mem::take(&mut batch.frames);
        let weather = |frame: Option<&Frame>| self.network.0.weather.arrivals(self.way, self.lane, frame);
        if frames.is_empty() {
            for after in weather(None) {
                self.insert(after, Ok(batch.clone()));
            }
            return;
        }
        // Frames that arrive together stay one batch.
        let mut groups: BTreeMap<Duration, Vec<Frame>> = BTreeMap::new();
        for frame in frames {
            for after in weather(Some(&frame)) {
                groups.entry(after).or_default().push(frame.clone());
            }
        }
        for (after, frames) in groups {
            self.insert(after, Ok(FrameBatch { frames, ..batch.clone() }));
        }
    }

    fn insert(&mut self, after: Duration, arrived: Arrived) {
        self.next += 1;
        self.in_air.insert((Instant::now() + after, self.next), arrived);
    }

    /// Delivers what has arrived, unless the way is cut.
    fn land(&mut self, arrive: &mpsc::Sender<Arrived>) {
        let now = Instant::now();
        while let Some(entry) = self.in_air.first_entry().filter(|entry| entry.key().0 <= now) {
            let arrived = entry.remove();
            if !self.network.is_cut(self.way) {
                // A receiver that is so far behind loses what comes: its peer's time-outs notice.
                let _ = arrive.try_send(arrived);
            }
        }
    }
}
