//! Tidiness as a test: what must be true of the tree itself.
//!
//! Looks at what is committed (`git ls-files`), so that scratch files of the
//! moment do not matter. Each test prints every offender, not only the first.

use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

/// Every committed file that still exists, as a path relative to the top.
fn files() -> Vec<String> {
    let output = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .current_dir(top())
        .output()
        .expect("git is installed");
    assert!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).expect("our file names are UTF-8");
    list.split('\0').filter(|path| !path.is_empty() && top().join(path).is_file()).map(str::to_owned).collect()
}

fn rust_files() -> Vec<String> {
    files().into_iter().filter(|path| path.ends_with(".rs")).collect()
}

/// A committed text file; `None` for samples of bytes.
fn text(path: &str) -> Option<String> {
    String::from_utf8(std::fs::read(top().join(path)).expect("it was there a moment ago")).ok()
}

/// `path:line: text` of every line for which `bad` holds.
fn offenders(paths: &[String], bad: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        for (i, line) in text(path).unwrap_or_default().lines().enumerate() {
            if bad(line) {
                found.push(format!("{path}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    found
}

fn assert_none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// Code without its line comment; good enough for words that never stand in our strings.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn is_machine(path: &str) -> bool {
    path == "server/src/machine.rs" || path.starts_with("server/src/machine/")
}

#[test]
fn the_top_level_holds_the_workspace_and_nothing_else() {
    const DIRECTORIES: [&str; 5] = ["mount", "packaging", "proto", "server", "tests"];
    const FILES: [&str; 3] = ["Cargo.lock", "Cargo.toml", "README.md"];
    let found = files()
        .into_iter()
        .filter(|path| match path.split_once('/') {
            _ if path.starts_with('.') => false,
            Some((directory, _)) => !DIRECTORIES.contains(&directory),
            None => !(FILES.contains(&path.as_str()) || path.starts_with("LICENSE")),
        })
        .collect();
    assert_none("does not belong at the top level", found);
}

#[test]
fn no_committed_file_names_a_path_of_one_machine() {
    // Put together here, so that this file does not accuse itself.
    let mut paths = vec![["/ho", "me/"].concat(), ["/ro", "ot/"].concat()];
    paths.push(format!("{}/", top().display()));
    let found = offenders(&files(), |line| paths.iter().any(|path| line.contains(path.as_str())));
    assert_none("names a path that only one machine has", found);
}

#[test]
fn every_rust_file_says_first_what_it_is_for() {
    let found = rust_files()
        .into_iter()
        .filter(|path| {
            let text = text(path).expect("Rust files are UTF-8");
            !text.starts_with("//!")
        })
        .collect();
    assert_none("does not start with `//!`", found);
}

#[test]
fn the_machine_has_no_clock_no_io_and_no_random_order() {
    const FORBIDDEN: [&str; 15] = [
        "#![allow",
        "HashMap",
        "HashSet",
        "Instant::now",
        "Mutex",
        "RandomState",
        "SystemTime",
        "getrandom",
        "rand::",
        "std::env",
        "std::fs",
        "std::net",
        "std::process",
        "std::thread",
        "tokio",
    ];
    let files: Vec<String> = rust_files().into_iter().filter(|path| is_machine(path)).collect();
    assert!(!files.is_empty(), "the machine has moved; this test must follow it");
    let found = offenders(&files, |line| FORBIDDEN.iter().any(|word| code(line).contains(word)));
    assert_none("is not a pure function of the log", found);
}

#[test]
fn nothing_is_unfinished_or_switched_off() {
    let words: Vec<String> = ["to|do!(", "unimple|mented!(", "#[ig|nore", "FIX|ME", "XX|X", "db|g!("]
        .map(|word| word.replace('|', ""))
        .into();
    let found = offenders(&rust_files(), |line| words.iter().any(|word| line.contains(word.as_str())));
    assert_none("is unfinished or switched off", found);
}

#[test]
fn every_link_in_a_document_leads_to_a_file() {
    let mut found = Vec::new();
    for path in files().into_iter().filter(|path| path.ends_with(".md")) {
        let directory = top().join(&path).parent().expect("a file lies in a directory").to_owned();
        for target in text(&path).unwrap_or_default().split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let is_crate_page = path == "README.md" && file.ends_with("/README.md");
            if !(file.is_empty() || is_crate_page || file.contains("://") || directory.join(file).exists()) {
                found.push(format!("{path}: {target}"));
            }
        }
    }
    assert_none("links to nothing", found);
}
