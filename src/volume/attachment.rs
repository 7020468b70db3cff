//! One attachment: its phases in their order, and the undoing of every prefix of them.
//!
//! ```text
//!  phase in the journal   done in it                        undone by
//!  -                      the kernel is asked: nothing      -
//!  Taking                 others' rows go (`takeover`)      the fence is taken away; what is deleted stays so
//!  Reserving              our tag; Cinder: reserved         delete the attachment, our tag
//!  Connecting             Cinder: attaching, exported       as above
//!  Exporting              logins, /dev/nbdX                 disconnect, log out; then as above
//!  Completing             Cinder: in-use                    as above
//!  Attached               used                              -
//!  Detaching              all of that undone, in reverse    gone on with
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
//!
//! What becomes of it after a restart is `recover`'s matter.

use super::address::Address;
use super::context::{Context, FENCED, attaching};
use super::error::{Error, line};
use super::journal::{Entry, Phase};
use super::lanes::{LANES_MAX, lanes_of, spec_of};
use super::outside::Served;
use super::platform::Release;
use super::portals;
use super::request::StaticTarget;
use super::standing::{Standing, Unit};
use super::takeover::{self, Room};
use crate::block::Rates;
use crate::cinder::{Connector, Volume};

/// A device that is here.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) entry: Entry,
    pub(crate) device: Served,
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
    pub(crate) fn clean(error: Error) -> Self {
        Self {
            error,
            left: Left::Nothing,
        }
    }
}

/// Attaches a volume of the cloud, for which there is `room`.
pub(crate) async fn attach_volume(
    cx: &Context,
    name: &str,
    volume: &Volume,
    room: Room,
    read_only: bool,
) -> Result<Attached, Failure> {
    probe(cx).await?;
    let mut entry = Entry::new(name, Some(&volume.id), Phase::Reserving);
    let exported = async {
        takeover::clear(cx, &mut entry, &room).await?;
        reserve(cx, &mut entry, &room, read_only).await?;
        export_to_us(cx, &mut entry, read_only).await
    };
    let address = match exported.await {
        Ok(address) => address,
        Err(error) => return Err(give_up(cx, entry, error).await),
    };
    let fence = if room.fence {
        takeover::keep_fence(cx, &mut entry, &address).await
    } else if room.is_fenced {
        takeover::open_again(cx, &entry, &address).await
    } else {
        Ok(())
    };
    if let Err(error) = fence {
        return Err(give_up(cx, entry, error).await);
    }
    entry.phase = Phase::Exporting;
    let attached = make_device(cx, entry, address).await?;
    complete(cx, attached).await
}

