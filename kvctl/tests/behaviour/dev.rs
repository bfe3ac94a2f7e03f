//! The local cluster: what goes wrong before it runs. With real nodes it is tested with the server.

use std::{net::TcpListener, sync::Mutex};

use crate::{kvctl, script};

/// A port whose neighbours are probably free too, another one for each test.
fn port() -> u16 {
    static NEXT: Mutex<u16> = Mutex::new(20_000);
    let mut next = NEXT.lock().unwrap();
    let free = |port: &u16| is_free(*port) && is_free(port + 10) && is_free(port + 20);
    let port = (*next..60_000).step_by(137).find(free).unwrap();
    *next = port + 137;
    port
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

#[test]
fn busy_ports_are_reported_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let started = folder.path().join("started");
    let kvnode = script(folder.path(), "kvnode", &format!("#!/bin/sh\ntouch {}\n", started.display()));
    let port = port();
    let _taken = TcpListener::bind(("127.0.0.1", port + 10)).unwrap();
    let data = folder.path().join("data");
    let port_text = port.to_string();
    let arguments = [
        "dev",
        "--nodes",
        "1",
        "--port",
        &port_text,
        "--kvnode",
        &kvnode,
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let run = kvctl(&arguments, b"");
    assert!(run.err.contains(&format!("{} (n1)", port + 10)), "{run:?}");
    run.expect(2);
    assert!(!started.exists() && !data.exists());
}

#[test]
fn a_node_that_dies_shows_the_end_of_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let kvnode = script(
        folder.path(),
        "kvnode",
        "#!/bin/sh\necho \"started with $*\"\necho 'no room on the device' >&2\nexit 7\n",
    );
    let data = folder.path().join("data");
    let port_text = port().to_string();
    let arguments = [
        "dev",
        "--nodes",
        "1",
        "--port",
        &port_text,
        "--kvnode",
        &kvnode,
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let run = kvctl(&arguments, b"");
    assert!(run.err.contains("no room on the device") && run.err.contains("exit status: 7"), "{run:?}");
    assert!(run.err.contains(&format!("--node-name n1 --port {port_text} --data-dir")), "{run:?}");
    assert!(run.err.contains(&format!("--initial-nodes n1=127.0.0.1:{port_text}")), "{run:?}");
    run.expect(1);
}

#[test]
fn a_missing_kvnode_says_how_to_build_it() {
    let run = kvctl(&["dev", "--kvnode", "/no/such/kvnode"], b"");
    assert!(run.err.contains("cargo build --release"), "{run:?}");
    run.expect(2);
}
