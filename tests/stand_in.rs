//! The test endpoint as a program, for tests that are shell scripts.
//! It prints the URL of the token endpoint, and runs until its stdin ends.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::*;

#[path = "support/server.rs"]
mod server;

use server::{Config, OAuth, Server, Tls};

const HELP: &str = "\
stand-in: a token endpoint for tests

      --tls CERTNAME       speak TLS with tests/certs/CERTNAME.pem
      --port N             listen on this port of 127.0.0.1 (default: a free one)
      --strict             refuse what is not right (default: grant everything)
      --rotate             give a new refresh token with every grant
      --refuse-parallel    refuse a request while another is being processed
      --delay MS           wait between processing and answering
      --client-id ID       the client that --strict knows
      --client-secret S    the secret that --strict demands
      --refresh-token T    the first live refresh token
      --state FILE         write the live tokens there for each request, before
                           it is answered
      --port-file FILE     write the endpoint URL there when listening
      --log FILE           append a line for every request
      --forever            go on when stdin ends
  -h, --help
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stand-in: {error}");
            ExitCode::from(2)
        }
    }
}

/// Reads the command line, and serves until stdin ends.
fn run() -> Result<(), Box<dyn Error>> {
    let mut parser = lexopt::Parser::from_env();
    let (mut oauth, mut config) = (OAuth::default().lenient(true).rotate(false), Config::default());
    let (mut port_file, mut forever) = (None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("tls") => config = config.tls(Tls::new(&parser.value()?.string()?)),
            Long("port") => config = config.port(parser.value()?.parse::<u16>()?),
            Long("strict") => oauth = oauth.lenient(false),
            Long("rotate") => oauth = oauth.rotate(true),
            Long("refuse-parallel") => oauth = oauth.refuse_parallel(true),
            Long("delay") => oauth = oauth.delay(Duration::from_millis(parser.value()?.parse()?)),
            Long("client-id") => oauth = oauth.client_id(parser.value()?.string()?),
            Long("client-secret") => oauth = oauth.client_secret(parser.value()?.string()?),
            Long("refresh-token") => oauth = oauth.refresh_token(parser.value()?.string()?),
            Long("state") => oauth = oauth.state_file(PathBuf::from(parser.value()?)),
            Long("log") => config = config.log(PathBuf::from(parser.value()?)),
            Long("port-file") => port_file = Some(PathBuf::from(parser.value()?)),
            Long("forever") => forever = true,
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            _ => return Err(argument.unexpected().into()),
        }
    }
    let server = Server::start(config.endpoint(oauth));
    if let Some(path) = port_file {
        server::write_atomically(&path, &format!("{}\n", server.url()));
    }
    writeln!(io::stdout(), "{}", server.url())?;
    if forever {
        loop {
            std::thread::park();
        }
    }
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
