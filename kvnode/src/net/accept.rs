//! Accepts sockets on a port for ever: who finds no place is closed at once, and a lack of descriptors is waited out.

use std::{io, net::SocketAddr, time::Duration};

use futures::{Stream, stream};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use super::socket::{Socket, Watch};

/// Before the next attempt after the system refused to accept: out of descriptors, most likely, and trying again at
/// once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two lines in the log about the same trouble: a flood of connections must not become a flood of lines.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// A port that accepts.
struct Door<A> {
    listener: TcpListener,
    port: &'static str,
    preface: Duration,
    admit: A,
    refused: Pace,
    failed: Pace,
}

/// The sockets that `listener` accepts and `admit` finds a place for. On each, the HTTP/2 preface must have come within
/// `preface`. `port` names it in the log.
pub fn incoming<W: Watch>(
    listener: TcpListener,
    port: &'static str,
    preface: Duration,
    admit: impl FnMut(SocketAddr) -> Option<W> + Send,
) -> impl Stream<Item = Socket<W>> + Send {
    let (refused, failed) = (Pace::default(), Pace::default());
    let door = Door { listener, port, preface, admit, refused, failed };
    stream::unfold(door, |mut door| async move {
        let socket = door.next().await;
        Some((socket, door))
    })
}

impl<A> Door<A> {
    async fn next<W: Watch>(&mut self) -> Socket<W>
    where
        A: FnMut(SocketAddr) -> Option<W>,
    {
        loop {
            let (stream, remote) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.could_not_accept(&error);
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match (self.admit)(remote) {
                Some(watch) if is_set_up(&stream, remote) => return Socket::new(stream, self.preface, watch),
                Some(_) => {}
                None => self.had_no_place(remote),
            }
        }
    }

    fn could_not_accept(&mut self, error: &io::Error) {
        if let Some(times) = self.failed.met(Instant::now()) {
            tracing::warn!(port = self.port, %error, times, "connections cannot be accepted");
        }
    }

    fn had_no_place(&mut self, remote: SocketAddr) {
        if let Some(times) = self.refused.met(Instant::now()) {
            tracing::warn!(port = self.port, %remote, times, "too many connections, some are refused");
        }
    }
}

fn is_set_up(stream: &TcpStream, remote: SocketAddr) -> bool {
    let set = stream.set_nodelay(true);
    if let Err(error) = &set {
        tracing::debug!(%remote, %error, "a connection is gone already");
    }
    set.is_ok()
}

/// Says the first of many, then how many there were.
#[derive(Debug, Default)]
struct Pace {
    told: Option<Instant>,
    untold: u64,
}

impl Pace {
    /// It happened once more: how often since it was last told, if it is to be told now.
    fn met(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now.duration_since(told) < TOLD_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_once_in_a_while_with_its_number() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.met(begin), Some(1));
        for _ in 0..1_000 {
            assert_eq!(pace.met(begin + TOLD_EVERY / 2), None);
        }
        assert_eq!(pace.met(begin + TOLD_EVERY), Some(1_001));
        assert_eq!(pace.met(begin + TOLD_EVERY), None);
    }
}
