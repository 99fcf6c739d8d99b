//! `sf-refresh` renews the OAuth2 access token in a JSON file (RFC 6749 §6).
//!
//! The flow, for each FILE:
//!
//! 1. open and lock it; take over what another run has just renewed; finish an interrupted save
//! 2. parse it, and see whether the token is young enough to leave alone
//! 3. connect; hold back stops; make the journal, so that the save is sure to work; only then send
//!    the refresh token
//! 4. read the reply, keep it in the journal as it came, merge it into the JSON
//! 5. write the journal, fsync, swap it with the file, fsync the folder
//! 6. print the result
//!
//! What holds at every step:
//!
//! - Once the server has answered, our copy of the grant may be the only one. It is written to
//!   the journal, if there is one, before anything else is done. An only copy is never deleted.
//! - What another program has put into the file is never overwritten, if a look can tell.
//! - A refresh token is sent again only if it was not processed, or its answer was lost.
//! - Secrets go to the token endpoint, into the token file, its journal or a rescue file, and to
//!   stdout, and nowhere else.
//!
//! Words: the *grant* is what the server gives; the *journal*, `.NAME.sf-refresh` beside the file,
//! holds it until it is saved; *stops* are SIGHUP, SIGINT and SIGTERM; a *filter* runs from stdin
//! to stdout; the *seed* is the first refresh token, from an sfdx auth URL.
//!
//! Exit status: see [`HELP`]; 70 is a bug.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{mem, sync::mpsc, thread};

use serde_json::{Map, Value};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Instant as UreqInstant;
use ureq::unversioned::transport::{ConnectProxyConnector, ConnectionDetails, Connector};
use ureq::unversioned::transport::{NextTimeout, RustlsConnector, TcpConnector, Transport};
use ureq::{Agent, Proxy, SendBody};

/// What `--help` prints; README and man page are held to it by tests.
const HELP: &str = "\
Usage: sf-refresh [OPTIONS] FILE...
       sf-refresh [OPTIONS] -

Renew the OAuth2 access token in a JSON file, in place, and print it.
With - the JSON comes from stdin, and the renewed JSON goes to stdout.

Options:
  -i, --client-id ID            the app's consumer key (or SF_CLIENT_ID)
  -s, --client-secret-file FILE the file that holds the app's secret
                                (or the secret in SF_CLIENT_SECRET)
      --basic                   send id and secret in an Authorization header
  -g, --grant-type TYPE         refresh_token (default); client_credentials and
                                others can make the file, with --data for fields
  -d, --data NAME=VALUE         one more form field; NAME@FILE takes the value
                                from a file; repeatable
  -e, --endpoint URL            the token endpoint (or SF_TOKEN_ENDPOINT);
                                default: that of login. or test.salesforce.com
      --sfdx-url-file FILE      take client id, secret, endpoint and first
                                refresh token from an sfdx auth URL in any
                                text; - is stdin (or the URL in SFDX_AUTH_URL)
      --ca-cert FILE            trust these PEM roots in place of the bundled
                                ones (or SSL_CERT_FILE)
      --timeout SECONDS         for lock, name and connection, and as long
                                again for the answer; default 30
      --retry N                 tries after a failure in which nothing was
                                processed, or an answer was lost; default 2
      --if-older-than AGE       send nothing while the token is younger:
                                90s, 45m, 2h, 7d
  -o, --output FORMAT           what stdout gets: token (default), header, env,
                                json, none
  -n, --dry-run                 check everything, show the request with its
                                secrets masked, send and change nothing
  -q, --quiet                   print only errors on stderr
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
  128+N  stopped by signal N with files still to do
";

/// What `--version` prints.
const VERSION: &str = concat!("sf-refresh ", env!("CARGO_PKG_VERSION"), "\n");
/// The name of a JSON member, of a form field, and of the default grant type.
const REFRESH_TOKEN: &str = "refresh_token";
/// The members that hold tokens. A reply's replace the old ones, of the first two only usable ones.
const TOKENS: [&str; 3] = ["access_token", REFRESH_TOKEN, "id_token"];

/// The token endpoints of Salesforce.
const PRODUCTION: &str = "https://login.salesforce.com/services/oauth2/token";
const SANDBOX: &str = "https://test.salesforce.com/services/oauth2/token";
/// The largest token file, secret file and reply, in bytes.
const MAX_DOCUMENT: u64 = 1024 * 1024;
/// Room that a reply may need beyond the old document, in bytes.
const RESERVE: usize = 16 * 1024;
/// How long one try may take to get a connection ready, if the time-out leaves more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an address is waited for before the next one gets its turn.
const PATIENCE: Duration = Duration::from_millis(250);
/// How much newer than the file its journal is when it takes the file's name.
const JUST_AFTER: Duration = Duration::from_millis(1);
/// How often a lock that another run holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Ends the process: with the status of the run, or with 70 after a bug.
fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        // The payload may quote data: only the place is told.
        let line = panic.location().map_or(0, |place| place.line());
        say(None, &format!("internal error at line {line}: please report it"));
        std::process::exit(70);
    }));
    run(lexopt::Parser::from_env()).unwrap_or_else(|error| error.report(None))
}

/// Does what the command line asks for; the status is that of the first file that failed.
fn run(arguments: lexopt::Parser) -> Result<ExitCode, Error> {
    let mut options = parse(arguments)?;
    if let Some(text) = options.print {
        return print_result(text.as_bytes(), "").map(|()| ExitCode::SUCCESS);
    }
    for field in options.data.iter().filter(|field| field.is_exposed && !options.quiet) {
        say(None, &format!("everybody on this machine can read the {} in --data", field.name));
        say_line(&format!("hint: --data {}@FILE takes it from a file", field.name));
    }
    let agent = new_agent(&mut options);
    let mut status = None;
    for path in &options.files {
        obey_stop()?;
        let mut run = Run {
            options: &options,
            agent: &agent,
            path,
            is_filter: path.as_os_str() == "-",
            deadline: Instant::now() + options.timeout,
            retries: 0,
            first_access_token: None,
            answer_lost: false,
            uses_seed: false,
        };
        match renew(&mut run).map_err(|error| run.conclude(error)) {
            Err(error) if error.exit == Exit::Stopped => return Err(error),
            Err(error) => status = status.or(Some(error.report(Some(path)))),
            Ok(()) => {}
        }
    }
    Ok(status.unwrap_or(ExitCode::SUCCESS))
}

/// Renews one token and prints the result: the story of a file, or of the document on stdin.
fn renew(run: &mut Run) -> Result<(), Error> {
    let options = run.options;
    let makes_none = options.dry_run && !run.is_filter && !run.path.exists();
    if let Some(start) = options.initial_token().filter(|_| makes_none) {
        Request::new(options, &start).show();
        return Ok(());
    }
    let stdin = if run.is_filter { read_limited(io::stdin(), MAX_DOCUMENT) } else { Ok(vec![]) };
    let stdin = stdin.map_err(|e| file_error("read stdin", e, ""))?;
    loop {
        let locked = if run.is_filter { None } else { Some(TokenFile::lock(run)?) };
        let file = locked.as_ref();
        let document = file.map_or(&stdin, |file| &file.bytes);
        let modified = file.and_then(|file| file.metadata.modified().ok());
        let token = run.token_to_renew(Token::parse(document, options)?);
        if let Some(reason) = run.reason_to_skip(&token, modified) {
            run.status(reason);
            return run.print_token(&token);
        }
        let request = Request::new(options, &token);
        if options.dry_run {
            request.show();
            return Ok(());
        }
        if run.is_filter {
            let what = |e| format!("{}: the new document would be lost", describe(&e));
            check_stdout().map_err(|e| usage(what(e), "redirect stdout to a file or a pipe"))?;
        }
        let mut save = file.map(|file| Save::new(file, token.to_json().len()));
        let reply = post(run, &request, save.as_mut());
        if let Reply::Granted(grant) = reply {
            run.answer_lost = false;
            return save_and_print(run, token, grant, save);
        }
        drop(save);
        match reply {
            Reply::Failed(error) if run.switch_token(file, &token, &error) => {
                run.step(&format!("{}, trying another refresh token", error.message));
                obey_stop()?;
            }
            reply => run.try_again(reply)?,
        }
    }
}

/// Saves what was granted, and prints the result. Without a file stdout gets the only copy.
fn save_and_print(
    run: &Run,
    mut token: Token,
    grant: Grant,
    mut save: Option<Save>,
) -> Result<(), Error> {
    let (status, members) = grant;
    let is_usable = members.get("access_token").is_some_and(is_token);
    let rotated = token.merge(members, SystemTime::now());
    let document = token.to_json();
    let saved = match &mut save {
        Some(save) => save.commit(document.as_bytes()),
        None => print(document.as_bytes()).map(|()| "printed").map_err(|cause| (Some(cause), None)),
    };
    let path = save.as_ref().map_or(run.path, |save| &save.file.path);
    let how = saved.map_err(|failure| deliver(document.as_bytes(), &failure, path))?;
    // A stop that comes from here on need not wait for whoever reads stdout.
    os::release_stops();
    let fate = if rotated { "rotated" } else { "stays" };
    run.step(&format!("HTTP {status}, the refresh token {fate}"));
    if !is_usable {
        let message = "the reply has no access_token that can be used; its refresh token is saved";
        let hint = "check --endpoint, --data and the app's scopes";
        return Err(Error::new(Exit::Setup, message, hint));
    }
    run.status(&format!("OAuth2 authorization granted! {how}"));
    if run.is_filter { Ok(()) } else { run.print_token(&token) }
}

// ---- Vocabulary: what the story is told in. ----

/// The members of a JSON object.
type Members = Map<String, Value>;
/// A grant: the HTTP status, and the members, among them a usable token (RFC 6749 §5.1).
type Grant = (u16, Members);

/// The exit status of a failure, as [`HELP`] tells it. The signal is added to `Stopped`.
#[derive(Clone, Copy, PartialEq)]
enum Exit {
    File = 1,
    Usage = 2,
    Refused = 3,
    Temporary = 4,
    Setup = 5,
    Undelivered = 6,
    Stopped = 128,
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
        let signal = if self.exit == Exit::Stopped { os::release_stops() } else { 0 };
        ExitCode::from(self.exit as u8 + u8::try_from(signal).unwrap_or_default())
    }
}

/// What came of a request.
enum Reply {
    Granted(Grant),
    /// Nothing was sent, for somebody else was at the file: look at it again.
    Changed(Error),
    /// Nothing was processed: try again, after so long if the server asked for a wait.
    Later(Error, Option<Duration>),
    /// It may have been processed, and the answer did not arrive.
    Lost(Error, Option<Duration>),
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

/// The work on one file, with what all files share: it says what happens, waits and counts.
struct Run<'a> {
    options: &'a Options,
    agent: &'a Agent,
    path: &'a Path,
    /// It is stdin and stdout that are worked on.
    is_filter: bool,
    /// The end of the time for lock, name and connection. The answer has as long again.
    deadline: Instant,
    /// The tries after the first request.
    retries: u32,
    /// The access token of the first look at it: once it is another, somebody has renewed it.
    first_access_token: Option<String>,
    /// A request may have been processed, and its answer did not arrive.
    answer_lost: bool,
    /// The file's refresh token was refused: that of the sfdx auth URL is tried.
    uses_seed: bool,
}

