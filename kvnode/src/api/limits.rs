//! Every limit of the API: a number, its unit, its reason.

use std::{ops::RangeInclusive, time::Duration};

/// Longest key, bytes. Keys are in every index block and message, so they stay small.
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// Largest value of a unary write, bytes. What is larger is streamed with Upload.
pub const INLINE_VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Largest gRPC message in both directions, bytes: the default of every gRPC library.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What the keys and values of one reply may take, bytes: leaves room for headers below [`MESSAGE_BYTES_MAX`].
pub const REPLY_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 512 * 1024;
/// Keys of a BatchGet, operations of a BulkWrite.
pub const BATCH_OPERATIONS_MAX: usize = 1_000;
/// Comparisons and operations of a Txn, both branches together.
pub const TXN_OPERATIONS_MAX: usize = 128;
/// Keys and values of a Txn together, bytes: it is one entry of the log.
pub const TXN_BYTES_MAX: usize = 1024 * 1024;
/// Keys that one entry of a DeleteRange deletes: bounds the time that applying it takes.
pub const DELETE_RANGE_KEYS_MAX: u32 = 1_000;

/// A piece of an uploaded value, bytes. Every chunk but the last has exactly this size; a format on disk.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks of one upload that are written at the same time.
pub const UPLOAD_WINDOW_CHUNKS: usize = 4;
/// Largest uploaded value, bytes: chunk numbers are 32 bits wide, and this leaves them far from their end.
pub const UPLOAD_BYTES_MAX: u64 = 1 << 40;
/// Chunks of one read of a download.
pub const DOWNLOAD_PAGE_CHUNKS: u32 = 2;
/// Reads of one download that are under way at the same time.
pub const DOWNLOAD_PAGES_AT_ONCE: usize = 2;

/// What a download holds: the pages that are read ahead, and the message that is being sent, bytes.
pub const DOWNLOAD_BYTES: usize = (DOWNLOAD_PAGE_CHUNKS as usize * DOWNLOAD_PAGES_AT_ONCE + 1) * CHUNK_BYTES;

/// A message of a scan is sent when it holds this many bytes; it may be one value larger.
pub const SCAN_MESSAGE_BYTES: usize = 512 * 1024;
/// What a scan holds of all shards together, bytes, where it has the room; each shard's page takes its share.
pub const SCAN_WINDOW_BYTES: usize = 2 * 1024 * 1024;
/// Bounds of a shard's share, bytes. A value that is larger is read when it is its turn.
pub const SCAN_PAGE_BYTES: RangeInclusive<usize> = 4 * 1024..=256 * 1024;
/// What a scan holds beside its pages while it makes a message, bytes: the message, and a value that is larger than a page.
pub const SCAN_MESSAGE_ROOM_BYTES: usize = SCAN_MESSAGE_BYTES + INLINE_VALUE_BYTES_MAX + 64 * 1024;
/// All that a scan holds while it makes a message, bytes.
pub const SCAN_ROOM_BYTES: usize = SCAN_MESSAGE_ROOM_BYTES + SCAN_WINDOW_BYTES;
/// With less it cannot make one, bytes: pages of as many shards as there may be.
pub const SCAN_ROOM_BYTES_MIN: usize = SCAN_MESSAGE_ROOM_BYTES + 256 * *SCAN_PAGE_BYTES.start();
/// What a key takes beside its own bytes and those of its value, while it waits to be sent, bytes.
pub const SCAN_KEY_BYTES: usize = 160;
/// How long a scan that has begun waits for room for its next message, unless its caller is less patient. Those who have it may
/// be slow readers, and it holds nothing.
pub const SCAN_ROOM_WAIT_MAX: Duration = DEADLINE_MAX;
/// Pages of one scan that are read at the same time.
pub const SCAN_PAGES_AT_ONCE: usize = 16;
/// Longest page token, bytes.
pub const PAGE_TOKEN_BYTES_MAX: usize = KEY_BYTES_MAX + 64;

/// Time for an operation whose caller gives no deadline; also for each step of a stream.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// Longest deadline that is passed on: nothing waits in a queue of ours for longer.
pub const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// A request whose next bytes do not come for this long is given up.
pub const REQUEST_IDLE_MAX: Duration = Duration::from_secs(30);
/// The same between two questions of a reflection stream: a person with a tool may think for a while.
pub const REFLECTION_IDLE_MAX: Duration = Duration::from_secs(60);
/// How long the rest of the cluster has to answer a question for its status.
pub const STATUS_DEADLINE: Duration = Duration::from_secs(2);

