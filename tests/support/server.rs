//! A token endpoint for the tests: HTTP/1.1 over plain TCP or TLS, on threads.
//!
//! It answers from a queue of [`Reply`]s, and when that is used up, as an [`OAuth`] endpoint with
//! a memory, or else with the last reply again. It keeps every request it was sent and every token
//! it saw. It waits only for the delays it was given, and while a test holds it; everything it
//! started ends with the [`Server`].

// Each test binary uses its own part of this module.
#![allow(dead_code)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use serde_json::{Value, json};

/// A struct of settings with their defaults, and a method for each that sets it.
macro_rules! settings {
    ($(#[$about:meta])* pub struct $name:ident {
        $($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$about])*
        #[derive(Clone)]
        pub struct $name { $($field: $type,)* }

        impl $name {
            $($(#[$doc])*
            pub fn $field(mut self, $field: impl Into<$type>) -> Self {
                self.$field = $field.into();
                self
            })*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

#[path = "proxy.rs"]
pub mod proxy;

/// The path of the token endpoint, as Salesforce has it.
pub const TOKEN_PATH: &str = "/services/oauth2/token";
/// The client id an [`OAuth`] endpoint knows unless told otherwise.
pub const CLIENT_ID: &str = "3MVG9.test_client-id";
/// The first live refresh token of an [`OAuth`] endpoint unless told otherwise.
pub const REFRESH_TOKEN: &str = "5Aep-RT-0-first";
/// The grant type of RFC 7523.
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

const MAX_HEAD: usize = 64 * 1024;
const MAX_BODY: usize = 4 * 1024 * 1024;

// ---- What to serve ----

settings! {
    /// What a [`Server`] does; made by [`Config::scripted`] or [`Config::oauth`].
    pub struct Config {
        /// Listens on this port of 127.0.0.1; 0 takes a free one.
        port: u16 = 0,
        /// Speaks TLS.
        tls: Option<Tls> = None,
        /// Answers with these replies in turn, before all others.
        replies: VecDeque<Reply> = VecDeque::new(),
        /// Answers as this endpoint, or with the last reply again and again.
        endpoint: Option<OAuth> = None,
        /// Appends a line for each request to this file; no secret is in it.
        log: Option<PathBuf> = None,
    }
}

impl Config {
    /// Answers with these replies in turn, the last one again and again.
    pub fn scripted(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::default().replies(replies.into_iter().collect::<VecDeque<_>>())
    }

    /// Answers as `oauth`.
    pub fn oauth(oauth: OAuth) -> Self {
        Self::default().endpoint(oauth)
    }
}

settings! {
    /// The TLS side of a [`Server`].
    pub struct Tls {
        /// The name of its certificate in `tests/certs`.
        certificate: String = "server".to_owned(),
        /// Offers these versions only.
        versions: Versions = Versions::Both,
        /// Demands a client certificate.
        client_certificate: bool = false,
        /// Leaves out the intermediate certificates, a common mistake of servers.
        leaf_only: bool = false,
    }
}

/// The TLS versions a [`Server`] offers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    Both,
    Only12,
    Only13,
}

impl Tls {
    /// TLS 1.2 and 1.3 with the certificate of this name in `tests/certs`, such as `server`.
    pub fn new(certificate: &str) -> Self {
        Self::default().certificate(certificate)
    }
}

settings! {
    /// One answer of a script.
    pub struct Reply {
        status: u16 = 200,
        headers: Vec<(String, String)> = Vec::new(),
        body: Vec<u8> = Vec::new(),
        /// Ends the body in this way.
        framing: Framing = Framing::Length,
        /// Waits this long, once the request is read, before it acts.
        delay: Duration = Duration::ZERO,
        action: Action = Action::Answer,
    }
}

/// How a [`Reply`] says where its body ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By a right Content-Length.
    Length,
    /// In chunks of at most 7 bytes.
    Chunked,
    /// By closing the connection; over TLS with a `close_notify`.
    CloseDelimited,
    /// By closing the connection without a `close_notify`.
    CloseAbrupt,
    /// By a Content-Length this much longer than the body; then it closes.
    TooLong(usize),
    /// By a Content-Length this much longer than the body; it waits for the client to close.
    Unended(usize),
    /// In chunks, closed before the last one.
    ChunkedCut,
}

/// What a [`Reply`] does to the connection.
#[derive(Clone, PartialEq, Eq)]
pub enum Action {
    Answer,
    /// Sends these bytes as they are, and closes.
    Raw(Vec<u8>),
    DropBeforeReply,
    ResetBeforeReply,
    DropAtAccept,
    Hang,
}

impl Reply {
    /// A body with a status and no Content-Type.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::default().status(status).body(body)
    }

    /// A JSON body with a status; the text need not be JSON at all.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, body).header("Content-Type", "application/json;charset=UTF-8")
    }

    /// A web page.
    pub fn html(status: u16) -> Self {
        let page = "<!DOCTYPE html>\n<html><body>Welcome</body></html>\n";
        Self::new(status, page).header("Content-Type", "text/html;charset=UTF-8")
    }

    /// A grant as Salesforce words it, with a new refresh token where there is one.
    pub fn grant(access_token: &str, refresh_token: Option<&str>) -> Self {
        let body = grant_body(access_token, refresh_token, "SIG-scripted=");
        Self::json(200, body.to_string())
    }

    /// An error of RFC 6749 §5.2.
    pub fn error(status: u16, error: &str, description: &str) -> Self {
        let body = json!({ "error": error, "error_description": description });
        Self::json(status, body.to_string())
    }

    /// A redirect to this URL.
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::new(status, "").header("Location", location)
    }

    /// Reads the request, then sends these bytes as they are, and closes.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::default().action(Action::Raw(bytes.into()))
    }

    /// Reads the request, then closes the connection in good order.
    pub fn drop_before_reply() -> Self {
        Self::default().action(Action::DropBeforeReply)
    }

    /// Reads the request, then resets the connection (ECONNRESET for the client).
    pub fn reset_before_reply() -> Self {
        Self::default().action(Action::ResetBeforeReply)
    }

    /// Closes a new connection before anything was answered: over TLS once the
    /// client has begun its handshake, over plain TCP before the request is read.
    pub fn drop_at_accept() -> Self {
        Self::default().action(Action::DropAtAccept)
    }

    /// Reads the request and never answers; ends when the client does.
    pub fn hang() -> Self {
        Self::default().action(Action::Hang)
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Closes the connection after the answer, and says so in a header.
    pub fn close(self) -> Self {
        self.header("Connection", "close")
    }

    /// The bytes on the wire.
    fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Status\r\n", self.status);
        for (name, value) in &self.headers {
            _ = write!(head, "{name}: {value}\r\n");
        }
        let bodyless = self.status == 204 || self.status == 304;
        let chunked = matches!(self.framing, Framing::Chunked | Framing::ChunkedCut);
        let extra = match self.framing {
            Framing::Length => Some(0),
            Framing::TooLong(extra) | Framing::Unended(extra) => Some(extra),
            _ => None,
        };
        if bodyless {
            return (head + "\r\n").into_bytes();
        } else if chunked {
            head += "Transfer-Encoding: chunked\r\n";
        } else if let Some(extra) = extra {
            _ = write!(head, "Content-Length: {}\r\n", self.body.len() + extra);
        }
        let mut out = (head + "\r\n").into_bytes();
        if !chunked {
            out.extend_from_slice(&self.body);
            return out;
        }
        for chunk in self.body.chunks(7) {
            out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
        let end: &[u8] = if self.framing == Framing::Chunked { b"0\r\n\r\n" } else { b"" };
        [&out, end].concat()
    }
}

