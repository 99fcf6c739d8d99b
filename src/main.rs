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
//! Exit status: see [`Exit`]; 0 is renewed or still fresh, 70 a bug.

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

/// The endpoint if neither an option nor the token file says otherwise.
const PRODUCTION_ENDPOINT: &str = "https://login.salesforce.com/services/oauth2/token";
/// The endpoint of a token whose `id` is on the host [`SANDBOX_HOST`].
const SANDBOX_ENDPOINT: &str = "https://test.salesforce.com/services/oauth2/token";
/// The login host of sandboxes.
const SANDBOX_HOST: &str = "test.salesforce.com";
/// The client id that the short form of an sfdx auth URL stands for.
const PLATFORM_CLI: &str = "PlatformCLI";
/// The members of documents and replies that hold tokens.
const TOKENS: [&str; 3] = ["access_token", "refresh_token", "id_token"];

/// The largest token file, secret file and reply, in bytes.
const MAX_DOCUMENT: u64 = 1024 * 1024;
/// The largest file of PEM roots, in bytes; the bundles of distributions have a quarter of a MiB.
const MAX_ROOTS: u64 = 16 * 1024 * 1024;
/// Room that a reply may need beyond the old document, in bytes.
const RESERVE: usize = 16 * 1024;
/// How long one try may take to get a connection ready, if the time-out leaves more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a lock that another run holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(10);
/// How long to wait if the server says nothing about it; doubled at each further try.
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
    match run(lexopt::Parser::from_env()) {
        Ok(status) => status,
        Err(error) => error.report(None),
    }
}

/// Does what the command line asks for; the status is that of the first file that failed.
fn run(arguments: lexopt::Parser) -> Result<ExitCode, Error> {
    let mut options = match parse(arguments)? {
        Command::Print(text) => return print_text(&text).map(|()| ExitCode::SUCCESS),
        Command::Refresh(options) => options,
    };
    let files = std::mem::take(&mut options.files);
    let mut run = Run::new(*options);
    let mut status = None;
    for path in files {
        run.begin(&path);
        let done = match path.to_str() {
            Some("-") => filter(&mut run),
            _ => refresh(&mut run, &path),
        };
        if let Err(error) = done {
            let code = error.report(Some(&path));
            status.get_or_insert(code);
        }
    }
    Ok(status.unwrap_or(ExitCode::SUCCESS))
}

/// Renews one token file and prints the result: the story of a file.
fn refresh(run: &mut Run, path: &Path) -> Result<(), Error> {
    if run.options.dry_run && run.options.seed().is_some() && !path.exists() {
        Request::new(&run.options, &Token::parse(b"", run.options.seed())?)?.show();
        return Ok(());
    }
    loop {
        let mut file = TokenFile::lock(path, run)?;
        let mut token = file.load(run)?;
        run.note(&token);
        if let Some(reason) = run.reason_to_skip(&token, file.modified()) {
            run.status(reason);
            return print_result(run.options.output, &token);
        }
        let request = Request::new(&run.options, &token)?;
        if run.options.dry_run {
            request.show();
            return Ok(());
        }
        let mut save = file.prepare_save(token.to_json().len(), run)?;
        match post(run, &request, &|reply| save.keep(reply)) {
            Reply::Granted(members) => {
                token.merge(members, SystemTime::now());
                return match save.commit(&token.to_json()) {
                    Ok(how) => {
                        run.status(&format!("OAuth2 authorization granted! {how}"));
                        print_result(run.options.output, &token)
                    }
                    Err(failure) => Err(deliver_unsaved(&token, &failure)),
                };
            }
            Reply::Later(error, wait) => run.pause(error, wait)?,
            Reply::Failed(error) => return Err(error),
        }
    }
}

/// Renews the document on stdin and prints it: nothing is saved, so stdout is the only copy.
fn filter(run: &mut Run) -> Result<(), Error> {
    let bytes = read_limited(io::stdin().lock(), MAX_DOCUMENT)
        .map_err(|e| Error::new(Exit::File, format!("cannot read stdin: {}", describe(&e)), ""))?;
    let mut token = Token::parse(&bytes, run.options.seed())?;
    if let Some(reason) = run.reason_to_skip(&token, None) {
        run.status(reason);
        return print_result(Output::Json, &token);
    }
    let request = Request::new(&run.options, &token)?;
    if run.options.dry_run {
        request.show();
        return Ok(());
    }
    check_stdout()?;
    loop {
        match post(run, &request, &|_| ()) {
            Reply::Granted(members) => {
                token.merge(members, SystemTime::now());
                print_only_copy(&token)?;
                run.status("OAuth2 authorization granted!");
                return Ok(());
            }
            Reply::Later(error, wait) => run.pause(error, wait)?,
            Reply::Failed(error) => return Err(error),
        }
    }
}

// ---- Vocabulary: what the story is told in. ----

/// One call of the program: its options and connections, and the file at hand, for which it says
/// what happens, waits and counts.
struct Run {
    options: Options,
    agent: Agent,
    /// The file at hand, as it was given.
    path: PathBuf,
    /// When the time for the file is over.
    deadline: Instant,
    /// How many more tries the file has.
    retries: u32,
    /// The wait before the next try, if the server does not ask for one.
    backoff: Duration,
    /// The access token of the first look at the file: once it is another, somebody has renewed it.
    first_access_token: Option<String>,
}

impl Run {
    /// A run with no file at hand yet.
    fn new(mut options: Options) -> Self {
        let agent = new_agent(options.roots.take());
        Self {
            agent,
            path: PathBuf::new(),
            deadline: Instant::now(),
            retries: 0,
            backoff: BACKOFF,
            first_access_token: None,
            options,
        }
    }

    /// Takes the next file: time and tries start anew.
    fn begin(&mut self, path: &Path) {
        path.clone_into(&mut self.path);
        self.deadline = Instant::now() + self.options.timeout;
        self.retries = self.options.retry;
        self.backoff = BACKOFF;
        self.first_access_token = None;
    }

    /// The time that is left, zero when it is over.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Waits before the next try, as long as the server `asked`; gives the error back if no try or
    /// no time is left.
    fn pause(&mut self, error: Error, asked: Option<Duration>) -> Result<(), Error> {
        let wait = asked.unwrap_or(self.backoff);
        if self.retries == 0 || wait >= self.left() {
            return Err(error);
        }
        self.retries -= 1;
        self.backoff = self.backoff.saturating_mul(2);
        thread::sleep(wait);
        self.step(&format!("{}, trying again", error.message));
        Ok(())
    }

    /// Keeps the access token of the first look at the file.
    fn note(&mut self, token: &Token) {
        self.first_access_token
            .get_or_insert_with(|| token.access_token().unwrap_or_default().to_owned());
    }

    /// Why no request is needed: another run has renewed the token, or it is younger than
    /// `--if-older-than`. A token that does not tell its age was issued when its file was `modified`.
    fn reason_to_skip(&self, token: &Token, modified: Option<SystemTime>) -> Option<&'static str> {
        let current = token.access_token()?;
        if self.first_access_token.as_deref().is_some_and(|first| first != current) {
            return Some("renewed by another run meanwhile");
        }
        let age = SystemTime::now().duration_since(token.issued_at().or(modified)?).ok()?;
        (age < self.options.if_older_than?).then_some("still fresh, nothing sent")
    }

    /// Says on stderr what came of the file, unless `--quiet`.
    fn status(&self, text: &str) {
        if !self.options.quiet {
            say(Some(&self.path), text);
        }
    }

    /// Says one step on the way on stderr, if `--verbose`.
    fn step(&self, text: &str) {
        if self.options.verbose {
            say(Some(&self.path), text);
        }
    }
}

