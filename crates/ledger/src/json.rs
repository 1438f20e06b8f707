//! Writes the one JSON encoding that is hashed and signed: keys in a fixed order, no white space,
//! integers only, strings escaped in one way only.
//!
//! Strings follow RFC 8785 §3.2.2.2 and escape also DEL, C1 controls, line separators and
//! bidirectional controls, so that printing a line can neither move a terminal's cursor nor
//! reorder what is read. Must never write a float.

use std::fmt::Write as _;

/// Would this character act on a terminal, a line-based reader or the text's direction?
pub(crate) fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Bytes that [`push_string`] spends on a character.
pub(crate) fn escaped_len(c: char) -> usize {
    match c {
        '"' | '\\' | '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 2,
        c if is_active(c) => 6,
        c => c.len_utf8(),
    }
}

/// Appends a quoted string.
pub(crate) fn push_string(out: &mut String, text: &str) {
    out.push('"');
    // Nearly all values are plain ASCII, copied at once.
    if text.bytes().all(|b| matches!(b, 0x20..=0x7e) && b != b'"' && b != b'\\') {
        out.push_str(text);
    } else {
        text.chars().for_each(|c| push_char(out, c));
    }
    out.push('"');
}

fn push_char(out: &mut String, c: char) {
    let short = match c {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\u{8}' => "\\b",
        '\t' => "\\t",
        '\n' => "\\n",
        '\u{c}' => "\\f",
        '\r' => "\\r",
        c if is_active(c) => {
            // All active characters are in the basic plane: one escape suffices.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
            return;
        }
        c => {
            out.push(c);
            return;
        }
    };
    out.push_str(short);
}

/// Members of one object, in the order they are added.
pub(crate) struct Object {
    out: String,
}

impl Object {
    /// `{`
    pub(crate) fn new() -> Self {
        Self::with_capacity(256)
    }

    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let mut out = String::with_capacity(bytes);
        out.push('{');
        Self { out }
    }

    /// A member whose value is already encoded.
    pub(crate) fn raw(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        self.out.push_str(value);
        self
    }

    pub(crate) fn string(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        push_string(&mut self.out, value);
        self
    }

    pub(crate) fn optional(&mut self, key: &str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.string(key, value),
            None => self.raw(key, "null"),
        }
    }

    pub(crate) fn integer(&mut self, key: &str, value: u64) -> &mut Self {
        self.key(key);
        let _ = write!(self.out, "{value}");
        self
    }

    pub(crate) fn optional_integer(&mut self, key: &str, value: Option<u64>) -> &mut Self {
        match value {
            Some(value) => self.integer(key, value),
            None => self.raw(key, "null"),
        }
    }

    pub(crate) fn signed(&mut self, key: &str, value: i64) -> &mut Self {
        self.key(key);
        let _ = write!(self.out, "{value}");
        self
    }

    pub(crate) fn strings<'a>(
        &mut self,
        key: &str,
        values: impl IntoIterator<Item = &'a str>,
    ) -> &mut Self {
        self.key(key);
        self.out.push('[');
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            push_string(&mut self.out, value);
        }
        self.out.push(']');
        self
    }

    /// Bytes so far, the closing brace still missing.
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// What was written so far, the closing brace still missing.
    pub(crate) fn as_str(&self) -> &str {
        &self.out
    }

    /// `}`
    pub(crate) fn finish(mut self) -> String {
        self.out.push('}');
        self.out
    }

    fn key(&mut self, key: &str) {
        if self.out.len() > 1 {
            self.out.push(',');
        }
        push_string(&mut self.out, key);
        self.out.push(':');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn strings_read_back_and_lengths_are_right(text in "\\PC*|[\\x00-\\x9f\u{2028}\u{202e}\"\\\\]*") {
            let mut out = String::new();
            push_string(&mut out, &text);
            proptest::prop_assert_eq!(out.len(), 2 + text.chars().map(escaped_len).sum::<usize>());
            proptest::prop_assert!(!out.chars().any(is_active));
            proptest::prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }
}
