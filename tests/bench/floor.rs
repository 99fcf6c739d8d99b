//! The floor of the benchmark: the least that any program has to do to renew and save a token.
//! One TLS handshake, one POST, the reply into a new file, fsync, rename, fsync of the folder.
//! Arguments: the PEM roots, the server as ADDRESS:PORT, the file to save to.

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const BODY: &str = "grant_type=refresh_token&client_id=CONSUMER_KEY&refresh_token=5Aep-RT-0-first";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [roots, server, file] = &arguments[..] else {
        return Err("floor ROOTS ADDRESS:PORT FILE".into());
    };
    let reply = post(roots, server.parse()?)?;
    let body = reply.split("\r\n\r\n").nth(1).filter(|_| reply.starts_with("HTTP/1.1 200"));
    save(&PathBuf::from(file), body.ok_or("no grant")?.as_bytes())
}

/// The whole reply to one request over a connection of its own.
fn post(roots: &str, server: SocketAddr) -> Result<String, Box<dyn Error>> {
    let mut trusted = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(roots)? {
        trusted.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), server.ip().into())?;
    let stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    let mut tls = StreamOwned::new(connection, stream);
    let request = format!(
        "POST /services/oauth2/token HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    tls.write_all(request.as_bytes())?;
    let mut reply = String::new();
    tls.read_to_string(&mut reply)?;
    Ok(reply)
}

/// Saves as sf-refresh does: a new file takes the place of the old one once it is on the disk.
fn save(path: &PathBuf, document: &[u8]) -> Result<(), Box<dyn Error>> {
    let journal = path.with_extension("new");
    let mut file = File::create(&journal)?;
    file.write_all(document)?;
    file.sync_all()?;
    fs::rename(&journal, path)?;
    File::open(path.parent().ok_or("no folder")?)?.sync_all()?;
    Ok(())
}
