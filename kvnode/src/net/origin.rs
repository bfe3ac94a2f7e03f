//! Whom a socket counts for: its network address, as far as one party holds one.

use std::net::{IpAddr, Ipv4Addr};

/// An IPv4 address, or the /64 of an IPv6 address: a single host has all addresses of its /64 (RFC 4291, 2.5.4;
/// RFC 8981 changes them daily), so that counting whole addresses would count nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The address.
    V4(Ipv4Addr),
    /// The first half of the address.
    V6([u16; 4]),
}

impl Origin {
    /// Of an address. IPv4 addresses that a socket for both versions writes as IPv6 (`::ffff:a.b.c.d`) are IPv4 ones:
    /// they all lie in one /64.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [first, second, third, fourth, ..] = address.segments();
                Self::V6([first, second, third, fourth])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Origin {
        Origin::of(text.parse().expect("an address"))
    }

    #[test]
    fn ipv4_is_counted_by_address_and_ipv6_by_its_first_half() {
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }

    #[test]
    fn ipv4_on_a_socket_for_both_versions_is_ipv4() {
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("::ffff:10.0.0.1"), of("::ffff:10.0.0.2"));
    }
}