/// The exit status of a failure, by what a script can do about it.
#[derive(Clone, Copy, PartialEq)]
enum Exit {
    /// The token file cannot be used; nothing was sent.
    File = 1,
    /// Wrong usage, or an option or variable that cannot be used.
    Usage = 2,
    /// The server refused this grant for good.
    Refused = 3,
    /// It may work later.
    Temporary = 4,
    /// Client, endpoint, certificate or proxy are not set up.
    Setup = 5,
    /// Granted, and not delivered where it should be.
    Undelivered = 6,
}

/// A failure: its exit status, what happened, and what to do about it (or an empty hint).
struct Error {
    exit: Exit,
    message: String,
    hint: String,
}

impl Error {
    fn new(exit: Exit, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: hint.into() }
    }

    /// Says it on stderr, and gives its exit status.
    fn report(&self, path: Option<&Path>) -> ExitCode {
        say(path, &self.message);
        if !self.hint.is_empty() {
            say_line(&format!("hint: {}", self.hint));
        }
        ExitCode::from(self.exit as u8)
    }
}

/// What came of a request.
enum Reply {
    /// The members of a grant (RFC 6749 §5.1).
    Granted(Map<String, Value>),
    /// Nothing was processed: try again, after so long if the server asked for a wait.
    Later(Error, Option<Duration>),
    /// No further try in this run can help.
    Failed(Error),
}

/// A string that must not be shown: no `Debug`, no `Display`.
#[derive(Clone, Default, PartialEq)]
struct Secret(String);

impl Secret {
    /// The secret itself, for the request, the token file and stdout alone.
    fn expose(&self) -> &str {
        &self.0
    }
}

// ---- Command line: arguments, environment and the files they name become options. Prints nothing. ----

/// What the command line asks for.
enum Command {
    /// Print this text to stdout: the help or the version.
    Print(String),
    Refresh(Box<Options>),
}

/// What arguments and environment say, checked, with the files that they name read.
#[derive(Default)]
struct Options {
    client_id: String,
    client_secret: Option<Secret>,
    basic: bool,
    data: Vec<FormField>,
    endpoint: Option<Uri>,
    sfdx: Option<SfdxUrl>,
    /// PEM roots in place of the bundled ones.
    roots: Option<Vec<Certificate<'static>>>,
    proxy: Option<Proxy>,
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

/// The values of options that name files; nothing is read before the whole command line is known.
#[derive(Default)]
struct NamedFiles {
    client_secret: Option<PathBuf>,
    sfdx_url: Option<PathBuf>,
    roots: Option<PathBuf>,
}

/// One more field of the request's form. Until the options are complete, `value` is the name of
/// its file if it `is_file`.
struct FormField {
    name: String,
    value: Secret,
    is_file: bool,
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

/// The names of the formats that `--output` takes.
const OUTPUTS: [(&str, Output); 5] = [
    ("token", Output::Token),
    ("header", Output::Header),
    ("env", Output::Env),
    ("json", Output::Json),
    ("none", Output::None),
];

/// Parses the command line; what is missing there comes from the environment. Errors: usage.
fn parse(mut arguments: lexopt::Parser) -> Result<Command, Error> {
    use lexopt::prelude::{Long, Short, Value};
    let mut options = Options { timeout: Duration::from_secs(30), retry: 2, ..Options::default() };
    let mut named = NamedFiles::default();
    let mut output = None;
    while let Some(argument) = arguments.next().map_err(|e| bad_argument(&e))? {
        match argument {
            Short('i') | Long("client-id") => {
                options.client_id = text(&mut arguments, "--client-id")?
            }
            Short('s') | Long("client-secret-file") => {
                named.client_secret = Some(value(&mut arguments)?.into());
            }
            Long("basic") => options.basic = true,
            Short('d') | Long("data") => {
                options.data.push(parse_field(&text(&mut arguments, "--data")?)?)
            }
            Short('e') | Long("endpoint") => {
                options.endpoint =
                    Some(parse_endpoint(&text(&mut arguments, "--endpoint")?, "--endpoint")?);
            }
            Long("sfdx-url-file") => named.sfdx_url = Some(value(&mut arguments)?.into()),
            Long("ca-cert") => named.roots = Some(value(&mut arguments)?.into()),
            Long("timeout") => {
                options.timeout = parse_timeout(&text(&mut arguments, "--timeout")?)?
            }
            Long("retry") => options.retry = parse_retry(&text(&mut arguments, "--retry")?)?,
            Long("if-older-than") => {
                options.if_older_than = Some(parse_age(&text(&mut arguments, "--if-older-than")?)?)
            }
            Short('o') | Long("output") => {
                output = Some(parse_output(&text(&mut arguments, "--output")?)?)
            }
            Short('n') | Long("dry-run") => options.dry_run = true,
            Short('q') | Long("quiet") => options.quiet = true,
            Short('v') | Long("verbose") => options.verbose = true,
            Short('h') | Long("help") => return Ok(Command::Print(HELP.to_owned())),
            Short('V') | Long("version") => {
                return Ok(Command::Print(
                    concat!("sf-refresh ", env!("CARGO_PKG_VERSION"), "\n").to_owned(),
                ));
            }
            Value(file) => options.files.push(file.into()),
            Short(_) | Long(_) => return Err(bad_argument(&argument.unexpected())),
        }
    }
    check_files(&options.files, output)?;
    options.output = output.unwrap_or_default();
    options.complete(&named)?;
    Ok(Command::Refresh(Box::new(options)))
}

impl Options {
    /// Takes from the environment what the command line left open, reads the files that both name,
    /// and sees that nothing is missing.
    fn complete(&mut self, named: &NamedFiles) -> Result<(), Error> {
        self.sfdx = match &named.sfdx_url {
            Some(path) => {
                let url = read_option(path, "--sfdx-url-file", "the sfdx auth URL itself")?;
                Some(SfdxUrl::parse(url.expose(), "--sfdx-url-file")?)
            }
            None => variable("SFDX_AUTH_URL")?
                .map(|url| SfdxUrl::parse(&url, "SFDX_AUTH_URL"))
                .transpose()?,
        };
        if self.endpoint.is_none() {
            let url = variable("SF_TOKEN_ENDPOINT")?;
            self.endpoint = url.map(|url| parse_endpoint(&url, "SF_TOKEN_ENDPOINT")).transpose()?;
        }
        self.complete_client(named)?;
        for field in self.data.iter_mut().filter(|field| field.is_file) {
            let path = PathBuf::from(field.value.expose());
            field.value = read_option(&path, "--data", "the value itself")?;
        }
        self.roots = match &named.roots {
            Some(path) => Some(read_roots("--ca-cert", path)?),
            None => set_variable("SSL_CERT_FILE")
                .map(|path| read_roots("SSL_CERT_FILE", Path::new(&path)))
                .transpose()?,
        };
        let proxies = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
        if let Some(name) = proxies.into_iter().find(|name| set_variable(name).is_some()) {
            self.proxy = Some(parse_proxy(&variable(name)?.unwrap_or_default(), name)?);
        }
        self.no_proxy = variable("no_proxy")?.or(variable("NO_PROXY")?).unwrap_or_default();
        Ok(())
    }

