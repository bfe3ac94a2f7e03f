//! Faults for tests with real processes, none of which needs root.
//!
//! * [`proxy`]: a TCP proxy that stands between a pair of nodes and cuts, delays or resets what they say.
//! * [`power`]: runs a process so that a power loss can be played: what it did not sync is really gone.
//! * [`volume`]: gives a process a volume of any size, which can be full, and slow.
//!
//! None knows anything of KvCluster.

pub mod power;
pub mod proxy;
pub mod volume;
