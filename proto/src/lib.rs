//! Wire and disk formats of KvCluster, generated from the `.proto` files beside this crate.
//!
//! One package per promise of stability: [`kv`] for clients, [`admin`] for operators, [`peer`] between nodes,
//! [`disk`] on disk. Byte fields are [`bytes::Bytes`], so that decoding a buffer does not copy values. The services read and
//! write with [`codec`].

pub mod codec;

/// A generated package. What it holds is documented in the proto.
macro_rules! package {
    ($(#[$documentation:meta])* $name:ident, $package:literal) => {
        $(#[$documentation])*
        // Groups, since generated code trips over lints of all of them.
        #[allow(
            missing_docs,
            unused_qualifications,
            clippy::all,
            clippy::pedantic,
            clippy::nursery,
            clippy::restriction,
            reason = "generated code"
        )]
        pub mod $name {
            /// Version 1.
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    };
}

package!(
    /// `kv.v1` and `KvText`: the client API.
    kv,
    "kv.v1"
);
package!(
    /// `admin.v1`: status, nodes, bootstrap, join.
    admin,
    "admin.v1"
);
package!(
    /// `disk.v1`: log entries, proposals, records.
    disk,
    "disk.v1"
);
package!(
    /// `peer.v1`: frames between nodes.
    peer,
    "peer.v1"
);

/// The encoded `FileDescriptorSet` of the public packages, for reflection.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptors.bin"));
