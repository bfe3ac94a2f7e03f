//! The API of clients and operators: gRPC in front of the router.
//!
//! A call comes in by [`port`], passes [`connection`] and [`admission`] (limits, authorisation), is decoded and checked
//! ([`validate`]), asks the [`Store`](crate::router::store::Store) and is answered with a [`header`]. What goes wrong becomes a
//! status in [`error`] and nowhere else. Services decide nothing about the data: they decode, limit, page and stream.
//!
//! Streams are pulled by their replies: a client that does not read makes its stream stand still. Whatever a client
//! can make the node hold has a bound in [`limits`], and is counted in [`quota`].

pub mod admin;
pub mod admission;
pub mod batch;
pub mod batch_stream;
pub mod body;
pub mod chunk_reader;
pub mod chunker;
pub mod cluster_view;
pub mod connection;
pub mod context;
pub mod deadline;
pub mod delete_range;
pub mod download;
pub mod error;
pub mod header;
pub mod health;
pub mod kv;
pub mod limits;
pub mod measure;
pub mod merge;
pub mod operation;
pub mod page_token;
pub mod point;
pub mod port;
pub mod quota;
pub mod range;
pub mod scan;
pub mod server;
pub mod services;
pub mod session;
pub mod text;
pub mod txn;
pub mod unfinished;
pub mod upload;
pub mod validate;
