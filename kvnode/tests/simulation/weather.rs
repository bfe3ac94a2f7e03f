//! The network's weather, the disks' speed, and the moments at which a crash hurts most.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use kv_proto::peer::v1::{Frame, frame::Body};
use kv_topology::NodeId;
use kvnode::transport::{
    Lane,
    loopback::{Way, Weather},
};
use tokio::{sync::mpsc, time::Instant};

use crate::dice::Dice;

/// What the nemesis sets.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Frames lost, of a thousand.
    pub loss: u64,
    /// Frames that come twice, of a thousand.
    pub repeated: u64,
    /// Longest usual flight, ms.
    pub flight_ms: u64,
    /// Frames that take up to a second, of a thousand.
    pub late: u64,
    /// Longest sync, ms.
    pub sync_ms: u64,
    /// A node whose disk takes ten times as long.
    pub slow_disk: Option<NodeId>,
    /// Whether crashes are aimed.
    pub aim: bool,
    /// A leader that is cut off so that another is elected: the disk of whoever is asked for a vote is slow, and each
    /// vote granted is a moment to aim at.
    pub deserted: Option<NodeId>,
}

impl Conditions {
    pub const CALM: Self = Self {
        loss: 0,
        repeated: 0,
        flight_ms: 3,
        late: 0,
        sync_ms: 2,
        slow_disk: None,
        aim: false,
        deserted: None,
    };
}

/// A moment to aim at: what a node has just said, and may not have on its disk yet.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    Voted(NodeId),
    Acknowledged(NodeId),
    /// While a leader is deserted, somebody was promised a vote and hears of it after so long.
    Granted {
        voter: NodeId,
        candidate: NodeId,
        heard_after: Duration,
    },
}

/// Everything that happened, as one number: equal for two runs of a seed.
pub struct Trace {
    began: Instant,
    hash: u64,
    pub events: u64,
    aloud: bool,
}

/// Of FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x100_0000_01b3;

impl Trace {
    pub fn new(aloud: bool) -> Self {
        Self { began: Instant::now(), hash: FNV_OFFSET, events: 0, aloud }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn event(&mut self, what: std::fmt::Arguments<'_>) {
        self.events += 1;
        let at = self.began.elapsed();
        if self.aloud {
            println!("{:10.3} {what}", at.as_secs_f64());
        }
        // Into a hash: nothing that could fail.
        write!(self, "{} {what}", at.as_millis()).ok();
    }
}

impl std::fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        Ok(())
    }
}

/// The weather of a simulated network.
pub struct Sky {
    pub dice: Dice,
    pub conditions: Arc<Mutex<Conditions>>,
    pub trace: Arc<Mutex<Trace>>,
    pub moments: mpsc::UnboundedSender<Moment>,
}

/// Moments reported, of a thousand.
const VOTES_AIMED_AT: u64 = 300;
const ACKNOWLEDGEMENTS_AIMED_AT: u64 = 4;

impl Sky {
    fn aim(&self, from: NodeId, body: &Body) {
        let moment = match body {
            Body::VoteResponse(_) if self.dice.per_mille(VOTES_AIMED_AT) => Moment::Voted(from),
            Body::AppendResponse(_) if self.dice.per_mille(ACKNOWLEDGEMENTS_AIMED_AT) => {
                Moment::Acknowledged(from)
            }
            _ => return,
        };
        // The nemesis may have gone home.
        self.moments.send(moment).ok();
    }

    /// While a leader is deserted: a vote must be heard of before it is on disk, if the code lets it.
    fn aim_at_vote(&self, way: Way, body: &Body, arrivals: &[Duration]) {
        match (body, arrivals.iter().min()) {
            (Body::VoteRequest(_), _) => self.conditions.lock().unwrap().slow_disk = Some(way.to),
            (Body::VoteResponse(response), Some(heard_after)) if response.granted => {
                let (voter, candidate, heard_after) = (way.from, way.to, *heard_after);
                self.moments.send(Moment::Granted { voter, candidate, heard_after }).ok();
            }
            _ => {}
        }
    }
}

impl Weather for Sky {
    fn arrivals(&self, way: Way, lane: Lane, frame: Option<&Frame>) -> Vec<Duration> {
        let now = *self.conditions.lock().unwrap();
        let body = frame.and_then(|frame| frame.body.as_ref()).filter(|_| now.aim);
        if let Some(body) = body {
            self.aim(way.from, body);
        }
        let flight = || {
            let late = if self.dice.per_mille(now.late) { self.dice.below(1_000) } else { 0 };
            Duration::from_millis(1 + self.dice.below(now.flight_ms) + late)
        };
        let twice = self.dice.per_mille(now.repeated) && frame.is_some();
        let copies = if self.dice.per_mille(now.loss) { 0 } else { 1 + usize::from(twice) };
        let arrivals: Vec<Duration> = std::iter::repeat_with(flight).take(copies).collect();
        if let Some(body) = body.filter(|_| now.deserted.is_some()) {
            self.aim_at_vote(way, body, &arrivals);
        }
        if let Some(frame) = frame {
            let (from, to, number) = (way.from, way.to, frame.sequence);
            let mut trace = self.trace.lock().unwrap();
            trace.event(format_args!("frame {number} {from}>{to} {} {arrivals:?}", lane.name()));
        }
        arrivals
    }
}
