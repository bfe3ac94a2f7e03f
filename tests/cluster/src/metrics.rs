//! What nodes show at `/metrics`.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// For the connection, and for each read of the reply.
const PATIENCE: Duration = Duration::from_secs(3);

/// Every series of a node by its name and labels, as they are written. `address` is that of the HTTP port.
///
/// # Errors
/// When the node does not answer in time, or shows something that is no number.
pub fn scrape(address: SocketAddr) -> io::Result<BTreeMap<String, f64>> {
    let text = ask(address, "/metrics")?;
    let lines = text.lines().filter(|line| line.starts_with("kv_") || line.starts_with("process_"));
    lines.filter_map(|line| line.rsplit_once(' ')).map(series).collect()
}

/// What the HTTP port answers to a GET, head and body.
///
/// # Errors
/// Nobody answers.
pub fn ask(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn series((name, value): (&str, &str)) -> io::Result<(String, f64)> {
    let value = value.parse().map_err(|error| io::Error::other(format!("{name} {value}: {error}")))?;
    Ok((name.to_owned(), value))
}
