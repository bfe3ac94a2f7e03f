//! The API on loopback: real gRPC, a store that is a plain map.

mod fake;
mod server;
mod support;
mod transfers;
mod values;
