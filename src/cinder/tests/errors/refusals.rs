//! What Keystone and Cinder refuse, and what is no answer of theirs.

use super::*;

pub(super) async fn all() -> Vec<Error> {
    let (keystone, tokens, catalogs, answers) =
        tokio::join!(of_keystone(), of_tokens(), of_catalogs(), of_answers(),);
    [keystone, tokens, catalogs, answers].concat()
}

async fn of_keystone() -> Vec<Error> {
    let refuses: Script =
        |seen, _| is_login(seen).then(|| fault(401, "error", "Could not authenticate."));
    let is_away: Script = |seen, _| is_login(seen).then(|| page(503, "No server"));
    let is_horizon: Script = |seen, _| is_login(seen).then(|| page(200, "Log in"));
    vec![
        unopened(refuses).await,
        unopened(is_away).await,
        unopened(is_horizon).await,
    ]
}

/// A token that Cinder refuses: renewed in vain, given, and none at all.
async fn of_tokens() -> Vec<Error> {
    let refuses: Script = |seen, _| {
        asks(seen, "GET", "volumes/detail").then(|| fault(401, "error", "Please log in."))
    };
    let server = Server::start(refuses).await;
    let renewed = settings(&server);
    let mut given = renewed.clone();
    given.auth = Auth::Token {
        token: Secret::new("given".into()),
        project: None,
    };
    let mut none = renewed.clone();
    none.auth = Auth::None {
        project: "p1".into(),
    };
    none.endpoint_override = Some(format!("{}/volume/v3/p1", server.url));
    let mut errors = Vec::new();
    for config in [renewed, given, none] {
        let cinder = Cinder::connect(&config).await.unwrap();
        errors.push(cinder.list().await.map(drop).unwrap_err());
    }
    errors
}

/// A token with this catalog.
fn login(catalog: &Value) -> Reply {
    let body = json!({"token": {"project": {"id": "p1"}, "catalog": catalog}});
    Reply::Answer(201, "X-Subject-Token: token-1\r\n", body.to_string())
}

fn storage(region: &str) -> Value {
    json!({"type": "volumev3", "endpoints": [
        {"interface": "public", "region_id": region, "url": "http://127.0.0.1:1/v3"}]})
}

async fn of_catalogs() -> Vec<Error> {
    let empty: Script = |seen, _| is_login(seen).then(|| login(&json!([])));
    let other: Script =
        |seen, _| is_login(seen).then(|| login(&json!([{"type": "compute", "endpoints": []}])));
    let two: Script =
        |seen, _| is_login(seen).then(|| login(&json!([storage("east"), storage("west")])));
    let server = Server::start(two).await;
    let mut north = settings(&server);
    north.region = Some("north".into());
    let mut inside = settings(&server);
    inside.interface = Interface::Internal;
    let old: Script = |seen, _| {
        let versions = json!({"versions": [{"id": "v3.0", "version": "3.43"}]});
        seen.is("GET", "/volume/v3/").then(|| ok(&versions))
    };
    let absent: Script = |seen, _| (seen.method == "GET").then(|| page(404, "404 Not Found"));
    vec![
        unopened(empty).await,
        unopened(other).await,
        unopened(two).await,
        refused(&north).await,
        refused(&inside).await,
        unopened(old).await,
        unopened(absent).await,
    ]
}

/// Statuses, and what is none.
async fn of_answers() -> Vec<Error> {
    let show = async |script: Script| failed(script, async |cinder| cinder.show("v-1").await).await;
    let scripts: [Script; 8] = [
        |seen, _| is_show(seen).then_some(Reply::HangUp),
        |seen, _| is_show(seen).then(|| fault(403, "forbidden", "Policy does not allow it.")),
        |seen, _| is_show(seen).then(|| fault(404, "itemNotFound", "Volume v-1 is not there.")),
        |seen, _| is_show(seen).then(|| fault(413, "overLimit", "Too many volumes.")),
        |seen, _| is_show(seen).then(|| page(503, "503 Service Unavailable")),
        |seen, _| is_show(seen).then(|| fault(500, "computeFault", "The server has erred.")),
        |seen, _| is_show(seen).then(|| fault(400, "badRequest", "Invalid input.")),
        |seen, _| is_show(seen).then(|| page(200, "Log in to the hotel's network")),
    ];
    let mut errors = Vec::new();
    for script in scripts {
        errors.push(show(script).await);
    }
    let server = Server::start(|seen, _| is_show(seen).then_some(Reply::Silence)).await;
    let mut hasty = settings(&server);
    hasty.request_timeout = Duration::from_secs(1);
    let cinder = Cinder::connect(&hasty).await.unwrap();
    errors.push(cinder.show("v-1").await.map(drop).unwrap_err());
    errors
}

fn is_show(seen: &Seen) -> bool {
    asks(seen, "GET", "volumes/v-1")
}
