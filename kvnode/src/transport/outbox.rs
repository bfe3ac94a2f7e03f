//! Frames that wait to be written to one peer, or to be given back as answers.
//!
//! Three bounded queues: what keeps a leader alive goes first, then appends, then the rest. Each time the stream
//! can take a batch it gets everything that is ready, up to the size of a batch: no timer, the write in progress is
//! the batching window. Appends leave a quarter of a batch to waiting requests, so that a busy log does not starve
//! read-index questions.

use std::collections::VecDeque;

use kv_proto::peer::v1::Frame;

/// How urgent a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Votes, heartbeats and transfers of leadership.
    Urgent,
    /// Entries of logs.
    Append,
    /// Read-index questions, forwarded requests, control, chunks.
    Request,
}

/// The queue of this class is full: this frame, and only this one, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The frames that wait, by class.
#[derive(Debug)]
pub struct Outbox {
    urgent: Queue,
    append: Queue,
    request: Queue,
    bound_frames: usize,
    bound_bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<(Frame, usize)>,
    bytes: usize,
}

impl Queue {
    fn pop(&mut self) -> Option<(Frame, usize)> {
        let (frame, bytes) = self.frames.pop_front()?;
        self.bytes -= bytes;
        Some((frame, bytes))
    }
}

/// Frames that go out together.
#[derive(Debug, Default)]
struct Batch {
    frames: Vec<Frame>,
    bytes: usize,
}

impl Batch {
    /// Moves frames that `wanted` accepts, until the batch would exceed `limit`; an empty batch takes any frame.
    fn fill(&mut self, queue: &mut Queue, limit: usize, wanted: &mut impl FnMut(&mut Frame) -> bool) {
        while let Some((_, bytes)) = queue.frames.front() {
            if !self.frames.is_empty() && self.bytes + bytes > limit {
                return;
            }
            let Some((mut frame, bytes)) = queue.pop() else { return };
            if wanted(&mut frame) {
                self.bytes += bytes;
                self.frames.push(frame);
            }
        }
    }
}

impl Outbox {
    /// Each class holds at most so many frames and bytes; one frame alone may be larger.
    pub fn new(bound_frames: usize, bound_bytes: usize) -> Self {
        let (urgent, append, request) = Default::default();
        Self { urgent, append, request, bound_frames, bound_bytes }
    }

    /// Puts a frame of so many bytes at the end of its queue.
    ///
    /// # Errors
    /// [`Full`] when the queue of its class is; the other frames are untouched.
    pub fn push(&mut self, class: Class, frame: Frame, bytes: usize) -> Result<(), Full> {
        let (bound_frames, bound_bytes) = (self.bound_frames, self.bound_bytes);
        let queue = self.queue(class);
        let fits = queue.frames.is_empty() || queue.bytes + bytes <= bound_bytes;
        if queue.frames.len() >= bound_frames || !fits {
            return Err(Full);
        }
        queue.bytes += bytes;
        queue.frames.push_back((frame, bytes));
        Ok(())
    }

