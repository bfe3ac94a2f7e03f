//! What a node runs on: the tasks that it owns, and the descriptors that it may open.

pub mod open_files;
pub mod spawner;

pub use spawner::{OnPanic, Spawner, Tasks};
