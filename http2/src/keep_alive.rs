//! PINGs that notice a connection whose other end is silent.
//!
//! Only silence counts: on a slow link the answer to a PING waits behind what is being sent, and bytes that come are an
//! answer too.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

use crate::gathered::Reads;

/// When PINGs are sent, and how long their answers may take.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// Without a byte from the other side, until it is asked.
    pub interval: Duration,
    /// For any byte after that.
    pub timeout: Duration,
}

impl KeepAlive {
    /// Returns when the other side is silent.
    pub(crate) async fn watch(self, pings: Option<PingPong>, reads: Reads) {
        let Some(mut pings) = pings else { return std::future::pending().await };
        loop {
            let before = reads.count();
            sleep(self.interval).await;
            if reads.count() != before {
                continue;
            }
            let mut asked = reads.count();
            let mut answer = std::pin::pin!(pings.ping(Ping::opaque()));
            loop {
                match timeout(self.timeout, &mut answer).await {
                    Ok(Ok(_)) => break,
                    // The connection is over, and says why itself.
                    Ok(Err(_)) => return std::future::pending().await,
                    Err(_) if reads.count() == asked => return,
                    Err(_) => asked = reads.count(),
                }
            }
        }
    }
}
