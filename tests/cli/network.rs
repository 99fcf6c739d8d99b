//! The way to the endpoint: names, connections, TLS, certificates and proxies.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};

use crate::harness::{Outcome, Run, Scenario, TOKEN_FILE, TempDir, token_document};
use crate::server::http::basic;
use crate::server::proxy::{Proxy, ProxyConfig, relay};
use crate::server::{CLIENT_ID, Config, OAuth, Reply, Server, TOKEN_PATH, Tls, certificate_path};

/// An endpoint that is not this machine by its name; a proxy's routes lead to it.
const FAR_ENDPOINT: &str = "https://login.example.test/services/oauth2/token";
const NOTHING_SENT: &str = "nothing was sent";
/// What the messages say of a server that wants to know its client.
const CERTIFICATE_DEMANDED: &str = "the server demands a client certificate";

/// A strict endpoint behind TLS.
fn tls_scenario(tls: Tls) -> Scenario {
    Scenario::with(Config::oauth(OAuth::default()).tls(tls))
}

/// The path of a file in `tests/certs`, as an argument.
fn certs(name: &str) -> String {
    certificate_path(name).to_string_lossy().into_owned()
}

/// A run that trusts the CA of the tests and gives up at the first failure.
fn trusting(scenario: &Scenario) -> Run<'_> {
    scenario.command().args(["--ca-cert", &certs("ca"), "--retry", "0"])
}

/// A run to an URL, otherwise as [`trusting`].
fn trusting_at<'a>(scenario: &'a Scenario, url: &str) -> Run<'a> {
    let run = scenario.bare().args(["-i", CLIENT_ID, "-e", url]);
    run.args(["--ca-cert", &certs("ca"), "--retry", "0"])
}

/// The file has what the endpoint granted, at the first request.
#[track_caller]
fn assert_granted(scenario: &Scenario, outcome: &Outcome) {
    outcome.assert_ok().assert_sent(1);
    scenario.assert_in_step();
}

/// It failed with this status before anything was sent, and says so.
#[track_caller]
fn assert_unsent(outcome: &Outcome, status: i32) -> &Outcome {
    outcome.assert_failed_unsent(status).assert_says(NOTHING_SENT);
    outcome.assert_says_not("may have used")
}

/// A port of 127.0.0.1 that refuses connections.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("address").port()
}

/// A host in `domain` that no resolver looks for: a label of a name has at most 63 letters.
fn impossible_host(domain: &str) -> String {
    format!("{}.{domain}", "a".repeat(64))
}

// ---- TLS ----

#[test]
fn tls_1_2_and_1_3_are_spoken() {
    for (versions, name) in
        [(vec![&TLS12], "TLSv1_2"), (vec![&TLS13], "TLSv1_3"), (vec![&TLS13, &TLS12], "TLSv1_3")]
    {
        let scenario = tls_scenario(Tls::new("server").versions(versions));
        assert_granted(&scenario, &trusting(&scenario).arg(TOKEN_FILE).run());
        assert_eq!(scenario.server.last_request().tls_version.as_deref(), Some(name));
    }
}

#[test]
fn certificates_with_rsa_and_with_an_intermediate_are_accepted() {
    for name in ["server-rsa", "server-chain"] {
        for version in [&TLS12, &TLS13] {
            let scenario = tls_scenario(Tls::new(name).versions([version]));
            assert_granted(&scenario, &trusting(&scenario).arg(TOKEN_FILE).run());
        }
    }
}

#[test]
fn the_name_of_the_host_is_asked_for_and_verified() {
    let scenario = tls_scenario(Tls::new("server"));
    let url = scenario.server.url_for("localhost");
    assert_granted(&scenario, &trusting_at(&scenario, &url).arg(TOKEN_FILE).run());
    assert_eq!(scenario.server.last_request().server_name.as_deref(), Some("localhost"));
}

#[test]
fn several_files_share_a_kept_connection() {
    let scenario = tls_scenario(Tls::new("server"));
    let one = Reply::grant("00Dxx!AT-kept-1", None);
    scenario.server.script([one, Reply::grant("00Dxx!AT-kept-2", None)]);
    scenario.dir.write("second.json", token_document());
    let outcome = trusting(&scenario).args([TOKEN_FILE, "second.json"]).run();
    outcome.assert_ok().assert_sent(2).assert_stdout("00Dxx!AT-kept-1\n00Dxx!AT-kept-2\n");
    assert_eq!(scenario.server.connections(), 1);
}

