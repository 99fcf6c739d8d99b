//! Signals: before the request they end a run at once, during it they wait until the grant is saved.

use std::net::TcpListener;
use std::time::Duration;

use crate::harness::{OLD_ACCESS_TOKEN, Run, Scenario, TOKEN_FILE, TempDir, token_document};
use crate::server::{CLIENT_ID, Config, OAuth, Reply};

const HUP: i32 = 1;
const INT: i32 = 2;
const QUIT: i32 = 3;
const TERM: i32 = 15;

/// The signals that a run notes while it waits for an answer.
const NOTED: [i32; 3] = [HUP, INT, TERM];

const FILES: [&str; 3] = ["a.json", "b.json", "c.json"];

/// A shell that ignores the noted signals, and becomes the run.
const IGNORING: [&str; 4] = ["/bin/sh", "-c", "trap '' HUP INT TERM; exec \"$@\"", "sh"];

/// Three token files, and an endpoint with a grant for each.
fn three_files() -> Scenario {
    let grants = [1, 2, 3].map(|n| Reply::grant(&format!("AT-new-{n}"), None));
    let scenario = Scenario::scripted(grants);
    for name in FILES {
        scenario.dir.write(name, token_document());
    }
    scenario
}

/// The access tokens in the three files.
fn access_tokens(scenario: &Scenario) -> [String; 3] {
    FILES.map(|name| {
        scenario.dir.json(name)["access_token"].as_str().expect("an access token").to_owned()
    })
}

// ---- While the endpoint thinks ----

