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
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ALL_VERSIONS, RootCertStore, ServerConfig, SupportedProtocolVersion};
use serde_json::{Value, json};

/// A struct of settings with their defaults, and a method for each that sets it.
macro_rules! settings {
    ($(#[$about:meta])* pub struct $name:ident {
        $($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$about])*
        #[derive(Clone)]
        pub struct $name { $(pub $field: $type,)* }

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

#[path = "http.rs"]
pub mod http;
#[path = "oauth.rs"]
mod oauth;
#[path = "proxy.rs"]
pub mod proxy;

use http::{Connection, Request};
pub use oauth::OAuth;
use oauth::{Family, Issued};

/// The path of the token endpoint, as Salesforce has it.
pub const TOKEN_PATH: &str = "/services/oauth2/token";
/// The client id an [`OAuth`] endpoint knows unless told otherwise.
pub const CLIENT_ID: &str = "3MVG9.test_client-id";
/// The first live refresh token of an [`OAuth`] endpoint unless told otherwise.
pub const REFRESH_TOKEN: &str = "5Aep-RT-0-first";

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
        versions: Vec<&'static SupportedProtocolVersion> = ALL_VERSIONS.to_vec(),
        /// Demands a client certificate.
        client_certificate: bool = false,
        /// Leaves out the intermediate certificates, a common mistake of servers.
        leaf_only: bool = false,
    }
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
    }
}

/// How a [`Reply`] is sent, and how it says where its body ends.
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
    /// The body is all the bytes of the answer; then it closes.
    Raw,
    /// No answer; it waits for the client to close.
    Hang,
    /// No answer, and a close in good order.
    Drop,
    /// No answer, and a reset.
    Reset,
    /// As `Drop`, and where the connection is new, in its handshake.
    DropAtAccept,
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
        Self::default().body(bytes).framing(Framing::Raw)
    }

    /// Reads the request, then closes the connection in good order.
    pub fn drop_before_reply() -> Self {
        Self::default().framing(Framing::Drop)
    }

    /// Reads the request, then resets the connection (ECONNRESET for the client).
    pub fn reset_before_reply() -> Self {
        Self::default().framing(Framing::Reset)
    }

    /// Closes a new connection over TLS once the client has begun its handshake.
    pub fn drop_at_accept() -> Self {
        Self::default().framing(Framing::DropAtAccept)
    }

    /// Reads the request and never answers; ends when the client does.
    pub fn hang() -> Self {
        Self::default().framing(Framing::Hang)
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
        let mut body = self.body.clone();
        match self.framing {
            Framing::Raw => return body,
            Framing::Hang | Framing::Drop | Framing::Reset | Framing::DropAtAccept => {
                return Vec::new();
            }
            _ if self.status == 204 || self.status == 304 => body.clear(),
            Framing::Length => _ = write!(head, "Content-Length: {}\r\n", body.len()),
            Framing::TooLong(extra) | Framing::Unended(extra) => {
                _ = write!(head, "Content-Length: {}\r\n", body.len() + extra);
            }
            Framing::Chunked | Framing::ChunkedCut => {
                head += "Transfer-Encoding: chunked\r\n";
                let sized = |chunk: &[u8]| {
                    [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()
                };
                body = body.chunks(7).flat_map(sized).collect();
                if self.framing == Framing::Chunked {
                    body.extend_from_slice(b"0\r\n\r\n");
                }
            }
            _ => {}
        }
        [head.as_bytes(), b"\r\n", &body].concat()
    }
}

// ---- The server ----

/// A running server; it ends, with all its connections, when this is dropped.
pub struct Server {
    listener: Listener,
    shared: Arc<Shared>,
}

/// What the threads of one server share.
struct Shared {
    config: Config,
    tls: Option<Arc<ServerConfig>>,
    memory: Mutex<Memory>,
}

/// What a server knows so far.
#[derive(Default)]
struct Memory {
    replies: VecDeque<Reply>,
    requests: Vec<Request>,
    secrets: HashSet<String>,
    access_tokens: HashSet<String>,
    issued: Issued,
}

impl Memory {
    /// The next scripted reply; the last one stays where no endpoint comes after it.
    fn next_reply(&mut self, config: &Config) -> Option<Reply> {
        if config.endpoint.is_none() && self.replies.len() == 1 {
            return self.replies.front().cloned();
        }
        self.replies.pop_front()
    }

