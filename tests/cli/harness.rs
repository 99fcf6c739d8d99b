//! What every test here uses: a folder of its own, a run of the binary, and what came of it.
//!
//! Each run that is waited for is held to what holds for all runs: an exit status of 0 to 6, or that
//! of a signal that was sent, stderr in the documented form, no secret on stderr, no secret but the
//! access token on stdout.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{PipeWriter, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::folder::Snapshot;
pub use crate::folder::{TempDir, is_root, set_age, set_mode, set_modified};
use crate::secrets::Secrets;
pub use crate::server::http::{base64, form_encoded};
pub use crate::server::now_millis;
use crate::server::{CLIENT_ID, Config, OAuth, REFRESH_TOKEN, Reply, Server};

/// The name of the token file of a [`Scenario`].
pub const TOKEN_FILE: &str = "token.json";
/// The access token that it holds at first.
pub const OLD_ACCESS_TOKEN: &str = "00Dxx0000001gPL!AT-0-old.token";
/// A user that owns nothing.
pub const NOBODY: u32 = 65_534;

/// The binary under test.
const BINARY: &str = env!("CARGO_BIN_EXE_sf-refresh");
/// How long a run may take before it counts as stuck; no test waits for it.
const WATCHDOG: Duration = Duration::from_secs(120);

// ---- A token file and its endpoint ----

/// A folder with a token file, and the endpoint that renews it.
pub struct Scenario {
    pub dir: TempDir,
    pub server: Server,
}

impl Scenario {
    /// An endpoint that answers with these replies in turn, the last one again and again.
    pub fn scripted(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::with(Config::scripted(replies))
    }

    /// An endpoint that rotates refresh tokens, and revokes the grant when one is used twice.
    pub fn strict() -> Self {
        Self::with(Config::oauth(OAuth::default()))
    }

    /// An endpoint made as told.
    pub fn with(config: Config) -> Self {
        let dir = TempDir::new();
        dir.write(TOKEN_FILE, token_document());
        Self { dir, server: Server::start(config) }
    }

    /// Writes the token file anew.
    pub fn token(self, bytes: impl AsRef<[u8]>) -> Self {
        self.dir.write(TOKEN_FILE, bytes);
        self
    }

    /// A run in the folder, with no arguments yet.
    pub fn bare(&self) -> Run<'_> {
        Run { server: Some(&self.server), ..Run::new(&self.dir) }
    }

    /// A run with client id and endpoint given as options, and no file yet.
    pub fn command(&self) -> Run<'_> {
        self.bare().args(["-i", CLIENT_ID, "-e", &self.server.url()])
    }

    /// Runs it on the token file with client id, endpoint and these options.
    #[track_caller]
    pub fn run(&self, options: &[&str]) -> Outcome {
        self.command().args(options).arg(TOKEN_FILE).run()
    }

    /// The path of the token file.
    pub fn file(&self) -> PathBuf {
        self.dir.join(TOKEN_FILE)
    }

    /// The path of its journal.
    pub fn journal(&self) -> PathBuf {
        self.dir.join(format!(".{TOKEN_FILE}.sf-refresh"))
    }

    /// Waits until so many requests have come in, at most as long as the watchdog.
    #[track_caller]
    pub fn wait_for_posts(&self, count: usize) {
        let end = Instant::now() + WATCHDOG;
        while self.server.posts() != count {
            assert!(Instant::now() < end, "never: {count} requests");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs it to its end, and does something while the endpoint thinks about the request of this
    /// number, counted from 1.
    #[track_caller]
    pub fn while_thinking(
        &self,
        number: usize,
        run: Run<'_>,
        act: impl FnOnce(&mut Running<'_>),
    ) -> Outcome {
        self.server.hold_from(number);
        let mut running = run.start();
        self.wait_for_posts(number);
        act(&mut running);
        self.server.release();
        running.wait()
    }

    /// What the token file holds now.
    pub fn document(&self) -> Value {
        self.dir.json(TOKEN_FILE)
    }

    /// The files in the folder that hold what could not be saved, by their documented names.
    pub fn rescued(&self) -> Vec<PathBuf> {
        let is_rescued = |name: &&String| name.starts_with("sf-refresh-rescued-");
        let names = self.dir.names();
        names.iter().filter(is_rescued).map(|name| self.dir.join(name)).collect()
    }

    /// A string member of the token file; panics where it is none.
    #[track_caller]
    pub fn member(&self, name: &str) -> String {
        let document = self.document();
        document[name].as_str().unwrap_or_else(|| panic!("no {name} in {document}")).to_owned()
    }

    /// Holds the token file to what a strict endpoint granted last, with nothing left beside it.
    #[track_caller]
    pub fn assert_in_step(&self) {
        assert_eq!(Some(self.member("access_token")), self.server.live().access_token);
        assert_eq!(Some(self.member("refresh_token")), self.server.live().refresh_token);
        assert!(!self.journal().exists(), "the journal is still there");
        assert_eq!(self.server.replays(), 0, "a used refresh token was sent again");
    }
}

/// The token file of a [`Scenario`], as a login at Salesforce gives it.
pub fn token_document() -> String {
    format!(
        r#"{{
  "access_token": "{OLD_ACCESS_TOKEN}",
  "refresh_token": "{REFRESH_TOKEN}",
  "signature": "SIG-0-old-signature=",
  "scope": "refresh_token api id",
  "instance_url": "https://old.my.salesforce.com",
  "id": "https://login.salesforce.com/id/00Dxx0000001gPLEAY/005xx000001SwiUAAS",
  "token_type": "Bearer",
  "issued_at": "1700000000000"
}}
"#
    )
}

