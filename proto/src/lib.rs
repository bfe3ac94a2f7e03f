//! Wire and disk formats of KvCluster, generated from the `.proto` files beside this crate.
//!
//! One package per promise of stability: [`kv`] for clients, [`admin`] for operators, [`peer`] between nodes,
//! [`disk`] on disk. Byte fields are [`bytes::Bytes`], so that decoding a buffer does not copy values.

// Their documentation is in the protos.
#![allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    reason = "generated code"
)]
#![allow(missing_docs, unused_qualifications, reason = "generated code")]
// Groups, since generated code trips over lints of all of them.
#![allow(clippy::all, clippy::pedantic, clippy::nursery, clippy::restriction, reason = "generated code")]

/// `kv.v1` and `KvText`: the client API.
pub mod kv {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("kv.v1");
    }
}

/// `admin.v1`: status, nodes, bootstrap, join.
pub mod admin {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("admin.v1");
    }
}

/// `disk.v1`: log entries, proposals, records.
pub mod disk {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("disk.v1");
    }
}

/// `peer.v1`: frames between nodes.
pub mod peer {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("peer.v1");
    }
}

/// The encoded `FileDescriptorSet` of the public packages, for reflection.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptors.bin"));
