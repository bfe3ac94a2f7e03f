//! Where a node listens: a host and a port, however a person wrote them.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// The port of the client API where none is given.
pub const DEFAULT_PORT: u16 = 50051;

/// HOST:PORT of a node's client API.
///
/// Parsed from `host`, `host:port`, `[v6]:port` and `http://host:port`; a missing port is [`DEFAULT_PORT`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Arc<str>);

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{text}` is no address: {problem}; expected HOST:PORT or http://HOST:PORT")]
pub struct AddressError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Address {
    /// HOST:PORT.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same as a URI of plain HTTP/2.
    pub fn uri(&self) -> String {
        format!("http://{}", self.0)
    }

    /// Parses a comma-separated list. Empty items are skipped.
    ///
    /// # Errors
    /// When an item is no address or the list is empty.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, AddressError> {
        let addresses = list
            .split(',')
            .filter(|item| !item.trim().is_empty())
            .map(str::parse)
            .collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(AddressError { text: list.to_owned(), problem: "no address in it" });
        }
        Ok(addresses)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let fail = |problem| AddressError { text: text.to_owned(), problem };
        let trimmed = text.trim();
        let rest = match trimmed.split_once("://") {
            None => trimmed,
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err(fail("TLS is not supported yet")),
            Some(_) => return Err(fail("unknown scheme")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = split_port(rest).ok_or_else(|| fail("the host is malformed"))?;
        if host.is_empty() {
            return Err(fail("the host is missing"));
        }
        if host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#')) {
            return Err(fail("the host is malformed"));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => match port.parse::<u16>() {
                Ok(0) | Err(_) => return Err(fail("the port is not a number from 1 to 65535")),
                Ok(port) => port,
            },
        };
        Ok(Self(format!("{host}:{port}").into()))
    }
}

/// Host and port, if there is one. An IPv6 host keeps its brackets. `None`: brackets or colons out of place.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if text.starts_with('[') {
        let (host, rest) = text.split_at(text.find(']')? + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    match text.split_once(':') {
        None => Some((text, None)),
        Some((host, port)) if !port.contains(':') => Some((host, Some(port))),
        Some(_) => None,
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_and_port_are_optional() {
        for (text, address) in [
            ("127.0.0.1:50151", "127.0.0.1:50151"),
            ("http://127.0.0.1:50151", "127.0.0.1:50151"),
            ("http://demo.ns.svc:7/", "demo.ns.svc:7"),
            (" localhost ", "localhost:50051"),
            ("[::1]:9", "[::1]:9"),
            ("[::1]", "[::1]:50051"),
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(address.to_owned()));
        }
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for text in
            ["", ":1", "a:0", "a:70000", "a:b", "::1", "https://a:1", "ftp://a", "a b:1", "a/b", "[::1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert!(Address::parse_list(" , ").is_err());
    }

    #[test]
    fn a_list_is_separated_by_commas() {
        let list = Address::parse_list("a:1, http://b:2,").unwrap();
        assert_eq!(list.iter().map(Address::as_str).collect::<Vec<_>>(), ["a:1", "b:2"]);
    }
}
