//! A small Keystone and Cinder on loopback, for tests and the demo: real HTTP, bodies and statuses as recorded from
//! real ones, and volumes that one can log in to (`target`).
//!
//! What it has: password, application credential and token authentication, catalog, version documents, microversions,
//! quota, volumes with their statuses, metadata, types, messages, extension, snapshots, transfers, attachments in one
//! and two steps. It has no legacy attach actions and no TLS; `tests/beds/openstack` has a real cloud.
//!
//! It runs on a thread of its own, so a test that blocks its thread is served all the same.
//!
//! Invariants:
//! 1. Statuses change by time (`delay`) or by request, never by being looked at.
//! 2. Each request is recorded, without secrets, before it is answered.

mod answer;
mod attachments;
mod cinder;
mod clock;
mod faults;
mod keystone;
pub mod script;
mod snapshots;
mod state;
mod transfers;
mod volumes;

use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use faults::Fault;

use crate::target::{Disk, Target};
use answer::{Answer, Body};
use faults::Strike;
use state::{Attachment, World};

/// A running stand-in; it ends when dropped.
///
/// ```
/// let cloud = support::cloud::Cloud::builder().start_blocking();
/// assert!(cloud.env().iter().any(|(name, _)| name == "OS_AUTH_URL"));
/// assert!(cloud.volumes().is_empty() && cloud.attachments().is_empty());
/// ```
#[derive(Debug)]
pub struct Cloud {
    world: Arc<Mutex<World>>,
    target: Arc<Target>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Cloud {
    /// Begins a stand-in; `start` ends it.
    pub fn builder() -> Builder {
        Builder {
            listen: "127.0.0.1:0".to_owned(),
            target: None,
            settings: Settings::default(),
        }
    }

    /// With all defaults and a target of its own.
    ///
    /// # Panics
    /// If loopback cannot be listened on.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Begins to misbehave.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.inject(fault);
    }

    /// Behaves again.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Makes every token expire now.
    pub fn expire_tokens(&self) {
        for token in self.lock().tokens.values_mut() {
            token.expires = SystemTime::UNIX_EPOCH;
        }
    }

    /// Sets a volume's status, as an administrator can.
    ///
    /// # Panics
    /// If there is no such volume.
    pub fn set_status(&self, volume_id: &str, status: &str) {
        let mut world = self.lock();
        let volume = world.volume(volume_id).expect("the volume exists");
        volume.next = None;
        volume.set_status(status);
    }

    /// Attaches a volume as another host would, up to `in-use`; gives the attachment's id.
    ///
    /// # Panics
    /// If there is no such volume.
    pub fn attach_elsewhere(&self, volume_id: &str, host: &str) -> String {
        let mut world = self.lock();
        assert!(world.volume(volume_id).is_some(), "no volume {volume_id}");
        let id = state::new_id();
        world.attachments.push(Attachment {
            id: id.clone(),
            volume: volume_id.to_owned(),
            status: "attached",
            mode: Some("rw".into()),
            instance: None,
            connector: Some(serde_json::json!({
                "host": host,
                "initiator": format!("iqn.2026-11.test:{host}"),
                "mountpoint": format!("/dev/vdb on {host}"),
            })),
            attached: Some(SystemTime::now()),
            broken: false,
        });
        world.recompute(volume_id);
        world.export(volume_id);
        id
    }

    /// Closes the port and every connection, and waits for the thread. The target goes on if others hold it.
    pub fn stop(mut self) {
        self.end();
    }

    /// `http://127.0.0.1:PORT/identity/v3`.
    pub fn auth_url(&self) -> String {
        format!("{}/identity/v3", self.lock().base)
    }

    /// `OS_*` for a password.
    pub fn env(&self) -> Vec<(String, String)> {
        let password = self.lock().settings.password.clone();
        self.variables(&[
            ("OS_AUTH_TYPE", "password"),
            ("OS_USERNAME", keystone::USER),
            ("OS_PASSWORD", &password),
            ("OS_PROJECT_NAME", keystone::PROJECT),
            ("OS_USER_DOMAIN_NAME", "Default"),
            ("OS_PROJECT_DOMAIN_NAME", "Default"),
        ])
    }

