//! Several runs on one token file: they wait for each other, and send nothing twice.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;

use crate::harness::{
    OLD_ACCESS_TOKEN, Outcome, Run, Running, Scenario, TOKEN_FILE, now_millis, token_document,
};
use crate::server::{CLIENT_ID, Config, OAuth, REFRESH_TOKEN, Reply};

const COUNT: usize = 20;

/// What a run that waits for another says with `-v`.
const WAITING: &str = "waiting for another run";

/// Starts so many runs at once, each with its number, and waits for them all.
#[track_caller]
fn all_at_once<'a>(run: impl Fn(usize) -> Run<'a>) -> Vec<Outcome> {
    let runs: Vec<_> = (0..COUNT).map(|number| run(number).start()).collect();
    runs.into_iter().map(Running::wait).collect()
}

/// Every run succeeded, and printed a token that was granted.
#[track_caller]
fn assert_all_served(scenario: &Scenario, outcomes: &[Outcome]) {
    let granted: HashSet<_> = scenario.server.access_tokens();
    for outcome in outcomes {
        outcome.assert_ok();
        let token = outcome.text().trim_end().to_owned();
        outcome.assert(granted.contains(&token), "printed a token that was not granted");
    }
    scenario.assert_in_step();
    assert!(!scenario.server.live().revoked);
    assert!(scenario.server.grants() <= outcomes.len());
}

