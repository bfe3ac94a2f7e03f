//! PINGs that notice a connection whose other end is silent.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

/// When PINGs are sent, and how long their answers may take.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// Between an answer and the next PING.
    pub interval: Duration,
    /// For the answer.
    pub timeout: Duration,
}

impl KeepAlive {
    /// Sends PINGs until one is not answered.
    pub(crate) async fn watch(self, pings: Option<PingPong>) {
        let Some(mut pings) = pings else { return std::future::pending().await };
        loop {
            sleep(self.interval).await;
            if !matches!(timeout(self.timeout, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
                return;
            }
        }
    }
}
