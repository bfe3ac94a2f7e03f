//! The Raft logs of a node: durable, shared by all its groups, in memory where they are read.
//!
//! ```text
//! openraft ─► store ─► replica ─► queue ─► committer ─► device (segments | simulated)
//!              one per replica     └──── one per node ────┘
//! ```
//!
//! A change is visible when it is made and durable when the committer says so. [`hub::LogHub`] is the entrance;
//! [`store::LogStore`] is what openraft gets, [`view::LogView`] what everybody else asks. [`recovery`] opens the
//! device and tells a torn end from damage. [`codec`] holds the encodings, which the transport and the state machine
//! use too.
//!
//! Not here: when to purge (the state machine decides), and what a proposal means.

mod batches;
pub mod budget;
pub mod codec;
pub mod committer;
pub mod device;
pub mod error;
pub mod extent;
pub mod hub;
pub mod keys;
mod piece;
pub mod progress;
pub mod queue;
mod reader;
pub mod recovery;
pub mod replica;
pub mod segments;
pub mod simulated;
pub mod store;
pub mod synced;
pub mod tail;
pub mod view;

pub use device::{DeviceError, LogDevice};
pub use error::LogError;
pub use hub::{Driver, LogHub};
pub use replica::LogStatus;
pub use simulated::{PlantedBug, SimulatedDisk};
pub use store::LogStore;
pub use view::LogView;

use std::sync::{Mutex, MutexGuard};

/// Locks what a panic would leave half changed: whoever comes after one must not go on with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked while it held this lock")
}
