//! `sf-refresh` renews the OAuth2 access token in a JSON file (RFC 6749 §6).
//!
//! The flow, for each FILE:
//!
//! 1. open and lock it; adopt what another run has just renewed; finish an interrupted save
//! 2. parse it, and see whether the token is young enough to leave alone
//! 3. make the journal `.NAME.sf-refresh` beside it and reserve room, so that the save will work
//! 4. POST the refresh token to the token endpoint, read the reply, merge it into the JSON
//! 5. write the journal, fsync, rename it over the file, fsync the folder
//! 6. print the result
//!
//! What holds at every step:
//!
//! - Once the server has answered, our copy of the grant may be the only one. It is in the journal
//!   before anything else happens, and nothing that holds the only copy is ever deleted.
//! - What may have reached the server is never sent twice.
//! - Secrets go to the token endpoint, into the token file and to stdout, and nowhere else.
//!
//! Exit status: 0 renewed or still fresh, 1 token file, 2 usage, 3 refused for good, 4 temporary,
//! 5 set-up, 6 granted but not delivered, 70 a bug.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use ureq::http::{HeaderMap, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Proxy, SendBody};

/// What `--help` prints; README and man page are held to it by tests.
const HELP: &str = "\
Usage: sf-refresh [OPTIONS] FILE...
       sf-refresh [OPTIONS] -

Renew the OAuth2 access token in a JSON file, in place, and print it.
With - the token JSON is read from stdin and the renewed JSON goes to stdout.

Options:
  -i, --client-id ID            the app's consumer key (or SF_CLIENT_ID)
  -s, --client-secret-file FILE the file that holds the app's secret
                                (or the secret in SF_CLIENT_SECRET)
      --basic                   send id and secret in an Authorization header
  -d, --data NAME=VALUE         one more form field; NAME@FILE takes the value
                                from a file; repeatable
  -e, --endpoint URL            the token endpoint (or SF_TOKEN_ENDPOINT)
      --sfdx-url-file FILE      take client id, secret, endpoint and first
                                refresh token from an sfdx auth URL
                                (or the URL in SFDX_AUTH_URL)
      --ca-cert FILE            trust these PEM roots in place of the bundled
                                ones (or SSL_CERT_FILE)
      --timeout SECONDS         for the whole run on one file; default 30
      --retry N                 tries after a failure in which nothing was
                                processed; default 2
      --if-older-than AGE       send nothing while the token is younger:
                                90s, 45m, 2h, 7d
  -o, --output FORMAT           what stdout gets: token (default), header, env,
                                json, none
  -n, --dry-run                 check everything, show the request with its
                                secrets masked, send and change nothing
  -q, --quiet                   print errors alone on stderr
  -v, --verbose                 print each step on stderr
  -h, --help                    print this help
  -V, --version                 print the version

HTTPS_PROXY, ALL_PROXY and NO_PROXY are read as curl reads them.

Exit status:
  0  renewed, or still young enough, or renewed by another run meanwhile
  1  the token file cannot be used; nothing was sent
  2  wrong usage
  3  the server refused the grant for good: log in again
  4  temporary: run it again later
  5  the set-up is wrong: client, endpoint, certificate, proxy
  6  granted, but the result could not be delivered
";

/// The endpoint where neither an option nor the token file says otherwise.
const PRODUCTION_ENDPOINT: &str = "https://login.salesforce.com/services/oauth2/token";
/// The endpoint of a token whose `id` is on the host [`SANDBOX_HOST`].
const SANDBOX_ENDPOINT: &str = "https://test.salesforce.com/services/oauth2/token";
/// The login host of sandboxes.
const SANDBOX_HOST: &str = "test.salesforce.com";
/// The client id that the short form of an sfdx auth URL stands for.
const PLATFORM_CLI: &str = "PlatformCLI";

/// The largest token file, secret file and reply, in bytes.
const MAX_DOCUMENT: u64 = 1024 * 1024;
/// The largest file of PEM roots, in bytes; the bundles of distributions have a quarter of a MiB.
const MAX_ROOTS: u64 = 16 * 1024 * 1024;
/// Room that a reply may need beyond the old document, in bytes.
const RESERVE: usize = 16 * 1024;
/// How long one try may take to get a connection ready, where the time-out leaves more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a lock that another run holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(10);
/// How long to wait where the server says nothing about it; doubled at each further try.
const BACKOFF: Duration = Duration::from_secs(1);
/// The longest text of a server that is shown, in characters.
const MAX_SHOWN: usize = 300;

/// Ends the process: with the status of the run, or with 70 after a bug.
fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        // The payload may quote data: only the place is told.
        let place = panic.location().map_or_else(String::new, |at| {
            let file = Path::new(at.file()).file_name().unwrap_or_default();
            format!(" at {}:{}", file.to_string_lossy(), at.line())
        });
        let _ = writeln!(io::stderr(), "sf-refresh: internal error{place}: please report it");
        std::process::exit(70);
    }));
    match run(lexopt::Parser::from_env(), |name| std::env::var_os(name)) {
        Ok(status) => status,
        Err(error) => error.report(None),
    }
}

/// Does what the command line asks for; the status is that of the first file that failed.
fn run(
    arguments: lexopt::Parser,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<ExitCode, Error> {
    let options = match parse(arguments, environment)? {
        Command::Print(text) => return print_text(&text).map(|()| ExitCode::SUCCESS),
        Command::Refresh(options) => *options,
    };
    let session = Session::new(options)?;
    let mut status = None;
    for file in &session.options.files {
        let done = match file.to_str() {
            Some("-") => filter(&session),
            _ => refresh(&session, file),
        };
        if let Err(error) = done {
            let code = error.report(Some(file));
            status.get_or_insert(code);
        }
    }
    Ok(status.unwrap_or(ExitCode::SUCCESS))
}

/// Renews one token file and prints the result: the story of a run.
fn refresh(session: &Session, path: &Path) -> Result<(), Error> {
    let options = &session.options;
    let log = Log::new(options, path);
    let deadline = Deadline::after(options.timeout);
    let mut tries = Tries::new(options.retry);
    let mut seen = None;
    if options.dry_run && session.seed().is_some() && !path.exists() {
        Request::new(session, &Token::parse(b"", session.seed())?)?.show();
        return Ok(());
    }
    loop {
        let mut file = TokenFile::lock(path, session.seed().is_some(), &deadline, &mut seen, &log)?;
        let mut token = file.load(session.seed(), options.dry_run, &log)?;
        let now = SystemTime::now();
        let limit = options.if_older_than;
        if let Some(why) = token.is_fresh(seen.as_deref(), limit, file.modified(), now) {
            log.status(why);
            return print_result(options.output, &token);
        }
        let request = Request::new(session, &token)?;
        if options.dry_run {
            request.show();
            return Ok(());
        }
        let mut save = file.prepare_save(token.to_json().len(), &log)?;
        let keep = |reply: &[u8]| save.keep(reply);
        match session.exchange(&request, &deadline, &mut tries, &keep, &log)? {
            Some(reply) => {
                token.merge(reply, SystemTime::now());
                let saved = save.commit(&token.to_json());
                return finish(options.output, &token, saved, &log);
            }
            // Another program refreshes the same grant: wait for what it writes, and look again.
            None => seen = token.access_token().map(str::to_owned),
        }
        drop(save);
        drop(file);
        tries.pause(None, &deadline)?;
    }
}

/// Tells how a save ended and prints the result, or the whole document where it was not saved.
fn finish(
    output: Output,
    token: &Token,
    saved: Result<&'static str, NotSaved>,
    log: &Log,
) -> Result<(), Error> {
    match saved {
        Ok(how) => {
            log.status(&format!("OAuth2 authorization granted! {how}"));
            print_result(output, token)
        }
        Err(failure) => Err(hand_over(token, failure)),
    }
}

/// Renews the document on stdin and prints it: nothing is saved, so stdout is the only copy.
fn filter(session: &Session) -> Result<(), Error> {
    let options = &session.options;
    let log = Log::new(options, Path::new("-"));
    let deadline = Deadline::after(options.timeout);
    let mut tries = Tries::new(options.retry);
    let bytes = read_limited(io::stdin().lock(), MAX_DOCUMENT)
        .map_err(|cause| Error::file(format!("cannot read stdin: {}", words(&cause)), ""))?;
    let mut token = Token::parse(&bytes, session.seed())?;
    let now = SystemTime::now();
    if let Some(why) = token.is_fresh(None, options.if_older_than, None, now) {
        log.status(why);
        return print_result(Output::Json, &token);
    }
    let request = Request::new(session, &token)?;
    if options.dry_run {
        request.show();
        return Ok(());
    }
    check_stdout()?;
    let reply = loop {
        if let Some(reply) = session.exchange(&request, &deadline, &mut tries, &|_| (), &log)? {
            break reply;
        }
        tries.pause(None, &deadline)?;
    };
    token.merge(reply, SystemTime::now());
    print_only_copy(&token)?;
    log.status("OAuth2 authorization granted!");
    Ok(())
}

// ---- Command line: arguments and environment become options. Reads no file, prints nothing. ----

/// What the command line asks for.
enum Command {
    /// Print this text to stdout: the help or the version.
    Print(String),
    Refresh(Box<Options>),
}

/// The options as given; files that they name are not read yet.
#[derive(Default)]
struct Options {
    client_id: Option<String>,
    client_secret: Option<Given>,
    basic: bool,
    data: Vec<(String, Given)>,
    endpoint: Option<Endpoint>,
    sfdx_url: Option<Given>,
    roots: Option<(&'static str, PathBuf)>,
    proxy: Option<ProxyServer>,
    no_proxy: String,
    timeout: Duration,
    retry: u32,
    if_older_than: Option<Duration>,
    output: Output,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    files: Vec<PathBuf>,
}

/// A value on the command line or in the environment, or the file that holds it.
enum Given {
    Value(Secret),
    /// The option that named the file, and the file.
    File(&'static str, PathBuf),
}

/// What stdout gets.
#[derive(Clone, Copy, Default, PartialEq)]
enum Output {
    #[default]
    Token,
    Header,
    Env,
    Json,
    None,
}

/// A string that must not be shown: no `Debug`, no `Display`.
#[derive(Clone, PartialEq)]
struct Secret(String);

impl Secret {
    /// The secret itself, for the request, the token file and stdout alone.
    fn expose(&self) -> &str {
        &self.0
    }
}

/// Parses the command line; what is missing there comes from the environment. Errors: usage.
fn parse(
    mut arguments: lexopt::Parser,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, Error> {
    use lexopt::prelude::{Long, Short, Value};
    let mut options = Options { timeout: Duration::from_secs(30), retry: 2, ..Options::default() };
    let mut output = None;
    while let Some(argument) = arguments.next().map_err(|e| bad_argument(&e))? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Print(HELP.to_owned())),
            Short('V') | Long("version") => {
                let version = concat!("sf-refresh ", env!("CARGO_PKG_VERSION"), "\n");
                return Ok(Command::Print(version.to_owned()));
            }
            Short('i') | Long("client-id") => {
                options.client_id = Some(text(&mut arguments, "--client-id")?);
            }
            Short('s') | Long("client-secret-file") => {
                let file = value(&mut arguments)?.into();
                options.client_secret = Some(Given::File("--client-secret-file", file));
            }
            Long("basic") => options.basic = true,
            Short('d') | Long("data") => {
                options.data.push(form_field(&text(&mut arguments, "--data")?)?);
            }
            Short('e') | Long("endpoint") => {
                let url = text(&mut arguments, "--endpoint")?;
                options.endpoint = Some(Endpoint::parse(&url, "--endpoint")?);
            }
            Long("sfdx-url-file") => {
                let file = value(&mut arguments)?.into();
                options.sfdx_url = Some(Given::File("--sfdx-url-file", file));
            }
            Long("ca-cert") => {
                options.roots = Some(("--ca-cert", value(&mut arguments)?.into()));
            }
            Long("timeout") => options.timeout = seconds(&text(&mut arguments, "--timeout")?)?,
            Long("retry") => options.retry = count(&text(&mut arguments, "--retry")?)?,
            Long("if-older-than") => {
                options.if_older_than = Some(age(&text(&mut arguments, "--if-older-than")?)?);
            }
            Short('o') | Long("output") => {
                output = Some(output_format(&text(&mut arguments, "--output")?)?);
            }
            Short('n') | Long("dry-run") => options.dry_run = true,
            Short('q') | Long("quiet") => options.quiet = true,
            Short('v') | Long("verbose") => options.verbose = true,
            Value(file) => options.files.push(file.into()),
            Short(_) | Long(_) => return Err(bad_argument(&argument.unexpected())),
        }
    }
    check_files(&options.files, output)?;
    options.output = output.unwrap_or_default();
    options.fill_in(environment)?;
    Ok(Command::Refresh(Box::new(options)))
}

impl Options {
    /// Takes from the environment what the command line left open. An empty variable counts as not
    /// set, and a newline at the end of one is dropped.
    fn fill_in(&mut self, environment: impl Fn(&str) -> Option<OsString>) -> Result<(), Error> {
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        let text = |name: &str| match set(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value.trim_end_matches(['\r', '\n']).to_owned())),
            Some(Err(_)) => Err(Error::usage(format!("{name} is not UTF-8"), "")),
        };
        let secret = |name: &str| text(name).map(|value| value.map(|v| Given::Value(Secret(v))));
        if self.client_id.is_none() {
            self.client_id = text("SF_CLIENT_ID")?;
        }
        if self.client_secret.is_none() {
            self.client_secret = secret("SF_CLIENT_SECRET")?;
        }
        if let (None, Some(url)) = (&self.endpoint, text("SF_TOKEN_ENDPOINT")?) {
            self.endpoint = Some(Endpoint::parse(&url, "SF_TOKEN_ENDPOINT")?);
        }
        if self.sfdx_url.is_none() {
            self.sfdx_url = secret("SFDX_AUTH_URL")?;
        }
        if let (None, Some(file)) = (&self.roots, set("SSL_CERT_FILE")) {
            self.roots = Some(("SSL_CERT_FILE", file.into()));
        }
        let proxies = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
        if let Some(name) = proxies.into_iter().find(|name| set(name).is_some()) {
            self.proxy = Some(ProxyServer::parse(&text(name)?.unwrap_or_default(), name)?);
        }
        self.no_proxy = text("no_proxy")?.or(text("NO_PROXY")?).unwrap_or_default();
        Ok(())
    }
}