settings! {
    /// A token endpoint with a memory: it issues tokens, and refuses what is not right.
    ///
    /// A request is processed once the thinking time is over, and answered after the delay. It
    /// holds grants side by side, each a family of tokens: the first is there from the start, an
    /// authorization code makes another. With rotation, using a refresh token a second time
    /// revokes its family.
    pub struct OAuth {
        /// Knows this client.
        client_id: String = CLIENT_ID.to_owned(),
        /// Demands this secret, in the form or in a Basic header; none where it is empty.
        client_secret: String = String::new(),
        /// Starts with this refresh token live.
        refresh_token: String = REFRESH_TOKEN.to_owned(),
        /// Gives a new refresh token with every grant, or keeps the one it has.
        rotate: bool = true,
        /// Grants whatever the request says.
        lenient: bool = false,
        /// Answers 'token request is already being processed' to a request that comes in while
        /// another waits for its answer; needs a delay or time to think to have an effect.
        refuse_parallel: bool = false,
        /// Reads the first so many requests, and closes without having processed them.
        lose_unseen: usize = 0,
        /// Processes the first so many grants, and closes instead of answering them.
        lose_replies: usize = 0,
        /// Waits this long between reading a request and processing it.
        think: Duration = Duration::ZERO,
        /// Waits this long between processing and answering.
        delay: Duration = Duration::ZERO,
        /// Takes the refresh token before for so long after a rotation, and answers it with the
        /// same tokens again, as servers do for clients whose answer was lost.
        grace: Duration = Duration::ZERO,
        /// Writes its state to this file, by a rename, when a request was read and again before it
        /// is answered.
        state_file: Option<PathBuf> = None,
    }
}

