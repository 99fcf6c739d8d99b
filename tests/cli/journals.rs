//! Journals: the one of a run that lives, the ones that earlier runs left, and saving in place.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    NOBODY, Outcome, Scenario, TOKEN_FILE, is_root, set_age, set_mode, token_document,
};
use crate::server::{Config, OAuth, REFRESH_TOKEN, Reply};

const HOUR: Duration = Duration::from_secs(3600);
const ITS_REFRESH_TOKEN: &str = "RT-of-the-journal";
const ITS_ACCESS_TOKEN: &str = "AT-of-the-journal";

/// A token file and a journal with another grant, each so many hours old; the endpoint knows this
/// refresh token alone.
fn left_over(file: u32, journal: u32, live: &str) -> Scenario {
    let scenario = Scenario::with(Config::oauth(OAuth::default().refresh_token(live)));
    let granted = json!({ "access_token": ITS_ACCESS_TOKEN, "refresh_token": ITS_REFRESH_TOKEN });
    fs::write(scenario.journal(), granted.to_string()).expect("a journal");
    set_age(&scenario.file(), HOUR * file);
    set_age(&scenario.journal(), HOUR * journal);
    scenario
}

/// A lock on the journal, as a run that lives has it.
fn live_journal(scenario: &Scenario) -> fs::File {
    let journal = fs::File::create(scenario.journal()).expect("a journal");
    journal.lock().expect("its lock");
    journal
}

// ---- Left over ----