    /// Keeps the tokens of a body that is JSON, or has JSON in it.
    fn learn(&mut self, body: &[u8]) {
        let text = String::from_utf8_lossy(body);
        self.access_tokens.extend(http::string_members(&text, "access_token"));
        for name in ["access_token", "refresh_token", "id_token", "signature"] {
            self.secrets.extend(http::string_members(&text, name));
        }
    }
}

impl Server {
    /// Starts it; panics where it cannot, as tests do.
    pub fn start(config: Config) -> Self {
        let mut memory = Memory { replies: config.replies.clone(), ..Memory::default() };
        if let Some(oauth) = &config.endpoint {
            memory.issued = Issued::new(oauth);
            memory.secrets.extend([oauth.refresh_token.clone(), oauth.client_secret.clone()]);
        }
        let (port, tls) = (config.port, config.tls.as_ref().map(tls_config));
        let shared = Arc::new(Shared { config, tls, memory: Mutex::new(memory) });
        let serving = Arc::clone(&shared);
        let listener = Listener::start(port, move |stream, stop| serve(&serving, stream, stop));
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
        self.memory().issued.posts
    }

    /// How many grants the [`OAuth`] endpoint gave.
    pub fn grants(&self) -> usize {
        self.memory().issued.grants()
    }

    /// How many times a used refresh token was sent again.
    pub fn replays(&self) -> usize {
        self.memory().issued.families.iter().map(|family| family.replays).sum()
    }

    /// The first grant as it is now: the tokens that work, and whether it was revoked.
    pub fn live(&self) -> Family {
        self.memory().issued.families[0].clone()
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
        lock(&self.listener.stop.state).held_from = Some(number);
        self.listener.stop.changed.notify_all();
    }

    /// Lets go of every request.
    pub fn release(&self) {
        self.hold_from(usize::MAX);
    }

    /// Waits until every accepted connection has ended, at most ten seconds.
    pub fn wait_idle(&self) {
        self.listener.stop.wait(Duration::from_secs(10), |state| !state.open.is_empty());
    }
}

/// The path of a certificate file in `tests/certs`, such as `ca`.
pub fn certificate_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certs").join(format!("{name}.pem"))
}

/// The certificates in the file of this name.
fn certificates(name: &str) -> Vec<CertificateDer<'static>> {
    let found = CertificateDer::pem_file_iter(certificate_path(name)).and_then(Iterator::collect);
    found.unwrap_or_else(|error| panic!("certificate {name}: {error}"))
}

/// What rustls needs to serve as told.
fn tls_config(tls: &Tls) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&tls.versions)
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
    let key = PrivateKeyDer::from_pem_file(certificate_path(&tls.certificate)).expect("a key");
    Arc::new(builder.with_single_cert(chain, key).expect("certificate and key"))
}

/// Serves one connection to its end.
fn serve(shared: &Shared, stream: TcpStream, stop: &Stop) {
    let mut connection = Connection::new(stream, shared.tls.as_ref());
    let drops_at_accept = {
        let mut memory = lock(&shared.memory);
        let due = memory.replies.front().is_some_and(|it| it.framing == Framing::DropAtAccept);
        due && memory.next_reply(&shared.config).is_some()
    };
    if drops_at_accept {
        drop(connection.socket.read(&mut [0; 4096]));
        return connection.socket.settle();
    }
    loop {
        let goes_on = match connection.read_request() {
            Ok(Some(request)) => answer(shared, &mut connection, &request, stop),
            Ok(None) => false,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                connection.send(&Reply::new(400, "not HTTP").close(), true)
            }
            Err(_) => return connection.socket.linger(),
        };
        if !goes_on {
            return;
        }
    }
}

