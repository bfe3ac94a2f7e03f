//! Recovery from the permanent loss of a quorum: how a cluster goes on from what survived, and how what was given up stays
//! out when it comes back.
//!
//! A person decides; `kvctl recover` shows the evidence and carries the decision out; see `docs/recovery.md`. A node that was
//! started with `--recovery` opens its data folder, starts no replica, speaks to no other node, and answers two questions
//! ([`service`], [`site`]): what is on its disk ([`on_disk`], [`inspect`]), and what is written on it ([`order`], [`rewrite`]).
//!
//! What is written is what a leader would have written that had nobody else in its group: a vote for itself in a new term, a
//! membership of itself alone, and the commands that it proposes. All of it is appended to the log, and nothing in the state
//! is touched: after the start Raft commits it, with everything that was in the log before. Log, vote and the new group's id
//! change with one durable write for all replicas of a disk, so that there is no half of a recovery.
//!
//! The old majority may come back. Whatever it has is of a group whose id is less than the one that the map names now, and such
//! a replica never starts and is stopped where it runs ([`fence`]). By what a node hears of the map: [`news`] asks before
//! replicas start, the map feed as long as the node runs, [`watch`] acts on it. What a node cannot hear of cannot fence it.

pub mod fence;
pub mod inspect;
pub mod news;
pub mod on_disk;
pub mod order;
pub mod rewrite;
pub mod service;
pub mod site;
pub mod watch;