#[test]
fn a_journal_that_is_newer_than_the_file_wins() {
    let scenario = left_over(2, 1, ITS_REFRESH_TOKEN);
    scenario.run(&[]).assert_ok().assert_sent(1);
    scenario.assert_in_step();
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_file_newer_than_a_journal_wins_and_the_journal_is_kept() {
    let scenario = left_over(1, 2, REFRESH_TOKEN);
    let outcome = scenario.run(&[]);
    outcome.assert_ok().assert_sent(1);
    scenario.assert_in_step();
    let rescued = scenario.rescued();
    let [path] = &rescued[..] else { outcome.fail(&format!("not one file: {rescued:?}")) };
    outcome.assert_says(&path.file_name().unwrap_or_default().to_string_lossy());
    assert_eq!(fs::metadata(path).expect("a file").mode() & 0o7777, 0o600);
    assert_eq!(scenario.dir.json(path)["refresh_token"], ITS_REFRESH_TOKEN);
    assert_eq!(scenario.dir.names().len(), 2);
    // It is told once.
    scenario.run(&[]).assert_ok().assert_says_not("rescued");
    assert_eq!(scenario.rescued(), rescued);
}

#[test]
fn an_older_journal_with_nothing_of_its_own_is_removed() {
    for journal in [token_document(), "   \n".to_owned(), "\0\0\0".to_owned()] {
        let scenario = left_over(1, 2, REFRESH_TOKEN);
        fs::write(scenario.journal(), journal).expect("a journal");
        set_age(&scenario.journal(), HOUR * 2);
        scenario.run(&[]).assert_ok().assert_sent(1);
        scenario.assert_in_step();
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn a_torn_file_that_is_newer_than_its_journal_is_replaced_by_it() {
    // As a kill leaves it that came while the text of the file was being overwritten.
    let document = token_document();
    for torn in [&document[..document.len() / 2], "{\n  \"access_token\": \"AT-of-", "", "\0\0\0"] {
        let scenario = left_over(1, 2, ITS_REFRESH_TOKEN).token(torn);
        scenario.run(&[]).assert_ok().assert_sent(1);
        scenario.assert_in_step();
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn a_recovered_token_is_as_old_as_its_journal() {
    let document = token_document();
    let (without, _) = document.split_once(",\n  \"issued_at\"").expect("issued_at");
    for file in [document.clone(), format!("{without}\n}}\n")] {
        let scenario = left_over(4, 3, ITS_REFRESH_TOKEN).token(file);
        set_age(&scenario.file(), HOUR * 4);
        let young = scenario.run(&["--if-older-than", "5h"]);
        young.assert_ok().assert_sent(0).assert_stdout(&format!("{ITS_ACCESS_TOKEN}\n"));
        assert_eq!(scenario.member("refresh_token"), ITS_REFRESH_TOKEN);
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
        // Once more: the file that it is in now tells the same age.
        scenario.run(&["--if-older-than", "5h"]).assert_ok().assert_sent(0);
        scenario.run(&["--if-older-than", "2h"]).assert_ok().assert_sent(1);
        scenario.assert_in_step();
    }
}

#[test]
fn a_token_three_hours_old_is_not_fresh_when_it_is_recovered() {
    let scenario = left_over(4, 3, ITS_REFRESH_TOKEN);
    scenario.run(&["--if-older-than", "2h"]).assert_ok().assert_sent(1);
    scenario.assert_in_step();
}

#[test]
fn what_the_file_held_before_a_swap_is_no_grant() {
    // Killed between the swap and the removal: the file is just newer.
    let scenario = left_over(1, 2, REFRESH_TOKEN);
    let swapped = fs::metadata(scenario.journal()).and_then(|it| it.modified()).expect("its time");
    let file = fs::File::options().write(true).open(scenario.file()).expect("the file");
    file.set_modified(swapped + Duration::from_millis(1)).expect("to set its time");
    scenario.run(&[]).assert_ok().assert_sent(1).assert_says_not("rescued");
    scenario.assert_in_step();
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

// ---- Alive ----

#[test]
fn a_journal_of_a_run_that_lives_is_waited_for() {
    let scenario = Scenario::strict();
    let journal = live_journal(&scenario);
    let mut run = scenario.command().args(["-v", TOKEN_FILE]).start();
    run.wait_for("waiting for another run");
    assert_eq!(scenario.server.posts(), 0);
    fs::remove_file(scenario.journal()).expect("to remove the journal");
    drop(journal);
    run.wait().assert_ok().assert_sent(1);
    scenario.assert_in_step();
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_journal_that_its_run_left_when_it_died_is_taken_then() {
    let scenario = Scenario::with(Config::oauth(OAuth::default().refresh_token(ITS_REFRESH_TOKEN)));
    set_age(&scenario.file(), HOUR);
    let journal = live_journal(&scenario);
    let granted = json!({ "access_token": ITS_ACCESS_TOKEN, "refresh_token": ITS_REFRESH_TOKEN });
    fs::write(scenario.journal(), granted.to_string()).expect("a whole journal");
    let mut run = scenario.command().args(["-v", TOKEN_FILE]).start();
    run.wait_for("waiting for another run");
    drop(journal);
    let outcome = run.wait();
    outcome.assert_ok();
    // The access token changed while it waited: renewed by another run, or renewed once more.
    outcome.assert(outcome.sent <= 1, "it was sent twice");
    if outcome.sent == 1 {
        scenario.assert_in_step();
    } else {
        assert_eq!(scenario.member("refresh_token"), ITS_REFRESH_TOKEN);
    }
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_journal_that_another_user_fills_meanwhile_is_not_taken() {
    if !is_root("a journal of another user") {
        return;
    }
    let scenario = Scenario::strict();
    set_age(&scenario.file(), HOUR);
    let journal = live_journal(&scenario);
    chown(scenario.journal(), Some(NOBODY), Some(NOBODY)).expect("to give it away");
    let mut run = scenario.command().args(["-v", TOKEN_FILE]).start();
    run.wait_for("waiting for another run");
    let granted = json!({ "access_token": ITS_ACCESS_TOKEN, "refresh_token": ITS_REFRESH_TOKEN });
    fs::write(scenario.journal(), granted.to_string()).expect("a whole journal");
    drop(journal);
    run.wait().assert_status(1).assert_sent(0).assert_says("another user");
    assert_eq!(scenario.dir.read(TOKEN_FILE), token_document().as_bytes());
    assert_eq!(scenario.dir.read(scenario.journal()), granted.to_string().as_bytes());
}

#[test]
fn a_journal_that_is_held_beyond_the_time_out_is_a_temporary_failure() {
    let scenario = Scenario::strict();
    let _journal = live_journal(&scenario);
    scenario.run(&["--timeout", "0.3"]).assert_failed_unsent(4).assert_hints("--timeout");
}

#[test]
fn a_run_holds_a_lock_on_its_journal_while_it_waits() {
    let scenario = Scenario::strict();
    let outcome = scenario.while_thinking(1, scenario.command().arg(TOKEN_FILE), |_| {
        let journal = fs::File::open(scenario.journal()).expect("a journal");
        assert!(journal.try_lock().is_err(), "the journal is not locked");
    });
    outcome.assert_ok();
}

#[test]
fn a_login_that_took_the_name_waits_for_the_run_that_lives() {
    // The new file is not locked, and the journal beside it is that of the run on the old one.
    let scenario = Scenario::strict();
    let theirs = token_document().replace(REFRESH_TOKEN, "RT-of-a-new-login");
    let first = scenario.while_thinking(1, scenario.command().arg(TOKEN_FILE), |_| {
        let next = scenario.dir.write("next", &theirs);
        fs::rename(next, scenario.file()).expect("to rename");
        let second = scenario.run(&["--timeout", "0.3"]);
        second.assert_status(4).assert_sent(0).assert_stdout("");
    });
    first.assert_status(6);
    assert_eq!(scenario.dir.read(TOKEN_FILE), theirs.as_bytes());
    assert_eq!(scenario.rescued().len(), 1);
}

// ---- Over the text of the file ----

#[test]
fn a_file_with_several_names_has_a_private_journal() {
    let scenario = Scenario::strict();
    set_mode(&scenario.file(), 0o644);
    fs::hard_link(scenario.file(), scenario.dir.join("other.json")).expect("a hard link");
    let inode = || fs::metadata(scenario.file()).expect("a file").ino();
    let before = inode();
    let outcome = scenario.while_thinking(1, scenario.command().arg(TOKEN_FILE), |_| {
        let journal = fs::metadata(scenario.journal()).expect("a journal");
        assert_eq!(journal.mode() & 0o7777, 0o600);
        assert!(journal.len() > token_document().len() as u64, "no room was reserved");
        assert_eq!(scenario.dir.read(TOKEN_FILE), token_document().as_bytes());
    });
    outcome.assert_ok();
    scenario.assert_in_step();
    assert_eq!(inode(), before);
    assert_eq!(scenario.dir.read("other.json"), scenario.dir.read(TOKEN_FILE));
    assert_eq!(scenario.dir.names(), ["other.json", TOKEN_FILE]);
}

#[test]
fn a_shorter_document_over_a_longer_one_is_followed_by_blanks() {
    let long = token_document().replace("Bearer", &"x".repeat(9000));
    let scenario = Scenario::strict().token(&long);
    fs::hard_link(scenario.file(), scenario.dir.join("other.json")).expect("a hard link");
    scenario.run(&[]).assert_ok();
    scenario.assert_in_step();
    let text = String::from_utf8(scenario.dir.read(TOKEN_FILE)).expect("UTF-8");
    assert_eq!(text.trim_end(), format!("{:#}", scenario.document()));
    assert!(text.len() >= long.len(), "the file was cut");
    let tail = &text[text.trim_end().len()..];
    assert!(tail.bytes().all(|byte| byte == b' ' || byte == b'\n'), "not blanks: {tail:?}");
}

#[test]
fn room_that_was_made_in_the_file_stays_and_does_not_grow() {
    if !is_root("a folder of another user") {
        return;
    }
    let scenario = Scenario::scripted([Reply::error(400, "invalid_grant", "expired")]);
    chown(scenario.file(), Some(NOBODY), Some(NOBODY)).expect("to give it away");
    let run = || scenario.command().args(["--retry", "0", TOKEN_FILE]).user(NOBODY);
    let holds = |outcome: &Outcome| {
        let text = String::from_utf8(scenario.dir.read(TOKEN_FILE)).expect("UTF-8");
        outcome.assert(text.trim_end() == token_document().trim_end(), "the document changed");
        text.len()
    };
    let first = run().run();
    first.assert_status(3).assert_stdout("");
    let room = holds(&first);
    assert!(room > token_document().len(), "no room was made");
    for _ in 0..3 {
        let outcome = run().run();
        outcome.assert_status(3);
        assert_eq!(holds(&outcome), room);
    }
    scenario.server.script([Reply::hang()]);
    for posts in 5..8 {
        let running = run().start();
        scenario.wait_for_posts(posts);
        running.kill();
        assert_eq!(scenario.dir.read(TOKEN_FILE).len(), room);
    }
    scenario.server.script([Reply::grant("AT-new-one", Some("RT-new-one"))]);
    run().run().assert_ok();
    assert_eq!(scenario.member("refresh_token"), "RT-new-one");
    assert_eq!(scenario.dir.read(TOKEN_FILE).len(), room);
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_grant_without_a_refresh_token_is_recovered_too() {
    let before = r#"{"access_token":"AT-of-before"}"#;
    let scenario = Scenario::strict().token(before);
    let granted = json!({ "access_token": ITS_ACCESS_TOKEN });
    let journal = format!("{granted}      \nreplaces:\n{before}");
    fs::write(scenario.journal(), journal).expect("a journal");
    let outcome = scenario.run(&["-g", "client_credentials", "--if-older-than", "1h"]);
    outcome.assert_ok().assert_sent(0).assert_stdout(&format!("{ITS_ACCESS_TOKEN}\n"));
    assert_eq!(scenario.member("access_token"), ITS_ACCESS_TOKEN);
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_grant_for_a_file_with_several_names_is_recovered() {
    let scenario = left_over(2, 1, ITS_REFRESH_TOKEN);
    fs::hard_link(scenario.file(), scenario.dir.join("other.json")).expect("a hard link");
    scenario.run(&[]).assert_ok().assert_sent(1);
    scenario.assert_in_step();
    let other: Value = scenario.dir.json("other.json");
    assert_eq!(other["refresh_token"].as_str(), scenario.server.live().refresh_token.as_deref());
    assert_eq!(scenario.dir.names(), ["other.json", TOKEN_FILE]);
}