impl OAuth {
    /// A rotating endpoint with [`CLIENT_ID`], no secret, and [`REFRESH_TOKEN`] live.
    pub fn new() -> Self {
        Self::default()
    }
}

// ---- What was received ----

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The TLS version, such as `TLSv1_3`.
    pub tls_version: Option<String>,
    /// The name the client asked for by SNI.
    pub server_name: Option<String>,
}

impl Request {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The fields of the form, decoded, in their order.
    pub fn form(&self) -> Vec<(String, String)> {
        let text = self.text();
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let decode = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decoded(name), form_decoded(value))
        };
        pairs.map(decode).collect()
    }

    /// The first field of the form with this name.
    pub fn field(&self, name: &str) -> Option<String> {
        let mut form = self.form().into_iter();
        form.find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// What in this request must not be shown.
    fn secrets(&self) -> Vec<String> {
        let names = ["refresh_token", "client_secret", "code", "code_verifier", "assertion"];
        let mut secrets: Vec<_> = names.iter().filter_map(|name| self.field(name)).collect();
        let header = self.header("authorization").and_then(|value| value.split_once(' '));
        secrets.extend(header.map(|(_, token)| token.to_owned()));
        secrets
    }
}

/// Decodes `application/x-www-form-urlencoded` text; what is no escape stays.
fn form_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        if let Some(byte) = escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            at += 3;
        } else {
            out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `application/x-www-form-urlencoded`, as the URL standard has it.
pub fn form_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => encoded.push('+'),
            b'*' | b'-' | b'.' | b'_' => encoded.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => encoded.push(char::from(byte)),
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    encoded
}

/// The header value for user and password, which are encoded no further.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// Base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| usize::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = char::from(ALPHABET[bits >> (18 - 6 * i) & 0x3f]);
            encoded.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    encoded
}

// ---- The server ----

/// A running server; it ends, with all its connections, when this is dropped.
pub struct Server {
    listener: Listener,
    shared: Arc<Shared>,
}

/// What the threads of one server share.
struct Shared {
    tls: Option<Arc<ServerConfig>>,
    oauth: Option<OAuth>,
    log: Option<PathBuf>,
    memory: Mutex<Memory>,
}

/// What a server knows so far.
#[derive(Default)]
struct Memory {
    replies: VecDeque<Reply>,
    requests: Vec<Request>,
    secrets: HashSet<String>,
    access_tokens: HashSet<String>,
    families: Vec<Family>,
    posts: usize,
    lost: usize,
    unseen: usize,
    in_flight: usize,
}

impl Memory {
    /// The next scripted reply; the last one stays when `endless`.
    fn next_reply(&mut self, endless: bool) -> Option<Reply> {
        if endless && self.replies.len() == 1 {
            return self.replies.front().cloned();
        }
        self.replies.pop_front()
    }

    /// The family that a refresh token belongs to or belonged to.
    fn family_of(&self, token: &str) -> Option<usize> {
        self.families.iter().position(|family| {
            family.refresh_token.as_deref() == Some(token) || family.used.contains(token)
        })
    }

    /// Keeps the tokens of a body that is JSON, or has JSON in it.
    fn learn(&mut self, body: &[u8]) {
        let start = body.iter().position(|byte| *byte == b'{').unwrap_or(0);
        let mut values = serde_json::Deserializer::from_slice(&body[start..]).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else { return };
        self.access_tokens.extend(value["access_token"].as_str().map(str::to_owned));
        for name in ["access_token", "refresh_token", "id_token", "signature"] {
            self.secrets.extend(value[name].as_str().map(str::to_owned));
        }
    }
}

/// The tokens that come from one login.
#[derive(Default)]
struct Family {
    refresh_token: Option<String>,
    access_token: Option<String>,
    /// The refresh token before, when it was rotated, and what was granted for it.
    before: Option<(String, Instant, Value)>,
    used: HashSet<String>,
    grants: usize,
    replays: usize,
    revoked: bool,
}

impl Family {
    /// Ends it for good.
    fn revoke(&mut self) {
        self.revoked = true;
        self.access_token = None;
        self.before = None;
        self.used.extend(self.refresh_token.take());
    }

    /// What was granted for this token, which was rotated less than `grace` ago.
    fn in_grace(&self, token: &str, grace: Duration) -> Option<&Value> {
        let (before, rotated, granted) = self.before.as_ref()?;
        (before == token && rotated.elapsed() < grace).then_some(granted)
    }

    /// Its part of the state file.
    fn state(&self) -> Value {
        json!({
            "refresh_token": self.refresh_token,
            "access_token": self.access_token,
            "revoked": self.revoked,
            "replays": self.replays,
            "grants": self.grants,
        })
    }
}

