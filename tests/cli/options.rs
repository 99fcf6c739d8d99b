//! What each option and variable does to the request, and which values are refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use crate::harness::{
    NOBODY, Outcome, Run, Scenario, TOKEN_FILE, TempDir, base64, form_encoded, is_root, now_millis,
    set_age, set_mode, set_modified, token_document,
};
use crate::server::{CLIENT_ID, Config, OAuth, REFRESH_TOKEN, Reply, Tls, certificate_path};

/// A secret with every kind of character that a form has to encode.
const ODD_SECRET: &str = "s3cr3t &=+%25/?#~*-._:\"'é\u{1F511}";
/// The endpoint that is taken where nothing says otherwise.
const PRODUCTION: &str = "https://login.salesforce.com/services/oauth2/token";
const SANDBOX: &str = "https://test.salesforce.com/services/oauth2/token";

// ---- Client secret ----

/// An endpoint that demands a secret.
fn demanding(client_id: &str, secret: &str) -> Scenario {
    Scenario::with(Config::oauth(OAuth::default().client_id(client_id).client_secret(secret)))
}

#[test]
fn a_client_secret_comes_from_a_file_less_one_newline() {
    for end in ["", "\n", "\r\n"] {
        let scenario = demanding(CLIENT_ID, ODD_SECRET);
        scenario.dir.write("secret", format!("{ODD_SECRET}{end}"));
        scenario.run(&["-s", "secret"]).assert_ok().assert_sent(1);
        scenario.run(&["--client-secret-file", "secret"]).assert_ok().assert_sent(1);
        scenario.assert_in_step();
    }
}

#[test]
fn no_more_than_one_newline_is_dropped_from_a_client_secret() {
    let scenario = demanding(CLIENT_ID, "two-newlines\n");
    scenario.dir.write("secret", "two-newlines\n\n");
    scenario.run(&["-s", "secret"]).assert_ok();
    let field = scenario.server.last_request().field("client_secret");
    assert_eq!(field.as_deref(), Some("two-newlines\n"));
}

#[test]
fn a_client_secret_comes_through_a_pipe() {
    let scenario = demanding(CLIENT_ID, ODD_SECRET);
    let run = scenario.command().args(["-s", "/dev/stdin", TOKEN_FILE]);
    run.stdin(format!("{ODD_SECRET}\n")).run().assert_ok();
    scenario.assert_in_step();
}

#[test]
fn a_client_secret_comes_from_the_environment_and_a_file_beats_it() {
    let scenario = demanding(CLIENT_ID, ODD_SECRET);
    let by_variable = scenario.command().env("SF_CLIENT_SECRET", ODD_SECRET);
    by_variable.arg(TOKEN_FILE).run().assert_ok();
    scenario.dir.write("secret", ODD_SECRET);
    let by_both = scenario.command().env("SF_CLIENT_SECRET", "another-secret");
    by_both.args(["-s", "secret", TOKEN_FILE]).run().assert_ok();
    scenario.assert_in_step();
}

#[test]
fn a_client_secret_stands_form_encoded_in_the_body_and_nowhere_else() {
    let scenario = demanding(CLIENT_ID, ODD_SECRET);
    scenario.command().env("SF_CLIENT_SECRET", ODD_SECRET).arg(TOKEN_FILE).run().assert_ok();
    let request = scenario.server.last_request();
    let field = format!("&client_secret={}&", form_encoded(ODD_SECRET));
    assert!(request.text().contains(&field), "{}", request.text());
    assert_eq!(request.header("authorization"), None);
}

#[test]
fn basic_sends_id_and_secret_form_encoded_in_a_header_and_not_in_the_form() {
    let client_id = "an id: with %2B + é & =";
    let scenario = demanding(client_id, ODD_SECRET);
    let run = scenario.bare().args(["--basic", "-i", client_id, "-e", &scenario.server.url()]);
    run.env("SF_CLIENT_SECRET", ODD_SECRET).arg(TOKEN_FILE).run().assert_ok();
    let request = scenario.server.last_request();
    let pair = format!("{}:{}", form_encoded(client_id), form_encoded(ODD_SECRET));
    let header = format!("Basic {}", base64(pair.as_bytes()));
    assert_eq!(request.header("authorization"), Some(header.as_str()));
    let names: Vec<_> = request.form().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["grant_type", "refresh_token"]);
}

#[test]
fn basic_is_right_for_every_length_of_the_last_group_of_base64() {
    for secret in ["abcd", "abcde", "abcdef"] {
        let scenario = demanding(CLIENT_ID, secret);
        let run = scenario.command().env("SF_CLIENT_SECRET", secret);
        run.args(["--basic", TOKEN_FILE]).run().assert_ok();
        scenario.assert_in_step();
    }
}

#[test]
fn basic_without_a_secret_is_refused() {
    let scenario = Scenario::strict();
    let outcome = scenario.run(&["--basic"]);
    outcome.assert_failed_unsent(2).assert_says("--basic").assert_hints("--client-secret-file");
}

