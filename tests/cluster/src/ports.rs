//! Blocks of three ports: a node listens at P (clients), P+10 (peers) and P+20 (HTTP).
//!
//! P is random. Between the choice and the node's own bind anybody may take a port, so a start that finds one busy is
//! repeated with another block; blocks handed out in this process are not handed out again.

use std::{
    collections::{BTreeSet, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    sync::Mutex,
};

/// From the client port to the peer port.
pub const PEER_OFFSET: u16 = 10;
/// From the client port to the HTTP port.
pub const HTTP_OFFSET: u16 = 20;

/// Below the ports that the system gives to connections (on Linux, from 32,768 on): a connection must not take the port
/// of a node that is down.
const CLIENT_PORTS: Range<u16> = 10_000..32_000;

/// How often another block is tried before the machine is called full.
const ATTEMPTS: usize = 200;

static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// The ports of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortBlock {
    /// The address that they belong to.
    pub host: Ipv4Addr,
    /// P.
    pub client: u16,
}

impl PortBlock {
    /// Finds a block whose three ports are free.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let client = random_port();
            if is_block_free(client) {
                return Ok(Self { host: Ipv4Addr::LOCALHOST, client });
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no block of three free ports"))
    }

    /// Where clients dial.
    pub fn client_address(self) -> SocketAddr {
        (self.host, self.client).into()
    }

    /// Where other nodes dial.
    pub fn peer_address(self) -> SocketAddr {
        (self.host, self.client + PEER_OFFSET).into()
    }

    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub fn http_address(self) -> SocketAddr {
        (self.host, self.client + HTTP_OFFSET).into()
    }
}

fn random_port() -> u16 {
    // Randomly keyed, and so is the hash of nothing.
    let random = RandomState::new().build_hasher().finish();
    let offset = random % u64::from(CLIENT_PORTS.end - CLIENT_PORTS.start);
    CLIENT_PORTS.start + u16::try_from(offset).unwrap_or(0)
}

/// Takes the block unless a port of it is busy or was handed out before.
fn is_block_free(client: u16) -> bool {
    let (Some(peer), Some(http)) = (client.checked_add(PEER_OFFSET), client.checked_add(HTTP_OFFSET)) else {
        return false;
    };
    let mut taken = TAKEN.lock().expect("nobody panics with the lock");
    let ports = [client, peer, http];
    let free = ports.iter().all(|port| !taken.contains(port))
        && ports.iter().all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    if free {
        taken.extend(ports);
    }
    free
}
