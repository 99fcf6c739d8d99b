//! What each reply of the endpoint leads to: granted, refused, later, lost.

use std::fs;
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use serde_json::json;

use crate::harness::{OLD_ACCESS_TOKEN, Outcome, Scenario, TOKEN_FILE, form_encoded};
use crate::server::{
    CLIENT_ID, Config, Framing, REFRESH_TOKEN, Reply, Server, Tls, certificate_path,
};

const NEW_ACCESS_TOKEN: &str = "00Dxx0000001gPL!AT-1-scripted";
const NEW_REFRESH_TOKEN: &str = "5Aep-RT-1-scripted";
const IN_PROGRESS: &str = "token request is already being processed";
const MAY_HAVE_USED: &str = "the server may have used the refresh token";

/// A grant that replaces both tokens.
fn grant() -> Reply {
    Reply::grant(NEW_ACCESS_TOKEN, Some(NEW_REFRESH_TOKEN))
}

/// The JSON of such a grant, and no more than a server has to give.
fn short_grant() -> String {
    json!({ "access_token": NEW_ACCESS_TOKEN, "refresh_token": NEW_REFRESH_TOKEN }).to_string()
}

/// A reply that says 'later', and that later is now.
fn at_once(reply: Reply) -> Reply {
    reply.header("Retry-After", "0")
}

/// Runs it against one reply, with tries to spare: one request, and both new tokens are saved.
#[track_caller]
fn granted(reply: Reply) -> Outcome {
    let scenario = Scenario::scripted([reply]);
    let outcome = scenario.run(&["--retry", "3"]);
    assert_saved(&scenario, &outcome);
    outcome.assert_sent(1);
    outcome
}

/// Runs it once against one reply: a temporary failure, nothing has changed.
#[track_caller]
fn is_temporary(reply: Reply) -> Outcome {
    let outcome = Scenario::scripted([reply]).run(&["--retry", "0"]);
    outcome.assert_failed(4).assert_sent(1);
    outcome
}

/// Both new tokens are in the file, the access token is on stdout, and no journal is left.
#[track_caller]
fn assert_saved(scenario: &Scenario, outcome: &Outcome) {
    outcome.assert_ok().assert_stdout(&format!("{NEW_ACCESS_TOKEN}\n"));
    assert_eq!(scenario.member("access_token"), NEW_ACCESS_TOKEN);
    assert_eq!(scenario.member("refresh_token"), NEW_REFRESH_TOKEN);
    assert!(!scenario.journal().exists(), "the journal is still there");
}

/// Runs it against one reply, with tries to spare: it fails after one request, nothing has changed.
#[track_caller]
fn fails(reply: Reply, status: i32) -> Outcome {
    let scenario = Scenario::scripted([reply]);
    let outcome = scenario.run(&["--retry", "3"]);
    outcome.assert_failed(status).assert_sent(1);
    outcome
}

// ---- Granted ----

#[test]
fn a_grant_counts_under_any_status_of_success() {
    for status in [200, 201, 202, 203, 206, 299] {
        granted(Reply::json(status, short_grant()));
    }
}

#[test]
fn a_grant_counts_whatever_its_content_type_says() {
    granted(Reply::new(200, short_grant()));
    for kind in ["text/html", "application/x-www-form-urlencoded", "text/plain;charset=UTF-16", ""]
    {
        granted(Reply::new(200, short_grant()).header("Content-Type", kind));
    }
}

#[test]
fn a_grant_may_have_blanks_around_it_and_a_byte_order_mark() {
    granted(Reply::json(200, format!("\r\n\t {}\n\n", short_grant())));
    granted(Reply::json(200, format!("\u{FEFF}{}", short_grant())));
}

