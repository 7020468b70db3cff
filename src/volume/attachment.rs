//! One attachment: its steps in their order, and the undoing of every prefix of them.
//!
//! ```text
//!  step         journal says   done                           undone by
//!  probe        -              nothing is changed             -
//!  reserve      Reserving      Cinder: reserved               delete the attachment
//!  connect      Connecting     Cinder: attaching, exported    delete the attachment
//!  export       Exporting      logins, /dev/nbdX              disconnect, log out; then as above
//!  complete     Completing     Cinder: in-use                 as above
//!               Attached
//! ```
//!
//! Invariants:
//! 1. The kernel is asked before Cinder is touched: a host that cannot have devices leaves no trace
//!    in the cloud.
//! 2. The id of an attachment is on the disk before the step that would make a backend export to
//!    us.
//! 3. A failure undoes what was done, newest first. What cannot be undone is handed to the caller,
//!    who owns it and tries again; it is never dropped.
//! 4. The attachment in Cinder is deleted only after the device is gone: until then the export is
//!    in use.
//! 5. A device that the kernel still has when a process starts is served again, and by nothing but
//!    the unit that was written down. As long as that fails, nothing is written and nothing given up.

use std::sync::Arc;

use iscsi::proto::{ChapCredentials, IscsiName, Isid, Portal, SessionParams};
use uuid::Uuid;

use super::address::{Address, Addresses};
use super::cloud::Cloud;
use super::error::{Error, line};
use super::journal::{Entry, Step, Store};
use super::platform::{Device, DeviceSpec, Platform, Release};
use super::request::StaticTarget;
use super::standing::{Standing, Unit};
use crate::cinder::Connector;
use crate::lun::LunSpec;

/// What all volumes share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) settings: super::Settings,
    pub(crate) cloud: Arc<dyn Cloud>,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) store: Store,
    pub(crate) addresses: Addresses,
}

/// A device that is here.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) entry: Entry,
    pub(crate) device: Box<dyn Device>,
    pub(crate) portal: String,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

/// What a failure could not undo.
#[derive(Debug)]
pub(crate) enum Left {
    /// Nothing.
    Nothing,
    /// The attachment in Cinder, or its entry on the disk.
    Entry(Entry),
    /// The device too: the kernel did not let go of it.
    Attached(Attached),
}

/// A failure, and what it left.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) left: Left,
}

impl Failure {
    fn clean(error: Error) -> Self {
        Self {
            error,
            left: Left::Nothing,
        }
    }
}

/// Attaches a volume of the cloud.
pub(crate) async fn attach_volume(
    cx: &Context,
    name: &str,
    volume_id: &str,
    read_only: bool,
) -> Result<Attached, Failure> {
    probe(cx).await?;
    let mut entry = Entry::new(name, Some(volume_id), Step::Reserving);
    cx.store.save_entry(&entry).await.map_err(Failure::clean)?;
    match cx.cloud.reserve(volume_id, read_only).await {
        Ok(attachment_id) => entry.attachment_id = Some(attachment_id),
        Err(cause) => {
            let error = Error::step(format!("reserving {name} in Cinder"), cause);
            return Err(give_up(cx, entry, error).await);
        }
    }
    let address = match export_to_us(cx, &mut entry, name, read_only).await {
        Ok(address) => address,
        Err(error) => return Err(give_up(cx, entry, error).await),
    };
    let attached = make_device(cx, entry, address).await?;
    complete(cx, attached).await
}

/// Attaches a LUN that no cloud knows of.
pub(crate) async fn attach_static(cx: &Context, target: StaticTarget) -> Result<Attached, Failure> {
    probe(cx).await?;
    let name = target.name();
    let entry = Entry::new(&name, None, Step::Exporting);
    let StaticTarget {
        portal,
        target,
        lun,
        chap,
        read_only,
    } = target;
    let mut attached = make_device(
        cx,
        entry,
        Address {
            portal,
            target,
            lun,
            more_paths: Vec::new(),
            chap,
            read_only,
        },
    )
    .await?;
    attached.entry.step = Step::Attached;
    match cx.store.save_entry(&attached.entry).await {
        Ok(()) => Ok(attached),
        Err(error) => Err(take_back(cx, attached, error).await),
    }
}