impl Server {
    /// Starts it; panics where it cannot, as tests do.
    pub fn start(config: Config) -> Self {
        let mut memory = Memory { replies: config.replies, ..Memory::default() };
        if let Some(oauth) = &config.endpoint {
            let refresh_token = Some(oauth.refresh_token.clone());
            memory.families.push(Family { refresh_token, ..Family::default() });
            memory.secrets.extend([oauth.refresh_token.clone(), oauth.client_secret.clone()]);
            write_state(oauth, &memory);
        }
        let shared = Arc::new(Shared {
            tls: config.tls.as_ref().map(tls_config),
            oauth: config.endpoint,
            log: config.log,
            memory: Mutex::new(memory),
        });
        let serving = Arc::clone(&shared);
        let listener = Listener::start(config.port, move |accepted, stop| {
            serve(&serving, accepted, stop);
        });
        Self { listener, shared }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.shared.memory)
    }

    /// The URL of the token endpoint, by 127.0.0.1.
    pub fn url(&self) -> String {
        self.url_for("127.0.0.1")
    }

    /// The URL of the token endpoint under another name of this host.
    pub fn url_for(&self, host: &str) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{host}:{}{TOKEN_PATH}", self.address().port())
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.listener.accepted()
    }

    /// The last whole request; panics where there was none.
    pub fn last_request(&self) -> Request {
        self.memory().requests.last().expect("no request came in").clone()
    }

    /// How many POST requests came in.
    pub fn posts(&self) -> usize {
        self.memory().posts
    }

    /// How many grants the [`OAuth`] endpoint gave.
    pub fn grants(&self) -> usize {
        self.memory().families.iter().map(|family| family.grants).sum()
    }

    /// How many times a used refresh token was sent again.
    pub fn replays(&self) -> usize {
        self.memory().families.iter().map(|family| family.replays).sum()
    }

    /// Whether the first grant was revoked.
    pub fn revoked(&self) -> bool {
        self.memory().families[0].revoked
    }

    /// The refresh token of the first grant that works now; None once it was revoked.
    pub fn live_refresh_token(&self) -> Option<String> {
        self.memory().families[0].refresh_token.clone()
    }

    /// The access token of the first grant; None once it was revoked.
    pub fn live_access_token(&self) -> Option<String> {
        self.memory().families[0].access_token.clone()
    }

    /// Every token, signature and secret that went over the wire or is configured.
    pub fn secrets(&self) -> HashSet<String> {
        self.memory().secrets.clone()
    }

    /// Every access token that went over the wire in an answer.
    pub fn access_tokens(&self) -> HashSet<String> {
        self.memory().access_tokens.clone()
    }

    /// Replaces what is left of the script.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.memory().replies = replies.into_iter().collect();
    }

    /// Lets the request of this number wait before it is processed, counted from 1, and those
    /// after it; lets go of those before.
    pub fn hold_from(&self, number: usize) {
        lock(&self.listener.stop.gate).held_from = number;
        self.listener.stop.wake.notify_all();
    }

    /// Lets go of every request.
    pub fn release(&self) {
        self.hold_from(usize::MAX);
    }

    /// Waits until every accepted connection has ended, at most ten seconds.
    pub fn wait_idle(&self) {
        let stop = &self.listener.stop;
        let busy = |open: &mut HashMap<usize, TcpStream>| !open.is_empty();
        let limit = Duration::from_secs(10);
        drop(stop.ended.wait_timeout_while(lock(&stop.open), limit, busy));
    }
}

/// The path of a certificate file in `tests/certs`, such as `ca`.
pub fn certificate_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certs").join(format!("{name}.pem"))
}

/// The certificates and key of this name, built in so that the stand-in runs anywhere.
fn certificate(name: &str) -> &'static [u8] {
    match name {
        "ca" => include_bytes!("../certs/ca.pem"),
        "client-auth" => include_bytes!("../certs/client-auth.pem"),
        "expired" => include_bytes!("../certs/expired.pem"),
        "not-yet-valid" => include_bytes!("../certs/not-yet-valid.pem"),
        "self-signed" => include_bytes!("../certs/self-signed.pem"),
        "server" => include_bytes!("../certs/server.pem"),
        "server-chain" => include_bytes!("../certs/server-chain.pem"),
        "server-rsa" => include_bytes!("../certs/server-rsa.pem"),
        "wrong-host" => include_bytes!("../certs/wrong-host.pem"),
        _ => panic!("no certificate named {name:?}"),
    }
}

