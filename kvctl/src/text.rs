//! Bytes as people write and read them.

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value as Json};

use crate::exit::usage;

/// How keys are written on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyFormat {
    /// As they are.
    #[default]
    Text,
    /// Two digits for each byte.
    Hex,
    /// Standard alphabet, with padding.
    Base64,
}

impl KeyFormat {
    /// The bytes of a key.
    pub fn parse(self, text: &str) -> Result<Bytes> {
        match self {
            Self::Text => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Self::Hex => unhex(text).ok_or_else(|| usage(format!("`{text}` is not hexadecimal"))),
            Self::Base64 => unbase64(text),
        }
    }
}

/// Decodes base64.
pub fn unbase64(text: &str) -> Result<Bytes> {
    STANDARD.decode(text).map(Bytes::from).map_err(|error| usage(format!("`{text}` is not base64: {error}")))
}

fn unhex(text: &str) -> Option<Bytes> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For a terminal: text as it is, other bytes and control characters escaped.
pub fn show(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// Sets `name` to the text, or `name_base64` where the bytes are no text.
pub fn set(object: &mut Map<String, Json>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// 1 KiB and more in the unit that people say.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    format!("{amount:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_three_formats() {
        assert_eq!(KeyFormat::Text.parse("a").unwrap(), "a");
        assert_eq!(KeyFormat::Hex.parse("00Ff").unwrap(), &[0, 255][..]);
        assert_eq!(KeyFormat::Base64.parse("AP8=").unwrap(), &[0, 255][..]);
        for (format, text) in [(KeyFormat::Hex, "0"), (KeyFormat::Hex, "zz"), (KeyFormat::Base64, "?")] {
            assert!(format.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_shown_without_harm_to_the_terminal() {
        assert_eq!(show("grüß".as_bytes()), "grüß");
        assert_eq!(show(b"a\x1b[0m"), "a\\x1b[0m");
        assert_eq!(show(&[0xff]), "\\xff");
    }

    #[test]
    fn json_has_text_or_base64() {
        let mut object = Map::new();
        set(&mut object, "key", b"k");
        set(&mut object, "value", &[0xff]);
        assert_eq!(Json::Object(object).to_string(), r#"{"key":"k","value_base64":"/w=="}"#);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(
            [0, 1023, 1024, 1536, 5 << 30].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"]
        );
    }
}
