//! A TCP proxy between one node that dials and one that listens.
//!
//! Each direction has a [`Link`] of its own that can be changed at any time and holds for running connections and
//! for new ones. A proxy stands for an ordered pair: the connections that the one node dials to the other. A cut of
//! everything that node a says to node b is therefore two settings: towards the listener in the proxy a→b, towards
//! the dialler in the proxy b→a.
//!
//! Bounded: at most [`MAX_CONNECTIONS`] connections, [`BUFFER_BYTES`] for each direction of them. Dropping the
//! proxy closes its port and its connections.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// Connections beyond these are closed at once. Two nodes keep two, and a few more while they reconnect.
pub const MAX_CONNECTIONS: usize = 64;

/// What one direction of one connection holds.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// How one direction of a proxy treats bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// Passes them on.
    #[default]
    Open,
    /// Passes each piece on after this time; pieces follow one another, so throughput falls too.
    Delayed(Duration),
    /// Takes no bytes: they wait in the sender's buffers and arrive after healing, like packets that TCP repeats.
    Stalled,
    /// Takes bytes and loses them. A connection that lost any is reset when the link opens again, since what
    /// follows would have a hole before it.
    Silent,
    /// Resets every connection, running or new.
    Reset,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the node that dialled to the one that listens.
    ToListener,
    /// From the node that listens back to the one that dialled.
    ToDialler,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    to_listener: watch::Sender<Link>,
    to_dialler: watch::Sender<Link>,
    accepting: AbortHandle,
}

impl Proxy {
    /// Listens on a port of the system's choice at 127.0.0.1 and passes connections on to `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (to_listener, listener_link) = watch::channel(Link::Open);
        let (to_dialler, dialler_link) = watch::channel(Link::Open);
        let accepting = tokio::spawn(accept(listener, target, listener_link, dialler_link)).abort_handle();
        Ok(Self { address, to_listener, to_dialler, accepting })
    }

    /// Where to dial instead of the target.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes one direction.
    pub fn set(&self, direction: Direction, link: Link) {
        match direction {
            Direction::ToListener => self.to_listener.send_replace(link),
            Direction::ToDialler => self.to_dialler.send_replace(link),
        };
    }

    /// Changes both directions.
    pub fn set_both(&self, link: Link) {
        self.set(Direction::ToListener, link);
        self.set(Direction::ToDialler, link);
    }

    /// Opens both directions.
    pub fn heal(&self) {
        self.set_both(Link::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts until it is aborted, which ends all connections: the set owns their tasks.
async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    to_listener: watch::Receiver<Link>,
    to_dialler: watch::Receiver<Link>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                // A failed accept concerns that connection alone.
                let Ok((dialler, _)) = accepted else { continue };
                if connections.len() < MAX_CONNECTIONS {
                    connections.spawn(connect(dialler, target, to_listener.clone(), to_dialler.clone()));
                }
            }
        }
    }
}

async fn connect(
    dialler: TcpStream,
    target: SocketAddr,
    mut to_listener: watch::Receiver<Link>,
    mut to_dialler: watch::Receiver<Link>,
) {
    if !lets_in(&mut to_listener, &mut to_dialler).await {
        reset(&dialler);
        return;
    }
    let Ok(listener) = TcpStream::connect(target).await else {
        reset(&dialler);
        return;
    };
    // The nodes batch; the proxy must not add a wait of its own. Failing to say so costs time only.
    let _ = (dialler.set_nodelay(true), listener.set_nodelay(true));
    let (mut from_dialler, mut into_dialler) = dialler.into_split();
    let (mut from_listener, mut into_listener) = listener.into_split();
    let ended = tokio::select! {
        ended = pump(&mut from_dialler, &mut into_listener, to_listener) => ended,
        ended = pump(&mut from_listener, &mut into_dialler, to_dialler) => ended,
    };
    if ended == Ended::Broken {
        reset(from_dialler.as_ref());
        reset(from_listener.as_ref());
        // A dropped half would say goodbye first.
        into_dialler.forget();
        into_listener.forget();
    }
}

/// Waits until a new connection may reach the target. False: it is to be reset.
async fn lets_in(to_listener: &mut watch::Receiver<Link>, to_dialler: &mut watch::Receiver<Link>) -> bool {
    loop {
        let (one, other) = (*to_listener.borrow_and_update(), *to_dialler.borrow_and_update());
        if one == Link::Reset || other == Link::Reset {
            return false;
        }
        let closed = |link| matches!(link, Link::Stalled | Link::Silent);
        // A handshake needs both ways.
        if !closed(one) && !closed(other) {
            return true;
        }
        let changed = tokio::select! {
            changed = to_listener.changed() => changed,
            changed = to_dialler.changed() => changed,
        };
        if changed.is_err() {
            return false;
        }
    }
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// One side closed it; the other side reads the end too.
    Closed,
    /// It is to be reset.
    Broken,
}

async fn pump(from: &mut OwnedReadHalf, into: &mut OwnedWriteHalf, mut link: watch::Receiver<Link>) -> Ended {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut lost_bytes = false;
    loop {
        let now = *link.borrow_and_update();
        let passes = matches!(now, Link::Open | Link::Delayed(_));
        if now == Link::Reset || (passes && lost_bytes) {
            return Ended::Broken;
        }
        let length = tokio::select! {
            biased;
            changed = link.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ended::Broken,
            },
            read = from.read(&mut buffer), if now != Link::Stalled => match read {
                Ok(0) if passes => return Ended::Closed,
                Ok(0) | Err(_) => return Ended::Broken,
                Ok(length) => length,
            },
        };
        if now == Link::Silent {
            lost_bytes = true;
            continue;
        }
        if let Link::Delayed(delay) = now {
            tokio::time::sleep(delay).await;
        }
        if !write(into, &buffer[..length], &mut link).await {
            return Ended::Broken;
        }
    }
}

/// Writes all of `bytes`, or gives up because the connection is broken or is to be.
async fn write(into: &mut OwnedWriteHalf, bytes: &[u8], link: &mut watch::Receiver<Link>) -> bool {
    tokio::select! {
        biased;
        _ = link.wait_for(|link| *link == Link::Reset) => false,
        written = into.write_all(bytes) => written.is_ok(),
    }
}

/// Makes the coming close a reset, so that the other side sees an error and no orderly end.
fn reset(stream: &TcpStream) {
    // It may be closed already, which is what is wanted.
    let _ = stream.set_zero_linger();
}
