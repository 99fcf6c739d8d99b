//! What help, README and the code say about each other, and which crates are in the binary.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use crate::harness::{Run, Scenario, TOKEN_FILE, TempDir};
use crate::server::CLIENT_ID;

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

/// The options that the help lists, each as it is written there: `-s, --long` or `--long`.
fn listed_options() -> Vec<String> {
    let help = help();
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let name = |line: &str| {
        let mut words = line.split(' ');
        let first = words.next().unwrap_or_default();
        match first.ends_with(',') {
            true => format!("{first} {}", words.next().unwrap_or_default()),
            false => first.to_owned(),
        }
    };
    lines.map(name).collect()
}

/// Whether the parser knows an option of this name.
fn is_known(option: &str) -> bool {
    let dir = TempDir::new();
    !Run::new(&dir).arg(option).run().stderr.contains("unknown option")
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
fn the_parser_takes_every_option_in_the_help_and_no_other_letter() {
    let listed = listed_options();
    assert!(listed.len() >= 16, "{listed:?}");
    let words: BTreeSet<_> = listed.iter().flat_map(|option| option.split(", ")).collect();
    for word in &words {
        assert!(is_known(word), "{word} is in the help alone");
    }
    for letter in ('a'..='z').chain('A'..='Z').chain('0'..='9') {
        let option = format!("-{letter}");
        let in_help = words.contains(&&*option);
        assert_eq!(is_known(&option), in_help, "{option} in parser and help");
    }
    let long = words.iter().filter(|word| word.starts_with("--")).map(|word| (*word).to_owned());
    let spoken_of = long_options(&help());
    assert_eq!(spoken_of, long.collect(), "help speaks of an option that it does not list");
}

#[test]
fn the_readme_lists_exactly_the_options_of_the_help() {
    let rows = option_rows().into_iter().filter_map(|(first, _)| {
        let option = first.strip_prefix('`')?.split('`').next()?.to_owned();
        let words: Vec<_> = option.split(' ').take_while(|word| word.starts_with('-')).collect();
        (!words.is_empty()).then(|| words.join(" "))
    });
    assert_eq!(rows.collect::<BTreeSet<_>>(), listed_options().into_iter().collect());
}

#[test]
fn help_and_readme_name_the_same_variables_and_each_is_read() {
    let named = variables(&help());
    assert!(named.len() >= 8, "{named:?}");
    let rows = option_rows().into_iter().map(|(first, rest)| format!("{first} {rest}"));
    assert_eq!(rows.flat_map(|row| variables(&row)).collect::<BTreeSet<_>>(), named);
    // What NO_PROXY does is seen in the tests of proxies: no value of it is refused.
    for name in named.iter().filter(|name| *name != "NO_PROXY") {
        let scenario = Scenario::strict();
        let given: &[_] = if name == "SF_CLIENT_ID" { &[] } else { &["-i", CLIENT_ID] };
        let run = scenario.bare().env(name, OsStr::from_bytes(b"/no\xff")).args(given);
        run.arg(TOKEN_FILE).run().assert_failed_unsent(2).assert_says(name);
    }
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
fn the_readme_names_rust_version_and_licence_as_the_manifest_does() {
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
