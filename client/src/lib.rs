//! Rust client of KvCluster: a strongly consistent, sharded key-value store.
//!
//! ```no_run
//! use kv_client::{Client, KeyRange, Precondition};
//! use futures::TryStreamExt;
//!
//! # async fn example() -> Result<(), kv_client::Error> {
//! let client = Client::connect("127.0.0.1:50051,127.0.0.1:50151")?;
//! client.put("greeting", "hello").await?;
//! let reply = client.get("greeting").await?;
//! assert_eq!(reply.kv.and_then(|kv| kv.inline().cloned()).as_deref(), Some(&b"hello"[..]));
//!
//! // Preconditions that do not hold are no errors: the reply tells.
//! let reply = client.put_with("greeting", "hi", Precondition::Absent.into()).await?;
//! assert!(!reply.applied);
//!
//! let keys: Vec<_> = client.scan(KeyRange::prefix("gre")).into_stream().try_collect().await?;
//! assert_eq!(keys.len(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # The life of an operation
//!
//! ```text
//! Client ─► Call ─► Knowledge (which node?) ─► Pool (connection) ─► stream or call ─► node
//!            ▲                                                                         │
//!            └── pause ◄── decide(kind, cause) ◄── Failure ◄───────────────────────────┘
//! ```
//!
//! Every operation has a deadline, 10 s unless told otherwise; streams of pages and bytes have it between two messages.
//! Within it, a failed attempt is repeated when that is safe ([`retry::decide`] is the whole table): reads always, writes
//! in sessions always, and so is what administrators wish of the cluster, but for permits ([`Client::request_permit`]).
//!
//! **Sessions.** Puts, deletes, transactions that write and bulk writes are in a session of their shard, which is opened when
//! it is first needed. Each has a sequence that goes along with each attempt, so that the shard applies it once and answers
//! further attempts with the outcome of the first one. Only when that outcome is lost with its session a write ends as
//! [`Error::OutcomeUnknown`]; and when the deadline comes first. [`ClientBuilder::sessions`] switches sessions off: then a write
//! is repeated only when it surely did not happen, and never after its reply was lost. A session that is not used for 10 to 20 s
//! is closed, and all of them when the last clone of a client is dropped; a program that ends calls [`Client::close`] before.
//!
//! **Streams.** Puts, gets, deletes and transactions travel on one stream of each connection. What queues up while the
//! connection takes a message forms the next one, so a thousand tasks that share a client send few messages, and one task
//! alone waits for nobody. The node's window bounds what is under way, and half of it what is under way for one shard. What
//! exceeds it waits here until its deadline, in the order in which it came; beyond 16,384 operations or 64 MiB for a shard,
//! in the tasks of its callers. Operations that are under way together happen in any order.
//! [`ClientBuilder::streams`] makes each a call of its own; nodes without streams get calls anyway.
//!
//! **Connections.** One to each node for all that, and one for scans, downloads, uploads and deletions of ranges, when there
//! are any: they go as fast as their caller takes or gives their bytes, and hold back nothing else. One that is not read on
//! keeps up to 2 MiB here.
//!
//! Requests go through one of the given nodes, which forwards them, or with [`Routing::Direct`] to the leader of the
//! key's shard by the shard map, which is refreshed when an answer speaks of a newer epoch.
//!
//! Nothing here runs in the background except the connections themselves, one task for each stream, which ends with it, and
//! one for the sessions of a client, while there are any.

mod address;
mod batch;
mod bulk;
mod call;
mod client;
mod cluster;
mod delete_range;
mod download;
mod error;
mod failure;
mod keeper;
mod options;
mod pages;
mod places;
mod pool;
mod recovery;
pub mod retry;
mod routing;
mod scan;
mod session;
mod sessions;
mod shard_map;
mod small;
mod source;
mod stream;
mod txn;
mod upload;
mod value;
mod watch;

pub use address::{Address, AddressError, DEFAULT_PORT};
pub use bulk::{BulkOperation, BulkOutcome};
pub use client::{Client, ClientBuilder, DEFAULT_TIMEOUT};
pub use delete_range::{DeleteRange, DeleteRangeStep};
pub use download::{Download, DownloadOptions};
pub use error::{Error, Result};
pub use failure::{ERROR_DOMAIN, Failure, FieldViolation, LeaderHint, code_name};
pub use options::{Consistency, GetOptions, KeyRange, Precondition, ReadOptions, ScanOptions, WriteOptions};
pub use routing::Routing;
pub use scan::{Scan, ScanPage};
pub use shard_map::{ShardMap, ShardMapError};
pub use source::UploadSource;
pub use txn::{Compare, Relation, Txn, TxnOperation, TxnReply, TxnResult};
pub use upload::{UploadOptions, UploadReply};
pub use value::{Blob, DeleteReply, GetReply, Header, KeyValue, PutReply, ServedBy, Value};
pub use watch::ClusterWatch;

/// Status, nodes, shard map and what administrators ask for, in the words of the wire (`admin.v1`).
pub use kv_proto::admin::v1 as admin;
/// Status codes, as [`Failure::code`] has them.
pub use tonic::Code;
