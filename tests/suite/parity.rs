//! What docs/parity.md says of tests: each that it names is there, and is a test.

use std::fs;
use std::path::Path;

/// `path/to/file.rs::name` wherever the text has it.
fn named_tests(text: &str) -> Vec<(String, String)> {
    let is_path = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named = text.match_indices(".rs::").map(|(at, _)| {
        let begin = text[..at].rfind(|c| !is_path(c)).map_or(0, |before| before + 1);
        let rest = &text[at + ".rs::".len()..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        (text[begin..at + ".rs".len()].to_owned(), rest[..end].to_owned())
    });
    named.collect()
}

/// Whether the source has a test of that name: `#[test]`, perhaps other attributes, the function.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let found = lines.iter().position(|line| line.starts_with(&format!("fn {name}(")));
    found.is_some_and(|at| {
        let before = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
        before.clone().any(|line| *line == "#[test]")
    })
}

#[test]
fn every_test_that_the_parity_table_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/parity.md")).unwrap();
    // What is fjall's has no path that begins like ours.
    let ours =
        |(path, _): &(String, String)| path.starts_with("tests/") || path.starts_with("crates/");
    let named: Vec<_> = named_tests(&text).into_iter().filter(ours).collect();
    assert!(named.len() > 60, "{} tests are named", named.len());
    let missing = named.iter().filter(|(path, name)| {
        !fs::read_to_string(root.join(path)).is_ok_and(|source| has_test(&source, name))
    });
    let missing: Vec<_> = missing.map(|(path, name)| format!("{path}::{name}")).collect();
    assert!(missing.is_empty(), "docs/parity.md names what is no test:\n{}", missing.join("\n"));
}

#[test]
fn a_name_without_a_test_is_noticed() {
    let text =
        "|[`tests/suite/a.rs::one`](../tests/suite/a.rs)|x `crates/b-c/d.rs::two_2`, e.rs::three";
    let named: Vec<_> = named_tests(text);
    let expected = [("tests/suite/a.rs", "one"), ("crates/b-c/d.rs", "two_2"), ("e.rs", "three")];
    assert!(named.iter().map(|(path, name)| (path.as_str(), name.as_str())).eq(expected));
    let source =
        "#[test]\n#[should_panic]\nfn one() {}\nfn two() {}\n    #[test]\n    fn three() {}\n";
    let found = ["one", "two", "three", "four", "on"].map(|name| has_test(source, name));
    assert_eq!(found, [true, false, true, false, false]);
}
