//! A token endpoint for the tests: HTTP/1.1 over plain TCP or TLS, on threads.
//!
//! It answers from a queue of [`Reply`]s, and when that is used up, as an
//! [`OAuth`] endpoint with a memory, or else with the last reply again. It keeps
//! every request it was sent and every token it saw. It never sleeps except for
//! the delays it was given, and everything it started ends with the [`Server`].

// Each test binary uses its own part of this module.
#![allow(dead_code)]

use std::collections::{HashMap, HashSet, VecDeque};
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
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

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

/// What a [`Server`] does; made by [`Config::scripted`] or [`Config::oauth`].
#[derive(Clone, Default)]
pub struct Config {
    port: u16,
    tls: Option<Tls>,
    replies: VecDeque<Reply>,
    oauth: Option<OAuth>,
    log: Option<PathBuf>,
}

impl Config {
    /// Answers with these replies in turn, the last one again and again.
    pub fn scripted(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self { replies: replies.into_iter().collect(), ..Self::default() }
    }

    /// Answers as `oauth`.
    pub fn oauth(oauth: OAuth) -> Self {
        Self { oauth: Some(oauth), ..Self::default() }
    }

    /// Answers with these replies before all others.
    pub fn first(mut self, replies: impl IntoIterator<Item = Reply>) -> Self {
        let later = std::mem::take(&mut self.replies);
        self.replies = replies.into_iter().chain(later).collect();
        self
    }

    /// Listens on this port of 127.0.0.1; 0, the default, takes a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Speaks TLS.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Appends a line for each request to this file; no secret is in it.
    pub fn log(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }
}

/// The TLS side of a [`Server`].
#[derive(Clone)]
pub struct Tls {
    certificate: String,
    versions: Versions,
    client_certificate: bool,
    leaf_only: bool,
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
        Self {
            certificate: certificate.to_owned(),
            versions: Versions::Both,
            client_certificate: false,
            leaf_only: false,
        }
    }

    /// Offers these versions only.
    pub fn versions(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }

    /// Demands a client certificate.
    pub fn client_certificate(mut self) -> Self {
        self.client_certificate = true;
        self
    }

    /// Leaves out the intermediate certificates, a common mistake of servers.
    pub fn leaf_only(mut self) -> Self {
        self.leaf_only = true;
        self
    }
}

/// One answer of a script.
#[derive(Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    framing: Framing,
    delay: Duration,
    action: Action,
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
    /// In chunks, closed before the last one.
    ChunkedCut,
}

/// What a [`Reply`] does to the connection.
#[derive(Clone, PartialEq, Eq)]
enum Action {
    Answer,
    Raw(Vec<u8>),
    DropBeforeReply,
    ResetBeforeReply,
    DropAtAccept,
    Hang,
}

