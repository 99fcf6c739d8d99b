//! The command line: help, version, and what is wrong with arguments.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::harness::{Run, Scenario, TOKEN_FILE, TempDir, closed_pipe, full_device};
use crate::server::{CLIENT_ID, Config, OAuth};

#[test]
fn a_token_file_is_renewed_and_the_new_token_is_printed() {
    let scenario = Scenario::strict();
    let outcome = scenario.run(&[]);
    outcome.assert_ok().assert_sent(1).assert_says("OAuth2 authorization granted!");
    scenario.assert_in_step();
    outcome.assert_stdout(&format!("{}\n", scenario.member("access_token")));
}

#[test]
fn the_request_is_one_form_encoded_post_and_says_no_more_than_it_has_to() {
    let scenario = Scenario::strict();
    scenario.run(&[]).assert_ok().assert_sent(1);
    let request = scenario.server.last_request();
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("POST", "/services/oauth2/token")
    );
    assert_eq!(request.header("accept"), Some("application/json"));
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(request.header("authorization"), None);
    let names: Vec<_> = request.form().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["grant_type", "client_id", "refresh_token"]);
}

#[test]
fn help_goes_to_stdout_whatever_else_is_missing() {
    let dir = TempDir::new();
    for arguments in [&["-h"][..], &["--help"], &["-q", "--help", "--nonsense"], &["no-file", "-h"]]
    {
        let outcome = Run::new(&dir).args(arguments).run();
        outcome.assert_ok().assert_silent();
        let text = outcome.text();
        outcome.assert(text.starts_with("Usage: sf-refresh"), "no usage line");
        outcome.assert(text.lines().all(|line| line.chars().count() <= 80), "over 80 columns");
    }
}

#[test]
fn the_version_goes_to_stdout() {
    let dir = TempDir::new();
    for argument in ["-V", "--version"] {
        let outcome = Run::new(&dir).arg(argument).run();
        let version = concat!("sf-refresh ", env!("CARGO_PKG_VERSION"), "\n");
        outcome.assert_ok().assert_silent().assert_stdout(version);
    }
}

#[test]
fn help_that_cannot_be_written_fails_and_help_nobody_reads_does_not() {
    let dir = TempDir::new();
    let full = Run::new(&dir).arg("--help").stdout(full_device()).run();
    full.assert(full.status() != 0, "a full disk went unnoticed");
    Run::new(&dir).arg("--help").stdout(closed_pipe()).run().assert_ok();
}

#[test]
fn no_arguments_at_all_show_how_it_is_used() {
    let dir = TempDir::new();
    let outcome = Run::new(&dir).run();
    outcome.assert_failed(2).assert_says("missing FILE").assert_hints("sf-refresh -i");
}

#[test]
fn a_missing_client_id_is_told_with_where_to_find_one() {
    let scenario = Scenario::strict();
    let outcome = scenario.bare().args(["-e", &scenario.server.url(), TOKEN_FILE]).run();
    outcome.assert_failed_unsent(2).assert_says("missing client id");
    outcome.assert_hints("--client-id").assert_hints("SF_CLIENT_ID");
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let scenario = Scenario::strict();
    let run = scenario.bare().args(["-e", &scenario.server.url(), TOKEN_FILE]);
    let run = run.env("SF_CLIENT_ID", "").env("SF_CLIENT_SECRET", "").env("SF_TOKEN_ENDPOINT", "");
    let run = run.env("SFDX_AUTH_URL", "").env("SSL_CERT_FILE", "").env("HTTPS_PROXY", "");
    run.run().assert_failed_unsent(2).assert_says("missing client id");
}

#[test]
fn a_client_id_comes_from_the_environment_and_an_option_beats_it() {
    let scenario = Scenario::strict();
    let by_environment = scenario.bare().env("SF_CLIENT_ID", CLIENT_ID);
    by_environment.args(["-e", &scenario.server.url(), TOKEN_FILE]).run().assert_ok();
    let by_both = scenario.command().env("SF_CLIENT_ID", "another").arg(TOKEN_FILE);
    by_both.run().assert_ok();
    assert_eq!(scenario.server.last_request().field("client_id").as_deref(), Some(CLIENT_ID));
}

