//! Which computers a query means, best first. Pure.
//!
//! All words of a query must be found: in the name, else in client or system, else, of a name,
//! letter by letter in order.

/// What of a computer is searched, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Searched {
    name: String,
    rest: String,
}

/// How well a query fits; smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It is the name.
    Name,
    /// The name begins with it.
    Start,
    /// A part of the name begins with it, or there is no query.
    Part,
    /// It is in the name.
    Inside,
    /// It is in client, system or id.
    Elsewhere,
    /// Its letters are in the name, in that order.
    Letters,
}

impl Searched {
    /// From a computer's name and from what else it may be found by.
    pub fn new(name: &str, rest: &[&str]) -> Self {
        Self { name: name.to_lowercase(), rest: rest.join("\n").to_lowercase() }
    }

    /// The name, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How well a query of lower-case words fits; `None` if it does not.
    pub fn fit(&self, words: &[String]) -> Option<Fit> {
        // As well as its worst word does.
        words
            .iter()
            .map(|word| self.fit_word(word))
            .try_fold(Fit::Name, |worst, fit| fit.map(|fit| worst.max(fit)))
            .map(|fit| if words.is_empty() { Fit::Part } else { fit })
    }

    fn fit_word(&self, word: &str) -> Option<Fit> {
        if let Some(rest) = self.name.strip_prefix(word) {
            return Some(if rest.is_empty() { Fit::Name } else { Fit::Start });
        }
        let mut found = self.name.match_indices(word).map(|(at, _)| at).peekable();
        if found.peek().is_some() {
            let separated = |at: usize| {
                let before = self.name.get(..at).and_then(|text| text.chars().next_back());
                before.is_some_and(|c| !c.is_alphanumeric())
            };
            return Some(if found.any(separated) { Fit::Part } else { Fit::Inside });
        }
        if self.rest.contains(word) {
            return Some(Fit::Elsewhere);
        }
        let mut letters = self.name.chars();
        word.chars().all(|wanted| letters.any(|c| c == wanted)).then_some(Fit::Letters)
    }
}

/// A query's words in lower case.
pub fn words(query: &str) -> Vec<String> {
    query.split_whitespace().map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_fit_names_before_anything_else() {
        let pc = Searched::new("Web-Server01", &["main/acme", "linux"]);
        for (query, fit) in [
            ("", Some(Fit::Part)),
            ("web-server01", Some(Fit::Name)),
            ("WEB", Some(Fit::Start)),
            ("server", Some(Fit::Part)),
            ("erv", Some(Fit::Inside)),
            ("acme", Some(Fit::Elsewhere)),
            ("web acme", Some(Fit::Elsewhere)),
            ("ws1", Some(Fit::Letters)),
            ("1sw", None),
            ("web beta", None),
            ("é", None),
        ] {
            assert_eq!(pc.fit(&words(query)), fit, "{query}");
        }
        assert_eq!(Searched::new("Büro", &[]).fit(&words("RO")), Some(Fit::Inside));
    }
}