#[test]
fn a_kept_connection_that_the_server_has_closed_is_made_anew() {
    let closes = |access_token: &str| {
        let body = format!(r#"{{"access_token":"{access_token}"}}"#);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        Reply::raw(format!("{head}{body}"))
    };
    for tls in [None, Some(Tls::new("server"))] {
        let config = Config::scripted([closes("00Dxx!AT-kept-1"), closes("00Dxx!AT-kept-2")]);
        let scenario = Scenario::with(config.tls(tls));
        let second = scenario.dir.write("second.json", token_document());
        // The second file can be had only when the first connection is over.
        let held = fs::File::open(second).expect("the second file");
        held.lock().expect("its lock");
        let running = trusting(&scenario).args([TOKEN_FILE, "second.json"]).start();
        scenario.wait_for_posts(1);
        scenario.server.wait_idle();
        held.unlock().expect("its lock again");
        let outcome = running.wait();
        outcome.assert_ok().assert_sent(2).assert_stdout("00Dxx!AT-kept-1\n00Dxx!AT-kept-2\n");
        assert_eq!(scenario.server.connections(), 2);
    }
}

#[test]
fn an_endpoint_may_have_an_ipv6_address() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        eprintln!("skipped: an endpoint on [::1] (this machine has no ::1)");
        return;
    };
    let port = listener.local_addr().expect("address").port();
    let scenario = tls_scenario(Tls::new("server"));
    forward(listener, scenario.server.address());
    let url = format!("https://[::1]:{port}{TOKEN_PATH}");
    assert_granted(&scenario, &trusting_at(&scenario, &url).arg(TOKEN_FILE).run());
    let host = scenario.server.last_request().header("host").map(str::to_owned);
    assert_eq!(host, Some(format!("[::1]:{port}")));
}

/// Passes the next connection of a listener on to another address.
fn forward(listener: TcpListener, to: SocketAddr) {
    thread::spawn(move || -> io::Result<()> {
        let (client, _) = listener.accept()?;
        relay(&client, &TcpStream::connect(to)?);
        Ok(())
    });
}

// ---- Certificates that are refused ----

/// Runs it against a certificate in both TLS versions: status 5, these words, and no request.
#[track_caller]
fn refuses_certificate(tls: &Tls, roots: Option<&str>, says: &str) -> Outcome {
    let mut last = None;
    for version in [&TLS12, &TLS13] {
        let scenario = tls_scenario(tls.clone().versions([version]));
        let run = scenario.command().args(["--retry", "3"]);
        let run = roots.into_iter().fold(run, |run, name| run.args(["--ca-cert", &certs(name)]));
        let outcome = run.arg(TOKEN_FILE).run();
        assert_unsent(&outcome, 5).assert_says("certificate refused").assert_says(says);
        outcome.assert_says("127.0.0.1");
        assert_eq!(scenario.server.connections(), 1, "it was tried again");
        last = Some(outcome);
    }
    last.expect("two runs")
}

#[test]
fn a_certificate_of_an_unknown_ca_hints_at_ca_cert() {
    let says = "signed by a CA that is not trusted";
    for (name, roots) in [
        ("server", None),
        ("server", Some("other-ca")),
        ("server-rsa", None),
        ("server-chain", Some("other-ca")),
        ("self-signed", None),
        ("self-signed", Some("ca")),
    ] {
        refuses_certificate(&Tls::new(name), roots, says).assert_hints("--ca-cert");
    }
}

#[test]
fn a_certificate_without_its_intermediate_is_refused() {
    let tls = Tls::new("server-chain").leaf_only(true);
    refuses_certificate(&tls, Some("ca"), "signed by a CA that is not trusted");
}

#[test]
fn an_expired_certificate_is_refused_with_a_look_at_the_clock() {
    let outcome = refuses_certificate(&Tls::new("expired"), Some("ca"), "it has expired");
    assert_tells_the_clock(&outcome);
}

#[test]
fn a_certificate_not_valid_yet_is_refused_with_a_look_at_the_clock() {
    let outcome = refuses_certificate(&Tls::new("not-yet-valid"), Some("ca"), "not valid yet");
    assert_tells_the_clock(&outcome);
}

/// The hint has the year that the system clock says.
#[track_caller]
fn assert_tells_the_clock(outcome: &Outcome) {
    let year = Command::new("date").args(["-u", "+%Y"]).output().expect("date").stdout;
    let year = String::from_utf8(year).expect("a year");
    outcome.assert_hints(&format!("this machine's clock says that it is {}", year.trim()));
}

#[test]
fn a_certificate_for_another_host_is_refused() {
    let outcome = refuses_certificate(&Tls::new("wrong-host"), Some("ca"), "for another host");
    outcome.assert_hints("--endpoint");
    let scenario = tls_scenario(Tls::new("wrong-host"));
    let url = scenario.server.url_for("localhost");
    let outcome = trusting_at(&scenario, &url).arg(TOKEN_FILE).run();
    assert_unsent(&outcome, 5).assert_says("for another host").assert_says("localhost");
}

