//! What a node runs on: the tasks that it owns.

pub mod spawner;

pub use spawner::{Spawner, Tasks};