    /// Client id and secret: option, environment, sfdx URL.
    fn complete_client(&mut self, named: &NamedFiles) -> Result<(), Error> {
        self.client_secret = match &named.client_secret {
            Some(path) => Some(read_option(path, "--client-secret-file", "the secret itself")?),
            None => variable("SF_CLIENT_SECRET")?.map(Secret),
        };
        let of_url = self.sfdx.as_ref().map(|sfdx| sfdx.client_id.clone());
        if self.client_id.is_empty() {
            let hint = "--client-id CONSUMER_KEY or SF_CLIENT_ID: Salesforce shows the consumer \
                 key under Setup, App Manager, the app's details";
            self.client_id = variable("SF_CLIENT_ID")?
                .or(of_url)
                .ok_or_else(|| Error::new(Exit::Usage, "missing client id", hint))?;
        }
        // The secret of an sfdx URL belongs to that URL's client alone.
        let sfdx = self.sfdx.as_ref().filter(|sfdx| sfdx.client_id == self.client_id);
        let secret_of_url = sfdx.and_then(|sfdx| sfdx.client_secret.clone());
        self.client_secret = self.client_secret.take().or(secret_of_url);
        if self.basic && self.client_secret.is_none() {
            let hint = "--client-secret-file FILE or SF_CLIENT_SECRET";
            return Err(Error::new(Exit::Usage, "--basic needs a client secret", hint));
        }
        Ok(())
    }

    /// The refresh token to start from if there is no token file yet.
    fn seed(&self) -> Option<&Secret> {
        self.sfdx.as_ref().map(|sfdx| &sfdx.refresh_token)
    }

    /// Where the token goes: option, environment, sfdx URL, sandbox, production.
    fn endpoint_for(&self, token: &Token) -> Result<Uri, Error> {
        let chosen = self.endpoint.as_ref().or(self.sfdx.as_ref().map(|sfdx| &sfdx.endpoint));
        if let Some(endpoint) = chosen {
            return Ok(endpoint.clone());
        }
        // The file may choose between these two and name no host of its own.
        let id = token.string("id").and_then(|id| id.parse::<Uri>().ok());
        let is_sandbox = id.is_some_and(|id| {
            id.scheme_str() == Some("https")
                && id.authority().is_some_and(|a| a.as_str() == SANDBOX_HOST)
        });
        parse_endpoint(
            if is_sandbox { SANDBOX_ENDPOINT } else { PRODUCTION_ENDPOINT },
            "--endpoint",
        )
    }

    /// The proxy for an endpoint; never for plain http, whose secrets it could read.
    fn proxy_for(&self, endpoint: &Uri) -> Option<&Proxy> {
        let bypass = bypasses_proxy(&self.no_proxy, endpoint.host().unwrap_or_default());
        self.proxy.as_ref().filter(|_| is_https(endpoint) && !bypass)
    }
}

/// An environment variable; an empty one counts as not set.
fn set_variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// A variable that has to be UTF-8, less the newline at its end.
fn variable(name: &str) -> Result<Option<String>, Error> {
    match set_variable(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value.trim_end_matches(['\r', '\n']).to_owned())),
        Some(Err(_)) => Err(Error::new(Exit::Usage, format!("{name} is not UTF-8"), "")),
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
        Ok(_) => Err(Error::new(Exit::Usage, format!("{option} is empty"), "")),
        Err(_) => Err(Error::new(Exit::Usage, format!("{option} is not UTF-8"), "")),
    }
}

/// What the file of an option holds, less one newline at its end. The file's name is not told: it
/// may be `itself`, the secret given in place of a name.
fn read_option(path: &Path, option: &str, itself: &str) -> Result<Secret, Error> {
    let bad = |what: &str| Err(Error::new(Exit::Usage, format!("the file of {option} {what}"), ""));
    let bytes = File::open(path).and_then(|file| read_limited(file, MAX_DOCUMENT));
    let bytes = bytes.map_err(|cause| {
        let message = format!("cannot read the file of {option}: {}", describe(&cause));
        Error::new(Exit::Usage, message, format!("{option} takes the name of a file, not {itself}"))
    })?;
    let Ok(text) = String::from_utf8(bytes) else {
        return bad("is not UTF-8");
    };
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
    let line = text.strip_suffix('\n').unwrap_or(text);
    match line.strip_suffix('\r').unwrap_or(line) {
        "" => bad("is empty"),
        line => Ok(Secret(line.to_owned())),
    }
}

/// The certificates of a PEM file, at least one.
fn read_roots(origin: &str, path: &Path) -> Result<Vec<Certificate<'static>>, Error> {
    let bad = |what: &str| {
        let message = format!("{origin}: {}: {what}", path.display());
        Error::new(Exit::Usage, message, "a file of PEM certificates is needed")
    };
    let pem = File::open(path)
        .and_then(|file| read_limited(file, MAX_ROOTS))
        .map_err(|cause| bad(&describe(&cause)))?;
    let mut roots = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => roots.push(certificate),
            Ok(_) => {}
            Err(_) => return Err(bad("is not PEM")),
        }
    }
    if roots.is_empty() { Err(bad("holds no certificate")) } else { Ok(roots) }
}

/// Which files go together: `-` stands alone, and its only copy of the grant goes to stdout whole.
fn check_files(files: &[PathBuf], output: Option<Output>) -> Result<(), Error> {
    let filter = files.iter().any(|file| file.as_os_str() == "-");
    if files.is_empty() {
        let hint = "sf-refresh -i CONSUMER_KEY token.json; sf-refresh --help says more";
        return Err(Error::new(Exit::Usage, "missing FILE", hint));
    }
    if filter && files.len() > 1 {
        return Err(Error::new(Exit::Usage, "'-' cannot be combined with other files", ""));
    }
    if filter && output.is_some_and(|format| format != Output::Json) {
        let hint = "the renewed document is the only copy of the grant: leave --output out";
        return Err(Error::new(Exit::Usage, "with '-' stdout gets the JSON alone", hint));
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
            Error::new(Exit::Usage, format!("unknown option '{option}'"), hint)
        }
        MissingValue { option: Some(option) } => {
            Error::new(Exit::Usage, format!("missing argument for option '{option}'"), "")
        }
        UnexpectedValue { option, .. } => {
            Error::new(Exit::Usage, format!("option '{option}' takes no argument"), "")
        }
        _ => Error::new(Exit::Usage, "an argument is not valid", ""),
    }
}

/// The long option of the help text that shares most pairs of letters with a misspelt one, if these
/// are at least half of its own.
fn nearest_option(misspelt: &str) -> Option<&'static str> {
    let pairs: Vec<_> = misspelt.as_bytes().windows(2).collect();
    let shared = |option: &str| {
        pairs.iter().filter(|pair| option.as_bytes().windows(2).any(|own| own == **pair)).count()
    };
    HELP.split(|c: char| c.is_whitespace() || ",;".contains(c))
        .filter(|word| word.starts_with("--") && 2 * shared(word) >= pairs.len())
        .max_by_key(|option| (shared(option), std::cmp::Reverse(option.len())))
}

/// `NAME=VALUE` or `NAME@FILE`, told apart by which sign comes first.
fn parse_field(argument: &str) -> Result<FormField, Error> {
    const OURS: [&str; 4] = ["grant_type", "client_id", "client_secret", "refresh_token"];
    let Some(at) = argument.find(['=', '@']).filter(|at| *at > 0) else {
        let hint = "--data NAME=VALUE or --data NAME@FILE";
        return Err(Error::new(Exit::Usage, "--data has no field name", hint));
    };
    let (name, value) = argument.split_at(at);
    if OURS.contains(&name) {
        let message = format!("--data may not set '{name}': sf-refresh sends it itself");
        return Err(Error::new(Exit::Usage, message, ""));
    }
    let is_file = value.starts_with('@');
    Ok(FormField { name: name.to_owned(), value: Secret(value[1..].to_owned()), is_file })
}