/// Attaches a LUN that no cloud knows of.
pub(crate) async fn attach_static(cx: &Context, target: StaticTarget) -> Result<Attached, Failure> {
    probe(cx).await?;
    let name = target.name();
    let entry = Entry::new(&name, None, Phase::Exporting);
    let StaticTarget {
        portal,
        target,
        lun,
        chap,
        read_only,
    } = target;
    let address = Address {
        portal,
        target,
        lun: lun.into(),
        more_paths: Vec::new(),
        chap,
        read_only,
        rates: Rates::default(),
    };
    let attached = make_device(cx, entry, address).await?;
    in_use(cx, attached).await
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
    entry.phase = Phase::Detaching;
    if let Err(error) = cx.out.save_entry(&entry).await {
        // The entry on the disk already holds all that an undo needs; a full disk must not keep a
        // volume here.
        tracing::warn!(
            volume = entry.volume,
            error = line(&error),
            "detaching without a note of it"
        );
    }
    let path = device.path();
    if let Err((device, cause)) = cx.out.disconnect(device, how).await {
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
    takeover::end_fence(cx, &entry).await;
    if let Some(id) = &entry.attachment_id
        && let Err(cause) = cx.out.delete_attachment(id).await
    {
        let step = format!("deleting attachment {id} of {} in Cinder", entry.volume);
        return Err((entry, Error::step(step, cause)));
    }
    if let Some(volume_id) = &entry.volume_id
        && let Err(cause) = cx.out.untag(volume_id, &attaching(entry.id)).await
    {
        // A tag that stays harms nobody: it is this entry's alone, and `doctor` finds it.
        tracing::warn!(
            volume = entry.volume,
            error = line(&*cause),
            "our tag stays in the volume's metadata"
        );
    }
    let erased = async {
        cx.out.forget_address(entry.id).await?;
        cx.out.forget_entry(&entry).await
    };
    match erased.await {
        Ok(()) => Ok(()),
        Err(error) => Err((entry, error)),
    }
}

async fn probe(cx: &Context) -> Result<(), Failure> {
    let probed = cx.out.probe().await;
    probed
        .map_err(|cause| Failure::clean(Error::step("asking the kernel for an NBD device", cause)))
}

/// Our tag, and then the reservation that may turn out to be nameless.
async fn reserve(
    cx: &Context,
    entry: &mut Entry,
    room: &Room,
    read_only: bool,
) -> Result<(), Error> {
    entry.phase = Phase::Reserving;
    entry.before.clone_from(&room.before);
    cx.out.save_entry(entry).await?;
    let volume_id = entry.volume_id.clone().unwrap_or_default();
    for key in &room.stale_tags {
        if let Err(cause) = cx.out.untag(&volume_id, key).await {
            let (volume, error) = (&entry.volume, line(&*cause));
            tracing::warn!(
                volume,
                key,
                error,
                "the tag of an attachment that is no more stays"
            );
        }
    }
    let key = attaching(entry.id);
    if let Err(cause) = cx.out.tag(&volume_id, &key, &cx.name()).await {
        tracing::warn!(
            volume = entry.volume,
            error = line(&*cause),
            "not tagged as ours in Cinder"
        );
    }
    let reserved = cx.out.reserve(&volume_id, read_only).await;
    let id = reserved
        .map_err(|cause| Error::step(format!("reserving {} in Cinder", entry.volume), cause))?;
    entry.attachment_id = Some(id);
    Ok(())
}

async fn export_to_us(cx: &Context, entry: &mut Entry, read_only: bool) -> Result<Address, Error> {
    entry.phase = Phase::Connecting;
    cx.out.save_entry(entry).await?;
    let attachment_id = entry.attachment_id.as_deref().unwrap_or_default();
    let ip = match cx.settings.ip.clone() {
        Some(ip) => ip,
        // iSCSI drivers need some address and look at it little; none on the route means a cloud on
        // this host.
        None => cx
            .out
            .local_ip()
            .await
            .unwrap_or_else(|| "127.0.0.1".to_owned()),
    };
    let connector = Connector {
        initiator: cx.settings.initiator_name.clone(),
        host: cx.settings.host.clone(),
        ip,
        mountpoint: cx.tag(),
        read_only,
    };
    let connected = cx.out.connect_attachment(attachment_id, connector).await;
    let info = connected.map_err(|cause| {
        Error::step(
            format!("letting Cinder export {} to this host", entry.volume),
            cause,
        )
    })?;
    let discovery = info.discovery_chap.clone();
    let mut address = Address::of_cinder(info, read_only);
    if let Some(chap) = discovery
        && address.more_paths.is_empty()
    {
        address.more_paths = portals::further(cx, entry, &address, chap).await;
    }
    Ok(address)
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
        cx.out.save_entry(&entry).await?;
        cx.out.keep_address(entry.id, &address).await?;
        let count = cx.settings.lanes.clamp(1, LANES_MAX);
        lanes_of(cx, &entry, count, &address)
    };
    let lanes = match prepared.await {
        Ok(lanes) => lanes,
        Err(error) => return Err(give_up(cx, entry, error).await),
    };
    let count = lanes.len();
    match cx.out.make_device(spec_of(cx, &entry, lanes)).await {
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

async fn complete(cx: &Context, mut attached: Attached) -> Result<Attached, Failure> {
    attached.entry.phase = Phase::Completing;
    if let Err(error) = cx.out.save_entry(&attached.entry).await {
        return Err(take_back(cx, attached, error).await);
    }
    let id = attached.entry.attachment_id.clone().unwrap_or_default();
    if let Err(cause) = cx.out.complete(&id).await {
        let error = Error::step("telling Cinder that the volume is attached", cause);
        return Err(take_back(cx, attached, error).await);
    }
    in_use(cx, attached).await
}

async fn in_use(cx: &Context, mut attached: Attached) -> Result<Attached, Failure> {
    attached.entry.phase = Phase::Attached;
    match cx.out.save_entry(&attached.entry).await {
        Ok(()) => Ok(attached),
        Err(error) => Err(take_back(cx, attached, error).await),
    }
}

/// Undo while there is no device.
async fn give_up(cx: &Context, entry: Entry, error: Error) -> Failure {
    let undone = match takeover::step_back(cx, &entry).await {
        Ok(()) => settle(cx, entry).await,
        Err(error) => Err((entry, error)),
    };
    match undone {
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

/// Whether the volume's LUN may still keep others out, ourselves included.
pub(crate) fn is_fenced(volume: &Volume) -> bool {
    volume.metadata.contains_key(FENCED)
}