impl Run<'_> {
    /// The time that is left, zero when it is over.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Keeps the access token of the first look at the file.
    fn note(&mut self, token: &Token) {
        let access_token = || token.access_token().unwrap_or_default().to_owned();
        self.first_access_token.get_or_insert_with(access_token);
    }

    /// The token to renew: the file's, with the refresh token of the sfdx auth URL if that is used.
    fn token_to_renew(&mut self, mut token: Token) -> Token {
        self.note(&token);
        if let Some(seed) = self.options.seed.as_ref().filter(|_| self.uses_seed) {
            token.members.insert(REFRESH_TOKEN.to_owned(), seed.expose().into());
        }
        token
    }

    /// Goes over to another refresh token if one was refused, and file or seed have one by now.
    fn switch_token(&mut self, file: Option<&TokenFile>, refused: &Token, why: &Error) -> bool {
        let is_refused = why.exit == Exit::Refused && why.message.contains("invalid_grant");
        let is_other = |token: &str| is_refused && token != refused.refresh_token();
        let path = file.filter(|_| !self.uses_seed && self.path.is_file()).map(|file| &file.path);
        let current = path.and_then(|path| Token::parse(&fs::read(path).ok()?, self.options).ok());
        if current.is_some_and(|now| is_other(now.refresh_token())) {
            self.first_access_token = None;
            return !self.left().is_zero();
        }
        let has_seed = self.options.seed.as_ref().is_some_and(|seed| is_other(seed.expose()));
        has_seed && !mem::replace(&mut self.uses_seed, true)
    }

    /// Gets ready for another try; the error if none is left, or none can help.
    fn try_again(&mut self, reply: Reply) -> Result<(), Error> {
        let was_lost = matches!(reply, Reply::Lost(..));
        let (error, wait) = match reply {
            Reply::Failed(error) => return Err(error),
            Reply::Later(error, wait) => (error, wait),
            // At once, for many servers accept the previous token for a few seconds.
            Reply::Lost(error, wait) => {
                let is_first = !mem::replace(&mut self.answer_lost, true);
                (error, wait.or(is_first.then_some(Duration::ZERO)))
            }
            Reply::Changed(error) if self.left().is_zero() => return Err(error),
            Reply::Changed(_) | Reply::Granted(_) => return obey_stop(),
        };
        // Each wait is twice as long as the one before; the try that came at once had none.
        let waits = self.retries.saturating_sub(self.answer_lost.into());
        let pause = wait.unwrap_or(Duration::from_secs(2_u64.saturating_pow(waits)));
        // The immediate retry after a lost answer is part of the request, a wait is not.
        if !(was_lost && pause.is_zero()) {
            obey_stop()?;
        }
        if self.retries >= self.options.retry || pause >= self.left() {
            return Err(error);
        }
        self.retries += 1;
        let what = format!("{}, trying again", error.message);
        let tell = if was_lost { Self::status } else { Self::step };
        tell(self, &what);
        thread::sleep(pause);
        Ok(())
    }

    /// The error that ends the work on a file, true for all of its requests.
    fn conclude(&self, mut error: Error) -> Error {
        if self.answer_lost && !error.message.contains(MAY_BE_USED) {
            let message = error.message.trim_end_matches("; nothing was sent");
            error.message = format!("{message}; before that an answer was lost: {MAY_BE_USED}");
            // Status 1 would say that nothing was sent.
            error.exit = if error.exit == Exit::File { Exit::Temporary } else { error.exit };
        }
        error
    }

    /// Why no request is needed. A token without a time of issue is as old as its file.
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
            say(Some(self.path), text);
        }
    }

    /// Says one step on the way on stderr, if `--verbose`.
    fn step(&self, text: &str) {
        if self.options.verbose {
            say(Some(self.path), text);
        }
    }

    /// Prints the result of a file that is saved.
    fn print_token(&self, token: &Token) -> Result<(), Error> {
        let (_, render) = self.options.output.unwrap_or(FORMATS[0]);
        let text = if self.is_filter { token.to_json() } else { render(token) };
        let hint = if self.is_filter { "" } else { "the token file is saved: it has the token" };
        print_result(text.as_bytes(), hint)
    }
}

/// Lets stops end the process again; one that was noted meanwhile is the error.
fn obey_stop() -> Result<(), Error> {
    let signal = os::release_stops();
    let what = format!("stopped by signal {signal}: what was under way is done, the rest is left");
    let stopped = Error::new(Exit::Stopped, what, "run it again for the rest");
    if signal == 0 { Ok(()) } else { Err(stopped) }
}

// ---- Command line: arguments, environment and the files they name become options. ----

/// Reads a text that stands somewhere, which an error names, such as an option or a variable.
type Parse<T> = fn(&str, &str) -> Result<T, Error>;

/// What arguments and environment say, checked, with the files that they name read.
#[derive(Default)]
struct Options {
    /// The help or the version, to be printed in place of all else.
    print: Option<&'static str>,
    client_id: String,
    client_secret: Option<Secret>,
    basic: bool,
    grant_type: String,
    data: Vec<FormField>,
    endpoint: Option<Uri>,
    /// The first refresh token, of an sfdx auth URL, if refresh tokens are sent.
    seed: Option<Secret>,
    /// PEM roots in place of the bundled ones.
    roots: Option<Vec<Certificate<'static>>>,
    proxy: Option<Proxy>,
    no_proxy: String,
    timeout: Duration,
    retry: u32,
    if_older_than: Option<Duration>,
    output: Option<Format>,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    files: Vec<PathBuf>,
}

/// One more field of the request's form.
struct FormField {
    name: String,
    value: Secret,
    /// It is a secret, and everybody on the machine can read it in the process list.
    is_exposed: bool,
}

/// Parses the command line, and reads the files that it names. Errors: usage.
fn parse(mut arguments: lexopt::Parser) -> Result<Options, Error> {
    use lexopt::prelude::{Long, Short, Value};
    let from = &mut arguments;
    let plain: Parse<String> = |text, _| Ok(text.to_owned());
    let count: Parse<u32> = |it, name| checked(it.parse().ok(), it, name, "a whole number");
    let sfdx_file: Parse<_> = |path, name| parse_sfdx(read_option(path, name)?.expose(), name);
    let (mut client_id, mut sfdx) = (None, None);
    let mut options = Options {
        grant_type: REFRESH_TOKEN.to_owned(),
        timeout: Duration::from_secs(30),
        retry: 2,
        ..Options::default()
    };
    while let Some(argument) = from.next().map_err(|e| bad_argument(&e))? {
        match argument {
            Short('i') | Long("client-id") => client_id = Some(parsed(from, "--client-id", plain)?),
            Short('s') | Long("client-secret-file") => {
                options.client_secret = Some(parsed(from, "--client-secret-file", read_option)?);
            }
            Long("basic") => options.basic = true,
            Short('g') | Long("grant-type") => {
                options.grant_type = parsed(from, "--grant-type", plain)?;
            }
            Short('d') | Long("data") => options.data.push(parsed(from, "--data", parse_field)?),
            Short('e') | Long("endpoint") => {
                options.endpoint = Some(parsed(from, "--endpoint", parse_endpoint)?);
            }
            Long("sfdx-url-file") => sfdx = Some(parsed(from, "--sfdx-url-file", sfdx_file)?),
            Long("ca-cert") => options.roots = Some(parsed(from, "--ca-cert", read_roots)?),
            Long("timeout") => options.timeout = parsed(from, "--timeout", parse_timeout)?,
            Long("retry") => options.retry = parsed(from, "--retry", count)?,
            Long("if-older-than") => {
                options.if_older_than = Some(parsed(from, "--if-older-than", parse_age)?);
            }
            Short('o') | Long("output") => {
                options.output = Some(parsed(from, "--output", parse_format)?);
            }
            Short('n') | Long("dry-run") => options.dry_run = true,
            Short('q') | Long("quiet") => options.quiet = true,
            Short('v') | Long("verbose") => options.verbose = true,
            Short('h') | Long("help") => return Ok(Options { print: Some(HELP), ..options }),
            Short('V') | Long("version") => return Ok(Options { print: Some(VERSION), ..options }),
            Value(file) => options.files.push(file.into()),
            Short(_) | Long(_) => return Err(bad_argument(&argument.unexpected())),
        }
    }
    options.complete(client_id, sfdx)?;
    options.check().map(|()| options)
}

impl Options {
    /// Takes from the environment and from an sfdx auth URL what the command line left open.
    fn complete(&mut self, mut id: Option<String>, mut sfdx: Option<Self>) -> Result<(), Error> {
        fill_in(&mut id, "SF_CLIENT_ID", |it, _| Ok(it.to_owned()))?;
        fill_in(&mut self.client_secret, "SF_CLIENT_SECRET", |it, _| Ok(Secret(it.to_owned())))?;
        fill_in(&mut self.endpoint, "SF_TOKEN_ENDPOINT", parse_endpoint)?;
        fill_in(&mut sfdx, "SFDX_AUTH_URL", parse_sfdx)?;
        fill_in(&mut self.roots, "SSL_CERT_FILE", read_roots)?;
        for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            fill_in(&mut self.proxy, name, parse_proxy)?;
        }
        self.no_proxy = variable("no_proxy")?.or(variable("NO_PROXY")?).unwrap_or_default();
        let sfdx = sfdx.unwrap_or_default();
        self.client_id = id.as_deref().unwrap_or(&sfdx.client_id).trim().to_owned();
        // The secret of an sfdx URL belongs to that URL's client alone.
        let secret = sfdx.client_secret.filter(|_| sfdx.client_id == self.client_id);
        self.client_secret = self.client_secret.take().or(secret);
        self.endpoint = self.endpoint.take().or(sfdx.endpoint);
        // One URL is one login: for more files its token would be sent twice and kill the grant.
        self.seed = sfdx.seed.filter(|_| self.grant_type == REFRESH_TOKEN && self.files.len() == 1);
        Ok(())
    }

    /// Sees that nothing is missing, and that `-` stands alone.
    fn check(&self) -> Result<(), Error> {
        let filter = self.files.iter().any(|file| file.as_os_str() == "-");
        let is_not_json = self.output.is_some_and(|(name, _)| name != "json");
        let example = "sf-refresh -i CONSUMER_KEY token.json; sf-refresh --help says more";
        let only_copy = "the renewed document is the only copy of the grant: leave --output out";
        let client_id = "--client-id or SF_CLIENT_ID: Setup shows the app's consumer key";
        let secret = "--client-secret-file or SF_CLIENT_SECRET";
        let lacks_secret = self.basic && self.client_secret.is_none();
        first_problem(&[
            (self.files.is_empty(), "missing FILE", example),
            (filter && self.files.len() > 1, "'-' cannot be combined with other files", ""),
            (filter && is_not_json, "with '-' stdout gets the JSON alone", only_copy),
            (self.client_id.is_empty(), "missing client id", client_id),
            (lacks_secret, "--basic needs a client secret", secret),
        ])
        .map_err(|(message, hint)| usage(message, hint))
    }

    /// What a token file starts from that does not exist yet, if one may be made.
    fn initial_token(&self) -> Option<Token> {
        let seed = self.seed.as_ref().map(|seed| (REFRESH_TOKEN.to_owned(), seed.expose().into()));
        let may_start = seed.is_some() || self.grant_type != REFRESH_TOKEN;
        may_start.then(|| Token { members: seed.into_iter().collect() })
    }

    /// The endpoint, the first of: option, environment, sfdx URL, sandbox, production.
    fn endpoint_for(&self, token: &Token) -> Uri {
        // The file may choose between these two and name no host of its own.
        let id = format!("{}/", token.string("id").unwrap_or_default());
        let is_sandbox = id.starts_with("https://test.salesforce.com/");
        let default = if is_sandbox { SANDBOX } else { PRODUCTION };
        self.endpoint.clone().unwrap_or_else(|| Uri::from_static(default))
    }
}

/// A failure of the command line or the environment.
fn usage(message: impl Into<String>, hint: &str) -> Error {
    Error::new(Exit::Usage, message, hint)
}

/// The error is the first row whose problem is there: what it is, and the hint.
fn first_problem<'a>(problems: &[(bool, &'a str, &'a str)]) -> Result<(), (&'a str, &'a str)> {
    let found = problems.iter().find(|(is_there, ..)| *is_there);
    found.map_or(Ok(()), |(_, what, hint)| Err((*what, *hint)))
}

/// A variable that has to be UTF-8, less the newline at its end; an empty one counts as not set.
fn variable(name: &str) -> Result<Option<String>, Error> {
    let value = std::env::var_os(name).unwrap_or_default().into_string();
    let value = value.map_err(|_| usage(format!("{name} is not UTF-8"), ""))?;
    Ok(Some(value.trim_end_matches(['\r', '\n']).to_owned()).filter(|line| !line.is_empty()))
}

/// Takes from a variable what is missing still.
fn fill_in<T>(missing: &mut Option<T>, name: &str, parse: Parse<T>) -> Result<(), Error> {
    if missing.is_none() {
        *missing = variable(name)?.map(|text| parse(&text, name)).transpose()?;
    }
    Ok(())
}

/// The argument of the option just read, which has to be UTF-8 and not empty.
fn parsed<T>(from: &mut lexopt::Parser, option: &str, parse: Parse<T>) -> Result<T, Error> {
    let text = from.value().and_then(lexopt::ValueExt::string).map_err(|e| bad_argument(&e))?;
    let is_empty = text.trim().is_empty();
    if is_empty { Err(usage(format!("{option} is empty"), "")) } else { parse(&text, option) }
}

/// What the file of an option holds, less one newline at its end; `-` is stdin. Its name is not
/// told, for it may be the secret itself.
fn read_option(path: &str, option: &str) -> Result<Secret, Error> {
    let sf = "; sf org auth show-sfdx-auth-url --json prints that";
    let sf = if option == "--sfdx-url-file" { sf } else { "" };
    let hint = format!("{option} takes the name of a file, not what is in it{sf}");
    let bad = |what: &str| usage(format!("the file of {option} {what}"), &hint);
    let bytes = match path {
        "-" => read_limited(io::stdin().lock(), MAX_DOCUMENT),
        _ => File::open(path).and_then(|file| read_limited(file, MAX_DOCUMENT)),
    };
    let bytes = bytes.map_err(|e| bad(&format!("cannot be read: {}", describe(&e))))?;
    let text = String::from_utf8(bytes).map_err(|_| bad("is not UTF-8"))?;
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
    let line = text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(text);
    if line.is_empty() { Err(bad("is empty")) } else { Ok(Secret(line.to_owned())) }
}

