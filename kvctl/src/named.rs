//! How a person calls a node: by its name, `n3`, or by its id, `3` or `#3`.
//!
//! Names begin with a letter, so none of them is an id. Texts write ids with `#`, so that none of them is taken for a name; a
//! line that is to be pasted into a shell does not, since a comment would begin there.

/// The id that a node is called by; `None`: it is called by its name.
fn id_in(called: &str) -> Option<u64> {
    called.strip_prefix('#').unwrap_or(called).parse().ok()
}

/// Whether the node of this name and id is called so.
pub fn is_called(called: &str, name: &str, id: u64) -> bool {
    called == name || id_in(called) == Some(id)
}

/// A node in a sentence, as long as nobody has told its id: `n3`, or `node #3`.
pub fn unmet(called: &str) -> String {
    id_in(called).map_or_else(|| called.to_owned(), |id| format!("node #{id}"))
}

/// A node in a sentence, with the id by which the journal calls it: `n3 (#7)`, or `node #7`.
pub fn met(called: &str, id: u64) -> String {
    if id_in(called).is_some() { format!("node #{id}") } else { format!("{called} (#{id})") }
}

/// A node as a word of a command line.
pub fn word(called: &str) -> &str {
    called.strip_prefix('#').unwrap_or(called)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_called_by_its_name_or_its_id() {
        for called in ["n3", "7", "#7"] {
            assert!(is_called(called, "n3", 7), "{called}");
        }
        for called in ["n7", "3", "#n3", "##7", "", "#"] {
            assert!(!is_called(called, "n3", 7), "{called}");
        }
    }

    #[test]
    fn ids_are_told_from_names_and_can_be_pasted() {
        assert_eq!(["n3", "3", "#3"].map(unmet), ["n3", "node #3", "node #3"]);
        assert_eq!(["n3", "7", "#7"].map(|called| met(called, 7)), ["n3 (#7)", "node #7", "node #7"]);
        assert_eq!(["n3", "3", "#3"].map(word), ["n3", "3", "3"]);
    }
}