impl Reply {
    /// A body with a status and no Content-Type.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            framing: Framing::Length,
            delay: Duration::ZERO,
            action: Action::Answer,
        }
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
        Self::json(200, grant_body(access_token, refresh_token, "SIG-scripted="))
    }

    /// An error of RFC 6749 §5.2.
    pub fn error(status: u16, error: &str, description: &str) -> Self {
        Self::json(status, error_body(error, description))
    }

    /// A redirect to this URL.
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::new(status, "").header("Location", location)
    }

    /// Reads the request, then sends these bytes as they are, and closes.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::acting(Action::Raw(bytes.into()))
    }

    /// Reads the request, then closes the connection in good order.
    pub fn drop_before_reply() -> Self {
        Self::acting(Action::DropBeforeReply)
    }

    /// Reads the request, then resets the connection (ECONNRESET for the client).
    pub fn reset_before_reply() -> Self {
        Self::acting(Action::ResetBeforeReply)
    }

    /// Closes a new connection before anything was answered: over TLS once the
    /// client has begun its handshake, over plain TCP before the request is read.
    pub fn drop_at_accept() -> Self {
        Self::acting(Action::DropAtAccept)
    }

    /// Reads the request and never answers; ends when the client does.
    pub fn hang() -> Self {
        Self::acting(Action::Hang)
    }

    fn acting(action: Action) -> Self {
        Self { action, ..Self::new(200, "") }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Ends the body in this way.
    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Waits this long, once the request is read, before it acts.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Closes the connection after the answer, and says so in a header.
    pub fn close(self) -> Self {
        self.header("Connection", "close")
    }

    fn closes(&self) -> bool {
        let by_framing = !matches!(self.framing, Framing::Length | Framing::Chunked);
        by_framing
            || self.headers.iter().any(|(name, value)| {
                name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close")
            })
    }

    /// The bytes on the wire.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status)).into_bytes();
        for (name, value) in &self.headers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        let bodyless = self.status == 204 || self.status == 304;
        match self.framing {
            _ if bodyless => {}
            Framing::Length => push_length(&mut out, self.body.len()),
            Framing::TooLong(extra) => push_length(&mut out, self.body.len() + extra),
            Framing::Chunked | Framing::ChunkedCut => {
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            }
            Framing::CloseDelimited | Framing::CloseAbrupt => {}
        }
        out.extend_from_slice(b"\r\n");
        match self.framing {
            _ if bodyless => {}
            Framing::Chunked | Framing::ChunkedCut => {
                for chunk in self.body.chunks(7) {
                    out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    out.extend_from_slice(chunk);
                    out.extend_from_slice(b"\r\n");
                }
                if self.framing == Framing::Chunked {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
            }
            _ => out.extend_from_slice(&self.body),
        }
        out
    }
}

fn push_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
}

/// The reason phrase of a status.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        415 => "Unsupported Media Type",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

/// A token endpoint with a memory: it issues tokens, and refuses what is not right.
///
/// A request is processed once the thinking time is over, and answered after the delay.
/// It holds grants side by side, each a family of tokens: the first is there from the start,
/// an authorization code makes another. With rotation, using a refresh token a second time
/// revokes its family.
#[derive(Clone)]
pub struct OAuth {
    client_id: String,
    client_secret: Option<String>,
    refresh_token: String,
    id_url: String,
    extra: Vec<(String, Value)>,
    rotate: bool,
    lenient: bool,
    refuse_parallel: bool,
    lose_replies: usize,
    lose_unseen: usize,
    think: Duration,
    delay: Duration,
    grace: Duration,
    state_file: Option<PathBuf>,
}

impl Default for OAuth {
    fn default() -> Self {
        Self::new()
    }
}

impl OAuth {
    /// A rotating endpoint with [`CLIENT_ID`], no secret, and [`REFRESH_TOKEN`] live.
    pub fn new() -> Self {
        Self {
            client_id: CLIENT_ID.to_owned(),
            client_secret: None,
            refresh_token: REFRESH_TOKEN.to_owned(),
            id_url: "https://login.salesforce.com/id/00Dxx0000001gPLEAY/005xx000001SwiUAAS"
                .to_owned(),
            extra: Vec::new(),
            rotate: true,
            lenient: false,
            refuse_parallel: false,
            lose_replies: 0,
            lose_unseen: 0,
            think: Duration::ZERO,
            delay: Duration::ZERO,
            grace: Duration::ZERO,
            state_file: None,
        }
    }

    /// Knows this client.
    pub fn client_id(mut self, client_id: &str) -> Self {
        client_id.clone_into(&mut self.client_id);
        self
    }

    /// Demands this secret, in the form or in a Basic header.
    pub fn client_secret(mut self, client_secret: &str) -> Self {
        self.client_secret = Some(client_secret.to_owned());
        self
    }

    /// Starts with this refresh token live.
    pub fn refresh_token(mut self, refresh_token: &str) -> Self {
        refresh_token.clone_into(&mut self.refresh_token);
        self
    }

    /// Gives this `id` member in a grant.
    pub fn id_url(mut self, id_url: &str) -> Self {
        id_url.clone_into(&mut self.id_url);
        self
    }

    /// Adds a member to every grant.
    pub fn extra(mut self, name: &str, value: Value) -> Self {
        self.extra.push((name.to_owned(), value));
        self
    }

    /// Gives a new refresh token with every grant, or keeps the one it has.
    pub fn rotate(mut self, rotate: bool) -> Self {
        self.rotate = rotate;
        self
    }