/// The certificates of a PEM file, at least one.
fn read_roots(path: &str, origin: &str) -> Result<Vec<Certificate<'static>>, Error> {
    let hint = "a file of PEM certificates is needed";
    let bad = |what: &str| usage(format!("{origin}: {path}: {what}"), hint);
    // The bundles of distributions have a quarter of a MiB.
    let pem = File::open(path).and_then(|file| read_limited(file, 16 * MAX_DOCUMENT));
    let pem = pem.map_err(|cause| bad(&describe(&cause)))?;
    let items: Result<Vec<_>, _> = ureq::tls::parse_pem(&pem).collect();
    let certificate = |item| if let PemItem::Certificate(root) = item { Some(root) } else { None };
    let items = items.map_err(|_| bad("is not PEM"))?.into_iter();
    let roots: Vec<_> = items.filter_map(certificate).collect();
    if roots.is_empty() { Err(bad("holds no certificate")) } else { Ok(roots) }
}

/// What is wrong with an argument, without its value, which may be a secret.
fn bad_argument(error: &lexopt::Error) -> Error {
    use lexopt::Error::{MissingValue, UnexpectedOption, UnexpectedValue};
    let message = match error {
        UnexpectedOption(it) => {
            let longer = HELP.split_whitespace().find(|word| word.starts_with(it.as_str()));
            let hint = longer.map(|option| format!("did you mean '{option}'?"));
            let hint = hint.as_deref().unwrap_or("sf-refresh --help lists them");
            return usage(format!("unknown option '{it}'"), hint);
        }
        MissingValue { option: Some(it) } => format!("missing argument for option '{it}'"),
        UnexpectedValue { option, .. } => format!("option '{option}' takes no argument"),
        _ => "an argument is not UTF-8".to_owned(),
    };
    usage(message, "")
}

/// `NAME=VALUE` or `NAME@FILE`, told apart by which sign comes first; the file is read.
fn parse_field(argument: &str, option: &str) -> Result<FormField, Error> {
    const OURS: [&str; 4] = ["grant_type", "client_id", "client_secret", REFRESH_TOKEN];
    let Some(at) = argument.find(['=', '@']).filter(|at| *at > 0) else {
        return Err(usage("--data has no field name", "--data NAME=VALUE or --data NAME@FILE"));
    };
    let (name, value) = (&argument[..at], &argument[at + 1..]);
    if OURS.contains(&name) {
        return Err(usage(format!("--data may not set '{name}': it has an option of its own"), ""));
    }
    let is_value = argument[at..].starts_with('=');
    let value = if is_value { Secret(value.to_owned()) } else { read_option(value, option)? };
    let secrets = ["code", "code_verifier", "assertion", "client_assertion"];
    let is_exposed = is_value && secrets.contains(&name);
    Ok(FormField { name: name.to_owned(), value, is_exposed })
}

/// An option's value, if there is one; else the error that tells what it takes.
fn checked<T>(value: Option<T>, text: &str, option: &str, takes: &str) -> Result<T, Error> {
    value.ok_or_else(|| usage(format!("{option} cannot be '{text}'"), &format!("it takes {takes}")))
}

/// A time-out in seconds, with decimals if need be.
fn parse_timeout(text: &str, option: &str) -> Result<Duration, Error> {
    let parsed = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // A year is longer than any run, and small enough to be added to any clock.
    let timeout = parsed.filter(|it| !it.is_zero() && *it <= Duration::from_secs(366 * 86_400));
    checked(timeout, text, option, "a number of seconds above 0")
}

/// An age: a whole number and its unit.
fn parse_age(text: &str, option: &str) -> Result<Duration, Error> {
    const UNITS: [(char, u32); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let in_unit = |(unit, length)| whole_seconds(text.strip_suffix(unit)?)?.checked_mul(length);
    checked(UNITS.into_iter().find_map(in_unit), text, option, "an age such as 90s, 45m, 2h or 7d")
}

/// A format of [`FORMATS`] by its name.
fn parse_format(text: &str, option: &str) -> Result<Format, Error> {
    let named = FORMATS.iter().copied().find(|(name, _)| *name == text);
    let names: Vec<_> = FORMATS.iter().map(|(name, _)| *name).collect();
    checked(named, text, option, &names.join(", "))
}

/// A token endpoint: `https`, or `http` on loopback. What is refused here, ureq would take.
fn parse_endpoint(url: &str, origin: &str) -> Result<Uri, Error> {
    const PAGES: [&str; 2] = [".lightning.force.com", ".my.salesforce-setup.com"];
    let bad = |(what, hint): (&str, &str)| usage(format!("{origin}: {what}"), hint);
    let example = "https://MyDomain.my.salesforce.com/services/oauth2/token";
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some());
    let uri = uri.ok_or_else(|| bad(("not a whole URL", example)))?;
    let at = uri.authority().map_or_else(String::new, |at| at.as_str().to_ascii_lowercase());
    let host = PAGES.iter().fold(at.clone(), |at, page| at.replace(page, ".my.salesforce.com"));
    let right = format!("https://{host}/services/oauth2/token");
    let is_page = host != at || uri.path().ends_with("/services/oauth2/authorize");
    let name = uri.host().unwrap_or_default();
    // localhost stands for loopback addresses (RFC 6761 §6.3).
    let is_here =
        name.eq_ignore_ascii_case("localhost") || address(name).is_some_and(|ip| ip.is_loopback());
    let is_safe = is_https(&uri) || uri.scheme_str() == Some("http") && is_here;
    first_problem(&[
        (at.contains('@'), "user information in the URL", "--basic sends it"),
        (!has_valid_authority(&uri), "no valid host and port", example),
        (url.contains('#'), "an endpoint has no fragment (RFC 6749 §3.2)", ""),
        (!is_safe, "not https; plain http is for loopback alone", example),
        (is_page, "that is a page of the browser's, not the token endpoint", &right),
    ])
    .map_err(bad)?;
    let is_bare = uri.path() == "/" && uri.query().is_none();
    let lacks_path = is_bare && host.ends_with(".salesforce.com");
    Ok(if lacks_path { right.parse().unwrap_or(uri) } else { uri })
}

/// Whether the connection is made with TLS.
fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// The URL without its query, which may hold a secret.
fn shown(uri: &Uri) -> String {
    let url = uri.to_string();
    url.split_once('?').map_or_else(|| url.clone(), |(start, _)| format!("{start}?***"))
}

/// Whether the host is a DNS name in ASCII or an address, and the port is none or from 1 to 65535.
fn has_valid_authority(uri: &Uri) -> bool {
    let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else { return false };
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let is_host = !host.is_empty() && host.bytes().all(is_name) || address(host).is_some();
    let port = uri.port_u16().map_or_else(String::new, |port| format!(":{port}"));
    let server = authority.as_str().rsplit('@').next().unwrap_or_default();
    is_host && port != ":0" && server == format!("{host}{port}")
}

/// The address that a host is written as, brackets or not.
fn address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// A CONNECT proxy, `[SCHEME://][USER:PASSWORD@]HOST[:PORT]` as curl reads it (`http`, port 1080).
fn parse_proxy(url: &str, origin: &str) -> Result<Proxy, Error> {
    let hint = "http://HOST:PORT, or unset it for a direct connection";
    let bad = |what: &str| usage(format!("{origin}: {what}"), hint);
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let scheme = scheme.to_ascii_lowercase();
    let known = [("http", ":1080"), ("https", ":443")].into_iter().find(|it| it.0 == scheme);
    let (_, default_port) = known.ok_or_else(|| bad("not an http or https proxy"))?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let uri = format!("http://{authority}").parse::<Uri>().ok().filter(has_valid_authority);
    let has_port = uri.ok_or_else(|| bad("no valid host and port"))?.port().is_some();
    let port = if has_port { "" } else { default_port };
    Proxy::new(&format!("{scheme}://{authority}{port}")).map_err(|_| bad("not a URL"))
}

/// Whether `NO_PROXY` has the host, as curl reads it: names and what is below them, addresses, `*`.
fn bypasses_proxy(no_proxy: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let names_host = |entry: &str| {
        let name = entry.trim_matches('.').to_ascii_lowercase();
        let parent = host.strip_suffix(name.as_str()).filter(|_| !name.is_empty());
        let is_name = parent.is_some_and(|parent| parent.is_empty() || parent.ends_with('.'));
        address(&host).map_or(is_name, |ip| address(entry) == Some(ip))
    };
    no_proxy.trim() == "*" || no_proxy.split([',', ' ', '\t']).any(names_host)
}

/// What `sf` calls an sfdx auth URL, a login in one line: `force://[ID:SECRET:]REFRESH@HOST`, in
/// whatever text holds it, JSON or a table of `sf`, coloured or not. It is not shown in errors.
fn parse_sfdx(text: &str, origin: &str) -> Result<Options, Error> {
    let hint = "sf org auth show-sfdx-auth-url --json --target-org ALIAS prints one";
    let bad = |what: &str| usage(format!("{origin}: {what}"), hint);
    let no_url = || bad("no sfdx auth URL, force://ID:SECRET:REFRESH@HOST, or sf has hidden it");
    let (_, rest) = text.split_once("force://").ok_or_else(no_url)?;
    // A table in a narrow terminal goes on in a row without a first cell.
    let next_row = rest.lines().nth(1).and_then(|row| row.trim().strip_prefix('│'));
    if next_row.is_some_and(|row| row.trim_start().starts_with('│')) {
        return Err(bad("the table has cut the URL into rows"));
    }
    let is_end = |c: char| !c.is_ascii_graphic() || "\"'|,<>\\".contains(c);
    let url = rest.split(is_end).next().unwrap_or_default();
    let (grant, host) = url.rsplit_once('@').ok_or_else(no_url)?;
    let (client_id, client_secret, seed) = match grant.split(':').collect::<Vec<_>>()[..] {
        [.., ""] => return Err(no_url()),
        [refresh_token] | ["", refresh_token] => ("PlatformCLI", "", refresh_token),
        [id, secret, refresh_token] if !id.is_empty() => (id, secret, refresh_token),
        _ => return Err(no_url()),
    };
    let endpoint = format!("https://{}/services/oauth2/token", host.trim_end_matches('/'));
    Ok(Options {
        client_id: client_id.to_owned(),
        client_secret: Some(Secret(client_secret.to_owned())).filter(|s| !s.0.is_empty()),
        seed: Some(Secret(seed.to_owned())),
        endpoint: Some(parse_endpoint(&endpoint, origin)?),
        ..Options::default()
    })
}

// ---- Token document: the JSON of a token file. Pure: no I/O, and the clock is an argument. ----

