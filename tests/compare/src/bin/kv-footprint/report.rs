//! What is told of a cluster. Pure.

use serde::Serialize;

/// What one system took with so many keys. Bytes are those of its greatest node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Footprint {
    /// For people.
    pub system: &'static str,
    /// That it holds.
    pub keys: u64,
    /// From the first to the last of them.
    pub fill_seconds: f64,
    /// In RAM.
    pub memory_bytes: u64,
    /// On the disk.
    pub disk_bytes: u64,
    /// From the signal to the end of all nodes.
    pub stop_seconds: f64,
    /// From the start of all nodes until each serves everything.
    pub start_seconds: f64,
    /// In RAM, at once after the start.
    pub restarted_memory_bytes: u64,
}

/// A table in Markdown: a row for each.
pub fn table(footprints: &[Footprint]) -> String {
    let mut lines = vec![
        "| Keys | System | Written in s | Memory MB | Disk MB | Stop s | Start s | Memory after it MB |"
            .to_owned(),
        format!("|---:|---|{}", "---:|".repeat(6)),
    ];
    lines.extend(footprints.iter().map(|footprint| {
        let Footprint { system, keys, fill_seconds, memory_bytes, disk_bytes, stop_seconds, start_seconds, .. } =
            footprint;
        let megabytes = |bytes: u64| bytes / 1_000_000;
        let (memory, disk) = (megabytes(*memory_bytes), megabytes(*disk_bytes));
        let after = megabytes(footprint.restarted_memory_bytes);
        format!(
            "| {keys} | {system} | {fill_seconds:.0} | {memory} | {disk} | {stop_seconds:.1} | {start_seconds:.1} | {after} |"
        )
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_all_of_a_system() {
        let footprint = Footprint {
            system: "etcd",
            keys: 1_000_000,
            fill_seconds: 80.4,
            memory_bytes: 627_400_000,
            disk_bytes: 1_000_000_000,
            stop_seconds: 0.26,
            start_seconds: 4.44,
            restarted_memory_bytes: 500_000_000,
        };
        let table = table(&[footprint]);
        assert!(table.ends_with("| 1000000 | etcd | 80 | 627 | 1000 | 0.3 | 4.4 | 500 |"), "{table}");
        let columns = |line: &str| line.matches('|').count();
        assert!(table.lines().all(|line| columns(line) == 9), "{table}");
    }
}
