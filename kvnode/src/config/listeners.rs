//! The three ports, bound before anything else is touched.

use std::io::{self, ErrorKind};

use tokio::net::TcpListener;

use super::{HostPort, Listen, Problems};

/// The bound ports of a node.
#[derive(Debug)]
pub struct Listeners {
    /// Clients and administration.
    pub client: TcpListener,
    /// Other nodes.
    pub peer: TcpListener,
    /// Metrics and health.
    pub http: TcpListener,
}

impl Listeners {
    /// Binds all three.
    ///
    /// # Errors
    /// When one cannot be bound: each that cannot, with what to do about it.
    pub async fn bind(listen: &Listen) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let client = problems.take("--client-listen", bind(&listen.client).await);
        let peer = problems.take("--peer-listen", bind(&listen.peer).await);
        let http = problems.take("--http-listen", bind(&listen.http).await);
        match (client, peer, http) {
            (Some(client), Some(peer), Some(http)) => Ok(Self { client, peer, http }),
            _ => Err(problems),
        }
    }
}

async fn bind(address: &HostPort) -> Result<TcpListener, String> {
    let error = match TcpListener::bind((address.host(), address.port())).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    Err(describe(address, &error))
}

fn describe(address: &HostPort, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => format!(
            "port {} is in use by another process; choose another with this flag or --port",
            address.port()
        ),
        ErrorKind::AddrNotAvailable => format!("{} is no address of this machine", address.host()),
        ErrorKind::PermissionDenied => {
            format!("port {} may not be used by this user; choose one above 1023", address.port())
        }
        _ => format!("cannot listen on {address}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::{HostPort, Listen, Listeners};

    /// Two ports that are in use as long as the listeners live.
    async fn busy() -> (TcpListener, HostPort) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("any port");
        let port = listener.local_addr().expect("bound").port();
        (listener, HostPort::new("127.0.0.1", port))
    }

    #[tokio::test]
    async fn every_busy_port_is_named_with_its_flag() {
        let ((_held, client), (_also_held, peer), (free, http)) = (busy().await, busy().await, busy().await);
        drop(free);
        let expected = format!(
            "--client-listen: port {} is in use by another process; choose another with this flag or --port\n\
             --peer-listen: port {} is in use by another process; choose another with this flag or --port",
            client.port(),
            peer.port(),
        );
        let problems = Listeners::bind(&Listen { client, peer, http }).await.expect_err("two are busy");
        assert_eq!(problems.to_string(), expected);
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_named() {
        let (free, client) = busy().await;
        drop(free);
        let (free, peer) = busy().await;
        drop(free);
        // TEST-NET-1 (RFC 5737): no machine has it.
        let http = HostPort::new("192.0.2.1", 9090);
        let problems = Listeners::bind(&Listen { client, peer, http }).await.expect_err("not ours");
        assert_eq!(problems.to_string(), "--http-listen: 192.0.2.1 is no address of this machine");
    }
}
