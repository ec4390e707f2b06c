//! Bytes as text on one line, and back.
//!
//! `parse(format(bytes)) == bytes` for every byte string, and what `format` prints holds no tab, no
//! newline and nothing that steers a terminal. Printable UTF-8 stays as it is; every other byte
//! becomes `\xNN`, and backslash, tab and newline become `\\`, `\t` and `\n`.

use std::fmt::{self, Write as _};

/// Displays bytes escaped.
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            let mut rest = chunk.valid();
            while !rest.is_empty() {
                let plain = rest.find(|character| !is_plain(character)).unwrap_or(rest.len());
                f.write_str(&rest[..plain])?;
                let mut characters = rest[plain..].chars();
                if let Some(special) = characters.next() {
                    format_special(special, f)?;
                }
                rest = characters.as_str();
            }
            format_bytes(chunk.invalid(), f)?;
        }
        Ok(())
    }
}

/// Whether a character stands for itself.
fn is_plain(character: char) -> bool {
    match character {
        '\\' => false,
        ' '..='~' => true,
        // The standard library's table of what is printable: it leaves out bidirectional
        // overrides and other characters that only change how their neighbours look.
        _ => !character.is_ascii() && character.escape_debug().len() == 1,
    }
}

fn format_special(character: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match character {
        '\\' => f.write_str("\\\\"),
        '\t' => f.write_str("\\t"),
        '\n' => f.write_str("\\n"),
        _ => format_bytes(character.encode_utf8(&mut [0; 4]).as_bytes(), f),
    }
}

fn format_bytes(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

/// Reads back what [`Escaped`] printed. The error is a clause that says what is wrong where.
pub fn parse(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.iter().position(|&byte| byte == b'\\') {
        bytes.extend_from_slice(&rest[..position]);
        let at = text.len() - rest.len() + position + 1;
        let (byte, length) = match &rest[position + 1..] {
            [b'\\', ..] => (b'\\', 2),
            [b't', ..] => (b'\t', 2),
            [b'n', ..] => (b'\n', 2),
            [b'x', high, low, ..] => {
                let byte = hex_byte(*high, *low)
                    .ok_or_else(|| format!("\\x at byte {at} is not followed by two hex digits"))?;
                (byte, 4)
            }
            [b'x', ..] => {
                return Err(format!("\\x at byte {at} is not followed by two hex digits"));
            }
            _ => return Err(format!("the backslash at byte {at} begins no known escape")),
        };
        bytes.push(byte);
        rest = &rest[position + length..];
    }
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

/// Bytes as lowercase hex digits.
pub fn format_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Reads back what [`format_hex`] printed; upper case is accepted too.
pub fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| hex_byte(*high, *low)).collect()
}

fn hex_byte(high: u8, low: u8) -> Option<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bytes: &[u8]) -> String {
        Escaped(bytes).to_string()
    }

    #[test]
    fn printable_text_stays_as_it_is() {
        assert_eq!(format("a b ~ 'ß' \"日本\"".as_bytes()), "a b ~ 'ß' \"日本\"");
    }

    #[test]
    fn the_four_escapes_are_used() {
        assert_eq!(format(b"\\ \t \n \x00\x1b\x7f\xff"), "\\\\ \\t \\n \\x00\\x1b\\x7f\\xff");
    }

    #[test]
    fn characters_that_steer_a_terminal_are_escaped() {
        assert_eq!(format("\u{9b}".as_bytes()), "\\xc2\\x9b");
        assert_eq!(format("\u{202e}".as_bytes()), "\\xe2\\x80\\xae");
    }

    #[test]
    fn every_pair_of_bytes_comes_back() {
        for first in 0..=255 {
            for second in 0..=255 {
                let bytes = [first, second];
                let text = format(&bytes);
                assert!(!text.contains(['\t', '\n']));
                assert_eq!(parse(text.as_bytes()).unwrap(), bytes, "{text}");
            }
        }
    }

    #[test]
    fn a_wrong_escape_is_named_with_its_place() {
        assert_eq!(parse(b"ab\\q").unwrap_err(), "the backslash at byte 3 begins no known escape");
        assert_eq!(parse(b"\\").unwrap_err(), "the backslash at byte 1 begins no known escape");
        for text in [&b"ab\\x4"[..], b"ab\\x", b"ab\\xg0", b"ab\\x+1"] {
            let error = parse(text).unwrap_err();
            assert_eq!(error, "\\x at byte 3 is not followed by two hex digits");
        }
    }

    #[test]
    fn hex_comes_back_and_refuses_halves() {
        assert_eq!(format_hex(&[0, 0xab, 0xff]), "00abff");
        assert_eq!(parse_hex("00aBff"), Some(vec![0, 0xab, 0xff]));
        assert_eq!(parse_hex(""), Some(Vec::new()));
        assert_eq!(parse_hex("abc"), None);
        assert_eq!(parse_hex("zz"), None);
        assert_eq!(parse_hex("ß"), None);
    }
}