fn certificates(name: &str) -> Vec<CertificateDer<'static>> {
    let found: Result<_, _> = CertificateDer::pem_slice_iter(certificate(name)).collect();
    found.expect("certificate in PEM")
}

fn tls_config(tls: &Tls) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.versions {
        Versions::Both => &[&rustls::version::TLS13, &rustls::version::TLS12],
        Versions::Only12 => &[&rustls::version::TLS12],
        Versions::Only13 => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("TLS versions");
    let builder = if tls.client_certificate {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates("ca"));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().expect("client verifier"))
    } else {
        builder.with_no_client_auth()
    };
    let mut chain = certificates(&tls.certificate);
    if tls.leaf_only {
        chain.truncate(1);
    }
    let key = PrivateKeyDer::from_pem_slice(certificate(&tls.certificate)).expect("key in PEM");
    Arc::new(builder.with_single_cert(chain, key).expect("certificate and key"))
}

/// Serves one connection to its end.
fn serve(shared: &Shared, accepted: (TcpStream, usize), stop: &Stop) {
    let mut connection = Connection::new(accepted, shared.tls.as_ref());
    let drops_at_accept = {
        let mut memory = lock(&shared.memory);
        let due = memory.replies.front().is_some_and(|it| it.action == Action::DropAtAccept);
        due && memory.next_reply(shared.oauth.is_none()).is_some()
    };
    if drops_at_accept {
        if shared.tls.is_some() {
            drop(connection.socket.read(&mut [0; 4096]));
            connection.socket.settle();
        }
        return;
    }
    loop {
        match connection.read_request() {
            Ok(Some(request)) if answer(shared, &mut connection, &request, stop) => {}
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                connection.socket.settle();
                return connection.finish(&Reply::new(400, "not HTTP").close().to_bytes());
            }
            Err(_) => return connection.socket.linger(),
        }
    }
}

/// Answers one request; gives whether the connection goes on.
fn answer(shared: &Shared, connection: &mut Connection, request: &Request, stop: &Stop) -> bool {
    let (scripted, number) = {
        let mut memory = lock(&shared.memory);
        memory.posts += usize::from(request.method == "POST");
        memory.secrets.extend(request.secrets());
        memory.requests.push(request.clone());
        (memory.next_reply(shared.oauth.is_none()), memory.requests.len())
    };
    if stop.wait(Duration::from_secs(3600), |gate| number >= gate.held_from) {
        return false;
    }
    let (reply, is_oauth) = match (scripted, &shared.oauth) {
        (Some(reply), _) => (reply, false),
        (None, Some(oauth)) => (oauth_reply(oauth, &shared.memory, request, stop), true),
        (None, None) => (Reply::error(500, "server_error", "the script is empty"), false),
    };
    log(shared, connection.number, request, &reply);
    let stopped = stop.wait(reply.delay, |_| true);
    {
        let mut memory = lock(&shared.memory);
        memory.learn(match &reply.action {
            Action::Raw(bytes) => bytes,
            _ => &reply.body,
        });
        // Over before the client can see the answer, so that its next request is not parallel.
        memory.in_flight -= usize::from(is_oauth);
    }
    if stopped || reply.action == Action::ResetBeforeReply {
        return false;
    }
    connection.socket.settle();
    match &reply.action {
        Action::Answer => {
            let closes =
                |header: Option<&str>| header.is_some_and(|it| it.eq_ignore_ascii_case("close"));
            let mut headers = reply.headers.iter();
            let ours = headers.find(|(name, _)| name.eq_ignore_ascii_case("connection"));
            let close = closes(request.header("connection")) || closes(ours.map(|(_, it)| &**it));
            return connection.send(&reply, close);
        }
        Action::Raw(bytes) => connection.finish(bytes),
        Action::Hang => connection.wait_for_end(),
        _ => connection.finish(b""),
    }
    false
}

/// Appends a line about this request to the log; without secrets.
fn log(shared: &Shared, connection: usize, request: &Request, reply: &Reply) {
    let Some(path) = &shared.log else { return };
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let (method, path_sent, status) = (&request.method, &request.path, reply.status);
    let error = body["error"].as_str().unwrap_or_default();
    let line = format!("connection {connection} {method} {path_sent} -> {status} {error}\n");
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.expect("append to the log");
}

/// A lock that a panic elsewhere does not spoil.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- The OAuth endpoint ----