/// A format of the result: its name, and what stdout gets.
type Format = (&'static str, fn(&Token) -> String);
/// What `--output` takes; the first is the default. A shell can read `env`.
const FORMATS: &[Format] = &[
    ("token", |it| format!("{}\n", it.access_token().unwrap_or_default())),
    ("header", |it| format!("Authorization: Bearer {}\n", it.access_token().unwrap_or_default())),
    ("env", |it| {
        let quoted = |word: Option<&str>| word.unwrap_or_default().replace('\'', r"'\''");
        let (token, url) = (quoted(it.access_token()), quoted(it.string("instance_url")));
        format!("SF_ACCESS_TOKEN='{token}'\nSF_ORG_INSTANCE_URL='{url}'\n")
    }),
    ("json", Token::to_json),
    ("none", |_| String::new()),
];

/// A JSON object with the tokens of a grant.
struct Token {
    members: Members,
}

impl Token {
    /// Reads a token document; an empty one is where the options say to start. Errors: file.
    fn parse(bytes: &[u8], options: &Options) -> Result<Self, Error> {
        let bad = |message: &str, hint: &str| Err(Error::new(Exit::File, message, hint));
        let restore = "restore it, or log in again; a shell's > empties a file before it is read";
        let needed = "the file has to hold the token reply: a JSON object with refresh_token";
        let spoilt = "restore the file, or log in again";
        let text = trimmed(bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes));
        if text.is_empty() {
            return options.initial_token().map_or_else(|| bad("is empty", restore), Ok);
        }
        if text.starts_with(b"\xFF\xFE") || text.starts_with(b"\xFE\xFF") {
            return bad("is UTF-16, not UTF-8", "save it as UTF-8; PowerShell's > writes UTF-16");
        }
        let members = match serde_json::from_slice(text) {
            Ok(Value::Object(members)) => members,
            Ok(_) => return bad("holds no JSON object", needed),
            Err(cause) => return bad(&format!("is not JSON: {cause}"), needed),
        };
        match members.get(REFRESH_TOKEN) {
            _ if options.grant_type != REFRESH_TOKEN => Ok(Self { members }),
            None => bad("has no refresh_token", Self::what_to_do(&members)),
            Some(value) if is_token(value) => Ok(Self { members }),
            Some(_) => bad("has a refresh_token that is no string of printable ASCII", spoilt),
        }
    }

    /// What to do about a document without a refresh token, by what it looks like.
    fn what_to_do(members: &Members) -> &'static str {
        let has = |names: &[&str]| names.iter().any(|name| members.contains_key(*name));
        let is_nested = members.values().any(|value| value.get(REFRESH_TOKEN).is_some());
        #[rustfmt::skip]
        let rows = [
            (is_nested, "it is nested in another member: move the tokens to the top level of the file"),
            (has(&["sfdxAuthUrl", "result", "orgId", "username"]), "this is sf's: sf org auth show-sfdx-auth-url --json gives what --sfdx-url-file reads"),
            (has(&["refreshToken", "accessToken"]), "its names are in camelCase: OAuth2 has access_token and refresh_token"),
            (has(&["error"]), "this is a refusal of the server, not a token: log in again"),
            (true, "log in with the scope refresh_token or offline_access; a JWT gives none: --grant-type"),
        ];
        rows.into_iter().find(|(fits, _)| *fits).map_or("", |(_, hint)| hint)
    }

    /// A member that is a string.
    fn string(&self, name: &str) -> Option<&str> {
        self.members.get(name).and_then(Value::as_str)
    }

    /// The access token, if there is a usable one (RFC 6749 appendix A.12).
    fn access_token(&self) -> Option<&str> {
        self.members.get("access_token").filter(|value| is_token(value))?.as_str()
    }

    /// The refresh token, empty if there is none.
    fn refresh_token(&self) -> &str {
        self.string(REFRESH_TOKEN).unwrap_or_default()
    }

    /// `issued_at`, in milliseconds since 1970, as Salesforce writes it: a string or a number.
    fn issued_at(&self) -> Option<SystemTime> {
        let millis = whole_number(self.members.get("issued_at")?)?;
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }

    /// Puts a reply into the document: each member replaces the old one or joins, a token if it can
    /// be used (RFC 6749 §6). Gives whether the refresh token changed.
    fn merge(&mut self, reply: Members, now: SystemTime) -> bool {
        let before = self.refresh_token().to_owned();
        let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let issued = u64::try_from(since_1970.as_millis()).unwrap_or_default();
        let lifetime = reply.get("expires_in").and_then(whole_number);
        let expiry = lifetime.map(|seconds| issued.saturating_add(seconds.saturating_mul(1000)));
        // What the reply does not replace would tell of the token before.
        let expiries = ["expires_at", "expiry", "expiry_date"].map(|name| (name, expiry));
        for (name, millis) in expiries.into_iter().chain([("issued_at", Some(issued))]) {
            if let (Some(value), Some(millis)) = (self.members.get_mut(name), millis) {
                *value = time_like(value, name, millis);
            }
        }
        for (name, value) in reply {
            if !TOKENS[..2].contains(&name.as_str()) || is_token(&value) {
                self.members.insert(name, value);
            }
        }
        before != self.refresh_token()
    }

    /// The document as it is saved: pretty-printed UTF-8 without BOM, one newline at the end.
    fn to_json(&self) -> String {
        // Only a map with keys that are no strings could fail to be written.
        serde_json::to_string_pretty(&self.members).unwrap_or_default() + "\n"
    }
}

/// A time in milliseconds since 1970, written as an old one: in seconds, as RFC 3339, as text.
fn time_like(old: &Value, name: &str, millis: u64) -> Value {
    let number = if name == "expires_at" { millis / 1000 } else { millis };
    match old {
        Value::String(old) if name == "expiry" && old.contains('T') => {
            rfc_3339(millis / 1000).into()
        }
        Value::String(_) => number.to_string().into(),
        _ => number.into(),
    }
}

/// A date and time in UTC as RFC 3339 writes it, from seconds since 1970.
fn rfc_3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    // Years from March on, so that a leap day is the last, in eras of 400 years.
    let (era, era_day) = (days / 146_097, days % 146_097);
    let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let march_month = (5 * year_day + 2) / 153;
    let day = year_day - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + era_year + u64::from(month <= 2);
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}Z")
}

/// A whole number, written as such or as a string.
fn whole_number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Whether a JSON value is a usable token: a string of VSCHAR, %x20-7E (RFC 6749 appendix A).
fn is_token(value: &Value) -> bool {
    let is_vschar = |b: u8| (0x20..=0x7E).contains(&b);
    value.as_str().is_some_and(|token| !token.is_empty() && token.bytes().all(is_vschar))
}

/// The refresh token in the JSON of a document or a reply.
fn refresh_token_in(text: &[u8]) -> Option<String> {
    Some(reply_json(text)?.get(REFRESH_TOKEN)?.as_str()?.to_owned())
}

/// The first JSON value of a reply. A grant must not be lost to the name of its user: what is not
/// UTF-8, or half a surrogate pair (RFC 8259 §8.2), becomes some other character.
fn reply_json(body: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body));
    let first = |text: &str| serde_json::Deserializer::from_str(text).into_iter().next()?.ok();
    first(&text).or_else(|| first(&text.replace(r"\ud", r"\uff").replace(r"\uD", r"\uff")))
}

// ---- Reply: what a status and a body mean; tables first. Pure: no I/O, no clock. ----

/// What an `error` of RFC 6749 §5.2 or of Salesforce means: its codes (none: any), a part of its
/// description, the exit status, a hint. The first row that fits counts; what fits none is `Setup`.
#[rustfmt::skip]
const OAUTH_ERRORS: &[(&str, &str, Exit, &str)] = &[
    ("", "ip restricted", Exit::Setup, "a login does not help: have this machine's address allowed, in the app or the user's profile"),
    ("invalid_grant", "token request is already being processed", Exit::Temporary, LATER),
    ("invalid_grant access_denied", "", Exit::Refused, "log in again: the refresh token is expired, revoked or replaced"),
    ("inactive_user inactive_org", "", Exit::Refused, "frozen, locked or inactive: have it activated, log in again"),
    ("rate_limit_exceeded temporarily_unavailable server_error", "", Exit::Temporary, LATER),
    ("invalid_client_id", "", Exit::Setup, "check --client-id: it is the app's consumer key; a new app takes some minutes to be known, and a sandbox has another endpoint"),
    ("invalid_client", "", Exit::Setup, "check --client-id and the secret (--client-secret-file, SF_CLIENT_SECRET); some servers want --basic"),
    ("unauthorized_client", "", Exit::Setup, "allow the app this grant type, and the user the app"),
    ("unsupported_grant_type", "", Exit::Setup, "check --endpoint and --grant-type: the server does not know that type there"),
    ("invalid_scope", "", Exit::Setup, "the scope in --data is not one that the login granted"),
    ("app_not_found", "", Exit::Setup, "the app is not installed in this org: check --client-id and --endpoint"),
    ("invalid_request", "", Exit::Setup, "check --endpoint and --data; an app may require its secret"),
];
/// The hint if nothing but time can help.
const LATER: &str = "run it again later";
/// Said if a request went out, and no whole answer came back.
const MAY_BE_USED: &str = "the server may have used the refresh token";
// A server that wants a client certificate, by an alert or on a page, and the hint.
const CERTIFICATE_DEMANDED: &str = "the server demands a client certificate";
const CERTIFICATE_HINT: &str = "sf-refresh cannot present one: use an endpoint that takes none";

/// What a whole answer means; secrets of the request in what the server says are not told.
fn read_answer(status: u16, headers: &HeaderMap, body: &[u8], request: &Request) -> Reply {
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    let text = String::from_utf8_lossy(body);
    let success = matches!(status, 200..=299);
    let sent = request.refresh_token.as_ref().map(Secret::expose);
    // A new refresh token alone is granted too: it may be the only one that works.
    let is_grant = |members: &Members| {
        let has = |name| members.get(name).is_some_and(is_token);
        let is_new = members.get(REFRESH_TOKEN).and_then(Value::as_str) != sent;
        has("access_token") || has(REFRESH_TOKEN) && is_new && !members.contains_key("error")
    };
    let json = match reply_json(body) {
        Some(Value::Object(it)) if success && is_grant(&it) => return Reply::Granted((status, it)),
        json => json,
    };
    let is_cut_short = text.trim_start().starts_with('{')
        && serde_json::from_str::<Value>(&text).is_err_and(|e| e.is_eof());
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let wait = header("retry-after").and_then(whole_seconds);
    let code = json.as_ref().and_then(|json| json.get("error")).and_then(Value::as_str);
    let said = code.map_or_else(String::new, |it| server_text(it, json.as_ref(), &request.secrets));
    let failing = format!("the server is busy or failing: HTTP {status}{said}");
    let failing = Error::new(Exit::Temporary, failing, LATER);
    match (status, code) {
        (300..=399, ..) => Reply::Failed(redirected(status, header("location"), &request.secrets)),
        // A gateway that lost the answer.
        (502 | 504, _) => Reply::Lost(failing, wait),
        (408 | 420 | 429 | 500..=599, _) => Reply::Later(failing, wait),
        (_, Some(code)) => refused(code, &said, wait, request),
        _ if success && is_cut_short => {
            Reply::Lost(maybe_used("the reply ends in the middle"), None)
        }
        _ => Reply::Failed(not_a_reply(status, body.trim_ascii_start(), json.as_ref())),
    }
}

/// A whole number of seconds, as in RFC 9110 §10.2.3; a date is none. More than fits is the most.
fn whole_seconds(text: &str) -> Option<Duration> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// A redirect, which would take the refresh token to another place: only its host is told.
fn redirected(status: u16, location: Option<&str>, secrets: &Secrets) -> Error {
    let host = location.and_then(|url| Some(secrets.mask(url.parse::<Uri>().ok()?.host()?)));
    let to = host.map_or_else(String::new, |host| format!(" to {host}"));
    let hint = "give the endpoint itself with --endpoint; a captive portal may answer in its place";
    Error::new(Exit::Setup, format!("redirect refused: HTTP {status}{to}"), hint)
}

/// An `error` of the server, by its code and what it `said`.
fn refused(code: &str, said: &str, wait: Option<Duration>, request: &Request) -> Reply {
    let lower = said.to_ascii_lowercase();
    let row = OAUTH_ERRORS.iter().find(|(codes, part, ..)| {
        (codes.is_empty() || codes.split(' ').any(|it| it == code)) && lower.contains(part)
    });
    let (exit, hint) = row.map_or((Exit::Setup, ""), |(.., exit, hint)| (*exit, *hint));
    if exit == Exit::Temporary {
        return Reply::Later(Error::new(exit, format!("the server is busy{said}"), hint), wait);
    }
    let by_basic =
        "check --client-id; this server may want the secret in the form: leave --basic out";
    let once = "get a new code or assertion: each works once, and for a short time";
    let hint = match code {
        "invalid_client" if request.authorization.is_some() => by_basic,
        "invalid_grant" if exit == Exit::Refused && request.refresh_token.is_none() => once,
        _ => hint,
    };
    Reply::Failed(Error::new(exit, format!("refused{said}"), hint))
}

/// A reply that is neither a grant nor an OAuth2 error: its status, and in words what came.
fn not_a_reply(status: u16, body: &[u8], json: Option<&Value>) -> Error {
    let has = |text: &str| body.windows(text.len()).any(|window| window == text.as_bytes());
    let is_page = body.starts_with(b"<");
    let (no_reply, unsaid) = ("not a token reply", "the server refused without saying why");
    let came = match json {
        Some(Value::Object(_)) => "JSON without a usable access_token",
        Some(_) => "JSON that is no object",
        None if body.is_empty() => "an empty body",
        None if is_page => "a web page, not JSON",
        None if has("access_token=") => "form-encoded text, not JSON",
        None => "something that is not JSON",
    };
    let (what, hint) = match status {
        400 if is_page && has("SSL certificate") => (CERTIFICATE_DEMANDED, CERTIFICATE_HINT),
        400 | 401 => (unsaid, "check client id and secret; if they are right, log in again"),
        404 => (no_reply, "check --endpoint: there is no token endpoint at that path"),
        _ => (no_reply, "check --endpoint; a captive portal or firewall may answer instead"),
    };
    Error::new(Exit::Setup, format!("HTTP {status}: {what}, but {came}"), hint)
}

/// The error of a request that went out, and to which no whole answer came back.
fn maybe_used(what: &str) -> Error {
    let hint = "run it again; if it is then refused, log in again";
    Error::new(Exit::Temporary, format!("{what}: {MAY_BE_USED}"), hint)
}