/// The argument of the option just read.
fn value(arguments: &mut lexopt::Parser) -> Result<OsString, Error> {
    arguments.value().map_err(|e| bad_argument(&e))
}

/// The argument of the option just read, which has to be UTF-8 and not empty.
fn text(arguments: &mut lexopt::Parser, option: &str) -> Result<String, Error> {
    match value(arguments)?.into_string() {
        Ok(text) if !text.is_empty() => Ok(text),
        Ok(_) => Err(Error::usage(format!("{option} is empty"), "")),
        Err(_) => Err(Error::usage(format!("{option} is not UTF-8"), "")),
    }
}

/// Which files go together: `-` stands alone, and its only copy of the grant goes to stdout whole.
fn check_files(files: &[PathBuf], output: Option<Output>) -> Result<(), Error> {
    let filter = files.iter().any(|file| file.as_os_str() == "-");
    if files.is_empty() {
        let hint = "sf-refresh -i CONSUMER_KEY token.json; sf-refresh --help says more";
        return Err(Error::usage("missing FILE".to_owned(), hint));
    }
    if filter && files.len() > 1 {
        return Err(Error::usage("'-' cannot be combined with other files".to_owned(), ""));
    }
    if filter && output.is_some_and(|format| format != Output::Json) {
        let hint = "the renewed document is the only copy of the grant: leave --output out";
        return Err(Error::usage("with '-' stdout gets the JSON alone".to_owned(), hint));
    }
    Ok(())
}

/// What is wrong with an argument, without its value, which may be a secret.
fn bad_argument(error: &lexopt::Error) -> Error {
    use lexopt::Error::{MissingValue, UnexpectedOption, UnexpectedValue};
    match error {
        UnexpectedOption(option) => {
            let hint = match nearest_option(option) {
                Some(near) => format!("did you mean '{near}'?"),
                None => "sf-refresh --help lists the options".to_owned(),
            };
            Error::usage(format!("unknown option '{option}'"), &hint)
        }
        MissingValue { option: Some(option) } => {
            Error::usage(format!("missing argument for option '{option}'"), "")
        }
        UnexpectedValue { option, .. } => {
            Error::usage(format!("option '{option}' takes no argument"), "")
        }
        _ => Error::usage("an argument is not valid".to_owned(), ""),
    }
}

/// The long option of the help text that is closest to a misspelt one, where any is close.
fn nearest_option(misspelt: &str) -> Option<&'static str> {
    HELP.split(|c: char| c.is_whitespace() || ",;".contains(c))
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(|option| (distance(option, misspelt), option))
        .min()
        .filter(|(distance, option)| 2 * distance <= option.len() || option.starts_with(misspelt))
        .map(|(_, option)| option)
}

/// The Levenshtein distance of two words: insertions, deletions and replacements between them.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// `NAME=VALUE` or `NAME@FILE`, told apart by which sign comes first.
fn form_field(argument: &str) -> Result<(String, Given), Error> {
    const OURS: [&str; 4] = ["grant_type", "client_id", "client_secret", "refresh_token"];
    let Some(at) = argument.find(['=', '@']).filter(|at| *at > 0) else {
        let hint = "--data NAME=VALUE or --data NAME@FILE";
        return Err(Error::usage("--data has no field name".to_owned(), hint));
    };
    let (name, rest) = argument.split_at(at);
    if OURS.contains(&name) {
        let message = format!("--data may not set '{name}': sf-refresh sends it itself");
        return Err(Error::usage(message, ""));
    }
    let given = match rest.split_at(1) {
        ("@", file) => Given::File("--data", file.into()),
        (_, value) => Given::Value(Secret(value.to_owned())),
    };
    Ok((name.to_owned(), given))
}

/// A time-out in seconds, with decimals if need be.
fn seconds(argument: &str) -> Result<Duration, Error> {
    let parsed = argument.parse().ok().and_then(|n| Duration::try_from_secs_f64(n).ok());
    // A year is longer than any run, and small enough to be added to any clock.
    parsed.filter(|d| !d.is_zero() && *d <= Duration::from_secs(366 * 86_400)).ok_or_else(|| {
        let message = format!("--timeout takes a number of seconds, not '{argument}'");
        Error::usage(message, "--timeout 30")
    })
}

/// A number of tries.
fn count(argument: &str) -> Result<u32, Error> {
    argument.parse().map_err(|_| {
        Error::usage(format!("--retry takes a whole number, not '{argument}'"), "--retry 2")
    })
}

/// An age: a whole number and its unit.
fn age(argument: &str) -> Result<Duration, Error> {
    let unit = match argument.chars().last() {
        Some('s') => Some(1),
        Some('m') => Some(60),
        Some('h') => Some(3600),
        Some('d') => Some(86_400),
        _ => None,
    };
    let number = argument.get(..argument.len().saturating_sub(1));
    let number = number.filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
    unit.zip(number.and_then(|n| n.parse::<u64>().ok()))
        .and_then(|(unit, number)| number.checked_mul(unit))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            let message = format!("--if-older-than takes a number and a unit, not '{argument}'");
            Error::usage(message, "90s, 45m, 2h or 7d")
        })
}

/// The name of an output format.
fn output_format(argument: &str) -> Result<Output, Error> {
    match argument {
        "token" => Ok(Output::Token),
        "header" => Ok(Output::Header),
        "env" => Ok(Output::Env),
        "json" => Ok(Output::Json),
        "none" => Ok(Output::None),
        _ => {
            let message = format!("--output knows no format '{argument}'");
            Err(Error::usage(message, "token, header, env, json or none"))
        }
    }
}

/// A token endpoint: `https`, or `http` on a loopback address.
struct Endpoint {
    uri: Uri,
}

impl Endpoint {
    /// Checks an URL before ureq sees it, which would send user info and mend a bad port in silence.
    fn parse(url: &str, origin: &str) -> Result<Self, Error> {
        let bad = |what: &str, hint: &str| Err(Error::usage(format!("{origin}: {what}"), hint));
        let example = "https://MyDomain.my.salesforce.com/services/oauth2/token";
        let Ok(uri) = url.parse::<Uri>() else {
            return bad("not an URL", example);
        };
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return bad("not a whole URL", example);
        };
        if authority.as_str().contains('@') {
            return bad("user information in the URL", "--basic sends id and secret");
        }
        if !is_host(authority.host()) || !is_port(authority.as_str(), authority.host()) {
            return bad("no valid host and port", example);
        }
        if url.contains('#') {
            return bad("an endpoint has no fragment (RFC 6749 §3.2)", "");
        }
        match scheme {
            "https" => Ok(Self { uri }),
            "http" if is_loopback(authority.host()) => Ok(Self { uri }),
            "http" => bad("plain http is for loopback addresses alone", "use https"),
            _ => bad("not an https URL", example),
        }
    }

    /// The host, an IPv6 address in its brackets.
    fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    /// Whether the connection is made with TLS.
    fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// The URL without its query, which may hold a secret.
    fn shown(&self) -> String {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        let query = if self.uri.query().is_some() { "?***" } else { "" };
        format!("{scheme}://{authority}{}{query}", self.uri.path())
    }
}

/// Whether this is a DNS name in ASCII, an IPv4 address or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    }
}

/// Whether the authority `host[:port]` has no port or one from 1 to 65535.
fn is_port(authority: &str, host: &str) -> bool {
    match authority.strip_prefix(host).map(|rest| rest.strip_prefix(':')) {
        Some(None) => authority == host,
        Some(Some(port)) => {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0)
        }
        None => false,
    }
}

/// Whether a host is a loopback address, or the name that stands for one (RFC 6761 §6.3).
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || address(host).is_some_and(|ip| ip.is_loopback())
}

/// The address that a host is written as, brackets or not.
fn address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// A CONNECT proxy: the URL for ureq, which may hold a password, and what may be shown.
struct ProxyServer {
    url: Secret,
    shown: String,
}

impl ProxyServer {
    /// `[SCHEME://][USER:PASSWORD@]HOST[:PORT]` as curl reads it: scheme `http`, port 1080.
    fn parse(url: &str, origin: &str) -> Result<Self, Error> {
        let bad = |what: &str| {
            let hint = "http://HOST:PORT, or unset it for a direct connection";
            Err(Error::usage(format!("{origin}: {what}"), hint))
        };
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => 1080,
            "https" => 443,
            "socks" | "socks4" | "socks4a" | "socks5" | "socks5h" => {
                return bad("SOCKS proxies are not supported");
            }
            _ => return bad("not a proxy that sf-refresh can use"),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, server) = match authority.rsplit_once('@') {
            Some((user, server)) => (format!("{user}@"), server),
            None => (String::new(), authority),
        };
        let host = match server.rsplit_once(':') {
            Some((host, _)) if !server.ends_with(']') => host,
            _ => server,
        };
        if !is_host(host) || !is_port(server, host) {
            return bad("no valid host and port");
        }
        let port = if host == server { format!(":{default_port}") } else { String::new() };
        let url = format!("{scheme}://{user}{server}{port}");
        if Proxy::new(&url).is_err() {
            return bad("not an URL");
        }
        Ok(Self { url: Secret(url), shown: format!("{server}{port}") })
    }
}

