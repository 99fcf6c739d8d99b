//! Programs that know nothing of locks: a login or a rotation while the endpoint thinks.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use crate::harness::{
    NOBODY, OLD_ACCESS_TOKEN, Outcome, Running, Scenario, TOKEN_FILE, is_root, set_mode,
    token_document,
};
use crate::server::{Config, OAuth, REFRESH_TOKEN};

const THEIR_REFRESH_TOKEN: &str = "RT-of-another-program";

/// Writes a new file beside the token file and renames it over it.
fn by_rename(scenario: &Scenario, document: &str) {
    let next = scenario.dir.write("next", document);
    fs::rename(next, scenario.file()).expect("to rename");
}

/// Writes over the text of the token file.
fn by_overwriting(scenario: &Scenario, document: &str) {
    fs::write(scenario.file(), document).expect("to write");
}

/// Runs it on the token file, and does something while the endpoint thinks.
#[track_caller]
fn meanwhile(scenario: &Scenario, act: impl FnOnce()) -> Outcome {
    scenario.while_thinking(1, scenario.command().arg(TOKEN_FILE), |_| act())
}

// ---- Rotated by another program ----

#[test]
fn a_refresh_token_rotated_by_another_program_is_sent_in_its_turn() {
    for write in [by_rename, by_overwriting] {
        // The endpoint knows the token of the other program alone.
        let oauth = OAuth::default().refresh_token(THEIR_REFRESH_TOKEN);
        let scenario = Scenario::with(Config::oauth(oauth));
        let theirs = token_document().replace(REFRESH_TOKEN, THEIR_REFRESH_TOKEN);
        let outcome = meanwhile(&scenario, || write(&scenario, &theirs));
        outcome.assert_ok().assert_sent(2);
        let sent = scenario.server.last_request().field("refresh_token");
        assert_eq!(sent.as_deref(), Some(THEIR_REFRESH_TOKEN));
        scenario.assert_in_step();
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn a_refusal_of_the_token_that_is_still_there_is_final() {
    let scenario =
        Scenario::with(Config::oauth(OAuth::default().refresh_token(THEIR_REFRESH_TOKEN)));
    let outcome = meanwhile(&scenario, || {
        let touched = token_document().replace("api id", "api web");
        by_rename(&scenario, &touched);
    });
    outcome.assert_status(3).assert_sent(1).assert_stdout("");
    assert!(scenario.member("scope").ends_with("web"), "their file is gone");
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

// ---- A new login ----

/// A login that came in while the endpoint was thinking.
fn their_document() -> String {
    token_document()
        .replace(REFRESH_TOKEN, THEIR_REFRESH_TOKEN)
        .replace(OLD_ACCESS_TOKEN, "AT-of-another-program")
}

/// Theirs is in the token file, ours in a file of its own in this folder, which the message names.
#[track_caller]
fn assert_both_kept(scenario: &Scenario, outcome: &Outcome, folder: &Path) {
    outcome.assert_status(6).assert_sent(1);
    assert_eq!(scenario.dir.read(TOKEN_FILE), their_document().as_bytes());
    assert!(!scenario.journal().exists(), "the journal is still there");
    let entries = fs::read_dir(folder).expect("the folder").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let rescued: Vec<_> = names.filter(|name| name.starts_with("sf-refresh-rescued-")).collect();
    let [name] = &rescued[..] else { outcome.fail(&format!("not one file: {rescued:?}")) };
    outcome.assert(name.ends_with(".json"), "another name");
    outcome.assert_says(name);
    let path = folder.join(name);
    assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o7777, 0o600);
    let ours: serde_json::Value =
        serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON");
    let live = (scenario.server.live().access_token, scenario.server.live().refresh_token);
    let token = |name: &str| ours[name].as_str().map(str::to_owned);
    assert_eq!((token("access_token"), token("refresh_token")), live);
    assert_eq!(ours["scope"], "refresh_token api id");
}

#[test]
fn a_new_login_stays_and_the_grant_is_kept_beside_it() {
    for write in [by_rename, by_overwriting] {
        for mode in [0o600, 0o644] {
            let scenario = Scenario::strict();
            set_mode(&scenario.file(), mode);
            let outcome = meanwhile(&scenario, || write(&scenario, &their_document()));
            assert_both_kept(&scenario, &outcome, scenario.dir.path());
            assert_eq!(scenario.dir.names().len(), 2);
        }
    }
}

#[test]
fn a_new_login_in_a_file_with_several_names_stays() {
    for write in [by_rename, by_overwriting] {
        let scenario = Scenario::strict();
        let other = scenario.dir.join("other.json");
        fs::hard_link(scenario.file(), &other).expect("a hard link");
        let before = scenario.dir.read("other.json");
        let outcome = meanwhile(&scenario, || write(&scenario, &their_document()));
        assert_both_kept(&scenario, &outcome, scenario.dir.path());
        // By a rename they took the name alone.
        let now = scenario.dir.read("other.json");
        assert!(now == before || now == their_document().as_bytes(), "it was written to");
    }
}

#[test]
fn a_new_login_in_a_closed_folder_stays() {
    if !is_root("a folder of another user") {
        return;
    }
    for write in [by_rename, by_overwriting] {
        let scenario = Scenario::strict();
        chown(scenario.file(), Some(NOBODY), Some(NOBODY)).expect("to give it away");
        let other = crate::harness::TempDir::new();
        set_mode(other.path(), 0o777);
        let run = scenario.command().arg(TOKEN_FILE).user(NOBODY);
        let run = run.env("TMPDIR", other.path());
        let write = |_: &mut Running<'_>| write(&scenario, &their_document());
        let outcome = scenario.while_thinking(1, run, write);
        assert_both_kept(&scenario, &outcome, other.path());
    }
}

#[test]
fn a_new_login_of_the_same_length_is_seen_as_one() {
    for write in [by_rename, by_overwriting] {
        let scenario = Scenario::strict();
        let theirs = token_document().replace(REFRESH_TOKEN, "5Aep-RT-0-third");
        assert_eq!(theirs.len(), token_document().len());
        let outcome = meanwhile(&scenario, || write(&scenario, &theirs));
        outcome.assert_status(6).assert_sent(1);
        assert_eq!(scenario.dir.read(TOKEN_FILE), theirs.as_bytes());
        assert_eq!(scenario.rescued().len(), 1);
    }
}

#[test]
fn a_filter_has_no_file_that_could_change() {
    let scenario = Scenario::strict();
    let run = scenario.command().arg("-").stdin(token_document());
    let write = |_: &mut Running<'_>| by_overwriting(&scenario, &their_document());
    scenario.while_thinking(1, run, write).assert_ok();
    assert_eq!(scenario.dir.read(TOKEN_FILE), their_document().as_bytes());
}

#[test]
fn a_mode_or_a_time_that_changes_meanwhile_is_no_new_login() {
    let acts: [fn(&Scenario); 2] = [
        |scenario| set_mode(&scenario.file(), 0o640),
        |scenario| crate::harness::set_age(&scenario.file(), std::time::Duration::from_secs(7200)),
    ];
    for act in acts {
        let scenario = Scenario::strict();
        meanwhile(&scenario, || act(&scenario)).assert_ok().assert_sent(1);
        scenario.assert_in_step();
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}
