//! Keystone v3: tokens for a password or an application credential, and the catalog.
//!
//! Source: recorded exchanges with Keystone 22.0.2 and 30.0.0; Identity API v3.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::answer::{Answer, Body};
use super::clock;
use super::state::{Token, World, simple_id};
use super::{Call, Catalog};

/// Answers what comes after `/identity`.
pub(super) fn answer(world: &mut World, call: &Call) -> Answer {
    let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
    match (call.method.as_str(), path.as_slice()) {
        ("GET", []) => {
            let body = json!({"versions": {"values": [version(world)]}});
            Answer::json(300, body).header("Location", format!("{}/v3/", uri(world)))
        }
        ("GET", ["v3"]) => Answer::json(200, json!({"version": version(world)})),
        ("POST", ["v3", "auth", "tokens"]) => authenticate(world, call),
        ("GET", ["v3", "auth", "tokens"]) => match (own(world, call), subject(world, call)) {
            (None, _) => Answer::unauthorized(&uri(world)),
            (Some(_), None) => Answer::error(404, "Not Found", "Failed to validate token"),
            (Some(_), Some(token)) => Answer::json(200, token_body(world, &token)),
        },
        ("DELETE", ["v3", "auth", "tokens"]) => {
            if own(world, call).is_none() {
                return Answer::unauthorized(&uri(world));
            }
            if let Some(id) = &call.subject_token {
                world.tokens.remove(id);
            }
            Answer::empty(204)
        }
        ("GET", ["v3", "auth", "catalog"]) => match own(world, call) {
            Some(_) => Answer::json(200, json!({"catalog": catalog(world), "links": {}})),
            None => Answer::unauthorized(&uri(world)),
        },
        _ => Answer {
            status: 404,
            headers: Vec::new(),
            body: Body::Html(NOT_FOUND),
        },
    }
}

/// A token that is known and not expired.
pub(super) fn valid<'a>(world: &'a World, id: Option<&String>) -> Option<&'a Token> {
    world
        .tokens
        .get(id?)
        .filter(|token| token.expires > SystemTime::now())
}

/// The address for `WWW-Authenticate`.
pub(super) fn uri(world: &World) -> String {
    format!("{}/identity", world.base)
}

fn own(world: &World, call: &Call) -> Option<Token> {
    valid(world, call.token.as_ref()).cloned()
}

fn subject(world: &World, call: &Call) -> Option<Token> {
    valid(world, call.subject_token.as_ref()).cloned()
}

fn authenticate(world: &mut World, call: &Call) -> Answer {
    let Some(body) = call.json() else {
        return Answer::error(400, "Bad Request", NO_JSON);
    };
    let auth = &body["auth"];
    let Some(methods) = auth["identity"]["methods"].as_array() else {
        let message = "'identity' is a required property\n\nFailed validating 'required' in schema";
        return Answer::error(400, "Bad Request", message);
    };
    let scoped = auth.get("scope").is_some();
    let credential = methods
        .iter()
        .any(|method| method == "application_credential");
    let checked = if credential {
        by_credential(world, auth, scoped)
    } else if methods.iter().any(|method| method == "password") {
        by_password(world, auth, scoped)
    } else if methods.iter().any(|method| method == "token") {
        by_token(world, auth, scoped)
    } else {
        Err(Answer::unauthorized(&uri(world)))
    };
    let project = match checked {
        Ok(project) => project,
        Err(answer) => return answer,
    };
    let token = Token {
        expires: SystemTime::now() + world.settings.token_life,
        project,
        credential,
    };
    let id = format!(
        "gAAAA{}",
        crate::random::letters(if credential { 199 } else { 178 })
    );
    let body = token_body(world, &token);
    world.tokens.insert(id.clone(), token);
    Answer::json(201, body)
        .header("X-Subject-Token", id)
        .header("Vary", "X-Auth-Token".into())
}

/// The project of the token; the four ways to be wrong cannot be told apart.
fn by_password(world: &World, auth: &Value, scoped: bool) -> Result<Option<String>, Answer> {
    let user = &auth["identity"]["password"]["user"];
    if !is_user(world, user) || user["password"] != world.settings.password {
        return Err(Answer::unauthorized(&uri(world)));
    }
    scope(world, auth, scoped)
}

fn by_token(world: &World, auth: &Value, scoped: bool) -> Result<Option<String>, Answer> {
    let id = auth["identity"]["token"]["id"].as_str().map(str::to_owned);
    if valid(world, id.as_ref()).is_none() {
        return Err(Answer::unauthorized(&uri(world)));
    }
    scope(world, auth, scoped)
}