/// Whether `NO_PROXY` names the host, as curl decides it: names with their subdomains, a leading
/// dot ignored, addresses, CIDR blocks, `*` alone for all.
fn bypasses_proxy(no_proxy: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let ip = address(&host);
    no_proxy.trim() == "*"
        || no_proxy.split([',', ' ', '\t']).filter(|entry| !entry.is_empty()).any(|entry| {
            let name = entry.trim_matches('.').to_ascii_lowercase();
            match ip {
                Some(ip) => is_in_block(ip, entry),
                None => {
                    let parent = host.strip_suffix(name.as_str());
                    !name.is_empty() && parent.is_some_and(|p| p.is_empty() || p.ends_with('.'))
                }
            }
        })
}

/// Whether an address is the one written in a `NO_PROXY` entry, or in its block `ADDRESS/BITS`.
fn is_in_block(ip: IpAddr, entry: &str) -> bool {
    let (base, bits) = match entry.split_once('/') {
        Some((base, bits)) => (base, bits.parse().ok()),
        None => (entry, Some(128)),
    };
    let differing = match (ip, address(base)) {
        (IpAddr::V4(a), Some(IpAddr::V4(b))) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), Some(IpAddr::V6(b))) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    let width = if ip.is_ipv4() { 32 } else { 128 };
    bits.is_some_and(|bits: u32| differing >= bits.min(width))
}

/// What `sf org display --verbose` prints as "Sfdx Auth Url".
struct SfdxUrl {
    client_id: String,
    client_secret: Option<Secret>,
    refresh_token: Secret,
    endpoint: Endpoint,
}

impl SfdxUrl {
    /// `force://ID:SECRET:REFRESH@HOST` or `force://REFRESH@HOST`, or the JSON that `sf` wraps it in.
    fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let json: Option<Value> = serde_json::from_str(text).ok();
        let wrapped = json.as_ref().and_then(|json| {
            let result = json.get("result").unwrap_or(json);
            result.get("sfdxAuthUrl")?.as_str()
        });
        let parts = wrapped
            .unwrap_or(text)
            .trim()
            .strip_prefix("force://")
            .and_then(|url| url.rsplit_once('@'))
            .map(|(grant, host)| (grant.split(':').collect::<Vec<_>>(), host));
        let (client_id, client_secret, refresh_token, host) = match parts {
            Some((grant, host)) => match grant[..] {
                [refresh_token] => (PLATFORM_CLI, "", refresh_token, host),
                [id, secret, refresh_token] => (id, secret, refresh_token, host),
                _ => return Err(Self::bad(origin)),
            },
            None => return Err(Self::bad(origin)),
        };
        if client_id.is_empty() || check_token(refresh_token).is_err() {
            return Err(Self::bad(origin));
        }
        let host = host.trim_end_matches('/');
        let endpoint = Endpoint::parse(&format!("https://{host}/services/oauth2/token"), origin)?;
        Ok(Self {
            client_id: client_id.to_owned(),
            client_secret: Some(Secret(client_secret.to_owned())).filter(|s| !s.0.is_empty()),
            refresh_token: Secret(refresh_token.to_owned()),
            endpoint,
        })
    }

    /// What is said of an URL without showing it: it holds the refresh token.
    fn bad(origin: &str) -> Error {
        let hint = "force://ID:SECRET:REFRESH@HOST, as sf org display --verbose prints it";
        Error::usage(format!("{origin}: not an sfdx auth URL"), hint)
    }
}

// ---- Token document: the JSON of a token file. Pure: no I/O, and the clock is an argument. ----

/// A JSON object with a usable `refresh_token`.
struct Token {
    members: Map<String, Value>,
}

impl Token {
    /// Reads a token document; where it is empty, `seed` is the refresh token to start from.
    fn parse(bytes: &[u8], seed: Option<&Secret>) -> Result<Self, Error> {
        let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        let empty = text.iter().all(u8::is_ascii_whitespace);
        if let (true, Some(refresh_token)) = (empty, seed) {
            let refresh_token = Value::String(refresh_token.expose().to_owned());
            let members = Map::from_iter([("refresh_token".to_owned(), refresh_token)]);
            return Ok(Self { members });
        }
        if empty {
            return Err(Error::file("is empty".to_owned(), "restore it, or log in again"));
        }
        if text.starts_with(b"\xFF\xFE") || text.starts_with(b"\xFE\xFF") {
            let hint = "save it as UTF-8; PowerShell's > writes UTF-16";
            return Err(Error::file("is UTF-16, not UTF-8".to_owned(), hint));
        }
        match serde_json::from_slice(text) {
            Ok(Value::Object(members)) => Self::check(members),
            Ok(other) => {
                let message = format!("is no token file: it holds {}", kind_of(&other));
                Err(Error::file(message, "a JSON object with refresh_token is needed"))
            }
            Err(cause) => {
                let message = format!("is not JSON: {cause}");
                Err(Error::file(message, "the file has to hold the token reply as JSON"))
            }
        }
    }

    /// Holds `refresh_token` to RFC 6749 appendix A.17.
    fn check(members: Map<String, Value>) -> Result<Self, Error> {
        let wrong = match members.get("refresh_token") {
            None => {
                let hint = if members.contains_key("sfdxAuthUrl") || members.contains_key("result")
                {
                    "this looks like output of sf: --sfdx-url-file FILE reads that"
                } else {
                    "ask for the scope refresh_token (or offline_access) when you log in"
                };
                return Err(Error::file("has no refresh_token".to_owned(), hint));
            }
            Some(Value::String(token)) => check_token(token).err(),
            Some(other) => Some(kind_of(other)),
        };
        match wrong {
            None => Ok(Self { members }),
            Some(what) => {
                let message = format!("has a refresh_token that is {what}");
                Err(Error::file(message, "restore the file, or log in again"))
            }
        }
    }

    /// A member that is a string.
    fn string(&self, name: &str) -> Option<&str> {
        self.members.get(name).and_then(Value::as_str)
    }

    /// The access token, where there is a usable one (RFC 6749 appendix A.12).
    fn access_token(&self) -> Option<&str> {
        self.string("access_token").filter(|token| check_token(token).is_ok())
    }

    /// Never absent: [`Token::check`] saw it.
    fn refresh_token(&self) -> &str {
        self.string("refresh_token").unwrap_or_default()
    }

    /// Why no refresh is needed: another run has replaced the access token that was `seen`, or it
    /// is younger than `limit`.
    fn is_fresh(
        &self,
        seen: Option<&str>,
        limit: Option<Duration>,
        modified: Option<SystemTime>,
        now: SystemTime,
    ) -> Option<&'static str> {
        let current = self.access_token()?;
        if seen.is_some_and(|seen| seen != current) {
            return Some("renewed by another run meanwhile");
        }
        let age = now.duration_since(self.issued_at().or(modified)?).ok()?;
        (age < limit?).then_some("still fresh, nothing sent")
    }

    /// `issued_at`, in milliseconds since 1970, as Salesforce writes it: a string or a number.
    fn issued_at(&self) -> Option<SystemTime> {
        let millis = match self.members.get("issued_at")? {
            Value::String(text) => text.parse().ok()?,
            Value::Number(number) => number.as_u64()?,
            _ => return None,
        };
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }

    /// Puts a reply into the document: each member replaces the old one or joins, the old
    /// `refresh_token` stays where the reply has no usable one (RFC 6749 §6).
    fn merge(&mut self, reply: Map<String, Value>, now: SystemTime) {
        // An issued_at that the reply does not replace would tell the age of the token before.
        let stale = !reply.contains_key("issued_at");
        for (name, value) in reply {
            let keeps_old = name == "refresh_token" && value.as_str().is_none_or(str::is_empty);
            if !keeps_old {
                self.members.insert(name, value);
            }
        }
        if let (true, Some(issued_at)) = (stale, self.members.get_mut("issued_at")) {
            let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            let millis = u64::try_from(millis).unwrap_or_default();
            *issued_at = match issued_at {
                Value::Number(_) => Value::from(millis),
                _ => Value::from(millis.to_string()),
            };
        }
    }

    /// The document as it is saved: pretty-printed UTF-8 without BOM, one newline at the end.
    fn to_json(&self) -> Vec<u8> {
        // Only a map with keys that are no strings could fail to be written.
        let mut json = serde_json::to_vec_pretty(&self.members).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// What stdout gets: the token alone, a header, shell assignments or the document.
    fn render(&self, output: Output) -> Vec<u8> {
        let access_token = self.access_token().unwrap_or_default();
        match output {
            Output::Token => format!("{access_token}\n").into_bytes(),
            Output::Header => format!("Authorization: Bearer {access_token}\n").into_bytes(),
            Output::Env => {
                let token = shell_quoted(access_token);
                let url = shell_quoted(self.string("instance_url").unwrap_or_default());
                format!("SF_ACCESS_TOKEN={token}\nSF_ORG_INSTANCE_URL={url}\n").into_bytes()
            }
            Output::Json => self.to_json(),
            Output::None => Vec::new(),
        }
    }
}

/// Why a string is no token: tokens are one or more VSCHAR, %x20-7E (RFC 6749 appendix A).
fn check_token(token: &str) -> Result<(), &'static str> {
    if token.is_empty() {
        return Err("an empty string");
    }
    if token.bytes().all(|b| (0x20..=0x7E).contains(&b)) {
        Ok(())
    } else {
        Err("not made of printable ASCII characters")
    }
}

/// A JSON value's kind, with its article.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A word for a POSIX shell, in single quotes.
fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

// ---- Reply: what a status and a body mean. Pure: no I/O, no clock. ----

/// A reply that is no grant.
struct Refusal {
    error: Error,
    again: Again,
}

/// What may be done about a refusal within the same run.
#[derive(PartialEq)]
enum Again {
    Never,
    /// Not processed: the same request may be sent again, after the wait that the server asks for.
    Later,
    /// Another program is refreshing the same grant: its result may be in the file soon.
    Reread,
}

/// Reads a whole reply: the members of a grant, or what it says instead.
fn read_reply(
    status: u16,
    body: &[u8],
    location: Option<&str>,
    secrets: &Secrets,
) -> Result<Map<String, Value>, Refusal> {
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    let json = parse_leniently(body);
    let json = match (status, json) {
        (200..=299, Some(Value::Object(members))) if is_grant(&members) => return Ok(members),
        (_, json) => json,
    };
    let json = json.as_ref();
    let code = json.and_then(|json| json.get("error")).and_then(Value::as_str);
    let refusal = match (status, code) {
        (300..=399, _) => redirected(status, location, secrets),
        (408 | 420 | 429 | 500..=599, _) => busy(status, code, json, secrets),
        (_, Some(code)) => refused(code, json, secrets),
        (200..=299, None) if is_cut_short(body) => lost("the reply ends in the middle"),
        _ => not_a_reply(status, body, json),
    };
    Err(refusal)
}

/// Whether the members hold a usable access token (RFC 6749 appendix A.12).
fn is_grant(members: &Map<String, Value>) -> bool {
    members.get("access_token").and_then(Value::as_str).is_some_and(|t| check_token(t).is_ok())
}

