//! Who belongs to the cluster and where its data lives: the meta group's decisions, and the controller that carries
//! them out.
//!
//! The life of a wish: [`planner`] looks at the meta record and at what the groups' leaders say, and names the next
//! step of each shard; [`controller`], running at the node that leads the meta group, takes these steps: a control
//! request to a node, or a command to the meta group; [`machine`] decides what a command does to the record; the
//! record reaches every node's [`registry`], which shows it as a map ([`view`]). What was done, and why ([`envelope`]), is
//! kept and told by the [`journal`]. [`startup`] decides what a node that starts does before any of this exists.
//!
//! All but the controller, the registry and the clock of the envelope are plain functions of their arguments.

pub mod controller;
pub mod envelope;
pub mod journal;
pub mod machine;
pub mod planner;
pub mod registry;
pub mod startup;
pub mod view;

#[cfg(test)]
mod world;
