//! What is counted of streams: collected in plain numbers, and added to the metrics once for many operations.

use std::{
    array,
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, histogram::Histogram};
use tokio::time::Instant;
use tonic::Code;

use super::ledger::{Call, Kind};
use crate::{
    api::measure::CODES,
    metrics::{BatchKindLabels, BatchLabels, BatchMetrics},
};

const KINDS: [(Kind, &str); 5] = [
    (Kind::Put, "put"),
    (Kind::Get, "get"),
    (Kind::Delete, "delete"),
    (Kind::Txn, "txn"),
    (Kind::Unknown, "unknown"),
];

/// Numbers since they were last [shown](Counters::add).
#[derive(Debug, Default)]
pub struct Tally {
    answered: [[u32; CODES.len()]; KINDS.len()],
    any_answered: bool,
    beyond_window: u32,
    messages: Vec<usize>,
    /// Whether it was a read, and how long it took.
    calls: Vec<(bool, Duration)>,
}

impl Tally {
    /// An operation has its answer.
    pub fn answered(&mut self, kind: Kind, code: Code) {
        let code = usize::try_from(i32::from(code)).unwrap_or_default();
        if let Some(count) = self.answered[kind as usize].get_mut(code) {
            *count += 1;
            self.any_answered = true;
        }
    }

    /// An operation did not fit into the window.
    pub fn beyond_window(&mut self) {
        self.beyond_window += 1;
    }

    /// A message of so many operations came.
    pub fn message(&mut self, operations: usize) {
        self.messages.push(operations);
    }

    /// A call has ended.
    pub fn ended(&mut self, call: Option<&Call>, now: Instant) {
        if let Some(call) = call {
            self.calls.push((call.reading.is_some(), now.saturating_duration_since(call.came)));
        }
    }
}

/// Handles of the metrics, shared by all streams.
#[derive(Debug)]
pub struct Counters {
    metrics: BatchMetrics,
    answered: [[OnceLock<Counter>; CODES.len()]; KINDS.len()],
    read_seconds: Histogram,
    write_seconds: Histogram,
}

impl Counters {
    /// Of these metrics.
    pub fn new(metrics: BatchMetrics) -> Self {
        let seconds = |kind| metrics.seconds.get_or_create_owned(&BatchKindLabels { kind });
        Self {
            answered: array::from_fn(|_| array::from_fn(|_| OnceLock::new())),
            read_seconds: seconds("read"),
            write_seconds: seconds("write"),
            metrics,
        }
    }

    /// Adds `tally`, and begins it anew.
    pub fn add(&self, tally: &mut Tally) {
        for operations in tally.messages.drain(..) {
            self.metrics.message_operations.observe(f64::from(u32::try_from(operations).unwrap_or(u32::MAX)));
        }
        for (is_read, took) in tally.calls.drain(..) {
            let seconds = if is_read { &self.read_seconds } else { &self.write_seconds };
            seconds.observe(took.as_secs_f64());
        }
        let beyond_window = std::mem::take(&mut tally.beyond_window);
        if beyond_window > 0 {
            self.metrics.window_refused.inc_by(beyond_window.into());
        }
        if std::mem::take(&mut tally.any_answered) {
            for (kind, counts) in tally.answered.iter_mut().enumerate() {
                for (code, count) in counts.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
                    self.counter(kind, code).inc_by(std::mem::take(count).into());
                }
            }
        }
    }

    fn counter(&self, kind: usize, code: usize) -> &Counter {
        let labels = || BatchLabels { kind: KINDS[kind].1, status: CODES[code] };
        self.answered[kind][code].get_or_init(|| self.metrics.operations.get_or_create_owned(&labels()))
    }
}

/// A stream, as long as it is open.
#[derive(Debug)]
pub struct OpenStream(Arc<Counters>);

impl OpenStream {
    /// Counts one more.
    pub fn new(counters: Arc<Counters>) -> Self {
        counters.metrics.streams.inc();
        Self(counters)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.metrics.streams.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_under_its_name_and_once() {
        assert!(KINDS.iter().enumerate().all(|(number, (kind, _))| number == *kind as usize));
        let metrics = BatchMetrics::default();
        let counters = Counters::new(metrics.clone());
        let mut tally = Tally::default();
        tally.answered(Kind::Delete, Code::Unavailable);
        tally.answered(Kind::Delete, Code::Unavailable);
        tally.beyond_window();
        counters.add(&mut tally);
        counters.add(&mut tally);
        let labels = BatchLabels { kind: "delete", status: "UNAVAILABLE" };
        assert_eq!(metrics.operations.get_or_create(&labels).get(), 2);
        assert_eq!(metrics.window_refused.get(), 1);
        let stream = OpenStream::new(Arc::new(counters));
        assert_eq!(metrics.streams.get(), 1);
        drop(stream);
        assert_eq!(metrics.streams.get(), 0);
    }
}
