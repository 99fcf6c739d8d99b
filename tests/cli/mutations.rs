//! Token files and replies that nobody would write: whatever comes, a run ends in good order.
//!
//! `SF_REFRESH_MUTATIONS` says how many there are, `SF_REFRESH_SEED` which is the first. A failure
//! tells its own seed; with that one and a single mutation it is made again.

use std::thread;

use serde_json::{Map, Value, json};

use crate::harness::{
    OLD_ACCESS_TOKEN, Outcome, Scenario, TOKEN_FILE, form_encoded, token_document,
};
use crate::server::{Framing, REFRESH_TOKEN, Reply};

const MUTATIONS: u64 = 2000;
const SEED: u64 = 6749;
const WORKERS: u64 = 2;

// ---- Chance ----

/// Xorshift64* (Marsaglia, Vigna): the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Neighbouring seeds have to differ in many bits, and none may be zero.
        let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Self((state ^ (state >> 27)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("a small number")
    }

    /// Whether one of so many chances came true.
    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// A range in something of this length.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let longest = if self.one_in(4) { length - start } else { (length - start).min(12) };
        start..start + self.below(longest + 1)
    }
}

/// Half of the mutations, each with the chance of its own seed.
fn each_mutation(check: impl Fn(&mut Random) + Sync) {
    let number = |name: &str, default: u64| {
        let given = std::env::var(name).ok().filter(|value| !value.is_empty());
        given.map_or(default, |value| value.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
    };
    let (count, seed) =
        (number("SF_REFRESH_MUTATIONS", MUTATIONS), number("SF_REFRESH_SEED", SEED));
    let work = |worker: u64| {
        for at in (worker..count.div_ceil(2)).step_by(2) {
            let seed = Told(seed.wrapping_add(at));
            check(&mut Random::new(seed.0));
        }
    };
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || work(worker));
        }
    });
}

/// A seed that is told when its test fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("made by SF_REFRESH_SEED={} SF_REFRESH_MUTATIONS=1", self.0);
        }
    }
}

// ---- Bytes ----

/// What parsers and terminals stumble over.
const SNIPPETS: [&[u8]; 30] = [
    b"\0",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"\x1b[2J",
    b"\x7f",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xae",
    b"\xc2\x85",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\u202e",
    b"\\ud83d\\ude00",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e999",
    b"-",
    b"0",
    b";",
    b" ",
];

/// Changes some bytes, drops or repeats some.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let range = random.range(bytes.len());
        match random.below(8) {
            0 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            1 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] = random.pick(&SNIPPETS)[0];
            }
            2 => drop(bytes.drain(range)),
            3 => {
                let copy = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, copy);
            }
            4 => {
                let copy = bytes[range].to_vec();
                let at = random.below(bytes.len() + 1);
                bytes.splice(at..at, copy);
            }
            5 if random.one_in(3) => bytes.truncate(range.start),
            _ => {
                let snippet = random.pick(&SNIPPETS);
                bytes.splice(range.start..range.start, snippet.iter().copied());
            }
        }
    }
}

// ---- JSON ----

/// A string that is a token, and another one each time.
fn new_token(start: &str, random: &mut Random) -> String {
    let odd = random.pick(&["", "+/=", " %21&", "!~{}", "'\\\""]);
    format!("{start}-{:012x}{odd}", random.next())
}

/// The text of any JSON value.
fn value(random: &mut Random) -> String {
    const VALUES: [&str; 36] = [
        "null",
        "true",
        "0",
        "-0",
        "17",
        "1e400",
        "-1.5E-400",
        "0.10",
        "1700000000000",
        "-1700000000000",
        "99999999999999999999999999999999",
        "18446744073709551616",
        "\"\"",
        "\" \"",
        "\"1700000000000\"",
        "\"99999999999999999999\"",
        "\"-1\"",
        "[]",
        "{}",
        "[[[]]]",
        "[1,2.0,3e1]",
        "{\"a\":{\"b\":null}}",
        "{\"a\":1,\"a\":2}",
        "\"\\u0000\\u001b[31m\"",
        "\"\\r\\nsf-refresh: \\b\\f\\t\"",
        "\"\\u202egnp.exe\\u2066\"",
        "\"\\ud83d\\ude00\"",
        "\"\\/\\\\\\\"\"",
        "\"grüße \u{1F511}\"",
        "\"\u{7F}\u{85}\u{2028}\"",
        "\"https://test.salesforce.com/id/x\"",
        "\"https://user@test.salesforce.com:1/id\"",
        "01",
        "+1",
        "'x'",
        "NaN",
    ];
    let depth = random.pick(&[&3, &100, &126, &127, &128, &200, &5000]);
    match random.below(20) {
        0 => format!("{}{}", "[".repeat(*depth), "]".repeat(*depth)),
        1 => format!("{}1{}", "{\"a\":".repeat(*depth), "}".repeat(*depth)),
        2 => format!("\"{}\"", "long ".repeat(random.below(8000))),
        3 => format!("{}.{}", "9".repeat(random.below(400) + 1), "3".repeat(random.below(400) + 1)),
        _ => random.pick(&VALUES).to_owned(),
    }
}

