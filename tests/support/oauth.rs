//! A token endpoint with a memory: what it issues, and what it refuses.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Request, basic, form_encoded};
use super::{CLIENT_ID, Framing, REFRESH_TOKEN, Reply, TOKEN_PATH, grant_body, write_atomically};

settings! {
    /// A token endpoint with a memory: it issues tokens, and refuses what is not right.
    ///
    /// It holds grants side by side, each a family of tokens: the first is there from the start,
    /// an authorization code makes another. With rotation, using a refresh token a second time
    /// revokes its family.
    pub struct OAuth {
        /// Knows this client.
        client_id: String = CLIENT_ID.to_owned(),
        /// Demands this secret, in the form or in a Basic header; none where it is empty.
        client_secret: String = String::new(),
        /// Starts with this refresh token live.
        refresh_token: String = REFRESH_TOKEN.to_owned(),
        /// Gives a new refresh token with every grant, or keeps the one it has.
        rotate: bool = true,
        /// Grants whatever the request says.
        lenient: bool = false,
        /// Answers 'token request is already being processed' to a request that comes in while
        /// another waits for its answer; needs a delay to have an effect.
        refuse_parallel: bool = false,
        /// Processes the first so many grants, and closes instead of answering them.
        lose_replies: usize = 0,
        /// Waits this long between processing and answering.
        delay: Duration = Duration::ZERO,
        /// Takes the refresh token before for so long after a rotation, and answers it with the
        /// same tokens again, as servers do for clients whose answer was lost.
        grace: Duration = Duration::ZERO,
        /// Writes its state to this file, by a rename, before it answers a request.
        state_file: Option<PathBuf> = None,
    }
}

/// What an [`OAuth`] endpoint has issued, and how far it is.
#[derive(Default)]
pub struct Issued {
    pub families: Vec<Family>,
    pub posts: usize,
    pub in_flight: usize,
}

impl Issued {
    /// Nothing but the first refresh token; written where others look for it.
    pub fn new(oauth: &OAuth) -> Self {
        let refresh_token = Some(oauth.refresh_token.clone());
        let first = Family { refresh_token, ..Family::default() };
        let issued = Self { families: vec![first], ..Self::default() };
        issued.write(oauth);
        issued
    }

    pub fn grants(&self) -> usize {
        self.families.iter().map(|family| family.grants).sum()
    }

    /// The family that a refresh token belongs to or belonged to.
    fn family_of(&self, token: &str) -> Option<usize> {
        self.families.iter().position(|family| {
            family.refresh_token.as_deref() == Some(token) || family.used.contains(token)
        })
    }

    /// Writes how the first family is, by a rename, so that a reader sees the old or the new one.
    fn write(&self, oauth: &OAuth) {
        let Some(path) = &oauth.state_file else { return };
        let first = &self.families[0];
        let state = json!({
            "posts": self.posts,
            "refresh_token": first.refresh_token,
            "access_token": first.access_token,
            "revoked": first.revoked,
            "replays": first.replays,
            "grants": first.grants,
        });
        write_atomically(path, &format!("{state}\n"));
    }
}

/// The tokens that come from one login.
#[derive(Clone, Default)]
pub struct Family {
    pub refresh_token: Option<String>,
    pub access_token: Option<String>,
    /// The refresh token before, when it was rotated, and what was granted for it.
    before: Option<(String, Instant, Value)>,
    used: HashSet<String>,
    pub grants: usize,
    pub replays: usize,
    pub revoked: bool,
}

impl Family {
    /// Ends it for good.
    pub fn revoke(&mut self) {
        self.revoked = true;
        self.access_token = None;
        self.before = None;
        self.used.extend(self.refresh_token.take());
    }

    /// What was granted for this token, which was rotated less than `grace` ago.
    fn in_grace(&self, token: &str, grace: Duration) -> Option<&Value> {
        let (before, rotated, granted) = self.before.as_ref()?;
        (before == token && rotated.elapsed() < grace).then_some(granted)
    }
}

/// Processes a request, and writes the state, before anything is answered.
pub fn process(oauth: &OAuth, issued: &mut Issued, request: &Request) -> Reply {
    let reply = if oauth.refuse_parallel && issued.in_flight > 0 {
        Reply::error(400, "invalid_grant", "token request is already being processed")
    } else {
        let refused = if oauth.lenient { None } else { refusal(oauth, issued, request) };
        refused.unwrap_or_else(|| grant(oauth, issued, request))
    };
    issued.write(oauth);
    reply.delay(oauth.delay)
}