#[test]
fn a_stop_while_the_endpoint_thinks_costs_no_grant() {
    for signals in [&[TERM][..], &[INT], &[HUP], &[TERM, TERM], &[INT, INT, HUP, TERM]] {
        let scenario = Scenario::strict();
        let run = scenario.command().arg(TOKEN_FILE);
        let outcome = scenario.while_thinking(1, run, |run| {
            signals.iter().for_each(|signal| run.signal(*signal));
        });
        // Nothing was left to do, so that it ends as it would have.
        outcome.assert_ok().assert_stdout(&format!("{}\n", scenario.member("access_token")));
        scenario.assert_in_step();
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn a_stop_costs_no_grant_in_a_file_that_is_saved_in_place() {
    for signal in NOTED {
        let scenario = Scenario::strict();
        let other = scenario.dir.join("other.json");
        std::fs::hard_link(scenario.file(), &other).expect("a hard link");
        let run = scenario.command().arg(TOKEN_FILE);
        let outcome = scenario.while_thinking(1, run, |run| run.signal(signal));
        outcome.assert_ok();
        scenario.assert_in_step();
        assert_eq!(scenario.dir.names(), ["other.json", TOKEN_FILE]);
    }
}

#[test]
fn a_stop_among_three_files_finishes_the_one_under_way() {
    for signal in NOTED {
        let scenario = three_files();
        let run = scenario.command().args(FILES);
        let outcome = scenario.while_thinking(2, run, |run| run.signal(signal));
        outcome.assert_status(128 + signal).assert_sent(2).assert_stdout("AT-new-1\nAT-new-2\n");
        assert_eq!(access_tokens(&scenario), ["AT-new-1", "AT-new-2", OLD_ACCESS_TOKEN]);
        assert_eq!(scenario.dir.names(), [&FILES[..], &[TOKEN_FILE]].concat());
    }
}

#[test]
fn the_last_of_three_files_leaves_nothing_to_do() {
    let scenario = three_files();
    let run = scenario.command().args(FILES);
    let outcome = scenario.while_thinking(3, run, |run| run.signal(TERM));
    outcome.assert_ok().assert_sent(3);
    assert_eq!(access_tokens(&scenario), ["AT-new-1", "AT-new-2", "AT-new-3"]);
}

#[test]
fn what_was_ignored_before_stays_ignored() {
    for signal in NOTED {
        let scenario = three_files();
        let run = scenario.command().args(FILES).through(&IGNORING);
        let outcome = scenario.while_thinking(2, run, |run| run.signal(signal));
        outcome.assert_ok().assert_sent(3);
        assert_eq!(access_tokens(&scenario), ["AT-new-1", "AT-new-2", "AT-new-3"]);
    }
}

#[test]
fn a_filter_that_is_stopped_while_it_waits_prints_its_document() {
    for signal in NOTED {
        let scenario = Scenario::strict();
        let run = scenario.command().arg("-").stdin(token_document());
        let outcome = scenario.while_thinking(1, run, |run| run.signal(signal));
        outcome.assert_ok().assert_unchanged();
        let document: serde_json::Value = serde_json::from_slice(&outcome.stdout)
            .unwrap_or_else(|e| outcome.fail(&e.to_string()));
        let live = scenario.server.live().refresh_token;
        assert_eq!(document["refresh_token"].as_str(), live.as_deref());
    }
}

#[test]
fn a_stop_does_not_hide_what_the_server_refused() {
    let refused = Reply::error(400, "invalid_grant", "expired access/refresh token");
    let scenario = Scenario::scripted([refused]);
    let run = scenario.command().arg(TOKEN_FILE);
    let outcome = scenario.while_thinking(1, run, |run| run.signal(TERM));
    outcome.assert_failed(3).assert_says("invalid_grant");
}

#[test]
fn a_stop_ends_the_tries_once_nothing_was_processed() {
    for signal in NOTED {
        let busy = Reply::html(503).header("Retry-After", "0");
        let scenario = Scenario::scripted([busy, Reply::grant("AT-new-one", None)]);
        let run = scenario.command().arg(TOKEN_FILE);
        let outcome = scenario.while_thinking(1, run, |run| run.signal(signal));
        outcome.assert_failed(128 + signal).assert_sent(1);
    }
}

#[test]
fn quit_ends_a_run_at_once_and_the_next_run_renews() {
    // A quit leaves a core where the system takes one.
    let no_core = ["/bin/sh", "-c", "ulimit -c 0; exec \"$@\"", "sh"];
    let hung = Config::oauth(OAuth::default()).replies([Reply::hang()]);
    let scenario = Scenario::with(hung);
    let mut run = scenario.command().arg(TOKEN_FILE).through(&no_core).start();
    scenario.wait_for_posts(1);
    run.signal(QUIT);
    run.wait().assert_ended_by(QUIT);
    assert_eq!(scenario.dir.read(TOKEN_FILE), token_document().as_bytes());
    scenario.run(&[]).assert_ok();
    scenario.assert_in_step();
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

// ---- Before the request ----

#[test]
fn a_stop_while_it_waits_for_the_lock_ends_it_at_once() {
    for signal in NOTED {
        let scenario = Scenario::strict();
        let held = std::fs::File::open(scenario.file()).expect("the file");
        held.lock().expect("the lock");
        let mut run = scenario.command().args(["-v", TOKEN_FILE]).start();
        run.wait_for("waiting for another run");
        run.signal(signal);
        run.wait().assert_ended_by(signal).assert_sent(0).assert_unchanged();
    }
}

#[test]
fn a_stop_while_it_connects_ends_it_at_once_and_leaves_nothing() {
    // The kernel accepts for it, and nobody ever says hello.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}/token", listener.local_addr().expect("address"));
    for signal in NOTED {
        let dir = TempDir::new();
        dir.write(TOKEN_FILE, token_document());
        let mut run = Run::new(&dir).args(["-i", CLIENT_ID, "-e", &url, TOKEN_FILE]).start();
        let connection = listener.accept().expect("a connection");
        run.signal(signal);
        run.wait().assert_ended_by(signal).assert_unchanged();
        drop(connection);
    }
}

#[test]
fn a_stop_between_two_tries_ends_it_and_leaves_the_file_as_it_was() {
    for signal in NOTED {
        let busy = Reply::html(503).header("Retry-After", "50");
        let scenario = Scenario::scripted([busy]);
        let mut run = scenario.command().args(["-v", "--timeout", "60", TOKEN_FILE]).start();
        run.wait_for("HTTP 503");
        let start = std::time::Instant::now();
        run.signal(signal);
        let outcome = run.wait();
        let waited = start.elapsed() > Duration::from_secs(45);
        outcome.assert(!waited, "it waited on").assert_sent(1).assert_unchanged();
        outcome.assert(outcome.status() != 0, "it ended as if all were well");
    }
}