/// The server's error and its description (RFC 6749 §5.2) as the end of a message.
fn server_text(code: &str, json: Option<&Value>, secrets: &Secrets) -> String {
    let string = |name: &str| json.and_then(|json| json.get(name)).and_then(Value::as_str);
    let mut secrets = secrets.clone();
    TOKENS.iter().for_each(|name| secrets.add(string(name).unwrap_or_default()));
    let description = string("error_description").map(|text| format!(" ({})", secrets.mask(text)));
    format!(": {}{}", secrets.mask(code), description.unwrap_or_default())
}

/// The secrets of a run, to be masked in what a server says.
#[derive(Clone, Default)]
struct Secrets(Vec<String>);

impl Secrets {
    /// Adds a secret, unless it is empty.
    fn add(&mut self, secret: &str) {
        let spellings = [secret.to_owned(), secret.replace(' ', "+")];
        self.0.extend(spellings.into_iter().filter(|spelling| !spelling.is_empty()));
        // The longest first: a secret may be part of another.
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// A server's text, decoded once, less control characters and secrets, cut at 300 characters.
    fn mask(&self, text: &str) -> String {
        let hide = |text: &str| self.0.iter().fold(text.to_owned(), |t, s| t.replace(s, "***"));
        // Before as well as after: a secret may hold what looks encoded.
        let decoded = decode(&hide(text));
        let shown = hide(&decoded.chars().filter(|c| is_printable(*c)).collect::<String>());
        let start: String = shown.chars().take(300).collect();
        if start.len() < shown.len() { start + "…" } else { shown }
    }
}

/// A text with its `%XX` (RFC 3986 §2.1) and the usual HTML entities decoded.
fn decode(text: &str) -> String {
    #[rustfmt::skip]
    const ENTITIES: [(&str, &str); 7] = [
        ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""),
        ("&#39;", "'"), ("&#x27;", "'"), ("&amp;", "&"),
    ];
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(code.unwrap_or(b'%'));
        bytes.extend(part.bytes().skip(if code.is_some() { 2 } else { 0 }));
    }
    let decoded = String::from_utf8_lossy(&bytes).into_owned();
    ENTITIES.iter().fold(decoded, |text, (entity, c)| text.replace(entity, c))
}

/// Whether a character neither controls the terminal nor turns its text round (Unicode's bidi).
fn is_printable(c: char) -> bool {
    let zero_width = matches!(c, '\u{AD}' | '\u{200B}'..='\u{200D}' | '\u{FEFF}');
    let turns = matches!(c, '\u{61C}' | '\u{200E}'..='\u{200F}' | '\u{2028}'..='\u{202E}');
    !c.is_control() && !zero_width && !turns && !matches!(c, '\u{2066}'..='\u{2069}')
}

// ---- Network: from a request to its reply. Touches no file but through the save at hand. ----

/// One token request (RFC 6749 §4.1.3, §4.4.2, §6), ready to be sent.
struct Request {
    endpoint: Uri,
    authorization: Option<Secret>,
    body: Secret,
    secrets: Secrets,
    refresh_token: Option<Secret>,
}

impl Request {
    /// The request for one token.
    fn new(options: &Options, token: &Token) -> Self {
        let mut secrets = Secrets::default();
        TOKENS.iter().for_each(|name| secrets.add(token.string(name).unwrap_or_default()));
        let refresh_token = token.refresh_token().to_owned();
        let refresh_token = (options.grant_type == REFRESH_TOKEN).then_some(Secret(refresh_token));
        let mut fields = vec![("grant_type", options.grant_type.as_str())];
        let mut authorization = None;
        let secret = options.client_secret.as_ref().map(Secret::expose);
        secrets.add(secret.unwrap_or_default());
        if let (Some(secret), true) = (secret, options.basic) {
            // Each is form-encoded before the two are joined (RFC 6749 §2.3.1).
            let pair = format!("{}:{}", form_encoded(&options.client_id), form_encoded(secret));
            let encoded = base64(pair.as_bytes());
            secrets.add(&encoded);
            secrets.add(encoded.trim_end_matches('='));
            authorization = Some(Secret(format!("Basic {encoded}")));
        } else {
            fields.push(("client_id", &options.client_id));
            fields.extend(secret.map(|secret| ("client_secret", secret)));
        }
        fields.extend(refresh_token.as_ref().map(|token| (REFRESH_TOKEN, token.expose())));
        for FormField { name, value, .. } in &options.data {
            // A short value is a flag such as a scope; to mask it would garble what a server says.
            if value.expose().len() >= 8 {
                secrets.add(value.expose());
            }
            fields.push((name, value.expose()));
        }
        let encode = |(name, value)| format!("{}={}", form_encoded(name), form_encoded(value));
        let body = Secret(fields.into_iter().map(encode).collect::<Vec<_>>().join("&"));
        let endpoint = options.endpoint_for(token);
        Self { endpoint, authorization, body, secrets, refresh_token }
    }

    /// What would be sent, with all values masked that may be secret, on stderr.
    fn show(&self) {
        let basic = self.authorization.as_ref().map_or("", |_| "Authorization: Basic ***\n");
        let mask = |field: &str| match field.split_once('=').unwrap_or_default() {
            ("grant_type" | "client_id", _) => field.to_owned(),
            (name, _) => format!("{name}=***"),
        };
        let body = self.body.expose().split('&').map(mask).collect::<Vec<_>>().join("&");
        let endpoint = shown(&self.endpoint);
        let _ = write!(
            io::stderr(),
            "POST {endpoint}\nAccept: application/json\n\
             Content-Type: application/x-www-form-urlencoded\n{basic}\n{body}\n"
        );
    }
}

/// `application/x-www-form-urlencoded` (RFC 6749 appendix B).
fn form_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b' ' => "+".to_owned(),
        b'-' | b'.' | b'_' | b'*' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
            char::from(byte).into()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Base64 with padding (RFC 4648 §4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | usize::from(*chunk.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let digit = ALPHABET[bits >> (18 - 6 * i) & 0x3F];
            encoded.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    encoded
}

/// One POST, and what came of it. `save` is prepared before the body goes out, and keeps the reply.
fn post(run: &Run, request: &Request, save: Option<&mut Save>) -> Reply {
    run.step(&format!("POST {}", shown(&request.endpoint)));
    // Taken now: between a grant and its save nothing may wait, be it for memory or a terminal.
    let reply = Vec::with_capacity(RESERVE);
    let unsent = request.body.expose().as_bytes();
    let mut exchange =
        Exchange { run, request, save, unsent, sent: false, unprepared: None, reply };
    let (left, timeout) = (run.left(), run.options.timeout);
    let host = request.endpoint.host().unwrap_or_default();
    // Never for plain http, whose secrets it could read.
    let takes_proxy = is_https(&request.endpoint) && !bypasses_proxy(&run.options.no_proxy, host);
    let proxy = run.options.proxy.as_ref().filter(|_| takes_proxy);
    let mut post = run
        .agent
        .post(&request.endpoint)
        .header("Accept", "application/json")
        // A compressed reply could not be read, and its grant would be lost.
        .header("Accept-Encoding", "identity")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .header("Content-Length", unsent.len().to_string());
    if let Some(authorization) = &request.authorization {
        post = post.header("Authorization", authorization.expose());
    }
    let response = post
        .config()
        .proxy(proxy.cloned())
        .timeout_resolve(Some(left))
        .timeout_connect(Some(left.min(CONNECT_TIMEOUT)))
        .timeout_recv_response(Some(timeout))
        .timeout_recv_body(Some(timeout))
        .timeout_global(Some(left + timeout))
        .build()
        .send(SendBody::from_reader(&mut exchange));
    match (response, exchange.unprepared.take()) {
        (_, Some(reply)) => reply,
        (Ok(response), _) => exchange.receive(response),
        (Err(error), _) if exchange.sent => lost_after_sending(&error),
        (Err(error), _) => never_sent(&error, host, proxy),
    }
}

/// A request on its way, and the reply to it.
struct Exchange<'a, 'b> {
    run: &'a Run<'a>,
    request: &'a Request,
    save: Option<&'a mut Save<'b>>,
    unsent: &'a [u8],
    /// The refresh token may have reached the server.
    sent: bool,
    /// Why nothing was sent: the save is not sure to work.
    unprepared: Option<Reply>,
    reply: Vec<u8>,
}

impl Exchange<'_, '_> {
    /// Reads a response to its end, or to where it breaks off. What may be a whole grant is kept.
    fn receive(mut self, response: Response<ureq::Body>) -> Reply {
        let (head, source) = response.into_parts();
        let mut reader = source.into_with_config().limit(MAX_DOCUMENT).reader();
        let mut buffer = [0; 8192];
        let cut = loop {
            match reader.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => self.reply.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => break Some(ureq::Error::from(e)),
            }
            // At once: ureq's work at the end of a body would widen the window for a kill.
            let is_whole = self.reply.trim_ascii_end().ends_with(b"}");
            if let (Some(save), true) = (&self.save, head.status.is_success() && is_whole) {
                save.keep_reply(&self.reply);
            }
        };
        let status = head.status.as_u16();
        let reply = read_answer(status, &head.headers, &self.reply, self.request);
        // A grant that is whole counts although the connection broke off after it.
        if matches!(reply, Reply::Granted(..)) {
            return reply;
        }
        self.run.step(&format!("HTTP {status}"));
        cut.as_ref().map_or(reply, lost_after_sending)
    }
}

/// The request's body. ureq reads it when connection, TLS and headers are done.
impl Read for Exchange<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.sent {
            if self.run.left().is_zero() {
                return Err(io::Error::other(ureq::Error::Timeout(ureq::Timeout::Connect)));
            }
            os::hold_stops();
            self.unprepared = self.save.as_mut().and_then(|save| save.prepare().err());
            if self.unprepared.is_some() {
                return Err(ErrorKind::Other.into());
            }
            self.sent = true;
        }
        self.unsent.read(buffer)
    }
}

/// The HTTP client, with the roots that it trusts: Mozilla's if none are given.
fn new_agent(options: &mut Options) -> Agent {
    let roots = options.roots.take();
    let roots = roots.map_or(RootCerts::WebPki, |roots| RootCerts::new_with_certs(&roots));
    let config = Agent::config_builder()
        .proxy(None)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("sf-refresh/", env!("CARGO_PKG_VERSION")))
        // ureq's buffers of 128 KiB are for downloads; each connection has two pairs of them.
        .input_buffer_size(16 * 1024)
        .output_buffer_size(16 * 1024)
        .max_response_header_size(16 * 1024)
        .build();
    let connector =
        ().chain(ConnectProxyConnector::default())
            .chain(InTurn { verbose: options.verbose })
            .chain(RustlsConnector::default());
    Agent::with_parts(config, connector, NameResolver)
}

/// Connects to the first address of a host or its proxy that answers, and says which if `verbose`.
/// ureq's own gives half of the time to the first one, and a dead one would hold up the others.
#[derive(Debug)]
struct InTurn {
    verbose: bool,
}

impl<In: Transport> Connector<In> for InTurn {
    type Out = <TcpConnector as Connector<In>>::Out;

    fn connect(
        &self,
        details: &ConnectionDetails,
        tunnel: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        use std::collections::VecDeque;
        let tcp = TcpConnector::default();
        let (UreqInstant::Exact(start), None) = (details.now, &tunnel) else {
            return tcp.connect(details, tunnel);
        };
        let mut one = ConnectionDetails {
            addrs: details.resolver.empty(),
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
            ..*details
        };
        // A short patience for each; those that were silent then share the time that is left.
        let patience = if details.addrs.len() > 1 { PATIENCE } else { Duration::MAX };
        let mut turns: VecDeque<_> = details.addrs.iter().map(|a| (*a, patience)).collect();
        let mut failure = ureq::Error::HostNotFound;
        while let Some((address, patience)) = turns.pop_front() {
            let left = details.timeout.after.saturating_sub(start.elapsed());
            let share = left / u32::try_from(turns.len() + 1).unwrap_or(1);
            // Zero would be a second to ureq.
            one.timeout.after = share.min(patience).max(Duration::from_millis(1)).into();
            one.addrs.truncate(0);
            one.addrs.push(address);
            failure = match tcp.connect(&one, None) {
                Err(error) => error,
                connected => {
                    if self.verbose {
                        say(None, &format!("connected to {address}"));
                    }
                    return connected;
                }
            };
            if patience == PATIENCE && matches!(failure, ureq::Error::Timeout(_)) {
                turns.push_back((address, Duration::MAX));
            }
        }
        Err(failure)
    }
}

/// Looks names up. ureq's own one makes a thread even for addresses, and panics if it gets none.
#[derive(Debug)]
struct NameResolver;