/// JSON in UTF-8; where a server writes another encoding or half a surrogate pair, these characters
/// are replaced, for a grant must not be lost to the name of its user.
fn parse_leniently(body: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(body);
    let parsed = serde_json::from_str(&text);
    parsed.or_else(|_| serde_json::from_str(&without_lone_surrogates(&text))).ok()
}

/// JSON with U+FFFD for each half of a surrogate pair, which its grammar allows (RFC 8259 §8.2).
fn without_lone_surrogates(json: &str) -> String {
    let unit = |escape: &str| {
        let digits = escape.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let (mut whole, mut rest) = (String::with_capacity(json.len()), json);
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        whole.push_str(before);
        let next = escape.get(6..).and_then(unit);
        let (piece, length) = match (unit(escape), next) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (escape, 12),
            (Some(0xD800..=0xDFFF), _) => ("\\ufffd", 6),
            // An escaped backslash escapes nothing.
            _ => (escape, 1 + escape[1..].chars().next().map_or(0, char::len_utf8)),
        };
        whole.push_str(piece.get(..length).unwrap_or(piece));
        rest = &escape[length..];
    }
    whole + rest
}

/// Whether a body is the beginning of a JSON object.
fn is_cut_short(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
        && serde_json::from_slice::<Value>(body).is_err_and(|e| e.is_eof())
}

/// A redirect, which would take the refresh token to another place: only its host is told.
fn redirected(status: u16, location: Option<&str>, secrets: &Secrets) -> Refusal {
    let host = location
        .and_then(|url| url.parse::<Uri>().ok())
        .and_then(|uri| uri.host().map(|host| format!(" to {}", secrets.mask(host))))
        .unwrap_or_default();
    let message = format!("redirect refused: HTTP {status}{host}");
    let hint = "give the endpoint itself with --endpoint: for Salesforce your My Domain host";
    Refusal { error: Error::setup(message, hint), again: Again::Never }
}

/// A status that says 'later'. 429 and 503 say as well that nothing was processed.
fn busy(status: u16, code: Option<&str>, json: Option<&Value>, secrets: &Secrets) -> Refusal {
    let said = code.map_or_else(String::new, |code| format!(": {}", said(code, json, secrets)));
    let message = format!("the server is busy or failing: HTTP {status}{said}");
    let again = if matches!(status, 429 | 503) { Again::Later } else { Again::Never };
    Refusal { error: Error::temporary(message, "run it again later"), again }
}

/// An error of RFC 6749 §5.2 or of Salesforce.
fn refused(code: &str, json: Option<&Value>, secrets: &Secrets) -> Refusal {
    let said = said(code, json, secrets);
    let in_progress = description(json)
        .is_some_and(|d| d.to_lowercase().contains("token request is already being processed"));
    let (error, again) = match code {
        "invalid_grant" if in_progress => {
            let message = format!("another refresh of this grant is under way: {said}");
            (Error::temporary(message, "run it again later"), Again::Reread)
        }
        "invalid_grant" | "inactive_user" | "inactive_org" | "access_denied" => {
            let hint = match code {
                "inactive_user" => {
                    "the user is frozen or inactive: have it activated, log in again"
                }
                "inactive_org" => "the org is locked or suspended: have it activated, log in again",
                _ => "log in again: the refresh token is expired, revoked or replaced",
            };
            (Error::refused(format!("refused: {said}"), hint), Again::Never)
        }
        "rate_limit_exceeded" | "temporarily_unavailable" | "server_error" => {
            let message = format!("the server is busy: {said}");
            (Error::temporary(message, "run it again later"), Again::Never)
        }
        _ => (Error::setup(format!("refused: {said}"), client_hint(code)), Again::Never),
    };
    Refusal { error, again }
}

/// What to do about an error in the set-up, where its cause is known.
fn client_hint(code: &str) -> &'static str {
    match code {
        "invalid_client_id" => {
            "check --client-id: it is the app's consumer key; a new app takes \
             some minutes to be known, and a sandbox has another endpoint"
        }
        "invalid_client" => {
            "check --client-id and the secret (--client-secret-file, \
             SF_CLIENT_SECRET); some servers want --basic"
        }
        "unauthorized_client" => "allow the app the refresh token flow, and the user the app",
        "unsupported_grant_type" => "check --endpoint: it does not know grant_type=refresh_token",
        "invalid_scope" => "the scope in --data is not one that the login granted",
        "app_not_found" => "the app is not installed in this org: check --client-id and --endpoint",
        "invalid_request" => "check --endpoint and --data; an app may require its secret",
        _ => "",
    }
}

/// A reply that is neither a grant nor an OAuth2 error.
fn not_a_reply(status: u16, body: &[u8], json: Option<&Value>) -> Refusal {
    let start = body.trim_ascii_start();
    let wants_certificate = find(body, b"SSL certificate");
    let (what, hint) = if status == 400 && wants_certificate && start.starts_with(b"<") {
        (CERTIFICATE_DEMANDED.to_owned(), CERTIFICATE_HINT)
    } else {
        let hint = match status {
            404 => "check --endpoint: there is no token endpoint at that path",
            _ => "check --endpoint, and that no captive portal or proxy answers in its place",
        };
        (format!("not a token reply, but {}", what_came(start, json)), hint)
    };
    let error = Error::setup(format!("HTTP {status}: {what}"), hint);
    Refusal { error, again: Again::Never }
}

/// What a body is, in words, and none of its own.
fn what_came(body: &[u8], json: Option<&Value>) -> String {
    match json {
        Some(Value::Object(members)) if members.contains_key("access_token") => {
            "JSON with an access_token that cannot be used".to_owned()
        }
        Some(Value::Object(_)) => "JSON without an access_token".to_owned(),
        Some(other) => format!("{} in JSON", kind_of(other)),
        None if body.is_empty() => "an empty body".to_owned(),
        None if body.starts_with(b"<") => {
            "a web page, not JSON: a captive portal or the wrong endpoint?".to_owned()
        }
        None if find(body, b"access_token=") => "form-encoded text, not JSON".to_owned(),
        None => "something that is not JSON".to_owned(),
    }
}

/// Whether the body holds these bytes.
fn find(body: &[u8], needle: &[u8]) -> bool {
    body.windows(needle.len()).any(|window| window == needle)
}

/// The request went out, and no whole answer came back.
fn lost(what: &str) -> Refusal {
    let message = format!("{what}: the server may have used the refresh token");
    let hint = "run it again; if it is then refused, log in again";
    Refusal { error: Error::temporary(message, hint), again: Again::Never }
}

/// The `error_description` (RFC 6749 §5.2).
fn description(json: Option<&Value>) -> Option<&str> {
    json?.get("error_description")?.as_str()
}

/// The server's error and its description, fit to be shown.
fn said(code: &str, json: Option<&Value>, secrets: &Secrets) -> String {
    let mut secrets = secrets.clone();
    for name in ["access_token", "refresh_token", "id_token"] {
        let value = json.and_then(|json| json.get(name)).and_then(Value::as_str);
        secrets.add(value.unwrap_or_default());
    }
    match description(json) {
        Some(description) => format!("{} ({})", secrets.mask(code), secrets.mask(description)),
        None => secrets.mask(code),
    }
}

/// The secrets of a run, to be masked in what a server says.
#[derive(Clone, Default)]
struct Secrets(Vec<String>);

impl Secrets {
    /// Adds a secret, unless it is empty.
    fn add(&mut self, secret: &str) {
        if !secret.is_empty() && !self.0.iter().any(|known| known == secret) {
            self.0.push(secret.to_owned());
        }
        // The longest first: a secret may be part of another.
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// A server's text without control characters and secrets, at most [`MAX_SHOWN`] characters.
    fn mask(&self, text: &str) -> String {
        let mut shown: String = text.chars().filter(|c| is_printable(*c)).collect();
        for secret in &self.0 {
            shown = masked(&shown, secret);
        }
        match shown.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => format!("{}…", &shown[..end]),
            None => shown,
        }
    }
}

/// A text with `***` in place of a secret, however much of that is encoded as in an URL or a form.
fn masked(text: &str, secret: &str) -> String {
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(first) = rest.chars().next() {
        let length = spelled_length(rest.as_bytes(), secret.as_bytes());
        let (piece, length) = match length.filter(|length| rest.is_char_boundary(*length)) {
            Some(length) => ("***", length),
            None => (&rest[..first.len_utf8()], first.len_utf8()),
        };
        shown.push_str(piece);
        rest = &rest[length..];
    }
    shown
}

/// How many bytes at the start of a text are a secret: as it is, or some of it as `%XX` and `+`.
fn spelled_length(text: &[u8], secret: &[u8]) -> Option<usize> {
    if text.starts_with(secret) {
        return Some(secret.len());
    }
    let mut length = 0;
    for byte in secret {
        length += match text.get(length..)? {
            [b'%', high, low, ..] if hex_byte(*high, *low) == Some(*byte) => 3,
            [b'+', ..] if *byte == b' ' => 1,
            [same, ..] if same == byte => 1,
            _ => return None,
        };
    }
    Some(length)
}

