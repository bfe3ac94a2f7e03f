//! Where the binaries under test are.
//!
//! `KVNODE_BIN` and `KVCTL_BIN` name them; otherwise they lie where cargo put them, one or two folders above the
//! test's own executable. With `CI=true` a missing binary is a failure; elsewhere the test says that it was skipped.

use std::{env, path::PathBuf};

/// A binary under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// The server.
    Kvnode,
    /// The server, for those who kill it at a chosen point.
    KvnodeWithFailpoints,
    /// The command line.
    Kvctl,
}

impl Binary {
    const fn name(self) -> &'static str {
        match self {
            Self::Kvnode => "kvnode",
            Self::KvnodeWithFailpoints => "examples/kvnode-with-failpoints",
            Self::Kvctl => "kvctl",
        }
    }

    const fn variable(self) -> &'static str {
        match self {
            Self::Kvnode => "KVNODE_BIN",
            Self::KvnodeWithFailpoints => "KVNODE_WITH_FAILPOINTS_BIN",
            Self::Kvctl => "KVCTL_BIN",
        }
    }
}

/// The path of `binary`; `None` when it was not built and this is no CI run.
///
/// # Panics
/// When it is missing in CI, or its variable names no file.
pub fn find(binary: Binary) -> Option<PathBuf> {
    if let Some(path) = env::var_os(binary.variable()).map(PathBuf::from) {
        assert!(path.is_file(), "{} names {}, which is no file", binary.variable(), path.display());
        return Some(path);
    }
    let executable = env::current_exe().expect("a test knows its own executable");
    let found =
        executable.ancestors().skip(1).take(3).map(|folder| folder.join(binary.name())).find(|p| p.is_file());
    if found.is_none() {
        let hint = format!(
            "{name} was not found near {}: run `cargo build --release -p {name}`, or set {}",
            executable.display(),
            binary.variable(),
            name = binary.name()
        );
        assert!(env::var("CI").as_deref() != Ok("true"), "{hint}");
        eprintln!("SKIPPED: {hint}");
    }
    found
}
