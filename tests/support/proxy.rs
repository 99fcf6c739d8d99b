//! An HTTP proxy for the tests that knows CONNECT and nothing else.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::http::{Connection, Request, basic};
use super::{Listener, Reply, lock};

settings! {
    /// What a [`Proxy`] does.
    pub struct ProxyConfig {
        /// Demands this header, and answers 407 to all others.
        authorization: Option<String> = None,
        /// Gives this answer to all.
        answer: Option<Reply> = None,
        /// Connects everyone to this address, whatever host is asked for; to none by default.
        route: Option<SocketAddr> = None,
    }
}

impl ProxyConfig {
    /// Demands this user and password, by Basic.
    pub fn password(self, user: &str, password: &str) -> Self {
        self.authorization(basic(user, password))
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
        let listener = Listener::start(0, move |stream, _| {
            // A client or target that goes away ends its tunnel, and nothing else.
            drop(serve(&config, &record, stream));
        });
        Self { listener, requests }
    }

    /// Its URL, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", self.listener.address)
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.listener.accepted()
    }

    /// Every request so far, CONNECT or not.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }
}

/// Serves one connection to its end.
fn serve(config: &ProxyConfig, record: &Mutex<Vec<Request>>, stream: TcpStream) -> io::Result<()> {
    let mut connection = Connection::new(stream.try_clone()?, None);
    let Some(request) = connection.read_request()? else {
        return Ok(());
    };
    lock(record).push(request.clone());
    match target(config, &request) {
        Ok(target) => {
            connection.socket.settle();
            connection.write(b"HTTP/1.1 200 Connection established\r\n\r\n");
            (&target).write_all(&connection.buffer)?;
            relay(&stream, &target);
        }
        Err(refusal) => _ = connection.send(&refusal.close(), true),
    }
    Ok(())
}

/// The connection a CONNECT asks for, or how it is refused.
fn target(config: &ProxyConfig, request: &Request) -> Result<TcpStream, Reply> {
    if let Some(answer) = &config.answer {
        return Err(answer.clone());
    }
    let given = request.header("proxy-authorization");
    if config.authorization.is_some() && config.authorization.as_deref() != given {
        let refusal = Reply::new(407, "who are you?");
        return Err(refusal.header("Proxy-Authenticate", "Basic realm=\"tests\""));
    }
    if request.method != "CONNECT" {
        return Err(Reply::new(405, "only CONNECT"));
    }
    let target = config.route.and_then(|address| TcpStream::connect(address).ok());
    target.ok_or_else(|| Reply::new(502, "no such target"))
}

/// Copies both ways until both sides have ended.
pub fn relay(client: &TcpStream, target: &TcpStream) {
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(io::copy(&mut &*client, &mut &*target));
            drop(target.shutdown(Shutdown::Write));
        });
        drop(io::copy(&mut &*target, &mut &*client));
        // A target that has ended answers nothing more.
        drop(client.shutdown(Shutdown::Both));
    });
}
