//! Rust sources as the checks on them see them: code without comments, words and unit tests;
//! functions with their bodies; the arms of a `match`. By brackets and words alone: a check that
//! needs types belongs into the compiler.

use super::sources::File;

/// Code of one file, as long as the file itself.
pub(crate) struct Code {
    /// Comments, contents of literals and unit tests are blank.
    pub(crate) text: String,
    /// Literals outside of unit tests, with the place where they begin.
    pub(crate) words: Vec<(usize, String)>,
}

/// A function with a body.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) path: String,
    pub(crate) name: String,
    /// From the name to the body.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Code {
    pub(crate) fn of(file: &File) -> Self {
        let (text, words) = blank(&file.text);
        let mut code = Self { text, words };
        code.leave_out_tests();
        code
    }

    /// Line of a place, the first is 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.text.get(..at).unwrap_or_default().matches('\n').count() + 1
    }

    /// Where this word stands by itself.
    pub(crate) fn find<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        whole(&self.text, word)
    }

    /// Every function, those within others too.
    pub(crate) fn functions(&self, path: &str) -> Vec<Function> {
        let mut found = Vec::new();
        for at in whole(&self.text, "fn") {
            let rest = self.text.get(at + 2..).unwrap_or_default().trim_start();
            let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
            let Some((open, ';' | '{')) = first_of(rest, &[';', '{']) else { continue };
            let Some(body) = rest.get(open..).and_then(inside) else { continue };
            let head = rest.get(..open).unwrap_or_default().to_owned();
            found.push(Function { path: path.to_owned(), name, head, body: body.to_owned() });
        }
        found
    }

    fn leave_out_tests(&mut self) {
        const MARK: &str = "#[cfg(test)]";
        while let Some(at) = self.text.find(MARK) {
            let rest = self.text.get(at..).unwrap_or_default();
            let item = match first_of(rest, &[';', '{']) {
                Some((open, '{')) => {
                    let body = rest.get(open..).and_then(inside).map_or(0, str::len);
                    open + body + 2
                }
                Some((end, _)) => end + 1,
                None => rest.len(),
            };
            let end = at + item.clamp(MARK.len(), rest.len());
            self.words.retain(|(word, _)| !(at..end).contains(word));
            let gone = spaces(self.text.get(at..end).unwrap_or_default());
            self.text.replace_range(at..end, &gone);
        }
    }
}

/// The arms of the first `match` in a body whose patterns name this type: pattern and expression;
/// and what stands before.
pub(crate) fn arms<'a>(body: &'a str, of: &str) -> Option<(&'a str, Vec<(&'a str, &'a str)>)> {
    let wanted = format!("{of}::");
    for at in whole(body, "match") {
        let rest = body.get(at..)?;
        let (open, _) = first_of(rest, &['{'])?;
        let inner = rest.get(open..).and_then(inside)?;
        let arms = split_arms(inner);
        if arms.iter().any(|(pattern, _)| pattern.contains(&wanted)) {
            return Some((body.get(..at)?, arms));
        }
    }
    None
}

fn split_arms(inner: &str) -> Vec<(&str, &str)> {
    let mut arms = Vec::new();
    let mut rest = inner;
    while let Some(arrow) = at_top(rest, "=>") {
        let (pattern, after) = (rest.get(..arrow), rest.get(arrow + 2..).unwrap_or_default());
        let start = after.trim_start();
        // A block ends an arm without a comma.
        let end = match inside(start) {
            Some(block) if start.starts_with('{') => after.len() - start.len() + block.len() + 2,
            _ => at_top(after, ",").unwrap_or(after.len()),
        };
        let expression = after.get(..end).unwrap_or_default();
        arms.push((pattern.unwrap_or_default().trim_matches([',', ' ', '\n']), expression));
        rest = after.get(end..).unwrap_or_default();
    }
    arms
}

/// The arguments of a call whose text begins at its bracket.
pub(crate) fn arguments(call: &str) -> Vec<&str> {
    let mut rest = inside(call).unwrap_or_default();
    let mut found = Vec::new();
    while let Some(comma) = at_top(rest, ",") {
        found.push(rest.get(..comma).unwrap_or_default().trim());
        rest = rest.get(comma + 1..).unwrap_or_default();
    }
    if !rest.trim().is_empty() {
        found.push(rest.trim());
    }
    found
}

/// All calls: what stands before the bracket, `name`, `module::name` or `.method`.
pub(crate) fn calls(code: &str) -> impl Iterator<Item = &str> {
    code.match_indices('(').filter_map(|(at, _)| {
        let before = code.get(..at)?;
        let is_path = |c: char| is_word(c) || c == ':' || c == '.';
        let start = before.rfind(|c| !is_path(c)).map_or(0, |p| {
            p + before.get(p..).and_then(|t| t.chars().next()).map_or(1, char::len_utf8)
        });
        before.get(start..).filter(|path| !path.is_empty())
    })
}

/// Where the text stands as a whole word.
pub(crate) fn whole<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = text.get(..*at).and_then(|t| t.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|t| t.chars().next());
        let first = word.chars().next().is_some_and(is_word);
        let last = word.chars().next_back().is_some_and(is_word);
        !(first && before.is_some_and(is_word) || last && after.is_some_and(is_word))
    })
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What a bracket at the text's beginning holds.
fn inside(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return text.get(1..at);
                }
            }
            _ if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The first of these outside of round and square brackets.