impl Resolver for NameResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let (host, https) = (uri.host().unwrap_or_default(), is_https(uri));
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let failed = |cause: io::Error| ureq::Error::Other(describe(&cause).into());
        let mut found = match address(host) {
            Some(ip) => vec![SocketAddr::new(ip, port)],
            None => {
                // By a thread, for the system's resolver knows no time-out.
                let (sender, receiver) = mpsc::channel();
                let name = host.to_owned();
                let ask = move || sender.send((name.as_str(), port).to_socket_addrs());
                thread::Builder::new().spawn(ask).map_err(failed)?;
                let answer = receiver.recv_timeout(*timeout.after);
                let found = answer.map_err(|_| ureq::Error::Timeout(ureq::Timeout::Resolve))?;
                found.map_err(failed)?.collect()
            }
        };
        // Plain http without a proxy is meant for this machine, whatever `localhost` stands for.
        let anywhere = https || config.proxy().is_some();
        found.retain(|socket| anywhere || socket.ip().is_loopback());
        // The two families take turns, the first one's family first (RFC 8305 §4).
        let is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
        let (first, other): (Vec<_>, Vec<_>) = found.iter().partition(|a| a.is_ipv6() == is_v6);
        let turns = (0..found.len()).flat_map(|i| [first.get(i), other.get(i)]);
        let mut addresses = self.empty();
        turns.flatten().take(16).for_each(|socket| addresses.push(*socket));
        if addresses.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(addresses) }
    }
}

/// What rustls says, in part, in lower case without blanks; what it means (`{}`: its end); a hint.
#[rustfmt::skip]
const TLS_FAILURES: &[(&str, &str, &str)] = &[
    ("unknownissuer", "certificate refused: it is signed by a CA that is not trusted", "--ca-cert FILE (or SSL_CERT_FILE) with the PEM root that signed it"),
    ("notvalidyet", "certificate refused: it is not valid yet", CLOCK_HINT),
    ("notvalidforname", "certificate refused: it is for another host", ENDPOINT_HINT),
    ("causedasendentity", "certificate refused: it is a CA's own and not a server's", "--ca-cert does not help: fix the server"),
    ("expired", "certificate refused: it has expired", CLOCK_HINT),
    ("invalidpeercertificate", "certificate refused: {}", ENDPOINT_HINT),
    ("alert:certificaterequired", CERTIFICATE_DEMANDED, CERTIFICATE_HINT),
    ("alert:badcertificate", CERTIFICATE_DEMANDED, CERTIFICATE_HINT),
    ("receivedfatalalert", "the server refused the TLS handshake: {}", "the server accepts none of TLS 1.2 and 1.3 as sf-refresh speaks them"),
    ("", "it does not speak TLS as it should: {}", "check host and port of --endpoint"),
];

// The hints if endpoint, clock or network are the likely cause.
const ENDPOINT_HINT: &str = "check --endpoint";
const CLOCK_HINT: &str = "this machine's clock says that it is {year}: is that right?";
const NETWORK_HINT: &str = "check network, host name and proxy, or run it again later";
// musl's resolver takes an error about IPv6 for the whole answer.
const NAME_HINT: &str = "check network and name; a musl build needs IPv6 answers or /etc/hosts too";

/// A failure before the refresh token was sent to `host`.
fn never_sent(error: &ureq::Error, host: &str, proxy: Option<&Proxy>) -> Reply {
    use ureq::{Error as E, Timeout::Resolve};
    let error_of = |exit, what, hint| Error::new(exit, format!("{what}; nothing was sent"), hint);
    let later = |what: String, hint| Reply::Later(error_of(Exit::Temporary, what, hint), None);
    let wrong = |what: String, hint| Reply::Failed(error_of(Exit::Setup, what, hint));
    let by_proxy = proxy.map(|proxy| format!("the proxy {}:{}", proxy.host(), proxy.port()));
    let to = by_proxy.as_ref().map_or(host.to_owned(), |proxy| format!("{host} through {proxy}"));
    // The name of the host itself is the proxy's to find.
    let name = by_proxy.as_deref().unwrap_or(host);
    match error {
        E::Other(cause) => later(format!("cannot find {name}: {cause}"), NAME_HINT),
        E::HostNotFound => later(format!("cannot find {name}"), NAME_HINT),
        E::Timeout(Resolve) => later(format!("no answer from DNS about {name}"), NETWORK_HINT),
        E::Timeout(_) => later(format!("no connection to {to} in time"), NETWORK_HINT),
        // ureq gives it as `proxy server responded 407/407`.
        E::ConnectProxyFailed(reason) => {
            let status = reason.rsplit('/').next().and_then(|text| text.parse().ok()).unwrap_or(0);
            let what = format!("{to}: the proxy refused: HTTP {status}");
            match status {
                // tinyproxy answers a wrong password with 401.
                401 | 407 => wrong(what, "put USER:PASSWORD@ in HTTPS_PROXY: it wants credentials"),
                1..=499 | 501 => wrong(what, "check HTTPS_PROXY, or name the host in NO_PROXY"),
                _ => later(what, "check the proxy, or run it again later"),
            }
        }
        E::Io(cause) => match tls_failure(cause) {
            Some((what, hint)) => wrong(format!("{to}: {what}"), &hint),
            None => later(format!("cannot connect to {to}: {}", describe(cause)), NETWORK_HINT),
        },
        E::Protocol(_) => wrong(format!("{to}: the proxy speaks no HTTP"), "check the proxy"),
        _ => wrong(format!("cannot use {to} as an endpoint"), ENDPOINT_HINT),
    }
}

/// What a failure of TLS means, and a hint; nothing if the network cut the handshake short.
fn tls_failure(cause: &io::Error) -> Option<(String, String)> {
    // ureq passes it on as an I/O error.
    let text = cause.to_string();
    let plain = text.to_ascii_lowercase().replace(' ', "");
    let mut rows = TLS_FAILURES.iter().filter(|_| cause.kind() == ErrorKind::InvalidData);
    let (_, what, hint) = rows.find(|(part, ..)| plain.contains(part))?;
    let what = what.replace("{}", text.rsplit(": ").next().unwrap_or_default());
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let year = 1970 + since_1970.as_secs() / 31_556_952;
    Some((what, hint.replace("{year}", &year.to_string())))
}

/// A failure after the refresh token was sent.
fn lost_after_sending(error: &ureq::Error) -> Reply {
    use ureq::Error as E;
    let wrong = |what: &str, hint: &str| Reply::Failed(Error::new(Exit::Setup, what, hint));
    let no_http = wrong("the answer is not HTTP", ENDPOINT_HINT);
    match error {
        // A server this slow is not asked again within the same run.
        E::Timeout(_) => Reply::Failed(maybe_used("no answer in time")),
        // With TLS 1.3 a server looks for the client's certificate only after the handshake.
        E::Io(cause) => match tls_failure(cause) {
            Some((what, hint)) if what == CERTIFICATE_DEMANDED => wrong(&what, &hint),
            _ => Reply::Lost(
                maybe_used(&format!("the connection broke off: {}", describe(cause))),
                None,
            ),
        },
        E::BodyExceedsLimit(_) => wrong("the reply is longer than 1 MiB", ENDPOINT_HINT),
        E::Protocol(_) | E::Http(_) | E::LargeResponseHeader(..) => no_http,
        _ => Reply::Lost(maybe_used("the answer could not be read"), None),
    }
}

// ---- File: lock, journal, save. Knows tokens and no HTTP; says what it does, prints nothing. ----
// A save goes by the first of three plans that fits:
// 1. rename: the journal takes the file's name;
// 2. overwrite with a journal: other names, access control lists and attributes stay with the file;
// 3. overwrite alone: the folder takes no journal, so room is made in the file beforehand.

/// A token file, open and locked. The lock ends with the handle, and with the process.
struct TokenFile {
    /// The file itself, if the path led through symlinks.
    path: PathBuf,
    handle: File,
    metadata: fs::Metadata,
    /// What it holds: a save replaces these bytes and no others.
    bytes: Vec<u8>,
    /// This run made the file, and removes it again if nothing comes of it.
    made: bool,
}

impl TokenFile {
    /// Opens (or makes) and locks the token file of a run, and finishes an interrupted save.
    fn lock(run: &mut Run) -> Result<Self, Error> {
        loop {
            let mut file = Self::open(run.path, run.options.initial_token().is_some())?;
            if file.handle.try_lock().is_err() {
                file.note_access_token(run);
                lock_within(&file.handle, run)?;
            }
            if !is_named(&file.handle, fs::metadata(run.path)) {
                // Somebody renamed another over it: the former holder of the lock, or a login.
                file.note_access_token(run);
                if run.left().is_zero() {
                    return Err(lock_held());
                }
                continue;
            }
            file.metadata = file.handle.metadata().map_err(|e| file_error("examine it", e, ""))?;
            let journal = Journal::left_over(&file, run)?;
            file.bytes = file.read().map_err(|e| file_error("read it", e, ""))?;
            run.step("locked");
            // A dry run leaves it to a real one.
            let Some(journal) = journal.filter(|_| !run.options.dry_run) else { return Ok(file) };
            // Then it is looked at again: its name may stand for the former journal.
            journal.finish(&file, run)?;
        }
    }