/// Connections of clients at a node. Of these and of all that follows, clients of one address together hold no more
/// than they leave free ([`share`](crate::net::share)): half of it, when nobody else is there.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Requests of one connection at the same time. HTTP/2 makes the client wait with more.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Requests of all connections at the same time.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 4_096;
/// Bytes of requests that were received and not yet answered, of all connections.
pub const REQUEST_BYTES_IN_FLIGHT_MAX: usize = 256 * 1024 * 1024;
/// The same of one connection: a single client leaves room for others of its address.
pub const REQUEST_BYTES_PER_CONNECTION_MAX: usize = 64 * 1024 * 1024;
/// Replies of up to [`MESSAGE_BYTES_MAX`] that are being made or not yet sent, of all connections.
pub const LARGE_REPLIES_MAX: usize = 32;
/// The same of one connection.
pub const LARGE_REPLIES_PER_CONNECTION_MAX: usize = 8;
/// A value up to this size is sent in a reply that is not a large one, bytes; it takes room among
/// [`REPLY_BYTES_IN_FLIGHT_MAX`].
pub const SMALL_REPLY_BYTES_MAX: usize = 64 * 1024;
/// A value up to this size needs no room, bytes: it is no larger than what a request takes anyhow.
pub const TINY_REPLY_BYTES_MAX: usize = 1024;
/// Bytes that were read for small replies, scans and downloads and have not been taken by their clients, of all connections.
/// Less on most nodes, see `--memory`.
pub const REPLY_BYTES_IN_FLIGHT_MAX: usize = 512 * 1024 * 1024;
/// The same of one connection: a quarter of what there is, and room for a scan at least.
pub const REPLY_BYTES_PER_CONNECTION_PART: usize = 4;
/// Scans, uploads and downloads that are under way, of all connections.
pub const STREAMED_REPLIES_MAX: usize = 256;
/// The same of one connection.
pub const STREAMED_REPLIES_PER_CONNECTION_MAX: usize = 64;
/// Operations that may be under way on one Batch stream: sent and not answered. What a thousand tasks have under way four
/// times over, and few enough that a stream which stands still holds some MiB.
pub const BATCH_WINDOW_OPERATIONS: usize = 4_096;
/// The same in bytes of encoded operations: two of the largest messages, so that one is taken while the other is answered.
pub const BATCH_WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// Operations of one message. What is between the window and this is refused one by one, as the rest of the window is;
/// beyond this nobody looks at the window, and the refusals alone would take more memory than the message.
pub const BATCH_MESSAGE_OPERATIONS_MAX: usize = 2 * BATCH_WINDOW_OPERATIONS;
/// What an operation on a stream counts besides its own bytes among [`REQUEST_BYTES_IN_FLIGHT_MAX`]: its bookkeeping, here and
/// in the queues of its shard.
pub const BATCH_OPERATION_OVERHEAD_BYTES: usize = 512;
/// Answers that wait on a stream until the client takes them, bytes; also what a message of answers holds, unless a single
/// one is larger. Beyond it a large reply's share is needed, as for unary replies. What a stream really holds follows from
/// `--memory`: with the message on its way and the one that is being sent it is three times as much.
pub const BATCH_REPLY_BYTES: RangeInclusive<usize> = 8 * 1024..=1024 * 1024;
/// Messages of one stream that are taken in before something is answered: no message waits for the decoding of all others.
pub const BATCH_MESSAGES_AT_ONCE: usize = 16;
/// A Batch stream on which nothing comes for this long is ended, and gives its place back; clients open another one when they
/// need it. Longer than any operation takes.
pub const BATCH_IDLE_MAX: Duration = Duration::from_secs(5 * 60);
/// A Batch stream whose client takes no answers for this long is ended.
pub const BATCH_UNREAD_MAX: Duration = Duration::from_secs(30);
/// How long a Batch stream that is ended by the node waits for what was taken: within [`STOP_GRACE`].
pub const BATCH_DRAIN_MAX: Duration = Duration::from_secs(8);
/// A Batch stream ends this long after its connection was asked to reconnect: the next stream opens on another one.
pub const BATCH_AGE_NOTICE: Duration = Duration::from_secs(1);
/// Health checks and watches at the same time, of all connections: apart from requests, since an overloaded node is not a
/// dead one, and enough for one watch of each connection. A watch takes a few KiB, for as long as its client likes.
pub const HEALTH_CHECKS_MAX: usize = 4_096;
/// Longest message of a health check or a reflection request, bytes: a name, and its envelope.
pub const QUESTION_BYTES_MAX: usize = 16 * 1024;