#[test]
fn twenty_runs_at_once_are_all_served_and_no_refresh_token_is_used_twice() {
    let scenario = Scenario::strict();
    let outcomes = all_at_once(|_| scenario.command().arg(TOKEN_FILE));
    assert_all_served(&scenario, &outcomes);
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

/// Runs at once by the name of the token file and by another one are all served.
#[track_caller]
fn assert_both_names_are_served(scenario: &Scenario, other: &str) {
    let name = |number| if number % 2 == 0 { TOKEN_FILE } else { other };
    let outcomes = all_at_once(|number| scenario.command().arg(name(number)));
    assert_all_served(scenario, &outcomes);
    assert_eq!(scenario.dir.names(), [other, TOKEN_FILE]);
}

#[test]
fn runs_at_once_by_different_names_of_a_file_are_all_served() {
    let scenario = Scenario::strict();
    symlink(TOKEN_FILE, scenario.dir.join("link.json")).expect("a symlink");
    assert_both_names_are_served(&scenario, "link.json");
}

#[test]
fn runs_at_once_on_a_file_that_is_saved_in_place_are_all_served() {
    let scenario = Scenario::strict();
    fs::hard_link(scenario.file(), scenario.dir.join("other.json")).expect("a hard link");
    assert_both_names_are_served(&scenario, "other.json");
}

#[test]
fn runs_at_once_that_make_the_file_are_all_served() {
    let scenario = Scenario::strict();
    fs::remove_file(scenario.file()).expect("to remove the file");
    let url = format!("force://{CLIENT_ID}::{REFRESH_TOKEN}@x.test");
    let outcomes = all_at_once(|_| scenario.command().arg(TOKEN_FILE).env("SFDX_AUTH_URL", &url));
    assert_all_served(&scenario, &outcomes);
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn twenty_runs_at_once_that_mind_the_age_send_one_request() {
    let scenario = Scenario::strict();
    let run = |_| scenario.command().args(["--if-older-than", "1h", TOKEN_FILE]);
    for outcome in all_at_once(run) {
        outcome.assert_ok();
        assert_eq!(Some(outcome.text().trim_end()), scenario.server.live().access_token.as_deref());
    }
    assert_eq!(scenario.server.posts(), 1);
    scenario.assert_in_step();
}

// ---- A lock held ----

/// The token file, locked by the test.
fn locked(scenario: &Scenario) -> fs::File {
    let file = fs::File::options().read(true).write(true).open(scenario.file()).expect("file");
    file.lock().expect("the lock");
    file
}

#[test]
fn a_lock_that_is_held_beyond_the_time_out_is_a_temporary_failure() {
    let scenario = Scenario::strict();
    let _lock = locked(&scenario);
    let outcome = scenario.run(&["--timeout", "0.2"]);
    outcome.assert_failed_unsent(4).assert_says("holds the lock").assert_hints("--timeout");
    // Nor does a rehearsal go past it.
    scenario.run(&["--timeout", "0.2", "-n"]).assert_unchanged().assert_sent(0);
}

#[test]
fn a_lock_that_is_given_up_is_taken() {
    let scenario = Scenario::strict();
    let lock = locked(&scenario);
    let mut run = scenario.command().args(["-v", TOKEN_FILE]).start();
    run.wait_for(WAITING);
    drop(lock);
    run.wait().assert_ok().assert_sent(1);
    scenario.assert_in_step();
}

/// Starts a run whose request the endpoint holds, and one that waits for it.
#[track_caller]
fn one_behind_the_other(scenario: &Scenario) -> [Running<'_>; 2] {
    let start = || scenario.command().args(["-v", TOKEN_FILE]).start();
    scenario.server.hold_from(1);
    let first = start();
    scenario.wait_for_posts(1);
    let mut second = start();
    second.wait_for(WAITING);
    [first, second]
}

/// A grant of new tokens.
fn grant() -> Reply {
    Reply::grant("AT-new-one", Some("RT-new-one"))
}

#[test]
fn a_token_that_another_run_renewed_meanwhile_is_adopted() {
    let scenario = Scenario::scripted([grant(), Reply::html(404)]);
    let [first, second] = one_behind_the_other(&scenario);
    scenario.server.release();
    first.wait().assert_ok().assert_stdout("AT-new-one\n");
    let second = second.wait();
    second.assert_ok().assert_stdout("AT-new-one\n").assert_says("renewed by another run");
    assert_eq!(scenario.server.posts(), 1);
    assert_eq!(scenario.member("refresh_token"), "RT-new-one");
}

#[test]
fn a_run_that_waited_for_one_that_failed_asks_for_itself() {
    let scenario = Scenario::scripted([Reply::error(400, "invalid_client_id", ""), grant()]);
    let [first, second] = one_behind_the_other(&scenario);
    scenario.server.release();
    first.wait().assert_status(5);
    second.wait().assert_ok().assert_stdout("AT-new-one\n");
    assert_eq!(scenario.server.posts(), 2);
}

#[test]
fn the_death_of_a_run_frees_the_file() {
    let scenario = Scenario::scripted([Reply::hang(), grant()]);
    let [first, second] = one_behind_the_other(&scenario);
    first.kill();
    scenario.server.release();
    second.wait().assert_ok().assert_stdout("AT-new-one\n");
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_file_put_in_place_while_a_run_waits_is_the_one_it_goes_on_with() {
    let scenario = Scenario::strict();
    let lock = locked(&scenario);
    let mut run = scenario.command().args(["-v", TOKEN_FILE]).start();
    run.wait_for(WAITING);
    let newer = token_document().replace(OLD_ACCESS_TOKEN, "AT-put-in-place");
    let next = scenario.dir.write("next", newer);
    fs::rename(next, scenario.file()).expect("to rename");
    drop(lock);
    let outcome = run.wait();
    outcome.assert_ok().assert_sent(0).assert_stdout("AT-put-in-place\n");
    assert_eq!(scenario.member("access_token"), "AT-put-in-place");
}

#[test]
fn a_file_put_in_place_with_the_same_access_token_is_the_one_renewed() {
    let scenario = Scenario::with(Config::oauth(OAuth::default().refresh_token("RT-put-in-place")));
    let lock = locked(&scenario);
    let mut run = scenario.command().args(["-v", TOKEN_FILE]).start();
    run.wait_for(WAITING);
    let next =
        scenario.dir.write("next", token_document().replace(REFRESH_TOKEN, "RT-put-in-place"));
    fs::rename(next, scenario.file()).expect("to rename");
    drop(lock);
    run.wait().assert_ok().assert_sent(1);
    scenario.assert_in_step();
}

#[test]
fn a_file_removed_while_a_run_waits_is_missed() {
    let scenario = Scenario::strict();
    let lock = locked(&scenario);
    let mut run = scenario.command().args(["-v", TOKEN_FILE]).start();
    run.wait_for(WAITING);
    fs::remove_file(scenario.file()).expect("to remove the file");
    drop(lock);
    run.wait().assert_status(1).assert_sent(0).assert_stdout("");
    assert!(scenario.dir.names().is_empty());
}

#[test]
fn a_lock_on_one_file_does_not_stop_the_others() {
    let scenario = Scenario::strict();
    scenario.dir.write("held.json", token_document());
    let held = fs::File::open(scenario.dir.join("held.json")).expect("file");
    held.lock().expect("the lock");
    let outcome = scenario.command().args(["--timeout", "0.5", "held.json", TOKEN_FILE]).run();
    outcome.assert_status(4).assert_sent(1).assert_says("held.json: another run holds the lock");
    scenario.assert_in_step();
}

#[test]
fn a_shared_lock_of_a_reader_is_waited_for_as_well() {
    let scenario = Scenario::strict();
    let reader = fs::File::open(scenario.file()).expect("file");
    reader.lock_shared().expect("the lock");
    scenario.run(&["--timeout", "0.2"]).assert_failed_unsent(4);
    drop(reader);
    scenario.run(&["--timeout", "30"]).assert_ok();
}

#[test]
fn runs_on_different_files_do_not_wait_for_each_other() {
    let scenario = Scenario::scripted([Reply::grant("AT-new-one", None)]);
    let now = now_millis().to_string();
    scenario.dir.write("other.json", token_document().replace("1700000000000", &now));
    let _lock = locked(&scenario);
    scenario.command().args(["-v", "other.json"]).run().assert_ok().assert_says_not(WAITING);
}
