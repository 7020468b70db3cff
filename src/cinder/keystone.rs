//! Keystone: a token for the credentials, and the catalog that comes with it.
//!
//! Source: Identity API v3, `POST /auth/tokens`; statuses and bodies as recorded from Keystone 22.0.2 and 30.0.0.
//!
//! Invariants:
//! 1. Credentials go to the configured address only, never to one that a document or a redirect names.
//! 2. Keystone's words are scrubbed of the secret that was sent.

use iscsi::proto::Secret;
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::catalog::Service;
use super::error::Error;
use super::fault::word;
use super::http::{Answer, Failure, Http, Request};
use crate::config::{Auth, CloudConfig, Domain, Project, User};

/// What authentication gives.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) secret: Secret,
    /// `None` when the token has no project.
    pub(super) project_id: Option<String>,
    pub(super) catalog: Vec<Service>,
}

/// Asks for a token.
///
/// A failure says whether to ask again: a token made in vain harms nobody.
pub(super) async fn authenticate(http: &Http, config: &CloudConfig) -> Result<Token, Failure> {
    let refuse = |error| Failure { error, sent: true };
    if let Auth::None { project } = &config.auth {
        // cinder/api/middleware/auth.py: any `user:project` is taken.
        return Ok(Token {
            secret: Secret::new(format!("admin:{project}")),
            project_id: Some(project.clone()),
            catalog: Vec::new(),
        });
    }
    let url = tokens_url(&config.auth_url).map_err(refuse)?;
    let body = body(&config.auth);
    let request = Request {
        method: Method::POST,
        url,
        token: None,
        microversion: None,
        body: Some(&body),
        deadline: config.request_timeout,
    };
    let answer = http.send(request).await?;
    judge(&answer, config).map_err(refuse)
}

/// The token in an answer, or Keystone's refusal.
pub(super) fn judge(answer: &Answer, config: &CloudConfig) -> Result<Token, Error> {
    if answer.is_success() {
        parse(answer)
    } else {
        Err(refusal(answer, config))
    }
}

/// The address for tokens, from any way in which people write Keystone's.
fn tokens_url(auth_url: &str) -> Result<Url, Error> {
    let mut url = Url::parse(auth_url).map_err(|error| {
        Error::Setup(format!(
            "auth_url (OS_AUTH_URL) is not an address: {error}; correct it"
        ))
    })?;
    let mut path: Vec<String> = url
        .path()
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(str::to_owned)
        .collect();
    if path.ends_with(&["auth".to_owned(), "tokens".to_owned()]) {
        path.truncate(path.len() - 2);
    }
    if path.last().is_some_and(|segment| segment.starts_with("v2")) {
        path.pop();
    }
    if path.last().is_none_or(|segment| segment != "v3") {
        path.push("v3".to_owned());
    }
    url.set_path(&format!("/{}/auth/tokens", path.join("/")));
    url.set_query(None);
    Ok(url)
}

fn body(auth: &Auth) -> Value {
    let (identity, project) = match auth {
        Auth::Password {
            user,
            password,
            project,
        } => {
            let mut user = user_json(user);
            user["password"] = password.expose().into();
            (
                json!({"methods": ["password"], "password": {"user": user}}),
                Some(project),
            )
        }
        Auth::ApplicationCredential { id, secret } => (
            json!({"methods": ["application_credential"],
                   "application_credential": {"id": id, "secret": secret.expose()}}),
            None,
        ),
        Auth::NamedApplicationCredential { name, user, secret } => (
            json!({"methods": ["application_credential"],
                   "application_credential": {"name": name, "user": user_json(user), "secret": secret.expose()}}),
            None,
        ),
        Auth::Token { token, project } => (
            json!({"methods": ["token"], "token": {"id": token.expose()}}),
            project.as_ref(),
        ),
        Auth::None { .. } => (Value::Null, None),
    };
    match project {
        Some(project) => {
            json!({"auth": {"identity": identity, "scope": {"project": project_json(project)}}})
        }
        None => json!({"auth": {"identity": identity}}),
    }
}

fn user_json(user: &User) -> Value {
    match user {
        User::Id(id) => json!({"id": id}),
        User::Name { name, domain } => json!({"name": name, "domain": domain_json(domain)}),
    }
}

fn project_json(project: &Project) -> Value {
    match project {
        Project::Id(id) => json!({"id": id}),
        Project::Name { name, domain } => json!({"name": name, "domain": domain_json(domain)}),
    }
}

fn domain_json(domain: &Domain) -> Value {
    match domain {
        Domain::Id(id) => json!({"id": id}),
        Domain::Name(name) => json!({"name": name}),
    }
}

#[derive(Deserialize)]
struct Body {
    token: BodyToken,
}

#[derive(Deserialize)]
struct BodyToken {
    project: Option<BodyProject>,
    #[serde(default)]
    catalog: Vec<Service>,
}

#[derive(Deserialize)]
struct BodyProject {
    id: String,
}

fn parse(answer: &Answer) -> Result<Token, Error> {
    let not_keystone = |found: &str| Error::NotKeystone {
        url: answer.url.clone(),
        found: found.to_owned(),
    };
    let Some(secret) = answer.subject_token.clone() else {
        return Err(not_keystone(
            "what answers there gives no token (no X-Subject-Token)",
        ));
    };
    let body: Body = answer.parse()?;
    Ok(Token {
        secret,
        project_id: body.token.project.map(|project| word(&project.id)),
        catalog: body.token.catalog,
    })
}