    /// `OS_*` for an application credential.
    pub fn env_application_credential(&self) -> Vec<(String, String)> {
        let (id, secret) = {
            let world = self.lock();
            (
                world.credential_id.clone(),
                world.settings.credential_secret.clone(),
            )
        };
        self.variables(&[
            ("OS_AUTH_TYPE", "v3applicationcredential"),
            ("OS_APPLICATION_CREDENTIAL_ID", &id),
            ("OS_APPLICATION_CREDENTIAL_SECRET", &secret),
        ])
    }

    /// All that nobody else may see, with its name: password, application credential, every token so far, and the CHAP
    /// secrets of the volumes that there are.
    pub fn secrets(&self) -> Vec<(&'static str, String)> {
        let world = self.lock();
        let settings = &world.settings;
        let mut secrets = vec![
            ("password", settings.password.clone()),
            ("application credential", settings.credential_secret.clone()),
        ];
        secrets.extend(world.tokens.keys().map(|token| ("token", token.clone())));
        let volumes = world.volumes.iter();
        secrets.extend(volumes.map(|volume| ("CHAP secret of a volume", volume.secret.clone())));
        secrets
    }

    /// The target that volumes are exported through.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// All volumes, oldest first.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let world = self.settled();
        let info = |volume: &state::Volume| VolumeInfo {
            id: volume.id.clone(),
            name: volume.name.clone(),
            status: volume.status.clone(),
            size: volume.size,
            metadata: volume.metadata.clone().into_iter().collect(),
            iqn: volume.iqn(),
        };
        world.volumes.iter().map(info).collect()
    }

    /// All snapshots, oldest first: name, the volume's UUID, status.
    pub fn snapshots(&self) -> Vec<(Option<String>, String, String)> {
        let world = self.settled();
        let snapshots = world.snapshots.iter();
        snapshots
            .map(|one| (one.name.clone(), one.volume.clone(), one.status.clone()))
            .collect()
    }

    /// All attachments, completed or not, oldest first.
    pub fn attachments(&self) -> Vec<AttachmentInfo> {
        let world = self.settled();
        let info = |attachment: &Attachment| AttachmentInfo {
            id: attachment.id.clone(),
            volume_id: attachment.volume.clone(),
            status: attachment.status.to_owned(),
            mode: attachment.mode.clone(),
            instance: attachment.instance.clone(),
            connector: attachment.connector.clone(),
        };
        world.attachments.iter().map(info).collect()
    }

    /// A volume's disk, to look at what was written.
    pub fn disk(&self, volume_id: &str) -> Option<Disk> {
        self.lock()
            .volume(volume_id)
            .map(|volume| volume.disk.clone())
    }

    /// Every request so far, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        self.lock().recorded.clone()
    }

    fn variables(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut list = vec![
            ("OS_AUTH_URL".to_owned(), self.auth_url()),
            ("OS_IDENTITY_API_VERSION".to_owned(), "3".to_owned()),
            ("OS_REGION_NAME".to_owned(), "RegionOne".to_owned()),
        ];
        list.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        list
    }

    fn settled(&self) -> MutexGuard<'_, World> {
        let mut world = self.lock();
        world.settle(Instant::now());
        world
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed; dropping must not add another.
            let _ = thread.join();
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.end();
    }
}

/// A volume as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// UUID.
    pub id: String,
    /// Name.
    pub name: Option<String>,
    /// Status.
    pub status: String,
    /// GiB.
    pub size: u64,
    /// Pairs in order of their keys.
    pub metadata: Vec<(String, String)>,
    /// The name of its target while exported.
    pub iqn: String,
}

/// An attachment as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentInfo {
    /// UUID.
    pub id: String,
    /// The volume's UUID.
    pub volume_id: String,
    /// `reserved`, `attaching` or `attached`.
    pub status: String,
    /// `rw`, `ro`, or not told.
    pub mode: Option<String>,
    /// What must not be sent.
    pub instance: Option<String>,
    /// The connector as it came.
    pub connector: Option<Value>,
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Method and route: `GET /volumes/{id}`, as faults name it.
    pub name: String,
    /// Path and query as they came.
    pub path: String,
    /// `volume 3.54`, if told.
    pub microversion: Option<String>,
    /// The body, secrets struck out; null if there is none.
    pub body: Value,
    /// The answer; 0 while there is none, or where it was lost.
    pub status: u16,
}