/// Processes a request, and writes the state, before anything is answered.
fn oauth_reply(oauth: &OAuth, memory: &Mutex<Memory>, request: &Request, stop: &Stop) -> Reply {
    let is_parallel = {
        let mut memory = lock(memory);
        memory.in_flight += 1;
        write_state(oauth, &memory);
        memory.in_flight > 1
    };
    if stop.wait(oauth.think, |_| true) {
        return Reply::drop_before_reply();
    }
    let mut memory = lock(memory);
    let reply = if memory.unseen < oauth.lose_unseen {
        memory.unseen += 1;
        Reply::drop_before_reply()
    } else if oauth.refuse_parallel && is_parallel {
        Reply::error(400, "invalid_grant", "token request is already being processed")
    } else {
        let refused = if oauth.lenient { None } else { refusal(oauth, &mut memory, request) };
        refused.unwrap_or_else(|| grant(oauth, &mut memory, request))
    };
    write_state(oauth, &memory);
    reply.delay(oauth.delay)
}

/// Why this request gets no grant; None where it does.
fn refusal(oauth: &OAuth, memory: &mut Memory, request: &Request) -> Option<Reply> {
    if request.path != TOKEN_PATH {
        return Some(Reply::html(404));
    }
    if request.method != "POST" {
        return Some(Reply::html(405).header("Allow", "POST"));
    }
    let refuse = |error, description: &str| Some(Reply::error(400, error, description));
    let content_type = request.header("content-type").unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return refuse("invalid_request", "content type must be form-urlencoded");
    }
    let mut names = HashSet::new();
    if !request.form().into_iter().all(|(name, _)| names.insert(name)) {
        return refuse("invalid_request", "repeated parameter");
    }
    let wanted = match request.field("grant_type").as_deref() {
        Some("refresh_token") => "refresh_token",
        Some("authorization_code") => "code",
        Some("client_credentials") => "grant_type",
        Some(JWT_BEARER) => "assertion",
        None => return refuse("invalid_request", "missing required parameter: grant_type"),
        Some(_) => return refuse("unsupported_grant_type", "grant type not supported"),
    };
    if let Some(refused) = client_refusal(oauth, request, wanted == "assertion") {
        return Some(refused);
    }
    let Some(value) = request.field(wanted) else {
        return refuse("invalid_request", &format!("missing required parameter: {wanted}"));
    };
    if wanted != "refresh_token" {
        return None;
    }
    if let Some(at) = memory.family_of(&value) {
        let family = &mut memory.families[at];
        if !family.used.contains(&value) || family.in_grace(&value, oauth.grace).is_some() {
            return None;
        }
        family.replays += 1;
        family.revoke();
    }
    refuse("invalid_grant", "expired access/refresh token")
}

/// Why this client is not the right one; None where it is, or where it may stay unnamed.
fn client_refusal(oauth: &OAuth, request: &Request, may_be_unnamed: bool) -> Option<Reply> {
    let refuse = |error, description| Some(Reply::error(400, error, description));
    let (id, secret) = (request.field("client_id"), request.field("client_secret"));
    if let Some(header) = request.header("authorization") {
        if id.is_some() || secret.is_some() {
            return refuse("invalid_request", "more than one client authentication");
        }
        // RFC 6749 §2.3.1 encodes both as in a form.
        let right = basic(&form_encoded(&oauth.client_id), &form_encoded(&oauth.client_secret));
        return if header == right { None } else { refuse("invalid_client", "wrong credentials") };
    }
    if id.is_none() && may_be_unnamed {
        return None;
    }
    if id.as_ref() != Some(&oauth.client_id) {
        return refuse("invalid_client_id", "client identifier invalid");
    }
    if secret.unwrap_or_default() != oauth.client_secret {
        return refuse("invalid_client", "invalid client credentials");
    }
    None
}

/// Issues tokens: the next ones of the family that the refresh token belongs to, or the first
/// ones of a new family. Client credentials and assertions get no refresh token.
fn grant(oauth: &OAuth, memory: &mut Memory, request: &Request) -> Reply {
    let number = memory.families.iter().map(|family| family.grants).sum::<usize>() + 1;
    let grant_type = request.field("grant_type").unwrap_or_default();
    let is_code = grant_type == "authorization_code";
    let access_only = [JWT_BEARER, "client_credentials"].contains(&&*grant_type);
    let token = request.field("refresh_token").unwrap_or_default();
    if is_code || access_only {
        memory.families.push(Family::default());
    }
    let last = memory.families.len() - 1;
    let at = if is_code || access_only { last } else { memory.family_of(&token).unwrap_or(0) };
    let family = &mut memory.families[at];
    family.grants += 1;
    let again = family.in_grace(&token, oauth.grace).cloned();
    let body = again.unwrap_or_else(|| {
        let access = format!("00Dxx0000001gPL!AT-{number}-{}", random());
        let gives_refresh = is_code || oauth.rotate && !access_only;
        let refresh = gives_refresh.then(|| format!("5Aep-RT-{number}-{}", random()));
        let signature = format!("SIG-{number}-{}=", random());
        let mut body = grant_body(&access, refresh.as_deref(), &signature);
        if access_only {
            body["expires_in"] = json!(7200);
        }
        family.access_token = Some(access);
        if let Some(before) = refresh.and_then(|next| family.refresh_token.replace(next)) {
            family.used.insert(before.clone());
            family.before = Some((before, Instant::now(), body.clone()));
        }
        body
    });
    let body = body.to_string();
    // Those of a lost answer are secret as well.
    memory.learn(body.as_bytes());
    if memory.lost < oauth.lose_replies {
        memory.lost += 1;
        return Reply::drop_before_reply();
    }
    Reply::json(200, body)
}