    /// Grants whatever the request says.
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// Answers 'token request is already being processed' to a request that comes
    /// in while another waits for its answer; needs a delay or time to think to have an effect.
    pub fn refuse_parallel(mut self) -> Self {
        self.refuse_parallel = true;
        self
    }

    /// Processes the first `count` grants, but closes instead of answering them.
    pub fn lose_replies(mut self, count: usize) -> Self {
        self.lose_replies = count;
        self
    }

    /// Reads the first `count` requests, and closes without having processed them.
    pub fn lose_unseen(mut self, count: usize) -> Self {
        self.lose_unseen = count;
        self
    }

    /// Waits this long between reading a request and processing it.
    pub fn think(mut self, think: Duration) -> Self {
        self.think = think;
        self
    }

    /// Takes the refresh token before for so long after a rotation, and answers it with the
    /// same tokens again, as servers do for clients whose answer was lost.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Waits this long between processing and answering.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Writes its state to this file, by a rename, when a request was read and again before it
    /// is answered.
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_file = Some(path.into());
        self
    }
}

// ---- What was received ----

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which connection it came over, counted from 1 in the order of accepting.
    pub connection: usize,
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
        pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (form_decode(name), form_decode(value))
            })
            .collect()
    }

    /// The first field of the form with this name.
    pub fn field(&self, name: &str) -> Option<String> {
        let mut form = self.form().into_iter();
        form.find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Client id and secret of a Basic header, each form-decoded (RFC 6749 §2.3.1).
    pub fn basic(&self) -> Option<(String, String)> {
        let (user, password) = basic_credentials(self.header("authorization")?)?;
        Some((form_decode(&user), form_decode(&password)))
    }

    /// What in this request must not be shown.
    fn secrets(&self) -> Vec<String> {
        let names = ["refresh_token", "client_secret", "code", "code_verifier", "assertion"];
        let mut secrets: Vec<String> = names.iter().filter_map(|name| self.field(name)).collect();
        if let Some(value) = self.header("authorization") {
            secrets.extend(value.split_once(' ').map(|(_, token)| token.to_owned()));
            secrets.extend(basic_credentials(value).map(|(_, encoded)| encoded));
        }
        secrets.extend(self.basic().map(|(_, secret)| secret));
        secrets
    }
}

