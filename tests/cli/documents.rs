//! Token files: which are refused, and what of a good one is kept.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::harness::{NOBODY, Scenario, TOKEN_FILE, is_root, set_mode, token_document};
use crate::server::{REFRESH_TOKEN, Reply};

/// A reply whose members are known to the last byte.
const REPLY: &str = r#"{"access_token":"AT-new","issued_at":"1750000000000"}"#;

/// Writes a token file, and holds the run on it to a refusal that says this.
#[track_caller]
fn assert_refused(bytes: impl AsRef<[u8]>, says: &str) {
    let scenario = Scenario::strict().token(bytes);
    let outcome = scenario.run(&[]);
    outcome.assert_failed_unsent(1).assert_says("sf-refresh: token.json: ").assert_says(says);
}

/// What a token file becomes with a reply.
#[track_caller]
fn renewed(document: impl AsRef<[u8]>, reply: &str) -> String {
    let scenario = Scenario::scripted([Reply::json(200, reply)]).token(document);
    scenario.run(&[]).assert_ok().assert_sent(1);
    String::from_utf8(scenario.dir.read(TOKEN_FILE)).expect("UTF-8")
}

// ---- Refused ----

#[test]
fn a_file_with_nothing_in_it_is_refused() {
    for nothing in ["", " ", "\n\n\t \r\n", "\u{FEFF}", "\u{FEFF} \n"] {
        assert_refused(nothing, "is empty");
    }
}

#[test]
fn a_file_in_utf_16_is_refused_with_how_it_may_have_come_about() {
    let units: Vec<u16> = format!("\u{FEFF}{}", token_document()).encode_utf16().collect();
    let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
    for bytes in [&little, &big] {
        let scenario = Scenario::strict().token(bytes);
        let outcome = scenario.run(&[]);
        outcome.assert_failed_unsent(1).assert_says("is UTF-16").assert_hints("UTF-8");
    }
    assert_refused(&little[2..], "is not JSON");
    assert_refused(&big[2..], "is not JSON");
}

