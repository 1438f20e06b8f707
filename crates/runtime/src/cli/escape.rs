//! Makes text from peers harmless on a terminal and in logs.

use std::fmt::Write;

/// Replaces what could move a cursor, start a new line, or reorder text by visible escapes.
pub fn escape_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            _ if is_hostile(character) => {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "\\u{{{:x}}}", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

/// C0, C1 and DEL; invisible and direction-changing characters (Unicode Bidi_Control, line
/// separators, zero-width, tags).
fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(u32::from(character),
            0x00AD | 0x061C | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x2069 | 0xFEFF
            | 0xFFF9..=0xFFFB | 0xE0000..=0xE007F)
}

/// The same JSON without a character that acts on a terminal: there, too, it is read, and JSON
/// itself escapes C0 only.
pub(crate) fn escape_json(json: String) -> String {
    if !json.chars().any(is_hostile) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_hostile(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_terminal_sequences_and_direction_marks_only() {
        assert_eq!(
            escape_text("a\u{1b}[2Jb\nc\u{202e}d\u{9b}"),
            "a\\u{1b}[2Jb\\nc\\u{202e}d\\u{9b}"
        );
        assert_eq!(escape_text("Büro 東京 \"x\" \\"), "Büro 東京 \"x\" \\");
    }

    #[test]
    fn json_means_the_same_and_acts_on_no_terminal() {
        let value =
            serde_json::json!({"a\u{9b}31m": "b\u{7f}\u{202e}\u{e0041}\u{1b}", "c": "Büro 東京"});
        let escaped = escape_json(value.to_string());
        assert!(!escaped.chars().any(is_hostile), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        assert!(escaped.contains("Büro 東京"));
    }
}