/// Writes the state by a rename, so that a reader sees the old or the new one.
fn write_state(oauth: &OAuth, memory: &Memory) {
    let Some(path) = &oauth.state_file else { return };
    let mut state = memory.families[0].state();
    state["posts"] = json!(memory.posts);
    state["families"] = memory.families.iter().map(Family::state).collect();
    write_atomically(path, &format!("{state}\n"));
}

/// Puts a file with this text in place by a rename; panics where it cannot.
pub fn write_atomically(path: &Path, text: &str) {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let written = fs::write(&next, text).and_then(|()| fs::rename(&next, path));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Sixteen digits that no other token has.
fn random() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let hash = RandomState::new().hash_one(now.unwrap_or_default());
    format!("{hash:016x}")
}

/// The members of a grant as Salesforce gives them.
fn grant_body(access_token: &str, refresh_token: Option<&str>, signature: &str) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut body = json!({
        "access_token": access_token,
        "refresh_token": refresh_token,
        "signature": signature,
        "scope": "refresh_token api id",
        "instance_url": "https://example.my.salesforce.com",
        "id": "https://login.salesforce.com/id/00Dxx0000001gPLEAY/005xx000001SwiUAAS",
        "token_type": "Bearer",
        "issued_at": now.unwrap_or_default().as_millis().to_string(),
    });
    if let (None, Some(members)) = (refresh_token, body.as_object_mut()) {
        members.shift_remove("refresh_token");
    }
    body
}

// ---- Connections ----

/// A TCP stream that leaves the last byte it gave out in the kernel, unread, until
/// it is asked for more or told to [`settle`](Socket::settle). A close with unread
/// bytes is a reset, which the standard library has no other way to ask for.
struct Socket {
    stream: TcpStream,
    held: bool,
}

impl Socket {
    /// Takes the byte that was left.
    fn settle(&mut self) {
        if std::mem::take(&mut self.held) {
            drop(self.stream.read_exact(&mut [0]));
        }
    }

