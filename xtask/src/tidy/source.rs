//! One Rust file as tokens: its functions, its test lines, its uses of `unsafe`.
//!
//! Tokens rather than a syntax tree: macros are read like any other code, comments and strings cannot be mistaken for
//! code, and the tokenizer is already part of every build (derive macros use it).

use std::ops::RangeInclusive;
use std::str::FromStr;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// What the rules need to know of a file. Lines count from 1.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Lines in the file.
    pub(crate) lines: usize,
    /// Every function with a body, also nested ones and methods.
    pub(crate) functions: Vec<Function>,
    /// Lines of items under `#[cfg(test)]` or `#[test]`.
    pub(crate) test_lines: Vec<RangeInclusive<usize>>,
    /// Modules in files of their own that are declared under `#[cfg(test)]`.
    pub(crate) test_modules: Vec<String>,
    /// Lines of the keyword `unsafe`.
    pub(crate) unsafe_lines: Vec<usize>,
    /// Whether the file says `#![forbid(unsafe_code)]`.
    pub(crate) forbids_unsafe: bool,
}

/// One function.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// From `fn` to the closing brace.
    pub(crate) lines: RangeInclusive<usize>,
    /// Whether its signature mentions `Result`.
    pub(crate) mentions_result: bool,
}

impl Function {
    /// How many lines it takes.
    pub(crate) fn len(&self) -> usize {
        self.lines.end() - self.lines.start() + 1
    }
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    /// The line and the reason, when the text is not Rust.
    pub(crate) fn parse(text: &str) -> Result<Self, (usize, String)> {
        let stream = TokenStream::from_str(text).map_err(|error| (error.span().start().line, error.to_string()))?;
        let mut source = Self { lines: text.lines().count(), ..Self::default() };
        source.visit(stream);
        Ok(source)
    }

    /// Whether a line belongs to a test.
    pub(crate) fn is_test(&self, line: usize) -> bool {
        self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    /// Lines that are not tests.
    pub(crate) fn code_lines(&self) -> usize {
        (1..=self.lines).filter(|&line| !self.is_test(line)).count()
    }

    fn visit(&mut self, stream: TokenStream) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            if let Some(group) = attribute(rest) {
                self.visit_attribute(group, rest);
                at += 2;
                continue;
            }
            if let Some(group) = inner_attribute(rest) {
                self.forbids_unsafe |= group.stream().to_string().replace(' ', "") == "forbid(unsafe_code)";
                at += 3;
                continue;
            }
            if is_word(&rest[0], "unsafe") {
                self.unsafe_lines.push(line(&rest[0]));
            }
            self.functions.extend(function(rest));
            if let TokenTree::Group(group) = &rest[0] {
                self.visit(group.stream());
            }
            at += 1;
        }
    }

    /// `rest` starts with an attribute; if it marks a test, the item after it is one.
    fn visit_attribute(&mut self, group: &Group, rest: &[TokenTree]) {
        if !marks_test(group) {
            return;
        }
        let last = rest.iter().position(ends_item).unwrap_or(rest.len() - 1);
        self.test_lines.push(line(&rest[0])..=rest[last].span().end().line);
        if let [.., keyword, TokenTree::Ident(name), TokenTree::Punct(_)] = &rest[..=last]
            && is_word(keyword, "mod")
        {
            self.test_modules.push(name.to_string());
        }
    }
}

/// The function that starts at the first token, if one does and has a body.
fn function(rest: &[TokenTree]) -> Option<Function> {
    let [keyword, TokenTree::Ident(name), ..] = rest else { return None };
    if !is_word(keyword, "fn") {
        return None;
    }
    let end = rest.iter().position(ends_item)?;
    let TokenTree::Group(body) = &rest[end] else { return None };
    let signature: TokenStream = rest[2..end].iter().cloned().collect();
    Some(Function {
        name: name.to_string(),
        lines: line(keyword)..=body.span_close().end().line,
        mentions_result: mentions(signature, "Result"),
    })
}

/// The brackets of `#[…]`.
fn attribute(rest: &[TokenTree]) -> Option<&Group> {
    match rest {
        [TokenTree::Punct(hash), TokenTree::Group(group), ..]
            if hash.as_char() == '#' && group.delimiter() == Delimiter::Bracket =>
        {
            Some(group)
        }
        _ => None,
    }
}