#[test]
fn a_certificate_that_is_not_for_servers_is_refused_in_words() {
    let outcome = refuses_certificate(&Tls::new("client-auth"), Some("ca"), "server");
    // And not in the names of a library.
    for name in ["ExtendedKeyUsage", "InvalidPurpose", "KeyPurpose", "{", "(["] {
        outcome.assert_says_not(name);
    }
}

#[test]
fn a_server_that_demands_a_client_certificate_is_a_matter_of_set_up() {
    for versions in [vec![&TLS12], vec![&TLS13], vec![&TLS13, &TLS12]] {
        let scenario = tls_scenario(Tls::new("server").versions(versions).client_certificate(true));
        let outcome = trusting(&scenario).args(["--retry", "3", TOKEN_FILE]).run();
        outcome.assert_failed_unsent(5).assert_says(CERTIFICATE_DEMANDED);
        outcome.assert_hints("cannot present one");
        scenario.server.wait_idle();
        assert_eq!(scenario.server.connections(), 1, "it was tried again");
        assert_eq!(scenario.server.grants(), 0);
    }
}

#[test]
fn a_page_that_demands_a_client_certificate_says_the_same() {
    let page = "<html><head><title>400 No required SSL certificate was sent</title></head></html>";
    let scenario = Scenario::scripted([Reply::new(400, page)]);
    let outcome = scenario.run(&[]);
    outcome.assert_failed(5).assert_sent(1).assert_says(CERTIFICATE_DEMANDED);
}

#[test]
fn an_endpoint_that_speaks_no_tls_is_a_matter_of_set_up() {
    let scenario = Scenario::strict();
    let web = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html></html>";
    for greeting in [web, "SSH-2.0-OpenSSH_9.7\r\n", "220 mail.example.test ESMTP ready\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("https://{}/", listener.local_addr().expect("address"));
        thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            stream.write_all(greeting.as_bytes())?;
            io::copy(&mut stream, &mut io::sink())
        });
        let outcome = trusting_at(&scenario, &url).args(["--retry", "3", TOKEN_FILE]).run();
        assert_unsent(&outcome, 5).assert_says("does not speak TLS").assert_hints("port");
    }
}

#[test]
fn plain_http_to_a_port_that_speaks_tls_is_a_matter_of_set_up() {
    let scenario = tls_scenario(Tls::new("server"));
    let url = scenario.server.url().replace("https://", "http://");
    let outcome = trusting_at(&scenario, &url).args(["--retry", "3", TOKEN_FILE]).run();
    outcome.assert_failed_unsent(5).assert_says("not HTTP").assert_hints("--endpoint");
    assert_eq!(scenario.server.connections(), 1, "it was tried again");
}

// ---- Roots ----

#[test]
fn the_roots_of_ca_cert_and_of_the_environment_are_trusted() {
    let scenario = tls_scenario(Tls::new("server"));
    let outcome = scenario.command().args(["--ca-cert", &certs("ca"), TOKEN_FILE]).run();
    assert_granted(&scenario, &outcome);
    let outcome = scenario.command().env("SSL_CERT_FILE", certs("ca")).arg(TOKEN_FILE).run();
    assert_granted(&scenario, &outcome);
}

#[test]
fn ca_cert_beats_the_environment() {
    let scenario = tls_scenario(Tls::new("server"));
    for unused in [certs("other-ca"), "/missing".to_owned()] {
        let outcome = trusting(&scenario).env("SSL_CERT_FILE", unused).arg(TOKEN_FILE).run();
        assert_granted(&scenario, &outcome);
    }
    let run = scenario.command().env("SSL_CERT_FILE", certs("ca"));
    let outcome = run.args(["--ca-cert", &certs("other-ca"), TOKEN_FILE]).run();
    assert_unsent(&outcome, 5);
}

#[test]
fn an_empty_variable_for_the_roots_is_none() {
    let scenario = tls_scenario(Tls::new("server"));
    let outcome = scenario.command().env("SSL_CERT_FILE", "").arg(TOKEN_FILE).run();
    assert_unsent(&outcome, 5).assert_says("not trusted");
}

#[test]
fn a_bundle_of_roots_may_hold_text_and_other_things() {
    let scenario = tls_scenario(Tls::new("server"));
    let read = |name: &str| fs::read_to_string(certs(name)).expect("certificate");
    let bundles = [
        read("other-ca") + &read("ca"),
        format!("# Roots\n\n{}\nThe CA of the tests\n{}", read("self-signed"), read("ca")),
        read("ca").replace('\n', "\r\n"),
    ];
    for bundle in bundles {
        let path = scenario.dir.write("roots.pem", bundle);
        let run = scenario.command().arg("--ca-cert").arg(&path);
        assert_granted(&scenario, &run.arg(TOKEN_FILE).run());
    }
}

