//! Nodes that die at a point which is chosen beforehand, see `kvnode/examples/kvnode-with-failpoints.rs`.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cluster::Cluster,
    wait::{DEADLINE, wait_until},
};

/// Starts a node that looks for its point in the folder of its cluster.
pub(crate) fn command(folder: &Path, binary: &Path) -> Command {
    let mut assignment = OsString::from("KVNODE_FAILPOINT_FILE=");
    assignment.push(file(folder));
    let mut command = Command::new("env");
    command.arg(assignment).arg(binary);
    command
}

/// The file that names the point, in the folder of a cluster.
fn file(folder: &Path) -> PathBuf {
    folder.join("failpoint")
}

impl Cluster {
    /// Lets the next node that passes this point die there.
    ///
    /// # Panics
    /// When that cannot be written.
    pub fn arm(&self, point: &str) {
        let file = file(self.folder());
        let draft = file.with_extension("draft");
        // Whole when it is there.
        fs::write(&draft, point)
            .and_then(|()| fs::rename(&draft, &file))
            .expect("a failpoint can be written");
    }

    /// Waits until a node has died at this point, and tells which.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn wait_struck(&mut self, point: &str) -> usize {
        let processes: Vec<Option<u32>> = self.nodes.iter().map(crate::Node::process_id).collect();
        let marks =
            processes.iter().map(|id| id.map(|id| file(self.folder()).with_extension(id.to_string())));
        let marks: Vec<Option<PathBuf>> = marks.collect();
        let struck = wait_until(format!("a death at `{point}`"), DEADLINE, || async {
            let struck = marks.iter().position(|mark| mark.as_ref().is_some_and(|mark| mark.exists()));
            struck.ok_or_else(|| "nobody has passed it".to_owned())
        });
        let struck = struck.await.unwrap_or_else(|error| panic!("{error}"));
        if let Some(mark) = &marks[struck] {
            fs::remove_file(mark).expect("a mark can be removed");
        }
        self.nodes[struck].kill();
        struck
    }
}
