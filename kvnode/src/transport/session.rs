//! The numbers on frames: which attempt to connect, which request, which stream.
//!
//! Each link of a node to another counts for itself. A session is one attempt to connect: an answer that names
//! another one is dropped. Sequences and streams go on counting across sessions, so that no number ever means two
//! things.

use std::collections::BTreeSet;

use kv_proto::peer::v1::Frame;

/// Names a request on one link. Never used twice; 0 is a frame that wants no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Of a frame that wants no answer.
    pub const NONE: Self = Self(0);
}

/// Names a stream of ordered requests on one link. 0: the request stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamNumber(pub u64);

impl StreamNumber {
    /// Of a request that stands alone.
    pub const ALONE: Self = Self(0);
}

/// The counters of one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    number: u64,
    last_sequence: u64,
    last_stream: u64,
}

impl Session {
    /// Counts on from `first`: any number; a random one keeps the sessions of two lives of a node apart.
    pub fn new(first: u64) -> Self {
        Self { number: first, last_sequence: 0, last_stream: 0 }
    }

    /// Begins the session of the next attempt to connect.
    pub fn renew(&mut self) {
        self.number = self.number.wrapping_add(1);
    }

    /// A sequence for a new request.
    pub fn sequence(&mut self) -> Sequence {
        self.last_sequence += 1;
        Sequence(self.last_sequence)
    }

    /// A number for a new stream.
    pub fn stream(&mut self) -> StreamNumber {
        self.last_stream += 1;
        StreamNumber(self.last_stream)
    }

    /// Marks a frame that is about to be written as one of this session.
    pub fn stamp(&self, frame: &mut Frame) {
        frame.session = self.number;
    }

    /// Whether an answer belongs to this session.
    pub fn owns(&self, answer: &Frame) -> bool {
        answer.session == self.number
    }
}

/// Requests that one connection has brought: each is taken once. Frames of a connection may overtake one another a
/// little, by their class.
#[derive(Debug, Default)]
pub struct Seen {
    session: u64,
    /// Everything below was taken, or is too old to be told from what was.
    from: u64,
    above: BTreeSet<u64>,
}

/// Sequences that are remembered: what a peer may have queued in one class.
const REMEMBERED: usize = 8_192;

impl Seen {
    /// Whether this request comes for the first time. A frame that wants no answer is always new.
    pub fn is_new(&mut self, session: u64, sequence: Sequence) -> bool {
        if session != self.session {
            *self = Self { session, ..Self::default() };
        }
        if sequence == Sequence::NONE {
            return true;
        }
        if sequence.0 < self.from || !self.above.insert(sequence.0) {
            return false;
        }
        if self.above.len() > REMEMBERED {
            self.from = self.above.pop_first().map_or(self.from, |oldest| oldest + 1);
        }
        true
    }
}

/// The answer to `request`: the same numbers, the replicas the other way round.
pub fn answer_to(request: &Frame) -> Frame {
    Frame {
        group_id: request.group_id,
        from_replica: request.to_replica,
        to_replica: request.from_replica,
        session: request.session,
        sequence: request.sequence,
        stream: request.stream,
        body: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_an_earlier_session_is_not_owned() {
        let mut session = Session::new(u64::MAX);
        let mut request = Frame { from_replica: 1, to_replica: 2, sequence: 7, ..Frame::default() };
        session.stamp(&mut request);
        let answer = answer_to(&request);
        assert!(session.owns(&answer));
        assert_eq!((answer.from_replica, answer.to_replica, answer.sequence), (2, 1, 7));
        session.renew();
        assert!(!session.owns(&answer));
    }

    #[test]
    fn a_request_is_taken_once_however_often_it_comes() {
        let mut seen = Seen::default();
        assert!(seen.is_new(7, Sequence(3)) && seen.is_new(7, Sequence(1)), "one overtook the other");
        assert!(!seen.is_new(7, Sequence(3)) && !seen.is_new(7, Sequence(1)));
        assert!(seen.is_new(7, Sequence::NONE) && seen.is_new(7, Sequence::NONE));
        assert!(seen.is_new(8, Sequence(3)), "another session counts for itself");
        for sequence in 4..100_000 {
            assert!(seen.is_new(8, Sequence(sequence)));
        }
        assert!(seen.above.len() <= REMEMBERED);
        assert!(!seen.is_new(8, Sequence(50)), "too old to tell");
    }

    #[test]
    fn sequences_and_streams_are_never_reused() {
        let mut session = Session::new(0);
        let (first, stream) = (session.sequence(), session.stream());
        session.renew();
        assert!(session.sequence() > first && first > Sequence::NONE);
        assert!(session.stream() > stream && stream > StreamNumber::ALONE);
    }
}