/// Keystone's refusals. The reasons of a 401 cannot be told apart: Keystone does not say which part is wrong.
fn refusal(answer: &Answer, config: &CloudConfig) -> Error {
    let secret = secret_of(&config.auth);
    let fault = answer.fault(secret.as_slice());
    let url = answer.url.clone();
    let request = answer.request.clone();
    let message = fault.message;
    let is_keystone = fault.name.as_deref() == Some("error");
    match answer.status {
        // An unknown application credential is 404, in Keystone's own form.
        // 400 is a credential of the wrong form: an empty password, a name that is too long.
        400 | 401 | 403 | 404 if is_keystone => Error::Credentials {
            url,
            message,
            request,
            check: match config.auth {
                Auth::Password { .. } => "user, password, project and both domains",
                Auth::ApplicationCredential { .. } | Auth::NamedApplicationCredential { .. } => {
                    "the application credential's id (or name and user), its secret and whether it has expired"
                }
                Auth::Token { .. } | Auth::None { .. } => "whether the token has expired",
            },
            place: config.place.clone(),
        },
        429 | 502..=504 => Error::Unavailable {
            url,
            status: answer.status,
            message,
            request,
        },
        500.. if is_keystone => Error::Unavailable {
            url,
            status: answer.status,
            message,
            request,
        },
        status => Error::NotKeystone {
            url,
            found: format!("HTTP {status}, {message}"),
        },
    }
}

fn secret_of(auth: &Auth) -> Option<&Secret> {
    match auth {
        Auth::Password {
            password: secret, ..
        }
        | Auth::ApplicationCredential { secret, .. }
        | Auth::NamedApplicationCredential { secret, .. }
        | Auth::Token { token: secret, .. } => Some(secret),
        Auth::None { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cinder::tests::config;

    #[test]
    fn keystones_address_is_taken_as_people_write_it() {
        for (written, asked) in [
            ("http://k:5000", "http://k:5000/v3/auth/tokens"),
            ("http://k:5000/", "http://k:5000/v3/auth/tokens"),
            ("http://k:5000/v3", "http://k:5000/v3/auth/tokens"),
            ("http://k:5000/v3/", "http://k:5000/v3/auth/tokens"),
            ("http://k:5000/v2.0", "http://k:5000/v3/auth/tokens"),
            ("https://k/identity", "https://k/identity/v3/auth/tokens"),
            (
                "https://k/identity/v3/auth/tokens",
                "https://k/identity/v3/auth/tokens",
            ),
        ] {
            assert_eq!(tokens_url(written).unwrap().as_str(), asked, "{written}");
        }
        assert!(
            tokens_url("http://")
                .unwrap_err()
                .to_string()
                .contains("OS_AUTH_URL")
        );
    }

    #[test]
    fn a_password_is_scoped_to_its_project() {
        let body = body(&config("http://k").auth);
        let expected = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user":
                {"name": "demo", "domain": {"id": "default"}, "password": "hunter2"}}},
            "scope": {"project": {"name": "shop", "domain": {"name": "Default"}}}}});
        assert_eq!(body, expected);
    }

    #[test]
    fn an_application_credential_has_no_scope() {
        // Keystone answers 401 "Application credentials cannot request a scope." otherwise.
        let auth = Auth::ApplicationCredential {
            id: "i".into(),
            secret: Secret::new("s".into()),
        };
        assert!(body(&auth)["auth"].get("scope").is_none());
        let auth = Auth::NamedApplicationCredential {
            name: "n".into(),
            user: User::Id("u".into()),
            secret: Secret::new("s".into()),
        };
        assert_eq!(
            body(&auth)["auth"]["identity"]["application_credential"]["user"],
            json!({"id": "u"})
        );
    }

    fn refused(status: u16, body: &str) -> String {
        let answer = crate::cinder::tests::answer(status, body);
        refusal(&answer, &config("http://k")).to_string()
    }

    #[test]
    fn refusals_name_cause_and_remedy() {
        let unauthorized = r#"{"error":{"code":401,"message":"The request you have made requires authentication.","title":"Unauthorized"}}"#;
        assert_eq!(
            refused(401, unauthorized),
            "Keystone at http://server/path refuses the credentials: The request you have made requires \
             authentication (request req-1); check user, password, project and both domains in the environment"
        );
        let unknown = r#"{"error":{"code":404,"message":"Could not find Application Credential: 0000.","title":"Not Found"}}"#;
        assert!(
            refused(404, unknown)
                .contains("refuses the credentials: Could not find Application Credential")
        );
        let page = "<!doctype html> <html lang=en> <title>404 Not Found</title>";
        let text = refused(404, page);
        assert!(
            text.starts_with(
                "no Keystone at http://server/path: HTTP 404, 404 Not Found; auth_url (OS_AUTH_URL)"
            ),
            "{text}"
        );
        assert!(
            refused(503, "<html><h1>503 Service Unavailable</h1></html>")
                .contains("is not available (HTTP 503)")
        );
    }

    #[test]
    fn a_secret_that_comes_back_is_not_printed() {
        let echo = r#"{"error":{"code":400,"message":"bad value 'hunter2' in request","title":"Bad Request"}}"#;
        let text = refused(400, echo);
        assert!(
            !text.contains("hunter2") && text.contains("[secret]"),
            "{text}"
        );
    }

    #[test]
    fn a_page_with_status_200_is_no_token() {
        let answer = crate::cinder::tests::answer(200, "<html>Horizon</html>");
        assert!(matches!(parse(&answer), Err(Error::NotKeystone { .. })));
    }
}
