//! Numbers with units, as people and Kubernetes write them.

use std::{fmt, str::FromStr, time::Duration};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(pub u64);

impl ByteCount {
    /// 2^20 bytes.
    pub const MEBI: u64 = 1 << 20;

    /// `count` times 2^20 bytes.
    pub const fn mebi(count: u64) -> Self {
        Self(count * Self::MEBI)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, bytes) in [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
            if self.0 >= bytes && self.0.is_multiple_of(bytes) {
                return write!(formatter, "{}{unit}", self.0 / bytes);
            }
        }
        write!(formatter, "{}", self.0)
    }
}

impl FromStr for ByteCount {
    type Err = String;

    /// A whole number and a unit: none or B, k M G T (powers of 1,000), Ki Mi Gi Ti (of 1,024), each with or
    /// without B.
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("'{text}' is no number of bytes; write 1073741824 or 1Gi");
        let (number, unit) = split(text).ok_or_else(error)?;
        let factor: u64 = match unit.strip_suffix('B').unwrap_or(unit) {
            "" => 1,
            "k" | "K" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(error()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

/// A duration such as 500ms, 30s, 5m or 1h. A number without a unit is refused: it would be read as either of two.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || format!("'{text}' is no duration; write 500ms, 30s, 5m or 1h");
    let (number, unit) = split(text).ok_or_else(error)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(error()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(error)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ByteCount, parse_duration};

    #[test]
    fn bytes_take_the_units_of_kubernetes() {
        for (text, expected) in [
            ("0", 0),
            ("512", 512),
            ("64Mi", 64 << 20),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1Gi", 1 << 30),
            ("2G", 2_000_000_000),
            ("1kB", 1_000),
        ] {
            assert_eq!(text.parse::<ByteCount>(), Ok(ByteCount(expected)), "{text}");
        }
        for text in ["", "Mi", "-1", "1.5Gi", "1Xi", "99999999999Ti", "99999999999999999999"] {
            assert!(text.parse::<ByteCount>().is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_shown_in_the_greatest_whole_unit() {
        for (bytes, expected) in [(0, "0"), (1 << 30, "1Gi"), (3 << 19, "1536Ki"), (1025, "1025")] {
            assert_eq!(ByteCount(bytes).to_string(), expected);
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["5", "", "m", "1d", "9999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