#[test]
fn roots_that_cannot_be_read_are_wrong_usage() {
    let scenario = tls_scenario(Tls::new("server"));
    let key = fs::read_to_string(certs("server")).expect("certificate and key");
    let key = &key[key.find("-----BEGIN PRIVATE").expect("a key")..];
    let files: [(&str, &[u8]); 7] = [
        ("empty", b""),
        ("blank", b"\n\n"),
        ("text", b"these are no roots\n"),
        ("der", b"\x30\x82\x01\x0a\x02\x82\x01\x01\x00\xff\xfe"),
        ("key", key.as_bytes()),
        ("cut", b"-----BEGIN CERTIFICATE-----\nMIIB\n"),
        ("coded", b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"),
    ];
    let mut paths: Vec<_> =
        files.iter().map(|(name, bytes)| scenario.dir.write(name, bytes)).collect();
    paths.extend([scenario.dir.join("missing"), scenario.dir.path().to_owned()]);
    for path in paths {
        let run = scenario.command().arg("--ca-cert").arg(&path);
        assert_bad_roots(&run.arg(TOKEN_FILE).run(), "--ca-cert", &path);
        let run = scenario.command().env("SSL_CERT_FILE", &path);
        assert_bad_roots(&run.arg(TOKEN_FILE).run(), "SSL_CERT_FILE", &path);
    }
    assert_eq!(scenario.server.connections(), 0);
}

/// Status 2, and both the origin of the name and the name itself.
#[track_caller]
fn assert_bad_roots(outcome: &Outcome, origin: &str, path: &Path) {
    let why = format!("wrong for {}", path.display());
    outcome.assert(outcome.status() == 2, &why);
    outcome.assert_failed_unsent(2).assert_says(origin);
    outcome.assert_says(&path.file_name().unwrap_or_default().to_string_lossy());
}

// ---- Names and connections ----

#[test]
fn a_host_that_is_not_found_is_a_temporary_failure() {
    let scenario = Scenario::strict();
    let host = impossible_host("example.test");
    let url = format!("https://{host}{TOKEN_PATH}");
    let outcome = trusting_at(&scenario, &url).arg(TOKEN_FILE).run();
    assert_unsent(&outcome, 4).assert_says("cannot find").assert_says(&host);
}

#[test]
fn a_refused_connection_is_a_temporary_failure() {
    let scenario = Scenario::strict();
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://127.0.0.1:{}{TOKEN_PATH}", closed_port());
        let outcome = trusting_at(&scenario, &url).arg(TOKEN_FILE).run();
        assert_unsent(&outcome, 4).assert_says("connection refused").assert_says("127.0.0.1");
    }
}

#[test]
fn what_was_never_sent_is_tried_again() {
    let scenario = Scenario::strict();
    let urls = [
        format!("https://127.0.0.1:{}{TOKEN_PATH}", closed_port()),
        format!("https://{}{TOKEN_PATH}", impossible_host("example.test")),
    ];
    for url in urls {
        let start = Instant::now();
        let run = trusting_at(&scenario, &url).args(["--retry", "1", "-v", TOKEN_FILE]);
        let outcome = run.run();
        assert_unsent(&outcome, 4).assert_says("trying again");
        let tries = outcome.stderr.matches("POST https://").count();
        outcome.assert(tries == 2, "not two tries");
        outcome.assert(start.elapsed() >= Duration::from_secs(1), "it did not wait");
    }
}

#[test]
fn a_handshake_that_is_cut_is_tried_again() {
    let scenario = tls_scenario(Tls::new("server"));
    scenario.server.script([Reply::drop_at_accept()]);
    let outcome = trusting(&scenario).args(["--retry", "1", TOKEN_FILE]).run();
    assert_granted(&scenario, &outcome);
    assert_eq!(scenario.server.connections(), 2);
}

#[test]
fn a_handshake_that_is_always_cut_is_given_up() {
    let replies = [Reply::drop_at_accept()];
    let scenario = Scenario::with(Config::scripted(replies).tls(Tls::new("server")));
    let outcome = trusting(&scenario).args(["--retry", "1", TOKEN_FILE]).run();
    assert_unsent(&outcome, 4).assert_says("127.0.0.1");
    assert_eq!(scenario.server.connections(), 2);
}

