//! The network between the nodes: a proxy for each ordered pair, and what a test can do to it.
//!
//! Node `a` dials node `b` through the proxy a→b, so what `a` says to `b` travels in two of them: as requests in
//! a→b, and as answers on the connections that `b` dialled, in b→a.

use std::{collections::BTreeMap, io, net::SocketAddr};

use kv_faults::proxy::{Direction, Link, Proxy};

/// A proxy for each ordered pair of nodes, by index.
#[derive(Debug, Default)]
pub struct Network {
    proxies: BTreeMap<(usize, usize), Proxy>,
}

impl Network {
    /// Puts proxies between all nodes with these peer addresses.
    ///
    /// # Errors
    /// When no ports can be had.
    pub async fn start(peers: &[SocketAddr]) -> io::Result<Self> {
        let mut proxies = BTreeMap::new();
        for from in 0..peers.len() {
            for (to, address) in peers.iter().enumerate().filter(|(to, _)| *to != from) {
                proxies.insert((from, to), Proxy::start(*address).await?);
            }
        }
        Ok(Self { proxies })
    }

    /// Where node `from` dials node `to`.
    pub fn address(&self, from: usize, to: usize) -> Option<SocketAddr> {
        self.proxies.get(&(from, to)).map(Proxy::address)
    }

    /// How everything that `from` says to `to` is treated.
    ///
    /// # Panics
    /// When there is no such pair: the cluster was started without a network.
    pub fn one_way(&self, from: usize, to: usize, link: Link) {
        self.proxy(from, to).set(Direction::ToListener, link);
        self.proxy(to, from).set(Direction::ToDialler, link);
    }

    /// How everything between two nodes is treated.
    pub fn both_ways(&self, one: usize, other: usize, link: Link) {
        self.one_way(one, other, link);
        self.one_way(other, one, link);
    }

    /// Cuts the nodes of `side` from all others, both ways.
    pub fn cut_off(&self, side: &[usize], link: Link) {
        let pairs: Vec<(usize, usize)> = self.proxies.keys().copied().collect();
        for (from, to) in pairs {
            if side.contains(&from) && !side.contains(&to) {
                self.both_ways(from, to, link);
            }
        }
    }

    /// Opens everything.
    pub fn heal(&self) {
        self.proxies.values().for_each(Proxy::heal);
    }

    fn proxy(&self, from: usize, to: usize) -> &Proxy {
        self.proxies.get(&(from, to)).expect("the cluster was planned with a network that can be cut")
    }
}