    /// Ends the writing side and reads on to the end, so that a reset does not overtake the alert
    /// that says why.
    fn linger(&mut self) {
        self.settle();
        drop(self.stream.shutdown(Shutdown::Write));
        drop(io::copy(&mut self.stream, &mut io::sink()));
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.settle();
        let count = self.stream.peek(buffer)?;
        if count > 0 {
            self.stream.read_exact(&mut buffer[..count - 1])?;
            // The byte peeked at stays at its place: it is the next in the kernel.
            self.held = true;
        }
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// One connection, plain or TLS, and what of it was read ahead.
struct Connection {
    socket: Socket,
    tls: Option<ServerConnection>,
    buffer: Vec<u8>,
    number: usize,
}

impl Connection {
    fn new((stream, number): (TcpStream, usize), tls: Option<&Arc<ServerConfig>>) -> Self {
        // Nothing but speed is lost where this is refused.
        drop(stream.set_nodelay(true));
        let tls = tls.map(|it| ServerConnection::new(Arc::clone(it)).expect("a TLS connection"));
        Self { socket: Socket { stream, held: false }, tls, buffer: Vec::new(), number }
    }

    /// Reads a request; None at the end of the connection, `InvalidInput` for what is no HTTP.
    fn read_request(&mut self) -> io::Result<Option<Request>> {
        let garbage = || io::Error::new(io::ErrorKind::InvalidInput, "not HTTP");
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(garbage());
            }
            if !self.fill()? {
                return Ok(None);
            }
        };
        let head = String::from_utf8(self.buffer.drain(..end + 4).collect());
        let head = head.map_err(|_| garbage())?;
        let mut lines = head.trim_end().split("\r\n");
        let start: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let [method, path, "HTTP/1.0" | "HTTP/1.1"] = start[..] else {
            return Err(garbage());
        };
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        let headers: Option<Vec<_>> = lines.map(header).collect();
        let tls = self.tls.as_ref();
        let mut request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: headers.ok_or_else(garbage)?,
            body: Vec::new(),
            tls_version: tls.and_then(|tls| tls.protocol_version()).map(|it| format!("{it:?}")),
            server_name: tls.and_then(|tls| tls.server_name()).map(str::to_owned),
        };
        let length: usize =
            request.header("content-length").unwrap_or("0").parse().map_err(|_| garbage())?;
        if length > MAX_BODY || request.header("transfer-encoding").is_some() {
            return Err(garbage());
        }
        while self.buffer.len() < length {
            if !self.fill()? {
                return Ok(None);
            }
        }
        request.body = self.buffer.drain(..length).collect();
        Ok(Some(request))
    }

    /// Reads what there is; false at the end of the connection.
    fn fill(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 16 * 1024];
        let count = match &mut self.tls {
            None => self.socket.read(&mut bytes),
            Some(tls) => rustls::Stream::new(tls, &mut self.socket).read(&mut bytes),
        }?;
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count > 0)
    }

    /// Sends all of it; gives whether the client took it, as far as one can tell.
    fn write(&mut self, bytes: &[u8]) -> bool {
        let written = match &mut self.tls {
            None => self.socket.write_all(bytes),
            Some(tls) => {
                let mut stream = rustls::Stream::new(tls, &mut self.socket);
                stream.write_all(bytes).and_then(|()| stream.flush())
            }
        };
        written.is_ok()
    }

    /// Sends a reply in its framing; gives whether the connection goes on.
    fn send(&mut self, reply: &Reply, close: bool) -> bool {
        let bytes = reply.to_bytes();
        match reply.framing {
            Framing::Length | Framing::Chunked if !close => return self.write(&bytes),
            Framing::Length | Framing::Chunked | Framing::CloseDelimited => self.finish(&bytes),
            Framing::Unended(_) => {
                self.write(&bytes);
                self.wait_for_end();
            }
            _ => _ = self.write(&bytes),
        }
        false
    }

    /// Sends the last bytes and ends the connection in good order.
    fn finish(&mut self, bytes: &[u8]) {
        // The client may be gone already, and that is its own affair.
        self.write(bytes);
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            self.write(b"");
        }
        drop(self.socket.stream.shutdown(Shutdown::Write));
    }

    /// Reads, and forgets, until the client or the server ends.
    fn wait_for_end(&mut self) {
        while self.fill().unwrap_or(false) {
            self.buffer.clear();
        }
    }
}

/// Accepts connections on a thread of its own, and ends them all when dropped.
struct Listener {
    address: SocketAddr,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// What tells the threads of a listener to wait or to end.
#[derive(Default)]
struct Stop {
    gate: Mutex<Gate>,
    wake: Condvar,
    open: Mutex<HashMap<usize, TcpStream>>,
    ended: Condvar,
    accepted: Mutex<usize>,
}

struct Gate {
    stopped: bool,
    /// The first request that has to wait.
    held_from: usize,
}

impl Default for Gate {
    fn default() -> Self {
        Self { stopped: false, held_from: usize::MAX }
    }
}

impl Stop {
    /// Waits this long, while this holds, or until stopped; gives whether it was stopped.
    fn wait(&self, limit: Duration, holds: impl Fn(&Gate) -> bool) -> bool {
        let waits = |gate: &mut Gate| !gate.stopped && holds(gate);
        let waited = self.wake.wait_timeout_while(lock(&self.gate), limit, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopped
    }
}

impl Listener {
    /// Serves each connection to this port of 127.0.0.1 on a thread of its own, with its number.
    fn start(port: u16, serve: impl Fn((TcpStream, usize), &Stop) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .unwrap_or_else(|error| panic!("port {port}: {error}"));
        let address = listener.local_addr().expect("address of the listener");
        let stop = Arc::new(Stop::default());
        let serve = Arc::new(serve);
        let accepting = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if lock(&accepting.gate).stopped {
                    return;
                }
                // A client that gave up between connect and accept.
                let Ok(stream) = stream else { continue };
                *lock(&accepting.accepted) += 1;
                let number = *lock(&accepting.accepted);
                if let Ok(clone) = stream.try_clone() {
                    lock(&accepting.open).insert(number, clone);
                }
                let (serve, stop) = (Arc::clone(&serve), Arc::clone(&accepting));
                thread::spawn(move || {
                    serve((stream, number), &stop);
                    lock(&stop.open).remove(&number);
                    stop.ended.notify_all();
                });
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    /// How many connections were accepted.
    fn accepted(&self) -> usize {
        *lock(&self.stop.accepted)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.stop.gate).stopped = true;
        self.stop.wake.notify_all();
        // Wakes the accepting thread, which then sees that it is over.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        for stream in lock(&self.stop.open).values() {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}