    /// Opens the file that a path leads to, or makes an empty one. Errors: file.
    fn open(path: &Path, may_make: bool) -> Result<Self, Error> {
        // A look first: to open some devices is to use them.
        let found = fs::metadata(path);
        let made = may_make && found.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound);
        if !made {
            let found = found.map_err(cannot_open)?;
            let gone = "its name is gone on the host: mount the folder, not the file";
            first_problem(&[
                (found.is_dir(), "is a folder", "name the token file itself"),
                (!found.is_file(), "is not a regular file", "name the token file itself"),
                (found.nlink() == 0, "is mounted and was removed or replaced", gone),
            ])
            .map_err(|(what, hint)| Error::new(Exit::File, what, hint))?;
        }
        let mut how = OpenOptions::new();
        let handle = match how.read(true).write(true).create_new(made).mode(0o600).open(path) {
            // Another run was faster to make it, or a symlink leads nowhere.
            Err(e) if made && e.kind() == ErrorKind::AlreadyExists && path.exists() => {
                return Self::open(path, false);
            }
            opened => opened.map_err(cannot_open)?,
        };
        let path = fs::canonicalize(path).map_err(cannot_open)?;
        let metadata = handle.metadata().map_err(cannot_open)?;
        Ok(Self { path, handle, metadata, bytes: Vec::new(), made })
    }

    /// Looks at the token while another run is at work on it.
    fn note_access_token(&self, run: &mut Run) {
        let token = self.read().ok().and_then(|bytes| Token::parse(&bytes, run.options).ok());
        token.iter().for_each(|token| run.note(token));
    }

    /// What the file holds, less the blanks and NULs at its end, at most [`MAX_DOCUMENT`].
    fn read(&self) -> io::Result<Vec<u8>> {
        let mut handle = &self.handle;
        handle.rewind()?;
        let mut bytes = read_limited(handle, 2 * MAX_DOCUMENT)?;
        bytes.truncate(trimmed(&bytes).len());
        let is_large = bytes.len() as u64 > MAX_DOCUMENT;
        if is_large { Err(ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }

    /// Whether this name stands for the file as it was read.
    fn is_unchanged_at(&self, path: &Path) -> bool {
        is_named(&self.handle, fs::metadata(path)) && self.read().is_ok_and(|now| now == self.bytes)
    }

    /// Pads the file to `length` with blanks, on the disk: a power failure then cuts no document.
    fn grow(&self, length: usize) -> io::Result<()> {
        let now = self.handle.metadata()?.len();
        let missing = length.saturating_sub(usize::try_from(now).unwrap_or(length));
        if missing == 0 {
            return Ok(());
        }
        self.handle.write_all_at(&vec![b' '; missing], now)?;
        self.handle.sync_all()
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        if self.made && self.bytes.is_empty() && self.is_unchanged_at(&self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What comes in a journal between the document and what that is to replace.
const REPLACES: &[u8] = b"\nreplaces:\n";

/// `.NAME.sf-refresh`, which holds the reply until it is saved. It is locked while its run lives.
struct Journal {
    path: PathBuf,
    handle: File,
}

impl Journal {
    /// The journal's place beside a token file.
    fn path_beside(file: &Path) -> PathBuf {
        let mut name = OsString::from(".");
        name.extend([file.file_name().unwrap_or_default(), ".sf-refresh".as_ref()]);
        file.with_file_name(name)
    }

    /// Makes one with the file's owner (and mode, if it can replace it) and `room` bytes of blanks.
    fn make_at(path: PathBuf, save: &Save, room: usize) -> io::Result<Self> {
        let handle = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let journal = Self { path, handle };
        let prepare = |file: &File| -> io::Result<()> {
            file.try_lock()?;
            // Another run may have taken it for one that was left over.
            journal.is_ours().then_some(()).ok_or(ErrorKind::WouldBlock)?;
            let (made, wanted) = (file.metadata()?, &save.file.metadata);
            if (made.uid(), made.gid()) != (wanted.uid(), wanted.gid()) {
                fchown(file, Some(wanted.uid()), Some(wanted.gid()))?;
            }
            // With a folder's default ACL the mode would open it to those in the list.
            if save.can_rename && made.mode() != wanted.mode() && !os::has_attributes(file) {
                file.set_permissions(fs::Permissions::from_mode(wanted.mode() & 0o7777))?;
            }
            file.write_all_at(&save.with_replaced(&vec![b' '; room]), 0)
        };
        prepare(&journal.handle).inspect_err(|_| journal.remove())?;
        Ok(journal)
    }

    /// The journal of an earlier run; that of a live one is waited for. Errors: it cannot be one.
    fn left_over(file: &TokenFile, run: &mut Run) -> Result<Option<Self>, Error> {
        let path = Self::path_beside(&file.path);
        while let Ok(found) = fs::symlink_metadata(&path) {
            let hint = format!("look at it, and remove it if not wanted: {}", path.display());
            let failed = |cause| file_error("use the journal beside it", cause, &hint);
            if !found.is_file() {
                return Err(failed(io::Error::other("it is not a regular file")));
            }
            let opened = OpenOptions::new().read(true).write(true).open(&path);
            if opened.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
                continue;
            }
            let handle = opened.map_err(failed)?;
            // Not before it is locked: a live run may just be handing it over to the file's owner.
            lock_within(&handle, run)?;
            let own = handle.metadata().map_err(failed)?;
            let journal = Self { path: path.clone(), handle };
            if journal.is_ours() {
                // Others could make it hold a grant of theirs.
                let is_trusted = own.uid() == file.metadata.uid() && own.nlink() == 1;
                let foreign = || failed(io::Error::other("it belongs to another user or file"));
                return if is_trusted { Ok(Some(journal)) } else { Err(foreign()) };
            }
        }
        Ok(None)
    }

    /// Whether its name still stands for it.
    fn is_ours(&self) -> bool {
        is_named(&self.handle, fs::symlink_metadata(&self.path))
    }

    /// Removes it; one that is no longer ours stays.
    fn remove(&self) {
        if self.is_ours() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// What a left-over journal holds for its file. It wins over what it was to replace, as it says
    /// behind its mark: over that, an edit of it with the same refresh token, or a mixture of both
    /// (it was being written over the file). Without a mark it wins over an older file.
    fn read(&self, file: &TokenFile, options: &Options) -> io::Result<LeftOver> {
        let bytes = read_limited(&self.handle, 4 * MAX_DOCUMENT)?;
        let mark = bytes.windows(REPLACES.len()).position(|window| window == REPLACES);
        let replaced = mark.map(|at| trimmed(&bytes[at + REPLACES.len()..]));
        let reply = reply_json(&bytes[..mark.unwrap_or(bytes.len())]);
        // Other grants may bring no refresh token.
        let name = if options.grant_type == REFRESH_TOKEN { REFRESH_TOKEN } else { "access_token" };
        let reply = reply.filter(|reply| reply.get(name).is_some_and(is_token));
        let Some(Value::Object(members)) = reply else { return Ok(LeftOver::Nothing) };
        let grant = Token { members };
        let granted_at = self.handle.metadata()?.modified()?;
        // One that this run has made is no login.
        let is_older = !file.made && file.metadata.modified().is_ok_and(|time| time >= granted_at);
        // One that was killed right after the swap leaves what the file held before.
        let is_swapped = file.metadata.modified().ok() == granted_at.checked_add(JUST_AFTER);
        // One that was edited with the refresh token of before is no new login.
        let before = replaced.and_then(refresh_token_in);
        let is_as_before = replaced.map_or(!is_older, |replaced| {
            file.bytes == replaced || before.is_some() && refresh_token_in(&file.bytes) == before
        });
        // One was being written over the other, with blanks behind their ends.
        let (new, old) = (grant.to_json().into_bytes(), replaced.unwrap_or_default());
        let at = |text: &[u8], i| text.get(i).copied().unwrap_or(b' ');
        let is_half_written = !file.bytes.is_empty()
            && file.bytes.iter().enumerate().all(|(i, b)| *b == at(&new, i) || *b == at(old, i));
        Ok(match Token::parse(&file.bytes, options) {
            _ if replaced.is_none() && is_swapped => LeftOver::Nothing,
            _ if file.bytes == new.trim_ascii_end() => LeftOver::Nothing,
            // It may be the bare reply.
            Ok(mut token) if is_as_before => {
                token.merge(grant.members, granted_at);
                LeftOver::Unsaved(token, granted_at)
            }
            Err(_) if is_as_before || replaced.is_none() => LeftOver::Unsaved(grant, granted_at),
            _ if is_half_written => LeftOver::Unsaved(grant, granted_at),
            Ok(token) if token.refresh_token() == grant.refresh_token() => LeftOver::Nothing,
            _ => LeftOver::Superseded(grant),
        })
    }

    /// Saves what it holds, or keeps that in a file of its own if the token file was written later.
    fn finish(self, file: &TokenFile, run: &Run) -> Result<(), Error> {
        let hint = format!("the newest grant is in {}", self.path.display());
        let failed = |cause| file_error("finish an interrupted save", cause, &hint);
        match self.read(file, run.options).map_err(failed)? {
            LeftOver::Nothing => {}
            LeftOver::Superseded(grant) => {
                let kept = write_rescue_file(&file.path, grant.to_json().as_bytes());
                let kept = kept.ok_or_else(|| failed(ErrorKind::StorageFull.into()))?;
                fs::remove_file(&self.path).map_err(|e| {
                    let _ = fs::remove_file(&kept);
                    failed(e)
                })?;
                let what = "changed after an interrupted save; the unsaved grant is now in";
                run.status(&format!("{what} {}", kept.display()));
                return Ok(());
            }
            LeftOver::Unsaved(token, granted_at) => {
                let document = token.to_json().into_bytes();
                let mut save = Save::new(file, 0);
                save.granted_at = Some(granted_at);
                save.journal = Some(self.renewed(&document, &save).map_err(failed)?);
                match save.commit(&document) {
                    Ok(_) => run.step("finished an interrupted save"),
                    Err((Some(cause), _)) => return Err(failed(cause)),
                    // What changed just now is looked at anew.
                    Err(_) => {}
                }
                return Ok(());
            }
        }
        let hint = "remove it: the token file has what it holds";
        fs::remove_file(&self.path).map_err(|e| file_error("remove its journal", e, hint))
    }

    /// Puts one in its place with the whole document: to write over the only copy could tear it.
    fn renewed(&self, document: &[u8], save: &Save) -> io::Result<Self> {
        let path = self.path.with_extension("sf-renewed");
        let _ = fs::remove_file(&path);
        let fresh = Self::make_at(path, save, document.len())?;
        let written = fresh.write(&save.with_replaced(document), save.granted_at);
        let renamed = written.and_then(|()| fs::rename(&fresh.path, &self.path));
        renamed.inspect_err(|_| fresh.remove())?;
        Ok(Self { path: self.path.clone(), ..fresh })
    }

    /// Replaces all that it holds, with a time if one is given, and waits for the disk.
    fn write(&self, text: &[u8], time: Option<SystemTime>) -> io::Result<()> {
        // In one piece with blanks over the rest, so that nothing follows but what it says.
        let rest = usize::try_from(self.handle.metadata()?.len()).unwrap_or(0);
        let blanks = vec![b' '; rest.saturating_sub(text.len())];
        self.handle.write_all_at(&[text, &blanks].concat(), 0)?;
        self.handle.set_len(text.len() as u64)?;
        time.map_or(Ok(()), |time| self.handle.set_modified(time))?;
        self.handle.sync_all()
    }
}

/// What the journal of an earlier run holds.
enum LeftOver {
    /// No grant that the file lacks.
    Nothing,
    /// A grant, but the file was written since.
    Superseded(Token),
    /// The document that was to be saved, and when its grant came in.
    Unsaved(Token, SystemTime),
}

/// A save, from before the request until all is in its place. Without a grant it leaves no journal.
struct Save<'a> {
    file: &'a TokenFile,
    journal: Option<Journal>,
    /// Nothing is lost if another inode takes the file's name.
    can_rename: bool,
    /// How long the document is at least, in bytes.
    length: usize,
    /// When the grant came in, if not just now.
    granted_at: Option<SystemTime>,
}

impl<'a> Save<'a> {
    /// A save for which nothing has been done yet.
    fn new(file: &'a TokenFile, length: usize) -> Self {
        let can_rename = file.metadata.nlink() == 1 && !os::has_attributes(&file.handle);
        let length = length.max(file.bytes.len());
        Self { file, journal: None, can_rename, length, granted_at: None }
    }

    /// A journal's text: a document or room for it, and what that is to replace.
    fn with_replaced(&self, document: &[u8]) -> Vec<u8> {
        [document, REPLACES, &self.file.bytes].concat()
    }

    /// Proves that the save will work: makes the journal, or room in the file itself.
    fn prepare(&mut self) -> Result<(), Reply> {
        use ErrorKind::{AlreadyExists, InvalidFilename, PermissionDenied, ReadOnlyFilesystem};
        let (file, room) = (self.file, self.length + RESERVE);
        let hint = "make room, or put the file elsewhere";
        let failed = |what: &str, cause| Err(Reply::Failed(file_error(what, cause, hint)));
        if self.length as u64 > MAX_DOCUMENT {
            return failed("renew it", ErrorKind::FileTooLarge.into());
        }
        // A journal on another device may be gone together with a container.
        let device = fs::metadata(folder_of(&file.path)).map(|folder| folder.dev());
        if device.is_ok_and(|device| device == file.metadata.dev()) {
            let made = Journal::make_at(Journal::path_beside(&file.path), self, room);
            match made.map_err(|e| (e.kind(), e)) {
                Ok(journal) => self.journal = Some(journal),
                Err((AlreadyExists | ErrorKind::WouldBlock, _)) => {
                    return Err(Reply::Changed(lock_held()));
                }
                Err((PermissionDenied | ReadOnlyFilesystem | InvalidFilename, _)) => {}
                Err((_, e)) => return failed("make the journal", e),
            }
        }
        if self.journal.is_none() {
            // These blanks stay, so that a run that ends here has nothing to undo.
            file.grow(room).or_else(|e| failed("reserve room", e))?;
        }
        // Once more, just before the refresh token is sent: another program needs no lock.
        if file.is_unchanged_at(&file.path) {
            return Ok(());
        }
        let message = "another program changed the file just now; nothing was sent";
        Err(Reply::Changed(Error::new(Exit::Temporary, message, LATER)))
    }

    /// Keeps a reply in the journal as it came in, for the next run if this one is killed.
    fn keep_reply(&self, reply: &[u8]) {
        // [`Save::commit`] tells a failure.
        let _ = self.journal.as_ref().map(|journal| journal.handle.write_all_at(reply, 0));
    }

    /// Saves the document by the first plan that works, and tells how.
    fn commit(&mut self, document: &[u8]) -> Result<&'static str, NotSaved> {
        // From here on nothing is cleaned up: what is there may be the only copy.
        let journal = self.journal.take();
        if let Some(how) = journal.as_ref().and_then(|journal| self.rename(journal, document)) {
            return Ok(how);
        }
        // A journal that does not take the file's name goes on saying what it was to replace.
        let text = self.with_replaced(document);
        let is_whole = |it: &Journal| it.is_ours() && it.write(&text, self.granted_at).is_ok();
        let journal = journal.filter(is_whole);
        match self.overwrite(document) {
            Ok(true) => {}
            Err(cause) => return Err((Some(cause), journal)),
            Ok(false) => {
                // Whoever edited it without a new login has it from the journal: [`Journal::read`].
                let now = refresh_token_in(&fs::read(&self.file.path).unwrap_or_default());
                let is_edited = journal.is_some() && now == refresh_token_in(&self.file.bytes);
                let cause = is_edited.then(|| io::Error::other("it was edited meanwhile"));
                return Err((cause, journal));
            }
        }
        match journal.map(|j| fs::remove_file(&j.path).and_then(|()| sync_folder(&j.path))) {
            None | Some(Ok(())) => Ok("saved in place"),
            Some(Err(_)) => Ok("saved in place, but its journal cannot be removed: remove it"),
        }
    }

    /// The plan to rename: journal and file are swapped, so that nothing is lost that another
    /// program puts there just now. Tells how it was saved, or nothing if both are as before.
    fn rename(&self, journal: &Journal, document: &[u8]) -> Option<&'static str> {
        let (new, old) = (&journal.path, &self.file.path);
        let is_unchanged = || self.file.is_unchanged_at(old);
        // What takes the file's name is the document alone: only its time tells the next run what it
        // replaces. It is just newer than the file was, and what is written there now newer still.
        let before = self.file.metadata.modified().ok()?;
        let is_newer = |step| {
            let written = journal.write(document, before.checked_add(step));
            let time = written.and_then(|()| journal.handle.metadata()?.modified());
            time.is_ok_and(|time| time > before)
        };
        let is_ready = self.can_rename
            && journal.is_ours()
            && is_unchanged()
            && (is_newer(JUST_AFTER) || is_newer(Duration::from_secs(2)))
            && !os::has_attributes(&journal.handle)
            && is_unchanged();
        if !is_ready {
            return None;
        }
        if os::exchange(new, old).is_err() {
            // Not every file system can.
            fs::rename(new, old).ok()?;
        } else if self.file.is_unchanged_at(new) {
            // If this fails, the next run finds that the journal is older than the file.
            let _ = fs::remove_file(new);
        } else {
            // And back, unless somebody else has written over ours by now.
            if fs::read(old).is_ok_and(|now| now == document) {
                let _ = os::exchange(new, old);
            }
            return None;
        }
        let _ = journal.handle.set_modified(self.granted_at.unwrap_or_else(SystemTime::now));
        let is_synced = sync_folder(old).is_ok();
        Some(if is_synced { "saved" } else { "saved, but the folder could not be synced" })
    }

    /// The other plans: the document is written over what the file held, and the file never cut,
    /// for a power failure would leave NULs. False: another program changed it meanwhile.
    fn overwrite(&self, document: &[u8]) -> io::Result<bool> {
        let file = self.file;
        if !file.is_unchanged_at(&file.path) {
            return Ok(false);
        }
        file.grow(document.len())?;
        // In one piece with blanks over the rest of a longer one: it is JSON at each moment.
        let blanks = vec![b' '; file.bytes.len().saturating_sub(document.len())];
        file.handle.write_all_at(&[document, &blanks].concat(), 0)?;
        file.handle.sync_all()?;
        self.granted_at.map_or(Ok(()), |time| file.handle.set_modified(time))?;
        Ok(is_named(&file.handle, fs::metadata(&file.path)))
    }
}

impl Drop for Save<'_> {
    fn drop(&mut self) {
        self.journal.iter().for_each(Journal::remove);
    }
}

