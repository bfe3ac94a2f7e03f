//! kvnode as some tests start it: the node that passes the point which a file names dies there.
//!
//! `KVNODE_FAILPOINT_FILE` names the file; nodes may share it. The first to pass its point takes the file away, leaves its
//! process id beside it, and dies without another word, as by SIGKILL. [`kvnode::node::points`] has the points.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, ExitCode},
    sync::Arc,
};

/// As in kvnode itself.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let file = env::var_os("KVNODE_FAILPOINT_FILE").map(PathBuf::from);
    kvnode::process::main(Arc::new(move |point| {
        if let Some(file) = &file {
            die_at(point, file);
        }
    }))
}

fn die_at(point: &str, file: &Path) {
    let is_named = fs::read_to_string(file).is_ok_and(|named| named == point);
    // Of several that pass it at once, one takes it away.
    let mine = file.with_extension(process::id().to_string());
    if is_named && fs::rename(file, &mine).is_ok() {
        process::abort();
    }
}
