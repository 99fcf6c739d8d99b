//! The test endpoint as a program, for tests that are shell scripts.
//! It prints the URL of the token endpoint, and runs until its stdin ends.

use std::error::Error;
use std::io::{self, Read, Write};
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

/// What the command line says.
struct Options {
    config: Config,
    port_file: Option<PathBuf>,
    forever: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stand-in: {error}");
            ExitCode::from(2)
        }
    }
}

/// Serves until stdin ends.
fn run() -> Result<(), Box<dyn Error>> {
    let Some(options) = parse(lexopt::Parser::from_env())? else {
        print!("{HELP}");
        return Ok(());
    };
    let server = Server::start(options.config);
    if let Some(path) = &options.port_file {
        server::write_atomically(path, &format!("{}\n", server.url()));
    }
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", server.url())?;
    stdout.flush()?;
    if options.forever {
        loop {
            std::thread::park();
        }
    }
    let mut stdin = io::stdin();
    while stdin.read(&mut [0; 512])? > 0 {}
    Ok(())
}

/// Reads the command line; None where it asks for help.
fn parse(mut parser: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut oauth = OAuth::new().rotate(false);
    let (mut port, mut tls, mut log, mut port_file) = (0_u16, None, None, None);
    let (mut strict, mut forever) = (false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("tls") => tls = Some(Tls::new(&parser.value()?.string()?)),
            Long("port") => port = parser.value()?.parse()?,
            Long("strict") => strict = true,
            Long("rotate") => oauth = oauth.rotate(true),
            Long("refuse-parallel") => oauth = oauth.refuse_parallel(true),
            Long("delay") => oauth = oauth.delay(Duration::from_millis(parser.value()?.parse()?)),
            Long("client-id") => oauth = oauth.client_id(parser.value()?.string()?),
            Long("client-secret") => oauth = oauth.client_secret(parser.value()?.string()?),
            Long("refresh-token") => oauth = oauth.refresh_token(parser.value()?.string()?),
            Long("state") => oauth = oauth.state_file(PathBuf::from(parser.value()?)),
            Long("port-file") => port_file = Some(PathBuf::from(parser.value()?)),
            Long("log") => log = Some(PathBuf::from(parser.value()?)),
            Long("forever") => forever = true,
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(argument.unexpected()),
        }
    }
    let oauth = oauth.lenient(!strict);
    let config = Config::oauth(oauth).port(port).tls(tls).log(log);
    Ok(Some(Options { config, port_file, forever }))
}
