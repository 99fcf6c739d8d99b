//! What newcomers bring, and what servers say in their own words: each answered with what to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{NOBODY, Scenario, TOKEN_FILE, is_root, set_mode, token_document};
use crate::server::{CLIENT_ID, Config, OAuth, REFRESH_TOKEN, Reply};

/// A run that sends nothing because of its endpoint: the URL that its hint gives.
#[track_caller]
fn assert_answered_with(url: &str, right: &str) {
    let scenario = Scenario::strict();
    let outcome = scenario.bare().args(["-i", CLIENT_ID, "-e", url, TOKEN_FILE]).run();
    outcome.assert_failed_unsent(2).assert_hints(right);
}

#[test]
fn a_page_of_the_browser_is_answered_with_the_endpoint() {
    let right = "https://my.my.salesforce.com/services/oauth2/token";
    assert_answered_with("https://my.lightning.force.com", right);
    assert_answered_with("https://my.my.salesforce-setup.com/lightning/setup", right);
    assert_answered_with("https://My.my.salesforce.com/services/oauth2/authorize", right);
}

#[test]
fn a_host_of_salesforce_may_stand_without_its_path() {
    let scenario = Scenario::strict();
    for host in ["my.my.salesforce.com", "login.salesforce.com", "test.salesforce.com"] {
        for end in ["", "/"] {
            let url = format!("https://{host}{end}");
            let run = scenario.bare().args(["-n", "-i", CLIENT_ID, "-e", &url, TOKEN_FILE]);
            run.run()
                .assert_ok()
                .assert_says(&format!("POST https://{host}/services/oauth2/token"));
        }
    }
}

#[test]
fn a_client_id_with_blanks_around_it_is_trimmed() {
    let scenario = Scenario::strict();
    let id = format!("  {CLIENT_ID}\t");
    scenario.bare().args(["-i", &id, "-e", &scenario.server.url(), TOKEN_FILE]).run().assert_ok();
    scenario.assert_in_step();
}

