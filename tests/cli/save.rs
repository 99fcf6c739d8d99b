//! How a token file is saved: what stays of it, and what an interrupted run leaves.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::{
    NOBODY, OLD_ACCESS_TOKEN, Outcome, Scenario, TOKEN_FILE, is_root, set_age, set_mode,
    token_document,
};
use crate::server::{Config, OAuth, REFRESH_TOKEN, Reply};

/// Another user than root and nobody.
const SOMEBODY: u32 = 1234;

/// Gives a path to a user and a group of the same number.
fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").ino()
}

/// A token file that nobody owns, in a folder of root's.
fn in_a_closed_folder(config: Config) -> Scenario {
    let scenario = Scenario::with(config);
    give(&scenario.file(), NOBODY);
    set_mode(&scenario.file(), 0o600);
    scenario
}

/// A refusal that no retry follows.
fn refusal() -> Reply {
    Reply::error(400, "invalid_grant", "expired access/refresh token")
}

// ---- What stays ----

#[test]
fn the_mode_of_the_file_stays() {
    let scenario = Scenario::strict();
    for mode in [0o600, 0o640, 0o644, 0o660, 0o666, 0o700] {
        set_mode(&scenario.file(), mode);
        let run = scenario.command().arg(TOKEN_FILE);
        run.through(&["/bin/sh", "-c", "umask 077; exec \"$@\"", "sh"]).run().assert_ok();
        assert_eq!(fs::metadata(scenario.file()).expect("file").mode() & 0o7777, mode);
        scenario.assert_in_step();
    }
}

#[test]
fn the_owner_of_the_file_stays() {
    if !is_root("files of other users") {
        return;
    }
    let scenario = Scenario::strict();
    chown(scenario.file(), Some(SOMEBODY), Some(NOBODY)).expect("to give it away");
    set_mode(&scenario.file(), 0o640);
    scenario.run(&[]).assert_ok();
    let metadata = fs::metadata(scenario.file()).expect("file");
    assert_eq!((metadata.uid(), metadata.gid()), (SOMEBODY, NOBODY));
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    scenario.assert_in_step();
}

