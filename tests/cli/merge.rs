//! What a reply brings into the file: odd replies, odd files, and members that tell an expiry.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{OLD_ACCESS_TOKEN, Scenario, TOKEN_FILE, now_millis, token_document};
use crate::server::{REFRESH_TOKEN, Reply};

/// A grant of new tokens, and no more.
const GRANT: &str = r#"{"access_token":"AT-new-one","refresh_token":"RT-new-one"}"#;

// ---- Odd replies ----

#[test]
fn a_rotated_refresh_token_is_saved_beside_an_unusable_access_token() {
    let unusable = [
        "",
        r#""access_token":null,"#,
        r#""access_token":"","#,
        r#""access_token":17,"#,
        r#""access_token":["00Dxx"],"#,
        r#""access_token":"00Dxx-line\nbreak","#,
    ];
    for access_token in unusable {
        let reply = format!(r#"{{{access_token}"refresh_token":"RT-new-one"}}"#);
        let scenario = Scenario::scripted([Reply::json(200, reply)]);
        let outcome = scenario.run(&[]);
        outcome.assert_status(5).assert_sent(1).assert_stdout("").assert_says("access_token");
        assert_eq!(scenario.member("refresh_token"), "RT-new-one");
        assert_eq!(scenario.member("access_token"), OLD_ACCESS_TOKEN);
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn a_refresh_token_that_is_not_rotated_saves_nothing() {
    let reply = format!(r#"{{"refresh_token":"{REFRESH_TOKEN}"}}"#);
    let scenario = Scenario::scripted([Reply::json(200, reply)]);
    scenario.run(&[]).assert_failed(5).assert_sent(1).assert_says("access_token");
}

#[test]
fn a_refresh_token_beside_an_error_saves_nothing() {
    let reply = r#"{"error":"invalid_grant","refresh_token":"RT-new-one"}"#;
    for status in [200, 400] {
        let scenario = Scenario::scripted([Reply::json(status, reply)]);
        scenario.run(&[]).assert_failed(3).assert_sent(1);
    }
}

#[test]
fn bytes_behind_the_json_do_not_matter() {
    let behind: [&[u8]; 8] = [
        b"}",
        b"<!-- served by x -->",
        b"{\"access_token\":\"AT-second\"}",
        b"\0\0\0",
        b"\xFF\xFE",
        b"\n0\r\n\r\n",
        b"]",
        b",",
    ];
    for bytes in behind {
        let scenario = Scenario::scripted([Reply::json(200, [GRANT.as_bytes(), bytes].concat())]);
        scenario.run(&[]).assert_ok().assert_sent(1).assert_stdout("AT-new-one\n");
        assert_eq!(scenario.member("refresh_token"), "RT-new-one");
        assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    }
}

#[test]
fn a_refresh_token_that_cannot_be_one_keeps_the_old_one() {
    // RFC 6749 appendix A.17: one or more of %x20-7E.
    for token in [r"RT\nnew", r"RT\u0000new", r"RT\u007fnew", "RT-nü", r"RT\ud83d\ude00", r"\t"] {
        let reply = GRANT.replace("RT-new-one", token);
        let scenario = Scenario::scripted([Reply::json(200, reply)]);
        scenario.run(&[]).assert_ok().assert_sent(1).assert_stdout("AT-new-one\n");
        assert_eq!(scenario.member("refresh_token"), REFRESH_TOKEN);
        assert_eq!(scenario.member("access_token"), "AT-new-one");
    }
}

// ---- Odd files ----

#[test]
fn nuls_at_the_end_of_a_file_are_blanks() {
    for tail in ["\0", "\0\0\0\0\n", " \0 \0", &"\0".repeat(9000)] {
        let scenario = Scenario::strict().token(token_document() + tail);
        scenario.run(&[]).assert_ok();
        scenario.assert_in_step();
        let text = String::from_utf8(scenario.dir.read(TOKEN_FILE)).expect("UTF-8");
        assert!(!text.contains('\0'), "the NULs are still there");
    }
}

#[test]
fn blanks_and_nuls_do_not_count_as_size() {
    for blank in [" ", "\0", "\n"] {
        let scenario = Scenario::strict().token(token_document() + &blank.repeat(1 << 20));
        scenario.run(&[]).assert_ok();
        scenario.assert_in_step();
    }
}

#[test]
fn a_file_of_nuls_alone_is_empty() {
    for nothing in ["\0", "\0\0\n", &"\0".repeat(4096)] {
        let scenario = Scenario::strict().token(nothing);
        scenario.run(&[]).assert_failed_unsent(1).assert_says("is empty");
    }
}

#[test]
fn a_filter_takes_nuls_at_the_end_as_well() {
    let scenario = Scenario::strict();
    scenario.command().arg("-").stdin(token_document() + "\0\0").run().assert_ok();
}

// ---- Expiry ----

/// The milliseconds since 1970 that an RFC 3339 time tells.
fn rfc_3339_millis(text: &str) -> u64 {
    let date = Command::new("date").args(["-u", "-d", text, "+%s%3N"]).output().expect("date");
    let told = String::from_utf8_lossy(&date.stdout);
    told.trim().parse().unwrap_or_else(|_| panic!("no time: {text}"))
}

/// What a member becomes when a token for an hour is granted; it was this before, and is of the
/// same kind now. `millis` reads it.
#[track_caller]
fn assert_follows(name: &str, old: &Value, millis: impl Fn(&Value) -> u64) -> Value {
    let document = json!({ "access_token": "an-old-at", "refresh_token": "an-old-rt", name: old });
    let reply = json!({ "access_token": "AT-new-one", "expires_in": 3600 });
    let scenario = Scenario::scripted([Reply::json(200, reply.to_string())]);
    let scenario = scenario.token(document.to_string());
    // A member may be in whole seconds.
    let earliest = now_millis() / 1000 * 1000 + 3_600_000;
    scenario.run(&[]).assert_ok().assert_sent(1);
    let latest = now_millis() + 3_600_000 + 1000;
    let new = scenario.document()[name].clone();
    assert!((earliest..=latest).contains(&millis(&new)), "{name} is {new}, it was {old}");
    assert_eq!((new.is_string(), new.is_number()), (old.is_string(), old.is_number()));
    new
}

#[test]
fn expires_at_follows_in_seconds() {
    let seconds = |value: &Value| {
        let text = value.to_string();
        let (whole, part) = text.split_once('.').unwrap_or((&text, "0"));
        let part: u64 = format!("{part:0<3}")[..3].parse().expect("a fraction");
        whole.parse::<u64>().expect("a number") * 1000 + part
    };
    // requests-oauthlib writes a fraction, authlib none.
    for old in ["1700003600", "1700003600.25"] {
        let old: Value = serde_json::from_str(old).expect("a number");
        assert_follows("expires_at", &old, seconds);
    }
}

#[test]
fn expiry_follows_as_go_writes_it() {
    let millis = |value: &Value| rfc_3339_millis(value.as_str().expect("a string"));
    for old in [
        "2023-11-14T23:13:20.123456789+01:00",
        "2023-11-14T22:13:20.5Z",
        "2023-11-14T22:13:20Z",
        "0001-01-01T00:00:00Z",
    ] {
        let new = assert_follows("expiry", &json!(old), millis);
        let new = new.as_str().expect("a string");
        // time.Time of Go takes what has a T, no blank, and a zone.
        let fits = new.len() >= 20 && new.as_bytes()[10] == b'T' && !new.contains(' ');
        assert!(fits && (new.ends_with('Z') || new.contains('+')), "{new}");
    }
}

#[test]
fn expiry_date_follows_in_milliseconds() {
    let millis = |value: &Value| value.as_u64().expect("a whole number");
    assert_follows("expiry_date", &json!(1_700_003_600_000_u64), millis);
}

#[test]
fn several_members_that_tell_an_expiry_follow_together() {
    let document = json!({
        "refresh_token": "an-old-rt", "expires_at": 1, "expiry": "2023-11-14T22:13:20Z",
        "expiry_date": 1, "issued_at": "1", "expires_in": 17,
    });
    let reply = json!({ "access_token": "AT-new-one", "expires_in": 3600 });
    let scenario = Scenario::scripted([Reply::json(200, reply.to_string())]);
    let scenario = scenario.token(document.to_string());
    let before = now_millis();
    scenario.run(&[]).assert_ok();
    let new = scenario.document();
    let issued_at: u64 = scenario.member("issued_at").parse().expect("milliseconds");
    assert!((before..=now_millis()).contains(&issued_at), "issued at {issued_at}");
    let about = |millis: u64| millis.abs_diff(issued_at + 3_600_000) <= 1000;
    assert!(about(new["expires_at"].as_u64().expect("seconds") * 1000), "{new}");
    assert!(about(new["expiry_date"].as_u64().expect("milliseconds")), "{new}");
    assert!(about(rfc_3339_millis(new["expiry"].as_str().expect("a time"))), "{new}");
    assert_eq!(new["expires_in"], 3600);
}

#[test]
fn what_the_reply_says_of_its_expiry_counts() {
    let document = json!({ "refresh_token": "an-old-rt", "expires_at": 1, "expiry_date": 1 });
    let reply = json!({
        "access_token": "AT-new-one", "expires_in": 3600, "expires_at": 17, "expiry_date": 18,
    });
    let scenario = Scenario::scripted([Reply::json(200, reply.to_string())]);
    let scenario = scenario.token(document.to_string());
    scenario.run(&[]).assert_ok();
    let new = scenario.document();
    assert_eq!((&new["expires_at"], &new["expiry_date"]), (&json!(17), &json!(18)));
}

#[test]
fn a_file_without_such_members_gets_none() {
    let reply = json!({ "access_token": "AT-new-one", "expires_in": 3600 });
    let scenario = Scenario::scripted([Reply::json(200, reply.to_string())]);
    let scenario = scenario.token(r#"{"refresh_token":"an-old-rt"}"#);
    scenario.run(&[]).assert_ok();
    let expected = json!({
        "refresh_token": "an-old-rt", "access_token": "AT-new-one", "expires_in": 3600,
    });
    assert_eq!(scenario.document(), expected);
}