/// What the catalog calls Cinder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Catalog {
    /// `block-storage` without and `volumev3` with the project in its address.
    Both,
    /// The official type only.
    BlockStorage,
    /// The old type only.
    VolumeV3,
    /// No Cinder at all.
    WithoutCinder,
}

/// How the stand-in is to be.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    delay: Duration,
    token_life: Duration,
    quota_volumes: usize,
    quota_gigabytes: u64,
    microversion_max: u32,
    page_max: usize,
    catalog: Catalog,
    password: String,
    credential_secret: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(50),
            token_life: Duration::from_hours(1),
            quota_volumes: 10,
            quota_gigabytes: 1000,
            microversion_max: 70,
            page_max: 1000,
            catalog: Catalog::Both,
            password: crate::random::letters(16),
            credential_secret: crate::random::letters(43),
        }
    }
}

/// A stand-in about to start.
#[derive(Debug)]
pub struct Builder {
    listen: String,
    target: Option<Arc<Target>>,
    settings: Settings,
}

impl Builder {
    /// Address to listen on; the default is a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// The target to export volumes through; the default is one of its own.
    #[must_use]
    pub fn target(mut self, target: Arc<Target>) -> Self {
        self.target = Some(target);
        self
    }

    /// How long `creating` and `deleting` last.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.settings.delay = delay;
        self
    }

    /// How long a token is good.
    #[must_use]
    pub fn token_life(mut self, life: Duration) -> Self {
        self.settings.token_life = life;
        self
    }

    /// Most volumes and most GiB.
    #[must_use]
    pub fn quota(mut self, volumes: usize, gigabytes: u64) -> Self {
        self.settings.quota_volumes = volumes;
        self.settings.quota_gigabytes = gigabytes;
        self
    }

    /// The password; a random one by default.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        password.clone_into(&mut self.settings.password);
        self
    }

    /// The highest microversion, 3.N.
    #[must_use]
    pub fn microversion_max(mut self, minor: u32) -> Self {
        self.settings.microversion_max = minor;
        self
    }

    /// The longest page of a list.
    #[must_use]
    pub fn page_max(mut self, volumes: usize) -> Self {
        self.settings.page_max = volumes;
        self
    }

    /// What the catalog holds.
    #[must_use]
    pub fn catalog(mut self, catalog: Catalog) -> Self {
        self.settings.catalog = catalog;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If the address cannot be listened on.
    #[expect(
        clippy::unused_async,
        reason = "asynchronous callers read better with it; see start_blocking"
    )]
    pub async fn start(self) -> Cloud {
        self.start_blocking()
    }

    /// Starts it; listening already when this returns.
    ///
    /// # Panics
    /// If the address cannot be listened on.
    pub fn start_blocking(self) -> Cloud {
        let target = self
            .target
            .unwrap_or_else(|| Arc::new(Target::builder().without_export().start_blocking()));
        let listener = TcpListener::bind(&self.listen)
            .unwrap_or_else(|error| panic!("cannot listen on {}: {error}", self.listen));
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");
        let address = listener.local_addr().expect("a listener has an address");
        let world = World::new(
            self.settings,
            format!("http://{address}"),
            Arc::clone(&target),
        );
        let world = Arc::new(Mutex::new(world));
        let stop = CancellationToken::new();
        let (theirs, stopped) = (Arc::clone(&world), stop.clone());
        let thread = std::thread::Builder::new()
            .name("cloud".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime can be made");
                runtime.block_on(serve(listener, theirs, stopped));
            })
            .expect("a thread can be made");
        Cloud {
            world,
            target,
            stop,
            thread: Some(thread),
        }
    }
}

/// A request as the rooms see it.
#[derive(Debug)]
struct Call {
    method: String,
    /// Segments after the service's own.
    path: Vec<String>,
    query: Vec<(String, String)>,
    token: Option<String>,
    subject_token: Option<String>,
    microversion: Option<String>,
    body: Bytes,
}