/// The brackets of `#![…]`.
fn inner_attribute(rest: &[TokenTree]) -> Option<&Group> {
    match rest {
        [TokenTree::Punct(hash), TokenTree::Punct(bang), TokenTree::Group(group), ..]
            if hash.as_char() == '#' && bang.as_char() == '!' =>
        {
            Some(group)
        }
        _ => None,
    }
}

/// `test`, `cfg(test)` or `cfg(all(test, …))`.
fn marks_test(attribute: &Group) -> bool {
    let text = attribute.stream().to_string().replace(' ', "");
    text == "test" || text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// A body or a semicolon.
fn ends_item(token: &TokenTree) -> bool {
    match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    }
}

fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

fn mentions(stream: TokenStream, word: &str) -> bool {
    stream.into_iter().any(|token| match token {
        TokenTree::Group(group) => mentions(group.stream(), word),
        token => is_word(&token, word),
    })
}

fn line(token: &TokenTree) -> usize {
    token.span().start().line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse(text).unwrap()
    }

    fn functions(text: &str) -> Vec<(String, RangeInclusive<usize>)> {
        parse(text).functions.into_iter().map(|function| (function.name, function.lines)).collect()
    }

    #[test]
    fn functions_are_found_wherever_they_are() {
        let text = "fn a() {}\nimpl X {\n    fn b(&self) -> [u8; 2] {\n        fn c() {}\n    }\n}\ntrait T { fn d(); }\n\
                    macro_rules! m { () => { fn e() {} } }\ntype F = fn(u8) -> u8;";
        let names = [("a", 1..=1), ("b", 3..=5), ("c", 4..=4), ("e", 8..=8)];
        assert_eq!(functions(text), names.map(|(name, lines)| (name.to_owned(), lines)));
    }

    #[test]
    fn strings_chars_and_comments_are_not_code() {
        let text = "// fn a() { unsafe {} }\n/* fn b() {} /* unsafe */ */\nconst C: &str = \"fn c() { unsafe\";\n\
                    const D: &str = r#\"\" unsafe { \"#;\nconst E: char = '{';\nconst F: u8 = b'\"';\nfn f<'a>() {}";
        let source = parse(text);
        assert!(source.unsafe_lines.is_empty());
        assert_eq!(functions(text), [("f".to_owned(), 7..=7)]);
    }

    #[test]
    fn unsafe_is_counted_as_keyword_only() {
        let text = "#![deny(unsafe_code)]\n#[unsafe(no_mangle)]\nfn a() {\n    unsafe { b() }\n}\nunsafe fn b() {}\n\
                    macro_rules! m { () => { unsafe { b() } } }\n// unsafe";
        assert_eq!(parse(text).unsafe_lines, [4, 6, 7]);
    }

    #[test]
    fn forbidding_unsafe_is_seen() {
        assert!(parse("//! A crate.\n#![forbid(unsafe_code)]\nfn main() {}").forbids_unsafe);
        assert!(!parse("#![deny(unsafe_code)]").forbids_unsafe);
        assert!(!parse("// #![forbid(unsafe_code)]").forbids_unsafe);
    }

    #[test]
    fn tests_are_set_apart() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n#[test]\nfn c() {\n}\nfn d() {}\n\
                    #[cfg(test)]\nmod oracle;\n#[cfg(not(test))]\nfn e() {}";
        let source = parse(text);
        let tests: Vec<usize> = (1..=source.lines).filter(|&line| source.is_test(line)).collect();
        assert_eq!(tests, [2, 3, 4, 5, 6, 7, 8, 10, 11]);
        assert_eq!(source.code_lines(), 4);
        assert_eq!(source.test_modules, ["oracle"]);
    }

    #[test]
    fn results_are_seen_in_signatures_only() {
        let results = |text| parse(text).functions[0].mentions_result;
        assert!(results("fn forward(x: &T) -> Result<T> { x }"));
        assert!(results("fn forward(x: &T) -> (T, Option<Result<T>>) { x }"));
        assert!(!results("fn forward(x: &T) -> T { let r: Result<T> = x; r.unwrap() }"));
    }

    #[test]
    fn broken_code_gives_a_line() {
        assert_eq!(Source::parse("fn a() {}\nfn b() { (\n}").unwrap_err().0, 3);
    }
}