/// The way back.
pub(crate) async fn detach(cx: &Context, attached: Attached, how: Release) -> Result<(), Failure> {
    let Attached {
        mut entry,
        device,
        portal,
        target,
        read_only,
    } = attached;
    entry.step = Step::Detaching;
    if let Err(error) = cx.store.save_entry(&entry).await {
        // The entry on the disk already holds all that an undo needs; a full disk must not keep a
        // volume here.
        tracing::warn!(
            volume = entry.volume,
            error = line(&error),
            "detaching without a note of it"
        );
    }
    let path = device.path();
    if let Err((device, cause)) = device.disconnect(how).await {
        let error = Error::step(format!("disconnecting {}", path.display()), cause);
        let left = Left::Attached(Attached {
            entry,
            device,
            portal,
            target,
            read_only,
        });
        return Err(Failure { error, left });
    }
    settle(cx, entry).await.map_err(|(entry, error)| Failure {
        error,
        left: Left::Entry(entry),
    })
}

/// Deletes the attachment and then the entry. Comes back with the entry when it must be tried
/// again.
pub(crate) async fn settle(cx: &Context, entry: Entry) -> Result<(), (Entry, Error)> {
    if let Some(id) = &entry.attachment_id
        && let Err(cause) = cx.cloud.delete_attachment(id).await
    {
        let step = format!("deleting attachment {id} of {} in Cinder", entry.volume);
        return Err((entry, Error::step(step, cause)));
    }
    if let Err(error) = cx.addresses.forget(entry.id).await {
        return Err((entry, error));
    }
    match cx.store.forget_entry(&entry).await {
        Ok(()) => Ok(()),
        Err(error) => Err((entry, error)),
    }
}

/// The kernel's device of this entry, if it still has one.
pub(crate) async fn find_device(
    cx: &Context,
    entry: &Entry,
) -> Result<Option<std::path::PathBuf>, Error> {
    let found = cx.platform.find(&entry.identifier()).await;
    found.map_err(|cause| {
        let step = format!("asking the kernel for the device of {}", entry.volume);
        Error::step(step, cause)
    })
}