#[test]
fn a_handshake_that_hangs_ends_with_the_time_out() {
    let scenario = Scenario::strict();
    // The kernel accepts for it, and that is all.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}{TOKEN_PATH}", listener.local_addr().expect("address"));
    let run = trusting_at(&scenario, &url).args(["--retry", "3", "--timeout", "1", TOKEN_FILE]);
    assert_unsent(&run.run(), 4).assert_says("in time");
}

// ---- Proxies ----

/// An endpoint behind TLS, and a proxy that leads to it whatever the host is called.
struct Proxied {
    scenario: Scenario,
    proxy: Proxy,
}

impl Proxied {
    fn new(config: ProxyConfig) -> Self {
        Self::with(config, Tls::new("server"))
    }

    fn with(config: ProxyConfig, tls: Tls) -> Self {
        let scenario = tls_scenario(tls);
        let proxy = Proxy::start(config.route(scenario.server.address()));
        Self { scenario, proxy }
    }

    /// A run to the far endpoint with this proxy, and no file yet.
    fn run_with(&self, proxy: &str) -> Run<'_> {
        trusting_at(&self.scenario, FAR_ENDPOINT).env("HTTPS_PROXY", proxy)
    }

    /// Runs it with the proxy as it is.
    #[track_caller]
    fn run(&self, options: &[&str]) -> Outcome {
        self.run_with(&self.proxy.url()).args(options).arg(TOKEN_FILE).run()
    }
}

#[test]
fn a_proxy_is_asked_for_a_tunnel_and_no_more() {
    let proxied = Proxied::new(ProxyConfig::default());
    assert_granted(&proxied.scenario, &proxied.run(&[]));
    let requests = proxied.proxy.requests();
    let [request] = &requests[..] else { panic!("not one request: {requests:?}") };
    let asked = (&*request.method, &*request.path, &*request.body);
    assert_eq!(asked, ("CONNECT", "login.example.test:443", &b""[..]));
    assert_eq!(request.header("host"), Some("login.example.test:443"));
    assert_eq!(request.header("proxy-authorization"), None);
    let request = proxied.scenario.server.last_request();
    assert_eq!(request.server_name.as_deref(), Some("login.example.test"));
    assert_eq!(request.header("host"), Some("login.example.test"));
}

#[test]
fn a_proxy_may_be_written_as_curl_takes_it() {
    let proxied = Proxied::new(ProxyConfig::default());
    let address = proxied.proxy.url().trim_start_matches("http://").to_owned();
    for value in [
        address.clone(),
        format!("HTTP://{address}"),
        format!("http://{address}/"),
        format!("http://{address}/some/path?query#part"),
        format!("http://user@{address}"),
        format!("http://{}", address.replace("127.0.0.1", "localhost")),
    ] {
        let outcome = proxied.run_with(&value).arg(TOKEN_FILE).run();
        assert_granted(&proxied.scenario, &outcome);
    }
    assert_eq!(proxied.proxy.connections(), 6);
}

#[test]
fn the_certificate_is_verified_for_the_endpoint_behind_the_proxy() {
    for (tls, roots, says) in [
        (Tls::new("wrong-host"), "ca", "for another host"),
        (Tls::new("expired"), "ca", "it has expired"),
        (Tls::new("server"), "other-ca", "not trusted"),
    ] {
        let proxied = Proxied::with(ProxyConfig::default(), tls);
        let run = proxied.run_with(&proxied.proxy.url()).args(["--ca-cert", &certs(roots)]);
        let outcome = run.arg(TOKEN_FILE).run();
        assert_unsent(&outcome, 5).assert_says(says).assert_says("login.example.test");
        assert_eq!(proxied.proxy.connections(), 1);
    }
}

#[test]
fn a_proxy_gets_its_user_and_password_decoded() {
    for (written, user, password) in [
        ("user:pa55word", "user", "pa55word"),
        ("us%65r:pa%40ss%3Aword%2F%25", "user", "pa@ss:word/%"),
        ("user:pa:55:word", "user", "pa:55:word"),
        ("d%C3%B6main%5Cuser:pa+55", "dömain\\user", "pa+55"),
    ] {
        let proxied = Proxied::new(ProxyConfig::default().password(user, password));
        let url = proxied.proxy.url().replace("http://", &format!("http://{written}@"));
        let outcome = proxied.run_with(&url).secret(password).args(["-v", TOKEN_FILE]).run();
        assert_granted(&proxied.scenario, &outcome);
        let requests = proxied.proxy.requests();
        let sent = requests.iter().map(|request| request.header("proxy-authorization"));
        assert_eq!(sent.collect::<Vec<_>>(), [Some(&*basic(user, password))]);
        let request = proxied.scenario.server.last_request();
        assert_eq!(request.header("proxy-authorization"), None);
    }
}