/// The byte that two hexadecimal digits are.
fn hex_byte(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Whether a character neither controls the terminal nor turns its text round (Unicode's bidi).
fn is_printable(c: char) -> bool {
    let is_bidi = matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !is_bidi && !matches!(c, '\u{2028}' | '\u{2029}')
}

// ---- Network: from a token to the members of a reply. Touches no file but those of options. ----

/// What all files of a run share: options, the files that they name, and the kept connection.
struct Session {
    options: Options,
    client_id: String,
    client_secret: Option<Secret>,
    data: Vec<(String, Secret)>,
    sfdx: Option<SfdxUrl>,
    proxy: Option<Proxy>,
    agent: Agent,
}

impl Session {
    /// Reads what the options name. Errors: usage, for every one of them can be mended there.
    fn new(mut options: Options) -> Result<Self, Error> {
        let sfdx = options.sfdx_url.take().map(|given| {
            let origin = given.origin("SFDX_AUTH_URL");
            SfdxUrl::parse(given.read("the sfdx auth URL itself")?.expose(), origin)
        });
        let sfdx = sfdx.transpose()?;
        let secret = options.client_secret.take().map(|given| given.read("the secret itself"));
        let Some(client_id) =
            options.client_id.clone().or(sfdx.as_ref().map(|sfdx| sfdx.client_id.clone()))
        else {
            let hint = "--client-id CONSUMER_KEY or SF_CLIENT_ID: Salesforce shows the consumer \
                 key under Setup, App Manager, the app's details";
            return Err(Error::usage("missing client id".to_owned(), hint));
        };
        // The secret of an sfdx URL belongs to that URL's client alone.
        let sfdx_secret = sfdx.as_ref().filter(|sfdx| sfdx.client_id == client_id);
        let client_secret =
            secret.transpose()?.or(sfdx_secret.and_then(|sfdx| sfdx.client_secret.clone()));
        if options.basic && client_secret.is_none() {
            let hint = "--client-secret-file FILE or SF_CLIENT_SECRET";
            return Err(Error::usage("--basic needs a client secret".to_owned(), hint));
        }
        let mut data = Vec::new();
        for (name, given) in options.data.drain(..) {
            data.push((name, given.read("the value itself")?));
        }
        let proxy = options.proxy.as_ref().and_then(|proxy| Proxy::new(proxy.url.expose()).ok());
        let agent = new_agent(options.roots.as_ref())?;
        Ok(Self { options, client_id, client_secret, data, sfdx, proxy, agent })
    }

    /// The refresh token to start from, where there is no token file yet.
    fn seed(&self) -> Option<&Secret> {
        self.sfdx.as_ref().map(|sfdx| &sfdx.refresh_token)
    }

    /// Where the token goes: option, environment, sfdx URL, sandbox, production.
    fn endpoint(&self, token: &Token) -> Result<Endpoint, Error> {
        let chosen = self.options.endpoint.as_ref().or(self.sfdx.as_ref().map(|s| &s.endpoint));
        if let Some(endpoint) = chosen {
            return Ok(Endpoint { uri: endpoint.uri.clone() });
        }
        // The file may choose between these two and name no host of its own.
        let id = token.string("id").and_then(|id| id.parse::<Uri>().ok());
        let sandbox = id.is_some_and(|id| {
            id.scheme_str() == Some("https")
                && id.authority().is_some_and(|a| a.as_str() == SANDBOX_HOST)
        });
        let url = if sandbox { SANDBOX_ENDPOINT } else { PRODUCTION_ENDPOINT };
        Endpoint::parse(url, "--endpoint")
    }

    /// Sends the request until it is answered, as often as is safe: the members of the grant, or
    /// nothing where the file has to be read again first. What may be a grant goes to `keep` too.
    fn exchange(
        &self,
        request: &Request,
        deadline: &Deadline,
        tries: &mut Tries,
        keep: &dyn Fn(&[u8]),
        log: &Log,
    ) -> Result<Option<Map<String, Value>>, Error> {
        loop {
            log.step(&format!("POST {}", request.endpoint.shown()));
            // Nothing may be printed between a grant and its save: it would widen the one window
            // in which a kill loses the grant.
            let (refusal, wait) = match self.post(request, deadline, keep) {
                Ok(answer) => match answer.read(&request.secrets) {
                    Ok(members) => return Ok(Some(members)),
                    Err(refusal) => (refusal, answer.retry_after),
                },
                Err(refusal) => (refusal, None),
            };
            tries.last = Some(refusal.error);
            match refusal.again {
                Again::Never => return Err(tries.give_up()),
                Again::Reread => return Ok(None),
                Again::Later => tries.pause(wait, deadline)?,
            }
            if let Some(error) = &tries.last {
                log.step(&format!("{}, trying again", error.parts().1));
            }
        }
    }

    /// One POST, and its answer as far as it came.
    fn post(
        &self,
        request: &Request,
        deadline: &Deadline,
        keep: &dyn Fn(&[u8]),
    ) -> Result<Answer, Refusal> {
        let left = deadline.left();
        // Made before the POST: between a grant and its save each system call counts, and to
        // allocate can be one.
        let buffer = Vec::with_capacity(RESERVE);
        let proxy = self.proxy_for(&request.endpoint);
        let mut body = Form { rest: request.body.expose().as_bytes(), sent: false };
        let mut post = self
            .agent
            .post(&request.endpoint.uri)
            .header("Accept", "application/json")
            // A coded reply could not be read, and its grant would be lost.
            .header("Accept-Encoding", "identity")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header("Content-Length", request.body.expose().len().to_string());
        if let Some(authorization) = &request.authorization {
            post = post.header("Authorization", authorization.expose());
        }
        let answer = post
            .config()
            .proxy(proxy.cloned())
            .timeout_global(Some(left))
            .timeout_connect(Some(left.min(CONNECT_TIMEOUT)))
            .build()
            .send(SendBody::from_reader(&mut body));
        match answer {
            Ok(response) => Ok(Answer::receive(response, buffer, keep)),
            Err(error) if body.sent => Err(lost_after_sending(&error)),
            Err(error) => {
                let via = proxy.and(self.options.proxy.as_ref()).map(|p| p.shown.as_str());
                Err(never_sent(&error, request.endpoint.host(), via))
            }
        }
    }

    /// The proxy for an endpoint; never for plain http, whose secrets it could read.
    fn proxy_for(&self, endpoint: &Endpoint) -> Option<&Proxy> {
        let bypass = bypasses_proxy(&self.options.no_proxy, endpoint.host());
        self.proxy.as_ref().filter(|_| endpoint.is_https() && !bypass)
    }
}

impl Given {
    /// The option or the variable that gave it.
    fn origin(&self, variable: &'static str) -> &'static str {
        match self {
            Self::Value(_) => variable,
            Self::File(option, _) => option,
        }
    }

    /// The value, or what the file holds less one newline at its end. The file's name is not told:
    /// it may be `itself`, the secret given in place of a name.
    fn read(self, itself: &str) -> Result<Secret, Error> {
        let (option, path) = match self {
            Self::Value(secret) => return Ok(secret),
            Self::File(option, path) => (option, path),
        };
        let bytes = File::open(path).and_then(|file| read_limited(file, MAX_DOCUMENT));
        let bytes = bytes.map_err(|cause| {
            let hint = format!("{option} takes the name of a file, not {itself}");
            Error::usage(format!("cannot read the file of {option}: {}", words(&cause)), &hint)
        })?;
        let Ok(text) = String::from_utf8(bytes) else {
            return Err(Error::usage(format!("the file of {option} is not UTF-8"), ""));
        };
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Err(Error::usage(format!("the file of {option} is empty"), ""));
        }
        Ok(Secret(line.to_owned()))
    }
}

/// The HTTP client, with the roots that it trusts.
fn new_agent(roots: Option<&(&'static str, PathBuf)>) -> Result<Agent, Error> {
    let roots = match roots {
        None => RootCerts::WebPki,
        Some((origin, path)) => RootCerts::new_with_certs(&read_roots(origin, path)?),
    };
    let config = Agent::config_builder()
        .proxy(None)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("sf-refresh/", env!("CARGO_PKG_VERSION")))
        // ureq's buffers of 128 KiB are for downloads; each connection has two pairs of them.
        .input_buffer_size(16 * 1024)
        .output_buffer_size(16 * 1024)
        .max_response_header_size(16 * 1024)
        .build();
    Ok(Agent::with_parts(config, DefaultConnector::default(), NameResolver))
}

/// The certificates of a PEM file, at least one.
fn read_roots(origin: &str, path: &Path) -> Result<Vec<Certificate<'static>>, Error> {
    let bad = |what: &str| {
        let hint = "a file of PEM certificates is needed";
        Error::usage(format!("{origin}: {}: {what}", path.display()), hint)
    };
    let pem = File::open(path)
        .and_then(|file| read_limited(file, MAX_ROOTS))
        .map_err(|cause| bad(&words(&cause)))?;
    let mut roots = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) if is_whole(certificate.der()) => {
                roots.push(certificate);
            }
            Ok(PemItem::Certificate(_)) => return Err(bad("holds a damaged certificate")),
            Ok(_) => {}
            Err(_) => return Err(bad("is not PEM")),
        }
    }
    if roots.is_empty() {
        return Err(bad("holds no certificate"));
    }
    Ok(roots)
}

/// Whether DER is one SEQUENCE of the length it says, as a certificate is (RFC 5280 §4.1). rustls
/// would leave out what is not, and then trust nobody.
fn is_whole(der: &[u8]) -> bool {
    match der {
        [0x30, 0x81, length, rest @ ..] => rest.len() == usize::from(*length),
        [0x30, 0x82, high, low, rest @ ..] => {
            rest.len() == usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}

/// One refresh request (RFC 6749 §6), ready to be sent.
struct Request {
    endpoint: Endpoint,
    authorization: Option<Secret>,
    body: Secret,
    masked_body: String,
    secrets: Secrets,
}

impl Request {
    /// The request for one token. Errors: none but for a default endpoint that is no URL.
    fn new(session: &Session, token: &Token) -> Result<Self, Error> {
        let mut secrets = Secrets::default();
        for name in ["access_token", "refresh_token", "id_token"] {
            secrets.add(token.string(name).unwrap_or_default());
        }
        let secret = session.client_secret.as_ref().map(Secret::expose);
        secrets.add(secret.unwrap_or_default());
        let mut fields = vec![("grant_type", "refresh_token", false)];
        let mut authorization = None;
        match secret {
            Some(secret) if session.options.basic => {
                // Each is form-encoded before the two are joined (RFC 6749 §2.3.1).
                let pair = format!("{}:{}", form_encoded(&session.client_id), form_encoded(secret));
                let encoded = base64(pair.as_bytes());
                secrets.add(&encoded);
                authorization = Some(Secret(format!("Basic {encoded}")));
            }
            _ => fields.push(("client_id", &session.client_id, false)),
        }
        if let (Some(secret), None) = (secret, &authorization) {
            fields.push(("client_secret", secret, true));
        }
        fields.push(("refresh_token", token.refresh_token(), true));
        for (name, value) in &session.data {
            // A short value is a flag such as a scope; to mask it would garble what a server says.
            if value.expose().len() >= 8 {
                secrets.add(value.expose());
            }
            fields.push((name, value.expose(), true));
        }
        Ok(Self {
            endpoint: session.endpoint(token)?,
            authorization,
            body: Secret(form(&fields, false)),
            masked_body: form(&fields, true),
            secrets,
        })
    }

    /// What would be sent, with its secrets masked, on stderr.
    fn show(&self) {
        let authorization =
            self.authorization.as_ref().map_or("", |_| "Authorization: Basic ***\n");
        let _ = write!(
            io::stderr(),
            "POST {}\nAccept: application/json\n\
             Content-Type: application/x-www-form-urlencoded\n{authorization}\n{}\n",
            self.endpoint.shown(),
            self.masked_body
        );
    }
}

/// A form of names, values and whether they are secret, each value encoded or masked.
fn form(fields: &[(&str, &str, bool)], masked: bool) -> String {
    let field = |(name, value, secret): &(&str, &str, bool)| {
        let value = if masked && *secret { "***".to_owned() } else { form_encoded(value) };
        format!("{}={value}", form_encoded(name))
    };
    fields.iter().map(field).collect::<Vec<_>>().join("&")
}

/// `application/x-www-form-urlencoded` (RFC 6749 appendix B).
fn form_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => {
                encoded.push(char::from(byte));
            }
            b' ' => encoded.push('+'),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Base64 with padding (RFC 4648 §4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32, i: usize| {
        let six = (bits >> (18 - 6 * i)) & 0x3F;
        char::from(ALPHABET[six as usize])
    };
    let mut encoded = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().enumerate().fold(0, |sum, (i, b)| sum | u32::from(*b) << (16 - 8 * i));
        (0..=chunk.len()).for_each(|i| encoded.push(digit(bits, i)));
        (chunk.len()..3).for_each(|_| encoded.push('='));
    }
    encoded
}

/// The body of a request. ureq reads it when connection and headers are done, so that `sent` tells
/// whether the refresh token can have reached the server.
struct Form<'a> {
    rest: &'a [u8],
    sent: bool,
}

impl Read for Form<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.sent = true;
        self.rest.read(buffer)
    }
}

/// An HTTP response with its body, as far as it came.
struct Answer {
    status: u16,
    retry_after: Option<Duration>,
    location: Option<String>,
    body: Vec<u8>,
    cut: Option<ureq::Error>,
}