/// Serves the kernel's device of this entry again, in place of a process that is gone.
///
/// # Cancel safety
/// None: the kernel may have some of the new sockets.
pub(crate) async fn take_over(cx: &Context, entry: &Entry) -> Result<Box<dyn Device>, Error> {
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
    let address = match cx.addresses.load(entry.id).await {
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
    let adopted = cx.platform.adopt(spec_of(cx, entry, lanes)).await;
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
    let info = cx.cloud.connection_of(id).await.map_err(|cause| {
        Error::step(
            format!("asking Cinder where {} is exported", entry.volume),
            cause,
        )
    })?;
    let address = Address::of_cinder(info, read_only);
    cx.addresses.save(entry.id, &address).await?;
    Ok(Some(address))
}

/// Removes what a dead daemon left of an attachment.
pub(crate) async fn reclaim(cx: &Context, entry: Entry) -> Result<(), (Entry, Error)> {
    let identifier = entry.identifier();
    if let Err(cause) = cx
        .platform
        .reclaim(&identifier, entry.mountpoint.as_deref())
        .await
    {
        let step = format!("taking down what is left of {}", entry.volume);
        return Err((entry, Error::step(step, cause)));
    }
    if entry.step == Step::Reserving
        && let Some(volume_id) = &entry.volume_id
    {
        warn_of_reserved(cx, &entry.volume, volume_id).await;
    }
    settle(cx, entry).await
}

/// The crash fell between Cinder's answer and our note of it. A reserved attachment does not say
/// whose it is, and another host may be attaching right now, so it is named and not deleted.
async fn warn_of_reserved(cx: &Context, name: &str, volume_id: &str) {
    let Ok(attachments) = cx.cloud.attachments(volume_id).await else {
        return;
    };
    for (id, status) in attachments
        .iter()
        .filter(|(_, status)| status == "reserved")
    {
        tracing::warn!(
            volume = name,
            attachment = id,
            status,
            "may be left of an interrupted attach; if no other host is attaching the volume, delete it with \
             'openstack volume attachment delete'"
        );
    }
}

async fn probe(cx: &Context) -> Result<(), Failure> {
    let probed = cx.platform.probe().await;
    probed
        .map_err(|cause| Failure::clean(Error::step("asking the kernel for an NBD device", cause)))
}

async fn export_to_us(
    cx: &Context,
    entry: &mut Entry,
    name: &str,
    read_only: bool,
) -> Result<Address, Error> {
    entry.step = Step::Connecting;
    cx.store.save_entry(entry).await?;
    let attachment_id = entry.attachment_id.as_deref().unwrap_or_default();
    let ip = match cx.settings.ip.clone() {
        Some(ip) => ip,
        // iSCSI drivers need some address and look at it little; none on the route means a cloud on
        // this host.
        None => cx
            .cloud
            .local_ip()
            .await
            .unwrap_or_else(|| "127.0.0.1".to_owned()),
    };
    let connector = Connector {
        initiator: cx.settings.initiator_name.clone(),
        host: cx.settings.host.clone(),
        ip,
        // All that others see of us: the connector's host is shown to administrators only.
        mountpoint: format!("cinder-nbd:{}", cx.settings.host),
        read_only,
    };
    let connected = cx.cloud.connect_attachment(attachment_id, connector).await;
    let info = connected.map_err(|cause| {
        Error::step(format!("letting Cinder export {name} to this host"), cause)
    })?;
    entry.step = Step::Exporting;
    cx.store.save_entry(entry).await?;
    Ok(Address::of_cinder(info, read_only))
}

/// Logs in and makes the device; on failure undoes what stood before.
async fn make_device(
    cx: &Context,
    mut entry: Entry,
    address: Address,
) -> Result<Attached, Failure> {
    let portal = address.portal.to_string();
    let target = format!("{} LUN {}", address.target, address.lun);
    let prepared = async {
        cx.addresses.save(entry.id, &address).await?;
        cx.store.save_entry(&entry).await?;
        let count = cx.settings.lanes.clamp(1, LANES_MAX);
        lanes_of(cx, entry.id, count, &address)
    };
    let lanes = match prepared.await {
        Ok(lanes) => lanes,
        Err(error) => return Err(give_up(cx, entry, error).await),
    };
    let count = lanes.len();
    match cx.platform.connect(spec_of(cx, &entry, lanes)).await {
        Ok(device) => {
            entry.standing = Some(Standing {
                lanes: count,
                unit: Unit::of(&device.identity()),
                read_only: address.read_only,
                portal: portal.clone(),
                target: target.clone(),
                created_by_us: false,
                formatted: false,
            });
            Ok(Attached {
                entry,
                device,
                portal,
                target,
                read_only: address.read_only,
            })
        }
        Err(cause) => {
            let step = format!("making a device of {target} at {portal}");
            Err(give_up(cx, entry, Error::step(step, cause)).await)
        }
    }
}

/// The sessions of an attachment; the same ones whenever it is asked for.
fn lanes_of(
    cx: &Context,
    id: Uuid,
    count: usize,
    address: &Address,
) -> Result<Vec<LunSpec>, Error> {
    let initiator: IscsiName = cx
        .settings
        .initiator_name
        .parse()
        .map_err(|error| Error::step("using our initiator name", error))?;
    let lane = |lane| {
        let session = session_params(
            address.portal.clone(),
            initiator.clone(),
            Some(address.target.clone()),
            address.chap.clone(),
            lane_isid(id, lane),
        );
        let mut spec = LunSpec::new(session, address.lun);
        spec.session.offers.header_digest = cx.settings.header_digest;
        spec.session.offers.data_digest = cx.settings.data_digest;
        spec.recovery.replacement_timeout = cx.settings.replacement_timeout;
        spec.read_only = address.read_only;
        spec.more_paths.clone_from(&address.more_paths);
        spec
    };
    Ok((0..count).map(lane).collect())
}

fn spec_of(cx: &Context, entry: &Entry, lanes: Vec<LunSpec>) -> DeviceSpec {
    DeviceSpec {
        id: entry.id,
        identifier: entry.identifier(),
        lanes,
        dead_conn_timeout: cx.settings.dead_conn_timeout,
    }
}

async fn complete(cx: &Context, mut attached: Attached) -> Result<Attached, Failure> {
    attached.entry.step = Step::Completing;
    if let Err(error) = cx.store.save_entry(&attached.entry).await {
        return Err(take_back(cx, attached, error).await);
    }
    let id = attached.entry.attachment_id.clone().unwrap_or_default();
    if let Err(cause) = cx.cloud.complete(&id).await {
        let error = Error::step("telling Cinder that the volume is attached", cause);
        return Err(take_back(cx, attached, error).await);
    }
    attached.entry.step = Step::Attached;
    match cx.store.save_entry(&attached.entry).await {
        Ok(()) => Ok(attached),
        Err(error) => Err(take_back(cx, attached, error).await),
    }
}

/// Undo while there is no device.
async fn give_up(cx: &Context, entry: Entry, error: Error) -> Failure {
    match settle(cx, entry).await {
        Ok(()) => Failure::clean(error),
        Err((entry, undo)) => {
            let left = entry.attachment_id.as_ref().map_or_else(
                || format!("the journal entry {}", entry.id),
                |id| format!("attachment {id} of {}", entry.volume),
            );
            tracing::warn!(
                volume = entry.volume,
                error = line(&undo),
                "undoing an attach failed"
            );
            let error = Error::Leftover {
                left,
                source: Box::new(error),
            };
            Failure {
                error,
                left: Left::Entry(entry),
            }
        }
    }
}

/// Undo with a device. Nobody was told of it yet, so whoever has it open is a prober: it goes by
/// force.
async fn take_back(cx: &Context, attached: Attached, error: Error) -> Failure {
    let path = attached.device.path();
    match detach(cx, attached, Release::Forced).await {
        Ok(()) => Failure::clean(error),
        Err(Failure { error: undo, left }) => {
            tracing::warn!(device = %path.display(), error = line(&undo), "undoing an attach failed");
            let what = match &left {
                Left::Attached(_) => format!("the device {}", path.display()),
                Left::Entry(entry) => {
                    format!(
                        "attachment {}",
                        entry
                            .attachment_id
                            .as_deref()
                            .unwrap_or("of a static target")
                    )
                }
                Left::Nothing => "nothing".to_owned(),
            };
            Failure {
                error: Error::Leftover {
                    left: what,
                    source: Box::new(error),
                },
                left,
            }
        }
    }
}

/// More lanes than this gain nothing and cost a thread and a session each.
const LANES_MAX: usize = 16;

/// Our half of a lane's session name: stable for the attachment, different for every lane of every
/// attachment, as two sessions of one initiator to one target must differ in it (the later would
/// reinstate the earlier).
///
/// RFC 7143 §11.12.5: type 10b, a random number of 24 bits, a qualifier of 16 bits.
pub fn lane_isid(id: Uuid, lane: usize) -> Isid {
    let random = id.as_bytes();
    let lane = u8::try_from(lane % LANES_MAX).unwrap_or_default();
    // The last bytes of a version 4 UUID are all random; the lane takes the lowest four bits of the
    // qualifier.
    let qualifier = u16::from_be_bytes([random[12], (random[11] << 4) | lane]);
    Isid::random([random[15], random[14], random[13]], qualifier)
}

/// A session's parameters with the usual times.
pub fn session_params(
    portal: Portal,
    initiator_name: IscsiName,
    target_name: Option<IscsiName>,
    chap: Option<ChapCredentials>,
    isid: Isid,
) -> SessionParams {
    SessionParams {
        target_name,
        chap,
        ..SessionParams::new(portal, initiator_name, isid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143 §11.12.5
    #[test]
    fn lanes_differ_in_their_isid_and_keep_it() {
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        assert_eq!(lane_isid(one, 0), lane_isid(one, 0));
        assert_ne!(lane_isid(one, 0), lane_isid(one, 1));
        assert_ne!(lane_isid(one, 0), lane_isid(other, 0));
        assert_eq!(lane_isid(one, 0).0[0] >> 6, 0b10);
    }
}
