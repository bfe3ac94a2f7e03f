//! Sockets on the peer port: counted, and cut off when nobody speaks HTTP/2 on them.
//!
//! The bound alone would let a few strangers keep every node out. The deadline of the preface gives the places of silent
//! ones back; for those who speak and say nothing, no address may hold more than it leaves free. What is said on a
//! connection, and by whom, is looked at later (`accepted`).

use std::io;

use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tonic::transport::server::Connected;

use super::limits::Limits;
use crate::net::{
    accept,
    places::{Place, Places},
    socket::{Socket, Watch},
};

/// There is one kind of places: sockets.
const SOCKETS: usize = 0;

/// What a peer's socket holds.
#[derive(Debug)]
pub(super) struct PeerSocket {
    _place: Place<1>,
}

impl Watch for PeerSocket {}

impl Connected for Socket<PeerSocket> {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

/// The sockets that `listener` accepts, at most so many at once. Beyond that new ones are closed at once.
pub(super) fn incoming(
    listener: TcpListener,
    limits: &Limits,
) -> impl Stream<Item = io::Result<Socket<PeerSocket>>> + Send + use<> {
    let places = Places::new([limits.sockets]);
    let sockets = accept::incoming(listener, "peers", limits.connect, move |remote| {
        let place = places.guest(remote.ip()).try_take(SOCKETS)?;
        Some(PeerSocket { _place: place })
    });
    sockets.map(Ok)
}