impl Call {
    fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

async fn serve(listener: TcpListener, world: Arc<Mutex<World>>, stop: CancellationToken) {
    let listener =
        tokio::net::TcpListener::from_std(listener).expect("the listener is non-blocking");
    let router = axum::Router::new().fallback(handle).with_state(world);
    // Connections are tasks of this runtime and end with it.
    tokio::select! {
        () = stop.cancelled() => {}
        ended = axum::serve(listener, router).into_future() => {
            ended.expect("serving does not end");
        }
    }
}

async fn handle(
    State(world): State<Arc<Mutex<World>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    let mut path: Vec<String> = uri
        .path()
        .split('/')
        .filter(|one| !one.is_empty())
        .map(str::to_owned)
        .collect();
    let service = if path.is_empty() {
        String::new()
    } else {
        path.remove(0)
    };
    let call = Call {
        method: method.to_string(),
        path,
        query: Query::try_from_uri(&uri)
            .map(|Query(pairs)| pairs)
            .unwrap_or_default(),
        token: header("x-auth-token"),
        subject_token: header("x-subject-token"),
        microversion: header("openstack-api-version"),
        body,
    };
    let name = name(&call);
    let (at, strike) = {
        let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
        world.recorded.push(Recorded {
            name: name.clone(),
            path: uri.to_string(),
            microversion: call.microversion.clone(),
            body: call.json().map_or(Value::Null, without_secrets),
            status: 0,
        });
        (world.recorded.len() - 1, world.faults.on_request(&name))
    };
    if let Some(Strike::Delay(delay)) = strike {
        tokio::time::sleep(delay).await;
    }
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    world.settle(Instant::now());
    let answer = match strike {
        Some(Strike::Answer(status)) => {
            let uri = keystone::uri(&world);
            Answer::injected(status, Some(&uri), service == "identity")
        }
        Some(Strike::Quote(status)) => {
            let body = String::from_utf8_lossy(&call.body);
            Answer::quoting(status, call.token.as_deref(), &body, service == "identity")
        }
        Some(Strike::Lose { executed: false }) => hang_up(),
        _ => match service.as_str() {
            "identity" => keystone::answer(&mut world, &call),
            "volume" => cinder::answer(&mut world, &call),
            _ => cinder::not_found(),
        },
    };
    if matches!(strike, Some(Strike::Lose { .. })) {
        hang_up();
    }
    world.recorded[at].status = answer.status;
    response(answer)
}

/// Ends this connection's task, and with it the connection, without a word on the way.
fn hang_up() -> ! {
    std::panic::resume_unwind(Box::new("a lost answer"))
}

fn response(answer: Answer) -> Response {
    let id = format!("req-{}", state::new_id());
    let mut response = Response::builder()
        .status(answer.status)
        .header("x-openstack-request-id", &id)
        .header("x-compute-request-id", &id);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let (kind, body) = match answer.body {
        Body::Empty => (None, String::new()),
        Body::Json(value) => (Some("application/json"), value.to_string()),
        Body::Html(text) => (Some("text/html; charset=utf-8"), text.to_owned()),
    };
    if let Some(kind) = kind {
        response = response.header("Content-Type", kind);
    }
    response
        .body(body.into())
        .expect("status and headers are legal")
}

/// Method and route, ids replaced.
fn name(call: &Call) -> String {
    let mut path: Vec<&str> = call.path.iter().map(String::as_str).collect();
    if path.first() == Some(&"v3") {
        path.remove(0);
        if path.len() > 1 && is_id(path[0]) {
            path.remove(0);
        }
    }
    let path: Vec<&str> = path
        .iter()
        .map(|one| if is_id(one) { "{id}" } else { one })
        .collect();
    format!("{} /{}", call.method, path.join("/"))
}

/// A UUID, with or without dashes.
fn is_id(text: &str) -> bool {
    uuid::Uuid::try_parse(text).is_ok()
}

fn without_secrets(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let secret = matches!(key.as_str(), "secret" | "auth_password" | "auth_key")
                    || key == "password" && inner.is_string();
                let taken = inner.take();
                *inner = if secret {
                    "[secret]".into()
                } else {
                    without_secrets(taken)
                };
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = without_secrets(item.take());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    value
}
