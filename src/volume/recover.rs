//! An attachment after a restart: its device is served again, or what is left of it is removed.
//!
//! Invariants:
//! 1. A device that the kernel still has when a process starts is served again, and by nothing but the unit that was
//!    written down. As long as that fails, nothing is written and nothing given up.
//! 2. What nobody was told of yet is undone; what was on its way back goes on.

use super::address::Address;
use super::attachment::settle;
use super::context::Context;
use super::error::Error;
use super::journal::Entry;
use super::lanes::{LANES_MAX, lanes_of, spec_of};
use super::outside::Served;
use super::takeover;

/// The kernel's device of this entry, if it still has one.
pub(crate) async fn find_device(
    cx: &Context,
    entry: &Entry,
) -> Result<Option<std::path::PathBuf>, Error> {
    let found = cx.out.find_device(&entry.identifier()).await;
    found.map_err(|cause| {
        let step = format!("asking the kernel for the device of {}", entry.volume);
        Error::step(step, cause)
    })
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
    let address = match cx.out.address_of(entry.id).await {
        Some(address) => address,
        None => ask_address(cx, entry, standing.read_only)
            .await?
            .ok_or_else(|| {
                unusable("how to log in to its target was lost with the runtime directory")
            })?,
    };
    let mut lanes = lanes_of(cx, entry.id, standing.lanes, &address)?;
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

/// What Cinder still knows of the way to the LUN; none for a target that it never knew.
async fn ask_address(
    cx: &Context,
    entry: &Entry,
    read_only: bool,
) -> Result<Option<Address>, Error> {
    let Some(id) = &entry.attachment_id else {
        return Ok(None);
    };
    let info = cx.out.connection_of(id).await.map_err(|cause| {
        Error::step(
            format!("asking Cinder where {} is exported", entry.volume),
            cause,
        )
    })?;
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