#[test]
fn a_wrong_file_name_is_told_with_the_name() {
    let scenario = Scenario::strict();
    let outcome = scenario.command().arg("tokem.json").run();
    outcome.assert_failed_unsent(1).assert_says("sf-refresh: tokem.json: ");
    outcome.assert_says("no such file").assert_hints("check the name");
}

#[test]
fn an_option_cut_short_is_answered_with_the_whole_one() {
    let scenario = Scenario::strict();
    let short = [
        ("--out", "--output"),
        ("--client", "--client-id"),
        ("--client-secret", "--client-secret-file"),
        ("--time", "--timeout"),
        ("--dry", "--dry-run"),
        ("--if-older", "--if-older-than"),
        ("--verbos", "--verbose"),
        ("--ca", "--ca-cert"),
        ("--sfdx-url", "--sfdx-url-file"),
        ("--dat", "--data"),
        ("--grant", "--grant-type"),
        ("--versio", "--version"),
    ];
    for (wrong, right) in short {
        let outcome = scenario.run(&[wrong]);
        outcome.assert_failed_unsent(2).assert_says(&format!("'{wrong}'"));
        outcome.assert_hints(&format!("'{right}'"));
    }
}

#[test]
fn an_option_like_no_other_is_answered_with_a_way_to_the_list() {
    let scenario = Scenario::strict();
    for wrong in ["--zzzzzzzz", "--ouput", "-x", "-Z", "--ö"] {
        let outcome = scenario.run(&[wrong]);
        outcome.assert_failed_unsent(2).assert_says(&format!("unknown option '{wrong}'"));
        outcome.assert_hints("--help").assert_says_not("did you mean");
    }
}

#[test]
fn an_option_that_takes_an_argument_says_so_where_none_is_left() {
    let dir = TempDir::new();
    let options = [
        "-i",
        "--client-id",
        "-s",
        "--client-secret-file",
        "-d",
        "--data",
        "-e",
        "--endpoint",
        "--sfdx-url-file",
        "--ca-cert",
        "--timeout",
        "--retry",
        "--if-older-than",
        "-o",
        "--output",
    ];
    for option in options {
        let outcome = Run::new(&dir).arg(option).run();
        let says = format!("missing argument for option '{option}'");
        outcome.assert_failed(2).assert_says(&says);
    }
}

#[test]
fn an_option_without_argument_refuses_one_and_does_not_show_it() {
    let scenario = Scenario::strict();
    let options = ["--basic", "--dry-run", "--quiet", "--verbose"];
    for option in options {
        let run = scenario.command().arg(format!("{option}=hunter2secret")).arg(TOKEN_FILE);
        let outcome = run.secret("hunter2secret").run();
        outcome.assert_failed_unsent(2).assert_says(&format!("option '{option}' takes no"));
    }
}

#[test]
fn a_secret_given_to_an_option_that_does_not_exist_is_not_shown() {
    let scenario = Scenario::strict();
    for option in ["--client-secret", "--refresh-token", "--password", "--secret"] {
        let run = scenario.command().arg(format!("{option}=hunter2secret")).arg(TOKEN_FILE);
        run.secret("hunter2secret").run().assert_failed_unsent(2).assert_says(option);
    }
}

#[test]
fn an_empty_argument_is_refused_by_the_name_of_its_option() {
    let scenario = Scenario::strict();
    let options = [
        "--client-id",
        "--data",
        "--endpoint",
        "--timeout",
        "--retry",
        "--if-older-than",
        "--output",
    ];
    for option in options {
        let outcome = scenario.run(&[option, ""]);
        outcome.assert_failed_unsent(2).assert_says(option);
    }
}

