//! A call taken apart as the plugin does it, up to where the engine would be asked: for `fuzz/`, which reaches what is
//! public only. No part of the daemon uses it.

use super::wire::{Failure, MountBody, NameBody};
use super::{parse, parse_create};
use crate::volume::CreateRequest;

/// What a call asks of the engine.
#[derive(Debug)]
pub enum Asked {
    /// Nothing that the body tells.
    Nothing,
    /// Something of the volume of this name.
    Of(String),
    /// A mount or its end, for this caller.
    Mount(String, String),
    /// A volume of this name.
    Create(String, Box<CreateRequest>),
}

/// The call at `path`; `None` where the plugin has none.
///
/// # Errors
/// What `Err` of the answer would say.
pub fn call(path: &str, body: &[u8]) -> Option<Result<Asked, String>> {
    let asked = match path.strip_prefix('/')? {
        "Plugin.Activate" | "VolumeDriver.Capabilities" | "VolumeDriver.List" => Ok(Asked::Nothing),
        "VolumeDriver.Create" => {
            parse_create(body).map(|(name, request)| Asked::Create(name, Box::new(request)))
        }
        "VolumeDriver.Mount" | "VolumeDriver.Unmount" => {
            parse(body).map(|body: MountBody| Asked::Mount(body.name, body.id))
        }
        "VolumeDriver.Remove" | "VolumeDriver.Path" | "VolumeDriver.Get" => {
            parse(body).map(|body: NameBody| Asked::Of(body.name))
        }
        _ => return None,
    };
    Some(asked)
}

/// The body of the answer to a call that failed.
pub fn refusal(err: String) -> Vec<u8> {
    serde_json::to_vec(&Failure { err }).unwrap_or_default()
}
