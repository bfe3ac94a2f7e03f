//! The ids of the system as newtypes, so that one is never passed for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number itself.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl From<$inner> for $name {
            fn from(number: $inner) -> Self {
                Self(number)
            }
        }

        impl From<$name> for $inner {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A kvnode process and its disk. Minted by the meta group from 1; 0 means none.
    NodeId(u64), "#"
);
id!(
    /// A share of the hash slots. Data shards count from 1; 0 is the meta group's.
    ShardId(u32), "s"
);
id!(
    /// The Raft group of a shard. A shard goes on under a new group after a forced recovery.
    GroupId(u64), "g"
);
id!(
    /// A shard's copy on a node, and the Raft node id. Minted by the meta group, never reused; 0 means none.
    ReplicaId(u64), "r"
);
id!(
    /// One life of a replica's state: a snapshot is installed under a new one. 0 holds the replica's record.
    Generation(u64), "gen"
);
id!(
    /// A separate space of keys. 0 is the default one, whose name is empty.
    KeyspaceId(u32), "ks"
);

impl ShardId {
    /// The shard of the meta group, which owns no slots.
    pub const META: Self = Self(0);

    /// Whether this is the meta group's.
    pub const fn is_meta(self) -> bool {
        self.0 == 0
    }
}

impl GroupId {
    /// The meta group of a cluster that never lost its quorum for good.
    pub const META: Self = Self(0);
}
