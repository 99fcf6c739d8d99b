//! What help, README and the code say about each other, and which crates are in the binary.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::harness::{Run, TempDir};

const SOURCE: &str = include_str!("../../src/main.rs");

/// Every crate in the binary. A new one is a decision, and this list the place to take it.
const CRATES: [&str; 32] = [
    "base64",
    "bytes",
    "cfg-if",
    "equivalent",
    "foldhash",
    "getrandom",
    "hashbrown",
    "http",
    "httparse",
    "indexmap",
    "itoa",
    "lexopt",
    "libc",
    "log",
    "memchr",
    "once_cell",
    "percent-encoding",
    "ring",
    "rustls",
    "rustls-pki-types",
    "rustls-webpki",
    "serde_core",
    "serde_json",
    "sf-refresh",
    "subtle",
    "untrusted",
    "ureq",
    "ureq-proto",
    "utf8-zero",
    "webpki-roots",
    "zeroize",
    "zmij",
];

/// The text of a file of the project.
fn project_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn help() -> String {
    let dir = TempDir::new();
    Run::new(&dir).arg("--help").run().text()
}

/// The words in a text that start with two dashes.
fn long_options(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let words = text.split(|c| !is_part(c)).filter(|word| word.starts_with("--") && word.len() > 2);
    words.map(str::to_owned).collect()
}

/// The words in a text that are names of variables.
fn variables(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    let is_variable = |word: &&str| {
        ["SF_", "SFDX_", "SSL_"].iter().any(|start| word.starts_with(start))
            || word.ends_with("_PROXY")
    };
    let printed = ["SF_ACCESS_TOKEN", "SF_ORG_INSTANCE_URL"];
    words.filter(is_variable).filter(|word| !printed.contains(word)).map(str::to_owned).collect()
}

/// What comes between a text and the next quote in the source, for each place where it is.
fn quoted_after(start: &str) -> BTreeSet<String> {
    let rest = SOURCE.split(start).skip(1);
    rest.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

/// The options that the parser takes.
fn parsed_options() -> BTreeSet<String> {
    quoted_after("Long(\"").into_iter().map(|name| format!("--{name}")).collect()
}

/// The first cells of the README's tables, and the rest of their rows.
fn option_rows() -> Vec<(String, String)> {
    let readme = project_file("README.md");
    let (_, options) = readme.split_once("\n## Options\n").expect("a section on options");
    let options = options.split("\n## ").next().unwrap_or_default();
    let rows = options.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split_once(" | "));
    cells.map(|(first, rest)| (first.to_owned(), rest.to_owned())).collect()
}

#[test]
fn help_lists_exactly_the_options_that_the_parser_takes() {
    let help = help();
    let lines = help.lines().filter(|line| line.trim_start().starts_with('-'));
    let listed = lines.flat_map(|line| long_options(line.trim_start())).collect::<BTreeSet<_>>();
    assert_eq!(listed, parsed_options());
    assert_eq!(listed, long_options(&help), "help speaks of an option that it does not list");
}

#[test]
fn the_readme_lists_exactly_the_options_that_the_parser_takes() {
    let rows = option_rows();
    let options = rows.iter().filter(|(first, _)| first.starts_with("`-"));
    let listed = options.flat_map(|(first, _)| long_options(first)).collect::<BTreeSet<_>>();
    assert_eq!(listed, parsed_options());
}

#[test]
fn help_and_readme_give_the_same_short_options_as_the_parser() {
    let parsed = SOURCE.split("Short('").skip(1).filter_map(|rest| {
        let (short, rest) = rest.split_once("') | Long(\"")?;
        let (long, _) = rest.split_once('"')?;
        Some(format!("-{short}, --{long}"))
    });
    let (help, rows) = (help(), option_rows());
    let mut count = 0;
    for pair in parsed {
        assert!(help.contains(&format!("  {pair} ")), "{pair} is not in the help");
        let in_row = rows.iter().any(|(first, _)| {
            first.strip_prefix(&format!("`{pair}")).is_some_and(|rest| rest.starts_with(['`', ' ']))
        });
        assert!(in_row, "{pair} is not in the README");
        count += 1;
    }
    assert_eq!(count, SOURCE.matches("Short('").count(), "a short option without a long one");
}

#[test]
fn help_and_readme_name_every_variable_that_is_read() {
    let read: BTreeSet<_> = variables(SOURCE);
    assert!(read.len() >= 8, "{read:?}");
    assert_eq!(variables(&help()), read);
    let rows = option_rows().into_iter().map(|(first, rest)| format!("{first} {rest}"));
    assert_eq!(rows.flat_map(|row| variables(&row)).collect::<BTreeSet<_>>(), read);
}

#[test]
fn help_and_readme_tell_every_exit_status() {
    let (help, readme) = (help(), project_file("README.md"));
    for status in 0..=6 {
        assert!(help.contains(&format!("\n  {status}  ")), "{status} is not in the help");
        assert!(readme.contains(&format!("\n| {status} | ")), "{status} is not in the README");
    }
}

#[test]
fn the_readme_names_the_version_of_rust_and_the_licence_that_the_manifest_has() {
    let (readme, manifest) = (project_file("README.md"), project_file("Cargo.toml"));
    let value = |name: &str| {
        let line = manifest.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")));
        line.and_then(|rest| rest.split('"').next()).expect("a value").to_owned()
    };
    assert!(readme.contains(&format!("Rust {}", value("rust-version"))));
    for licence in value("license").split(" OR ") {
        let name = licence.split('-').next().unwrap_or_default().to_uppercase();
        project_file(&format!("LICENSE-{name}"));
    }
}

#[test]
fn no_crate_comes_into_the_binary_unseen() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "-e", "normal", "--prefix", "none"])
        .args(["--format", "{p}", "--target", "x86_64-unknown-linux-musl"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo tree");
    let stderr = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "cargo tree: {stderr}");
    let text = String::from_utf8(tree.stdout).expect("UTF-8");
    let names: BTreeSet<_> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, BTreeSet::from(CRATES));
}

#[test]
fn the_manifest_asks_for_three_crates_and_for_one_more_in_tests() {
    let manifest = project_file("Cargo.toml");
    let names = |section: &str| {
        let (_, rest) = manifest.split_once(&format!("\n[{section}]\n")).expect("a section");
        let lines = rest.lines().take_while(|line| !line.starts_with('['));
        let names = lines.filter_map(|line| line.split_once(" = ").map(|(name, _)| name));
        names.filter(|name| !name.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names("dependencies"), ["lexopt", "serde_json", "ureq"]);
    assert_eq!(names("dev-dependencies"), ["rustls"]);
}