#[test]
fn a_secret_in_place_of_the_name_of_its_file_is_not_shown() {
    let scenario = Scenario::strict();
    for option in ["-s", "--client-secret-file", "--sfdx-url-file"] {
        let run = scenario.command().args([option, "hunter2secret", TOKEN_FILE]);
        let outcome = run.secret("hunter2secret").run();
        outcome.assert_failed_unsent(2).assert_hints("takes the name of a file");
    }
}

#[test]
fn a_secret_file_that_cannot_be_used_is_refused_by_the_name_of_its_option() {
    let scenario = Scenario::strict();
    let dir = &scenario.dir;
    fs::create_dir(dir.join("folder")).expect("a folder");
    dir.write("empty", "");
    dir.write("newline", "\n");
    dir.write("latin-1", b"s\xE9cret-in-latin-1");
    dir.write("large", vec![b'x'; (1 << 20) + 1]);
    for name in ["missing", "folder", "empty", "newline", "latin-1", "large"] {
        let options = [
            ("--client-secret-file", name.to_owned()),
            ("--sfdx-url-file", name.to_owned()),
            ("--data", format!("field@{name}")),
        ];
        for (option, argument) in options {
            if option == "--data" && ["empty", "newline"].contains(&name) {
                continue;
            }
            let outcome = scenario.run(&[option, &argument]);
            outcome.assert_failed_unsent(2).assert_says(option);
        }
    }
}

// ---- More form fields ----