impl Answer {
    /// Reads the body to its end, or to where it breaks off. As soon as it may be a whole grant it
    /// goes to `keep`: ureq's work at the end of a body would widen the window for a kill.
    fn receive(
        response: ureq::http::Response<ureq::Body>,
        mut body: Vec<u8>,
        keep: &dyn Fn(&[u8]),
    ) -> Self {
        let (head, source) = response.into_parts();
        let mut reader = source.into_with_config().limit(MAX_DOCUMENT).reader();
        let mut buffer = [0; 8192];
        let cut = loop {
            match reader.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => body.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => break Some(ureq::Error::from(e)),
            }
            if head.status.is_success() && body.trim_ascii_end().ends_with(b"}") {
                keep(&body);
            }
        };
        Self {
            status: head.status.as_u16(),
            retry_after: retry_after(&head.headers),
            location: header(&head.headers, "location").map(str::to_owned),
            body,
            cut,
        }
    }

    /// What it means. A grant that is whole counts although the connection broke off after it.
    fn read(&self, secrets: &Secrets) -> Result<Map<String, Value>, Refusal> {
        read_reply(self.status, &self.body, self.location.as_deref(), secrets)
            .map_err(|refusal| self.cut.as_ref().map_or(refusal, lost_after_sending))
    }
}

/// The hint where the endpoint is the likely cause.
const ENDPOINT_HINT: &str = "check --endpoint";
/// Said where the server wants a client certificate, as an alert or on a page.
const CERTIFICATE_DEMANDED: &str = "the server demands a client certificate";
/// The hint for it.
const CERTIFICATE_HINT: &str =
    "sf-refresh cannot present one: use an endpoint that does not ask for it";

/// A header of the reply, where it is ASCII.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// How long to wait (RFC 9110 §10.2.3): seconds, or a date, read against the server's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = header(headers, "retry-after")?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More than fits is more than any time-out.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let now = header(headers, "date").and_then(http_date);
    let now =
        now.or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs()));
    Some(Duration::from_secs(http_date(text)?.saturating_sub(now?)))
}

/// Seconds since 1970 of an IMF-fixdate, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = text.split([' ', ':']).skip(1);
    let day: u64 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = words.next().filter(|name| name.len() == 3).and_then(|name| MONTHS.find(name))? / 3;
    let year: u64 = words.next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut next = || words.next()?.parse::<u64>().ok().filter(|n| *n < 61);
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    // Days before the month in a year that starts in March, so that a leap day is the last one.
    let (march_year, march_month) =
        if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let before_month = (153 * march_month as u64 + 2) / 5;
    let days = march_year * 365 + march_year / 4 - march_year / 100
        + march_year / 400
        + before_month
        + day;
    Some((days.checked_sub(719_469)?) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

/// Looks names up in a thread of its own, for the system's resolver knows no time-out. ureq's own
/// one does so even for addresses, and panics where no thread can be had.
#[derive(Debug)]
struct NameResolver;

impl Resolver for NameResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default();
        let https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let found = match address(host) {
            Some(ip) => vec![SocketAddr::new(ip, port)],
            None => look_up(host, port, *timeout.after)?,
        };
        // Plain http without a proxy is meant for this machine, whatever `localhost` stands for.
        let anywhere = https || config.proxy().is_some();
        let mut addresses = self.empty();
        for socket in found.into_iter().filter(|s| anywhere || s.ip().is_loopback()).take(16) {
            addresses.push(socket);
        }
        if addresses.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(addresses) }
    }
}

/// The addresses of a name. The error is [`ureq::Error::Other`] with the resolver's own words.
fn look_up(host: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, ureq::Error> {
    let resolve = move |host: &str| (host, port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    let (sender, receiver) = mpsc::channel();
    let name = host.to_owned();
    let thread = thread::Builder::new().spawn(move || sender.send(resolve(&name)));
    let answer = match thread {
        Ok(_) => match receiver.recv_timeout(limit) {
            Ok(answer) => answer,
            Err(_) => return Err(ureq::Error::Timeout(ureq::Timeout::Resolve)),
        },
        // No thread to be had: rather without a time-out than not at all.
        Err(_) => resolve(host),
    };
    answer.map_err(|cause| ureq::Error::Other(words(&cause).into()))
}

/// A failure before the refresh token was sent: `host` is the endpoint's, `via` the proxy's.
fn never_sent(error: &ureq::Error, host: &str, via: Option<&str>) -> Refusal {
    use ureq::Error as E;
    let to =
        via.map_or_else(|| host.to_owned(), |proxy| format!("{host} through the proxy {proxy}"));
    let later = |what: String, hint: &str| {
        let message = format!("{what}; nothing was sent");
        Refusal { error: Error::temporary(message, hint), again: Again::Later }
    };
    let wrong = |what: String, hint: &str| Refusal {
        error: Error::setup(format!("{what}; nothing was sent"), hint),
        again: Again::Never,
    };
    let network = "check the network, the host's name and the proxy; or run it again later";
    match error {
        E::Other(cause) => later(format!("cannot find {to}: {cause}"), network),
        E::HostNotFound => later(format!("cannot find {to}"), network),
        E::Timeout(ureq::Timeout::Resolve) => {
            later(format!("no answer from the name server about {to}"), network)
        }
        E::Timeout(_) => later(format!("no connection to {to} in time"), network),
        E::ConnectProxyFailed(reason) => proxy_refused(reason, &to, &later, &wrong),
        E::Io(cause) => match tls_failure(cause) {
            Some((what, hint)) => wrong(format!("{to}: {what}"), &hint),
            None => later(format!("cannot connect to {to}: {}", words(cause)), network),
        },
        E::Protocol(_) => wrong(format!("{to}: the proxy does not speak HTTP"), "check the proxy"),
        _ => wrong(format!("cannot use {to} as an endpoint"), ENDPOINT_HINT),
    }
}

/// What a proxy answered to CONNECT; ureq gives it as `proxy server responded 407/407`.
fn proxy_refused(
    reason: &str,
    to: &str,
    later: &dyn Fn(String, &str) -> Refusal,
    wrong: &dyn Fn(String, &str) -> Refusal,
) -> Refusal {
    let status = reason.rsplit('/').next().and_then(|status| status.parse::<u16>().ok());
    match status {
        // tinyproxy answers a wrong password with 401.
        Some(status @ (401 | 407)) => {
            let hint = "put USER:PASSWORD@ before the host in HTTPS_PROXY";
            wrong(format!("{to}: the proxy wants other credentials: HTTP {status}"), hint)
        }
        Some(status @ 500..) => {
            later(format!("{to}: the proxy got no connection: HTTP {status}"), "run it again later")
        }
        Some(status) => {
            let hint = "have the proxy allow the host, or name the host in NO_PROXY";
            wrong(format!("{to}: the proxy refused: HTTP {status}"), hint)
        }
        None => later(format!("{to}: the proxy did not answer"), "check the proxy"),
    }
}

/// What rustls said, in words, with a hint; ureq passes it on as an I/O error, told by its text.
/// Nothing where the network cut the handshake short.
fn tls_failure(cause: &io::Error) -> Option<(String, String)> {
    let text = cause.to_string();
    if let Some(reason) = text.strip_prefix("invalid peer certificate: ") {
        return Some(certificate_refused(reason));
    }
    if demands_certificate(cause) {
        return Some((CERTIFICATE_DEMANDED.to_owned(), CERTIFICATE_HINT.to_owned()));
    }
    if let Some(alert) = text.strip_prefix("received fatal alert: ") {
        let hint = "the server accepts none of TLS 1.2 and 1.3 as sf-refresh speaks them";
        let what = format!("the server refused the TLS handshake ({alert})");
        return Some((what, hint.to_owned()));
    }
    let not_tls = text.contains("InvalidContentType") || text.contains("InvalidMessage");
    match cause.kind() {
        ErrorKind::InvalidData if not_tls || text.contains("corrupt") => {
            let hint = "check the port of --endpoint";
            Some(("it does not speak TLS".to_owned(), hint.to_owned()))
        }
        ErrorKind::InvalidData => Some((format!("TLS failed: {text}"), ENDPOINT_HINT.to_owned())),
        _ => None,
    }
}

/// Whether the server's TLS alert asks for a client certificate.
fn demands_certificate(cause: &io::Error) -> bool {
    let text = cause.to_string();
    let alert = text.strip_prefix("received fatal alert: ").unwrap_or_default();
    matches!(alert, "CertificateRequired" | "BadCertificate")
}

/// Why a certificate was refused, from rustls' text for it.
fn certificate_refused(reason: &str) -> (String, String) {
    let clock = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("this machine's clock says {}: is that right?", date(now))
    };
    let (what, hint) = if reason.starts_with("UnknownIssuer") {
        let hint = "--ca-cert FILE (or SSL_CERT_FILE) with the PEM root that signed it";
        ("it is signed by a CA that is not trusted", hint.to_owned())
    } else if reason.starts_with("certificate expired") || reason.starts_with("Expired") {
        ("it has expired", clock())
    } else if reason.starts_with("certificate not valid yet") || reason.starts_with("NotValidYet") {
        ("it is not valid yet", clock())
    } else if reason.starts_with("certificate not valid for name")
        || reason.starts_with("NotValidForName")
    {
        ("it is for another host", ENDPOINT_HINT.to_owned())
    } else if reason.starts_with("CaUsedAsEndEntity") {
        (
            "it is a CA's own and not a server's",
            "--ca-cert does not help: mend the server".to_owned(),
        )
    } else {
        return (format!("certificate refused: {reason}"), String::new());
    };
    (format!("certificate refused: {what}"), hint)
}

/// A date and time in UTC, from seconds since 1970 (the inverse of [`http_date`]).
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let era_day = days % 146_097;
    let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let march_month = (5 * year_day + 2) / 153;
    let day = year_day - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era_year + 400 * (days / 146_097) + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
}

/// A failure after the refresh token was sent.
fn lost_after_sending(error: &ureq::Error) -> Refusal {
    use ureq::Error as E;
    let wrong = |what: &str, hint: &str| Refusal {
        error: Error::setup(what.to_owned(), hint),
        again: Again::Never,
    };
    match error {
        E::Timeout(_) => lost("no answer in time"),
        // With TLS 1.3 a server looks for the client's certificate only after the handshake.
        E::Io(cause) if demands_certificate(cause) => wrong(CERTIFICATE_DEMANDED, CERTIFICATE_HINT),
        E::Io(cause) => lost(&format!("the connection broke off: {}", words(cause))),
        E::BodyExceedsLimit(_) => wrong("the reply is longer than 1 MiB", ENDPOINT_HINT),
        E::Protocol(_) | E::Http(_) | E::LargeResponseHeader(..) => {
            wrong("the answer is not HTTP", ENDPOINT_HINT)
        }
        _ => lost("the answer could not be read"),
    }
}

/// When a run has to end.
struct Deadline(Instant);