/// Why a grant is in no file (none: another program changed that), and the journal that has it.
type NotSaved = (Option<io::Error>, Option<Journal>);

/// Polls a lock until it is ours, within the time.
fn lock_within(handle: &File, run: &Run) -> Result<(), Error> {
    let mut waited = false;
    loop {
        match handle.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) if e.kind() != ErrorKind::Interrupted => {
                let hint = "put the file where files can be locked: NFS needs its lock service";
                return Err(file_error("lock", e, hint));
            }
            Err(_) if run.left().is_zero() => return Err(lock_held()),
            Err(_) if waited => thread::sleep(LOCK_POLL.min(run.left())),
            Err(_) => run.step("waiting for another run that holds the lock"),
        }
        waited = true;
    }
}

/// The failure of a run that waited for the lock until its time was over.
fn lock_held() -> Error {
    let hint = "run it again later, or with a longer --timeout";
    Error::new(Exit::Temporary, "another run holds the lock; nothing was sent", hint)
}

/// A text less the blanks and NULs at its end. Some file systems leave NULs where the power fails.
fn trimmed(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|b| !b.is_ascii_whitespace() && *b != 0);
    &text[..end.map_or(0, |last| last + 1)]
}

/// Whether what a look at a name saw is an open file.
fn is_named(handle: &File, named: io::Result<fs::Metadata>) -> bool {
    let (Ok(own), Ok(named)) = (handle.metadata(), named) else { return false };
    (own.dev(), own.ino()) == (named.dev(), named.ino()) && named.nlink() > 0
}

/// The folder of a path.
fn folder_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Makes a rename durable. A folder that by its nature cannot be synced is no failure.
fn sync_folder(path: &Path) -> io::Result<()> {
    use ErrorKind::{InvalidInput, PermissionDenied};
    let synced = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
    let is_failure = |e: &io::Error| !matches!(e.kind(), PermissionDenied | InvalidInput);
    synced.err().filter(is_failure).map_or(Ok(()), Err)
}

/// All bytes of a source, at most `limit`, with room from the start: to grow may be a system call.
fn read_limited(source: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(RESERVE + 4096);
    source.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Writes a document into a new private file: beside another, else here, else in the temp folder.
fn write_rescue_file(beside: &Path, document: &[u8]) -> Option<PathBuf> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!("sf-refresh-rescued-{}.json", since_1970.as_nanos());
    let folders = [folder_of(beside).to_owned(), PathBuf::from("."), std::env::temp_dir()];
    folders.into_iter().map(|folder| folder.join(&name)).find(|path| {
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let Ok(file) = opened else { return false };
        let written = file.write_all_at(document, 0).and_then(|()| file.sync_all());
        let written = written.and_then(|()| sync_folder(path));
        written.inspect_err(|_| drop(fs::remove_file(path))).is_ok()
    })
}

// ---- Output: stdout gets the result and nothing else, stderr all that is said about it. ----

/// What happened, on stderr.
fn say(path: Option<&Path>, text: &str) {
    let file = path.map_or_else(String::new, |path| format!("{}: ", path.display()));
    say_line(&format!("sf-refresh: {file}{text}"));
}

/// One line on stderr, whatever its text holds; there is nobody to tell if that fails.
fn say_line(text: &str) {
    let line: String = text.chars().filter(|c| is_printable(*c)).chain(['\n']).collect();
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Prints what can be had again, as `hint` says.
fn print_result(text: &[u8], hint: &str) -> Result<(), Error> {
    // A reader that has gone away needs it no more.
    let failure = print(text).err().filter(|e| e.kind() != ErrorKind::BrokenPipe);
    failure.map_or(Ok(()), |e| Err(Error::new(Exit::Undelivered, describe(&e), hint)))
}

/// Puts a grant that is in no token file where it can be found: journal, stdout or a file of its own.
fn deliver(document: &[u8], (cause, journal): &NotSaved, beside: &Path) -> Error {
    let in_journal = || {
        let path = journal.as_ref()?.path.display();
        Some((format!("it is in {path}"), "the next run finishes the save"))
    };
    let on_stdout = || {
        check_stdout().and_then(|()| print(document)).ok()?;
        let hint = "keep what is on stdout: it is the only copy of the new grant";
        Some(("the new document is on stdout".to_owned(), hint))
    };
    let in_file = || {
        let path = write_rescue_file(beside, document)?;
        journal.iter().for_each(Journal::remove);
        let hint = "keep the one that works, that file or the token file, in its place";
        Some((format!("it is in {}", path.display()), hint))
    };
    let cause = cause.as_ref().map(|cause| format!("cannot save: {}", describe(cause)));
    let place = match cause {
        None => in_file().or_else(in_journal).or_else(on_stdout),
        Some(_) => in_journal().or_else(on_stdout).or_else(in_file),
    };
    let why = cause.as_deref().unwrap_or("another program changed the file meanwhile");
    let (place, hint) = place.unwrap_or(("nor anywhere else".to_owned(), "log in again"));
    Error::new(Exit::Undelivered, format!("granted, but {why}; {place}"), hint)
}

/// Whether stdout can take an only copy. Rust's runtime leads a closed one to the null device.
fn check_stdout() -> io::Result<()> {
    const NULL_DEVICE: u64 = 0x103; // major 1, minor 3 (Linux, admin-guide/devices.txt)
    let mut stdout = stdout()?;
    if stdout.metadata()?.rdev() == NULL_DEVICE {
        return Err(io::Error::other("stdout is closed or /dev/null"));
    }
    // One that is open for reading alone, or full, says so.
    stdout.write(&[]).map(|_| ())
}

/// Writes to stdout.
fn print(bytes: &[u8]) -> io::Result<()> {
    let printed = stdout().and_then(|mut stdout| stdout.write_all(bytes));
    let what = |e: &io::Error| format!("cannot write to stdout: {}", describe(e));
    printed.map_err(|e| io::Error::new(e.kind(), what(&e)))
}

/// The descriptor itself: std's own `Stdout` passes over one that is not open for writing.
fn stdout() -> io::Result<File> {
    io::stdout().as_fd().try_clone_to_owned().map(File::from)
}

/// An I/O error in words, in lower case and without its number.
fn describe(cause: &io::Error) -> String {
    cause.to_string().split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// A failure to do `what` with the token file or its journal.
fn file_error(what: &str, cause: io::Error, hint: &str) -> Error {
    Error::new(Exit::File, format!("cannot {what}: {}", describe(&cause)), hint)
}

/// A token file that cannot be opened, and what to do about the usual causes.
fn cannot_open(cause: io::Error) -> Error {
    let missing =
        "check the name and its folder; --sfdx-url-file or --grant-type can make a first one";
    let closed =
        "the file has to be readable and writable: the server may replace the refresh token";
    let hint = match cause.kind() {
        ErrorKind::NotFound => missing,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => closed,
        _ => "",
    };
    file_error("open", cause, hint)
}

// ---- System: what std does not reach. The only unsafe code. ----

#[allow(unsafe_code)] // signal, flistxattr and renameat2 have no safe form in std
mod os {
    use std::env::consts::ARCH;
    use std::ffi::{CString, c_char, c_int, c_long};
    use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
    use std::{fs::File, io, os::fd::AsRawFd, path::Path};

    /// SIGHUP, SIGINT and SIGTERM (POSIX gives them these numbers).
    const STOPS: [c_int; 3] = [1, 2, 15];
    /// What `signal` takes and gives for a signal that is ignored.
    const IGNORE: usize = 1;
    /// The last stop that was noted, or 0.
    static NOTED: AtomicI32 = AtomicI32::new(0);
    /// A bit for each stop that is noted and not obeyed.
    static HELD: AtomicI32 = AtomicI32::new(0);

    unsafe extern "C" {
        // Safe: all that is ever set are 0, IGNORE and `note_stop`, which touches but an atomic.
        safe fn signal(number: c_int, action: usize) -> usize;
        fn flistxattr(file: c_int, list: *mut c_char, size: usize) -> isize;
        fn syscall(number: c_long, ...) -> c_long;
    }

    extern "C" fn note_stop(number: c_int) {
        NOTED.store(number, Relaxed);
    }

    /// From now on stops are noted and not obeyed; ignored ones stay ignored.
    pub fn hold_stops() {
        for number in STOPS {
            if signal(number, note_stop as *const () as usize) == IGNORE {
                signal(number, IGNORE);
                let _ = NOTED.compare_exchange(number, 0, Relaxed, Relaxed);
            } else {
                HELD.fetch_or(1 << number, Relaxed);
            }
        }
    }

    /// From now on stops are obeyed. Gives the number of one that was noted, or 0.
    pub fn release_stops() -> i32 {
        let held = HELD.swap(0, Relaxed);
        for number in STOPS.into_iter().filter(|number| held & 1 << number != 0) {
            signal(number, 0);
        }
        NOTED.load(Relaxed)
    }

    /// Whether a file has attributes that another in its place would lack, such as an ACL.
    pub fn has_attributes(file: &File) -> bool {
        let mut names = [0; 1024];
        let (file, list) = (file.as_raw_fd(), names.as_mut_ptr().cast());
        // SAFETY: at most the length of `names` is written to it. Others than Linux take more.
        let ask = || unsafe { flistxattr(file, list, names.len()) };
        let length = if cfg!(target_os = "linux") { ask() } else { 0 };
        match usize::try_from(length) {
            // Labels of the security module do not count.
            Ok(length) => names[..length]
                .split(|byte: &u8| *byte == 0)
                .any(|name| !name.is_empty() && !name.starts_with(b"security.")),
            // More than fits is some; a file system that knows of none has none.
            Err(_) => io::Error::last_os_error().kind() != io::ErrorKind::Unsupported,
        }
    }

    /// Swaps what two names stand for (renameat2, Linux 3.15; musl has no function for it).
    pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
        const ARCHES: [(&str, c_long); 5] =
            [("x86_64", 316), ("x86", 353), ("arm", 382), ("aarch64", 276), ("riscv64", 276)];
        let known = |(arch, _): &(&str, _)| *arch == ARCH && cfg!(target_os = "linux");
        let (_, number) = ARCHES.into_iter().find(known).ok_or(io::ErrorKind::Unsupported)?;
        let one = CString::new(one.as_os_str().as_encoded_bytes())?;
        let other = CString::new(other.as_os_str().as_encoded_bytes())?;
        let (here, exchange): (c_int, c_int) = (-100, 2); // AT_FDCWD, RENAME_EXCHANGE
        // SAFETY: both names end with a NUL and outlive the call, which writes nothing.
        let done = unsafe { syscall(number, here, one.as_ptr(), here, other.as_ptr(), exchange) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
