//! The rules of the house that no compiler holds: the layers, the sizes, and what must not be found in the tree.
//!
//! Every test reads the whole tree and names all places that break its rule, not only the first.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(missing_docs, reason = "the names of tests are sentences")]

#[path = "tidy/code.rs"]
mod code;

use code::{Function, blanked, functions, imports, without_tests};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers of `src`. A module imports only from the rows above its own.
const LAYERS: &[&[&str]] = &[
    &["sync", "clock", "outcome", "chunked", "descriptors", "boxed", "socket"],
    &["policy", "body", "flight"],
    &["store", "upstream", "telemetry"],
    &["proxy"],
    &["admin", "server", "watch"],
    &["config"],
    &["demo", "certificates"],
    &["warnings"],
    &["reload"],
    &["app"],
    &["cli"],
    &["lib", "main"],
];

/// Lines of a source file, the tests at its end not counted.
const FILE_LINES_MAX: usize = 500;

/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// What is unfinished goes into an issue.
const MARKERS: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];

/// Where somebody worked is nobody's business, and such a path is wrong on every other machine.
const PLACES: &[&str] = &["/home/", "/root/", "/Users/", "/work/", "/tmp/wt"];

/// The documents whose mentions of files are checked.
const DOCUMENTS: &[&str] =
    &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];

/// Directories whose files documents mention by their path.
const MENTIONED: &[&str] = &[".ci/", "benches/", "config/", "deploy/", "fuzz/", "src/", "tests/"];

#[test]
fn a_module_imports_only_from_the_layers_above_it() {
    let mut breaches = Breaches::default();
    for file in sources(&["src"]) {
        let Some(row) = row_of(file.module()) else {
            breaches.add(&file.path, 1, &format!("module {} is in no row of LAYERS", file.module()));
            continue;
        };
        for import in imports(&file.code, file.depth()) {
            match row_of(&import.module) {
                _ if import.module == file.module() => {}
                Some(imported) if imported < row => {}
                Some(_) => breaches.add(
                    &file.path,
                    import.line,
                    &format!("{} must not import {}, which is not above it", file.module(), import.module),
                ),
                None => breaches.add(&file.path, import.line, &format!("what is crate::{}?", import.module)),
            }
        }
    }
    breaches.none("a module imports only from the rows of LAYERS above its own");
}

#[test]
fn every_row_of_the_layers_exists() {
    let modules: Vec<String> = sources(&["src"]).iter().map(|file| file.module().to_owned()).collect();
    for module in LAYERS.iter().copied().flatten() {
        assert!(
            modules.iter().any(|known| known == module),
            "LAYERS names {module}, which src does not have"
        );
    }
}

#[test]
fn a_file_fits_its_size() {
    let mut breaches = Breaches::default();
    for file in sources(&["src", "benches"]) {
        let lines = without_tests(&file.code).lines().count();
        if lines > FILE_LINES_MAX {
            breaches.add(&file.path, lines, &format!("{lines} lines without its tests"));
        }
    }
    breaches
        .none(&format!("a file has at most {FILE_LINES_MAX} lines without its tests: split it by subject"));
}

#[test]
fn a_function_fits_its_size() {
    let mut breaches = Breaches::default();
    for file in sources(&["src", "tests", "benches"]) {
        for Function { name, line, lines } in functions(&file.code) {
            if lines > FUNCTION_LINES_MAX {
                breaches.add(&file.path, line, &format!("fn {name} has {lines} lines"));
            }
        }
    }
    breaches.none(&format!("a function has at most {FUNCTION_LINES_MAX} lines"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut breaches = Breaches::default();
    for file in sources(&["src", "tests", "benches"]) {
        if !file.text.starts_with("//! ") {
            breaches.add(&file.path, 1, "the first line is no module documentation");
        }
    }
    breaches.none("a file begins with `//!` and says what it is for");
}

#[test]
fn only_clock_reads_the_wall_clock() {
    let mut breaches = Breaches::default();
    for file in sources(&["src"]).iter().filter(|file| file.module() != "clock") {
        breaches.add_lines_with(file, &file.code, &["SystemTime::now", "UNIX_EPOCH.elapsed"]);
    }
    breaches.none("wall time comes through crate::clock only");
}

#[test]
fn nothing_is_left_to_do() {
    let mut breaches = Breaches::default();
    for file in texts() {
        breaches.add_lines_with(&file, &file.text, MARKERS);
    }
    breaches.none("what is unfinished is an issue, not a comment");
}

#[test]
fn nothing_speaks_of_where_it_was_made() {
    let mut breaches = Breaches::default();
    for file in texts() {
        breaches.add_lines_with(&file, &file.text, PLACES);
        for (number, line) in file.text.lines().enumerate() {
            if mentions_issue(line) {
                breaches.add(&file.path, number + 1, &format!("an issue's number: {}", line.trim()));
            }
        }
    }
    breaches.none("the tree describes itself, without paths of machines and numbers of issues");
}

#[test]
fn documents_mention_files_that_exist() {
    let mut breaches = Breaches::default();
    for document in DOCUMENTS {
        let Ok(text) = fs::read_to_string(root().join(document)) else {
            breaches.add(Path::new(document), 1, "this document is missing");
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for path in mentioned_paths(line) {
                if !root().join(&path).exists() {
                    breaches.add(Path::new(document), number + 1, &format!("there is no {path}"));
                }
            }
        }
    }
    breaches.none("documents mention files that exist");
}

/// The places where a rule is broken.
#[derive(Default)]
struct Breaches {
    text: String,
    count: usize,
}

impl Breaches {
    fn add(&mut self, path: &Path, line: usize, what: &str) {
        self.count += 1;
        writeln!(self.text, "  {}:{line}: {what}", path.display()).unwrap();
    }

    fn add_lines_with(&mut self, file: &File, text: &str, words: &[&str]) {
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                self.add(&file.path, number + 1, &format!("{word}: {}", line.trim()));
            }
        }
    }

    #[track_caller]
    fn none(self, rule: &str) {
        assert!(self.count == 0, "{rule}; broken in {} places:\n{}", self.count, self.text);
    }
}