#[test]
fn a_proxy_that_wants_other_credentials_is_a_matter_of_set_up() {
    let proxied = Proxied::new(ProxyConfig::default().password("user", "pa55word"));
    let plain = proxied.proxy.url();
    for url in [
        plain.clone(),
        plain.replace("http://", "http://user:wr0ng-one@"),
        plain.replace("http://", "http://s0mebody:pa55word@"),
        plain.replace("http://", "http://us3r-alone@"),
    ] {
        let run = proxied.run_with(&url).secret("wr0ng-one").secret("pa55word");
        let outcome = run.args(["-v", "--retry", "3", TOKEN_FILE]).run();
        assert_unsent(&outcome, 5).assert_says("407").assert_says("credentials");
        outcome.assert_hints("HTTPS_PROXY");
    }
    assert_eq!(proxied.proxy.connections(), 4, "it was tried again");
}

#[test]
fn a_proxy_that_denies_the_host_is_a_matter_of_set_up() {
    for status in [400, 403, 404, 405] {
        let proxied = Proxied::new(ProxyConfig::default().answer(Reply::new(status, "")));
        let outcome = proxied.run(&["--retry", "3"]);
        assert_unsent(&outcome, 5).assert_says(&status.to_string()).assert_says("proxy");
        assert_eq!(proxied.proxy.connections(), 1, "it was tried again");
        assert_eq!(proxied.scenario.server.connections(), 0);
    }
}

#[test]
fn a_proxy_that_gets_no_connection_is_a_temporary_failure() {
    for status in [502, 503, 504] {
        let proxied = Proxied::new(ProxyConfig::default().answer(Reply::new(status, "")));
        let outcome = proxied.run(&["--retry", "1"]);
        assert_unsent(&outcome, 4).assert_says(&status.to_string()).assert_says("proxy");
        assert_eq!(proxied.proxy.connections(), 2, "it was not tried again");
        assert_eq!(proxied.scenario.server.connections(), 0);
    }
}

#[test]
fn a_proxy_that_hangs_ends_with_the_time_out() {
    let proxied = Proxied::new(ProxyConfig::default().answer(Reply::hang()));
    let outcome = proxied.run(&["--timeout", "1", "--retry", "3"]);
    assert_unsent(&outcome, 4).assert_says("in time").assert_says(&address_of(&proxied.proxy));
}

/// HOST:PORT of a proxy.
fn address_of(proxy: &Proxy) -> String {
    proxy.url().trim_start_matches("http://").to_owned()
}

#[test]
fn a_proxy_that_is_not_there_is_named_without_its_password() {
    let scenario = tls_scenario(Tls::new("server"));
    let port = closed_port();
    let run = trusting_at(&scenario, FAR_ENDPOINT).secret("pa55word").secret("us3r-name");
    let run = run.env("HTTPS_PROXY", format!("http://us3r-name:pa55word@127.0.0.1:{port}"));
    let outcome = run.args(["-v", TOKEN_FILE]).run();
    assert_unsent(&outcome, 4).assert_says(&format!("127.0.0.1:{port}")).assert_says("proxy");
    outcome.assert_says("login.example.test");
}

#[test]
fn a_proxy_whose_name_is_not_found_is_a_temporary_failure() {
    let scenario = tls_scenario(Tls::new("server"));
    let host = impossible_host("example.test");
    let run = trusting(&scenario).env("HTTPS_PROXY", format!("http://{host}:3128"));
    let outcome = run.arg(TOKEN_FILE).run();
    assert_unsent(&outcome, 4).assert_says(&host).assert_says("proxy");
    assert_eq!(scenario.server.connections(), 0, "the proxy was bypassed");
}

#[test]
fn what_is_no_proxy_but_answers_is_a_matter_of_set_up() {
    let scenario = tls_scenario(Tls::new("server"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("address");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"SSH-2.0-OpenSSH_9.7\r\n")?;
        io::copy(&mut stream, &mut io::sink())
    });
    let run = trusting(&scenario).env("HTTPS_PROXY", format!("http://{address}"));
    let outcome = run.args(["--retry", "3", TOKEN_FILE]).run();
    assert_unsent(&outcome, 5).assert_says("proxy");
    assert_eq!(scenario.server.connections(), 0, "the proxy was bypassed");
}