// ---- A run ----

/// A run of the binary with an empty environment.
#[derive(Default)]
pub struct Run<'a> {
    dir: PathBuf,
    pub server: Option<&'a Server>,
    through: Vec<OsString>,
    pub args: Vec<OsString>,
    pub env: Vec<(String, OsString)>,
    pub stdin: Vec<u8>,
    stdout: Option<Stdio>,
    /// Another user, and a copy of the binary which that user can read.
    user: Option<(u32, TempDir)>,
    pub secrets: Vec<String>,
    signals: Vec<i32>,
}

impl<'a> Run<'a> {
    /// A run in this folder, with no arguments and nothing on stdin.
    pub fn new(dir: &TempDir) -> Self {
        Self { dir: dir.path().to_owned(), ..Self::default() }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args(self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// What stdin holds, to its end.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Sends stdout there; the outcome then has none.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Starts it through another program, which takes the command as its last arguments.
    pub fn through(mut self, command: &[&str]) -> Self {
        self.through = command.iter().map(Into::into).collect();
        self
    }

    /// Runs it as another user.
    pub fn user(mut self, user: u32) -> Self {
        let dir = TempDir::new();
        // By another program: a file that is open for writing when another test forks is busy.
        let copied = Command::new("install").args(["-m", "755", BINARY]).arg(dir.path()).status();
        assert!(copied.expect("install").success(), "no copy of the binary");
        self.user = Some((user, dir));
        self
    }

    /// One more text that must not be shown: what a test keeps in files and variables is known.
    pub fn secret(mut self, secret: &str) -> Self {
        self.secrets.push(secret.to_owned());
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.start().wait()
    }

    /// Starts it.
    pub fn start(mut self) -> Running<'a> {
        let mut words = self.through.clone();
        words.push(match &self.user {
            Some((_, dir)) => dir.join("sf-refresh").into(),
            None => BINARY.into(),
        });
        words.extend(self.args.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(self.env.clone()).current_dir(&self.dir);
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        command.stdout(self.stdout.take().unwrap_or_else(Stdio::piped));
        if let Some((user, _)) = self.user {
            command.uid(user).gid(user);
        }
        let before = Snapshot::of(&self.dir);
        let posts = self.posts();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{words:?}: {e}"));
        let mut stdin = child.stdin.take().expect("a pipe");
        let bytes = self.stdin.clone();
        // It may end without having read all of it.
        thread::spawn(move || stdin.write_all(&bytes));
        Running {
            stdout: child.stdout.take().map(Collected::start),
            stderr: Collected::start(child.stderr.take().expect("a pipe")),
            run: self,
            child,
            before,
            posts,
        }
    }

    fn posts(&self) -> usize {
        self.server.map_or(0, Server::posts)
    }

    /// The command as one could type it, with its variables.
    fn shown(&self) -> String {
        let env = self.env.iter().map(|(name, value)| format!("{name}={value:?}"));
        let quoted = |word: &OsString| format!("{word:?}");
        let before = env.chain(self.through.iter().map(quoted));
        let words = before.chain(["sf-refresh".to_owned()]).chain(self.args.iter().map(quoted));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Whether an option is on the command line, in its short or its long form.
    fn has(&self, short: char, long: &str) -> bool {
        self.args.iter().filter_map(|arg| arg.to_str()).any(|arg| {
            let shorts = arg.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
            arg == long || shorts.is_some_and(|rest| rest.contains(short))
        })
    }

    /// Whether stdout may get the whole document.
    fn prints_document(&self) -> bool {
        let words = self.args.join(OsStr::new("\n"));
        let words = format!("\n{}\n", words.to_string_lossy());
        let forms = ["-", "-ojson", "-o=json", "-o\njson", "--output=json", "--output\njson"];
        forms.iter().any(|form| words.contains(&format!("\n{form}\n")))
    }
}

/// A stdout whose reader has gone away.
pub fn closed_pipe() -> PipeWriter {
    let (_, writer) = std::io::pipe().expect("a pipe");
    writer
}

/// A stdout on a device that is full.
pub fn full_device() -> fs::File {
    fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full")
}

/// A stream that is read to its end on a thread of its own.
struct Collected {
    bytes: Vec<u8>,
    chunks: Receiver<Vec<u8>>,
}

impl Collected {
    fn start(mut stream: impl Read + Send + 'static) -> Self {
        let (sender, chunks) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                // The run may have been killed, and nobody waits.
                let _ = sender.send(buffer[..count].to_vec());
            }
        });
        Self { bytes: Vec::new(), chunks }
    }