#[test]
fn arguments_and_variables_that_are_not_utf_8_are_refused() {
    let scenario = Scenario::strict();
    let garbage = OsStr::from_bytes(b"\xff\xfe\xfd");
    for option in ["-i", "-e", "-d", "-o", "--timeout", "--retry", "--if-older-than"] {
        let outcome =
            scenario.command().args([option.as_ref(), garbage, TOKEN_FILE.as_ref()]).run();
        outcome.assert_failed_unsent(2);
    }
    for name in ["SF_CLIENT_ID", "SF_CLIENT_SECRET", "SF_TOKEN_ENDPOINT", "SFDX_AUTH_URL"] {
        let outcome = scenario.bare().env(name, garbage).arg(TOKEN_FILE).run();
        outcome.assert_failed_unsent(2).assert_says(name);
    }
}

#[test]
fn a_file_whose_name_is_not_utf_8_is_renewed() {
    let scenario = Scenario::strict();
    let name = OsStr::from_bytes(b"t\xffken.json");
    std::fs::rename(scenario.file(), scenario.dir.join(name)).expect("to rename");
    scenario.command().arg(name).run().assert_ok().assert_sent(1);
    let renewed = scenario.dir.json(name);
    assert_eq!(renewed["access_token"].as_str(), scenario.server.live().access_token.as_deref());
}

#[test]
fn a_file_name_with_control_characters_is_shown_without_them() {
    let scenario = Scenario::strict();
    let name = "a\x1b[31m\nsf-refresh: b\u{202e}.json";
    scenario.command().arg(name).run().assert_failed_unsent(1);
    std::fs::rename(scenario.file(), scenario.dir.join(name)).expect("to rename");
    scenario.command().args(["-v", name]).run().assert_ok();
}

#[test]
fn options_may_stand_anywhere_and_be_joined() {
    let scenario = Scenario::with(Config::oauth(OAuth::default()));
    let url = scenario.server.url();
    let spellings: [&[&str]; 6] = [
        &[TOKEN_FILE, "-qo", "none", "-i", CLIENT_ID, "-e", &url],
        &["-qonone", TOKEN_FILE, "--client-id", CLIENT_ID, "--endpoint", &url],
        &["-q", "-o=none", "-i", CLIENT_ID, TOKEN_FILE, "-e", &url],
        &["--quiet", "--output=none", &format!("-i{CLIENT_ID}"), &format!("-e{url}"), TOKEN_FILE],
        &[&format!("--client-id={CLIENT_ID}"), &format!("--endpoint={url}"), "-qonone", TOKEN_FILE],
        &["-i", CLIENT_ID, "-e", &url, "-q", "-o", "none", "--", TOKEN_FILE],
    ];
    for arguments in spellings {
        let outcome = scenario.bare().args(arguments).run();
        outcome.assert_ok().assert_sent(1).assert_silent().assert_stdout("");
    }
    scenario.assert_in_step();
}

#[test]
fn a_file_that_looks_like_an_option_stands_after_two_dashes() {
    let scenario = Scenario::strict();
    std::fs::rename(scenario.file(), scenario.dir.join("-x.json")).expect("to rename");
    scenario.command().args(["--", "-x.json"]).run().assert_ok().assert_sent(1);
}

#[test]
fn an_option_given_twice_counts_as_it_stands_last() {
    let scenario = Scenario::strict();
    let run =
        scenario.command().args(["-i", "wrong", "-o", "none", "-i", CLIENT_ID, "-o", "token"]);
    run.arg(TOKEN_FILE).run().assert_ok();
    scenario.assert_in_step();
}

#[test]
fn a_stderr_that_cannot_be_written_stops_nothing() {
    let scenario = Scenario::strict();
    let run = scenario.command().args(["-v", TOKEN_FILE]);
    let outcome = run.through(&["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"]).run();
    outcome.assert_ok().assert_sent(1);
    scenario.assert_in_step();
}