/// The text of an object with these members, and some more or some less.
fn object(members: &[(&str, String)], random: &mut Random) -> Vec<u8> {
    const NAMES: [&str; 12] = [
        "access_token",
        "refresh_token",
        "id_token",
        "issued_at",
        "id",
        "instance_url",
        "error",
        "error_description",
        "scope",
        "",
        "a\\u0000b",
        "grüße",
    ];
    let mut texts = Vec::new();
    for (name, text) in members {
        match random.below(12) {
            0 => {}
            1 => texts.push(format!("\"{name}\":{}", value(random))),
            _ => texts.push(format!("\"{name}\":{}", json!(text))),
        }
    }
    for _ in 0..random.below(4) {
        let at = random.below(texts.len() + 1);
        texts.insert(at, format!("\"{}\":{}", random.pick(&NAMES), value(random)));
    }
    let join = random.pick(&[",", ", ", ",\n  ", "\r\n,\t"]);
    format!("{{{}}}", texts.join(join)).into_bytes()
}

/// A token document, and most of the time something wrong with it.
fn document(random: &mut Random) -> Vec<u8> {
    let members = [
        ("access_token", new_token("00Dxx!AT-old", random)),
        ("refresh_token", new_token("5Aep-RT-old", random)),
        ("signature", new_token("SIG-old", random)),
        ("instance_url", "https://old.my.salesforce.com".to_owned()),
        ("id", "https://login.salesforce.com/id/00D/005".to_owned()),
        ("issued_at", "1700000000000".to_owned()),
    ];
    let mut bytes = object(&members, random);
    around(&mut bytes, random);
    if random.one_in(2) {
        mutate(&mut bytes, random);
    }
    bytes
}

/// Puts something before or after a document that may or may not be allowed there.
fn around(bytes: &mut Vec<u8>, random: &mut Random) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let utf16 = |order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<_>>();
    match random.below(24) {
        0 => *bytes = [b"\xEF\xBB\xBF", &bytes[..]].concat(),
        1 => bytes.extend_from_slice(b"\r\n \t\n"),
        2 => bytes.extend_from_slice(b"\0\0\0\0"),
        3 => bytes.extend_from_slice(&bytes.clone()),
        4 => *bytes = [b"\xFF\xFE", &utf16(u16::to_le_bytes)[..]].concat(),
        5 => *bytes = utf16(u16::to_be_bytes),
        6 => *bytes = text.encode_utf16().map(|unit| unit.to_le_bytes()[0]).collect(),
        7 => *bytes = [b"[", &bytes[..], b"]"].concat(),
        8 => bytes.clear(),
        _ => {}
    }
}

/// The members of a token file; the power may have failed while it was being cut.
fn members(bytes: &[u8]) -> Option<Map<String, Value>> {
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let is_blank = |byte: &u8| b" \t\r\n\0".contains(byte);
    let end = text.iter().rposition(|byte| !is_blank(byte)).map_or(0, |at| at + 1);
    match serde_json::from_slice(&text[..end]) {
        Ok(Value::Object(members)) => Some(members),
        _ => None,
    }
}

/// The members of a reply: its first JSON value counts, whatever follows.
fn reply_members(bytes: &[u8]) -> Option<Map<String, Value>> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next() {
        Some(Ok(Value::Object(members))) => Some(members),
        _ => None,
    }
}