    /// Reads on while more is wanted, to the end at most; none where that takes too long.
    fn read_while(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        while wanted(&self.bytes) {
            match self.chunks.recv_timeout(WATCHDOG) {
                Ok(chunk) => self.bytes.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return None,
            }
        }
        Some(self.bytes.clone())
    }
}

/// A run that has not been waited for; it is killed where that never happens.
pub struct Running<'a> {
    run: Run<'a>,
    child: Child,
    stdout: Option<Collected>,
    stderr: Collected,
    before: Snapshot,
    posts: usize,
}

impl Running<'_> {
    /// Waits until stderr has this text.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        self.stderr.read_while(|bytes| !has(bytes));
        let said = String::from_utf8_lossy(&self.stderr.bytes);
        assert!(said.contains(text), "{}: never said {text:?}, but {said:?}", self.run.shown());
    }

    /// Sends it a signal; returns once it has it.
    pub fn signal(&mut self, number: i32) {
        self.run.signals.push(number);
        let words = [format!("-{number}"), self.child.id().to_string()];
        let sent = Command::new("kill").args(words).status().expect("kill");
        assert!(sent.success(), "no signal {number} for {}", self.run.shown());
    }

    /// Kills it without a chance to clean up, and waits for its end.
    pub fn kill(self) {
        drop(self);
    }

    /// Waits for its end, and holds it to what holds for every run.
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        let Some(stderr) = self.stderr.read_while(|_| true) else {
            panic!("still running after {} s: {}", WATCHDOG.as_secs(), self.run.shown());
        };
        let stdout = self.stdout.as_mut().and_then(|it| it.read_while(|_| true));
        let status = self.child.wait().expect("exit status");
        let outcome = Outcome {
            command: self.run.shown(),
            status,
            stdout: stdout.unwrap_or_default(),
            stderr: String::from_utf8(stderr).expect("stderr in UTF-8"),
            sent: self.run.posts() - self.posts,
            before: std::mem::take(&mut self.before),
            after: Snapshot::of(&self.run.dir),
        };
        outcome.check(&self.run);
        outcome
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // No more than an error where it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

// ---- What came of a run ----

/// What a run did.
pub struct Outcome {
    command: String,
    status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    /// How many requests came in meanwhile.
    pub sent: usize,
    before: Snapshot,
    after: Snapshot,
}

