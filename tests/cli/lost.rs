//! Answers that are lost after the request was sent: it is sent again, and told as it is.

use std::time::Duration;

use rustls::version::{TLS12, TLS13};

use crate::harness::{Outcome, Running, Scenario, TOKEN_FILE};
use crate::server::{Config, Framing, OAuth, Reply, Tls, certificate_path};

const MAY_HAVE_USED: &str = "the server may have used the refresh token";

/// A grant of new tokens.
fn grant() -> Reply {
    Reply::grant("AT-new-one", Some("RT-new-one"))
}

/// Each way in which an answer is lost.
fn losses() -> Vec<Reply> {
    let grant = r#"{"access_token":"AT-new-one","refresh_token":"RT-new-one"}"#;
    let half = &grant[..grant.len() - 4];
    let mut losses = vec![
        Reply::drop_before_reply(),
        Reply::reset_before_reply(),
        Reply::raw("HTTP/1.1 2"),
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Ty"),
        Reply::json(200, "").framing(Framing::TooLong(400)),
    ];
    let cut = [
        Framing::Length,
        Framing::CloseDelimited,
        Framing::CloseAbrupt,
        Framing::TooLong(9),
        Framing::ChunkedCut,
    ];
    losses.extend(cut.map(|framing| Reply::json(200, half).framing(framing)));
    losses
}

/// The new tokens are saved after so many requests.
#[track_caller]
fn assert_saved(scenario: &Scenario, outcome: &Outcome, sent: usize) {
    outcome.assert_ok().assert_sent(sent).assert_stdout("AT-new-one\n");
    assert_eq!(scenario.member("refresh_token"), "RT-new-one");
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_lost_answer_is_asked_for_again() {
    for loss in losses() {
        let scenario = Scenario::scripted([loss, grant()]);
        let outcome = scenario.run(&[]);
        assert_saved(&scenario, &outcome, 2);
        // Who stops it from here on knows what may have been lost.
        outcome.assert_says("may have used the refresh token, trying again");
    }
}

#[test]
fn a_grant_settles_the_answer_that_was_lost_before_it() {
    let rotated = Reply::json(200, r#"{"refresh_token":"RT-new-one"}"#);
    let scenario = Scenario::scripted([Reply::drop_before_reply(), rotated]);
    let outcome = scenario.run(&[]);
    outcome.assert_status(5).assert_sent(2).assert_says_not("an answer was lost");
    assert_eq!(scenario.member("refresh_token"), "RT-new-one");
}

#[test]
fn a_file_that_is_spoilt_after_a_lost_answer_is_not_said_to_be_all() {
    let scenario = Scenario::scripted([Reply::drop_before_reply()]);
    let run = scenario.command().arg(TOKEN_FILE);
    let spoil = |_: &mut Running<'_>| {
        std::fs::write(scenario.file(), "no token").expect("to write");
    };
    let outcome = scenario.while_thinking(1, run, spoil);
    // Status 1 would say that nothing was sent.
    outcome.assert_status(4).assert_sent(1).assert_says("an answer was lost");
}

#[test]
fn over_tls_it_is_asked_for_again_just_the_same() {
    let ca = certificate_path("ca");
    for version in [&TLS12, &TLS13] {
        for loss in losses() {
            let config = Config::scripted([loss, grant()]);
            let scenario = Scenario::with(config.tls(Tls::new("server").versions([version])));
            let outcome = scenario.run(&["--ca-cert", &ca.to_string_lossy()]);
            assert_saved(&scenario, &outcome, 2);
        }
    }
}

#[test]
fn without_a_retry_a_lost_answer_is_a_temporary_failure() {
    for loss in losses() {
        let scenario = Scenario::scripted([loss, grant()]);
        let outcome = scenario.run(&["--retry", "0"]);
        outcome.assert_failed(4).assert_sent(1).assert_says(MAY_HAVE_USED);
    }
}

#[test]
fn it_is_asked_for_again_as_often_as_told() {
    for retry in [1, 2] {
        let scenario = Scenario::scripted([Reply::drop_before_reply()]);
        let outcome = scenario.run(&["--retry", &retry.to_string()]);
        outcome.assert_failed(4).assert_sent(retry + 1).assert_says(MAY_HAVE_USED);
    }
}

#[test]
fn a_request_that_the_server_never_saw_works_the_second_time() {
    let config = Config::oauth(OAuth::default()).replies([Reply::drop_before_reply()]);
    let scenario = Scenario::with(config);
    scenario.run(&[]).assert_ok().assert_sent(2);
    scenario.assert_in_step();
}

#[test]
fn a_grace_period_gives_the_lost_grant_again() {
    let oauth = OAuth::default().lose_replies(1_usize).grace(Duration::from_secs(3600));
    let scenario = Scenario::with(Config::oauth(oauth));
    scenario.run(&[]).assert_ok().assert_sent(2);
    scenario.assert_in_step();
}

#[test]
fn without_a_grace_period_it_is_told_that_the_answer_was_lost() {
    let scenario = Scenario::with(Config::oauth(OAuth::default().lose_replies(1_usize)));
    let outcome = scenario.run(&[]);
    outcome.assert_failed(3).assert_sent(2).assert_says("invalid_grant").assert_says("lost");
    outcome.assert_hints("log in again");
    // No answer was lost here, and none is spoken of.
    scenario.run(&[]).assert_failed(3).assert_sent(1).assert_says_not("lost");
}

#[test]
fn a_busy_server_after_a_lost_answer_does_not_hide_the_loss() {
    let busy = || Reply::html(503).header("Retry-After", "0");
    let scenario = Scenario::scripted([Reply::drop_before_reply(), busy(), grant()]);
    assert_saved(&scenario, &scenario.run(&[]), 3);
    let scenario = Scenario::scripted([Reply::drop_before_reply(), busy()]);
    let outcome = scenario.run(&["--retry", "1"]);
    outcome.assert_failed(4).assert_sent(2).assert_says(MAY_HAVE_USED);
}

#[test]
fn a_busy_server_alone_has_used_nothing() {
    let scenario = Scenario::scripted([Reply::html(503).header("Retry-After", "0")]);
    scenario.run(&["--retry", "1"]).assert_failed(4).assert_sent(2).assert_says_not(MAY_HAVE_USED);
}

#[test]
fn a_filter_asks_again_as_well() {
    let scenario = Scenario::scripted([Reply::drop_before_reply(), grant()]);
    let outcome = scenario.command().arg("-").stdin(crate::harness::token_document()).run();
    outcome.assert_ok().assert_sent(2);
    outcome.assert(outcome.text().contains("RT-new-one"), "not the new document");
}

#[test]
fn an_answer_has_as_long_as_the_lock_had() {
    const TIMEOUT: Duration = Duration::from_secs(4);
    const MOST: Duration = Duration::from_secs(3);
    // On a busy machine a wait may take longer than it was meant to: then it is done again.
    let in_time = (0..5).any(|_| {
        let slow = Reply::grant("AT-new-one", Some("RT-new-one")).delay(MOST);
        let scenario = Scenario::scripted([slow]);
        let lock = std::fs::File::open(scenario.file()).expect("the file");
        lock.lock().expect("the lock");
        let limit = TIMEOUT.as_secs().to_string();
        let mut run = scenario.command().args(["-v", "--timeout", &limit, TOKEN_FILE]).start();
        run.wait_for("waiting for another run");
        std::thread::sleep(MOST);
        drop(lock);
        let outcome = run.wait();
        outcome.status() == 0 && outcome.sent == 1
    });
    assert!(in_time, "the time for the lock was taken from that for the answer");
}