#[test]
fn a_grant_in_latin_1_is_kept_with_its_other_characters_replaced() {
    let mut body = format!(
        r#"{{"access_token":"{NEW_ACCESS_TOKEN}","refresh_token":"{NEW_REFRESH_TOKEN}","user":"Jos"#
    )
    .into_bytes();
    body.extend_from_slice(b"\xE9 Mu\xF1oz\"}");
    let scenario = Scenario::scripted([Reply::json(200, body)]);
    let outcome = scenario.run(&[]);
    assert_saved(&scenario, &outcome);
    assert_eq!(scenario.member("user"), "Jos\u{FFFD} Mu\u{FFFD}oz");
}

#[test]
fn a_grant_with_half_a_surrogate_pair_is_kept() {
    // The grammar of JSON allows it, and who has such a name needs a token as well (RFC 8259 §8.2).
    for escape in ["\\ud83d", "\\udE00", "\\ud83d\\u0041", "\\\\\\ud83d"] {
        let body = short_grant().replace('}', &format!(r#","user":"{escape}!"}}"#));
        let outcome = granted(Reply::json(200, body));
        outcome.assert_says("granted");
    }
}

#[test]
fn a_grant_after_interim_replies_is_found() {
    let last = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", short_grant());
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";
    let interim = ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n", early];
    for interim in interim {
        granted(Reply::raw(format!("{interim}{last}")));
        granted(Reply::raw(format!("{interim}{interim}{last}")));
    }
}

#[test]
fn a_grant_may_have_long_and_many_headers() {
    let long = grant().header("Content-Security-Policy", &"https://example.test ".repeat(600));
    granted((0..30).fold(long, |reply, n| reply.header(&format!("X-Number-{n}"), "1")));
}

#[test]
fn a_grant_over_http_1_0_is_read() {
    granted(Reply::raw(format!("HTTP/1.0 200 OK\r\n\r\n{}", short_grant())));
}

#[test]
fn a_whole_grant_counts_however_the_connection_ends_after_it() {
    for framing in [
        Framing::Length,
        Framing::Chunked,
        Framing::CloseDelimited,
        Framing::CloseAbrupt,
        Framing::TooLong(1),
        Framing::TooLong(70_000),
        Framing::ChunkedCut,
    ] {
        granted(grant().framing(framing));
        for version in [&TLS12, &TLS13] {
            let reply = grant().framing(framing);
            let tls = Tls::new("server").versions([version]);
            let scenario = Scenario::with(Config::scripted([reply]).tls(tls));
            let ca = certificate_path("ca");
            let outcome = scenario.run(&["--ca-cert", &ca.to_string_lossy()]);
            assert_saved(&scenario, &outcome);
            outcome.assert_sent(1);
        }
    }
}

#[test]
fn a_whole_grant_counts_although_the_server_never_ends_its_reply() {
    let scenario =
        Scenario::scripted([Reply::json(200, short_grant()).framing(Framing::Unended(1))]);
    let outcome = scenario.run(&["--timeout", "1.5"]);
    assert_saved(&scenario, &outcome);
    outcome.assert_sent(1);
}

#[test]
fn a_grant_of_almost_a_mebibyte_is_saved_and_can_be_renewed_again() {
    let extra = "x".repeat(1024 * 1024 - 512);
    let body = short_grant().replace('}', &format!(r#","extra":"{extra}"}}"#));
    let scenario = Scenario::scripted([Reply::json(200, body).close()]);
    let outcome = scenario.run(&[]);
    assert_saved(&scenario, &outcome);
    scenario.run(&["--dry-run"]).assert_ok();
}

#[test]
fn a_refresh_token_that_is_none_does_not_replace_the_old_one() {
    for value in ["null", "\"\"", "17", "true", "[\"5Aep-RT\"]", "{}"] {
        let body = format!(r#"{{"access_token":"{NEW_ACCESS_TOKEN}","refresh_token":{value}}}"#);
        let scenario = Scenario::scripted([Reply::json(200, body)]);
        scenario.run(&[]).assert_ok().assert_sent(1);
        assert_eq!(scenario.member("access_token"), NEW_ACCESS_TOKEN);
        assert_eq!(scenario.member("refresh_token"), REFRESH_TOKEN);
    }
}

// ---- Success without a grant ----

#[test]
fn an_error_under_a_status_of_success_counts_as_that_error() {
    for (error, status) in [
        ("invalid_grant", 3),
        ("inactive_user", 3),
        ("invalid_client_id", 5),
        ("something_new", 5),
        ("server_error", 4),
        ("rate_limit_exceeded", 4),
    ] {
        let reply = Reply::error(200, error, "as it says");
        let outcome = if status == 4 { is_temporary(reply) } else { fails(reply, status) };
        outcome.assert_says(error).assert_says("as it says");
    }
}

#[test]
fn a_web_page_is_named_as_one() {
    let words = "a web page, not JSON";
    let outcome = fails(Reply::html(200), 5);
    outcome.assert_says(words).assert_hints("--endpoint").assert_hints("captive portal");
    let page = Reply::new(200, "\u{FEFF}\n <html><body>Sign in</body></html>");
    fails(page.header("Content-Type", "application/json"), 5).assert_says(words);
}

#[test]
fn an_empty_reply_is_named_as_one() {
    for reply in [
        Reply::new(200, ""),
        Reply::json(200, " \r\n"),
        Reply::new(204, ""),
        Reply::new(200, "").framing(Framing::Chunked),
        Reply::new(200, "").framing(Framing::CloseDelimited),
    ] {
        fails(reply, 5).assert_says("an empty body").assert_hints("--endpoint");
    }
}

#[test]
fn a_form_encoded_reply_is_named_as_one() {
    let body = format!("access_token={NEW_ACCESS_TOKEN}&token_type=bearer");
    let scenario = Scenario::scripted([Reply::new(200, body)]);
    let outcome = scenario.command().secret(NEW_ACCESS_TOKEN).arg(TOKEN_FILE).run();
    outcome.assert_failed(5).assert_sent(1).assert_says("form-encoded");
}

#[test]
fn json_that_is_no_object_is_named_as_that() {
    let list = r#"[{"access_token":"00Dxx-in-a-list"}]"#;
    for body in ["[]", list, r#""00Dxx-in-a-string""#, "17", "true", "null"] {
        fails(Reply::json(200, body), 5)
            .assert_says("JSON that is no object")
            .assert_says_not("00Dxx");
    }
}

#[test]
fn json_without_an_access_token_is_no_grant() {
    for body in ["{}", r#"{"expires_in":3600}"#, r#"{"Access_Token":"00Dxx-cased"}"#] {
        fails(Reply::json(200, body), 5).assert_says("without a usable access_token");
    }
}

#[test]
fn an_access_token_that_cannot_be_used_is_no_grant() {
    // RFC 6749 appendix A.12: one or more of %x20-7E.
    for value in [
        r#""""#,
        "null",
        "17",
        "true",
        r#"["00Dxx-list"]"#,
        r#"{"value":"00Dxx"}"#,
        r#""00Dxx-line\nbreak""#,
        r#""00Dxx-nul\u0000""#,
        r#""00Dxx-delete\u007f""#,
        r#""00Dxx-umlaut-ä""#,
        r#""00Dxx\t""#,
    ] {
        let reply = Reply::json(200, format!(r#"{{"access_token":{value}}}"#));
        fails(reply, 5).assert_says("without a usable access_token").assert_says_not("00Dxx");
    }
}

#[test]
fn what_is_not_json_at_all_is_said_to_be_so() {
    for body in ["OK", "{access_token: 1}", "\u{1}\u{2}\u{3}", "ok {", "\u{1F}\u{8B}\u{8}"] {
        fails(Reply::json(200, body), 5).assert_says("not JSON").assert_hints("--endpoint");
    }
}

#[test]
fn an_answer_that_is_not_http_is_the_wrong_endpoint() {
    for bytes in ["SSH-2.0-OpenSSH_9.7\r\n", "220 mail.example.test ESMTP\r\n", "\u{15}\u{3}\u{3}"]
    {
        fails(Reply::raw(bytes), 5).assert_says("not HTTP").assert_hints("--endpoint");
    }
}

// ---- Refused for good ----

#[test]
fn a_refused_grant_says_why_and_to_log_in_again() {
    for error in ["invalid_grant", "inactive_user", "inactive_org", "access_denied"] {
        for status in [400, 401, 403] {
            let outcome = fails(Reply::error(status, error, "expired access/refresh token"), 3);
            outcome.assert_says(error).assert_says("expired access/refresh token");
            outcome.assert_hints("log in again");
        }
    }
}

#[test]
fn a_refusal_without_a_description_is_still_one() {
    for body in [
        r#"{"error":"invalid_grant"}"#,
        r#"{"error":"invalid_grant","error_description":null}"#,
        r#"{"error":"invalid_grant","error_description":17}"#,
        r#"{"error":"invalid_grant","error_description":""}"#,
        r#"{"error":"invalid_grant","error_description":["token"]}"#,
    ] {
        fails(Reply::json(400, body), 3).assert_says("invalid_grant").assert_hints("log in again");
    }
    fails(Reply::json(400, "\u{FEFF}{\"error\":\"invalid_grant\"}"), 3);
}

// ---- Set-up ----

#[test]
fn a_client_that_is_not_accepted_is_a_matter_of_set_up_with_a_hint() {
    for (error, hint) in [
        ("invalid_client", "--client-secret-file"),
        ("invalid_client_id", "--client-id"),
        ("unauthorized_client", "app"),
        ("unsupported_grant_type", "--endpoint"),
        ("invalid_scope", "scope"),
        ("invalid_request", "--endpoint"),
        ("app_not_found", "--client-id"),
    ] {
        for status in [400, 401, 403] {
            let outcome = fails(Reply::error(status, error, "it was not accepted"), 5);
            outcome.assert_says(error).assert_says("it was not accepted").assert_hints(hint);
        }
    }
}

#[test]
fn any_other_error_of_the_request_is_a_matter_of_set_up() {
    for status in [400, 402, 404, 405, 415, 422, 451] {
        fails(Reply::error(status, "new_kind_of_error", "a reason"), 5)
            .assert_says("new_kind_of_error")
            .assert_says("a reason");
    }
}

#[test]
fn a_refusal_that_is_no_oauth_error_names_its_status_and_what_came() {
    fails(Reply::html(404), 5).assert_says("HTTP 404").assert_hints("--endpoint");
    let unsaid = "the server refused without saying why";
    for status in [400, 401] {
        for body in ["", "Unauthorized", "<html>No</html>"] {
            let outcome = fails(Reply::new(status, body), 5);
            outcome.assert_says(&format!("HTTP {status}")).assert_says(unsaid);
            outcome.assert_hints("client id and secret").assert_says_not("captive portal");
        }
    }
    fails(Reply::json(403, "[]"), 5).assert_says("HTTP 403").assert_says("no object");
    let foreign = r#"{"error":{"code":400,"message":"no string"}}"#;
    fails(Reply::json(400, foreign), 5).assert_says("HTTP 400");
}

// ---- Later ----

#[test]
fn a_busy_server_is_a_temporary_failure() {
    for error in ["rate_limit_exceeded", "temporarily_unavailable", "server_error"] {
        for status in [400, 401] {
            let outcome = is_temporary(Reply::error(status, error, "try again in a while"));
            outcome.assert_says(error).assert_says("try again in a while");
        }
    }
}

#[test]
fn a_status_that_says_later_is_a_temporary_failure_whatever_the_body() {
    for status in [408, 420, 500, 501, 502, 504, 507, 520, 599] {
        is_temporary(Reply::html(status)).assert_says(&format!("HTTP {status}"));
        is_temporary(Reply::new(status, "")).assert_says(&format!("HTTP {status}"));
        is_temporary(Reply::error(status, "server_error", "oh")).assert_says("server_error");
    }
}

#[test]
fn a_server_that_says_later_is_asked_again() {
    for status in [408, 420, 429, 500, 502, 503, 504] {
        for busy in [Reply::html(status), Reply::error(status, "rate_limit_exceeded", "wait")] {
            let scenario = Scenario::scripted([at_once(busy.clone()), at_once(busy), grant()]);
            let outcome = scenario.run(&[]);
            assert_saved(&scenario, &outcome);
            outcome.assert_sent(3);
        }
    }
}

#[test]
fn it_is_sent_again_as_often_as_told() {
    for (options, sent) in
        [(&[][..], 3), (&["--retry", "0"], 1), (&["--retry", "1"], 2), (&["--retry", "7"], 8)]
    {
        let scenario = Scenario::scripted([at_once(Reply::html(503))]);
        let outcome = scenario.run(options);
        outcome.assert_failed(4).assert_sent(sent).assert_says("HTTP 503");
    }
}

#[test]
fn it_may_be_sent_again_a_hundred_times() {
    let scenario = Scenario::scripted([at_once(Reply::html(503))]);
    scenario.run(&["--retry", "100"]).assert_failed(4).assert_sent(101);
}

#[test]
fn another_failure_ends_the_tries() {
    let refused = Reply::error(400, "invalid_grant", "expired");
    let scenario = Scenario::scripted([at_once(Reply::html(503)), refused, grant()]);
    scenario.run(&["--retry", "9"]).assert_failed(3).assert_sent(2);
}

/// Runs it against a busy server, then a grant: how long that took, and both were asked for.
#[track_caller]
fn time_of_two_tries(busy: Reply) -> Duration {
    let scenario = Scenario::scripted([busy, grant()]);
    let start = Instant::now();
    let outcome = scenario.run(&["--timeout", "100", "--retry", "1"]);
    assert_saved(&scenario, &outcome);
    outcome.assert_sent(2);
    start.elapsed()
}

#[test]
fn without_retry_after_it_waits_a_second() {
    assert!(time_of_two_tries(Reply::html(503)) >= Duration::from_secs(1));
}

#[test]
fn retry_after_in_seconds_is_waited_for() {
    let busy = Reply::html(503).header("Retry-After", "2");
    assert!(time_of_two_tries(busy) >= Duration::from_secs(2));
}

#[test]
fn a_wait_beyond_the_time_out_ends_the_run_at_once() {
    for after in ["100", "101", "4294967296", "18446744073709551615", "99999999999999999999"] {
        let scenario = Scenario::scripted([Reply::html(503).header("Retry-After", after)]);
        let start = Instant::now();
        let outcome = scenario.run(&["--timeout", "100", "--retry", "9"]);
        outcome.assert_failed(4).assert_sent(1).assert_says("HTTP 503");
        assert!(start.elapsed() < Duration::from_secs(90), "{after} was waited for");
    }
}

#[test]
fn a_retry_after_that_means_nothing_is_as_if_there_were_none() {
    for after in ["", "soon", "-1", "1.5", "0x10", "Fri, 31 Dec 2099 23:59:59 GMT"] {
        let busy = Reply::html(503).header("Retry-After", after);
        let scenario = Scenario::scripted([busy, grant()]);
        let outcome = scenario.run(&["--retry", "0"]);
        outcome.assert_failed(4).assert_sent(1).assert_says("HTTP 503");
    }
    time_of_two_tries(Reply::html(503).header("Retry-After", "Fri, 31 Dec 2099 23:59:59 GMT"));
}

// ---- Already being processed ----

#[test]
fn a_grant_that_is_being_processed_is_asked_for_again_and_then_given_up() {
    let spellings = [
        "token request is already being processed",
        "Token request is already being processed",
        "TOKEN REQUEST IS ALREADY BEING PROCESSED",
        "error: token request is already being processed, wait",
    ];
    for (retry, description) in ["0", "1", "0", "0"].into_iter().zip(spellings) {
        let scenario = Scenario::scripted([Reply::error(400, "invalid_grant", description)]);
        let outcome = scenario.run(&["--retry", retry]);
        outcome.assert_failed(4).assert_sent(retry.parse::<usize>().expect("a number") + 1);
        outcome.assert_says(description);
    }
}

#[test]
fn a_grant_that_is_being_processed_may_be_given_a_second_later() {
    let in_progress = Reply::error(400, "invalid_grant", IN_PROGRESS);
    let start = Instant::now();
    let scenario = Scenario::scripted([in_progress, grant()]);
    let outcome = scenario.run(&[]);
    assert_saved(&scenario, &outcome);
    outcome.assert_sent(2);
    assert!(start.elapsed() >= Duration::from_secs(1), "it did not wait a second");
}

#[test]
fn the_same_words_under_another_error_are_no_reason_to_wait() {
    fails(Reply::error(400, "invalid_client", IN_PROGRESS), 5);
    fails(Reply::error(400, "inactive_user", IN_PROGRESS), 3);
}

/// Runs it against an endpoint that says the grant is being processed, once the file has been
/// replaced by this document, as a program does that knows nothing of locks.
#[track_caller]
fn against_another_program(document: &str) -> Outcome {
    let scenario = Scenario::scripted([Reply::error(400, "invalid_grant", IN_PROGRESS)]);
    let outcome = scenario.while_thinking(1, scenario.command().arg(TOKEN_FILE), |_| {
        let work = scenario.dir.write("other-program", document);
        fs::rename(work, scenario.file()).expect("its new name");
    });
    outcome.assert_sent(1);
    assert_eq!(scenario.dir.read(TOKEN_FILE), document.as_bytes());
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
    outcome
}

#[test]
fn what_another_program_saved_meanwhile_is_taken_and_nothing_sent_again() {
    let outcome = against_another_program(&short_grant());
    outcome.assert_ok().assert_stdout(&format!("{NEW_ACCESS_TOKEN}\n"));
    outcome.assert_says("renewed by another run meanwhile").assert_says_not("granted");
}

#[test]
fn what_another_program_spoilt_meanwhile_is_left_alone() {
    let outcome = against_another_program("{\"access_token\": \"00Dxx-cut");
    outcome.assert_status(1).assert_stdout("").assert_says("is not JSON");
}

// ---- What the server says ----

/// What stderr makes of a description.
#[track_caller]
fn described(description: &str) -> Outcome {
    fails(Reply::error(400, "invalid_grant", description), 3)
}

#[test]
fn control_characters_of_the_server_are_not_passed_on() {
    let outcome =
        described("\u{1B}[31mred\u{1B}]0;title\u{7}\r\nsf-refresh: \u{0}all\tis\u{9B}well\u{7F}");
    outcome.assert_says("([31mred]0;titlesf-refresh: alliswell)");
    assert_eq!(outcome.stderr.lines().count(), 2, "{:?}", outcome.stderr);
    let code = fails(Reply::error(400, "new\r\nhint: \u{1B}[2Jkind", ""), 5);
    code.assert_says("newhint: [2Jkind");
}

#[test]
fn what_turns_text_round_is_not_passed_on() {
    // All that Unicode has as Bidi_Control, and the separators of lines and paragraphs.
    let turns = "\u{61C}\u{200E}\u{200F}\u{202A}\u{202B}\u{202C}\u{202D}\u{202E}\u{2066}\u{2067}\
                 \u{2068}\u{2069}\u{2028}\u{2029}";
    for c in turns.chars() {
        described(&format!("one{c}two")).assert_says("(onetwo)");
    }
    described("grüße, 世界, 🔑").assert_says("(grüße, 世界, 🔑)");
}

#[test]
fn secrets_in_what_the_server_says_are_masked() {
    let refresh_token = "5Aep+RT/0=first token%~!";
    let document = json!({
        "access_token": OLD_ACCESS_TOKEN, "refresh_token": refresh_token, "id_token": "eyJh.eyJz.c2ln",
    });
    let secret = "s3cr3t+/=% of the app";
    let percent = form_encoded(refresh_token).replace('+', "%20");
    for spoken in [
        refresh_token,
        &form_encoded(refresh_token),
        &percent,
        &percent.to_ascii_lowercase().replace("5aep", "5Aep").replace("rt", "RT"),
        OLD_ACCESS_TOKEN,
        &form_encoded(OLD_ACCESS_TOKEN),
        "eyJh.eyJz.c2ln",
        secret,
        &form_encoded(secret),
        "5Aep+RT\u{7}/0=first token\u{202E}%~!",
    ] {
        let reply = Reply::error(400, "invalid_grant", &format!("no such token: <{spoken}>"));
        let scenario = Scenario::scripted([reply]).token(document.to_string());
        let outcome =
            scenario.command().env("SF_CLIENT_SECRET", secret).arg("-v").arg(TOKEN_FILE).run();
        outcome.assert_failed(3).assert_says("(no such token: <***>)");
        let in_code = Reply::error(400, spoken, "");
        scenario.server.script([in_code]);
        let outcome = scenario.command().env("SF_CLIENT_SECRET", secret).arg(TOKEN_FILE).run();
        outcome.assert_failed(5).assert_says("refused: ***");
    }
}

#[test]
fn an_authorization_header_in_what_the_server_says_is_masked() {
    let scenario = Scenario::scripted([]);
    let pair = format!("{}:{}", form_encoded(CLIENT_ID), form_encoded("s3cr3t of the app"));
    let header = format!("Basic {}", crate::harness::base64(pair.as_bytes()));
    scenario.server.script([Reply::error(401, "invalid_client", &format!("<{header}>"))]);
    let command = scenario.command().arg("--basic").env("SF_CLIENT_SECRET", "s3cr3t of the app");
    let outcome = command.arg(TOKEN_FILE).run();
    outcome.assert_failed(5).assert_sent(1).assert_says("(<Basic ***>)");
    assert_eq!(scenario.server.last_request().header("authorization"), Some(&*header));
}

#[test]
fn tokens_of_the_refusal_itself_are_masked() {
    let body = json!({
        "error": "invalid_grant", "error_description": "00Dxx!new-one replaced 5Aep-new-one",
        "access_token": "00Dxx!new-one", "refresh_token": "5Aep-new-one",
    });
    let outcome = fails(Reply::json(400, body.to_string()), 3);
    outcome.assert_says("(*** replaced ***)");
}

#[test]
fn a_long_description_is_cut_at_300_characters() {
    let outcome = described(&"ü".repeat(10_000));
    outcome.assert_says(&"ü".repeat(300)).assert_says_not(&"ü".repeat(301));
    described(&"y".repeat(300)).assert_says(&format!("({})", "y".repeat(300)));
    let outcome = fails(Reply::error(400, &"z".repeat(10_000), ""), 5);
    outcome.assert_says(&"z".repeat(300)).assert_says_not(&"z".repeat(301));
}

#[test]
fn a_secret_is_masked_before_the_text_is_cut() {
    for length in 280..=300 {
        let outcome = described(&format!("{}{REFRESH_TOKEN}", "-".repeat(length)));
        outcome.assert_says_not("5Aep").assert_says_not("5A");
    }
}

// ---- Redirects ----

#[test]
fn a_redirect_is_refused_and_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let other = Server::start(Config::scripted([grant()]));
        let outcome = fails(Reply::redirect(status, &other.url()), 5);
        outcome.assert_says("redirect refused").assert_says("127.0.0.1");
        outcome.assert_hints("--endpoint");
        assert_eq!(other.connections(), 0, "the redirect was followed");
    }
}

#[test]
fn of_a_redirect_nothing_but_the_host_is_named() {
    let location = "https://user:pa55word@other.example.test:8443/path?code=c0de&x=y#part";
    for status in [300, 302, 304, 307, 399] {
        let outcome = fails(Reply::redirect(status, location), 5);
        outcome.assert_says("redirect refused").assert_says("other.example.test");
        for hidden in ["user", "pa55word", "8443", "/path", "c0de", "part"] {
            outcome.assert_says_not(hidden);
        }
    }
}

#[test]
fn a_redirect_to_nowhere_in_particular_is_refused_too() {
    for location in ["/relative?code=c0de", "", "::::", "https://", "javascript:alert(1)"] {
        let outcome = fails(Reply::redirect(302, location), 5);
        outcome.assert_says("redirect refused").assert_says_not("c0de").assert_says_not("alert");
    }
    fails(Reply::new(302, ""), 5).assert_says("redirect refused");
}

#[test]
fn a_secret_in_the_host_of_a_redirect_is_masked() {
    let reply = Reply::redirect(302, &format!("https://{REFRESH_TOKEN}.example.test/"));
    fails(reply, 5).assert_says("redirect refused");
}

// ---- Lost after the request was sent ----

#[test]
fn half_a_grant_is_lost_wherever_it_ends() {
    let whole = short_grant();
    for length in [1, 20, whole.len() - 2, whole.len() - 1] {
        let half = &whole.as_bytes()[..length];
        for framing in [
            Framing::Length,
            Framing::CloseDelimited,
            Framing::CloseAbrupt,
            Framing::TooLong(9),
            Framing::ChunkedCut,
        ] {
            let scenario = Scenario::scripted([Reply::json(200, half).framing(framing)]);
            let outcome = scenario.run(&["--retry", "0"]);
            outcome.assert_failed(4).assert_sent(1).assert_says(MAY_HAVE_USED);
        }
    }
}

#[test]
fn a_server_that_does_not_answer_in_time_may_have_used_the_token() {
    let scenario = Scenario::scripted([Reply::hang(), grant()]);
    let outcome = scenario.run(&["--retry", "3", "--timeout", "1"]);
    outcome.assert_failed(4).assert_sent(1).assert_says("in time").assert_says(MAY_HAVE_USED);
}

#[test]
fn a_reply_that_stops_half_way_may_have_been_a_grant() {
    let half = Reply::json(200, r#"{"access_token":"00Dxx"#).framing(Framing::Unended(70));
    let scenario = Scenario::scripted([half]);
    let outcome = scenario.run(&["--retry", "3", "--timeout", "1"]);
    outcome.assert_failed(4).assert_sent(1).assert_says(MAY_HAVE_USED);
}

#[test]
fn a_reply_of_more_than_a_mebibyte_is_not_read() {
    let long = format!("{{\"extra\":\"{}\"}}", "x".repeat(1024 * 1024));
    let grant = long.replace('}', &format!(r#","access_token":"{NEW_ACCESS_TOKEN}"}}"#));
    for body in [long, grant, "<p>".repeat(1_000_000), " ".repeat(2 * 1024 * 1024)] {
        for framing in [Framing::Length, Framing::CloseDelimited] {
            fails(Reply::json(200, body.clone()).framing(framing), 5).assert_says("1 MiB");
        }
    }
}

#[test]
fn a_head_without_end_is_not_read() {
    let head = format!("HTTP/1.1 200 OK\r\n{}", "X-More: and more of it\r\n".repeat(50_000));
    let outcome = fails(Reply::raw(format!("{head}\r\n{}", short_grant())), 5);
    outcome.assert_says("HTTP");
}