/// A time-out in seconds, with decimals if need be.
fn parse_timeout(argument: &str) -> Result<Duration, Error> {
    let parsed = argument.parse().ok().and_then(|n| Duration::try_from_secs_f64(n).ok());
    // A year is longer than any run, and small enough to be added to any clock.
    parsed.filter(|d| !d.is_zero() && *d <= Duration::from_secs(366 * 86_400)).ok_or_else(|| {
        let message = format!("--timeout takes a number of seconds, not '{argument}'");
        Error::new(Exit::Usage, message, "--timeout 30")
    })
}

/// A number of tries.
fn parse_retry(argument: &str) -> Result<u32, Error> {
    argument.parse().map_err(|_| {
        let message = format!("--retry takes a whole number, not '{argument}'");
        Error::new(Exit::Usage, message, "--retry 2")
    })
}

/// An age: a whole number and its unit.
fn parse_age(argument: &str) -> Result<Duration, Error> {
    const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let parsed = UNITS.into_iter().find_map(|(unit, seconds)| {
        let number = argument.strip_suffix(unit)?;
        let is_number = number.bytes().all(|b| b.is_ascii_digit());
        number.parse::<u64>().ok().filter(|_| is_number)?.checked_mul(seconds)
    });
    parsed.map(Duration::from_secs).ok_or_else(|| {
        let message = format!("--if-older-than takes a number and a unit, not '{argument}'");
        Error::new(Exit::Usage, message, "90s, 45m, 2h or 7d")
    })
}

/// The name of an output format.
fn parse_output(argument: &str) -> Result<Output, Error> {
    let known = OUTPUTS.into_iter().find(|(name, _)| *name == argument);
    known.map(|(_, output)| output).ok_or_else(|| {
        let message = format!("--output knows no format '{argument}'");
        Error::new(Exit::Usage, message, "token, header, env, json or none")
    })
}

/// A token endpoint: `https`, or `http` on a loopback address. It is checked before ureq sees it,
/// which would send user info and take another port for a bad one in silence.
fn parse_endpoint(url: &str, origin: &str) -> Result<Uri, Error> {
    let bad =
        |what: &str, hint: &str| Err(Error::new(Exit::Usage, format!("{origin}: {what}"), hint));
    let example = "https://MyDomain.my.salesforce.com/services/oauth2/token";
    let Ok(uri) = url.parse::<Uri>() else {
        return bad("not a URL", example);
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
        "https" => Ok(uri),
        "http" if is_loopback(authority.host()) => Ok(uri),
        "http" => bad("plain http is for loopback addresses alone", "use https"),
        _ => bad("not an https URL", example),
    }
}

/// Whether the connection is made with TLS.
fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// The URL without its query, which may hold a secret.
fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or_default();
    let authority = uri.authority().map_or("", |a| a.as_str());
    let query = if uri.query().is_some() { "?***" } else { "" };
    format!("{scheme}://{authority}{}{query}", uri.path())
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

/// A CONNECT proxy, `[SCHEME://][USER:PASSWORD@]HOST[:PORT]` as curl reads it: scheme `http`, port
/// 1080.
fn parse_proxy(url: &str, origin: &str) -> Result<Proxy, Error> {
    let bad = |what: &str| {
        let hint = "http://HOST:PORT, or unset it for a direct connection";
        Error::new(Exit::Usage, format!("{origin}: {what}"), hint)
    };
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => 1080,
        "https" => 443,
        "socks" | "socks4" | "socks4a" | "socks5" | "socks5h" => {
            return Err(bad("SOCKS proxies are not supported"));
        }
        _ => return Err(bad("not a proxy that sf-refresh can use")),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let server = authority.rsplit_once('@').map_or(authority, |(_, server)| server);
    let host = match server.rsplit_once(':') {
        Some((host, _)) if !server.ends_with(']') => host,
        _ => server,
    };
    if !is_host(host) || !is_port(server, host) {
        return Err(bad("no valid host and port"));
    }
    let port = if host == server { format!(":{default_port}") } else { String::new() };
    Proxy::new(&format!("{scheme}://{authority}{port}")).map_err(|_| bad("not a URL"))
}

/// Whether `NO_PROXY` names the host, as curl decides it: names with their subdomains, a leading
/// dot ignored, whole addresses, `*` alone for all.
fn bypasses_proxy(no_proxy: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let ip = address(&host);
    let names_host = |entry: &str| {
        let name = entry.trim_matches('.').to_ascii_lowercase();
        let parent = host.strip_suffix(name.as_str());
        !name.is_empty() && parent.is_some_and(|p| p.is_empty() || p.ends_with('.'))
    };
    no_proxy.trim() == "*"
        || no_proxy.split([',', ' ', '\t']).any(|entry| match ip {
            Some(ip) => address(entry) == Some(ip),
            None => names_host(entry),
        })
}

/// What `sf` calls an sfdx auth URL: a login in one line.
struct SfdxUrl {
    client_id: String,
    client_secret: Option<Secret>,
    refresh_token: Secret,
    endpoint: Uri,
}

impl SfdxUrl {
    /// `force://ID:SECRET:REFRESH@HOST` or `force://REFRESH@HOST`, or the JSON that `sf` wraps it in.
    fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        // It is not shown: it holds the refresh token.
        let bad = || {
            let hint = "force://ID:SECRET:REFRESH@HOST, as sf org display --verbose prints it";
            Error::new(Exit::Usage, format!("{origin}: not an sfdx auth URL"), hint)
        };
        let json: Option<Value> = serde_json::from_str(text).ok();
        let wrapped = json.as_ref().and_then(|json| {
            let result = json.get("result").unwrap_or(json);
            result.get("sfdxAuthUrl")?.as_str()
        });
        let url = wrapped.unwrap_or(text).trim().strip_prefix("force://").ok_or_else(bad)?;
        let (grant, host) = url.rsplit_once('@').ok_or_else(bad)?;
        let (client_id, client_secret, refresh_token) = match grant.split(':').collect::<Vec<_>>()[..]
        {
            [refresh_token] => (PLATFORM_CLI, "", refresh_token),
            [id, secret, refresh_token] => (id, secret, refresh_token),
            _ => return Err(bad()),
        };
        if client_id.is_empty() || check_token(refresh_token).is_err() {
            return Err(bad());
        }
        let host = host.trim_end_matches('/');
        Ok(Self {
            client_id: client_id.to_owned(),
            client_secret: Some(client_secret)
                .filter(|s| !s.is_empty())
                .map(|s| Secret(s.to_owned())),
            refresh_token: Secret(refresh_token.to_owned()),
            endpoint: parse_endpoint(&format!("https://{host}/services/oauth2/token"), origin)?,
        })
    }
}

// ---- Token document: the JSON of a token file. Pure: no I/O, and the clock is an argument. ----

/// A JSON object with a usable `refresh_token`.
struct Token {
    members: Map<String, Value>,
}

impl Token {
    /// Reads a token document; if it is empty, `seed` is the refresh token to start from.
    fn parse(bytes: &[u8], seed: Option<&Secret>) -> Result<Self, Error> {
        let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        let empty = text.iter().all(u8::is_ascii_whitespace);
        if let (true, Some(refresh_token)) = (empty, seed) {
            let refresh_token = Value::String(refresh_token.expose().to_owned());
            let members = Map::from_iter([("refresh_token".to_owned(), refresh_token)]);
            return Ok(Self { members });
        }
        if empty {
            return Err(Error::new(Exit::File, "is empty", "restore it, or log in again"));
        }
        if text.starts_with(b"\xFF\xFE") || text.starts_with(b"\xFE\xFF") {
            let hint = "save it as UTF-8; PowerShell's > writes UTF-16";
            return Err(Error::new(Exit::File, "is UTF-16, not UTF-8", hint));
        }
        match serde_json::from_slice(text) {
            Ok(Value::Object(members)) => Self::check(members),
            Ok(other) => {
                let message = format!("is no token file: it holds {}", kind_of(&other));
                Err(Error::new(Exit::File, message, "a JSON object with refresh_token is needed"))
            }
            Err(cause) => {
                let message = format!("is not JSON: {cause}");
                Err(Error::new(Exit::File, message, "the file has to hold the token reply as JSON"))
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
                return Err(Error::new(Exit::File, "has no refresh_token", hint));
            }
            Some(Value::String(token)) => check_token(token).err(),
            Some(other) => Some(kind_of(other)),
        };
        match wrong {
            None => Ok(Self { members }),
            Some(what) => {
                let message = format!("has a refresh_token that is {what}");
                Err(Error::new(Exit::File, message, "restore the file, or log in again"))
            }
        }
    }