    /// Takes what is ready, most urgent first: at most `limit` bytes, or one larger frame.
    ///
    /// `wanted` is asked for each frame before it is taken, and may mark it; what it refuses is dropped.
    pub fn take(&mut self, limit: usize, mut wanted: impl FnMut(&mut Frame) -> bool) -> Vec<Frame> {
        let mut batch = Batch::default();
        let for_appends = if self.request.frames.is_empty() { limit } else { limit / 4 * 3 };
        batch.fill(&mut self.urgent, limit, &mut wanted);
        batch.fill(&mut self.append, for_appends, &mut wanted);
        batch.fill(&mut self.request, limit, &mut wanted);
        batch.fill(&mut self.append, limit, &mut wanted);
        batch.frames
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        for class in [Class::Urgent, Class::Append, Class::Request] {
            *self.queue(class) = Queue::default();
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many frames wait.
    pub fn len(&self) -> usize {
        self.urgent.frames.len() + self.append.frames.len() + self.request.frames.len()
    }

    fn queue(&mut self, class: Class) -> &mut Queue {
        match class {
            Class::Urgent => &mut self.urgent,
            Class::Append => &mut self.append,
            Class::Request => &mut self.request,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_proto::{
        disk::v1::{LogEntry, log_entry::Payload},
        peer::v1::{AppendRequest, frame::Body},
    };
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn push(outbox: &mut Outbox, class: Class, frame: Frame) -> Result<(), Full> {
        let bytes = frame.encoded_len();
        outbox.push(class, frame, bytes)
    }

    fn frame(sequence: u64, bytes: usize) -> Frame {
        let entry = LogEntry { log_id: None, payload: Some(Payload::Proposal(Bytes::from(vec![7; bytes]))) };
        let body = Body::AppendRequest(AppendRequest { entries: vec![entry], ..AppendRequest::default() });
        Frame { sequence, body: Some(body), ..Frame::default() }
    }

    fn class() -> impl Strategy<Value = Class> {
        prop_oneof![Just(Class::Urgent), Just(Class::Append), Just(Class::Request)]
    }

    proptest! {
        /// Nothing accepted is lost or repeated, each class keeps its order, and no batch exceeds its size.
        #[test]
        fn batches_are_bounded_ordered_and_complete(
            pushes in prop::collection::vec((class(), 0_usize..4000), 0..60),
            limit in 1_usize..6000,
        ) {
            let mut outbox = Outbox::new(usize::MAX, usize::MAX);
            let mut expected: Vec<(Class, Vec<u64>)> =
                [Class::Urgent, Class::Append, Class::Request].into_iter().map(|class| (class, vec![])).collect();
            let mut classes = vec![];
            for (number, (class, bytes)) in pushes.iter().enumerate() {
                push(&mut outbox, *class, frame(number as u64, *bytes)).unwrap();
                classes.push(*class);
                expected.iter_mut().find(|(of, _)| of == class).unwrap().1.push(number as u64);
            }
            let mut seen: Vec<(Class, Vec<u64>)> = expected.iter().map(|(class, _)| (*class, vec![])).collect();
            while !outbox.is_empty() {
                let batch = outbox.take(limit, |_| true);
                prop_assert!(!batch.is_empty());
                let bytes: usize = batch.iter().map(Message::encoded_len).sum();
                prop_assert!(bytes <= limit || batch.len() == 1, "{bytes} B in {} frames", batch.len());
                for frame in batch {
                    let class = classes[usize::try_from(frame.sequence).unwrap()];
                    seen.iter_mut().find(|(of, _)| *of == class).unwrap().1.push(frame.sequence);
                }
            }
            prop_assert_eq!(seen, expected);
        }

        /// The urgent ones of a batch come first, and an append never keeps one waiting.
        #[test]
        fn urgent_frames_lead(appends in 0_usize..40, urgent in 1_usize..5) {
            let mut outbox = Outbox::new(usize::MAX, usize::MAX);
            for _ in 0..appends {
                push(&mut outbox, Class::Append, frame(1, 1000)).unwrap();
            }
            for _ in 0..urgent {
                push(&mut outbox, Class::Urgent, frame(0, 10)).unwrap();
            }
            let batch = outbox.take(4000, |_| true);
            prop_assert!(batch.iter().take(urgent).all(|frame| frame.sequence == 0));
        }
    }

    #[test]
    fn a_full_class_refuses_without_touching_the_others() {
        let mut outbox = Outbox::new(2, 5000);
        push(&mut outbox, Class::Append, frame(1, 100_000)).unwrap();
        assert_eq!(push(&mut outbox, Class::Append, frame(2, 10)), Err(Full));
        push(&mut outbox, Class::Urgent, frame(3, 10)).unwrap();
        push(&mut outbox, Class::Urgent, frame(4, 10)).unwrap();
        assert_eq!(push(&mut outbox, Class::Urgent, frame(5, 10)), Err(Full));
        assert_eq!(outbox.len(), 3);
    }

    #[test]
    fn appends_leave_room_for_requests() {
        let mut outbox = Outbox::new(100, usize::MAX);
        for _ in 0..20 {
            push(&mut outbox, Class::Append, frame(1, 1000)).unwrap();
        }
        push(&mut outbox, Class::Request, frame(2, 10)).unwrap();
        let batch = outbox.take(8000, |_| true);
        assert!(batch.iter().any(|frame| frame.sequence == 2));
        assert!(batch.iter().filter(|frame| frame.sequence == 1).count() >= 5);
    }

    #[test]
    fn what_is_no_longer_wanted_is_dropped() {
        let mut outbox = Outbox::new(10, 10_000);
        for number in 0..4 {
            push(&mut outbox, Class::Request, frame(number, 10)).unwrap();
        }
        let batch = outbox.take(10_000, |frame| frame.sequence % 2 == 0);
        assert_eq!(batch.iter().map(|frame| frame.sequence).collect::<Vec<_>>(), [0, 2]);
        assert!(outbox.is_empty());
    }
}