/// A member that is a token (RFC 6749 appendix A.12, A.17).
fn token<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    let token = members.get(name)?.as_str()?;
    Some(token).filter(|t| !t.is_empty() && t.bytes().all(|b| (0x20..=0x7E).contains(&b)))
}

/// What a file has to hold once this reply is merged into it; `issued_at` as the program wrote it,
/// where the reply has none.
fn merged(
    mut file: Map<String, Value>,
    reply: Map<String, Value>,
    saved: &Map<String, Value>,
) -> Map<String, Value> {
    if let (false, Some(now)) = (reply.contains_key("issued_at"), saved.get("issued_at")) {
        file.entry("issued_at").and_modify(|then| now.clone_into(then));
    }
    let rotates = token(&reply, "refresh_token").is_some();
    for (name, value) in reply {
        if name != "refresh_token" || rotates {
            file.insert(name, value);
        }
    }
    file
}

/// Whether a secret is so short or so common that it is found where it was not shown.
fn is_ambiguous(document: &[u8]) -> bool {
    let text = String::from_utf8_lossy(document).into_owned();
    ["access_token", "refresh_token", "id_token", "signature", "error"].iter().any(|name| {
        text.match_indices(&format!("\"{name}\"")).any(|(at, key)| {
            let rest = text[at + key.len()..].trim_start().trim_start_matches(':');
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            let value = values.next().and_then(Result::ok).unwrap_or_default();
            let is_part = |word: &str| !value.is_empty() && word.contains(&*value);
            is_part("00Dxx!AT-new") || value.ends_with('.') || WORDS.iter().any(|it| is_part(it))
        })
    })
}

/// What messages may well say.
const WORDS: [&str; 10] = [
    "access_token",
    "refresh_token",
    "id_token",
    "signature",
    "instance_url",
    "issued_at",
    "error",
    "error_description",
    "https://old.my.salesforce.com",
    "1700000000000",
];

// ---- The tests ----

/// Runs it once; a run that has to wait for the watchdog of this has hung.
fn run(scenario: &Scenario) -> Outcome {
    let outcome = scenario.run(&["--retry", "0", "--timeout", "60"]);
    outcome.assert_says_not("in time");
    outcome
}

#[test]
fn any_token_file_is_renewed_or_left_as_it_is() {
    each_mutation(|random| {
        let file = document(random);
        if is_ambiguous(&file) {
            return;
        }
        let grant = json!({
            "access_token": "00Dxx!AT-new", "refresh_token": "5Aep-RT-new", "extra": [1.50, null],
        });
        let scenario = Scenario::scripted([Reply::json(200, grant.to_string())]).token(&file);
        let outcome = run(&scenario);
        let usable = members(&file).filter(|it| token(it, "refresh_token").is_some());
        let Some(old) = usable else {
            outcome.assert_failed_unsent(1);
            return;
        };
        outcome.assert_ok().assert_sent(1).assert_stdout("00Dxx!AT-new\n");
        let sent = scenario.server.last_request().field("refresh_token");
        assert_eq!(sent.as_deref(), token(&old, "refresh_token"));
        let Value::Object(grant) = grant else { unreachable!() };
        assert_holds(&scenario, &outcome, old, grant);
    });
}

