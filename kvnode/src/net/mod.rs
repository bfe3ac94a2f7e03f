//! What the ports for clients and for nodes share: how sockets are accepted, watched and counted.
//!
//! Knows nothing of what is said on a socket. The HTTP port has a rule of its own: there the newest always finds room.

pub mod accept;
pub mod origin;
pub mod places;
pub mod share;
pub mod socket;