#[test]
fn a_proxy_that_cannot_be_used_is_never_bypassed() {
    let scenario = tls_scenario(Tls::new("server"));
    for value in [
        "socks5://127.0.0.1:1080",
        "socks5h://127.0.0.1:1080",
        "socks4://127.0.0.1",
        "SOCKS4A://127.0.0.1",
        "ftp://127.0.0.1:21",
        "file:///etc/passwd",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:0",
        "http://127.0.0.1:-1",
        "http://127.0.0.1:80x",
        "http://127.0.0.1:80:80",
        "127.0.0.1:99999",
        "http://",
        "http:///",
        "http://:8080",
        ":8080",
        "http://us3r:pa55word@",
        "http://us3r:pa55word@:3128",
        "http:127.0.0.1:8080",
        "http:/127.0.0.1:8080",
        "http://[::1",
        "http://[::1]]:80",
        "http://::1:80",
        "http://[zz]:80",
        "http://proxy one:80",
        "http://pr\u{F6}xy:80",
        "http://us3r:pa%ZZ55@",
        "http://us3r:pa%ff55@127.0.0.1:80",
        "http://us3r name:pa55@127.0.0.1:80",
        "://127.0.0.1:80",
        " ",
        "!",
        "\u{1B}[31m://x",
    ] {
        for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            let outcome = trusting(&scenario).env(name, value).arg(TOKEN_FILE).run();
            outcome.assert_failed_unsent(2).assert_says(name).assert_hints("http://HOST:PORT");
            outcome.assert_says_not("pa55").assert_says_not("us3r");
            assert_eq!(scenario.server.connections(), 0, "bypassed: {value:?}");
        }
    }
}

#[test]
fn a_proxy_that_is_not_text_is_never_bypassed() {
    let scenario = tls_scenario(Tls::new("server"));
    let value = std::ffi::OsStr::from_bytes(b"http://127.0.0.1\xFF:80");
    let outcome = trusting(&scenario).env("HTTPS_PROXY", value).arg(TOKEN_FILE).run();
    outcome.assert_failed_unsent(2).assert_says("HTTPS_PROXY");
    assert_eq!(scenario.server.connections(), 0);
}

#[test]
fn the_proxy_for_https_comes_first_and_lower_case_before_upper() {
    let scenario = tls_scenario(Tls::new("server"));
    let variables = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    for first in 0..variables.len() {
        let proxies: Vec<_> = variables
            .iter()
            .map(|_| Proxy::start(ProxyConfig::default().route(scenario.server.address())))
            .collect();
        let mut run = trusting_at(&scenario, FAR_ENDPOINT);
        for (at, name) in variables.iter().enumerate() {
            // What is before the first is empty, which is as if it were not set.
            let value = if at < first { String::new() } else { proxies[at].url() };
            run = run.env(name, value);
        }
        assert_granted(&scenario, &run.arg(TOKEN_FILE).run());
        let asked: Vec<_> = proxies.iter().map(Proxy::connections).collect();
        let expected: Vec<_> = (0..variables.len()).map(|at| usize::from(at == first)).collect();
        assert_eq!(asked, expected, "{}", variables[first]);
    }
}

#[test]
fn a_bad_proxy_is_not_passed_over_for_a_good_one() {
    let scenario = tls_scenario(Tls::new("server"));
    let proxy = Proxy::start(ProxyConfig::default().route(scenario.server.address()));
    let run = trusting(&scenario).env("https_proxy", "socks5://127.0.0.1:1");
    let run = run.env("HTTPS_PROXY", proxy.url()).env("ALL_PROXY", proxy.url());
    run.arg(TOKEN_FILE).run().assert_failed_unsent(2).assert_says("https_proxy");
    assert_eq!((proxy.connections(), scenario.server.connections()), (0, 0));
}

#[test]
fn empty_variables_and_the_proxy_for_plain_http_are_no_proxy() {
    let scenario = tls_scenario(Tls::new("server"));
    let mut run = trusting(&scenario);
    for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
        run = run.env(name, "");
    }
    for name in ["http_proxy", "HTTP_PROXY", "PROXY", "ftp_proxy"] {
        run = run.env(name, format!("http://127.0.0.1:{}", closed_port()));
    }
    assert_granted(&scenario, &run.arg(TOKEN_FILE).run());
}

#[test]
fn plain_http_to_this_machine_takes_no_proxy() {
    let scenario = Scenario::strict();
    let proxy = Proxy::start(ProxyConfig::default());
    for host in ["127.0.0.1", "localhost"] {
        let mut run = trusting_at(&scenario, &scenario.server.url_for(host));
        for name in ["https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
            run = run.env(name, proxy.url());
        }
        assert_granted(&scenario, &run.arg(TOKEN_FILE).run());
    }
    assert_eq!(proxy.connections(), 0, "the proxy could read the refresh token");
}