/// The file holds its old members and those of the reply, in order, and nothing is beside it.
fn assert_holds(
    scenario: &Scenario,
    outcome: &Outcome,
    old: Map<String, Value>,
    reply: Map<String, Value>,
) {
    let bytes = scenario.dir.read(TOKEN_FILE);
    let Some(saved) = members(&bytes) else { outcome.fail("the file is no token document") };
    let expected = Value::Object(merged(old, reply, &saved));
    let expected = serde_json::to_string_pretty(&expected).expect("JSON") + "\n";
    outcome.assert(bytes == expected.as_bytes(), &format!("the file should hold {expected}"));
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

#[test]
fn any_reply_is_a_whole_grant_or_changes_nothing() {
    each_mutation(|random| {
        let answer = Answer::new(random);
        if is_ambiguous(&answer.body) {
            return;
        }
        let scenario = Scenario::scripted([answer.reply.clone()]);
        let outcome = run(&scenario);
        outcome.assert_sent(1);
        let old = members(token_document().as_bytes()).expect("a document");
        match (outcome.status(), answer.grant()) {
            (0, Some(reply)) if answer.intact => assert_holds(&scenario, &outcome, old, reply),
            (0, _) => assert_whole(&scenario, &outcome),
            (5, grant) if scenario.member("refresh_token") != REFRESH_TOKEN => {
                // What came of an answer that is not intact is not known here.
                let known = grant.is_none() && answer.rotates();
                outcome.assert(!answer.intact || known, "a refresh token of nowhere");
                assert_eq!(scenario.member("access_token"), OLD_ACCESS_TOKEN);
                assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
            }
            (_, Some(_)) if answer.intact => outcome.fail("a grant was lost"),
            (status, _) => {
                outcome.assert((3..=5).contains(&status), "a status for another time");
                outcome.assert_failed(status);
            }
        }
        if let (0, Some(status)) = (outcome.status(), answer.refuses()) {
            outcome.fail(&format!("HTTP {status} was taken for a grant"));
        }
    });
}

/// The file holds a document with a refresh token, and the access token that is on stdout.
fn assert_whole(scenario: &Scenario, outcome: &Outcome) {
    let Some(saved) = members(&scenario.dir.read(TOKEN_FILE)) else {
        outcome.fail("the file is no token document");
    };
    let refresh_token = saved.get("refresh_token").and_then(Value::as_str).unwrap_or_default();
    outcome.assert(!refresh_token.is_empty(), "the file has no refresh token");
    let access_token = token(&saved, "access_token").unwrap_or_default();
    outcome.assert(access_token != OLD_ACCESS_TOKEN, "the file has the old access token");
    outcome.assert_stdout(&format!("{access_token}\n"));
    assert_eq!(scenario.dir.names(), [TOKEN_FILE]);
}

/// A reply, and what is known about it.
struct Answer {
    reply: Reply,
    status: u16,
    body: Vec<u8>,
    /// The body comes to the client as it is here.
    intact: bool,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("answered HTTP {} {:?}", self.status, String::from_utf8_lossy(&self.body));
        }
    }
}

impl Answer {
    fn new(random: &mut Random) -> Self {
        let mut body = if random.one_in(3) { refusal(random) } else { grant(random) };
        around(&mut body, random);
        if random.one_in(3) {
            mutate(&mut body, random);
        }
        let statuses =
            [&200, &200, &200, &200, &200, &201, &204, &206, &299, &300, &302, &304, &400];
        let more =
            [&400, &400, &401, &403, &404, &408, &418, &420, &429, &500, &502, &503, &599, &999];
        let status = *random.pick(&[&statuses[..], &more[..]].concat());
        match random.below(8) {
            0 => Self::broken_off(status, body, random),
            1 | 2 => Self::raw(status, body, random),
            _ => Self::framed(status, body, random),
        }
    }

    /// In one of the ways that HTTP has to send a body, with some headers.
    fn framed(status: u16, body: Vec<u8>, random: &mut Random) -> Self {
        let framings = [
            &Framing::Length,
            &Framing::Chunked,
            &Framing::CloseDelimited,
            &Framing::CloseAbrupt,
            &Framing::TooLong(1),
            &Framing::ChunkedCut,
        ];
        let framing = *random.pick(&framings);
        let mut reply = Reply::new(status, body.clone()).framing(framing);
        for _ in 0..random.below(3) {
            let (name, text) = header(random);
            reply = reply.header(name, &text);
        }
        Self { reply, status, body, intact: status != 204 && status != 304 }
    }

    /// Without an answer, or with half of one.
    fn broken_off(status: u16, body: Vec<u8>, random: &mut Random) -> Self {
        let half = body[..random.below(body.len() + 1)].to_vec();
        let reply = match random.below(4) {
            0 => Reply::drop_before_reply(),
            1 => Reply::reset_before_reply(),
            2 => Reply::json(status, half).framing(Framing::TooLong(random.below(99) + 1)),
            _ => Reply::json(status, half).framing(Framing::ChunkedCut),
        };
        Self { reply, status, body, intact: false }
    }