impl Outcome {
    /// The exit status.
    pub fn status(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Panics with all there is to know about this run.
    #[track_caller]
    pub fn fail(&self, why: &str) -> ! {
        panic!(
            "{why}\n  command: {}\n  {}\n  requests: {}\n  stdout: {:?}\n  stderr:\n{}",
            self.command,
            self.status,
            self.sent,
            self.text(),
            self.stderr
        );
    }

    /// Fails unless this holds.
    #[track_caller]
    pub fn assert(&self, holds: bool, why: &str) -> &Self {
        if !holds {
            self.fail(why);
        }
        self
    }

    #[track_caller]
    pub fn assert_status(&self, status: i32) -> &Self {
        self.assert(self.status() == status, &format!("exit status is not {status}"))
    }

    /// A signal ended it.
    #[track_caller]
    pub fn assert_ended_by(&self, signal: i32) -> &Self {
        self.assert(self.status.signal() == Some(signal), &format!("not ended by signal {signal}"))
    }

    /// Exit status 0.
    #[track_caller]
    pub fn assert_ok(&self) -> &Self {
        self.assert_status(0)
    }

    /// This exit status, nothing on stdout, something on stderr, and the folder as it was before.
    #[track_caller]
    pub fn assert_failed(&self, status: i32) -> &Self {
        self.assert_status(status).assert_stdout("").assert_unchanged();
        self.assert(self.stderr.starts_with("sf-refresh: "), "stderr does not say what happened")
    }

    /// As [`assert_failed`](Self::assert_failed), and no request came in.
    #[track_caller]
    pub fn assert_failed_unsent(&self, status: i32) -> &Self {
        self.assert_failed(status).assert_sent(0)
    }

    /// Nothing in the folder has changed: no bytes, no mode, no owner, no time, no new name.
    #[track_caller]
    pub fn assert_unchanged(&self) -> &Self {
        let differences = self.before.differences(&self.after);
        self.assert(differences.is_empty(), &format!("the folder has changed:\n{differences}"))
    }

    /// So many requests came in meanwhile.
    #[track_caller]
    pub fn assert_sent(&self, count: usize) -> &Self {
        self.assert(self.sent == count, &format!("not {count} requests"))
    }

    #[track_caller]
    pub fn assert_stdout(&self, text: &str) -> &Self {
        self.assert(self.stdout == text.as_bytes(), &format!("stdout is not {text:?}"))
    }

    /// stderr has this text somewhere.
    #[track_caller]
    pub fn assert_says(&self, text: &str) -> &Self {
        self.assert(self.stderr.contains(text), &format!("stderr does not say {text:?}"))
    }

    #[track_caller]
    pub fn assert_says_not(&self, text: &str) -> &Self {
        self.assert(!self.stderr.contains(text), &format!("stderr says {text:?}"))
    }

    /// stderr has a hint with this text.
    #[track_caller]
    pub fn assert_hints(&self, text: &str) -> &Self {
        let mut hints = self.stderr.lines().filter(|line| line.starts_with("hint: "));
        self.assert(hints.any(|hint| hint.contains(text)), &format!("no hint has {text:?}"))
    }

    /// stderr is empty.
    #[track_caller]
    pub fn assert_silent(&self) -> &Self {
        self.assert(self.stderr.is_empty(), "stderr is not empty")
    }

    /// What holds for every run.
    #[track_caller]
    fn check(&self, run: &Run) {
        let ended_by = |it: &i32| self.status() == 128 + it || self.status.signal() == Some(*it);
        let documented = (0..=6).contains(&self.status()) || run.signals.iter().any(ended_by);
        self.assert(documented, "exit status is none of 0 to 6 and of no signal sent");
        self.check_form(run);
        let texts = self.before.texts().chain(self.after.texts());
        let secrets = Secrets::of(run, texts);
        if let Some(secret) = secrets.shown_in(&self.stderr, true) {
            self.fail(&format!("stderr holds the secret {secret:?}"));
        }
        if self.status() == 6 || run.prints_document() {
            return;
        }
        if let Some(secret) = secrets.shown_in(&self.text(), false) {
            self.fail(&format!("stdout holds the secret {secret:?}"));
        }
    }

    /// Each line on stderr is a message, a hint after a message, or part of what `-n` shows.
    #[track_caller]
    fn check_form(&self, run: &Run) {
        let unfit = |c: char| c != '\n' && (c.is_control() || is_bidi(c));
        self.assert(!self.stderr.contains(unfit), "stderr holds a control character");
        self.assert(self.stderr.is_empty() || self.stderr.ends_with('\n'), "stderr ends in a line");
        let mut after_message = false;
        for line in self.stderr.lines() {
            let is_message = line.len() > 12 && line.starts_with("sf-refresh: ");
            let is_hint = line.len() > 6 && line.starts_with("hint: ");
            let is_shown = run.has('n', "--dry-run") && is_of_the_request(line);
            let fits = is_message || is_hint && after_message || is_shown;
            self.assert(fits, &format!("stderr has a line of another form: {line:?}"));
            let ends = line.ends_with('.') && !is_shown;
            self.assert(!ends, &format!("stderr has a full stop at the end of {line:?}"));
            after_message = is_message;
        }
        let speaks = run.has('v', "--verbose") || run.has('n', "--dry-run");
        if self.status() == 0 && run.has('q', "--quiet") && !speaks {
            self.assert_silent();
        }
        let has_said = !self.stderr.is_empty() || self.status.signal().is_some();
        self.assert(self.status() == 0 || has_said, "a failure without a word");
    }
}

/// Characters that turn text round or end a line without being control characters.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// A line of the request as `-n` shows it.
fn is_of_the_request(line: &str) -> bool {
    let starts = ["POST http", "Accept: ", "Content-Type: ", "grant_type=refresh_token"];
    let is = |start: &&str| line.starts_with(start);
    line.is_empty() || line == "Authorization: Basic ***" || starts.iter().any(is)
}