    /// A member that is a string.
    fn string(&self, name: &str) -> Option<&str> {
        self.members.get(name).and_then(Value::as_str)
    }

    /// The access token, if there is a usable one (RFC 6749 appendix A.12).
    fn access_token(&self) -> Option<&str> {
        self.string("access_token").filter(|token| check_token(token).is_ok())
    }

    /// Never absent: [`Token::check`] saw it.
    fn refresh_token(&self) -> &str {
        self.string("refresh_token").unwrap_or_default()
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
    /// `refresh_token` stays if the reply has no usable one (RFC 6749 §6).
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
            let millis = millis_since_1970(now);
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

/// Milliseconds since 1970, zero before.
fn millis_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
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

// ---- Reply: what a status and a body mean; tables first. Pure: no I/O, no clock. ----

/// What an `error` of RFC 6749 §5.2 or of Salesforce means: its exit status and hint. Any other is
/// a matter of the set-up.
#[rustfmt::skip]
const OAUTH_ERRORS: [(&str, Exit, &str); 14] = [
    ("invalid_grant", Exit::Refused, "log in again: the refresh token is expired, revoked or replaced"),
    ("access_denied", Exit::Refused, "log in again: the refresh token is expired, revoked or replaced"),
    ("inactive_user", Exit::Refused, "the user is frozen or inactive: have it activated, log in again"),
    ("inactive_org", Exit::Refused, "the org is locked or suspended: have it activated, log in again"),
    ("rate_limit_exceeded", Exit::Temporary, "run it again later"),
    ("temporarily_unavailable", Exit::Temporary, "run it again later"),
    ("server_error", Exit::Temporary, "run it again later"),
    ("invalid_client_id", Exit::Setup, "check --client-id: it is the app's consumer key; a new app takes some minutes to be known, and a sandbox has another endpoint"),
    ("invalid_client", Exit::Setup, "check --client-id and the secret (--client-secret-file, SF_CLIENT_SECRET); some servers want --basic"),
    ("unauthorized_client", Exit::Setup, "allow the app the refresh token flow, and the user the app"),
    ("unsupported_grant_type", Exit::Setup, "check --endpoint: it does not know grant_type=refresh_token"),
    ("invalid_scope", Exit::Setup, "the scope in --data is not one that the login granted"),
    ("app_not_found", Exit::Setup, "the app is not installed in this org: check --client-id and --endpoint"),
    ("invalid_request", Exit::Setup, "check --endpoint and --data; an app may require its secret"),
];
/// Part of the description of an `invalid_grant` that Salesforce gives to all but the first of
/// several refreshes at once.
const IN_PROGRESS: &str = "token request is already being processed";
/// A server that wants a client certificate: as an alert, or on a page.
const CERTIFICATE_DEMANDED: (&str, &str) = (
    "the server demands a client certificate",
    "sf-refresh cannot present one: use an endpoint that does not ask for it",
);

/// A whole answer: its status, the headers that matter, its body.
struct Answer {
    status: u16,
    retry_after: Option<Duration>,
    location: Option<String>,
    body: Vec<u8>,
}

/// What an answer means; secrets in what the server says are not told.
fn read_answer(answer: &Answer, secrets: &Secrets) -> Reply {
    let body = answer.body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&answer.body);
    // A grant must not be lost to the name of its user: what is not UTF-8, or half a surrogate pair
    // (RFC 8259 §8.2), becomes some other character.
    let text = String::from_utf8_lossy(body);
    let json: Option<Value> = serde_json::from_str(&text)
        .or_else(|_| serde_json::from_str(&text.replace(r"\ud", r"\uff").replace(r"\uD", r"\uff")))
        .ok();
    let success = matches!(answer.status, 200..=299);
    let json = match json {
        Some(Value::Object(members)) if success && is_grant(&members) => {
            return Reply::Granted(members);
        }
        json => json,
    };
    let code = json.as_ref().and_then(|json| json.get("error")).and_then(Value::as_str);
    let said = code.map(|code| server_text(code, json.as_ref(), secrets));
    match (answer.status, code, said) {
        (300..=399, ..) => Reply::Failed(redirected(answer, secrets)),
        (408 | 420 | 429 | 500..=599, _, said) => busy(answer, said.as_deref()),
        (_, Some(code), Some(said)) => refused(code, &said),
        _ if success && is_cut_short(body) => Reply::Failed(lost("the reply ends in the middle")),
        _ => Reply::Failed(not_a_reply(answer.status, body, json.as_ref())),
    }
}

/// Whether the members hold a usable access token (RFC 6749 appendix A.12).
fn is_grant(members: &Map<String, Value>) -> bool {
    members.get("access_token").and_then(Value::as_str).is_some_and(|t| check_token(t).is_ok())
}

/// Whether a body is the beginning of a JSON object.
fn is_cut_short(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
        && serde_json::from_slice::<Value>(body).is_err_and(|e| e.is_eof())
}

/// A redirect, which would take the refresh token to another place: only its host is told.
fn redirected(answer: &Answer, secrets: &Secrets) -> Error {
    let uri = answer.location.as_deref().and_then(|url| url.parse::<Uri>().ok());
    let host = uri.as_ref().and_then(Uri::host);
    let to = host.map_or_else(String::new, |host| format!(" to {}", secrets.mask(host)));
    let message = format!("redirect refused: HTTP {}{to}", answer.status);
    let hint = "give the endpoint itself with --endpoint: for Salesforce your My Domain host";
    Error::new(Exit::Setup, message, hint)
}

/// A status that says 'later'. 429 and 503 say as well that nothing was processed.
fn busy(answer: &Answer, said: Option<&str>) -> Reply {
    let said = said.map_or_else(String::new, |said| format!(": {said}"));
    let message = format!("the server is busy or failing: HTTP {}{said}", answer.status);
    let error = Error::new(Exit::Temporary, message, "run it again later");
    match answer.status {
        429 | 503 => Reply::Later(error, answer.retry_after),
        _ => Reply::Failed(error),
    }
}

/// An `error` of the server, by its code.
fn refused(code: &str, said: &str) -> Reply {
    if code == "invalid_grant" && said.to_lowercase().contains(IN_PROGRESS) {
        let message = format!("another refresh of this grant is under way: {said}");
        return Reply::Later(Error::new(Exit::Temporary, message, "run it again later"), None);
    }
    let known = OAUTH_ERRORS.into_iter().find(|(known, ..)| *known == code);
    let (_, exit, hint) = known.unwrap_or((code, Exit::Setup, ""));
    let what = if exit == Exit::Temporary { "the server is busy" } else { "refused" };
    Reply::Failed(Error::new(exit, format!("{what}: {said}"), hint))
}

/// A reply that is neither a grant nor an OAuth2 error.
fn not_a_reply(status: u16, body: &[u8], json: Option<&Value>) -> Error {
    let start = body.trim_ascii_start();
    if status == 400 && start.starts_with(b"<") && contains(body, b"SSL certificate") {
        let (what, hint) = CERTIFICATE_DEMANDED;
        return Error::new(Exit::Setup, format!("HTTP {status}: {what}"), hint);
    }
    let hint = match status {
        404 => "check --endpoint: there is no token endpoint at that path",
        _ => "check --endpoint, and that no captive portal or proxy answers in its place",
    };
    let what = what_came(start, json);
    Error::new(Exit::Setup, format!("HTTP {status}: not a token reply, but {what}"), hint)
}

/// What a body is, in words, and none of its own.
fn what_came(body: &[u8], json: Option<&Value>) -> String {
    let what = match json {
        Some(Value::Object(members)) if members.contains_key("access_token") => {
            "JSON with an access_token that cannot be used"
        }
        Some(Value::Object(_)) => "JSON without an access_token",
        Some(other) => return format!("{} in JSON", kind_of(other)),
        None if body.is_empty() => "an empty body",
        None if body.starts_with(b"<") => {
            "a web page, not JSON: a captive portal or the wrong endpoint?"
        }
        None if contains(body, b"access_token=") => "form-encoded text, not JSON",
        None => "something that is not JSON",
    };
    what.to_owned()
}

/// Whether the body holds these bytes.
fn contains(body: &[u8], needle: &[u8]) -> bool {
    body.windows(needle.len()).any(|window| window == needle)
}

/// The request went out, and no whole answer came back.
fn lost(what: &str) -> Error {
    let message = format!("{what}: the server may have used the refresh token");
    Error::new(Exit::Temporary, message, "run it again; if it is then refused, log in again")
}

/// The server's error and its description (RFC 6749 §5.2), fit to be shown.
fn server_text(code: &str, json: Option<&Value>, secrets: &Secrets) -> String {
    let string = |name: &str| json.and_then(|json| json.get(name)).and_then(Value::as_str);
    let mut secrets = secrets.clone();
    for name in TOKENS {
        secrets.add(string(name).unwrap_or_default());
    }
    match string("error_description") {
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
        if !secret.is_empty() {
            self.0.extend([secret.to_owned(), secret.replace(' ', "+")]);
        }
        // The longest first: a secret may be part of another.
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// A server's text, decoded once, without control characters and secrets, at most [`MAX_SHOWN`]
    /// characters.
    fn mask(&self, text: &str) -> String {
        let hide = |text: &str| self.0.iter().fold(text.to_owned(), |t, s| t.replace(s, "***"));
        // Before as well as after: a secret may hold what looks encoded.
        let decoded = decode_entities(&decode_percent(&hide(text)));
        let printable: String = decoded.chars().filter(|c| is_printable(*c)).collect();
        let shown = hide(&printable);
        match shown.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => format!("{}…", &shown[..end]),
            None => shown,
        }
    }
}

/// A text with each `%XX` decoded (RFC 3986 §2.1).
fn decode_percent(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let decoded = match rest {
            [b'%', high, low, ..] => digit(*high).zip(digit(*low)).map(|(h, l)| h * 16 + l),
            _ => None,
        };
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A text with the HTML entities decoded that encoders of error messages write.
fn decode_entities(text: &str) -> String {
    #[rustfmt::skip]
    const ENTITIES: [(&str, &str); 8] = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&#x27;", "'"),
        ("&#43;", "+"),
        ("&amp;", "&"),
    ];
    ENTITIES.iter().fold(text.to_owned(), |text, (entity, c)| text.replace(entity, c))
}

/// Whether a character neither controls the terminal nor turns its text round (Unicode's bidi).
fn is_printable(c: char) -> bool {
    let is_bidi = matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !is_bidi && !matches!(c, '\u{2028}' | '\u{2029}')
}

// ---- Network: from a request to its reply. Touches no file. ----

/// One POST, and what came of it. What may be a grant goes to `keep` as soon as it is in.
fn post(run: &Run, request: &Request, keep: &dyn Fn(&[u8])) -> Reply {
    run.step(&format!("POST {}", shown(&request.endpoint)));
    // Made before the POST: between a grant and its save each system call counts, and to allocate
    // can be one. Nothing may be printed there either.
    let buffer = Vec::with_capacity(RESERVE);
    let left = run.left();
    let proxy = run.options.proxy_for(&request.endpoint);
    let mut form = Form { rest: request.body.expose().as_bytes(), sent: false };
    let mut post = run
        .agent
        .post(&request.endpoint)
        .header("Accept", "application/json")
        // A coded reply could not be read, and its grant would be lost.
        .header("Accept-Encoding", "identity")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .header("Content-Length", request.body.expose().len().to_string());
    if let Some(authorization) = &request.authorization {
        post = post.header("Authorization", authorization.expose());
    }
    let response = post
        .config()
        .proxy(proxy.cloned())
        .timeout_global(Some(left))
        .timeout_connect(Some(left.min(CONNECT_TIMEOUT)))
        .build()
        .send(SendBody::from_reader(&mut form));
    match response {
        Ok(response) => receive(response, buffer, keep, &request.secrets),
        Err(error) if form.sent => Reply::Failed(lost_after_sending(&error)),
        Err(error) => never_sent(&error, request.endpoint.host().unwrap_or_default(), proxy),
    }
}

/// Reads a response to its end, or to where it breaks off. As soon as it may be a whole grant it goes
/// to `keep`: ureq's work at the end of a body would widen the window for a kill.
fn receive(
    response: ureq::http::Response<ureq::Body>,
    mut body: Vec<u8>,
    keep: &dyn Fn(&[u8]),
    secrets: &Secrets,
) -> Reply {
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
    let answer = Answer {
        status: head.status.as_u16(),
        retry_after: retry_after(&head.headers),
        location: header(&head.headers, "location").map(str::to_owned),
        body,
    };
    // A grant that is whole counts although the connection broke off after it.
    match (read_answer(&answer, secrets), cut) {
        (granted @ Reply::Granted(_), _) | (granted, None) => granted,
        (_, Some(error)) => Reply::Failed(lost_after_sending(&error)),
    }
}

/// A header of the reply, if it is ASCII.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// How long to wait, in seconds (RFC 9110 §10.2.3); a date counts as nothing said.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = header(headers, "retry-after")?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // More than fits is more than any time-out.
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// One refresh request (RFC 6749 §6), ready to be sent.
struct Request {
    endpoint: Uri,
    authorization: Option<Secret>,
    body: Secret,
    masked_body: String,
    secrets: Secrets,
}

impl Request {
    /// The request for one token. Errors: none but for a default endpoint that is no URL.
    fn new(options: &Options, token: &Token) -> Result<Self, Error> {
        let mut secrets = Secrets::default();
        for name in TOKENS {
            secrets.add(token.string(name).unwrap_or_default());
        }
        let secret = options.client_secret.as_ref().map(Secret::expose);
        secrets.add(secret.unwrap_or_default());
        let mut fields = vec![("grant_type", "refresh_token", false)];
        let mut authorization = None;
        match secret {
            Some(secret) if options.basic => {
                // Each is form-encoded before the two are joined (RFC 6749 §2.3.1).
                let pair = format!("{}:{}", form_encoded(&options.client_id), form_encoded(secret));
                let encoded = base64(pair.as_bytes());
                secrets.add(&encoded);
                authorization = Some(Secret(format!("Basic {encoded}")));
            }
            _ => fields.push(("client_id", &options.client_id, false)),
        }
        if let (Some(secret), None) = (secret, &authorization) {
            fields.push(("client_secret", secret, true));
        }
        fields.push(("refresh_token", token.refresh_token(), true));
        for FormField { name, value, .. } in &options.data {
            // A short value is a flag such as a scope; to mask it would garble what a server says.
            if value.expose().len() >= 8 {
                secrets.add(value.expose());
            }
            fields.push((name, value.expose(), true));
        }
        Ok(Self {
            endpoint: options.endpoint_for(token)?,
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
            shown(&self.endpoint),
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

/// Looks names up in a thread of its own, for the system's resolver knows no time-out. ureq's own
/// one does so even for addresses, and panics if no thread can be had.
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
    answer.map_err(|cause| ureq::Error::Other(describe(&cause).into()))
}

/// The HTTP client, with the roots that it trusts: Mozilla's if none are given.
fn new_agent(roots: Option<Vec<Certificate<'static>>>) -> Agent {
    let roots = roots.map_or(RootCerts::WebPki, |roots| RootCerts::new_with_certs(&roots));
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
    Agent::with_parts(config, DefaultConnector::default(), NameResolver)
}

/// What rustls says when it refuses a certificate: how its text starts, what it means, a hint.
#[rustfmt::skip]
const CERTIFICATE_FAILURES: [(&str, &str, &str); 8] = [
    ("UnknownIssuer", "it is signed by a CA that is not trusted", "--ca-cert FILE (or SSL_CERT_FILE) with the PEM root that signed it"),
    ("certificate expired", "it has expired", CLOCK_HINT),
    ("Expired", "it has expired", CLOCK_HINT),
    ("certificate not valid yet", "it is not valid yet", CLOCK_HINT),
    ("NotValidYet", "it is not valid yet", CLOCK_HINT),
    ("certificate not valid for name", "it is for another host", ENDPOINT_HINT),
    ("NotValidForName", "it is for another host", ENDPOINT_HINT),
    ("CaUsedAsEndEntity", "it is a CA's own and not a server's", "--ca-cert does not help: fix the server"),
];
/// The hint if the endpoint is the likely cause.
const ENDPOINT_HINT: &str = "check --endpoint";
/// The hint if the clock may be the cause.
const CLOCK_HINT: &str = "this machine's clock says that it is {year}: is that right?";
/// The hint if the network is the likely cause.
const NETWORK_HINT: &str =
    "check the network, the host's name and the proxy; or run it again later";

/// A failure before the refresh token was sent to `host`.
fn never_sent(error: &ureq::Error, host: &str, proxy: Option<&Proxy>) -> Reply {
    use ureq::Error as E;
    let to = match proxy {
        Some(proxy) => format!("{host} through the proxy {}:{}", proxy.host(), proxy.port()),
        None => host.to_owned(),
    };
    let later = |what: String, hint: &str| {
        Reply::Later(Error::new(Exit::Temporary, format!("{what}; nothing was sent"), hint), None)
    };
    let wrong = |what: String, hint: &str| {
        Reply::Failed(Error::new(Exit::Setup, format!("{what}; nothing was sent"), hint))
    };
    match error {
        E::Other(cause) => later(format!("cannot find {to}: {cause}"), NETWORK_HINT),
        E::HostNotFound => later(format!("cannot find {to}"), NETWORK_HINT),
        E::Timeout(ureq::Timeout::Resolve) => {
            later(format!("no answer from the name server about {to}"), NETWORK_HINT)
        }
        E::Timeout(_) => later(format!("no connection to {to} in time"), NETWORK_HINT),
        E::ConnectProxyFailed(reason) => match proxy_refusal(reason) {
            (Exit::Temporary, what, hint) => later(format!("{to}: {what}"), hint),
            (_, what, hint) => wrong(format!("{to}: {what}"), hint),
        },
        E::Io(cause) => match tls_failure(cause) {
            Some((what, hint)) => wrong(format!("{to}: {what}"), &hint),
            None => later(format!("cannot connect to {to}: {}", describe(cause)), NETWORK_HINT),
        },
        E::Protocol(_) => wrong(format!("{to}: the proxy does not speak HTTP"), "check the proxy"),
        _ => wrong(format!("cannot use {to} as an endpoint"), ENDPOINT_HINT),
    }
}

/// What a proxy answered to CONNECT; ureq gives it as `proxy server responded 407/407`.
fn proxy_refusal(reason: &str) -> (Exit, String, &'static str) {
    let status = reason.rsplit('/').next().and_then(|status| status.parse::<u16>().ok());
    let (exit, what, hint) = match status {
        // tinyproxy answers a wrong password with 401.
        Some(401 | 407) => (
            Exit::Setup,
            "the proxy wants other credentials",
            "put USER:PASSWORD@ before the host in HTTPS_PROXY",
        ),
        Some(500..) => (Exit::Temporary, "the proxy got no connection", "run it again later"),
        Some(_) => {
            let hint = "have the proxy allow the host, or name the host in NO_PROXY";
            (Exit::Setup, "the proxy refused", hint)
        }
        None => (Exit::Temporary, "the proxy did not answer", "check the proxy"),
    };
    let status = status.map_or_else(String::new, |status| format!(": HTTP {status}"));
    (exit, format!("{what}{status}"), hint)
}

/// What rustls said, in words, with a hint; ureq passes it on as an I/O error, told by its text.
/// Nothing if the network cut the handshake short.
fn tls_failure(cause: &io::Error) -> Option<(String, String)> {
    let text = cause.to_string();
    if let Some(reason) = text.strip_prefix("invalid peer certificate: ") {
        let known = CERTIFICATE_FAILURES.into_iter().find(|(start, ..)| reason.starts_with(start));
        let (_, what, hint) = known.unwrap_or(("", reason, ""));
        // The average length of a year, in milliseconds.
        let year = 1970 + millis_since_1970(SystemTime::now()) / 31_556_952_000;
        let hint = hint.replace("{year}", &year.to_string());
        return Some((format!("certificate refused: {what}"), hint));
    }
    let (what, hint) = if demands_certificate(cause) {
        (CERTIFICATE_DEMANDED.0.to_owned(), CERTIFICATE_DEMANDED.1)
    } else if let Some(alert) = text.strip_prefix("received fatal alert: ") {
        let hint = "the server accepts none of TLS 1.2 and 1.3 as sf-refresh speaks them";
        (format!("the server refused the TLS handshake ({alert})"), hint)
    } else if cause.kind() != ErrorKind::InvalidData {
        return None;
    } else if ["InvalidContentType", "InvalidMessage", "corrupt"].iter().any(|t| text.contains(t)) {
        ("it does not speak TLS".to_owned(), "check the port of --endpoint")
    } else {
        (format!("TLS failed: {text}"), ENDPOINT_HINT)
    };
    Some((what, hint.to_owned()))
}

/// Whether the server's TLS alert asks for a client certificate.
fn demands_certificate(cause: &io::Error) -> bool {
    let text = cause.to_string();
    let alert = text.strip_prefix("received fatal alert: ").unwrap_or_default();
    matches!(alert, "CertificateRequired" | "BadCertificate")
}

/// A failure after the refresh token was sent.
fn lost_after_sending(error: &ureq::Error) -> Error {
    use ureq::Error as E;
    let wrong = |what: &str, hint: &str| Error::new(Exit::Setup, what, hint);
    match error {
        E::Timeout(_) => lost("no answer in time"),
        // With TLS 1.3 a server looks for the client's certificate only after the handshake.
        E::Io(cause) if demands_certificate(cause) => {
            wrong(CERTIFICATE_DEMANDED.0, CERTIFICATE_DEMANDED.1)
        }
        E::Io(cause) => lost(&format!("the connection broke off: {}", describe(cause))),
        E::BodyExceedsLimit(_) => wrong("the reply is longer than 1 MiB", ENDPOINT_HINT),
        E::Protocol(_) | E::Http(_) | E::LargeResponseHeader(..) => {
            wrong("the answer is not HTTP", ENDPOINT_HINT)
        }
        _ => lost("the answer could not be read"),
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
    /// another run holds the lock, the access token is noted.
    fn lock(path: &Path, run: &mut Run) -> Result<Self, Error> {
        let may_make = run.options.seed().is_some();
        loop {
            let mut file = Self::open(path, may_make)?;
            let waited = file.wait_for_lock(run)?;
            // A rename by the former holder leaves this handle on a file that has no name.
            let is_current = fs::metadata(path).is_ok_and(|now| same_file(&now, &file.metadata));
            if is_current {
                file.metadata = file.handle.metadata().map_err(|e| cannot("examine", &e))?;
                run.step("locked");
                return Ok(file);
            }
            if !waited {
                file.note_access_token(run);
            }
            if run.left().is_zero() {
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
    fn wait_for_lock(&self, run: &mut Run) -> Result<bool, Error> {
        let mut waited = false;
        loop {
            match self.handle.try_lock() {
                Ok(()) => return Ok(waited),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Interrupted => continue,
                Err(TryLockError::Error(e)) => {
                    let hint = "put the file where files can be locked: NFS needs its lock service";
                    return Err(Error::new(
                        Exit::File,
                        format!("cannot lock: {}", describe(&e)),
                        hint,
                    ));
                }
            }
            if !waited {
                run.step("waiting for another run that holds the lock");
            }
            waited = true;
            self.note_access_token(run);
            if run.left().is_zero() {
                return Err(lock_held());
            }
            thread::sleep(LOCK_POLL.min(run.left()));
        }
    }

    /// Looks at the token while another run is at work on it.
    fn note_access_token(&self, run: &mut Run) {
        if let Some(token) = self.read().ok().and_then(|bytes| Token::parse(&bytes, None).ok()) {
            run.note(&token);
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
    fn load(&mut self, run: &Run) -> Result<Token, Error> {
        let rehearsal = run.options.dry_run;
        let bytes = self.read().map_err(|e| cannot("read", &e))?;
        let token = Token::parse(&bytes, run.options.seed());
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
            run.step("finished an interrupted save");
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
            Err(Error::new(Exit::File, format!("the journal beside it {what}"), &hint))
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
            Err(e) => in_the_way(&format!("cannot be read: {}", describe(&e))),
        }
    }

    /// Puts the journal of an earlier run in the place of the file, and keeps the lock.
    fn finish_interrupted_save(&mut self, journal: File, bytes: &[u8]) -> Result<(), Error> {
        let path = journal_path(&self.path);
        let failed = |e: io::Error| {
            let hint = format!("the newest grant is in {}", path.display());
            Error::new(
                Exit::File,
                format!("cannot finish an interrupted save: {}", describe(&e)),
                &hint,
            )
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
    fn prepare_save(&self, length: usize, run: &Run) -> Result<Save<'_>, Error> {
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
                    let message = format!("cannot make the journal: {}", describe(&e));
                    return Err(Error::new(Exit::File, message, hint));
                }
            }
        }
        if save.journal.is_none() {
            save.reserved = true;
            pad(&self.handle, self.metadata.len(), room).map_err(|e| {
                Error::new(Exit::File, format!("cannot reserve room: {}", describe(&e)), hint)
            })?;
        }
        run.step(if save.reserved { "ready to save in place" } else { "journal made" });
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
        return Err(Error::new(Exit::File, what.to_owned(), "name the token file itself"));
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

/// What happened, on stderr.
fn say(path: Option<&Path>, text: &str) {
    let file = path.map_or_else(String::new, |path| format!("{}: ", path.display()));
    say_line(&format!("sf-refresh: {file}{text}"));
}

/// One line on stderr, whatever its text holds; there is nobody to tell if that fails.
fn say_line(text: &str) {
    let mut line: String = text.chars().filter(|c| is_printable(*c)).collect();
    line.push('\n');
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Prints what `--help` and `--version` ask for.
fn print_text(text: &str) -> Result<(), Error> {
    match print(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::new(Exit::Undelivered, cannot_print(&e), ""))
        }
        _ => Ok(()),
    }
}

/// Prints the result of a file that is saved: a reader that has gone away needs it no more.
fn print_result(output: Output, token: &Token) -> Result<(), Error> {
    match print(&token.render(output)) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            let message = format!("{}; the token file is saved", cannot_print(&e));
            Err(Error::new(Exit::Undelivered, message, "read the access token from the token file"))
        }
        _ => Ok(()),
    }
}

/// Hands over a document that could not be saved: on stdout, else in a file.
fn deliver_unsaved(token: &Token, failure: &NotSaved) -> Error {
    let message = format!("granted, but cannot save: {}", describe(&failure.cause));
    let printed = print(&token.to_json());
    match (&failure.journal, printed) {
        (Some(journal), printed) => {
            let stdout = if printed.is_ok() { " and on stdout" } else { "" };
            let message = format!("{message}; it is in {}{stdout}", journal.display());
            Error::new(Exit::Undelivered, message, "the next run finishes the save")
        }
        (None, Ok(())) => {
            let hint = "keep what is on stdout: it is the only copy of the new grant";
            Error::new(Exit::Undelivered, format!("{message}; the new document is on stdout"), hint)
        }
        (None, Err(e)) => write_rescue_file(token, &format!("{message}; {}", cannot_print(&e))),
    }
}

/// Refuses to print an only copy to the null device, which is also if Rust's runtime leads a
/// stdout that was closed.
fn check_stdout() -> Result<(), Error> {
    const NULL_DEVICE: u64 = 0x103; // major 1, minor 3 (Linux, Documentation/admin-guide/devices.txt)
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    match stdout.and_then(|stdout| stdout.metadata()) {
        Ok(metadata) if metadata.rdev() == NULL_DEVICE => {
            let message = "stdout is closed or /dev/null: the new document would be lost";
            Err(Error::new(Exit::Usage, message.to_owned(), "lead stdout into a file or a pipe"))
        }
        _ => Ok(()),
    }
}

/// Prints a document whose only copy is in memory; if stdout fails, it goes into a file.
fn print_only_copy(token: &Token) -> Result<(), Error> {
    let printed = print(&token.to_json());
    printed.map_err(|e| write_rescue_file(token, &format!("granted, but {}", cannot_print(&e))))
}

/// The last resort: a new file that only its owner can read, here or in the folder for such.
fn write_rescue_file(token: &Token, message: &str) -> Error {
    let name = format!("sf-refresh-rescued-{}.json", std::process::id());
    for folder in [PathBuf::from("."), std::env::temp_dir()] {
        let path = folder.join(&name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        if file.and_then(|file| rewrite(&file, &token.to_json())).is_ok() {
            let message = format!("{message}; it is in {}", path.display());
            return Error::new(
                Exit::Undelivered,
                message,
                "put it in the place of the old token document",
            );
        }
    }
    Error::new(Exit::Undelivered, format!("{message}, nor save it elsewhere"), "log in again")
}

/// Writes to stdout, unbuffered, so that what went wrong is known here.
fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// The words for a failure of stdout.
fn cannot_print(cause: &io::Error) -> String {
    format!("cannot write to stdout: {}", describe(cause))
}

/// An I/O error in words, in lower case and without its number.
fn describe(cause: &io::Error) -> String {
    let text = cause.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// A failure of a step on the token file, before anything was sent.
fn cannot(what: &str, cause: &io::Error) -> Error {
    Error::new(Exit::File, format!("cannot {what} it: {}", describe(cause)), "")
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
    Error::new(Exit::File, format!("cannot open: {}", describe(cause)), hint)
}

/// The failure of a run that waited for the lock until its time was over.
fn lock_held() -> Error {
    let hint = "run it again later, or with a longer --timeout";
    Error::new(Exit::Temporary, "another run holds the lock; nothing was sent".to_owned(), hint)
}
