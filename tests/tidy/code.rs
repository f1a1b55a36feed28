//! As much reading of Rust as the rules need: comments and literals blanked out, imports, functions.

/// A mention of another module of the crate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// The top-level module.
    pub(crate) module: String,
    /// The line, from 1.
    pub(crate) line: usize,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// The line of its `fn`, from 1.
    pub(crate) line: usize,
    /// From the line of its `fn` to that of its closing brace.
    pub(crate) lines: usize,
}

/// The text with the insides of comments, strings and characters turned to spaces. Lines stay where they are.
pub(crate) fn blanked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_in_word = out.ends_with(|last: char| last.is_alphanumeric() || last == '_');
        let (keep, length) = match first {
            '/' if rest.starts_with("//") => (0, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (0, block_comment(rest)),
            '"' => (1, string(rest)),
            'b' | 'r' | 'c' if !is_in_word && raw_string(rest).is_some() => {
                (0, raw_string(rest).unwrap_or(rest.len()))
            }
            '\'' => (1, character(rest)),
            _ => (first.len_utf8(), first.len_utf8()),
        };
        out.push_str(&rest[..keep]);
        out.extend(rest[keep..length].chars().map(|inside| if inside == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    out
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string literal, its quotes included.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a raw string literal, where the text begins with one.
fn raw_string(text: &str) -> Option<usize> {
    let after =
        text.strip_prefix("br").or_else(|| text.strip_prefix("cr")).or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let inside = after[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&close)? + close.len();
    Some(text.len() - inside.len() + length)
}

/// The length of a character literal, or that of the quote alone where it begins a lifetime.
fn character(text: &str) -> usize {
    let inside = &text[1..];
    if inside.starts_with('\\') {
        // The first character after the backslash may itself be a quote.
        return inside
            .char_indices()
            .skip(2)
            .find(|(_, char)| *char == '\'')
            .map_or(text.len(), |(at, _)| at + 2);
    }
    let mut chars = inside.chars();
    match (chars.next(), chars.next()) {
        (Some(char), Some('\'')) => char.len_utf8() + 2,
        _ => 1,
    }
}

/// The code up to its `mod tests`.
pub(crate) fn without_tests(code: &str) -> &str {
    let end = code.find("#[cfg(test)]\nmod tests").unwrap_or(code.len());
    &code[..end]
}

/// The modules of the crate that the code names: `crate::x`, `crate::{x, y::z}`, and as many `super` as lead to
/// the crate's root, which is `depth` of them. Inside of `mod tests` it takes one more.
pub(crate) fn imports(code: &str, depth: usize) -> Vec<Import> {
    let tests_from = without_tests(code).len();
    let mut found = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        if !code[..start].ends_with(is_word) {
            name_at(code, start + "crate::".len(), &mut found);
        }
    }
    for (start, _) in code.match_indices("super::") {
        if code[..start].ends_with("super::") || code[..start].ends_with(is_word) {
            continue;
        }
        let path = &code[start..];
        let after = path.trim_start_matches("super::");
        let supers = (path.len() - after.len()) / "super::".len();
        if supers == depth + usize::from(start >= tests_from) {
            name_at(code, code.len() - after.len(), &mut found);
        }
    }
    found
}

/// The first name of a path, or of each path of a group in braces. What is no module but an item of the root (it
/// begins with a capital letter, or is a star) is left out.
fn name_at(code: &str, at: usize, found: &mut Vec<Import>) {
    let line = line_of(code, at);
    let mut depth = 0_usize;
    let mut expects_name = true;
    let mut name = String::new();
    for char in code[at..].chars() {
        match char {
            _ if is_word(char) && expects_name => name.push(char),
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !is_word(char) && !name.is_empty() {
            if name.starts_with(|first: char| first.is_lowercase()) {
                found.push(Import { module: name.clone(), line });
            }
            name.clear();
            expects_name = false;
        }
        match char {
            ',' if depth == 1 => expects_name = true,
            _ if depth == 0 && !expects_name => return,
            ';' => return,
            _ => {}
        }
    }
}

/// Every function with a body, those inside of others too.
pub(crate) fn functions(code: &str) -> Vec<Function> {
    code.match_indices("fn ")
        .filter(|(at, _)| !code[..*at].ends_with(is_word))
        .filter_map(|(at, _)| function(code, at))
        .collect()
}

fn function(code: &str, at: usize) -> Option<Function> {
    let after = &code[at + "fn ".len()..];
    let name: String = after.chars().take_while(|char| is_word(*char)).collect();
    if name.is_empty() {
        return None;
    }
    // Brackets of all kinds are balanced before the body's brace: `[u8; { N }]` is inside of one.
    let (mut brackets, mut braces) = (0_i32, 0_i32);
    for (end, char) in after.char_indices() {
        match char {
            '(' | '[' if braces == 0 => brackets += 1,
            ')' | ']' if braces == 0 => brackets -= 1,
            ';' if brackets == 0 && braces == 0 => return None,
            '{' if brackets == 0 => braces += 1,
            '}' if brackets == 0 => {
                braces -= 1;
                if braces == 0 {
                    let lines = after[..end].matches('\n').count() + 1;
                    return Some(Function { name, line: line_of(code, at), lines });
                }
            }
            _ => {}
        }
    }
    None
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_imports(code: &str, depth: usize, expected: &[(&str, usize)]) {
        let found: Vec<_> =
            imports(&blanked(code), depth).into_iter().map(|import| (import.module, import.line)).collect();
        let expected: Vec<_> = expected.iter().map(|(module, line)| ((*module).to_owned(), *line)).collect();
        assert_eq!(found, expected, "{code}");
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        assert_eq!(blanked("a // b\nc /* d /* e */ f */ g"), "a     \nc                   g");
        assert_eq!(blanked(r#"x("a\"b") + y"#), "x(\"     ) + y");
        assert_eq!(blanked(r"('c', '\'', 'é', 'static)"), "('  , '   , '  , 'static)");
        assert_eq!(blanked("r#\"a\" {\"#;"), "         ;");
        assert_eq!(blanked("for r in b"), "for r in b");
    }

    #[test]
    fn imports_are_found() {
        check_imports("use crate::proxy::Proxy;", 1, &[("proxy", 1)]);
        check_imports(
            "\nuse crate::{admin, proxy::{self, Body}, store};",
            1,
            &[("admin", 2), ("proxy", 2), ("store", 2)],
        );
        check_imports("let a = crate::clock::now();", 1, &[("clock", 1)]);
        check_imports("// crate::proxy\nlet a = \"crate::proxy\";", 1, &[]);
        check_imports("$crate::x; mycrate::y", 1, &[("x", 1)]);
    }

    #[test]
    fn a_path_of_supers_that_leads_to_the_root_is_an_import() {
        check_imports("use super::proxy::Proxy;", 1, &[("proxy", 1)]);
        check_imports("use super::proxy::Proxy;", 2, &[]);
        check_imports("use super::super::proxy::Proxy;", 2, &[("proxy", 1)]);
        check_imports("#[cfg(test)]\nmod tests {\n    use super::proxy::Proxy;\n}", 1, &[]);
    }

    #[test]
    fn functions_are_measured() {
        let code = "trait A {\n    fn a();\n    fn b(c: [u8; 2]) -> u8 {\n        1\n    }\n}\nconst F: fn(u8) = g;\n";
        assert_eq!(functions(code), [Function { name: "b".into(), line: 3, lines: 3 }]);
    }
}
