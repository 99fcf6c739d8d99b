//! What stdout and stderr get, and what happens where stdout cannot be written.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{
    NOBODY, OLD_ACCESS_TOKEN, Outcome, Scenario, TOKEN_FILE, closed_pipe, full_device, is_root,
    now_millis, token_document,
};
use crate::server::{CLIENT_ID, REFRESH_TOKEN, Reply};

/// A grant with this instance URL.
fn grant_at(instance_url: &str) -> Reply {
    let body = json!({ "access_token": "AT-'$(id)`id`\\n\"!~ ", "instance_url": instance_url });
    Reply::json(200, body.to_string())
}

// ---- Formats ----

#[test]
fn the_token_alone_is_printed_unless_told_otherwise() {
    let scenario = Scenario::scripted([Reply::grant("AT-new-one", None)]);
    scenario.run(&[]).assert_ok().assert_stdout("AT-new-one\n");
    scenario.run(&["-o", "token"]).assert_ok().assert_stdout("AT-new-one\n");
}

#[test]
fn a_header_is_printed_that_curl_can_take() {
    let scenario = Scenario::scripted([Reply::grant("AT-new-one", None)]);
    let outcome = scenario.run(&["-o", "header"]);
    outcome.assert_ok().assert_stdout("Authorization: Bearer AT-new-one\n");
}

#[test]
fn the_document_is_printed_as_it_is_saved() {
    let scenario = Scenario::strict();
    let outcome = scenario.run(&["-o", "json"]);
    outcome.assert_ok();
    assert_eq!(outcome.stdout, scenario.dir.read(TOKEN_FILE));
    scenario.assert_in_step();
}

#[test]
fn nothing_is_printed_where_nothing_is_wanted() {
    let scenario = Scenario::strict();
    scenario.run(&["-o", "none"]).assert_ok().assert_stdout("");
    scenario.assert_in_step();
}

#[test]
fn shell_assignments_are_printed_for_token_and_instance() {
    let scenario = Scenario::scripted([Reply::grant("AT-new-one", None)]);
    let outcome = scenario.run(&["-o", "env"]);
    outcome.assert_ok().assert_stdout(
        "SF_ACCESS_TOKEN='AT-new-one'\nSF_ORG_INSTANCE_URL='https://example.my.salesforce.com'\n",
    );
}

