//! A cloud that is a script: a function from a request to a reply, over plain TCP, so that it can also say nothing, or
//! hang up. What it was asked, and how often, can be looked at.
//!
//! Beside the stand-in (`super::Cloud`), which behaves but for a fault here and there: this one is for what no Cinder
//! would answer. Where the script says nothing it is a well-behaved cloud with one volume.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET` and the like.
    pub method: String,
    /// With the query.
    pub path: String,
    /// By lower-case name.
    pub headers: HashMap<String, String>,
    /// As JSON, or null.
    pub body: Value,
}

impl Seen {
    /// Whether it is this one, whatever its query.
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.split('?').next() == Some(path)
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Status, further header lines, body.
    Answer(u16, &'static str, String),
    /// The connection ends without a word.
    HangUp,
    /// Nothing is said until the client gives up.
    Silence,
}

/// 200 with this body.
pub fn ok(body: &Value) -> Reply {
    status(200, body)
}

/// Any status with this body, and a request id.
pub fn status(status: u16, body: &Value) -> Reply {
    Reply::Answer(
        status,
        "X-Openstack-Request-Id: req-42\r\n",
        body.to_string(),
    )
}

/// A refusal as Cinder words it.
pub fn fault(code: u16, name: &str, message: &str) -> Reply {
    status(code, &json!({name: {"code": code, "message": message}}))
}

/// A page of HTML, as proxies answer.
pub fn page(code: u16, text: &str) -> Reply {
    Reply::Answer(
        code,
        "Content-Type: text/html\r\n",
        format!("<html><body><h1>{text}</h1></body></html>"),
    )
}

/// A cloud that does as its script says; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    /// `http://127.0.0.1:PORT`: Keystone is beneath `/identity`, Cinder beneath `/volume`.
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves by the script, which is shown a request and those before; where it says nothing, as a well-behaved cloud.
    ///
    /// # Panics
    /// If loopback cannot be listened on.
    pub async fn start(
        script: impl Fn(&Seen, &[Seen]) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let script = Arc::new(script);
        let task = tokio::spawn({
            let (seen, url) = (Arc::clone(&seen), url.clone());
            async move {
                let mut connections = tokio::task::JoinSet::new();
                loop {
                    let Ok((stream, _)) = listener.accept().await else {
                        return;
                    };
                    let (seen, script, url) = (Arc::clone(&seen), Arc::clone(&script), url.clone());
                    connections.spawn(async move {
                        let _ = serve(stream, &url, &seen, &*script).await;
                    });
                }
            }
        });
        Self { url, seen, task }
    }

    /// Every request so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.seen).clone()
    }

    /// How often this was asked.
    pub fn count(&self, method: &str, path: &str) -> usize {
        locked(&self.seen)
            .iter()
            .filter(|seen| seen.is(method, path))
            .count()
    }
}

fn locked(log: &Mutex<Vec<Seen>>) -> MutexGuard<'_, Vec<Seen>> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    stream: TcpStream,
    url: &str,
    log: &Mutex<Vec<Seen>>,
    script: &(impl Fn(&Seen, &[Seen]) -> Option<Reply> + ?Sized),
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers
        .get("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let seen = Seen {
        method,
        path,
        headers,
        body,
    };
    let reply = {
        let mut log = locked(log);
        let reply = script(&seen, &log);
        log.push(seen.clone());
        reply.unwrap_or_else(|| usual(&seen, url))
    };
    match reply {
        Reply::Answer(status, headers, body) => {
            let length = body.len();
            let text = format!(
                "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await
        }
        Reply::HangUp => Ok(()),
        Reply::Silence => stream.read(&mut [0]).await.map(|_| ()),
    }
}

/// A well-behaved cloud with one volume and no attachment.
fn usual(seen: &Seen, url: &str) -> Reply {
    let volume = volume("available", &json!({}));
    if seen.is("POST", "/identity/v3/auth/tokens") {
        let endpoint = json!({"interface": "public", "region_id": "R", "region": "R", "url": format!("{url}/volume/v3/p1")});
        let body = json!({"token": {"project": {"id": "p1"},
            "catalog": [{"type": "volumev3", "name": "x", "endpoints": [endpoint]}]}});
        return Reply::Answer(201, "X-Subject-Token: token-1\r\n", body.to_string());
    }
    if seen.is("GET", "/volume/v3/") {
        return ok(&json!({"versions": [{"id": "v3.0", "version": "3.70", "min_version": "3.0"}]}));
    }
    match (
        seen.method.as_str(),
        seen.path.trim_start_matches("/volume/v3/p1/"),
    ) {
        ("GET", path) if path.starts_with("volumes/detail") => ok(&json!({"volumes": [volume]})),
        ("GET", "volumes/v-1") => ok(&json!({"volume": volume})),
        ("POST", "volumes") => status(202, &json!({"volume": volume})),
        ("GET", path) if path.starts_with("attachments/detail") => ok(&json!({"attachments": []})),
        ("POST", "attachments") => {
            ok(&json!({"attachment": {"id": "a-1", "status": "reserved", "connection_info": {}}}))
        }
        ("DELETE", path) if path.starts_with("attachments/") => ok(&json!({"attachments": []})),
        _ => fault(404, "itemNotFound", "Nothing could be found."),
    }
}

/// The volume `v` with the id `v-1`, in this state.
pub fn volume(status: &str, metadata: &Value) -> Value {
    json!({"id": "v-1", "name": "v", "status": status, "size": 1, "metadata": metadata, "attachments": [],
        "created_at": "2026-11-22T18:35:54.000000", "updated_at": "2026-11-22T18:40:00.000000"})
}
