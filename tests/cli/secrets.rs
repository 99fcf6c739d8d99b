//! What a run must not show: every secret in play, and how it may look in a text.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::Run;
use crate::server::http::{base64, form_encoded, string_members};

/// What a run must not show.
#[derive(Default)]
pub struct Secrets {
    all: BTreeSet<String>,
    access_tokens: BTreeSet<String>,
    client_secrets: BTreeSet<String>,
    client_ids: BTreeSet<String>,
}

impl Secrets {
    /// All that was in play: in the folder before and after, in the environment, on stdin, in
    /// options and on the wire.
    pub fn of(run: &Run, texts: impl Iterator<Item = String>) -> Self {
        let mut secrets = Self::default();
        let stdin = String::from_utf8_lossy(&run.stdin).into_owned();
        texts.chain([stdin]).for_each(|text| secrets.add_document(&text));
        for (name, value) in &run.env {
            secrets.add_variable(name, &value.to_string_lossy());
        }
        secrets.add_options(run);
        secrets.add_clients();
        secrets.all.extend(run.secrets.iter().cloned());
        if let Some(server) = run.server {
            secrets.all.extend(server.secrets());
            secrets.access_tokens.extend(server.access_tokens());
        }
        // What is shorter is found in any text.
        secrets.all.retain(|secret| secret.len() >= 4);
        secrets
    }

    /// The first secret that a text shows, be it an access token or not, in any spelling.
    pub fn shown_in(&self, text: &str, access_tokens_too: bool) -> Option<&String> {
        let hidden = |secret: &&String| access_tokens_too || !self.access_tokens.contains(*secret);
        let shows = |secret: &&String| spellings(secret).iter().any(|it| text.contains(it));
        self.all.iter().filter(hidden).find(shows)
    }

    /// The tokens of a document, whole or not; the text itself where it is a line and no document.
    fn add_document(&mut self, text: &str) {
        let text = text.trim_start_matches('\u{FEFF}').trim();
        if let Some(url) = text.strip_prefix("force://") {
            self.add_sfdx(url);
        } else if is_a_line(text) {
            self.client_secrets.insert(text.to_owned());
        }
        for name in ["access_token", "refresh_token", "id_token", "signature", "sfdxAuthUrl"] {
            for value in string_members(text, name) {
                match name {
                    "access_token" => _ = self.access_tokens.insert(value.clone()),
                    "sfdxAuthUrl" => self.add_sfdx(value.trim_start_matches("force://")),
                    _ => {}
                }
                self.all.insert(value);
            }
        }
    }

    /// All parts of `ID:SECRET:REFRESH@HOST` that are secret.
    fn add_sfdx(&mut self, url: &str) {
        let grant = url.trim().rsplit_once('@').map_or(url, |(grant, _)| grant);
        let mut parts = grant.rsplit(':');
        self.all.extend(parts.next().map(str::to_owned));
        self.client_secrets.extend(parts.next().map(str::to_owned));
    }

    /// What a variable of the environment says of the client, its tokens and the way to the server.
    fn add_variable(&mut self, name: &str, value: &str) {
        match name.to_ascii_uppercase().as_str() {
            "SF_CLIENT_ID" => _ = self.client_ids.insert(value.to_owned()),
            "SF_CLIENT_SECRET" => _ = self.client_secrets.insert(value.to_owned()),
            "SFDX_AUTH_URL" => self.add_document(value),
            "HTTPS_PROXY" | "ALL_PROXY" | "SF_TOKEN_ENDPOINT" => self.add_url(value),
            _ => {}
        }
    }

    /// User information and query of an URL.
    fn add_url(&mut self, url: &str) {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        if let Some((user, _)) = rest.rsplit_once('@') {
            let password = user.split_once(':').map_or(user, |(_, password)| password);
            self.all.extend([user.to_owned(), password.to_owned()]);
        }
        self.all.extend(rest.split_once('?').map(|(_, query)| query.to_owned()));
    }

    /// The values of `--data`, what an endpoint URL hides, and who the client is.
    fn add_options(&mut self, run: &Run) {
        let words: Vec<_> = run.args.iter().map(|arg| arg.to_string_lossy()).collect();
        for pair in words.windows(2) {
            match (&*pair[0], &*pair[1]) {
                ("-d" | "--data", field) => {
                    let value = field.split_once('=').map(|(_, value)| value.to_owned());
                    // A short one is a flag such as a scope.
                    self.all.extend(value.filter(|v| v.len() >= 8 && v != "refresh_token"));
                }
                ("-e" | "--endpoint", url) => self.add_url(url),
                ("-i" | "--client-id", id) => _ = self.client_ids.insert(id.to_owned()),
                _ => {}
            }
        }
    }

    /// The secrets of clients, alone and in Basic credentials.
    fn add_clients(&mut self) {
        for secret in &self.client_secrets {
            self.all.insert(secret.clone());
            for id in &self.client_ids {
                let encoded = format!("{}:{}", form_encoded(id), form_encoded(secret));
                self.all.insert(base64(encoded.as_bytes()));
                self.all.insert(base64(format!("{id}:{secret}").as_bytes()));
            }
        }
    }
}

/// Whether a text is one line and no JSON.
fn is_a_line(text: &str) -> bool {
    text.len() < 4096
        && !text.contains(['\n', '{', '[', '\u{FFFD}', '\0'])
        && serde_json::from_str::<Value>(text).is_err()
}

/// How a secret may look in a text: as it is, in a form, in an URL, in JSON.
fn spellings(secret: &str) -> [String; 4] {
    let form = form_encoded(secret);
    let json = Value::from(secret).to_string();
    [secret.to_owned(), form.replace('+', "%20"), form, json[1..json.len() - 1].to_owned()]
}
