//! Docker's side of its volume plugin protocol: HTTP on a Unix socket, one POST a call.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// The engine gives up on a plugin's answer after two minutes by default; mounts may need all of it.
const LIMIT: Duration = Duration::from_mins(2);

/// The engine's client of one plugin.
pub(crate) struct Plugin {
    client: reqwest::Client,
}

impl Plugin {
    /// Greets the plugin and makes sure that it is a volume driver.
    pub(crate) async fn activate(socket: &Path) -> Result<Self> {
        let client = reqwest::Client::builder()
            .unix_socket(socket)
            .timeout(LIMIT)
            .build();
        let plugin = Self {
            client: client.context("make an HTTP client")?,
        };
        let answer = plugin.call("Plugin.Activate", json!({})).await?;
        let implements = answer["Implements"].as_array();
        if !implements.is_some_and(|list| list.contains(&json!("VolumeDriver"))) {
            bail!("no volume driver: {answer}");
        }
        Ok(plugin)
    }

    /// One call; `Err` in the answer is an error here, as it is for the engine.
    pub(crate) async fn call(&self, method: &str, body: Value) -> Result<Value> {
        let request = self
            .client
            .post(format!("http://plugin/{method}"))
            .header("Accept", "application/vnd.docker.plugins.v1.2+json")
            .body(body.to_string());
        let answer = request.send().await.with_context(|| method.to_owned())?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| method.to_owned())?;
        let value: Value = serde_json::from_str(&text)
            .with_context(|| format!("{method}: {status}, no JSON: {text}"))?;
        match value["Err"].as_str() {
            None | Some("") if status.is_success() => Ok(value),
            _ => bail!("{method}: {status}: {text}"),
        }
    }
}