impl Deadline {
    /// A run that starts now.
    fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout)
    }

    /// The time that is left, zero when it is over.
    fn left(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// How often a run may try again, and why it had to.
struct Tries {
    left: u32,
    wait: Duration,
    last: Option<Error>,
}

impl Tries {
    /// So many tries after the first one.
    fn new(left: u32) -> Self {
        Self { left, wait: BACKOFF, last: None }
    }

    /// Waits before the next try, as long as the server `asked`; the last error where no try or no
    /// time is left.
    fn pause(&mut self, asked: Option<Duration>, deadline: &Deadline) -> Result<(), Error> {
        let wait = asked.unwrap_or(self.wait);
        if self.left == 0 || wait >= deadline.left() {
            return Err(self.give_up());
        }
        self.left -= 1;
        self.wait = self.wait.saturating_mul(2);
        thread::sleep(wait);
        Ok(())
    }

    /// The failure that ends the run: the last one.
    fn give_up(&mut self) -> Error {
        let unknown = || Error::temporary("no answer".to_owned(), "run it again later");
        self.last.take().unwrap_or_else(unknown)
    }
}

// ---- File: lock, journal, save. Knows bytes and no HTTP; prints nothing but steps. ----

/// A token file, open and locked. The lock ends with the handle, and with the process.
struct TokenFile {
    /// The file itself, where the path led through symlinks.
    path: PathBuf,
    handle: File,
    metadata: fs::Metadata,
    /// This run made the file, and removes it again where nothing comes of it.
    made: bool,
}

impl TokenFile {
    /// Opens and locks a token file within the time-out, or makes it where `may_make`. While
    /// another run holds the lock, the access token is noted in `seen`.
    fn lock(
        path: &Path,
        may_make: bool,
        deadline: &Deadline,
        seen: &mut Option<String>,
        log: &Log,
    ) -> Result<Self, Error> {
        loop {
            let mut file = Self::open(path, may_make)?;
            let waited = file.wait_for_lock(deadline, seen, log)?;
            // A rename by the former holder leaves this handle on a file that has no name.
            let is_current = fs::metadata(path).is_ok_and(|now| same_file(&now, &file.metadata));
            if is_current {
                file.metadata = file.handle.metadata().map_err(|e| cannot("examine", &e))?;
                log.step("locked");
                return Ok(file);
            }
            if !waited {
                file.note_access_token(seen);
            }
            if deadline.left().is_zero() {
                return Err(lock_held());
            }
            file.made = false;
        }
    }

    /// Opens the file that a path leads to, or makes an empty one. Errors: file.
    fn open(path: &Path, may_make: bool) -> Result<Self, Error> {
        // A look first: to open some devices is to use them.
        let (path, made) = match fs::canonicalize(path) {
            Ok(real) => (real, false),
            Err(e) if e.kind() == ErrorKind::NotFound && may_make => (path.to_owned(), true),
            Err(e) => return Err(cannot_open(&e)),
        };
        if !made {
            check_regular(&fs::metadata(&path).map_err(|e| cannot_open(&e))?)?;
        }
        let mut how = OpenOptions::new();
        how.read(true).write(true);
        if made {
            how.create_new(true).mode(0o600);
        }
        match how.open(&path) {
            Ok(handle) => {
                let metadata = handle.metadata().map_err(|e| cannot_open(&e))?;
                check_regular(&metadata)?;
                Ok(Self { path, handle, metadata, made })
            }
            // Another run was faster to make it, or a symlink leads nowhere.
            Err(e)
                if made && e.kind() == ErrorKind::AlreadyExists && fs::metadata(&path).is_ok() =>
            {
                Self::open(&path, false)
            }
            Err(e) => Err(cannot_open(&e)),
        }
    }

    /// Polls the lock until it is ours; tells whether that took a wait.
    fn wait_for_lock(
        &self,
        deadline: &Deadline,
        seen: &mut Option<String>,
        log: &Log,
    ) -> Result<bool, Error> {
        let mut waited = false;
        loop {
            match self.handle.try_lock() {
                Ok(()) => return Ok(waited),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Interrupted => continue,
                Err(TryLockError::Error(e)) => {
                    let hint = "put the file where files can be locked: NFS needs its lock service";
                    return Err(Error::file(format!("cannot lock: {}", words(&e)), hint));
                }
            }
            if !waited {
                log.step("waiting for another run that holds the lock");
            }
            waited = true;
            self.note_access_token(seen);
            if deadline.left().is_zero() {
                return Err(lock_held());
            }
            thread::sleep(LOCK_POLL.min(deadline.left()));
        }
    }

    /// Keeps the first whole access token that is seen while another run is at work.
    fn note_access_token(&self, seen: &mut Option<String>) {
        if seen.is_none() {
            let token = self.read().ok().and_then(|bytes| Token::parse(&bytes, None).ok());
            *seen = token.map(|token| token.access_token().unwrap_or_default().to_owned());
        }
    }

    /// When the file was last written, which is the age of a token that does not tell its own.
    fn modified(&self) -> Option<SystemTime> {
        self.metadata.modified().ok()
    }

    /// Whether the name still stands for this file: what is written to another is not found again.
    fn check_in_place(&self) -> io::Result<()> {
        if same_file(&fs::metadata(&self.path)?, &self.metadata) {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::NotFound, "the file was replaced meanwhile"))
    }

    /// All that the file holds, at most [`MAX_DOCUMENT`].
    fn read(&self) -> io::Result<Vec<u8>> {
        // By position, so that every look starts at the beginning.
        let mut bytes = Vec::with_capacity(2 * RESERVE);
        let mut buffer = [0; 8192];
        loop {
            match self.handle.read_at(&mut buffer, bytes.len() as u64) {
                Ok(0) => return Ok(bytes),
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(too_large());
            }
        }
    }

    /// The token document: what the file holds, and over it the journal of an interrupted save,
    /// which is then finished (unless this is a rehearsal).
    fn load(&mut self, seed: Option<&Secret>, rehearsal: bool, log: &Log) -> Result<Token, Error> {
        let bytes = self.read().map_err(|e| cannot("read", &e))?;
        let token = Token::parse(&bytes, seed);
        let Some((journal, newer)) = self.interrupted_save(rehearsal)? else {
            return token;
        };
        // The journal may hold the bare reply, and the file be half overwritten.
        let token = match token {
            Ok(mut token) => {
                token.merge(newer.members, SystemTime::now());
                token
            }
            Err(_) => newer,
        };
        if !rehearsal {
            self.finish_interrupted_save(journal, &token.to_json())?;
            log.step("finished an interrupted save");
        }
        Ok(token)
    }

    /// The journal of an earlier run, where it holds a whole grant. One that does not is removed:
    /// its run ended before the reply was there.
    fn interrupted_save(&self, rehearsal: bool) -> Result<Option<(File, Token)>, Error> {
        let path = journal_path(&self.path);
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            return Ok(None);
        };
        let in_the_way = |what: &str| {
            let hint = format!("look at it, and remove it if it is not wanted: {}", path.display());
            Err(Error::file(format!("the journal beside it {what}"), &hint))
        };
        if !metadata.is_file() || metadata.nlink() != 1 {
            return in_the_way("is not a regular file with one name");
        }
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let read = opened.and_then(|file| {
            let is_same = file.metadata().is_ok_and(|now| same_file(&now, &metadata));
            let bytes = read_limited(&file, 2 * MAX_DOCUMENT)?;
            let grant = Token::parse(&bytes, None).ok().filter(|t| t.access_token().is_some());
            Ok((file, is_same, grant))
        });
        match read {
            Ok((journal, true, Some(token))) if metadata.uid() == self.metadata.uid() => {
                Ok(Some((journal, token)))
            }
            Ok((_, true, None)) => {
                if !rehearsal {
                    fs::remove_file(&path).map_err(|e| cannot("remove the journal of", &e))?;
                }
                Ok(None)
            }
            Ok((_, true, Some(_))) => in_the_way("belongs to another user"),
            Ok((_, false, _)) => in_the_way("was replaced just now"),
            Err(e) => in_the_way(&format!("cannot be read: {}", words(&e))),
        }
    }

    /// Puts the journal of an earlier run in the place of the file, and keeps the lock.
    fn finish_interrupted_save(&mut self, journal: File, bytes: &[u8]) -> Result<(), Error> {
        let path = journal_path(&self.path);
        let failed = |e: io::Error| {
            let hint = format!("the newest grant is in {}", path.display());
            Error::file(format!("cannot finish an interrupted save: {}", words(&e)), &hint)
        };
        rewrite(&journal, bytes).map_err(failed)?;
        // The new file has to be locked before it takes the name. Where another run holds it by
        // now, that run has just taken it for the token file.
        let renamed = self.metadata.nlink() == 1
            && journal.try_lock().is_ok()
            && fs::rename(&path, &self.path).is_ok();
        if renamed {
            sync_parent(&self.path).map_err(failed)?;
            self.metadata = journal.metadata().map_err(failed)?;
            self.handle = journal;
            return Ok(());
        }
        let length = self.handle.metadata().map_err(failed)?.len();
        overwrite(&self.handle, bytes, length, length).map_err(failed)?;
        fs::remove_file(&path).and_then(|()| sync_parent(&path)).map_err(failed)
    }

    /// Proves that a save will work before the refresh token is spent, and reserves room for a
    /// document of `length` bytes and what the reply adds.
    fn prepare_save(&self, length: usize, log: &Log) -> Result<Save<'_>, Error> {
        let length = self.metadata.len().max(length as u64);
        if length > MAX_DOCUMENT {
            return Err(cannot("renew", &too_large()));
        }
        let room = length + RESERVE as u64;
        let mut save = Save { file: self, journal: None, reserved: false, room, granted: false };
        let hint = "make room, or put the file elsewhere; nothing was sent";
        // A run by another of its names would not find the journal, and later runs by this one
        // would take it for newer than what that run saved.
        if self.metadata.nlink() == 1 {
            match self.make_journal(room) {
                Ok(journal) => save.journal = Some(journal),
                Err(e) if refuses_journal(&e) => {}
                Err(e) => {
                    let message = format!("cannot make the journal: {}", words(&e));
                    return Err(Error::file(message, hint));
                }
            }
        }
        if save.journal.is_none() {
            save.reserved = true;
            pad(&self.handle, self.metadata.len(), room)
                .map_err(|e| Error::file(format!("cannot reserve room: {}", words(&e)), hint))?;
        }
        log.step(if save.reserved { "ready to save in place" } else { "journal made" });
        Ok(save)
    }

    /// Makes the journal, with the file's owner and mode and `room` bytes for the new document. Its
    /// padding is blanks: a document that was written over them is whole before they are cut.
    fn make_journal(&self, room: u64) -> io::Result<File> {
        let path = journal_path(&self.path);
        let journal = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let made = journal.metadata()?;
        let prepared = (|| {
            if (made.uid(), made.gid()) != (self.metadata.uid(), self.metadata.gid()) {
                fchown(&journal, Some(self.metadata.uid()), Some(self.metadata.gid()))?;
            }
            let mode = self.metadata.mode() & 0o7777;
            if made.mode() & 0o7777 != mode {
                journal.set_permissions(fs::Permissions::from_mode(mode))?;
            }
            pad(&journal, 0, room)
        })();
        prepared.map(|()| journal).inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })
    }
}

impl Drop for TokenFile {
    /// Removes a file that this run made, where it is still empty.
    fn drop(&mut self) {
        if self.made && self.handle.metadata().is_ok_and(|now| now.len() == 0 && now.nlink() > 0) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A save that is prepared. Until the grant is here, dropping it leaves everything as it was.
struct Save<'a> {
    file: &'a TokenFile,
    journal: Option<File>,
    /// The file itself was padded to `room` bytes, to be overwritten in place.
    reserved: bool,
    room: u64,
    granted: bool,
}

impl Save<'_> {
    /// Keeps a reply in the journal as it came in, before anything else is done with it: if it is a
    /// grant and this run is killed, the next one finds it there. [`Save::commit`] tells a failure.
    fn keep(&self, reply: &[u8]) {
        if let Some(journal) = &self.journal {
            let _ = journal.write_all_at(reply, 0);
        }
    }