#[test]
fn documents_of_other_shapes_are_named_as_that() {
    let rt = REFRESH_TOKEN;
    for (document, hint) in [
        (format!(r#"{{"accessToken":"a","refreshToken":"{rt}"}}"#), "camelCase"),
        (format!(r#"{{"token":{{"access_token":"a","refresh_token":"{rt}"}}}}"#), "top level"),
        (r#"{"error":"invalid_grant"}"#.to_owned(), "log in again"),
        (r#"{"access_token":"a","token_type":"Bearer"}"#.to_owned(), "--grant-type"),
    ] {
        let scenario = Scenario::strict().token(document);
        scenario.run(&[]).assert_failed_unsent(1).assert_hints(hint);
    }
}

#[test]
fn a_code_on_the_command_line_is_answered_with_a_hint() {
    let scenario = Scenario::strict();
    let grant = ["-g", "authorization_code", "-d", "code=Z-one-time", "new.json"];
    let outcome = scenario.command().args(grant).run();
    outcome.assert_ok().assert_hints("--data code@FILE");
    assert_eq!(scenario.server.last_request().field("code").as_deref(), Some("Z-one-time"));
}

#[test]
fn another_grant_makes_the_file_and_spares_the_next_request() {
    let scenario = Scenario::strict();
    let grant = ["-g", "client_credentials", "--if-older-than", "1h", "new.json"];
    scenario.command().args(grant).run().assert_ok().assert_sent(1);
    let mode = fs::metadata(scenario.dir.join("new.json")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(scenario.server.last_request().field("refresh_token"), None);
    scenario.command().args(grant).run().assert_ok().assert_sent(0).assert_says("still fresh");
}

#[test]
fn verbose_tells_status_address_and_rotation() {
    for (rotate, fate) in [(true, "rotated"), (false, "stays")] {
        let scenario = Scenario::with(Config::oauth(OAuth::default().rotate(rotate)));
        let outcome = scenario.run(&["-v"]);
        let address = scenario.server.address().to_string();
        outcome.assert_ok().assert_says("HTTP 200").assert_says(fate).assert_says(&address);
    }
    let scenario = Scenario::scripted([Reply::error(400, "invalid_scope", "no")]);
    scenario.run(&["-v"]).assert_failed(5).assert_says("HTTP 400");
}

/// A refusal of Entra, which tells codes and ids beside the standard members.
const ENTRA: &str = r#"{"error":"invalid_grant","error_description":"AADSTS700082: The refresh token has expired due to inactivity.","error_codes":[700082],"timestamp":"2026-11-24 08:00:00Z",
"trace_id":"0a0b","correlation_id":"0c0d","error_uri":"https://login.example/error?code=700082"}"#;

#[test]
fn refusals_are_answered_with_what_to_do() {
    for (reply, options, status, hint) in [
        (Reply::error(400, "invalid_grant", "ip restricted"), &[][..], 5, "address"),
        (Reply::new(400, ""), &[], 5, "client id and secret"),
        (Reply::html(401), &[], 5, "client id and secret"),
        (Reply::json(401, r#"{"error":{"error":"invalid_client"}}"#), &[], 5, "log in again"),
        (Reply::json(400, r#"{"errors":["bad"]}"#), &[], 5, "log in again"),
        (Reply::new(401, "Invalid client: client is invalid"), &[], 5, "client id and secret"),
        (Reply::new(401, "error=invalid_client"), &[], 5, "client id and secret"),
        // As Keycloak, Okta and Entra word a dead refresh token and a wrong secret.
        (Reply::error(400, "invalid_grant", "Token is not active"), &[], 3, "log in again"),
        (Reply::error(400, "invalid_grant", "The refresh token is expired."), &[], 3, "log in"),
        (Reply::json(400, ENTRA), &[], 3, "log in again"),
        (
            Reply::error(401, "unauthorized_client", "Invalid client secret"),
            &[],
            5,
            "allow the app",
        ),
        (Reply::error(401, "invalid_client", "no"), &["--basic"], 5, "leave --basic out"),
    ] {
        let scenario = Scenario::scripted([reply]);
        let run = scenario.command().env("SF_CLIENT_SECRET", "a-client-secret");
        let outcome = run.args(options).arg(TOKEN_FILE).run();
        outcome.assert_failed(status).assert_hints(hint).assert_says_not("captive");
    }
}

#[test]
fn entities_in_what_a_server_says_are_decoded_once() {
    let said = "&lt;b&gt; isn&#39;t &amp;amp; %41";
    let scenario = Scenario::scripted([Reply::error(400, "invalid_grant", said)]);
    scenario.run(&[]).assert_failed(3).assert_says("<b> isn't &amp; A");
}

#[test]
fn one_sfdx_url_is_one_login_and_makes_one_file() {
    let scenario = Scenario::strict();
    let url = format!("force://{CLIENT_ID}::{REFRESH_TOKEN}@x.test");
    let run = scenario.command().env("SFDX_AUTH_URL", url);
    run.args(["a.json", "b.json"]).run().assert_failed_unsent(1);
    assert!(!scenario.server.live().revoked, "the grant is lost");
}

#[test]
fn a_file_edited_during_the_wait_gets_the_grant_in_the_next_run() {
    let scenario = Scenario::strict();
    let edited = token_document().replace("api id", "api web");
    let outcome = scenario.while_thinking(1, scenario.command().arg(TOKEN_FILE), |_| {
        fs::write(scenario.file(), &edited).expect("to write");
    });
    outcome.assert_status(6).assert_says(".sf-refresh");
    scenario.run(&[]).assert_ok();
    scenario.assert_in_step();
}

#[test]
fn a_conflict_without_a_place_for_a_file_prints_the_document() {
    if !is_root("a folder that is closed to the run") {
        return;
    }
    let scenario = Scenario::strict();
    set_mode(&scenario.file(), 0o666);
    let run = scenario.command().env("TMPDIR", "/nonexistent").arg(TOKEN_FILE).user(NOBODY);
    let outcome = scenario.while_thinking(1, run, |_| {
        let theirs = token_document().replace(REFRESH_TOKEN, "RT-of-a-login");
        fs::write(scenario.file(), theirs).expect("to write");
    });
    outcome.assert_status(6).assert_says("stdout");
    let live = scenario.server.live().refresh_token.expect("a token");
    outcome.assert(outcome.text().contains(&live), "the grant is lost");
}

#[test]
fn a_filter_prints_a_refresh_token_that_came_alone_and_fails() {
    let reply = r#"{"access_token":null,"refresh_token":"RT-new-one"}"#;
    let scenario = Scenario::scripted([Reply::json(200, reply)]);
    let outcome = scenario.command().arg("-").stdin(token_document()).run();
    outcome.assert_status(5).assert_says("no access_token");
    outcome.assert(outcome.text().contains("RT-new-one"), "the grant is lost");
}

#[test]
fn a_proxy_that_is_none_and_one_without_an_address_are_told_apart() {
    use crate::harness::TempDir;
    let dir = TempDir::new();
    dir.write(TOKEN_FILE, token_document());
    let run = |proxy: &str| {
        let run = crate::harness::Run::new(&dir).env("HTTPS_PROXY", proxy);
        let options = ["-i", CLIENT_ID, "--retry", "0", "--timeout", "20", TOKEN_FILE];
        run.args(options).run()
    };
    let no_name = run("http://proxy.invalid:3128");
    no_name.assert_failed(4).assert_says("cannot find the proxy proxy.invalid:3128");
    let server = crate::server::Server::start(Config::scripted([Reply::html(501)]));
    run(&format!("http://{}", server.address())).assert_failed(5).assert_says("HTTP 501");
}