/// Why this request gets no grant; None where it does.
fn refusal(oauth: &OAuth, issued: &mut Issued, request: &Request) -> Option<Reply> {
    if request.path != TOKEN_PATH {
        return Some(Reply::html(404));
    }
    if request.method != "POST" {
        return Some(Reply::html(405).header("Allow", "POST"));
    }
    let refuse = |error, description: &str| Some(Reply::error(400, error, description));
    let content_type = request.header("content-type").unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return refuse("invalid_request", "content type must be form-urlencoded");
    }
    let mut names = HashSet::new();
    if !request.form().into_iter().all(|(name, _)| names.insert(name)) {
        return refuse("invalid_request", "repeated parameter");
    }
    let wanted = match request.field("grant_type").as_deref() {
        Some("refresh_token") => "refresh_token",
        Some("authorization_code") => "code",
        Some("client_credentials") => "grant_type",
        None => return refuse("invalid_request", "missing required parameter: grant_type"),
        Some(_) => return refuse("unsupported_grant_type", "grant type not supported"),
    };
    if let Some(refused) = client_refusal(oauth, request) {
        return Some(refused);
    }
    let Some(value) = request.field(wanted) else {
        return refuse("invalid_request", &format!("missing required parameter: {wanted}"));
    };
    if wanted != "refresh_token" {
        return None;
    }
    if let Some(at) = issued.family_of(&value) {
        let family = &mut issued.families[at];
        if !family.used.contains(&value) || family.in_grace(&value, oauth.grace).is_some() {
            return None;
        }
        family.replays += 1;
        family.revoke();
    }
    refuse("invalid_grant", "expired access/refresh token")
}

/// Why this client is not the right one; None where it is.
fn client_refusal(oauth: &OAuth, request: &Request) -> Option<Reply> {
    let refuse = |error, description| Some(Reply::error(400, error, description));
    let (id, secret) = (request.field("client_id"), request.field("client_secret"));
    // RFC 6749 §2.3.1 encodes both as in a form.
    let right = basic(&form_encoded(&oauth.client_id), &form_encoded(&oauth.client_secret));
    match request.header("authorization") {
        Some(_) if id.is_some() || secret.is_some() => {
            refuse("invalid_request", "more than one client authentication")
        }
        Some(header) if header != right => refuse("invalid_client", "wrong credentials"),
        Some(_) => None,
        None if id.as_ref() != Some(&oauth.client_id) => {
            refuse("invalid_client_id", "client identifier invalid")
        }
        None if secret.unwrap_or_default() != oauth.client_secret => {
            refuse("invalid_client", "invalid client credentials")
        }
        None => None,
    }
}

/// Issues tokens: the next ones of the family that the refresh token belongs to, or the first
/// ones of a new family. Client credentials get no refresh token.
fn grant(oauth: &OAuth, issued: &mut Issued, request: &Request) -> Reply {
    let number = issued.grants() + 1;
    let grant_type = request.field("grant_type").unwrap_or_default();
    let is_code = grant_type == "authorization_code";
    let access_only = grant_type == "client_credentials";
    let token = request.field("refresh_token").unwrap_or_default();
    if is_code || access_only {
        issued.families.push(Family::default());
    }
    let last = issued.families.len() - 1;
    let at = if is_code || access_only { last } else { issued.family_of(&token).unwrap_or(0) };
    let family = &mut issued.families[at];
    family.grants += 1;
    let again = family.in_grace(&token, oauth.grace).cloned();
    let body = again.unwrap_or_else(|| {
        let access = format!("00Dxx0000001gPL!AT-{number}-{}", random());
        let gives_refresh = is_code || oauth.rotate && !access_only;
        let refresh = gives_refresh.then(|| format!("5Aep-RT-{number}-{}", random()));
        let signature = format!("SIG-{number}-{}=", random());
        let mut body = grant_body(&access, refresh.as_deref(), &signature);
        if access_only {
            body["expires_in"] = json!(7200);
        }
        family.access_token = Some(access);
        if let Some(before) = refresh.and_then(|next| family.refresh_token.replace(next)) {
            family.used.insert(before.clone());
            family.before = Some((before, Instant::now(), body.clone()));
        }
        body
    });
    let reply = Reply::json(200, body.to_string());
    if number <= oauth.lose_replies { reply.framing(Framing::Drop) } else { reply }
}

/// Sixteen digits that no other token has.
fn random() -> String {
    format!("{:016x}", RandomState::new().hash_one(()))
}