#[test]
fn a_file_that_is_not_json_is_refused_with_the_place() {
    let document = token_document();
    let cases = [
        "not at all JSON".to_owned(),
        "<!DOCTYPE html><html></html>".to_owned(),
        "access_token=a-token&refresh_token=another".to_owned(),
        document.replace('"', "'"),
        document.replace("\"\n}", "\",\n}"),
        document.replace("{\n", "{ // a comment\n"),
        format!("{document}{document}"),
        format!("{document}]"),
        document.replace("\"Bearer\"", "NaN"),
        document.replace("\"Bearer\"", "01"),
        document.replace("\"Bearer\"", "\"a\tb\""),
        document.replace("\"Bearer\"", r#""\x""#),
        document.replace("\"Bearer\"", "True"),
        format!("{document}\0x"),
        format!("\0{document}"),
    ];
    for text in cases {
        assert_refused(text, "is not JSON");
    }
}

#[test]
fn a_file_that_ends_in_the_middle_is_refused_wherever_it_ends() {
    let document = token_document();
    let whole = document.trim_end().len();
    for end in (1..whole).step_by(23).chain([whole - 1]) {
        assert_refused(&document[..end], "is not JSON");
    }
}

#[test]
fn a_file_with_bytes_that_are_not_utf_8_is_refused() {
    let document = token_document();
    let in_string = document.replace("Bearer", "B\u{1}rer").into_bytes();
    let in_string: Vec<u8> =
        in_string.into_iter().map(|byte| if byte == 1 { 0xE9 } else { byte }).collect();
    assert_refused(in_string, "is not JSON");
    assert_refused([document.as_bytes(), b"\xff"].concat(), "is not JSON");
    assert_refused([b"\xC0\x80", document.as_bytes()].concat(), "is not JSON");
}

#[test]
fn lone_surrogates_are_refused() {
    for escape in [r"\ud800", r"\udc00", r"\ud800x", r"\ud800\ud800"] {
        assert_refused(token_document().replace("Bearer", escape), "is not JSON");
    }
}

#[test]
fn json_nested_beyond_reason_is_refused() {
    for depth in [200, 20_000, 400_000] {
        let nested = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert_refused(token_document().replace("\"Bearer\"", &nested), "is not JSON");
        assert_refused("[".repeat(depth), "is not JSON");
    }
}

#[test]
fn json_that_is_no_object_is_refused() {
    for text in ["[]", "[{\"refresh_token\":\"a-token\"}]", "\"a-string\"", "17", "null", "true"] {
        assert_refused(text, "no JSON object");
    }
}

#[test]
fn a_file_without_a_refresh_token_is_refused_with_how_to_get_one() {
    for text in ["{}", r#"{"access_token":"an-access-token"}"#, r#"{"Refresh_Token":"wrong-case"}"#]
    {
        let scenario = Scenario::strict().token(text);
        let outcome = scenario.run(&[]);
        outcome.assert_failed_unsent(1).assert_says("has no refresh_token");
        outcome.assert_hints("refresh_token");
    }
}

#[test]
fn the_output_of_sf_in_place_of_a_token_file_is_told_apart() {
    let wrapped = r#"{"status":0,"result":{"sfdxAuthUrl":"force://PlatformCLI::an-rt@x.test"}}"#;
    let plain = r#"{"sfdxAuthUrl":"force://PlatformCLI::an-rt@x.test"}"#;
    for text in [wrapped, plain] {
        let scenario = Scenario::strict().token(text);
        scenario.run(&[]).assert_failed_unsent(1).assert_hints("--sfdx-url-file");
    }
}

#[test]
fn a_refresh_token_that_is_no_printable_string_is_refused() {
    let values = [
        "17",
        "null",
        "true",
        "[\"a-token\"]",
        "{\"a\":\"token\"}",
        "\"\"",
        r#""a\u0007token""#,
        r#""a\ntoken""#,
        r#""a-token\n""#,
        r#""a\u0000token""#,
        r#""a\u007ftoken""#,
        r#""a\u00e9token""#,
        r#""😀-token""#,
    ];
    for value in values {
        let document = token_document().replace(&format!("\"{REFRESH_TOKEN}\""), value);
        assert_ne!(document, token_document());
        assert_refused(document, "no string of printable ASCII");
    }
}

#[test]
fn a_file_of_more_than_a_mebibyte_is_refused_and_one_of_less_is_not() {
    let document = token_document();
    let padded = |length: usize| {
        let filler = "x".repeat(length - document.len());
        document.replace("Bearer", &format!("Bearer{filler}"))
    };
    assert_eq!(padded(1 << 20).len(), 1 << 20);
    // The newline at its end does not count.
    let scenario = Scenario::strict().token(padded((1 << 20) + 2));
    scenario.run(&[]).assert_failed_unsent(1).assert_says("too large");
    let scenario = Scenario::strict().token(padded((1 << 20) - 4096));
    scenario.run(&[]).assert_ok();
    scenario.assert_in_step();
}

#[test]
fn a_file_that_would_grow_too_large_is_refused_or_stays_readable() {
    let numbers = vec!["1"; 200_000].join(",");
    let document = format!(r#"{{"refresh_token":"{REFRESH_TOKEN}","numbers":[{numbers}]}}"#);
    let scenario = Scenario::strict().token(document);
    let first = scenario.run(&[]);
    if first.status() == 1 {
        first.assert_failed_unsent(1);
    } else {
        first.assert_ok();
        scenario.run(&[]).assert_ok();
    }
}

#[test]
fn what_is_no_regular_file_is_refused_untouched() {
    let scenario = Scenario::strict();
    fs::create_dir(scenario.dir.join("folder")).expect("a folder");
    let made = Command::new("mkfifo").arg(scenario.dir.join("fifo")).status();
    assert!(made.expect("mkfifo").success());
    let _socket = UnixListener::bind(scenario.dir.join("socket")).expect("a socket");
    for (name, says) in [
        ("folder", "is a folder"),
        (".", "is a folder"),
        ("fifo", "is not a regular file"),
        ("socket", "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
    ] {
        let outcome = scenario.command().arg(name).run();
        outcome.assert_failed_unsent(1).assert_says(says);
    }
}

#[test]
fn a_path_that_leads_nowhere_is_refused() {
    let scenario = Scenario::strict();
    std::os::unix::fs::symlink("nowhere", scenario.dir.join("dangling")).expect("a symlink");
    std::os::unix::fs::symlink("loop", scenario.dir.join("loop")).expect("a symlink");
    for name in
        ["", "missing", "missing/token.json", "token.json/x", "token.json/", "dangling", "loop"]
    {
        scenario.command().arg(name).run().assert_failed_unsent(1);
    }
}

#[test]
fn a_file_that_may_not_be_read_or_written_is_refused_with_what_it_takes() {
    let scenario = Scenario::strict();
    if !is_root("files that another user may not use") {
        return;
    }
    for mode in [0o000, 0o400, 0o444, 0o600, 0o222] {
        set_mode(&scenario.file(), mode);
        let outcome = scenario.command().arg(TOKEN_FILE).user(NOBODY).run();
        outcome.assert_failed_unsent(1).assert_says("permission denied");
        outcome.assert_hints("readable and writable");
    }
}

// ---- Kept ----

#[test]
fn the_saved_document_is_known_to_the_last_byte() {
    let document = concat!(
        "\u{FEFF}{\"zeta\": 1.10,\r\n\"refresh_token\":\"RT-old~! {}\",  \"unknown\":",
        r#"{"deep":[12345678901234567890123,-0,1e+5,[],{},null,true],"":"empty name"},"#,
        r#""access_token":"AT-old-one","alpha":"\u00e9\u0001\/\ud83d\ude00","last":0.10}"#,
    );
    let reply = r#"{"new":[2.50],"access_token":"AT-new","instance_url":"https://i.test"}"#;
    let expected = r#"{
  "zeta": 1.10,
  "refresh_token": "RT-old~! {}",
  "unknown": {
    "deep": [
      12345678901234567890123,
      -0,
      1e+5,
      [],
      {},
      null,
      true
    ],
    "": "empty name"
  },
  "access_token": "AT-new",
  "alpha": "é\u0001/😀",
  "last": 0.10,
  "new": [
    2.50
  ],
  "instance_url": "https://i.test"
}
"#;
    assert_eq!(renewed(document, reply), expected);
}

#[test]
fn the_text_of_every_number_is_kept() {
    let numbers = [
        "0",
        "-0",
        "0.0",
        "-0.0",
        "1.10",
        "100",
        "1e-7",
        "0.10e+1",
        "1.0e+400",
        "1e+05",
        "12345678901234567890123",
        "-9223372036854775809",
        "18446744073709551616",
        "3.141592653589793238462643383279502884197",
        "1e+1000000",
    ];
    for number in numbers {
        let document = format!(r#"{{"refresh_token":"an-rt","n":{number}}}"#);
        let expected = format!(
            "{{\n  \"refresh_token\": \"an-rt\",\n  \"n\": {number},\n  \
             \"access_token\": \"AT-new\",\n  \"issued_at\": \"1750000000000\"\n}}\n"
        );
        assert_eq!(renewed(document, REPLY), expected);
        let reply = format!(r#"{{"access_token":"AT-new","n":{number}}}"#);
        let expected = format!(
            "{{\n  \"refresh_token\": \"an-rt\",\n  \"access_token\": \"AT-new\",\n  \
             \"n\": {number}\n}}\n"
        );
        assert_eq!(renewed(r#"{"refresh_token":"an-rt"}"#, &reply), expected);
    }
}

/// The JSON library knows one spelling of the exponent, as the README says.
#[test]
fn an_exponent_keeps_its_digits_and_sign() {
    for (number, kept) in
        [("1E5", "1e+5"), ("1e5", "1e+5"), ("1E+05", "1e+05"), ("1.50E-3", "1.50e-3")]
    {
        let document = format!(r#"{{"refresh_token":"an-rt","n":{number}}}"#);
        let saved = renewed(document, REPLY);
        assert!(saved.contains(&format!("\"n\": {kept},")), "{number} became {saved}");
    }
}

#[test]
fn a_byte_order_mark_is_read_and_not_written() {
    let scenario = Scenario::strict().token(format!("\u{FEFF}{}", token_document()));
    scenario.run(&[]).assert_ok();
    scenario.assert_in_step();
    assert_eq!(scenario.dir.read(TOKEN_FILE).first(), Some(&b'{'));
}

#[test]
fn a_rotated_refresh_token_is_saved_and_used_the_next_time() {
    let scenario = Scenario::strict();
    for _ in 0..3 {
        scenario.run(&[]).assert_ok().assert_sent(1);
        scenario.assert_in_step();
    }
    assert_eq!(scenario.server.grants(), 3);
    assert!(!scenario.server.live().revoked);
}

#[test]
fn a_reply_without_a_usable_refresh_token_leaves_the_old_one() {
    let values = ["null", "\"\"", "17", "false", "[]", "{}"];
    for value in values {
        let reply = format!(r#"{{"access_token":"AT-new","refresh_token":{value}}}"#);
        let saved = renewed(r#"{"refresh_token":"the-old-rt"}"#, &reply);
        let expected =
            "{\n  \"refresh_token\": \"the-old-rt\",\n  \"access_token\": \"AT-new\"\n}\n";
        assert_eq!(saved, expected);
    }
}

#[test]
fn a_member_of_the_reply_replaces_the_old_one_or_joins_at_the_end() {
    let document = r#"{"a":1,"refresh_token":"an-rt","signature":"an-old-one","b":{"x":1}}"#;
    let reply = r#"{"signature":null,"access_token":"AT-new","b":{"y":2},"refresh_token":"rt2"}"#;
    let expected = "{\n  \"a\": 1,\n  \"refresh_token\": \"rt2\",\n  \"signature\": null,\n  \
                    \"b\": {\n    \"y\": 2\n  },\n  \"access_token\": \"AT-new\"\n}\n";
    assert_eq!(renewed(document, reply), expected);
}

#[test]
fn the_last_of_two_members_with_one_name_counts() {
    let document = format!(r#"{{"refresh_token":"the-first","refresh_token":"{REFRESH_TOKEN}"}}"#);
    let scenario = Scenario::strict().token(document);
    scenario.run(&[]).assert_ok();
    scenario.assert_in_step();
}

#[test]
fn a_file_that_holds_the_refresh_token_alone_is_enough() {
    let scenario = Scenario::strict().token(format!(r#"{{"refresh_token":"{REFRESH_TOKEN}"}}"#));
    scenario.run(&[]).assert_ok();
    scenario.assert_in_step();
    assert_eq!(scenario.member("token_type"), "Bearer");
}

#[test]
fn an_access_token_of_any_kind_in_the_file_is_replaced() {
    for value in ["null", "17", "\"\"", "[]", r#""with\u0007bell""#] {
        let document =
            token_document().replace(&format!("\"{}\"", crate::harness::OLD_ACCESS_TOKEN), value);
        let scenario = Scenario::strict().token(document);
        scenario.run(&["--if-older-than", "1h"]).assert_ok().assert_sent(1);
        scenario.assert_in_step();
    }
}
