//! An attachment after a restart: its device is served again, or what is left of it is removed.
//!
//! Invariants:
//! 1. A device that the kernel still has when a process starts is served again, and by nothing but the unit that was
//!    written down. As long as that fails, nothing is written and nothing given up.
//! 2. What nobody was told of yet is undone; what was on its way back goes on.

use std::path::PathBuf;

use super::address::Address;
use super::attachment::settle;
use super::context::Context;
use super::error::Error;
use super::journal::Entry;
use super::lanes::{LANES_MAX, lanes_of, spec_of};
use super::outside::Served;
use super::takeover;
use crate::cinder::ConnectionInfo;

/// The kernel's device of this entry, if it still has one.
pub(crate) async fn find_device(cx: &Context, entry: &Entry) -> Result<Option<PathBuf>, Error> {
    let found = cx.out.find_device(&entry.identifier()).await;
    found.map_err(|cause| {
        let step = format!("asking the kernel for the device of {}", entry.volume);
        Error::step(step, cause)
    })
}

/// A device of ours that is of this volume, whatever entry it belongs to.
pub(crate) async fn device_of_volume(
    cx: &Context,
    volume_id: &str,
) -> Result<Option<PathBuf>, Error> {
    let of_it = format!(":{volume_id}:");
    let mut devices = our_devices(cx).await?.into_iter();
    let found = devices.find(|(_, identifier)| identifier.contains(&of_it));
    Ok(found.map(|(device, _)| device))
}

/// The devices of any cinder-nbd: path and identifier.
pub(crate) async fn our_devices(cx: &Context) -> Result<Vec<(PathBuf, String)>, Error> {
    let devices = cx.out.our_devices().await;
    devices.map_err(|cause| Error::step("asking the kernel for its devices", cause))
}

/// Where Cinder exports the volume for an attachment.
pub(crate) async fn export_of(
    cx: &Context,
    name: &str,
    attachment_id: &str,
) -> Result<ConnectionInfo, Error> {
    let info = cx.out.connection_of(attachment_id).await;
    info.map_err(|cause| Error::step(format!("asking Cinder where {name} is exported"), cause))
}

/// Serves the kernel's device of this entry again, in place of a process that is gone.
///
/// # Cancel safety
/// None: the kernel may have some of the new sockets.
pub(crate) async fn take_over(cx: &Context, entry: &Entry) -> Result<Served, Error> {
    let unusable = |what: &str| Error::Invalid {
        what: format!(
            "{what}; once nobody uses it, 'cinder-nbd detach --force {}' gives it up",
            entry.volume
        ),
    };
    let standing = entry.standing.as_ref();
    let known = standing.and_then(|standing| Some((standing, standing.unit.identity()?)));
    let (standing, identity) = known.ok_or_else(|| {
        unusable("what the journal has about the logical unit cannot be understood")
    })?;
    if !(1..=LANES_MAX).contains(&standing.lanes) {
        return Err(unusable("the journal has an impossible number of lanes"));
    }
    let address = any_address(cx, entry, standing.read_only).await?;
    let address = address.ok_or_else(|| {
        unusable("how to log in to its target was lost with the runtime directory")
    })?;
    let mut lanes = lanes_of(cx, entry, standing.lanes, &address)?;
    for lane in &mut lanes {
        lane.resume = Some(identity.clone());
        lane.read_only = standing.read_only;
    }
    let adopted = cx.out.adopt(spec_of(cx, entry, lanes)).await;
    adopted.map_err(|cause| {
        let (target, portal) = (&standing.target, &standing.portal);
        Error::step(
            format!("serving the device again from {target} at {portal}"),
            cause,
        )
    })
}

/// How to log in, from what was kept or from Cinder; none where neither knows.
pub(crate) async fn any_address(
    cx: &Context,
    entry: &Entry,
    read_only: bool,
) -> Result<Option<Address>, Error> {
    match cx.out.address_of(entry.id).await {
        Some(address) => Ok(Some(address)),
        None => ask_address(cx, entry, read_only).await,
    }
}

/// What Cinder still knows of the way to the LUN; none for a target that it never knew.
async fn ask_address(
    cx: &Context,
    entry: &Entry,
    read_only: bool,
) -> Result<Option<Address>, Error> {
    let Some(id) = &entry.attachment_id else {
        return Ok(None);
    };
    let info = export_of(cx, &entry.volume, id).await?;
    let address = Address::of_cinder(info, read_only);
    cx.out.keep_address(entry.id, &address).await?;
    Ok(Some(address))
}

/// Removes what a dead daemon left of an attachment.
pub(crate) async fn reclaim(cx: &Context, entry: Entry) -> Result<(), (Entry, Error)> {
    let identifier = entry.identifier();
    let at = entry.mountpoint.as_deref();
    if let Err(cause) = cx.out.reclaim(&identifier, at).await {
        let step = format!("taking down what is left of {}", entry.volume);
        return Err((entry, Error::step(step, cause)));
    }
    let undone = async {
        takeover::step_back(cx, &entry).await?;
        takeover::forget_nameless(cx, &entry).await
    };
    match undone.await {
        Ok(()) => settle(cx, entry).await,
        Err(error) => Err((entry, error)),
    }
}