fn first_of(text: &str, wanted: &[char]) -> Option<(usize, char)> {
    let mut depth = 0_i32;
    for (at, c) in text.char_indices() {
        match c {
            c if depth == 0 && wanted.contains(&c) => return Some((at, c)),
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The first such text outside of all brackets.
fn at_top(text: &str, wanted: &str) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, c) in text.char_indices() {
        if depth == 0 && text.get(at..).is_some_and(|rest| rest.starts_with(wanted)) {
            return Some(at);
        }
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn spaces(text: &str) -> String {
    let blank = |c: char| if c == '\n' { "\n".to_owned() } else { " ".repeat(c.len_utf8()) };
    text.chars().map(blank).collect()
}

/// Comments and literals made blank, and the literals' contents.
fn blank(text: &str) -> (String, Vec<(usize, String)>) {
    let mut code = String::with_capacity(text.len());
    let mut words = Vec::new();
    while let Some(rest) = text.get(code.len()..).filter(|rest| !rest.is_empty()) {
        let at = code.len();
        let before = code.chars().next_back();
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            comment(rest)
        } else if let Some((len, word)) = literal(rest, before) {
            words.push((at, word));
            // The quotes stay, so that a literal still is something.
            code.push('"');
            code.push_str(&spaces(rest.get(1..len.saturating_sub(1)).unwrap_or_default()));
            code.push('"');
            continue;
        } else if rest.starts_with('\'') {
            character(rest)
        } else {
            0
        };
        if skip > 0 {
            code.push_str(&spaces(rest.get(..skip).unwrap_or_default()));
        } else {
            code.extend(rest.chars().next());
        }
    }
    (code, words)
}

fn comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(text) = rest.get(at..).filter(|text| !text.is_empty()) {
        let step = if text.starts_with("/*") {
            depth += 1;
            2
        } else if text.starts_with("*/") {
            depth -= 1;
            2
        } else {
            text.chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length and contents of a string at the beginning, whose first byte is a quote or a prefix.
fn literal(rest: &str, before: Option<char>) -> Option<(usize, String)> {
    let prefix = ["br", "r", "b", "c", "cr", ""].into_iter().find(|prefix| {
        rest.strip_prefix(prefix).is_some_and(|r| {
            let raw = prefix.ends_with('r');
            r.trim_start_matches(if raw { '#' } else { '"' }).starts_with('"') && raw
                || r.starts_with('"')
        })
    })?;
    if !prefix.is_empty() && before.is_some_and(is_word) {
        return None;
    }
    let body = rest.get(prefix.len()..)?;
    if prefix.ends_with('r') {
        let hashes: String = body.chars().take_while(|c| *c == '#').collect();
        let start = prefix.len() + hashes.len() + 1;
        let end = rest.get(start..)?.find(&format!("\"{hashes}"))?;
        let word = rest.get(start..start + end)?.to_owned();
        return Some((start + end + 1 + hashes.len(), word));
    }
    let mut escaped = false;
    for (at, c) in body.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some((prefix.len() + at + 1, body.get(1..at)?.to_owned())),
            _ => {}
        }
    }
    None
}

/// Length of a character literal; a lifetime is none.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest.get(3..).and_then(|t| t.find('\'')).map_or(0, |at| at + 4),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sources::file, *};

    fn code(text: &str) -> Code {
        let code = Code::of(&file("a.rs", text));
        assert_eq!(code.text.len(), text.len(), "{:?}", code.text);
        code
    }

    #[test]
    fn comments_literals_and_tests_are_no_code() {
        let text = "fn a<'x>() { /* b( /* c( */ */ d(\"e( \\\" {\", '{', '\\'', r#\"f( \"\"#); } // g(\n\
            #[cfg(test)]\nmod tests;\nfn h() {}\n#[cfg(test)]\nmod t { fn i() { \"j\" } }\nfn k() {}";
        let code = code(text);
        let found = code.functions("a.rs");
        let names: Vec<_> = found.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["a", "h", "k"]);
        assert_eq!(calls(&found[0].body).collect::<Vec<_>>(), ["d"]);
        let words: Vec<_> = code.words.iter().map(|(_, word)| word.as_str()).collect();
        assert_eq!(words, ["e( \\\" {", "f( \""]);
        assert_eq!(code.line(code.find("h").next().unwrap()), 4);
    }

    #[test]
    fn a_match_falls_into_its_arms() {
        let body = "let x = match y { _ => 1 }; before(); match act { A::B { c, d } => f(c, d), \
            A::E(_) | A::F if g() => { h(); } A::G => match i { 1 => j(), _ => k() }, other => l(other) }";
        let (before, arms) = arms(body, "A").unwrap();
        assert!(before.contains("before()"));
        let told: Vec<_> = arms.iter().map(|(p, e)| (*p, e.trim())).collect();
        assert_eq!(
            told,
            [
                ("A::B { c, d }", "f(c, d)"),
                ("A::E(_) | A::F if g()", "{ h(); }"),
                ("A::G", "match i { 1 => j(), _ => k() }"),
                ("other", "l(other)"),
            ]
        );
    }

    #[test]
    fn arguments_and_calls_are_found() {
        assert_eq!(arguments("(op(a, b), move |c| d(c), )x"), ["op(a, b)", "move |c| d(c)"]);
        let found: Vec<_> = calls("a::b(c.d(1), (2), e!(3))").collect();
        assert_eq!(found, ["a::b", "c.d"]);
    }
}