#[test]
fn shell_assignments_survive_every_character_and_run_none() {
    let urls = [
        "https://x.test",
        "it's 'quoted'",
        "'; touch pwned; '",
        "$(touch pwned)`touch pwned`${HOME}",
        "back\\slash \" double",
        "two\nlines\n",
        "tab\t and \u{1} control é😀",
        "",
    ];
    for url in urls {
        let scenario = Scenario::scripted([grant_at(url)]);
        let outcome = scenario.run(&["-o", "env"]);
        outcome.assert_ok();
        let script = r#"eval "$1"; printf '%s|%s' "$SF_ACCESS_TOKEN" "$SF_ORG_INSTANCE_URL""#;
        let shell = Command::new("sh")
            .args(["-c", script, "sh", &outcome.text()])
            .current_dir(scenario.dir.path())
            .output()
            .expect("a shell");
        let read = String::from_utf8(shell.stdout).expect("UTF-8");
        assert_eq!(read, format!("AT-'$(id)`id`\\n\"!~ |{url}"));
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn an_instance_that_is_not_known_is_an_empty_variable() {
    for member in ["", r#","instance_url":null"#, r#","instance_url":17"#] {
        let reply = Reply::json(200, format!(r#"{{"access_token":"AT-new-one"{member}}}"#));
        let scenario = Scenario::scripted([reply]).token(r#"{"refresh_token":"an-old-rt"}"#);
        let outcome = scenario.run(&["-o", "env"]);
        let expected = "SF_ACCESS_TOKEN='AT-new-one'\nSF_ORG_INSTANCE_URL=''\n";
        outcome.assert_ok().assert_stdout(expected);
    }
}

// ---- What is said ----

#[test]
fn success_says_which_file_was_saved_on_one_line() {
    let scenario = Scenario::strict();
    let outcome = scenario.run(&[]);
    let lines: Vec<_> = outcome.stderr.lines().collect();
    outcome.assert(lines.len() == 1, "not one line");
    outcome.assert_says("sf-refresh: token.json: OAuth2 authorization granted! saved");
}

#[test]
fn quiet_says_nothing_but_errors() {
    let scenario = Scenario::scripted([
        Reply::grant("AT-new-one", None),
        Reply::error(400, "invalid_grant", "expired access/refresh token"),
    ]);
    scenario.run(&["-q"]).assert_ok().assert_silent().assert_stdout("AT-new-one\n");
    let outcome = scenario.run(&["--quiet"]);
    outcome.assert_failed(3).assert_says("invalid_grant").assert_hints("log in again");
}

#[test]
fn verbose_says_each_step_and_no_secret() {
    let scenario = Scenario::strict();
    let run = scenario.command().env("SF_CLIENT_SECRET", "a-client-secret");
    let refused = run.args(["-v", TOKEN_FILE]).run();
    refused.assert_failed(5).assert_says(&format!("POST {}", scenario.server.url()));
    for verbose in ["-v", "--verbose"] {
        let outcome = scenario.run(&[verbose]);
        outcome.assert_ok().assert_says(&format!("POST {}", scenario.server.url()));
        outcome.assert(outcome.stderr.lines().count() > 3, "fewer steps than a run has");
        let address = format!("sf-refresh: connected to {}", scenario.server.address());
        let names_file = |line: &&str| line.starts_with("sf-refresh: token.json: ");
        let others: Vec<_> = outcome.stderr.lines().filter(|line| !names_file(line)).collect();
        outcome.assert(others == [address], "a step without its file, or no address");
    }
}

#[test]
fn a_failure_prints_nothing_on_stdout_in_any_format() {
    for format in ["token", "header", "env", "json", "none"] {
        let scenario = Scenario::scripted([Reply::error(400, "invalid_grant", "expired")]);
        scenario.run(&["-o", format]).assert_failed(3);
    }
}

// ---- Filter ----

/// A filter run that gets this on stdin.
#[track_caller]
fn filter(scenario: &Scenario, stdin: &str, options: &[&str]) -> Outcome {
    scenario.command().args(options).arg("-").stdin(stdin).run()
}

/// The document on stdout.
fn printed(outcome: &Outcome) -> Value {
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|e| outcome.fail(&e.to_string()))
}

#[test]
fn a_filter_reads_a_document_and_prints_the_renewed_one() {
    let scenario = Scenario::strict();
    for options in [&[][..], &["-o", "json"]] {
        let live = scenario.server.live().refresh_token.expect("a live token");
        let stdin = format!("\u{FEFF}{}", token_document().replace(REFRESH_TOKEN, &live));
        let outcome = filter(&scenario, &stdin, options);
        outcome.assert_ok().assert_sent(1).assert_unchanged();
        outcome.assert_says("OAuth2 authorization granted!");
        let document = printed(&outcome);
        let token = |name: &str| document[name].as_str().map(str::to_owned);
        assert_eq!(token("access_token"), scenario.server.live().access_token);
        assert_eq!(token("refresh_token"), scenario.server.live().refresh_token);
        assert_eq!(outcome.text(), format!("{document:#}\n"));
    }
}

#[test]
fn a_filter_is_quiet_where_that_is_wanted() {
    let scenario = Scenario::strict();
    filter(&scenario, &token_document(), &["-q"]).assert_ok().assert_silent();
}

#[test]
fn a_filter_does_not_hide_its_document_behind_another_format() {
    let scenario = Scenario::strict();
    for format in ["token", "header", "env", "none"] {
        let outcome = filter(&scenario, &token_document(), &["-o", format]);
        outcome.assert_failed_unsent(2).assert_says("'-'");
    }
}

#[test]
fn a_filter_stands_alone() {
    let scenario = Scenario::strict();
    for files in [&["-", TOKEN_FILE][..], &[TOKEN_FILE, "-"], &["-", "-"]] {
        let outcome = scenario.command().args(files).stdin(token_document()).run();
        outcome.assert_failed_unsent(2).assert_says("'-' cannot be combined");
    }
}

#[test]
fn a_filter_refuses_what_is_no_token_document() {
    let scenario = Scenario::strict();
    let large = " ".repeat((1 << 20) + 1);
    for stdin in
        ["", "\n", "\u{FEFF}", "{}", "[]", "no document", r#"{"refresh_token":""}"#, &large]
    {
        filter(&scenario, stdin, &[]).assert_failed_unsent(1).assert_says("sf-refresh: -: ");
    }
}

#[test]
fn a_filter_prints_nothing_where_the_server_refuses() {
    let scenario = Scenario::scripted([Reply::error(400, "invalid_grant", "expired")]);
    filter(&scenario, &token_document(), &[]).assert_failed(3).assert_sent(1);
}

#[test]
fn a_filter_passes_a_young_token_on() {
    let scenario = Scenario::strict();
    let document = token_document().replace("1700000000000", &now_millis().to_string());
    let outcome = filter(&scenario, &document, &["--if-older-than", "1h"]);
    outcome.assert_ok().assert_sent(0).assert_stdout(&document);
    // There is no file whose age could stand in.
    let outcome = filter(&scenario, &token_document(), &["--if-older-than", "1h"]);
    outcome.assert_ok().assert_sent(1);
}

#[test]
fn a_dry_filter_shows_the_request_and_sends_nothing() {
    let scenario = Scenario::strict();
    let outcome = filter(&scenario, &token_document(), &["-n"]);
    outcome.assert_ok().assert_sent(0).assert_stdout("").assert_says("refresh_token=***");
}

#[test]
fn a_file_named_like_a_filter_is_reached_by_its_folder() {
    let scenario = Scenario::strict();
    fs::rename(scenario.file(), scenario.dir.join("-")).expect("to rename");
    scenario.command().arg("./-").run().assert_ok().assert_sent(1).assert_says("sf-refresh: ./-: ");
    let token = scenario.dir.json("-")["access_token"].as_str().map(str::to_owned);
    assert_eq!(token, scenario.server.live().access_token);
}

// ---- stdout that fails ----

#[test]
fn a_full_disk_behind_stdout_is_told_and_the_file_is_saved() {
    for format in ["token", "header", "env", "json"] {
        let scenario = Scenario::strict();
        let run = scenario.command().args(["-o", format, TOKEN_FILE]);
        let outcome = run.stdout(full_device()).run();
        outcome.assert_status(6).assert_says("cannot write to stdout");
        outcome.assert_says("saved");
        scenario.assert_in_step();
    }
    let scenario = Scenario::strict();
    scenario.command().args(["-onone", TOKEN_FILE]).stdout(full_device()).run().assert_ok();
}

#[test]
fn a_reader_that_has_gone_away_is_no_failure_once_the_file_is_saved() {
    for format in ["token", "json"] {
        let scenario = Scenario::strict();
        let run = scenario.command().args(["-o", format, TOKEN_FILE]);
        run.stdout(closed_pipe()).run().assert_ok().assert_says("granted!");
        scenario.assert_in_step();
    }
}

#[test]
fn a_stdout_that_is_not_there_harms_no_file() {
    let scenario = Scenario::strict();
    let run = scenario.command().arg(TOKEN_FILE);
    let outcome = run.through(&["/bin/sh", "-c", "exec \"$@\" >&-", "sh"]).run();
    outcome.assert_ok().assert_sent(1);
    scenario.assert_in_step();
    // No file that a run opens may get the number of the one that is missing.
    scenario
        .command()
        .args(["-v", TOKEN_FILE])
        .through(&["/bin/sh", "-c", "exec \"$@\" 2>&-", "sh"])
        .run()
        .assert_ok();
    scenario.assert_in_step();
    let run = scenario.command().args(["-v", TOKEN_FILE]);
    run.through(&["/bin/sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"]).run().assert_ok();
    scenario.assert_in_step();
}

#[test]
fn a_young_token_that_cannot_be_printed_is_told() {
    let document = token_document().replace("1700000000000", &now_millis().to_string());
    let scenario = Scenario::strict().token(document);
    let run = || scenario.command().args(["--if-older-than", "1h", TOKEN_FILE]);
    run().stdout(full_device()).run().assert_status(6).assert_sent(0).assert_unchanged();
    run().stdout(closed_pipe()).run().assert_ok().assert_sent(0).assert_unchanged();
}

/// The one file that is in the folder beside the token file, with its document.
fn rescued(scenario: &Scenario, outcome: &Outcome) -> Value {
    let names = scenario.dir.names();
    let names: Vec<_> = names.iter().filter(|name| *name != TOKEN_FILE).collect();
    let [name] = names[..] else { outcome.fail(&format!("not one new file: {names:?}")) };
    outcome.assert_says(name);
    let mode = fs::metadata(scenario.dir.join(name)).expect("file").mode() & 0o7777;
    assert_eq!(mode, 0o600);
    scenario.dir.json(name)
}

/// The one new file of this run holds what was granted.
#[track_caller]
fn assert_rescued(scenario: &Scenario, outcome: &Outcome) {
    outcome.assert_status(6).assert_sent(1);
    let document = rescued(scenario, outcome);
    let token = |name: &str| document[name].as_str().map(str::to_owned);
    assert_eq!(token("access_token"), scenario.server.live().access_token);
    assert_eq!(token("refresh_token"), scenario.server.live().refresh_token);
}

#[test]
fn a_filter_whose_reader_has_gone_away_rescues_the_grant_into_a_file() {
    let scenario = Scenario::strict();
    let run = scenario.command().arg("-").stdin(token_document());
    assert_rescued(&scenario, &run.stdout(closed_pipe()).run());
}

#[test]
fn a_filter_before_a_full_disk_loses_nothing() {
    let scenario = Scenario::strict();
    let run = scenario.command().arg("-").stdin(token_document());
    let outcome = run.stdout(full_device()).run();
    // A device that is full already may say so before it is needed.
    if outcome.status() == 2 {
        outcome.assert_failed_unsent(2).assert_says("no space");
    } else {
        assert_rescued(&scenario, &outcome);
    }
}

#[test]
fn a_filter_whose_stdout_can_take_nothing_says_so_before_it_asks() {
    let scenario = Scenario::strict();
    let filter = || scenario.command().arg("-").stdin(token_document());
    let null = fs::OpenOptions::new().write(true).open("/dev/null").expect("/dev/null");
    let read_only = fs::File::open(scenario.file()).expect("a file");
    for stdout in [null, read_only] {
        filter().stdout(stdout).run().assert_failed_unsent(2).assert_says("stdout");
    }
    let closed = filter().through(&["/bin/sh", "-c", "exec \"$@\" >&-", "sh"]);
    closed.run().assert_failed_unsent(2).assert_says("stdout");
}

#[test]
fn a_filter_that_can_put_the_grant_nowhere_says_so() {
    if !is_root("a folder of another user") {
        return;
    }
    let scenario = Scenario::strict();
    let run = scenario.command().arg("-").stdin(token_document()).stdout(closed_pipe());
    let outcome = run.env("TMPDIR", "/nonexistent").user(NOBODY).run();
    outcome.assert_status(6).assert_sent(1).assert_unchanged().assert_hints("log in again");
}

#[test]
fn the_old_access_token_is_not_printed_once_there_is_a_new_one() {
    for format in ["token", "header", "env", "json"] {
        let scenario = Scenario::scripted([Reply::grant("AT-new-one", None)]);
        let outcome = scenario.run(&["-o", format, "-i", CLIENT_ID]);
        outcome.assert_ok();
        outcome.assert(!outcome.text().contains(OLD_ACCESS_TOKEN), "the old token");
    }
}
