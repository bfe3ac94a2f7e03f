//! gRPC on HTTP/2 with nothing between: tonic's generated services and clients speak through h2's connections.
//!
//! ```text
//! KvClient ─► client::Connection ═ h2 ═══ h2 ═ server::serve ─► Handler (KvServer …)
//! ```
//!
//! A unary call is a task's own work: no queue, no task and no box for each call between the generated code and the
//! streams of the connection. A connection's task writes what all calls have queued meanwhile in one system call.
//! Why not tonic's transport: `docs/adr/0005`.

pub mod client;
mod gathered;
mod keep_alive;
mod outgoing;
mod received;
pub mod server;
mod status;

pub use keep_alive::KeepAlive;
pub use received::Received;
pub use status::{NotSent, was_not_sent};

/// Windows of HTTP/2, bytes: what the other side may send before somebody reads it.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Of each stream.
    pub stream: u32,
    /// Of the connection.
    pub connection: u32,
}
