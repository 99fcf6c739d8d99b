//! An HTTP proxy for the tests that knows CONNECT and nothing else.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::thread;

use super::{Connection, Listener, Reply, Request, Socket, Transport, basic_credentials, lock};

/// What a [`Proxy`] does; by default it connects everyone to any loopback address.
#[derive(Clone, Default)]
pub struct ProxyConfig {
    port: u16,
    credentials: Option<(String, String)>,
    denial: Option<u16>,
    hangs: bool,
    routes: Vec<(String, SocketAddr)>,
}

impl ProxyConfig {
    /// An open proxy.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens on this port of 127.0.0.1; 0, the default, takes a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Demands this user and password, by Basic, and answers 407 to all others.
    pub fn password(mut self, user: &str, password: &str) -> Self {
        self.credentials = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// Denies every CONNECT with this status.
    pub fn deny(mut self, status: u16) -> Self {
        self.denial = Some(status);
        self
    }

    /// Reads the CONNECT and never answers.
    pub fn hang(mut self) -> Self {
        self.hangs = true;
        self
    }

    /// Connects to `address` whoever asks for `host`, on any port; `*` is any host.
    pub fn route(mut self, host: &str, address: SocketAddr) -> Self {
        self.routes.push((host.to_owned(), address));
        self
    }
}

/// A running proxy; it ends, with all its tunnels, when this is dropped.
pub struct Proxy {
    listener: Listener,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Proxy {
    /// Starts it; panics where it cannot, as tests do.
    pub fn start(config: ProxyConfig) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&requests);
        let listener = Listener::start(config.port, move |stream, number, _| {
            // A client or target that goes away ends its tunnel, and nothing else.
            drop(serve(&config, &record, &stream, number));
        });
        Self { listener, requests }
    }

    /// Its URL, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", self.listener.address)
    }

    /// Its URL with user and password, as they are given, not encoded.
    pub fn url_with(&self, user: &str, password: &str) -> String {
        format!("http://{user}:{password}@{}", self.listener.address)
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        *lock(&self.listener.stop.accepted)
    }

    /// Every request so far, CONNECT or not.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }

    /// The targets of the requests, such as `login.example.test:443`.
    pub fn targets(&self) -> Vec<String> {
        let requests = self.requests().into_iter();
        requests.map(|request| request.path).collect()
    }

    /// User and password of each request, where it had them.
    pub fn credentials(&self) -> Vec<Option<(String, String)>> {
        let requests = self.requests();
        requests.iter().map(proxy_credentials).collect()
    }
}

fn proxy_credentials(request: &Request) -> Option<(String, String)> {
    basic_credentials(request.header("proxy-authorization")?)
}

fn serve(
    config: &ProxyConfig,
    record: &Mutex<Vec<Request>>,
    stream: &TcpStream,
    number: usize,
) -> io::Result<()> {
    let mut connection = Connection {
        transport: Transport::Plain(Socket::new(stream.try_clone()?)),
        buffer: Vec::new(),
        number,
    };
    let Some(request) = connection.read_request()? else {
        return Ok(());
    };
    connection.transport.settle();
    lock(record).push(request.clone());
    if config.hangs {
        connection.wait_for_end();
        return Ok(());
    }
    match target(config, &request) {
        Ok(target) => tunnel(connection, stream, &target),
        Err(refusal) => {
            connection.finish(&refusal.close().to_bytes());
            Ok(())
        }
    }
}

/// The connection a CONNECT asks for, or how it is refused.
fn target(config: &ProxyConfig, request: &Request) -> Result<TcpStream, Reply> {
    if let Some(status) = config.denial {
        return Err(Reply::new(status, "denied"));
    }
    if config.credentials.is_some() && config.credentials != proxy_credentials(request) {
        let refusal = Reply::new(407, "who are you?");
        return Err(refusal.header("Proxy-Authenticate", "Basic realm=\"tests\""));
    }
    if request.method != "CONNECT" {
        return Err(Reply::new(405, "only CONNECT"));
    }
    let host = request.path.rsplit_once(':').map_or("", |(host, _)| host);
    let mut routes = config.routes.iter();
    let route = routes.find(|(known, _)| known == "*" || known.eq_ignore_ascii_case(host));
    let address = match route {
        Some((_, address)) => Some(*address),
        None => loopback(&request.path),
    };
    address
        .and_then(|address| TcpStream::connect(address).ok())
        .ok_or_else(|| Reply::new(502, "no such target"))
}

/// The address of `host:port` where that is a loopback address; tests go no further.
fn loopback(target: &str) -> Option<SocketAddr> {
    let mut addresses = target.to_socket_addrs().ok()?;
    addresses.find(|address| address.ip().is_loopback() && address.is_ipv4())
}

/// Copies both ways until both sides have ended.
fn tunnel(mut connection: Connection, client: &TcpStream, target: &TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_target) = (client.try_clone()?, target.try_clone()?);
    connection.transport.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    to_target.write_all(&std::mem::take(&mut connection.buffer))?;
    let upward = thread::spawn(move || {
        copy(&mut from_client, &mut to_target);
    });
    let (mut from_target, mut to_client) = (target, client);
    copy(&mut from_target, &mut to_client);
    // A target that has ended answers nothing more.
    drop(client.shutdown(Shutdown::Both));
    drop(upward.join());
    Ok(())
}

/// Copies to the end, then ends the other side's direction.
fn copy(from: &mut impl Read, to: &mut (impl Write + End)) {
    drop(io::copy(from, to));
    to.end();
}

/// A stream that can end its writing side.
trait End {
    fn end(&self);
}

impl End for TcpStream {
    fn end(&self) {
        drop(self.shutdown(Shutdown::Write));
    }
}

impl End for &TcpStream {
    fn end(&self) {
        drop(self.shutdown(Shutdown::Write));
    }
}