    /// With a head that may be anything as well.
    fn raw(status: u16, body: Vec<u8>, random: &mut Random) -> Self {
        let version =
            random.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2", "ICY"]);
        let mut head = format!("{version} {status} Some Reason\r\n").into_bytes();
        for _ in 0..random.below(5) {
            let (name, text) = header(random);
            head.extend_from_slice(format!("{name}: {text}\r\n").as_bytes());
        }
        if random.one_in(3) {
            mutate(&mut head, random);
        }
        let mut bytes = [&head[..], b"\r\n", &body[..]].concat();
        if random.one_in(3) {
            mutate(&mut bytes, random);
        }
        Self { reply: Reply::raw(bytes), status, body, intact: false }
    }

    /// The members of a grant, where it is one.
    fn grant(&self) -> Option<Map<String, Value>> {
        let members = reply_members(&self.body).filter(|_| (200..=299).contains(&self.status))?;
        token(&members, "access_token")?;
        Some(members)
    }

    /// Whether it brings another refresh token.
    fn rotates(&self) -> bool {
        let members = reply_members(&self.body).filter(|_| (200..=299).contains(&self.status));
        let members = members.unwrap_or_default();
        token(&members, "refresh_token").is_some_and(|token| token != REFRESH_TOKEN)
    }

    /// The status, where it is certain that it came and is none of success.
    fn refuses(&self) -> Option<u16> {
        Some(self.status).filter(|status| self.intact && !(200..=299).contains(status))
    }
}

/// The body of a grant, and often something wrong with it.
fn grant(random: &mut Random) -> Vec<u8> {
    let members = [
        ("access_token", new_token("00Dxx!AT-new", random)),
        ("refresh_token", new_token("5Aep-RT-new", random)),
        ("signature", new_token("SIG-new", random)),
        ("instance_url", "https://new.my.salesforce.com".to_owned()),
        ("issued_at", "1800000000000".to_owned()),
    ];
    object(&members, random)
}

/// The body of a refusal that may tell secrets.
fn refusal(random: &mut Random) -> Vec<u8> {
    let errors = ["invalid_grant", "invalid_client", "server_error", "new\u{1B}[2J_kind", ""];
    let secret =
        random.pick(&[REFRESH_TOKEN, OLD_ACCESS_TOKEN, "token request is already being processed"]);
    let spoken = if random.one_in(2) { form_encoded(secret) } else { secret.to_owned() };
    let filler = "\u{1B}]0;x\u{7}\r\nhint: \u{202E}".repeat(random.below(60));
    let members = [
        ("error", random.pick(&errors).to_owned()),
        ("error_description", format!("{filler}<{spoken}>{spoken}")),
        ("refresh_token", new_token("5Aep-RT-new", random)),
    ];
    object(&members, random)
}

/// A header that means something to the program, with a value that may mean nothing.
fn header(random: &mut Random) -> (&'static str, String) {
    const HEADERS: [(&str, &[&str]); 8] = [
        ("Content-Type", &["application/json", "text/html", "", "\u{FC}", ";;;", "a/b;charset=x"]),
        (
            "Retry-After",
            &[
                "0",
                "1",
                "86400",
                "-1",
                "99999999999999999999",
                "Sun, 06 Nov 1994 08:49:37 GMT",
                "Sun, 99999999999999999999 Nov 1994 08:49:37 GMT",
                "Sun, 18446744073709551615 Dec 9999 23:59:59 GMT",
                "Sunday, 06-Nov-94 08:49:37 GMT",
                "Mon, 31 Feb 0000 00:00:00 GMT",
                "\u{FC}",
            ],
        ),
        ("Date", &["Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 31 Dec 9999 23:59:60 GMT", "now", ""]),
        (
            "Location",
            &[
                "https://user:5Aep-RT-0-first@other.example.test/5Aep-RT-0-first?5Aep-RT-0-first",
                "/relative",
                "",
                "http://[::1",
                "https://\u{FC}.example.test/",
                "javascript:alert(1)",
                "https://other.example.test:99999/",
            ],
        ),
        ("Content-Encoding", &["gzip", "br", "identity", "x"]),
        ("Connection", &["close", "keep-alive", "upgrade", "\"\""]),
        ("Set-Cookie", &["a=b", "a=b; Path=/; HttpOnly"]),
        ("X-Long", &["~"]),
    ];
    let (name, values) = *random.pick(&HEADERS.each_ref());
    let value = random.pick(values);
    (name, value.replace('~', &"long ".repeat(random.below(1000))))
}
