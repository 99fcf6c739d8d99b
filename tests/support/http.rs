//! Requests, and connections over plain TCP or TLS that can also be reset.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};
use serde_json::Value;

use super::{Framing, Reply};

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
        header(&self.headers, name)
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
    pub fn secrets(&self) -> Vec<String> {
        let names = ["refresh_token", "client_secret", "code", "code_verifier", "assertion"];
        let mut secrets: Vec<_> = names.iter().filter_map(|name| self.field(name)).collect();
        let header = self.header("authorization").and_then(|value| value.split_once(' '));
        secrets.extend(header.map(|(_, token)| token.to_owned()));
        secrets
    }
}

/// The first of these headers with this name, in any case.
pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
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

/// The string values of a member wherever it is in a text, be it whole JSON or not.
pub fn string_members(text: &str, name: &str) -> Vec<String> {
    let key = format!("\"{name}\"");
    let values = text.match_indices(&key).filter_map(|(at, _)| {
        let rest = text[at + key.len()..].trim_start().strip_prefix(':')?;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        values.next()?.ok()?.as_str().map(str::to_owned)
    });
    values.collect()
}

/// A TCP stream that leaves the last byte it gave out in the kernel, unread, until
/// it is asked for more or told to [`settle`](Socket::settle). A close with unread
/// bytes is a reset, which the standard library has no other way to ask for.
pub struct Socket {
    stream: TcpStream,
    held: bool,
}

impl Socket {
    /// Takes the byte that was left.
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.held) {
            drop(self.stream.read_exact(&mut [0]));
        }
    }

    /// Ends the writing side and reads on to the end, so that a reset does not overtake the alert
    /// that says why.
    pub fn linger(&mut self) {
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
pub struct Connection {
    pub socket: Socket,
    tls: Option<ServerConnection>,
    pub buffer: Vec<u8>,
}

impl Connection {
    pub fn new(stream: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Self {
        // Nothing but speed is lost where this is refused.
        drop(stream.set_nodelay(true));
        let tls = tls.map(|it| ServerConnection::new(Arc::clone(it)).expect("a TLS connection"));
        Self { socket: Socket { stream, held: false }, tls, buffer: Vec::new() }
    }

    /// Reads a request; None at the end of the connection, `InvalidInput` for what is no HTTP.
    pub fn read_request(&mut self) -> io::Result<Option<Request>> {
        let garbage = || io::Error::new(io::ErrorKind::InvalidInput, "not HTTP");
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
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
        if request.header("transfer-encoding").is_some() {
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
    pub fn write(&mut self, bytes: &[u8]) -> bool {
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
    pub fn send(&mut self, reply: &Reply, close: bool) -> bool {
        if reply.framing == Framing::Reset {
            return false;
        }
        self.socket.settle();
        // The client may be gone already, and that is its own affair.
        let written = self.write(&reply.to_bytes());
        match reply.framing {
            Framing::Length | Framing::Chunked if !close => return written,
            Framing::Unended(_) | Framing::Hang => self.wait_for_end(),
            Framing::CloseAbrupt | Framing::TooLong(_) | Framing::ChunkedCut => {}
            _ => self.finish(),
        }
        false
    }

    /// Ends the connection in good order.
    fn finish(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            self.write(b"");
        }
        drop(self.socket.stream.shutdown(Shutdown::Write));
    }

    /// Reads, and forgets, until the client or the server ends.
    pub fn wait_for_end(&mut self) {
        while self.fill().unwrap_or(false) {
            self.buffer.clear();
        }
    }
}
