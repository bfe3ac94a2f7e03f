//! The API on loopback: real gRPC, a store that is a plain map.

mod administration;
mod batch;
mod batch_cost;
mod fake;
mod hostile;
mod node;
mod raw;
mod replies;
mod server;
mod sessions;
mod support;
mod transfers;
mod values;