/// Decodes `application/x-www-form-urlencoded` text; what is no escape stays.
fn form_decode(text: &str) -> String {
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

/// User and password of a `Basic …` header value, not decoded further.
fn basic_credentials(header: &str) -> Option<(String, String)> {
    let (scheme, code) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(base64_decode(code.trim())?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Decodes padded base64; None where it is none.
fn base64_decode(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut out = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|known| *known == byte)?;
        bits = (bits << 6) | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(out)
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
    handshake_errors: Vec<String>,
    secrets: Vec<String>,
    secrets_known: HashSet<String>,
    access_tokens: HashSet<String>,
    families: Vec<Family>,
    posts: usize,
    lost: usize,
    unseen: usize,
    in_flight: usize,
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

impl Memory {
    fn add_secret(&mut self, secret: &str) {
        if !secret.is_empty() && self.secrets_known.insert(secret.to_owned()) {
            self.secrets.push(secret.to_owned());
        }
    }

    /// The family that a refresh token belongs to or belonged to.
    fn family_of(&self, token: &str) -> Option<usize> {
        self.families.iter().position(|family| {
            family.refresh_token.as_deref() == Some(token) || family.used.contains(token)
        })
    }

    fn grants(&self) -> usize {
        self.families.iter().map(|family| family.grants).sum()
    }

    /// The next scripted reply; the last one stays when `endless`.
    fn next_reply(&mut self, endless: bool) -> Option<Reply> {
        if endless && self.replies.len() == 1 {
            return self.replies.front().cloned();
        }
        self.replies.pop_front()
    }
}

impl Server {
    /// Starts it; panics where it cannot, as tests do.
    pub fn start(config: Config) -> Self {
        let mut memory = Memory { replies: config.replies, ..Memory::default() };
        if let Some(oauth) = &config.oauth {
            let refresh_token = Some(oauth.refresh_token.clone());
            memory.families.push(Family { refresh_token, ..Family::default() });
            memory.add_secret(&oauth.refresh_token);
            memory.add_secret(oauth.client_secret.as_deref().unwrap_or_default());
        }
        let shared = Arc::new(Shared {
            tls: config.tls.as_ref().map(tls_config),
            oauth: config.oauth,
            log: config.log,
            memory: Mutex::new(memory),
        });
        if let Some(oauth) = &shared.oauth {
            write_state(oauth, &lock(&shared.memory));
        }
        let serving = Arc::clone(&shared);
        let listener = Listener::start(config.port, move |stream, number, stop| {
            serve(&serving, stream, number, stop);
        });
        Self { listener, shared }
    }

    /// The URL of the token endpoint, by 127.0.0.1.
    pub fn url(&self) -> String {
        self.url_for("127.0.0.1")
    }

    /// The URL of the token endpoint under another name of this host.
    pub fn url_for(&self, host: &str) -> String {
        format!("{}://{host}:{}{TOKEN_PATH}", self.scheme(), self.port())
    }

    fn scheme(&self) -> &'static str {
        match self.shared.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.listener.address.port()
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        *lock(&self.listener.stop.accepted)
    }

    /// Every whole request so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.memory).requests.clone()
    }

    /// The last whole request; panics where there was none.
    pub fn last_request(&self) -> Request {
        let requests = self.requests();
        requests.last().expect("no request came in").clone()
    }

    /// How many POST requests came in.
    pub fn posts(&self) -> usize {
        lock(&self.shared.memory).posts
    }

    /// How many grants the [`OAuth`] endpoint gave.
    pub fn grants(&self) -> usize {
        lock(&self.shared.memory).grants()
    }

    /// How many times a used refresh token was sent again.
    pub fn replays(&self) -> usize {
        lock(&self.shared.memory).families.iter().map(|family| family.replays).sum()
    }

    /// Whether the first grant was revoked.
    pub fn revoked(&self) -> bool {
        lock(&self.shared.memory).families[0].revoked
    }

    /// The refresh token of the first grant that works now; None once it was revoked.
    pub fn live_refresh_token(&self) -> Option<String> {
        lock(&self.shared.memory).families[0].refresh_token.clone()
    }

    /// The access token of the first grant; None once it was revoked.
    pub fn live_access_token(&self) -> Option<String> {
        lock(&self.shared.memory).families[0].access_token.clone()
    }

    /// Waits until every accepted connection has ended, at most ten seconds; after it,
    /// the records are complete.
    pub fn wait_idle(&self) {
        let stop = &self.listener.stop;
        let busy = |open: &mut HashMap<usize, TcpStream>| !open.is_empty();
        let limit = Duration::from_secs(10);
        drop(stop.ended.wait_timeout_while(lock(&stop.open), limit, busy));
    }

    /// What ended TLS connections before a request was read, such as the alert the client sent;
    /// see [`wait_idle`](Self::wait_idle).
    pub fn handshake_errors(&self) -> Vec<String> {
        lock(&self.shared.memory).handshake_errors.clone()
    }

    /// Every token, signature and secret that went over the wire or is configured.
    pub fn secrets(&self) -> Vec<String> {
        lock(&self.shared.memory).secrets.clone()
    }

    /// Every access token that went over the wire in an answer.
    pub fn access_tokens(&self) -> HashSet<String> {
        lock(&self.shared.memory).access_tokens.clone()
    }

    /// Replaces what is left of the script.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        lock(&self.shared.memory).replies = replies.into_iter().collect();
    }

    /// Revokes the first grant, as an administrator does.
    pub fn revoke(&self) {
        lock(&self.shared.memory).families[0].revoke();
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
    let config = builder.with_single_cert(chain, key);
    Arc::new(config.expect("certificate and key"))
}

/// Serves one connection to its end.
fn serve(shared: &Shared, stream: TcpStream, number: usize, stop: &Stop) {
    let endless = shared.oauth.is_none();
    let at_accept = {
        let mut memory = lock(&shared.memory);
        let drops = |reply: &Reply| reply.action == Action::DropAtAccept;
        let due = memory.replies.front().is_some_and(drops);
        if due {
            memory.next_reply(endless);
        }
        due
    };
    let mut socket = Socket::new(stream);
    if at_accept {
        if shared.tls.is_some() {
            drop(socket.read(&mut [0; 4096]));
            socket.settle();
        }
        return;
    }
    let transport = match &shared.tls {
        None => Transport::Plain(socket),
        Some(config) => match handshake(config, socket) {
            Ok(tls) => Transport::Tls(Box::new(tls)),
            Err(error) => {
                lock(&shared.memory).handshake_errors.push(error.to_string());
                return;
            }
        },
    };
    let mut connection = Connection { transport, buffer: Vec::new(), number };
    loop {
        match connection.read_request() {
            Ok(Some(request)) => {
                if !answer(shared, &mut connection, &request, stop) {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let reply = Reply::new(400, "not HTTP").close();
                connection.transport.settle();
                connection.finish(&reply.to_bytes());
                return;
            }
            Err(error) => {
                if shared.tls.is_some() {
                    lock(&shared.memory).handshake_errors.push(error.to_string());
                }
                return;
            }
        }
    }
}

/// Answers one request; gives whether the connection goes on.
fn answer(shared: &Shared, connection: &mut Connection, request: &Request, stop: &Stop) -> bool {
    let client_closes =
        request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let scripted = {
        let mut memory = lock(&shared.memory);
        memory.posts += usize::from(request.method == "POST");
        for secret in request.secrets() {
            memory.add_secret(&secret);
        }
        memory.requests.push(request.clone());
        memory.next_reply(shared.oauth.is_none())
    };
    let is_oauth = scripted.is_none() && shared.oauth.is_some();
    let reply = match (scripted, &shared.oauth) {
        (Some(reply), _) => reply,
        (None, Some(oauth)) => match oauth_reply(oauth, &shared.memory, request, stop) {
            Some(reply) => reply,
            None => return false,
        },
        (None, None) => Reply::error(500, "server_error", "the script is empty"),
    };
    log(shared, request, &reply);
    learn_secrets(&shared.memory, &reply.body);
    let stopped = stop.wait(reply.delay);
    // Over before the client can see the answer, so that its next request is not parallel.
    if is_oauth {
        lock(&shared.memory).in_flight -= 1;
    }
    if stopped {
        return false;
    }
    if reply.action != Action::ResetBeforeReply {
        connection.transport.settle();
    }
    match &reply.action {
        Action::Answer => {}
        Action::Raw(bytes) => {
            learn_secrets(&shared.memory, bytes);
            connection.finish(bytes);
            return false;
        }
        Action::DropBeforeReply => {
            connection.finish(b"");
            return false;
        }
        Action::ResetBeforeReply | Action::DropAtAccept => return false,
        Action::Hang => {
            connection.wait_for_end();
            return false;
        }
    }
    let bytes = reply.to_bytes();
    if client_closes || reply.closes() {
        let abrupt =
            !matches!(reply.framing, Framing::Length | Framing::Chunked | Framing::CloseDelimited);
        if abrupt {
            drop(connection.transport.write_all(&bytes));
            drop(connection.transport.flush());
        } else {
            connection.finish(&bytes);
        }
        return false;
    }
    let written = connection.transport.write_all(&bytes);
    written.and_then(|()| connection.transport.flush()).is_ok()
}

/// Keeps the tokens of a body that is JSON, or has JSON in it.
fn learn_secrets(memory: &Mutex<Memory>, body: &[u8]) {
    let start = body.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let document = body.get(start..).unwrap_or_default();
    let Some(Ok(value)) =
        serde_json::Deserializer::from_slice(document).into_iter::<Value>().next()
    else {
        return;
    };
    let mut memory = lock(memory);
    memory.access_tokens.extend(value["access_token"].as_str().map(str::to_owned));
    for name in ["access_token", "refresh_token", "id_token", "signature"] {
        memory.add_secret(value[name].as_str().unwrap_or_default());
    }
}

/// Appends a line about this request to the log; without secrets.
fn log(shared: &Shared, request: &Request, reply: &Reply) {
    let Some(path) = &shared.log else { return };
    let error = serde_json::from_slice::<Value>(&reply.body)
        .ok()
        .and_then(|body| body["error"].as_str().map(str::to_owned));
    let line = format!(
        "connection {} {} {} -> {} {}\n",
        request.connection,
        request.method,
        request.path,
        reply.status,
        error.unwrap_or_default()
    );
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.expect("append to the log");
}

/// A lock that a panic elsewhere does not spoil.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- The OAuth endpoint ----

/// Processes a request, and writes the state, before anything is answered; None when stopped.
fn oauth_reply(
    oauth: &OAuth,
    memory: &Mutex<Memory>,
    request: &Request,
    stop: &Stop,
) -> Option<Reply> {
    let is_parallel = {
        let mut memory = lock(memory);
        memory.in_flight += 1;
        write_state(oauth, &memory);
        memory.in_flight > 1
    };
    if stop.wait(oauth.think) {
        return None;
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
    Some(reply.delay(oauth.delay))
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
    // An assertion names the client itself.
    let names_no_client = request.field("client_id").is_none();
    if wanted != "assertion" || request.header("authorization").is_some() || !names_no_client {
        let refused = client_refusal(oauth, request);
        if refused.is_some() {
            return refused;
        }
    }
    let Some(value) = request.field(wanted) else {
        return refuse("invalid_request", &format!("missing required parameter: {wanted}"));
    };
    if wanted != "refresh_token" {
        return None;
    }
    let family = memory.family_of(&value).map(|at| &mut memory.families[at]);
    if let Some(family) = family {
        if family.in_grace(&value, oauth.grace).is_some() {
            return None;
        }
        if family.used.contains(&value) {
            family.replays += 1;
            family.revoke();
        } else {
            return None;
        }
    }
    refuse("invalid_grant", "expired access/refresh token")
}

/// Why this client is not the right one; None where it is.
fn client_refusal(oauth: &OAuth, request: &Request) -> Option<Reply> {
    let refuse = |error, description| Some(Reply::error(400, error, description));
    let in_form =
        (request.field("client_id"), request.field("client_secret").filter(|it| !it.is_empty()));
    let (client_id, client_secret) = match (request.header("authorization"), request.basic()) {
        (None, _) => in_form,
        (Some(_), None) => return refuse("invalid_client", "invalid client credentials"),
        (Some(_), Some(_)) if in_form != (None, None) => {
            return refuse("invalid_request", "more than one client authentication");
        }
        (Some(_), Some((id, secret))) => (Some(id), Some(secret)),
    };
    if client_id.as_ref() != Some(&oauth.client_id) {
        return refuse("invalid_client_id", "client identifier invalid");
    }
    if client_secret != oauth.client_secret {
        return refuse("invalid_client", "invalid client credentials");
    }
    None
}

/// Issues tokens: the next ones of the family that the refresh token belongs to, or the first
/// ones of a new family. Client credentials and assertions get no refresh token.
fn grant(oauth: &OAuth, memory: &mut Memory, request: &Request) -> Reply {
    let number = memory.grants() + 1;
    let grant_type = request.field("grant_type").unwrap_or_default();
    let is_code = grant_type == "authorization_code";
    let access_only = [JWT_BEARER, "client_credentials"].contains(&&*grant_type);
    let token = request.field("refresh_token").unwrap_or_default();
    let at = if is_code || access_only {
        memory.families.push(Family::default());
        memory.families.len() - 1
    } else {
        memory.family_of(&token).unwrap_or(0)
    };
    let family = &mut memory.families[at];
    family.grants += 1;
    let again = family.in_grace(&token, oauth.grace).cloned();
    let body = again.unwrap_or_else(|| {
        let access = format!("00Dxx0000001gPL!AT-{number}-{}", random());
        let gives_refresh = is_code || oauth.rotate && !access_only;
        let refresh = gives_refresh.then(|| format!("5Aep-RT-{number}-{}", random()));
        let mut body =
            grant_value(&access, refresh.as_deref(), &format!("SIG-{number}-{}=", random()));
        body["id"] = json!(oauth.id_url);
        if access_only {
            body["expires_in"] = json!(7200);
        }
        for (name, value) in &oauth.extra {
            body[name.as_str()] = value.clone();
        }
        family.access_token = Some(access);
        if let Some(before) = refresh.and_then(|next| family.refresh_token.replace(next)) {
            family.used.insert(before.clone());
            family.before = Some((before, Instant::now(), body.clone()));
        }
        body
    });
    for name in ["access_token", "refresh_token"] {
        memory.add_secret(body[name].as_str().unwrap_or_default());
    }
    if memory.lost < oauth.lose_replies {
        memory.lost += 1;
        return Reply::drop_before_reply();
    }
    Reply::json(200, body.to_string())
}

/// Writes the state by a rename, so that a reader sees the old or the new one.
fn write_state(oauth: &OAuth, memory: &Memory) {
    let Some(path) = &oauth.state_file else {
        return;
    };
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

fn grant_value(access_token: &str, refresh_token: Option<&str>, signature: &str) -> Value {
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

fn grant_body(access_token: &str, refresh_token: Option<&str>, signature: &str) -> String {
    grant_value(access_token, refresh_token, signature).to_string()
}

fn error_body(error: &str, description: &str) -> String {
    json!({ "error": error, "error_description": description }).to_string()
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
    fn new(stream: TcpStream) -> Self {
        // Nothing but speed is lost where this is refused.
        drop(stream.set_nodelay(true));
        Self { stream, held: false }
    }

    /// Takes the byte that was left, so that a close is an orderly one.
    fn settle(&mut self) {
        if std::mem::take(&mut self.held) {
            drop(self.stream.read(&mut [0]));
        }
    }

    /// Ends the writing side and reads on until the client ends: a close with unread bytes could
    /// overtake the alert that says why.
    fn linger(&mut self) {
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

type TlsStream = StreamOwned<ServerConnection, Socket>;

/// Plain TCP or TLS.
enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream>),
}

impl Transport {
    fn settle(&mut self) {
        match self {
            Self::Plain(socket) => socket.settle(),
            Self::Tls(tls) => tls.sock.settle(),
        }
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

fn handshake(config: &Arc<ServerConfig>, socket: Socket) -> io::Result<TlsStream> {
    let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    let mut tls = StreamOwned::new(connection, socket);
    while tls.conn.is_handshaking() {
        if let Err(error) = tls.conn.complete_io(&mut tls.sock) {
            tls.sock.settle();
            tls.sock.linger();
            return Err(error);
        }
    }
    Ok(tls)
}

/// One connection and what of it was read ahead.
struct Connection {
    transport: Transport,
    buffer: Vec<u8>,
    number: usize,
}

impl Connection {
    /// Reads a request; None at the end of the connection, `InvalidInput` for what is no HTTP.
    fn read_request(&mut self) -> io::Result<Option<Request>> {
        let head = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break self.take(end + 4);
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(garbage());
            }
            if !self.fill()? {
                return Ok(None);
            }
        };
        let head = String::from_utf8(head).map_err(|_| garbage())?;
        let mut lines = head.trim_end().split("\r\n");
        let start: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let [method, path, version] = start[..] else {
            return Err(garbage());
        };
        if !version.starts_with("HTTP/1.") {
            return Err(garbage());
        }
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        let headers: Option<Vec<_>> = lines.map(header).collect();
        let mut request = Request {
            connection: self.number,
            method: method.to_owned(),
            path: path.to_owned(),
            headers: headers.ok_or_else(garbage)?,
            body: Vec::new(),
            tls_version: None,
            server_name: None,
        };
        if let Transport::Tls(tls) = &self.transport {
            let version = tls.conn.protocol_version();
            request.tls_version = version.map(|version| format!("{version:?}"));
            request.server_name = tls.conn.server_name().map(str::to_owned);
        }
        Ok(self.read_body(&request)?.map(|body| Request { body, ..request }))
    }

    /// Reads the body of a request; None where the connection ends too early.
    fn read_body(&mut self, request: &Request) -> io::Result<Option<Vec<u8>>> {
        let encoding = request.header("transfer-encoding").unwrap_or_default();
        if encoding.eq_ignore_ascii_case("chunked") {
            return self.read_chunks();
        }
        let length = request.header("content-length").unwrap_or("0");
        let length = length.parse().map_err(|_| garbage())?;
        self.read_bytes(length)
    }

    fn read_chunks(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.read_line()? else {
                return Ok(None);
            };
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| garbage())?;
            if size == 0 {
                break;
            }
            let Some(chunk) = self.read_bytes(size)? else {
                return Ok(None);
            };
            body.extend_from_slice(&chunk);
            if body.len() > MAX_BODY || self.read_line()?.is_none_or(|line| !line.is_empty()) {
                return Err(garbage());
            }
        }
        // Trailers, up to the empty line.
        while let Some(line) = self.read_line()? {
            if line.is_empty() {
                return Ok(Some(body));
            }
        }
        Ok(None)
    }

    fn read_line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = self.take(end + 2);
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(garbage());
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn read_bytes(&mut self, length: usize) -> io::Result<Option<Vec<u8>>> {
        if length > MAX_BODY {
            return Err(garbage());
        }
        while self.buffer.len() < length {
            if !self.fill()? {
                return Ok(None);
            }
        }
        Ok(Some(self.take(length)))
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        self.buffer.drain(..length).collect()
    }

    /// Reads what there is; false at the end of the connection.
    fn fill(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 16 * 1024];
        let count = self.transport.read(&mut bytes)?;
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count > 0)
    }

    /// Sends the last bytes and ends the connection in good order.
    fn finish(&mut self, bytes: &[u8]) {
        // The client may be gone already, and that is its own affair.
        drop(self.transport.write_all(bytes));
        if let Transport::Tls(tls) = &mut self.transport {
            tls.conn.send_close_notify();
        }
        drop(self.transport.flush());
        let socket = match &self.transport {
            Transport::Plain(socket) => socket,
            Transport::Tls(tls) => &tls.sock,
        };
        drop(socket.stream.shutdown(Shutdown::Write));
    }

    /// Reads, and forgets, until the client or the server ends.
    fn wait_for_end(&mut self) {
        while self.fill().unwrap_or(false) {
            self.buffer.clear();
        }
    }
}

fn garbage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not HTTP")
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

/// Accepts connections on a thread of its own, and ends them all when dropped.
struct Listener {
    address: SocketAddr,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// What tells the threads of a listener to end.
#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    wake: Condvar,
    open: Mutex<HashMap<usize, TcpStream>>,
    ended: Condvar,
    accepted: Mutex<usize>,
}

impl Stop {
    /// Waits this long, or until stopped; gives whether it was stopped.
    fn wait(&self, duration: Duration) -> bool {
        let end = Instant::now() + duration;
        let mut stopped = lock(&self.stopped);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if *stopped || left.is_zero() {
                return *stopped;
            }
            let waited = self.wake.wait_timeout(stopped, left);
            stopped = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Listener {
    /// Serves each connection to this port of 127.0.0.1 on a thread of its own.
    fn start(port: u16, serve: impl Fn(TcpStream, usize, &Stop) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .unwrap_or_else(|error| panic!("port {port}: {error}"));
        let address = listener.local_addr().expect("address of the listener");
        let stop = Arc::new(Stop::default());
        let serve = Arc::new(serve);
        let accepting = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if *lock(&accepting.stopped) {
                    return;
                }
                // A client that gave up between connect and accept.
                let Ok(stream) = stream else { continue };
                let number = {
                    let mut accepted = lock(&accepting.accepted);
                    *accepted += 1;
                    *accepted
                };
                if let Ok(clone) = stream.try_clone() {
                    lock(&accepting.open).insert(number, clone);
                }
                let (serve, stop) = (Arc::clone(&serve), Arc::clone(&accepting));
                thread::spawn(move || {
                    serve(stream, number, &stop);
                    lock(&stop.open).remove(&number);
                    stop.ended.notify_all();
                });
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        *lock(&self.stop.stopped) = true;
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