fn by_credential(world: &World, auth: &Value, scoped: bool) -> Result<Option<String>, Answer> {
    let given = &auth["identity"]["application_credential"];
    match given["id"].as_str() {
        Some(id) if id != world.credential_id => {
            let message = format!("Could not find Application Credential: {id}.");
            return Err(Answer::error(404, "Not Found", &message));
        }
        Some(_) => {}
        None if given["name"] == "support" && is_user(world, &given["user"]) => {}
        None => return Err(Answer::unauthorized(&uri(world))),
    }
    if given["secret"] != world.settings.credential_secret {
        return Err(Answer::unauthorized(&uri(world)));
    }
    if scoped {
        let message = "Error authenticating with application credential: Application credentials cannot request a scope.";
        return Err(Answer::error(401, "Unauthorized", message));
    }
    Ok(Some(world.project_id.clone()))
}

fn is_user(world: &World, user: &Value) -> bool {
    user["id"] == world.user_id || user["name"] == USER && is_domain(&user["domain"])
}

fn is_domain(domain: &Value) -> bool {
    domain["name"] == "Default" || domain["id"] == "default"
}

fn scope(world: &World, auth: &Value, scoped: bool) -> Result<Option<String>, Answer> {
    if !scoped {
        return Ok(None);
    }
    let project = &auth["scope"]["project"];
    let known = project["id"] == world.project_id
        || project["name"] == PROJECT && is_domain(&project["domain"]);
    if known {
        Ok(Some(world.project_id.clone()))
    } else {
        Err(Answer::unauthorized(&uri(world)))
    }
}

fn token_body(world: &World, token: &Token) -> Value {
    let method = if token.credential {
        "application_credential"
    } else {
        "password"
    };
    let domain = json!({"id": "default", "name": "Default"});
    let mut body = json!({
        "methods": [method],
        "user": {"domain": domain, "id": world.user_id, "name": USER, "password_expires_at": null},
        "audit_ids": [crate::random::letters(22)],
        "expires_at": format!("{}Z", clock::text(token.expires, false)),
        "issued_at": format!("{}Z", clock::text(SystemTime::now(), false)),
    });
    if let Some(project) = &token.project {
        body["project"] = json!({"domain": domain, "id": project, "name": PROJECT});
        body["is_domain"] = false.into();
        body["roles"] = json!([
            {"id": simple_id(), "name": "reader"},
            {"id": simple_id(), "name": "member"},
        ]);
        body["catalog"] = catalog(world);
    }
    if token.credential {
        body["application_credential"] =
            json!({"id": world.credential_id, "name": "support", "restricted": true});
    }
    json!({"token": body})
}

fn catalog(world: &World) -> Value {
    let volume = format!("{}/volume/v3", world.base);
    let with_project = format!("{volume}/{}", world.project_id);
    let mut services = vec![service(
        "identity",
        "keystone",
        &format!("{}/v3", uri(world)),
    )];
    match world.settings.catalog {
        Catalog::Both => {
            services.push(service("block-storage", "cinder", &volume));
            services.push(service("volumev3", "cinderv3", &with_project));
        }
        Catalog::BlockStorage => services.push(service("block-storage", "cinder", &volume)),
        Catalog::VolumeV3 => services.push(service("volumev3", "cinderv3", &with_project)),
        Catalog::WithoutCinder => {}
    }
    services.into()
}

fn service(kind: &str, name: &str, url: &str) -> Value {
    let endpoints: Vec<Value> = ["internal", "admin", "public"]
        .iter()
        .map(|interface| {
            json!({
                "id": simple_id(),
                "interface": interface,
                "region_id": "RegionOne",
                "region": "RegionOne",
                "url": url,
            })
        })
        .collect();
    json!({"endpoints": endpoints, "id": simple_id(), "type": kind, "name": name})
}

fn version(world: &World) -> Value {
    json!({
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{}/v3/", uri(world))}],
        "media-types": [{
            "base": "application/json",
            "type": "application/vnd.openstack.identity-v3+json",
        }],
    })
}

pub(super) const USER: &str = "demo";
pub(super) const PROJECT: &str = "demo";
const NO_JSON: &str = "Expecting to find valid JSON in request body. The server could not comply with the request since it is either malformed or otherwise incorrect. The client is assumed to be in error.";
const NOT_FOUND: &str =
    "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n";
