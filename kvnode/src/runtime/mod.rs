//! What a node runs on: the tasks that it owns, the descriptors that it may open, what its process takes.

pub mod grid;
pub mod handover;
pub mod lasting;
pub mod open_files;
pub mod process;
pub mod spawner;

pub use grid::GridRuntime;
pub use handover::Handover;
pub use spawner::{OnPanic, Spawner, Tasks};