/// Answers one request; gives whether the connection goes on.
fn answer(shared: &Shared, connection: &mut Connection, request: &Request, stop: &Stop) -> bool {
    let (scripted, number) = {
        let mut memory = lock(&shared.memory);
        memory.issued.posts += usize::from(request.method == "POST");
        memory.secrets.extend(request.secrets());
        memory.requests.push(request.clone());
        (memory.next_reply(&shared.config), memory.requests.len())
    };
    let is_held = |state: &State| state.held_from.is_some_and(|from| number >= from);
    if stop.wait(Duration::from_secs(3600), is_held) {
        return false;
    }
    let reply = {
        let mut memory = lock(&shared.memory);
        let reply = match (scripted, &shared.config.endpoint) {
            (Some(reply), _) => reply,
            (None, Some(oauth)) => oauth::process(oauth, &mut memory.issued, request),
            (None, None) => Reply::error(500, "server_error", "the script is empty"),
        };
        memory.learn(&reply.body);
        memory.issued.in_flight += 1;
        reply
    };
    log(shared, request, &reply);
    let stopped = stop.wait(reply.delay, |_| true);
    // Over before the client can see the answer, so that its next request is not parallel.
    lock(&shared.memory).issued.in_flight -= 1;
    let closes = |headers| {
        http::header(headers, "connection").is_some_and(|it| it.eq_ignore_ascii_case("close"))
    };
    !stopped && connection.send(&reply, closes(&request.headers) || closes(&reply.headers))
}

/// Appends a line about this request to the log; without secrets.
fn log(shared: &Shared, request: &Request, reply: &Reply) {
    let Some(path) = &shared.config.log else { return };
    let line = format!("{} {} -> {}\n", request.method, request.path, reply.status);
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.expect("append to the log");
}

/// A lock that a panic elsewhere does not spoil.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a file with this text in place by a rename; panics where it cannot.
pub fn write_atomically(path: &Path, text: &str) {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let written = fs::write(&next, text).and_then(|()| fs::rename(&next, path));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Milliseconds since 1970, as `issued_at` has them.
pub fn now_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(now.as_millis()).expect("a clock before the year 584556019")
}

/// The members of a grant as Salesforce gives them.
fn grant_body(access_token: &str, refresh_token: Option<&str>, signature: &str) -> Value {
    let mut body = json!({
        "access_token": access_token,
        "refresh_token": refresh_token,
        "signature": signature,
        "scope": "refresh_token api id",
        "instance_url": "https://example.my.salesforce.com",
        "id": "https://login.salesforce.com/id/00Dxx0000001gPLEAY/005xx000001SwiUAAS",
        "token_type": "Bearer",
        "issued_at": now_millis().to_string(),
    });
    if let (None, Some(members)) = (refresh_token, body.as_object_mut()) {
        members.shift_remove("refresh_token");
    }
    body
}

// ---- Connections ----

/// Accepts connections on a thread of its own, and ends them all when dropped.
struct Listener {
    address: SocketAddr,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// What tells the threads of a listener to wait or to end.
#[derive(Default)]
struct Stop {
    state: Mutex<State>,
    changed: Condvar,
}

/// The connections of a listener, and whether they have to wait or to end.
#[derive(Default)]
struct State {
    accepted: usize,
    open: HashMap<usize, TcpStream>,
    /// The first request that has to wait.
    held_from: Option<usize>,
    stopped: bool,
}

impl Stop {
    /// Waits this long, while this holds, or until stopped; gives whether it was stopped.
    fn wait(&self, limit: Duration, holds: impl Fn(&State) -> bool) -> bool {
        let waits = |state: &mut State| !state.stopped && holds(state);
        let waited = self.changed.wait_timeout_while(lock(&self.state), limit, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopped
    }
}

impl Listener {
    /// Serves each connection to this port of 127.0.0.1 on a thread of its own.
    fn start(port: u16, serve: impl Fn(TcpStream, &Stop) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .unwrap_or_else(|error| panic!("port {port}: {error}"));
        let address = listener.local_addr().expect("address of the listener");
        let stop = Arc::new(Stop::default());
        let serve = Arc::new(serve);
        let accepting = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let mut state = lock(&accepting.state);
                if state.stopped {
                    return;
                }
                // A client that gave up between connect and accept.
                let Ok(stream) = stream else { continue };
                state.accepted += 1;
                let number = state.accepted;
                state.open.extend(stream.try_clone().ok().map(|clone| (number, clone)));
                let (serve, stop) = (Arc::clone(&serve), Arc::clone(&accepting));
                thread::spawn(move || {
                    serve(stream, &stop);
                    lock(&stop.state).open.remove(&number);
                    stop.changed.notify_all();
                });
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    /// How many connections were accepted.
    fn accepted(&self) -> usize {
        lock(&self.stop.state).accepted
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.stop.state).stopped = true;
        self.stop.changed.notify_all();
        // Wakes the accepting thread, which then sees that it is over.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        for stream in lock(&self.stop.state).open.values() {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}
