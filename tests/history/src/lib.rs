//! Histories of concurrent clients, and the checkers that say whether a store could have told them.
//!
//! A [`History`] is recorded while clients run: each operation is invoked, and later it returned, surely failed,
//! or its outcome stays unknown. [`check`] then asks of every key by itself (linearizability is a property of
//! each key alone): is there one order of all operations, in agreement with real time, in which a single register
//! gives the same answers? Two deciders share the work: [`zones`](self#zones) for keys that were only put and
//! read, in O(n log n); a search with memory for keys with deletes and compare-and-swap, bounded by a budget.
//! Beside them stand simpler oracles, whose findings are easier to read: a value that nobody wrote, a refused
//! write that became visible, a write applied twice, a mod revision that went back; and [`check_final`] asks
//! whether acknowledged writes are there at the end.
//!
//! Pure: time comes in as nanoseconds, nothing is read or written, the same history gets the same verdict. So it
//! works on real processes and inside a deterministic simulation alike.
//!
//! What it does not do: transactions over several keys, scans, stale reads (record only linearizable reads).
//!
//! # Zones
//!
//! With unique values all operations on one value form a cluster; a cluster's zone reaches from the first end to
//! the last begin of its operations (Gibbons and Korach, "Testing shared memories", 1997).
//!
//! # Invariants of a recorded history
//!
//! * each written value is unique within its key;
//! * an operation returns after it was invoked, by the same clock;
//! * what is recorded as failed had no effect: when in doubt, record it as unknown.

mod check;
mod history;
mod lost;
mod operation;
mod revisions;
mod search;
mod values;
mod violation;
mod zones;

pub use check::{Limits, Report, check};
pub use history::{History, ParseError};
pub use lost::{FinalState, check_final};
pub use operation::{
    Call, ClientId, Nanos, Observed, Operation, OperationId, Outcome, Reply, Revision, ValueId,
};
pub use violation::{Violation, ViolationKind};