#[test]
fn the_file_is_replaced_and_never_half_written() {
    let scenario = Scenario::strict();
    let old = fs::File::open(scenario.file()).expect("the old file");
    scenario.run(&[]).assert_ok();
    let seen = std::io::read_to_string(&old).expect("the old document");
    assert_eq!(seen, token_document(), "who had opened the old file reads on in it");
    assert_ne!(inode(&scenario.file()), old.metadata().expect("metadata").ino());
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn symlinks_stay_and_what_they_lead_to_is_replaced() {
    let scenario = Scenario::strict();
    fs::create_dir(scenario.dir.join("real")).expect("a folder");
    fs::create_dir(scenario.dir.join("links")).expect("a folder");
    fs::rename(scenario.file(), scenario.dir.join("real/data.json")).expect("to rename");
    symlink("../real/data.json", scenario.dir.join("links/one")).expect("a symlink");
    symlink("links/one", scenario.file()).expect("a symlink");
    scenario.run(&[]).assert_ok();
    scenario.assert_in_step();
    assert_eq!(fs::read_link(scenario.file()).expect("a symlink"), Path::new("links/one"));
    let one = fs::read_link(scenario.dir.join("links/one"));
    assert_eq!(one.expect("a symlink"), Path::new("../real/data.json"));
    let real = scenario.dir.join("real/data.json");
    assert!(fs::symlink_metadata(real).expect("file").is_file());
    let names = |folder| fs::read_dir(scenario.dir.join(folder)).expect("folder").count();
    assert_eq!((names("real"), names("links")), (1, 1));
}

#[test]
fn the_journal_is_made_beside_the_file_that_a_symlink_leads_to() {
    let scenario = Scenario::scripted([refusal()]);
    fs::create_dir(scenario.dir.join("real")).expect("a folder");
    fs::rename(scenario.file(), scenario.dir.join("real/data.json")).expect("to rename");
    symlink("real/data.json", scenario.file()).expect("a symlink");
    let newer = token_document().replace(OLD_ACCESS_TOKEN, "AT-of-the-journal");
    scenario.dir.write("real/.data.json.sf-refresh", newer);
    set_age(&scenario.file(), Duration::from_secs(60));
    scenario.run(&[]).assert_status(3);
    assert_eq!(scenario.member("access_token"), "AT-of-the-journal");
    assert!(fs::symlink_metadata(scenario.file()).expect("file").is_symlink());
}

#[test]
fn hard_links_stay_together() {
    let scenario = Scenario::strict();
    let other = scenario.dir.join("other.json");
    fs::hard_link(scenario.file(), &other).expect("a hard link");
    let before = inode(&scenario.file());
    for name in [TOKEN_FILE, "other.json", TOKEN_FILE] {
        let outcome = scenario.command().arg(name).run();
        outcome.assert_ok().assert_says("saved in place");
        assert_eq!((inode(&scenario.file()), inode(&other)), (before, before));
        scenario.assert_in_step();
    }
    assert_eq!(scenario.dir.names(), ["other.json", TOKEN_FILE]);
}

#[test]
fn a_file_with_hard_links_is_as_it_was_after_a_failure() {
    let scenario = Scenario::scripted([refusal()]);
    fs::hard_link(scenario.file(), scenario.dir.join("other.json")).expect("a hard link");
    scenario.run(&[]).assert_failed(3);
    scenario.server.script([Reply::drop_before_reply()]);
    scenario.run(&["--retry", "0"]).assert_failed(4);
}

#[test]
fn a_document_saved_in_place_is_whole_and_blanks_follow_it() {
    let long = format!("{}\n", "x".repeat(60_000));
    let values = [Some(long.trim_end()), None];
    let grant = |value: &Option<&str>| {
        let filler = value.unwrap_or("short");
        Reply::json(200, format!(r#"{{"access_token":"AT-new-one","filler":"{filler}"}}"#))
    };
    let scenario = Scenario::scripted(values.iter().map(grant));
    fs::hard_link(scenario.file(), scenario.dir.join("other.json")).expect("a hard link");
    for value in values {
        scenario.run(&[]).assert_ok();
        assert_eq!(scenario.member("filler"), value.unwrap_or("short"));
        let text = String::from_utf8(scenario.dir.read(TOKEN_FILE)).expect("UTF-8");
        assert_eq!(text.trim_end(), format!("{:#}", scenario.document()));
        assert!(text.len() > 60_000, "the file was cut");
    }
}

// ---- Folders that take no journal ----

#[test]
fn a_file_in_a_folder_that_may_not_be_written_is_saved_in_place() {
    if !is_root("a folder of another user") {
        return;
    }
    let scenario = in_a_closed_folder(Config::oauth(OAuth::default()));
    let before = inode(&scenario.file());
    for _ in 0..2 {
        let outcome = scenario.command().arg(TOKEN_FILE).user(NOBODY).run();
        outcome.assert_ok().assert_sent(1).assert_says("saved in place");
        scenario.assert_in_step();
    }
    assert_eq!(inode(&scenario.file()), before);
    assert_eq!(fs::metadata(scenario.file()).expect("file").mode() & 0o7777, 0o600);
}

#[test]
fn a_file_in_a_closed_folder_holds_what_it_held_after_a_failure() {
    if !is_root("a folder of another user") {
        return;
    }
    let failures = [
        (refusal(), 3),
        (Reply::new(500, ""), 4),
        (Reply::html(200), 5),
        (Reply::drop_before_reply(), 4),
        (Reply::redirect(302, "https://evil.example/"), 5),
    ];
    for (reply, status) in failures {
        let scenario = in_a_closed_folder(Config::scripted([reply]));
        let outcome = scenario.command().args(["--retry", "0", TOKEN_FILE]).user(NOBODY).run();
        outcome.assert_status(status).assert_sent(1).assert_stdout("");
        // The room that was made for the grant stays behind it.
        let text = String::from_utf8(scenario.dir.read(TOKEN_FILE)).expect("UTF-8");
        assert_eq!(text.trim_end(), token_document().trim_end());
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn a_file_that_may_not_be_written_in_a_closed_folder_is_refused() {
    if !is_root("a folder of another user") {
        return;
    }
    let scenario = in_a_closed_folder(Config::oauth(OAuth::default()));
    set_mode(&scenario.file(), 0o400);
    let outcome = scenario.command().arg(TOKEN_FILE).user(NOBODY).run();
    outcome.assert_failed_unsent(1).assert_hints("writable");
}

#[test]
fn a_file_of_another_user_in_a_sticky_folder_stays_that_user_s() {
    if !is_root("files of other users") {
        return;
    }
    // A folder of its own below: the kernel may protect files in one that all may write.
    let scenario = Scenario::strict();
    fs::create_dir(scenario.dir.join("sticky")).expect("a folder");
    give(&scenario.dir.join("sticky"), SOMEBODY);
    set_mode(&scenario.dir.join("sticky"), 0o1777);
    let path = scenario.dir.write("sticky/token.json", token_document());
    give(&path, SOMEBODY);
    set_mode(&path, 0o666);
    let outcome = scenario.command().arg("sticky/token.json").user(NOBODY).run();
    outcome.assert_ok().assert_says("saved in place");
    assert_eq!(fs::metadata(&path).expect("file").uid(), SOMEBODY);
    let renewed = scenario.dir.json("sticky/token.json");
    assert_eq!(renewed["refresh_token"].as_str(), scenario.server.live().refresh_token.as_deref());
    assert_eq!(fs::read_dir(scenario.dir.join("sticky")).expect("folder").count(), 1);
}

#[test]
fn a_folder_that_may_be_written_and_not_read_is_no_hindrance() {
    if !is_root("a folder of another user") {
        return;
    }
    let scenario = Scenario::strict();
    fs::create_dir(scenario.dir.join("drop")).expect("a folder");
    let path = scenario.dir.write("drop/token.json", token_document());
    give(&path, NOBODY);
    give(&scenario.dir.join("drop"), NOBODY);
    set_mode(&scenario.dir.join("drop"), 0o300);
    let outcome = scenario.command().arg("drop/token.json").user(NOBODY).run();
    outcome.assert_ok().assert_sent(1);
    let renewed = scenario.dir.json("drop/token.json");
    assert_eq!(renewed["refresh_token"].as_str(), scenario.server.live().refresh_token.as_deref());
}

#[test]
fn a_name_too_long_for_a_journal_is_saved_in_place() {
    let scenario = Scenario::strict();
    let name = "n".repeat(250);
    fs::rename(scenario.file(), scenario.dir.join(&name)).expect("to rename");
    scenario.command().arg(&name).run().assert_ok().assert_says("saved in place");
    assert_eq!(scenario.dir.names(), [name.as_str()]);
    let token = scenario.dir.json(&name)["access_token"].as_str().map(str::to_owned);
    assert_eq!(token, scenario.server.live().access_token);
}

#[test]
fn a_file_is_found_and_saved_from_any_folder() {
    let scenario = Scenario::strict();
    fs::create_dir(scenario.dir.join("sub")).expect("a folder");
    let absolute = scenario.file().into_os_string().into_string().expect("UTF-8");
    for path in ["../token.json", "./../sub/../token.json", &absolute] {
        let run = scenario.command().arg(path);
        run.through(&["env", "-C", "sub"]).run().assert_ok();
        scenario.assert_in_step();
    }
    assert_eq!(scenario.dir.names(), ["sub", TOKEN_FILE]);
}

// ---- What an interrupted run left ----

/// A strict endpoint whose live refresh token is that of this journal and no longer the file's.
fn with_journal(journal: &str) -> Scenario {
    let scenario =
        Scenario::with(Config::oauth(OAuth::default().refresh_token("RT-of-the-journal")));
    fs::write(scenario.journal(), journal).expect("a journal");
    set_age(&scenario.file(), Duration::from_secs(60));
    scenario
}

/// The document that an interrupted run had been granted.
fn granted_document() -> String {
    token_document()
        .replace(REFRESH_TOKEN, "RT-of-the-journal")
        .replace(OLD_ACCESS_TOKEN, "AT-of-the-journal")
}

#[test]
fn a_whole_journal_is_the_token_file_from_then_on() {
    for blanks in [0, 1, 16 * 1024] {
        let scenario = with_journal(&format!("{}{}", granted_document(), " ".repeat(blanks)));
        scenario.run(&[]).assert_ok().assert_sent(1);
        let field = scenario.server.last_request().field("refresh_token");
        assert_eq!(field.as_deref(), Some("RT-of-the-journal"));
        scenario.assert_in_step();
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn a_whole_journal_is_saved_although_the_server_then_refuses() {
    let scenario = Scenario::scripted([refusal()]);
    fs::write(scenario.journal(), granted_document() + "      ").expect("a journal");
    set_age(&scenario.file(), Duration::from_secs(60));
    let outcome = scenario.run(&[]);
    outcome.assert_status(3).assert_stdout("");
    assert_eq!(scenario.member("refresh_token"), "RT-of-the-journal");
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_whole_journal_is_saved_although_its_token_is_young_enough() {
    let now = crate::harness::now_millis().to_string();
    let scenario = with_journal(&granted_document().replace("1700000000000", &now));
    let outcome = scenario.run(&["--if-older-than", "1h"]);
    outcome.assert_ok().assert_sent(0).assert_stdout("AT-of-the-journal\n");
    assert_eq!(scenario.member("refresh_token"), "RT-of-the-journal");
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_whole_journal_is_saved_in_place_where_it_cannot_be_renamed() {
    let scenario = with_journal(&granted_document());
    fs::hard_link(scenario.file(), scenario.dir.join("other.json")).expect("a hard link");
    scenario.run(&[]).assert_ok().assert_sent(1);
    scenario.assert_in_step();
    assert_eq!(inode(&scenario.file()), inode(&scenario.dir.join("other.json")));
    assert_eq!(scenario.dir.names(), ["other.json", TOKEN_FILE]);
}

#[test]
fn a_journal_that_is_not_whole_is_removed() {
    let whole = granted_document();
    let torn = [
        "",
        " ",
        "\n\n",
        "\0\0\0\0",
        "{",
        "{}",
        "[]",
        "null",
        &whole[..whole.len() / 2],
        &whole[..whole.trim_end().len() - 1],
        &format!("{}{}", &whole[..whole.len() / 2], " ".repeat(16 * 1024)),
        r#"{"access_token":"AT-of-the-journal"}"#,
        r#"{"access_token":"AT-of-the-journal","refresh_token":""}"#,
    ];
    for journal in torn {
        let scenario = Scenario::strict();
        fs::write(scenario.journal(), journal).expect("a journal");
        scenario.run(&[]).assert_ok().assert_sent(1);
        scenario.assert_in_step();
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn a_journal_of_another_user_is_neither_taken_nor_removed() {
    if !is_root("files of other users") {
        return;
    }
    let scenario = Scenario::strict();
    fs::write(scenario.journal(), granted_document()).expect("a journal");
    give(&scenario.journal(), SOMEBODY);
    let outcome = scenario.run(&[]);
    outcome.assert_failed_unsent(1).assert_says("journal").assert_hints(".token.json.sf-refresh");
}

#[test]
fn what_stands_in_the_place_of_the_journal_and_is_none_is_left_alone() {
    let in_the_way: [fn(&Scenario); 5] = [
        |scenario| fs::create_dir(scenario.journal()).expect("a folder"),
        |scenario| {
            scenario.dir.write("elsewhere.json", granted_document());
            symlink("elsewhere.json", scenario.journal()).expect("a symlink");
        },
        |scenario| symlink("nowhere", scenario.journal()).expect("a symlink"),
        |scenario| {
            let made = Command::new("mkfifo").arg(scenario.journal()).status();
            assert!(made.expect("mkfifo").success());
        },
        |scenario| {
            let elsewhere = scenario.dir.write("elsewhere.json", granted_document());
            fs::hard_link(elsewhere, scenario.journal()).expect("a hard link");
        },
    ];
    for put in in_the_way {
        let scenario = Scenario::strict();
        put(&scenario);
        let outcome = scenario.run(&[]);
        outcome.assert_failed_unsent(1).assert_says("journal").assert_hints(".sf-refresh");
    }
}

#[test]
fn a_run_that_is_killed_while_it_waits_leaves_a_file_to_renew() {
    let scenario = Scenario::with(Config::oauth(OAuth::default()).replies([Reply::hang()]));
    let run = scenario.command().arg(TOKEN_FILE).start();
    scenario.wait_for_posts(1);
    run.kill();
    assert_eq!(scenario.dir.read(TOKEN_FILE), token_document().as_bytes());
    assert!(scenario.journal().exists(), "there was no journal when the request went out");
    scenario.run(&[]).assert_ok().assert_sent(1);
    scenario.assert_in_step();
}

#[test]
fn the_journal_has_mode_owner_and_room_before_anything_is_sent() {
    let scenario = Scenario::scripted([Reply::hang()]);
    set_mode(&scenario.file(), 0o640);
    if is_root("files of other users") {
        give(&scenario.file(), SOMEBODY);
    }
    let run = scenario.command().arg(TOKEN_FILE).start();
    scenario.wait_for_posts(1);
    let file = fs::metadata(scenario.file()).expect("file");
    let journal = fs::metadata(scenario.journal()).expect("journal");
    assert_eq!((journal.uid(), journal.gid()), (file.uid(), file.gid()));
    assert_eq!(journal.mode(), file.mode());
    assert!(journal.len() > file.len(), "no room was reserved");
    run.kill();
}

#[test]
fn the_room_reserved_is_enough_for_a_document_spread_over_lines() {
    let numbers = vec!["1"; 20_000].join(",");
    let document = format!(r#"{{"refresh_token":"an-old-rt","numbers":[{numbers}]}}"#);
    let scenario = Scenario::scripted([Reply::hang()]).token(&document);
    let run = scenario.command().arg(TOKEN_FILE).start();
    scenario.wait_for_posts(1);
    let reserved = fs::metadata(scenario.journal()).expect("journal").len();
    let spread = format!("{:#}\n", scenario.document()).len() as u64;
    assert!(reserved > spread, "{reserved} bytes reserved, more than {spread} needed");
    run.kill();
}

// ---- What happens between request and answer ----

/// An endpoint that has this grant for one request.
fn granting() -> Scenario {
    let again = Reply::error(500, "server_error", "it was asked again");
    Scenario::scripted([Reply::grant("AT-new-one", Some("RT-new-one")), again])
}

/// Does something to the folder between request and answer.
#[track_caller]
fn meanwhile(scenario: &Scenario, user: Option<u32>, act: impl FnOnce()) -> Outcome {
    let run = scenario.command().args(["--retry", "0", TOKEN_FILE]);
    let run = user.into_iter().fold(run, crate::harness::Run::user);
    scenario.while_thinking(1, run, |_| act())
}

#[test]
fn a_folder_closed_while_the_server_thinks_does_not_cost_the_grant() {
    if !is_root("a folder of another user") {
        return;
    }
    let scenario = granting();
    let path = scenario.file();
    give(&path, NOBODY);
    give(scenario.dir.path(), NOBODY);
    let outcome = meanwhile(&scenario, Some(NOBODY), || give(scenario.dir.path(), 0));
    outcome.assert_ok().assert_says("saved in place").assert_stdout("AT-new-one\n");
    assert_eq!(scenario.dir.json(TOKEN_FILE)["refresh_token"], "RT-new-one");
}

#[test]
fn a_journal_removed_while_the_server_thinks_does_not_cost_the_grant() {
    let scenario = granting();
    let journal = scenario.journal();
    let outcome = meanwhile(&scenario, None, || fs::remove_file(journal).expect("a journal"));
    outcome.assert_ok().assert_stdout("AT-new-one\n");
    assert_eq!(scenario.dir.json(TOKEN_FILE)["refresh_token"], "RT-new-one");
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn a_file_that_is_removed_while_the_server_thinks_is_not_made_anew() {
    let scenario = granting();
    let path = scenario.file();
    let outcome = meanwhile(&scenario, None, || fs::remove_file(&path).expect("a file"));
    assert_handed_over(&scenario, &outcome);
    assert!(!path.exists(), "the file that somebody removed is there again");
    assert!(!scenario.journal().exists(), "the journal is still there");
}

/// The grant is where the message says: in a file of its own or on stdout.
#[track_caller]
fn assert_handed_over(scenario: &Scenario, outcome: &Outcome) {
    outcome.assert_status(6).assert_says("granted, but");
    let document = match &scenario.rescued()[..] {
        [path] => {
            outcome.assert_says(&path.file_name().unwrap_or_default().to_string_lossy());
            fs::read(path).expect("a file")
        }
        _ => outcome.stdout.clone(),
    };
    let document: serde_json::Value =
        serde_json::from_slice(&document).unwrap_or_else(|e| outcome.fail(&e.to_string()));
    outcome.assert(document["refresh_token"] == "RT-new-one", "not the new document");
}

#[test]
fn a_file_and_journal_both_gone_leave_the_document_to_be_found() {
    let scenario = granting();
    let path = scenario.file();
    let outcome = meanwhile(&scenario, None, || {
        fs::remove_file(scenario.journal()).expect("a journal");
        fs::remove_file(path).expect("a file");
    });
    // A file that nobody can find is no save.
    if outcome.status() == 0 {
        assert_eq!(scenario.member("refresh_token"), "RT-new-one");
    } else {
        assert_handed_over(&scenario, &outcome);
    }
}

#[test]
fn a_folder_in_the_place_of_the_file_stays_and_the_grant_is_kept() {
    let scenario = granting();
    let path = scenario.file();
    let outcome = meanwhile(&scenario, None, || {
        fs::remove_file(&path).expect("a file");
        fs::create_dir(&path).expect("a folder");
    });
    assert_handed_over(&scenario, &outcome);
    assert!(path.is_dir(), "the folder is gone");
}

#[test]
fn a_file_replaced_with_its_journal_gone_stays_and_the_grant_is_kept() {
    let scenario = granting();
    let theirs = token_document().replace("api id", "api web");
    let outcome = meanwhile(&scenario, None, || {
        fs::remove_file(scenario.journal()).expect("a journal");
        let other = scenario.dir.write("other", &theirs);
        fs::rename(other, scenario.file()).expect("to rename");
    });
    assert_handed_over(&scenario, &outcome);
    assert_eq!(scenario.dir.read(TOKEN_FILE), theirs.as_bytes());
}
