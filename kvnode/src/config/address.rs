//! HOST:PORT, as people write it.

use std::{fmt, net::IpAddr, str::FromStr};

/// A host (name, IPv4 or bracketed IPv6 address) and a port that is not 0. Names are resolved when they are used,
/// never here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Without brackets.
    host: String,
    port: u16,
}

impl HostPort {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port }
    }

    /// The name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host means this machine, wherever it is said.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }

    /// The host means all interfaces: good to listen on, impossible to dial.
    pub fn is_unspecified(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Err(format!("'{text}' has a scheme; write HOST:PORT alone"));
        }
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| format!("'{text}' has no port; write HOST:PORT"))?;
        let port = match port.parse::<u16>() {
            Ok(0) => return Err(format!("'{text}' names port 0; a port is 1 to 65535")),
            Ok(port) => port,
            Err(_) => return Err(format!("'{port}' in '{text}' is no port; a port is 1 to 65535")),
        };
        Ok(Self { host: parse_host(host, text)?, port })
    }
}

fn parse_host(host: &str, text: &str) -> Result<String, String> {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match inner.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => Ok(inner.to_owned()),
            Ok(IpAddr::V4(_)) | Err(_) => Err(format!("'{inner}' in '{text}' is no IPv6 address")),
        };
    }
    if host.contains(':') {
        return Err(format!("'{text}' looks like an IPv6 address; write it as [ADDRESS]:PORT"));
    }
    if host.is_empty() {
        return Err(format!("'{text}' has no host; write HOST:PORT"));
    }
    // RFC 1123, and the underscore that container networks use.
    let is_name = host.len() <= 253
        && !host.starts_with(['-', '.'])
        && host.chars().all(|char| char.is_ascii_alphanumeric() || "-._".contains(char));
    if is_name { Ok(host.to_owned()) } else { Err(format!("'{host}' in '{text}' is no host name")) }
}

#[cfg(test)]
mod tests {
    use super::HostPort;

    #[test]
    fn host_and_port_survive_a_round_trip() {
        for text in ["127.0.0.1:50051", "[::1]:1", "demo-0.demo-nodes.ns.svc:65535", "my_node:80"] {
            assert_eq!(text.parse::<HostPort>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn malformed_addresses_say_what_is_wrong() {
        for (text, expected) in [
            ("", "'' has no port; write HOST:PORT"),
            ("n1", "'n1' has no port; write HOST:PORT"),
            (":50051", "':50051' has no host; write HOST:PORT"),
            ("n1:", "'' in 'n1:' is no port; a port is 1 to 65535"),
            ("n1:0", "'n1:0' names port 0; a port is 1 to 65535"),
            ("n1:65536", "'65536' in 'n1:65536' is no port; a port is 1 to 65535"),
            ("::1:50051", "'::1:50051' looks like an IPv6 address; write it as [ADDRESS]:PORT"),
            ("[n1]:50051", "'n1' in '[n1]:50051' is no IPv6 address"),
            ("a b:50051", "'a b' in 'a b:50051' is no host name"),
            ("http://n1:50051", "'http://n1:50051' has a scheme; write HOST:PORT alone"),
        ] {
            assert_eq!(text.parse::<HostPort>().expect_err(text), expected);
        }
    }

    #[test]
    fn loopback_and_unspecified_hosts_are_known() {
        let is = |text: &str| {
            let address = text.parse::<HostPort>().expect(text);
            (address.is_loopback(), address.is_unspecified())
        };
        assert_eq!(is("127.0.0.1:1"), (true, false));
        assert_eq!(is("[::1]:1"), (true, false));
        assert_eq!(is("localhost:1"), (true, false));
        assert_eq!(is("0.0.0.0:1"), (false, true));
        assert_eq!(is("[::]:1"), (false, true));
        assert_eq!(is("10.0.0.1:1"), (false, false));
    }
}
