//! Nodes that talk to each other: over the loopback with simulated time and bad weather, and over real gRPC.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

#[path = "transport_nodes/calls.rs"]
mod calls;
#[path = "transport_nodes/cluster.rs"]
mod cluster;
#[path = "transport_nodes/disks.rs"]
mod disks;
#[path = "transport_nodes/group.rs"]
mod group;
#[path = "transport_nodes/grpc.rs"]
mod grpc;
#[path = "transport_nodes/memory.rs"]
mod memory;
#[path = "transport_nodes/streams.rs"]
mod streams;
#[path = "transport_nodes/weather.rs"]
mod weather;