/// Whether the proxy is bypassed for a host; nothing is sent either way.
#[track_caller]
fn is_bypassed(variable: &str, no_proxy: &str, host: &str) -> bool {
    let dir = TempDir::new();
    dir.write(TOKEN_FILE, token_document());
    let proxy = Proxy::start(ProxyConfig::default().answer(Reply::new(403, "")));
    let url = format!("https://{host}:{}/", closed_port());
    let run = Run::new(&dir).args(["-i", CLIENT_ID, "-e", &url, "--retry", "0", TOKEN_FILE]);
    let run = run.env("HTTPS_PROXY", proxy.url()).env(variable, no_proxy);
    let outcome = run.run();
    let asked = proxy.connections() > 0;
    // Denied by the proxy, or not to be reached without it.
    outcome.assert_failed(if asked { 5 } else { 4 });
    !asked
}

#[test]
fn hosts_in_no_proxy_are_reached_directly() {
    let host = &*impossible_host("example.test");
    let upper = host.to_uppercase();
    for (no_proxy, host) in [
        ("*", host),
        (host, host),
        (&*upper, host),
        ("example.test", host),
        (".example.test", host),
        ("EXAMPLE.test", host),
        ("example.test.", host),
        ("test", host),
        ("example.test", &*upper),
        ("other.test,example.test", host),
        ("other.test, example.test", host),
        (" other.test ,\texample.test ", host),
        ("other.test example.test", host),
        (",,example.test,,", host),
        ("localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.1,127.0.0.1", "127.0.0.1"),
        ("*", "127.0.0.1"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("0:0:0:0:0:0:0:1", "[::1]"),
        ("*", "[::1]"),
    ] {
        assert!(is_bypassed("NO_PROXY", no_proxy, host), "{no_proxy:?} for {host}");
    }
}

#[test]
fn hosts_that_no_proxy_does_not_name_take_the_proxy() {
    let host = &*impossible_host("example.test");
    for (no_proxy, host) in [
        ("", host),
        (" ", host),
        (",", host),
        (".", host),
        ("ample.test", host),
        ("xexample.test", host),
        ("b.example.test", host),
        ("example", host),
        ("example.test.org", host),
        ("*.example.test", host),
        ("**", host),
        ("https://example.test", host),
        ("127.0.0.1", host),
        ("0.0.0.0/0", host),
        ("127.0.0.2", "127.0.0.1"),
        ("10.0.0.0/8", "127.0.0.1"),
        ("127.0.0.2/32", "127.0.0.1"),
        ("127.0.0.0/x", "127.0.0.1"),
        ("127.0.0.0/", "127.0.0.1"),
        ("127.0.0.0/-1", "127.0.0.1"),
        ("0.0.1", "127.0.0.1"),
        ("1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("::1", "127.0.0.1"),
        ("::/0", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("::2", "[::1]"),
        ("fe80::/10", "[::1]"),
        ("0.0.0.0/0", "[::1]"),
        ("1", "[::1]"),
    ] {
        assert!(!is_bypassed("NO_PROXY", no_proxy, host), "{no_proxy:?} for {host}");
    }
}

#[test]
fn no_proxy_in_lower_case_comes_first() {
    let scenario = tls_scenario(Tls::new("server"));
    let proxy = Proxy::start(ProxyConfig::default().route(scenario.server.address()));
    for (lower, upper, asked) in [
        ("127.0.0.1", "other.test", 0),
        ("other.test", "127.0.0.1", 1),
        ("", "127.0.0.1", 1),
        ("127.0.0.1", "", 1),
    ] {
        let run = trusting(&scenario).env("https_proxy", proxy.url());
        let run = run.env("no_proxy", lower).env("NO_PROXY", upper);
        assert_granted(&scenario, &run.arg(TOKEN_FILE).run());
        assert_eq!(proxy.connections(), asked, "{lower:?} and {upper:?}");
    }
    assert!(is_bypassed("no_proxy", "127.0.0.1", "127.0.0.1"));
}

#[test]
fn the_password_of_a_proxy_is_never_shown() {
    let proxied = Proxied::new(ProxyConfig::default().password("us3r-name", "pa55word"));
    let url = proxied.proxy.url().replace("http://", "http://us3r-name:pa55word@");
    for options in [&["-v"][..], &["-n"], &["-n", "-v"], &["-q"], &[]] {
        let run = proxied.run_with(&url).secret("us3r-name").secret("pa55word");
        run.args(options).arg(TOKEN_FILE).run().assert_ok();
    }
    let server = Server::start(Config::scripted([Reply::drop_at_accept()]).tls(Tls::new("server")));
    let proxy = Proxy::start(ProxyConfig::default().route(server.address()));
    let url = proxy.url().replace("http://", "http://us3r-name:pa55word@");
    let run = proxied.run_with(&url).secret("us3r-name").secret("pa55word");
    assert_unsent(&run.args(["-v", TOKEN_FILE]).run(), 4);
}