/// A file of the tree.
struct File {
    /// From the root of the repository.
    path: PathBuf,
    text: String,
    /// Its text, where it is Rust, with the insides of comments and literals blanked out.
    code: String,
}

impl File {
    /// The top-level module it belongs to: `proxy` for `src/proxy/mod.rs` and `src/proxy/fetch.rs`.
    fn module(&self) -> &str {
        let name = self.path.components().nth(1).unwrap().as_os_str().to_str().unwrap();
        name.strip_suffix(".rs").unwrap_or(name)
    }

    /// How many times `super` leads from its items to the root of the crate.
    fn depth(&self) -> usize {
        let names = self.path.components().count() - 1;
        if self.path.ends_with("mod.rs") { names - 1 } else { names }
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn row_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// All Rust files of these directories but those that hold nothing but unit tests.
fn sources(directories: &[&str]) -> Vec<File> {
    let mut files = Vec::new();
    for directory in directories {
        collect(&root().join(directory), &mut files);
    }
    files.retain(|file| {
        let is_rust = has_extension(&file.path, "rs");
        is_rust && !(file.path.starts_with("src") && file.path.ends_with("tests.rs"))
    });
    assert!(!files.is_empty(), "no sources in {directories:?}");
    files
}

/// Every text of the tree but what this test itself must spell out, what is generated, and the licences.
fn texts() -> Vec<File> {
    let mut files = Vec::new();
    collect(root(), &mut files);
    files.retain(|file| {
        let is_rule = file.path.starts_with("tests/tidy") || file.path.ends_with("tests/tidy.rs");
        let is_foreign = file.path.ends_with("Cargo.lock") || file.path.starts_with("LICENSE-APACHE");
        !is_rule && !is_foreign
    });
    files
}

fn collect(directory: &Path, files: &mut Vec<File>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_hidden =
            name.starts_with('.') && ![".ci", ".github", ".dockerignore", ".gitignore"].contains(&name);
        if is_hidden || ["target", "corpus", "artifacts"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let is_rust = has_extension(&path, "rs");
            let code = if is_rust { blanked(&text) } else { String::new() };
            files.push(File { path: path.strip_prefix(root()).unwrap().to_owned(), text, code });
        }
    }
}

/// "issue" or "issues" or a bare hash, and a number.
fn mentions_issue(line: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    ["issue ", "issue #", "issues ", "issues/", "fixes #", "closes #"].iter().any(|words| {
        lower.split(words).skip(1).any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    })
}

/// The files that a line of Markdown mentions: targets of relative links, and code spans that look like paths.
fn mentioned_paths(line: &str) -> Vec<String> {
    let spans = line.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
    let spans = spans.filter(|word| {
        let is_file = ["Cargo.toml", "Dockerfile", "Makefile", "build.rs", "clippy.toml"].contains(word);
        is_file
            || has_extension(Path::new(word), "md")
            || MENTIONED.iter().any(|directory| word.starts_with(directory))
    });
    let links = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.contains("://") && !link.starts_with(['#', 'm']));
    let is_pattern = |path: &&str| path.contains(['*', '<', '{', '$', '…']);
    spans
        .chain(links)
        .filter(|path| !is_pattern(path))
        .map(|path| {
            path.split(['#', ':']).next().unwrap_or(path).trim_end_matches([',', '.', ';']).to_owned()
        })
        .filter(|path| !path.is_empty())
        .collect()
}

#[test]
fn mentions_are_found() {
    assert_eq!(
        mentioned_paths("see `src/lib.rs`, [here](README.md#run) and `cargo run`"),
        ["src/lib.rs", "README.md"]
    );
    assert!(mentioned_paths("[a](https://example.org) `GET /src/x` `src/*.rs`").is_empty());
    assert!(mentions_issue("as Issue 12 says") && !mentions_issue("an issue of 12 kinds, issues"));
}