#[test]
fn form_fields_are_added_as_they_are_given() {
    let scenario = Scenario::strict();
    scenario.dir.write("value", "from a file\n");
    scenario.dir.write("a=b", "from a file with an equals sign");
    let given = [
        ("scope=api id", "scope", "api id"),
        ("format=json", "format", "json"),
        ("empty=", "empty", ""),
        ("equals=a=b=c", "equals", "a=b=c"),
        ("at=a@b", "at", "a@b"),
        ("odd name&=odd value&", "odd name&", "odd value&"),
        ("é=\u{1F511}", "é", "\u{1F511}"),
        ("file@value", "file", "from a file"),
        ("named@a=b", "named", "from a file with an equals sign"),
    ];
    let mut run = scenario.command();
    for (argument, ..) in given {
        run = run.args(["-d", argument]);
    }
    run.arg(TOKEN_FILE).run().assert_ok();
    let form = scenario.server.last_request().form();
    let expected: Vec<_> =
        given.iter().map(|(_, name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(form[3..], expected);
}

#[test]
fn a_form_field_may_be_given_twice() {
    let scenario = Scenario::scripted([Reply::grant("AT-new-one", None)]);
    scenario.run(&["-d", "resource=a", "--data", "resource=b"]).assert_ok();
    let form = scenario.server.last_request().form();
    let expected = [("resource".to_owned(), "a".to_owned()), ("resource".into(), "b".into())];
    assert_eq!(form[3..], expected);
}

#[test]
fn a_form_field_of_ours_may_not_be_given() {
    let scenario = Scenario::strict();
    scenario.dir.write("value", "from a file");
    for name in ["grant_type", "client_id", "client_secret", "refresh_token"] {
        for given in [format!("{name}=of-the-user"), format!("{name}@value")] {
            let outcome = scenario.run(&["-d", &given]);
            outcome.assert_failed_unsent(2).assert_says(&format!("'{name}'"));
        }
    }
}

#[test]
fn a_form_field_without_a_name_is_refused() {
    let scenario = Scenario::strict();
    for given in ["=value-alone", "@value-alone", "value-alone"] {
        let run = scenario.command().args(["-d", given, TOKEN_FILE]).secret("value-alone");
        run.run().assert_failed_unsent(2).assert_hints("NAME=VALUE");
    }
}

// ---- Endpoint ----

/// The endpoint that a run would send to, by what `-n` shows.
#[track_caller]
fn shown_endpoint(outcome: &Outcome) -> String {
    outcome.assert_ok().assert_unchanged().assert_sent(0).assert_stdout("");
    let line = outcome.stderr.lines().find_map(|line| line.strip_prefix("POST "));
    line.unwrap_or_else(|| outcome.fail("no POST line")).to_owned()
}

/// A run in a folder with a token file whose `id` is this JSON text.
fn with_id(dir: &TempDir, id: &str) {
    let document = format!(r#"{{"refresh_token":"{REFRESH_TOKEN}","id":{id}}}"#);
    dir.write(TOKEN_FILE, document);
}

#[test]
fn the_endpoint_is_that_of_production_unless_the_token_is_a_sandbox_s() {
    let dir = TempDir::new();
    let chosen = [
        (r#""https://login.salesforce.com/id/00D/005""#, PRODUCTION),
        (r#""https://test.salesforce.com/id/00D/005""#, SANDBOX),
        (r#""https://test.salesforce.com""#, SANDBOX),
        (r#""https://test.salesforce.com/id/00D?x=y#z""#, SANDBOX),
        ("null", PRODUCTION),
        ("17", PRODUCTION),
        (r#"["https://test.salesforce.com/"]"#, PRODUCTION),
        (r#""""#, PRODUCTION),
    ];
    for (id, endpoint) in chosen {
        with_id(&dir, id);
        let outcome = Run::new(&dir).args(["-n", "-i", "an-id", TOKEN_FILE]).run();
        assert_eq!(shown_endpoint(&outcome), endpoint, "{id}");
    }
}

#[test]
fn a_token_file_can_choose_no_host_of_its_own() {
    let dir = TempDir::new();
    let malicious = [
        "https://evil.example/id",
        "https://test.salesforce.com.evil.example/id",
        "https://test.salesforce.com@evil.example/id",
        "https://user:word@test.salesforce.com@evil.example/id",
        "https://evil.example/https://test.salesforce.com/",
        "https://evil.example?https://test.salesforce.com/",
        "https://evil.example#https://test.salesforce.com/",
        "https://eviltest.salesforce.com/id",
        "https://evil.test.salesforce.com/id",
        "https://test-salesforce.com/id",
        "https://test.salesforce.co/id",
        "https:test.salesforce.com",
        "//test.salesforce.com/id",
        "test.salesforce.com",
        "https://test.salesforce.com\\\\.evil.example/id",
        "https://test.salesforce.com%2eevil.example/id",
        "https://test.salesforce.com\\u0000.evil.example/id",
        "https://test\u{3002}salesforce.com/id",
    ];
    for id in malicious {
        with_id(&dir, &format!("\"{id}\""));
        let outcome = Run::new(&dir).args(["-n", "-i", "an-id", TOKEN_FILE]).run();
        assert_eq!(shown_endpoint(&outcome), PRODUCTION, "{id}");
        outcome.assert_says_not("evil");
    }
}

#[test]
fn other_members_of_a_token_file_choose_no_endpoint_either() {
    let dir = TempDir::new();
    let names = ["instance_url", "token_endpoint", "endpoint", "iss", "login_url", "loginUrl"];
    for name in names {
        let document = format!(
            r#"{{"refresh_token":"an-rt","{name}":"https://evil.example/services/oauth2/token"}}"#
        );
        dir.write(TOKEN_FILE, document);
        let outcome = Run::new(&dir).args(["-n", "-i", "an-id", TOKEN_FILE]).run();
        assert_eq!(shown_endpoint(&outcome), PRODUCTION, "{name}");
    }
}

#[test]
fn option_before_environment_before_sfdx_url_before_file() {
    let dir = TempDir::new();
    with_id(&dir, r#""https://test.salesforce.com/id""#);
    let run = || Run::new(&dir).args(["-n", "-i", "an-id", TOKEN_FILE]);
    let sfdx = "force://PlatformCLI::another-rt@sfdx.my.salesforce.com";
    assert_eq!(shown_endpoint(&run().run()), SANDBOX);
    let by_sfdx = run().env("SFDX_AUTH_URL", sfdx).run();
    let sfdx_endpoint = "https://sfdx.my.salesforce.com/services/oauth2/token";
    assert_eq!(shown_endpoint(&by_sfdx), sfdx_endpoint);
    let by_variable =
        run().env("SFDX_AUTH_URL", sfdx).env("SF_TOKEN_ENDPOINT", "https://env.test/t");
    assert_eq!(shown_endpoint(&by_variable.run()), "https://env.test/t");
    let by_option = run()
        .env("SFDX_AUTH_URL", sfdx)
        .env("SF_TOKEN_ENDPOINT", "https://env.test/t")
        .args(["-e", "https://option.test/t"]);
    assert_eq!(shown_endpoint(&by_option.run()), "https://option.test/t");
}

#[test]
fn an_endpoint_that_could_betray_a_secret_is_refused() {
    let scenario = Scenario::strict();
    let refused = [
        "https://user:hunter2pw@login.salesforce.com/t",
        "https://hunter2pw@login.salesforce.com/t",
        "https://@login.salesforce.com/t",
        "http://login.salesforce.com/t",
        "http://10.0.0.1/t",
        "http://0.0.0.0/t",
        "http://128.0.0.1/t",
        "http://127.0.0.1.evil.example/t",
        "http://localhost.evil.example/t",
        "http://evillocalhost/t",
        "http://[::2]/t",
        "http://[fe80::1]/t",
        "http://127.0.0.1@evil.example/t",
        "http://evil.example#@127.0.0.1/t",
        "http://evil.example\\@127.0.0.1/t",
        "http://2130706433/t",
    ];
    for url in refused {
        scenario
            .bare()
            .args(["-i", CLIENT_ID, "-e", url, TOKEN_FILE])
            .run()
            .assert_failed_unsent(2);
        let by_variable = scenario.bare().env("SF_TOKEN_ENDPOINT", url);
        let outcome = by_variable.args(["-i", CLIENT_ID, TOKEN_FILE]).run();
        outcome.assert_failed_unsent(2).assert_says("SF_TOKEN_ENDPOINT");
        if url.starts_with("https://") {
            outcome.assert_says("user information");
        }
    }
}

#[test]
fn an_endpoint_that_is_no_whole_url_is_refused() {
    let scenario = Scenario::strict();
    let refused = [
        "login.salesforce.com",
        "login.salesforce.com/services/oauth2/token",
        "/services/oauth2/token",
        "//login.salesforce.com/t",
        "https:",
        "https://",
        "https:///t",
        "https://:443/t",
        "https://login.salesforce.com:99999/t",
        "https://login.salesforce.com:65536/t",
        "https://login.salesforce.com:0/t",
        "https://login.salesforce.com:-1/t",
        "https://login.salesforce.com:+443/t",
        "https://login.salesforce.com:x/t",
        "https://login.salesforce.com/t#fragment",
        "https://login salesforce.com/t",
        "https://login.salesforce.com/a path",
        " https://login.salesforce.com/t",
        "https://lögin.salesforce.com/t",
        "https://login.salesforce.com\n/t",
        "https://[::1/t",
        "https://[zz]/t",
        "https://[]/t",
        "ftp://login.salesforce.com/t",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https//login.salesforce.com/t",
    ];
    for url in refused {
        let outcome = scenario.bare().args(["-i", CLIENT_ID, "-e", url, TOKEN_FILE]).run();
        outcome.assert_failed_unsent(2).assert_says("--endpoint");
    }
}

#[test]
fn an_endpoint_may_be_https_anywhere_and_http_on_this_machine() {
    let dir = TempDir::new();
    dir.write(TOKEN_FILE, token_document());
    let accepted = [
        "https://MyDomain.my.salesforce.com/services/oauth2/token",
        "https://10.0.0.1:8443/t",
        "https://[2001:db8::1]:65535/t",
        "https://my_host/t",
        "http://127.0.0.1/t",
        "http://127.9.9.9:1/t",
        "http://[::1]:8080/t",
        "http://localhost:8080/t",
        "http://LOCALHOST/t",
    ];
    for url in accepted {
        let outcome = Run::new(&dir).args(["-n", "-i", "an-id", "-e", url, TOKEN_FILE]).run();
        assert_eq!(shown_endpoint(&outcome).to_lowercase(), url.to_lowercase());
    }
}

#[test]
fn the_query_of_an_endpoint_is_sent_and_never_shown() {
    let scenario = Scenario::scripted([Reply::grant("AT-new-one", None)]);
    let url = format!("{}?key=hunter2secret", scenario.server.url());
    let run = || scenario.bare().args(["-i", CLIENT_ID, "-e", &url, "-v", TOKEN_FILE]);
    run().arg("-n").run().assert_ok().assert_says("/services/oauth2/token?");
    run().run().assert_ok().assert_sent(1);
    assert_eq!(scenario.server.last_request().path, "/services/oauth2/token?key=hunter2secret");
}

// ---- Sfdx URL ----

/// What `sf org display --verbose` prints for a client with a secret, and what `--json` makes of it.
fn sfdx_spellings(url: &str) -> [String; 4] {
    [
        url.to_owned(),
        format!("{url}\n"),
        format!(r#"{{"status":0,"result":{{"id":"00D","sfdxAuthUrl":"{url}"}},"warnings":[]}}"#),
        format!(r#"{{"sfdxAuthUrl":"{url}"}}"#),
    ]
}

#[test]
fn an_sfdx_url_gives_client_tokens_and_endpoint_and_makes_the_file() {
    let url =
        |port: u16| format!("force://{CLIENT_ID}:a-client-secret:{REFRESH_TOKEN}@localhost:{port}");
    for i in 0..4 {
        let oauth = OAuth::default().client_secret("a-client-secret");
        let scenario = Scenario::with(Config::oauth(oauth).tls(Tls::new("server")));
        let text = sfdx_spellings(&url(scenario.server.address().port()))[i].clone();
        fs::remove_file(scenario.file()).expect("to remove the file");
        scenario.dir.write("auth", text);
        let run = scenario.bare().arg("--ca-cert").arg(certificate_path("ca"));
        let run = run.args(["--sfdx-url-file", "auth", TOKEN_FILE]);
        run.run().assert_ok().assert_sent(1);
        scenario.assert_in_step();
        assert_eq!(fs::metadata(scenario.file()).expect("file").mode() & 0o7777, 0o600);
    }
}

#[test]
fn an_sfdx_url_comes_from_the_environment_and_a_file_beats_it() {
    let scenario = Scenario::strict();
    let url = format!("force://{CLIENT_ID}::{REFRESH_TOKEN}@x.test");
    let another = "force://another-client:another-secret:another-rt@y.test";
    fs::remove_file(scenario.file()).expect("to remove the file");
    let run = || scenario.bare().args(["-e", &scenario.server.url(), TOKEN_FILE]);
    run().env("SFDX_AUTH_URL", &url).run().assert_ok();
    scenario.assert_in_step();
    scenario.dir.write("auth", &url);
    let run = run().env("SFDX_AUTH_URL", another).args(["--sfdx-url-file", "auth"]);
    run.run().assert_ok();
    scenario.assert_in_step();
}

#[test]
fn the_short_form_of_an_sfdx_url_is_that_of_the_platform_cli() {
    let scenario = Scenario::with(Config::oauth(OAuth::default().client_id("PlatformCLI")));
    fs::remove_file(scenario.file()).expect("to remove the file");
    let run = scenario.bare().args(["-e", &scenario.server.url(), TOKEN_FILE]);
    let url = format!("force://{REFRESH_TOKEN}@login.salesforce.com");
    run.env("SFDX_AUTH_URL", url).run().assert_ok().assert_sent(1);
    scenario.assert_in_step();
    assert_eq!(scenario.server.last_request().field("client_secret"), None);
}

#[test]
fn the_refresh_token_of_a_token_file_beats_that_of_an_sfdx_url() {
    let scenario = Scenario::strict();
    let url = format!("force://{CLIENT_ID}::a-refresh-token-of-long-ago@x.test");
    let run = scenario.bare().args(["-e", &scenario.server.url(), TOKEN_FILE]);
    run.env("SFDX_AUTH_URL", url).run().assert_ok();
    scenario.assert_in_step();
}

#[test]
fn a_client_id_beside_an_sfdx_url_does_not_get_the_other_secret() {
    let scenario = Scenario::strict();
    let url = "force://another-client:another-secret:another-rt@x.test";
    scenario.command().arg(TOKEN_FILE).env("SFDX_AUTH_URL", url).run().assert_ok();
    assert_eq!(scenario.server.last_request().field("client_secret"), None);
    scenario.assert_in_step();
}

#[test]
fn a_token_file_that_was_to_be_made_is_not_there_after_a_failure() {
    let failures = [
        (Reply::error(400, "invalid_grant", "expired access/refresh token"), 3),
        (Reply::error(400, "invalid_client_id", "client identifier invalid"), 5),
        (Reply::error(503, "server_error", "later"), 4),
        (Reply::html(200), 5),
        (Reply::drop_before_reply(), 4),
    ];
    for (reply, status) in failures {
        let scenario = Scenario::scripted([reply]);
        fs::remove_file(scenario.file()).expect("to remove the file");
        let run = scenario.command().args(["--retry", "0", TOKEN_FILE]);
        let outcome = run.env("SFDX_AUTH_URL", "force://an-id::an-sfdx-rt@x.test").run();
        outcome.assert_failed(status).assert_sent(1);
    }
}

#[test]
fn a_token_file_is_made_for_its_owner_alone_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let scenario = Scenario::strict();
        fs::remove_file(scenario.file()).expect("to remove the file");
        let run = scenario.command().arg(TOKEN_FILE);
        let run = run.env("SFDX_AUTH_URL", format!("force://an-id::{REFRESH_TOKEN}@x.test"));
        let script = format!("umask {umask}; exec \"$@\"");
        run.through(&["/bin/sh", "-c", &script, "sh"]).run().assert_ok();
        let mode = fs::metadata(scenario.file()).expect("file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}

#[test]
fn a_token_file_is_not_made_where_that_cannot_be() {
    let scenario = Scenario::strict();
    let url = "force://an-id::an-sfdx-rt@x.test";
    let missing = scenario.command().arg("missing/token.json").env("SFDX_AUTH_URL", url).run();
    missing.assert_failed_unsent(1);
    std::os::unix::fs::symlink("nowhere", scenario.dir.join("dangling")).expect("a symlink");
    let dangling = scenario.command().arg("dangling").env("SFDX_AUTH_URL", url).run();
    dangling.assert_failed_unsent(1);
    fs::create_dir(scenario.dir.join(".new.json.sf-refresh")).expect("a folder");
    let no_journal = scenario.command().arg("new.json").env("SFDX_AUTH_URL", url).run();
    no_journal.assert_failed_unsent(1).assert_says("journal");
    if !is_root("a folder of another user") {
        return;
    }
    let closed = scenario.command().arg("closed.json").env("SFDX_AUTH_URL", url).user(NOBODY);
    closed.run().assert_failed_unsent(1).assert_says("permission denied");
}

#[test]
fn a_token_file_that_is_made_is_locked_between_two_tries_too() {
    let busy = Reply::html(503).header("Retry-After", "1");
    let scenario = Scenario::scripted([busy, Reply::grant("AT-new-one", Some("RT-new-one"))]);
    fs::remove_file(scenario.file()).expect("to remove the file");
    let run = scenario.command().args(["-v", TOKEN_FILE]);
    let mut run = run.env("SFDX_AUTH_URL", "force://an-id::an-sfdx-rt@x.test").start();
    run.wait_for("trying again");
    let file = fs::File::open(scenario.file()).expect("the file");
    assert!(file.try_lock().is_err(), "it is not locked");
    run.wait().assert_ok().assert_sent(2);
    assert_eq!(scenario.member("refresh_token"), "RT-new-one");
}

#[test]
fn what_is_no_sfdx_url_is_refused_and_not_shown() {
    let scenario = Scenario::strict();
    let refused = [
        "force://",
        "force://@x.test",
        "force://hunter2-secret",
        "force://id:hunter2-secret@x.test",
        "force://id:hunter2-secret:rt:more@x.test",
        "force://:hunter2-secret:hunter2-token@x.test",
        "force://id:hunter2-secret:@x.test",
        "force://id:hunter2-secret:hunter2-token@",
        "force://id:hunter2-secret:hunter2-token@x.test/path@y.test:port",
        "force://id:hunter2-secret:hunter2-\u{7}token@x.test",
        "https://id:hunter2-secret:hunter2-token@x.test",
        "id:hunter2-secret:hunter2-token@x.test",
        "hunter2-secret",
        r#"{"sfdxAuthUrl":17}"#,
        r#"{"result":{"accessToken":"hunter2-secret"}}"#,
        "[]",
    ];
    for text in refused {
        scenario.dir.write("auth", text);
        let run = scenario.command().args(["--sfdx-url-file", "auth", TOKEN_FILE]);
        let run = run.secret("hunter2-secret").secret("hunter2-token");
        run.run().assert_failed_unsent(2).assert_says("--sfdx-url-file");
        let run = scenario.command().arg(TOKEN_FILE).env("SFDX_AUTH_URL", text);
        let run = run.secret("hunter2-secret").secret("hunter2-token");
        run.run().assert_failed_unsent(2).assert_says("SFDX_AUTH_URL");
    }
}

// ---- Age ----

/// Holds a token that is so many seconds old to being young enough, or not.
#[track_caller]
fn assert_age(limit: &str, seconds: u64, young: bool) {
    for quote in ["\"", ""] {
        let issued_at = now_millis() - seconds * 1000;
        let document =
            token_document().replace("\"1700000000000\"", &format!("{quote}{issued_at}{quote}"));
        let scenario = Scenario::strict().token(document);
        let outcome = scenario.run(&["--if-older-than", limit]);
        outcome.assert_ok().assert_sent(usize::from(!young));
        if young {
            outcome.assert_unchanged().assert_says("nothing sent");
        }
        outcome.assert_stdout(&format!("{}\n", scenario.member("access_token")));
    }
}

#[test]
fn nothing_is_sent_while_the_token_is_younger_than_the_age_given() {
    for (limit, seconds) in [("90s", 90), ("45m", 45 * 60), ("2h", 7200), ("7d", 7 * 86_400)] {
        // A minute on either side is more than a run takes.
        assert_age(limit, seconds - 60, true);
        assert_age(limit, seconds + 60, false);
    }
    assert_age("0s", 0, false);
}

#[test]
fn a_token_issued_in_the_future_counts_as_old() {
    for issued_at in [now_millis() + 3_600_000, u64::MAX / 2, u64::MAX] {
        let document = token_document().replace("1700000000000", &issued_at.to_string());
        let scenario = Scenario::strict().token(document);
        scenario.run(&["--if-older-than", "7d"]).assert_ok().assert_sent(1);
        scenario.assert_in_step();
    }
}

#[test]
fn a_token_that_does_not_tell_its_age_is_as_old_as_its_file() {
    let document = token_document();
    let (without, _) = document.split_once(",\n  \"issued_at\"").expect("issued_at");
    let scenario = Scenario::strict().token(format!("{without}\n}}\n"));
    scenario.run(&["--if-older-than", "1h"]).assert_ok().assert_sent(0).assert_unchanged();
    set_age(&scenario.file(), Duration::from_secs(3000));
    scenario.run(&["--if-older-than", "1h"]).assert_ok().assert_sent(0).assert_unchanged();
    set_age(&scenario.file(), Duration::from_secs(4000));
    scenario.run(&["--if-older-than", "1h"]).assert_ok().assert_sent(1);
    let scenario = Scenario::strict().token(format!("{without}\n}}\n"));
    set_modified(&scenario.file(), SystemTime::now() + Duration::from_secs(4000));
    scenario.run(&["--if-older-than", "1h"]).assert_ok().assert_sent(1);
}

#[test]
fn a_time_of_issue_that_cannot_be_read_leaves_the_age_of_the_file() {
    for value in ["\"soon\"", "\"\"", "-5", "null", "true", "[]", "\"17.5\"", "\"-17\""] {
        let document = token_document().replace("\"1700000000000\"", value);
        let scenario = Scenario::strict().token(document);
        scenario.run(&["--if-older-than", "1h"]).assert_ok().assert_sent(0).assert_unchanged();
        set_age(&scenario.file(), Duration::from_secs(4000));
        scenario.run(&["--if-older-than", "1h"]).assert_ok().assert_sent(1);
    }
}

#[test]
fn a_renewed_token_is_young_whether_the_reply_tells_its_time_or_not() {
    let replies = [
        format!(r#"{{"access_token":"AT-new-one","issued_at":"{}"}}"#, now_millis()),
        format!(r#"{{"access_token":"AT-new-one","issued_at":{}}}"#, now_millis()),
        r#"{"access_token":"AT-new-one"}"#.to_owned(),
        r#"{"access_token":"AT-new-one","issued_at":null}"#.to_owned(),
    ];
    for reply in replies {
        let scenario = Scenario::scripted([Reply::json(200, reply)]);
        scenario.run(&["--if-older-than", "1h"]).assert_ok().assert_sent(1);
        let second = scenario.run(&["--if-older-than", "1h"]);
        second.assert_ok().assert_sent(0).assert_unchanged().assert_stdout("AT-new-one\n");
    }
}

#[test]
fn a_reply_without_a_time_of_issue_adds_none_to_a_file_that_has_none() {
    let scenario = Scenario::scripted([Reply::json(200, r#"{"access_token":"AT-new-one"}"#)]);
    let scenario = scenario.token(r#"{"refresh_token":"an-old-rt"}"#);
    scenario.run(&[]).assert_ok();
    assert_eq!(scenario.document().get("issued_at"), None);
}

#[test]
fn a_file_without_an_access_token_is_renewed_however_young_it_is() {
    let document =
        format!(r#"{{"refresh_token":"{REFRESH_TOKEN}","issued_at":"{}"}}"#, now_millis());
    let scenario = Scenario::strict().token(document);
    scenario.run(&["--if-older-than", "7d"]).assert_ok().assert_sent(1);
    scenario.assert_in_step();
}

#[test]
fn a_young_token_is_printed_in_every_format() {
    let document = token_document().replace("1700000000000", &now_millis().to_string());
    let scenario = Scenario::strict().token(&document);
    let print = |format: &str| {
        let outcome = scenario.run(&["--if-older-than", "1h", "-q", "-o", format]);
        outcome.assert_ok().assert_sent(0).assert_unchanged().assert_silent();
        outcome.text()
    };
    let token = crate::harness::OLD_ACCESS_TOKEN;
    assert_eq!(print("token"), format!("{token}\n"));
    assert_eq!(print("header"), format!("Authorization: Bearer {token}\n"));
    assert_eq!(print("none"), "");
    assert_eq!(print("json"), document);
    let url = "https://old.my.salesforce.com";
    assert_eq!(print("env"), format!("SF_ACCESS_TOKEN='{token}'\nSF_ORG_INSTANCE_URL='{url}'\n"));
}

// ---- Values ----

#[test]
fn values_that_make_no_sense_are_refused_by_the_name_of_their_option() {
    let scenario = Scenario::strict();
    let refused: [(&str, &[&str]); 4] = [
        ("--timeout", &["0", "-1", "x", "1s", "inf", "nan", "1e300", "-0.0", "0x10", "1,5", " 5"]),
        ("--retry", &["-1", "1.5", "x", "99999999999", "0x1", " 1", "1 "]),
        (
            "--if-older-than",
            &[
                "90",
                "s",
                "1.5h",
                "-5s",
                "5 m",
                "5M",
                "5w",
                "5min",
                "h2",
                "+5s",
                "m5m",
                "5é",
                "99999999999999999999d",
                "18446744073709551615d",
                "\u{0665}s",
            ],
        ),
        ("--output", &["yaml", "Token", "tokens", "token,json", " token"]),
    ];
    for (option, values) in refused {
        for value in values {
            let outcome = scenario.run(&[option, value]);
            outcome.assert_failed_unsent(2).assert_says(option);
            outcome.assert(outcome.stderr.contains("hint: "), "no hint");
        }
    }
}

#[test]
fn values_at_the_edge_of_sense_are_accepted() {
    let accepted: [(&str, &[&str]); 3] = [
        ("--timeout", &["30", "30.5", "1e3", "31622400"]),
        ("--retry", &["0", "1", "4294967295"]),
        ("--if-older-than", &["0s", "1s", "365d", "213503982334601d"]),
    ];
    let document = token_document().replace("1700000000000", &(now_millis() * 2).to_string());
    for (option, values) in accepted {
        for value in values {
            let scenario = Scenario::strict().token(&document);
            scenario.run(&[option, value]).assert_ok().assert_sent(1);
        }
    }
}

// ---- Dry run ----

#[test]
fn a_dry_run_shows_the_request_masked_and_sends_and_changes_nothing() {
    let scenario = Scenario::strict();
    scenario.dir.write("secret", "a-client-secret");
    let options = ["-s", "secret", "-d", "password=hunter2-password", "-d", "token@secret"];
    for dry in ["-n", "--dry-run"] {
        let outcome = scenario.command().arg(dry).args(options).arg(TOKEN_FILE).run();
        outcome.assert_ok().assert_sent(0).assert_unchanged().assert_stdout("");
        let expected = format!(
            "POST {}\nAccept: application/json\n\
             Content-Type: application/x-www-form-urlencoded\n\n\
             grant_type=refresh_token&client_id={CLIENT_ID}&client_secret=***&refresh_token=***\
             &password=***&token=***\n",
            scenario.server.url()
        );
        outcome.assert(outcome.stderr == expected, &format!("not {expected}"));
    }
    let outcome = scenario.command().args(["-n", "--basic"]).args(options).arg(TOKEN_FILE).run();
    outcome.assert_ok().assert_sent(0).assert_unchanged().assert_stdout("");
    outcome.assert_says("\nAuthorization: Basic ***\n").assert_says_not("client_id");
}

#[test]
fn a_dry_run_of_a_file_that_is_to_be_made_makes_none() {
    let scenario = Scenario::strict();
    let url = "force://an-id:a-client-secret:an-sfdx-rt@x.test";
    let outcome = scenario.bare().args(["-n", "new.json"]).env("SFDX_AUTH_URL", url).run();
    outcome.assert_ok().assert_unchanged().assert_sent(0).assert_stdout("");
    outcome
        .assert_says("POST https://x.test/services/oauth2/token")
        .assert_says("client_secret=***");
}

#[test]
fn a_dry_run_finds_what_a_run_would_find() {
    let scenario = Scenario::strict();
    let run = |arguments: &[&str]| scenario.command().arg("-n").args(arguments).run();
    run(&["missing.json"]).assert_failed_unsent(1);
    run(&["-s", "missing", TOKEN_FILE]).assert_failed_unsent(2);
    run(&["--ca-cert", "missing", TOKEN_FILE]).assert_failed_unsent(2);
    run(&["--timeout", "0", TOKEN_FILE]).assert_failed_unsent(2);
    let proxied = scenario.command().args(["-n", TOKEN_FILE]).env("HTTPS_PROXY", "socks5://x:1");
    proxied.run().assert_failed_unsent(2);
    scenario.dir.write("bad.json", "{}");
    run(&["bad.json"]).assert_failed_unsent(1);
    if is_root("a file of another user") {
        set_mode(&scenario.file(), 0o644);
        let outcome = scenario.command().args(["-n", TOKEN_FILE]).user(NOBODY).run();
        outcome.assert_failed_unsent(1).assert_says("permission denied");
    }
}

#[test]
fn a_dry_run_leaves_an_interrupted_save_as_it_is() {
    let scenario = Scenario::strict();
    for journal in [token_document().as_str(), "{\"access_token\": \"torn-apart", "", "   \n"] {
        fs::write(scenario.journal(), journal).expect("a journal");
        scenario.run(&["-n"]).assert_ok().assert_sent(0).assert_unchanged();
    }
}

// ---- Several files ----

#[test]
fn several_files_are_renewed_in_turn_over_one_connection() {
    let scenario = Scenario::with(Config::oauth(OAuth::default().lenient(true).rotate(false)));
    let names = ["a.json", "b.json", "c.json"];
    for name in names {
        scenario.dir.write(name, token_document());
    }
    let outcome = scenario.command().args(names).run();
    outcome.assert_ok().assert_sent(3);
    assert_eq!(scenario.server.connections(), 1);
    let tokens = names.map(|name| scenario.dir.json(name)["access_token"].clone());
    let lines: Vec<_> = outcome.text().lines().map(serde_json::Value::from).collect();
    assert_eq!(lines, tokens);
    for name in names {
        outcome.assert_says(&format!("sf-refresh: {name}: OAuth2 authorization granted!"));
    }
}

#[test]
fn several_files_share_one_tls_connection() {
    let oauth = OAuth::default().lenient(true).rotate(false);
    let scenario = Scenario::with(Config::oauth(oauth).tls(Tls::new("server")));
    scenario.dir.write("b.json", token_document());
    let run = scenario.command().arg("--ca-cert").arg(certificate_path("ca"));
    run.args([TOKEN_FILE, "b.json", TOKEN_FILE]).run().assert_ok().assert_sent(3);
    assert_eq!(scenario.server.connections(), 1);
}

#[test]
fn a_file_that_fails_does_not_stop_the_rest() {
    let scenario = Scenario::scripted([
        Reply::grant("AT-of-the-first", None),
        Reply::error(400, "inactive_user", "user is frozen"),
        Reply::grant("AT-of-the-last", None),
    ]);
    for name in ["a.json", "b.json", "c.json"] {
        scenario.dir.write(name, token_document());
    }
    let files = ["a.json", "missing.json", "b.json", TOKEN_FILE];
    let outcome = scenario.command().args(files).run();
    outcome.assert_status(1).assert_sent(3);
    outcome.assert_stdout("AT-of-the-first\nAT-of-the-last\n");
    assert_eq!(scenario.dir.read("b.json"), token_document().as_bytes());
    assert_eq!(scenario.member("access_token"), "AT-of-the-last");
}

#[test]
fn the_status_of_several_files_is_that_of_the_first_that_failed() {
    let refusal = || Reply::error(400, "invalid_grant", "expired access/refresh token");
    let scenario = Scenario::scripted([refusal()]);
    let run = |files: &[&str]| scenario.command().args(files).run();
    run(&[TOKEN_FILE, "missing.json"]).assert_failed(3).assert_sent(1);
    run(&["missing.json", TOKEN_FILE]).assert_failed(1).assert_sent(1);
    scenario.server.script([refusal(), Reply::html(404), Reply::new(503, "")]);
    let outcome =
        scenario.command().args(["--retry", "0", TOKEN_FILE, TOKEN_FILE, TOKEN_FILE]).run();
    outcome.assert_failed(3).assert_sent(3);
}

#[test]
fn a_file_given_twice_is_renewed_twice() {
    let scenario = Scenario::strict();
    scenario.command().args([TOKEN_FILE, TOKEN_FILE]).run().assert_ok().assert_sent(2);
    scenario.assert_in_step();
}

#[test]
fn a_wrong_option_stops_all_files() {
    let scenario = Scenario::strict();
    let outcome = scenario.command().args([TOKEN_FILE, TOKEN_FILE, "--timeout", "x"]).run();
    outcome.assert_failed_unsent(2);
}
