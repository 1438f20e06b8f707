//! SPDX licence expressions: is there a way to use the package under allowed licences only?
//!
//! Grammar: SPDX specification 2.3, annex D, plus the old `A/B` that Cargo once accepted for
//! `A OR B`. `WITH` binds tightest, then `AND`, then `OR`.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

/// Whether `expression` can be met with the `allowed` licences. Those that were needed are added
/// to `used`.
pub(crate) fn allowed(
    expression: &str,
    allowed: &BTreeSet<String>,
    used: &mut BTreeSet<String>,
) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut parser = Parser { words: spaced.split_whitespace().collect(), at: 0, allowed };
    let found = parser.or()?;
    if let Some(word) = parser.peek() {
        bail!("\"{expression}\": unexpected \"{word}\"");
    }
    match found {
        Some(licences) => {
            used.extend(licences);
            Ok(true)
        }
        None => Ok(false),
    }
}

struct Parser<'a> {
    words: Vec<&'a str>,
    at: usize,
    allowed: &'a BTreeSet<String>,
}

/// The licences under which a part may be used, if it may.
type Way = Option<BTreeSet<String>>;

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn eat(&mut self, word: &str) -> bool {
        let found = self.peek().is_some_and(|w| w.eq_ignore_ascii_case(word));
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<Way> {
        let mut way = self.and()?;
        while self.eat("OR") {
            let other = self.and()?;
            way = way.or(other);
        }
        Ok(way)
    }

    fn and(&mut self) -> Result<Way> {
        let mut way = self.one()?;
        while self.eat("AND") {
            let other = self.one()?;
            way = way.zip(other).map(|(mut a, b)| {
                a.extend(b);
                a
            });
        }
        Ok(way)
    }

    fn one(&mut self) -> Result<Way> {
        if self.eat("(") {
            let way = self.or()?;
            if !self.eat(")") {
                bail!("a parenthesis is not closed");
            }
            return Ok(way);
        }
        let Some(word) = self.peek() else { bail!("a licence is missing at the end") };
        if matches!(word, ")" | "AND" | "OR" | "WITH") {
            bail!("a licence is missing before \"{word}\"");
        }
        self.at += 1;
        let mut licence = word.to_owned();
        if self.eat("WITH") {
            let Some(exception) = self.peek() else { bail!("WITH lacks its exception") };
            self.at += 1;
            licence = format!("{licence} WITH {exception}");
        }
        Ok(self.allowed.contains(&licence).then(|| BTreeSet::from([licence])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(expression: &str) -> bool {
        let list = ["MIT", "Apache-2.0", "ISC", "Apache-2.0 WITH LLVM-exception"];
        allowed(expression, &list.map(String::from).into(), &mut BTreeSet::new()).unwrap()
    }

    #[test]
    fn evaluates_expressions() {
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only", true),
            ("GPL-3.0-only OR MIT", true),
            ("MIT AND GPL-3.0-only", false),
            ("GPL-2.0/MIT", true),
            ("(MIT OR GPL-3.0-only) AND ISC", true),
            ("(GPL-3.0-only OR AGPL-3.0) AND ISC", false),
            ("GPL-3.0-only AND MIT OR ISC", true),
            ("MIT OR ISC AND GPL-3.0-only", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0 WITH Classpath-exception-2.0", false),
            ("MIT WITH LLVM-exception", false),
        ] {
            assert_eq!(ok(expression), expected, "{expression}");
        }
    }

    #[test]
    fn refuses_what_is_no_expression() {
        for bad in ["", "MIT OR", "(MIT", "MIT)", "OR MIT", "MIT ISC", "MIT WITH"] {
            let result = allowed(bad, &["MIT".to_owned()].into(), &mut BTreeSet::new());
            assert!(result.is_err(), "{bad:?}");
        }
    }

    #[test]
    fn says_which_licences_were_needed() {
        let mut used = BTreeSet::new();
        let list = BTreeSet::from(["MIT".to_owned(), "ISC".to_owned()]);
        allowed("(MIT OR GPL-3.0-only) AND ISC", &list, &mut used).unwrap();
        assert_eq!(used, list);
    }
}