/// What clients hold places of, each kind with its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`CONNECTIONS_MAX`], or what the descriptors of the process leave room for.
    Connections,
    /// [`REQUESTS_IN_FLIGHT_MAX`].
    Requests,
    /// [`REQUEST_BYTES_IN_FLIGHT_MAX`].
    RequestBytes,
    /// [`LARGE_REPLIES_MAX`].
    LargeReplies,
    /// [`REPLY_BYTES_IN_FLIGHT_MAX`].
    ReplyBytes,
    /// [`STREAMED_REPLIES_MAX`].
    Streams,
    /// [`HEALTH_CHECKS_MAX`].
    HealthChecks,
}

impl Limit {
    /// All of them, by number.
    pub const ALL: [Self; 7] = [
        Self::Connections,
        Self::Requests,
        Self::RequestBytes,
        Self::LargeReplies,
        Self::ReplyBytes,
        Self::Streams,
        Self::HealthChecks,
    ];

    /// The bound of a node that has enough descriptors.
    pub const fn max(self) -> usize {
        match self {
            Self::Connections => CONNECTIONS_MAX,
            Self::Requests => REQUESTS_IN_FLIGHT_MAX,
            Self::RequestBytes => REQUEST_BYTES_IN_FLIGHT_MAX,
            Self::LargeReplies => LARGE_REPLIES_MAX,
            Self::ReplyBytes => REPLY_BYTES_IN_FLIGHT_MAX,
            Self::Streams => STREAMED_REPLIES_MAX,
            Self::HealthChecks => HEALTH_CHECKS_MAX,
        }
    }

    /// The reason of a refusal, as clients see it.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Connections => "CONNECTIONS",
            Self::Requests => "REQUESTS_IN_FLIGHT",
            Self::RequestBytes => "REQUEST_BYTES_IN_FLIGHT",
            Self::LargeReplies => "LARGE_REPLIES",
            Self::ReplyBytes => "REPLY_BYTES_IN_FLIGHT",
            Self::Streams => "STREAMS",
            Self::HealthChecks => "HEALTH_CHECKS",
        }
    }

    /// The label of its metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::RequestBytes => "request_bytes",
            Self::LargeReplies => "large_replies",
            Self::ReplyBytes => "reply_bytes",
            Self::Streams => "streams",
            Self::HealthChecks => "health_checks",
        }
    }
}

/// A connection that has not sent the HTTP/2 preface by then is closed.
pub const PREFACE_DEADLINE: Duration = Duration::from_secs(10);
/// A connection whose client takes none of the bytes that wait for it for this long is closed.
pub const SEND_STALL_MAX: Duration = Duration::from_secs(60);
/// A connection is asked to reconnect (GOAWAY) at this age, so that a ClusterIP spreads clients again.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// Between PINGs on a connection, and the time for the answer.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long after the GOAWAY a stopping node waits for running requests.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// Between NOT_SERVING and the GOAWAY: those who watch the health have time to look elsewhere.
pub const STOP_NOTICE: Duration = Duration::from_millis(200);
/// Between two looks of a connection at its time limits.
pub const CONNECTION_TICK: Duration = Duration::from_millis(500);
/// HTTP/2 window of a stream, bytes: what a client may send before a handler reads it. A chunk of an upload: enough for the
/// next one to be here when there is room for it. Unary requests are read as they come, and count then.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// What a streamed request counts among [`REQUEST_BYTES_IN_FLIGHT_MAX`] from its beginning to its end, whatever of it is
/// there: its window, which may be left unread, and as much of a message that is being read.
pub const STREAM_AHEAD_BYTES: usize = 2 * STREAM_WINDOW_BYTES as usize;

/// HTTP/2 window of a connection with so many streams, bytes. All of them together cannot use it up: what is left unread on
/// some, because their shards stand still, holds up no other. So it bounds nothing by itself.
pub const fn connection_window_bytes(streams: u32) -> u32 {
    /// RFC 9113, 6.9.1.
    const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;
    let all = STREAM_WINDOW_BYTES.saturating_mul(streams.saturating_add(1));
    if all < WINDOW_BYTES_MAX { all } else { WINDOW_BYTES_MAX }
}
/// Headers of a request, bytes.
pub const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Advice to a caller that met a limit or a shard without a leader.
pub const RETRY_AFTER: Duration = Duration::from_millis(100);