    /// Saves the document: through the journal, in place where that cannot be. Gives how, in words.
    fn commit(&mut self, document: &[u8]) -> Result<&'static str, NotSaved> {
        // From here on nothing is cleaned up: what is there may be the only copy.
        self.granted = true;
        let journal = self.journal.as_ref().map(|journal| rewrite(journal, document));
        let whole = matches!(journal, Some(Ok(())));
        let path = journal_path(&self.file.path);
        if whole && fs::rename(&path, &self.file.path).is_ok() {
            return match sync_parent(&self.file.path) {
                Ok(()) => Ok("saved"),
                Err(_) => Ok("saved, but the folder could not be synced to the disk"),
            };
        }
        let old = self.file.metadata.len();
        let room = if self.reserved { self.room } else { old };
        let written = overwrite(&self.file.handle, document, old, room);
        match written.and_then(|()| self.file.check_in_place()) {
            Ok(()) if self.journal.is_none() => Ok("saved in place"),
            Ok(()) => match fs::remove_file(&path).and_then(|()| sync_parent(&path)) {
                Ok(()) => Ok("saved in place"),
                Err(_) => Ok("saved in place, but its journal cannot be removed: remove it"),
            },
            Err(cause) => Err(NotSaved { cause, journal: whole.then_some(path) }),
        }
    }
}

impl Drop for Save<'_> {
    fn drop(&mut self) {
        if self.granted {
            return;
        }
        if self.reserved {
            let length = self.file.handle.set_len(self.file.metadata.len());
            if let (Ok(()), Some(modified)) = (length, self.file.modified()) {
                let _ = self.file.handle.set_modified(modified);
            }
        }
        if self.journal.is_some() {
            let _ = fs::remove_file(journal_path(&self.file.path));
        }
    }
}

/// A grant that is in no token file: why, and the journal that holds it, where one does.
struct NotSaved {
    cause: io::Error,
    journal: Option<PathBuf>,
}

/// `.NAME.sf-refresh` beside the token file.
fn journal_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".sf-refresh");
    path.with_file_name(name)
}

/// Whether the folder refuses a journal, so that the file has to be overwritten in place.
fn refuses_journal(cause: &io::Error) -> bool {
    use ErrorKind::{InvalidFilename, PermissionDenied, ReadOnlyFilesystem};
    matches!(cause.kind(), PermissionDenied | ReadOnlyFilesystem | InvalidFilename)
}

/// Whether two looks saw the same file.
fn same_file(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Refuses what is no regular file, or too large to be a token.
fn check_regular(metadata: &fs::Metadata) -> Result<(), Error> {
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "is a folder" } else { "is not a regular file" };
        return Err(Error::file(what.to_owned(), "name the token file itself"));
    }
    if metadata.len() > MAX_DOCUMENT {
        return Err(cannot("read", &too_large()));
    }
    Ok(())
}

/// Fills a file with blanks between two lengths: room that is taken, and still JSON.
fn pad(file: &File, from: u64, to: u64) -> io::Result<()> {
    let blanks = vec![b' '; usize::try_from(to - from).unwrap_or(RESERVE)];
    file.write_all_at(&blanks, from)
}

/// Replaces all that a file holds, written first and cut after, and waits for the disk once.
fn rewrite(file: &File, document: &[u8]) -> io::Result<()> {
    write_over(file, document, file.metadata()?.len())?;
    file.set_len(document.len() as u64)?;
    file.sync_all()
}

/// Writes a document over `length` bytes of something else, with blanks over what it is shorter:
/// a run that is killed before the cut leaves JSON.
fn write_over(file: &File, document: &[u8], length: u64) -> io::Result<()> {
    let mut bytes = document.to_vec();
    bytes.resize(document.len().max(usize::try_from(length).unwrap_or_default()), b' ');
    file.write_all_at(&bytes, 0)
}

/// Overwrites the token file in place: `old` bytes, blanks up to `room`. What it holds stays whole
/// until there is room for all.
fn overwrite(file: &File, document: &[u8], old: u64, room: u64) -> io::Result<()> {
    if document.len() as u64 > room {
        pad(file, room, document.len() as u64).inspect_err(|_| {
            let _ = file.set_len(old);
        })?;
    }
    write_over(file, document, old)?;
    file.sync_all()?;
    file.set_len(document.len() as u64)?;
    file.sync_all()
}

/// Makes a rename last. A folder that cannot be opened or synced by its nature is no failure.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match File::open(parent.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()) {
        Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) => {
            Ok(())
        }
        done => done,
    }
}

/// All bytes of a source, where there are at most `limit`.
fn read_limited(source: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

/// The error for what is over a limit.
fn too_large() -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, "too large")
}

// ---- Output: stdout gets the result and nothing else, stderr all that is said about it. ----

/// What is said about one file on stderr.
struct Log<'a> {
    path: &'a Path,
    quiet: bool,
    verbose: bool,
}

impl<'a> Log<'a> {
    /// What the options want told of this file.
    fn new(options: &Options, path: &'a Path) -> Self {
        Self { path, quiet: options.quiet, verbose: options.verbose }
    }

    /// What came of it, unless `--quiet`.
    fn status(&self, text: &str) {
        if !self.quiet {
            say(Some(self.path), text);
        }
    }

    /// One step on the way, if `--verbose`.
    fn step(&self, text: &str) {
        if self.verbose {
            say(Some(self.path), text);
        }
    }
}

/// What happened, on stderr.
fn say(path: Option<&Path>, text: &str) {
    let file = path.map_or_else(String::new, |path| format!("{}: ", path.display()));
    say_line(&format!("sf-refresh: {file}{text}"));
}

/// One line on stderr, whatever its text holds; there is nobody to tell where that fails.
fn say_line(text: &str) {
    let mut line: String = text.chars().filter(|c| is_printable(*c)).collect();
    line.push('\n');
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Prints what `--help` and `--version` ask for.
fn print_text(text: &str) -> Result<(), Error> {
    match print(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::undelivered(cannot_print(&e), ""))
        }
        _ => Ok(()),
    }
}

/// Prints the result of a file that is saved: a reader that has gone away needs it no more.
fn print_result(output: Output, token: &Token) -> Result<(), Error> {
    match print(&token.render(output)) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            let message = format!("{}; the token file is saved", cannot_print(&e));
            Err(Error::undelivered(message, "read the access token from the token file"))
        }
        _ => Ok(()),
    }
}

/// Hands over a document that could not be saved: on stdout, else in a file.
fn hand_over(token: &Token, failure: NotSaved) -> Error {
    let message = format!("granted, but cannot save: {}", words(&failure.cause));
    let printed = print(&token.to_json());
    match (&failure.journal, printed) {
        (Some(journal), printed) => {
            let stdout = if printed.is_ok() { " and on stdout" } else { "" };
            let message = format!("{message}; it is in {}{stdout}", journal.display());
            Error::undelivered(message, "the next run finishes the save")
        }
        (None, Ok(())) => {
            let hint = "keep what is on stdout: it is the only copy of the new grant";
            Error::undelivered(format!("{message}; the new document is on stdout"), hint)
        }
        (None, Err(e)) => rescue(token, &format!("{message}; {}", cannot_print(&e))),
    }
}

/// Refuses to print an only copy to the null device, which is also where Rust's runtime leads a
/// stdout that was closed.
fn check_stdout() -> Result<(), Error> {
    const NULL_DEVICE: u64 = 0x103; // major 1, minor 3 (Linux, Documentation/admin-guide/devices.txt)
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    match stdout.and_then(|stdout| stdout.metadata()) {
        Ok(metadata) if metadata.rdev() == NULL_DEVICE => {
            let message = "stdout is closed or /dev/null: the new document would be lost";
            Err(Error::usage(message.to_owned(), "lead stdout into a file or a pipe"))
        }
        _ => Ok(()),
    }
}

/// Prints a document whose only copy is in memory; where stdout fails, it goes into a file.
fn print_only_copy(token: &Token) -> Result<(), Error> {
    let printed = print(&token.to_json());
    printed.map_err(|e| rescue(token, &format!("granted, but {}", cannot_print(&e))))
}

/// The last resort: a new file that only its owner can read, here or in the folder for such.
fn rescue(token: &Token, message: &str) -> Error {
    let name = format!("sf-refresh-rescued-{}.json", std::process::id());
    for folder in [PathBuf::from("."), std::env::temp_dir()] {
        let path = folder.join(&name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        if file.and_then(|file| rewrite(&file, &token.to_json())).is_ok() {
            let message = format!("{message}; it is in {}", path.display());
            return Error::undelivered(message, "put it in the place of the old token document");
        }
    }
    Error::undelivered(format!("{message}, nor save it elsewhere"), "log in again")
}

/// Writes to stdout, unbuffered, so that what went wrong is known here.
fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// The words for a failure of stdout.
fn cannot_print(cause: &io::Error) -> String {
    format!("cannot write to stdout: {}", words(cause))
}

// ---- Errors: every failure, its exit status, its message and its hint. ----

/// A failure by what a script can do about it; a message, and a hint or nothing.
enum Error {
    /// 1: the token file cannot be used; nothing was sent.
    File(String, String),
    /// 2: wrong usage, or an option or variable that cannot be used.
    Usage(String, String),
    /// 3: the server refused this grant for good.
    Refused(String, String),
    /// 4: it may work later.
    Temporary(String, String),
    /// 5: client, endpoint, certificate or proxy are not set up.
    Setup(String, String),
    /// 6: granted, and not delivered where it should be.
    Undelivered(String, String),
}

impl Error {
    /// See [`Error::File`]; an empty hint is none, here and below.
    fn file(message: String, hint: &str) -> Self {
        Self::File(message, hint.to_owned())
    }

    /// See [`Error::Usage`].
    fn usage(message: String, hint: &str) -> Self {
        Self::Usage(message, hint.to_owned())
    }

    /// See [`Error::Refused`].
    fn refused(message: String, hint: &str) -> Self {
        Self::Refused(message, hint.to_owned())
    }

    /// See [`Error::Temporary`].
    fn temporary(message: String, hint: &str) -> Self {
        Self::Temporary(message, hint.to_owned())
    }

    /// See [`Error::Setup`].
    fn setup(message: String, hint: &str) -> Self {
        Self::Setup(message, hint.to_owned())
    }

    /// See [`Error::Undelivered`].
    fn undelivered(message: String, hint: &str) -> Self {
        Self::Undelivered(message, hint.to_owned())
    }

    /// Exit status, message and hint.
    fn parts(&self) -> (u8, &str, &str) {
        match self {
            Self::File(message, hint) => (1, message, hint),
            Self::Usage(message, hint) => (2, message, hint),
            Self::Refused(message, hint) => (3, message, hint),
            Self::Temporary(message, hint) => (4, message, hint),
            Self::Setup(message, hint) => (5, message, hint),
            Self::Undelivered(message, hint) => (6, message, hint),
        }
    }

    /// Tells the failure on stderr, and gives its exit status.
    fn report(&self, path: Option<&Path>) -> ExitCode {
        let (code, message, hint) = self.parts();
        say(path, message);
        if !hint.is_empty() {
            say_line(&format!("hint: {hint}"));
        }
        ExitCode::from(code)
    }
}

/// An I/O error in words, in lower case and without its number.
fn words(cause: &io::Error) -> String {
    let text = cause.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// A failure of a step on the token file, before anything was sent.
fn cannot(what: &str, cause: &io::Error) -> Error {
    Error::file(format!("cannot {what} it: {}", words(cause)), "")
}

/// A token file that cannot be opened, and what to do about the usual causes.
fn cannot_open(cause: &io::Error) -> Error {
    let hint = match cause.kind() {
        ErrorKind::NotFound => {
            "check the name; the first token file can be made with --sfdx-url-file"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "the file has to be readable and writable: the server may replace the refresh token"
        }
        _ => "",
    };
    Error::file(format!("cannot open: {}", words(cause)), hint)
}

/// The failure of a run that waited for the lock until its time was over.
fn lock_held() -> Error {
    let hint = "run it again later, or with a longer --timeout";
    Error::temporary("another run holds the lock; nothing was sent".to_owned(), hint)
}
