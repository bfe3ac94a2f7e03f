//! The name of a node.

use std::{fmt, str::FromStr};

/// Begins with a letter, so that wherever a person names a node, its name is never mistaken for its id. In
/// Kubernetes it is the pod's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// A pod's name inside a StatefulSet is a DNS label.
const MAX_LENGTH: usize = 63;

impl NodeName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with(|first: char| first.is_ascii_alphabetic()) {
            return Err(format!("'{text}' does not begin with a letter"));
        }
        if text.len() > MAX_LENGTH {
            return Err(format!("'{text}' is longer than {MAX_LENGTH} characters"));
        }
        match text.chars().find(|char| !char.is_ascii_alphanumeric() && !"-_.".contains(*char)) {
            Some(odd) => {
                Err(format!("'{text}' holds {odd:?}; letters, digits, '-', '_' and '.' are allowed"))
            }
            None => Ok(Self(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NodeName;

    #[test]
    fn names_of_pods_and_people_are_taken() {
        for text in ["n1", "demo-0", "Node_a.b"] {
            assert_eq!(text.parse::<NodeName>().expect(text).as_str(), text);
        }
    }

    #[test]
    fn names_that_could_be_an_id_or_break_a_list_are_refused() {
        let long = "a".repeat(64);
        for text in ["", "1", "-a", "n 1", "n=1", "n,1", "né", &long] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
    }
}
