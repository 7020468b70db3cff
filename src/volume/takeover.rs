//! A volume that is attached already: whose attachments these are, and what is done about them.
//!
//! ```text
//!  rows of the volume in Cinder --> ours, of no entry here: deleted (a journal that was lost)
//!                               --> others', volume shared (multiattach) and we only read, or are asked for the raw device: beside them
//!                               --> others': refuse | wait N | take | take-without-fence
//!
//!  take:  mark the volume as fenced; log in by the other's own export; register, reserve, PREEMPT AND ABORT
//!         delete the other's attachment (Cinder ends its export)
//!         reserve, connect; fence anew by our own export (a target that is made anew has forgotten it); devices, whose
//!         sessions register. At the end of the attachment: CLEAR, take the mark away
//! ```
//!
//! A room of its own because it is the one place where something of another host's is touched.
//!
//! Source: SPC-4 5.12.11 (preempting), 5.12.5 (Write Exclusive - Registrants Only).
//!
//! Invariants:
//! 1. Nothing of another host's is touched but as `take` or `take-without-fence` says, and by whose word is in the log.
//! 2. With `take`, the other's writes are refused by the LUN before its attachment is deleted; a LUN that cannot be
//!    fenced is not taken.
//! 3. The mark is in Cinder before the fence is up and as long as it may be, so whoever attaches next ends it.
//! 4. The fence stays as long as the volume is attached: the end of an attachment in Cinder does not keep its host out
//!    everywhere (LVM with tgt exports again with the same credentials).
//! 5. A row is ours only if it names this host *and* this state directory: two hosts may have one name.

use std::time::Duration;

use tokio::time::Instant;

use super::address::Address;
use super::attachment::{self, is_fenced};
use super::context::{ATTACHING, Context, FENCED};
use super::error::{Error, line};
use super::journal::{Entry, Phase};
use super::lanes::{LANES_MAX, control_of};
use super::recover;
use super::request::Elsewhere;
use crate::cinder::{Holder, Volume};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) read_only: bool,
    /// The device as it is, shared with whoever else has it: whoever asks sees to it that no data is harmed.
    pub(crate) raw: bool,
    pub(crate) elsewhere: Elsewhere,
}

/// How the volume can be attached.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Attachments that stay beside ours.
    pub(crate) before: Vec<String>,
    /// Other hosts' attachments to be taken away first.
    take: Vec<Holder>,
    /// With a fence.
    pub(crate) fence: bool,
    /// Tags of attachments that are no more: those that were taken away, and our own of a journal that was lost.
    pub(crate) stale_tags: Vec<String>,
    /// The LUN may be fenced, by us in a moment or by an earlier take.
    pub(crate) is_fenced: bool,
}

/// Between two looks at a volume that is waited for.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Looks at a volume whose rows were ours alone; each takes one away.
const ROUNDS_MAX: usize = 4;

/// Finds out who has the volume, and waits if that is what is wished.
///
/// # Errors
/// Somebody has it, and that is not to be changed.
pub(crate) async fn find_room(
    cx: &Context,
    name: &str,
    volume: &mut Volume,
    wish: Wish,
) -> Result<Room, Error> {
    let mut room = look(cx, name, volume, wish).await?;
    // No entry of ours has this volume: whoever asks has settled all that were left.
    let lost = tags(volume, |host| host == cx.name());
    room.stale_tags.extend(lost);
    Ok(room)
}

async fn look(cx: &Context, name: &str, volume: &mut Volume, wish: Wish) -> Result<Room, Error> {
    let waits = match wish.elsewhere {
        Elsewhere::Wait(patience) => Some(Instant::now() + patience),
        Elsewhere::Refuse | Elsewhere::Take | Elsewhere::TakeWithoutFence => None,
    };
    let mut rounds = 0;
    loop {
        let is_fenced = is_fenced(volume);
        if volume.status == "available" {
            return Ok(Room {
                is_fenced,
                ..Room::default()
            });
        }
        let rows = holders(cx, name, &volume.id).await?;
        let tag = cx.tag();
        let (ours, others): (Vec<Holder>, Vec<Holder>) = rows
            .into_iter()
            .partition(|row| row.device.as_deref() == Some(&tag));
        let had_ours = !ours.is_empty();
        for row in ours {
            forget_stale(cx, name, volume, row).await?;
        }
        if others.is_empty() && (!had_ours || rounds == ROUNDS_MAX) {
            // Whatever state this is, Cinder says so itself when it is asked for an attachment.
            return Ok(Room {
                is_fenced,
                ..Room::default()
            });
        }
        let before = || others.iter().map(|row| row.attachment_id.clone()).collect();
        if !others.is_empty() {
            if volume.multiattach && (wish.read_only || wish.raw) {
                return Ok(Room {
                    before: before(),
                    is_fenced,
                    ..Room::default()
                });
            }
            match (wish.elsewhere, waits) {
                (Elsewhere::Take | Elsewhere::TakeWithoutFence, _) => {
                    let fence = wish.elsewhere == Elsewhere::Take;
                    return Ok(Room {
                        fence,
                        stale_tags: tags_of_others(cx, volume),
                        is_fenced: is_fenced || fence,
                        take: others,
                        ..Room::default()
                    });
                }
                (_, Some(until)) if Instant::now() < until => {
                    let pause = Instant::now() + LOOK_INTERVAL;
                    tokio::time::sleep_until(pause.min(until)).await;
                }
                _ => return Err(refusal(name, volume, &others, wish)),
            }
        }
        rounds += 1;
        let found = cx.find_volume(&volume.id, name).await?;
        *volume = found.ok_or_else(|| Error::NoSuchVolume {
            name: name.to_owned(),
        })?;
    }
}

/// Takes away what `room` says, with the entry saying so before.
pub(crate) async fn clear(cx: &Context, entry: &mut Entry, room: &Room) -> Result<(), Error> {
    for holder in &room.take {
        entry.phase = Phase::Taking;
        entry.theirs = Some(holder.attachment_id.clone());
        cx.out.save_entry(entry).await?;
        if room.fence {
            fence(cx, entry, holder).await?;
        }
        let taken = cx.out.take_away(&holder.attachment_id).await;
        taken.map_err(|cause| {
            let step = format!("taking {} away from its holder ({holder})", entry.volume);
            Error::step(step, cause)
        })?;
        let how = if room.fence {
            "fenced, then"
        } else {
            "not fenced,"
        };
        let text = format!("taken over: {holder}; {how} deleted");
        tracing::warn!(volume = entry.volume, text, "taken away from another host");
        entry.taken = Some(text);
    }
    entry.theirs = None;
    Ok(())
}

/// A take that failed or died: if the fence is ours and the LUN is still exported to anybody, it takes writes again. If it
/// is not, the mark says to whoever attaches it next that the fence has to be ended.
pub(crate) async fn step_back(cx: &Context, entry: &Entry) -> Result<(), Error> {
    let is_before_devices = match entry.phase {
        Phase::Taking | Phase::Reserving | Phase::Connecting => true,
        Phase::Exporting | Phase::Completing | Phase::Attached | Phase::Detaching => false,
    };
    let (true, Some(volume_id)) = (is_before_devices, &entry.volume_id) else {
        return Ok(());
    };
    if !is_fenced_by_us(cx, entry).await? {
        return Ok(());
    }
    let rows = holders(cx, &entry.volume, volume_id).await?;
    let is_exported = |row: &&Holder| row.status == "attached" || row.status == "attaching";
    let Some(row) = rows.iter().find(is_exported) else {
        return Ok(());
    };
    let info = recover::export_of(cx, &entry.volume, &row.attachment_id).await?;
    open_again(cx, entry, &Address::of_cinder(info, false)).await
}

async fn fence(cx: &Context, entry: &Entry, holder: &Holder) -> Result<(), Error> {
    let no_fence = |source| Error::NoFence {
        name: entry.volume.clone(),
        holder: holder.to_string(),
        source,
    };
    let volume_id = entry.volume_id.as_deref().unwrap_or_default();
    let key = cx.reservation_key();
    let info = cx.out.connection_of(&holder.attachment_id).await;
    let address = Address::of_cinder(info.map_err(no_fence)?, false);
    let marked = cx.out.tag(volume_id, FENCED, &cx.fence_mark()).await;
    marked.map_err(no_fence)?;
    let control = control_of(cx, entry, &address)?;
    let fenced = cx.out.fence(control, key).await;
    if fenced.is_err()
        && let Err(cause) = cx.out.untag(volume_id, FENCED).await
    {
        let (volume, error) = (&entry.volume, line(&*cause));
        tracing::warn!(volume, error, "the mark of a fence that is not up stays");
    }
    fenced.map_err(no_fence)
}

/// The fence that `take` has put up holds on by our own export, from before the first device until the last is gone.
pub(crate) async fn keep_fence(
    cx: &Context,
    entry: &mut Entry,
    address: &Address,
) -> Result<(), Error> {
    entry.fenced = true;
    cx.out.save_entry(entry).await?;
    let control = control_of(cx, entry, address)?;
    let fenced = cx.out.fence(control, cx.reservation_key()).await;
    fenced.map_err(|cause| Error::step(format!("fencing {} for this host", entry.volume), cause))
}

/// Whether the mark is ours: a host that has taken the volume since has put its own there, and its fence is not ours to end.
async fn is_fenced_by_us(cx: &Context, entry: &Entry) -> Result<bool, Error> {
    let volume_id = entry.volume_id.as_deref().unwrap_or_default();
    let found = cx.find_volume(volume_id, &entry.volume).await?;
    let own = cx.fence_mark();
    Ok(found.is_some_and(|volume| volume.metadata.get(FENCED) == Some(&own)))
}

/// At the end of an attachment that kept its fence. Where that cannot be ended, the mark stays, and says so to whoever
/// attaches the volume next.
pub(crate) async fn end_fence(cx: &Context, entry: &Entry) {
    if !entry.fenced {
        return;
    }
    let ended = async {
        if !is_fenced_by_us(cx, entry).await? {
            return Ok(());
        }
        match recover::any_address(cx, entry, false).await? {
            Some(address) => open_again(cx, entry, &address).await,
            None => Ok(()),
        }
    };
    if let Err(error) = ended.await {
        let (volume, error) = (&entry.volume, line(&error));
        tracing::warn!(
            volume,
            error,
            "its fence stays; whoever attaches it next with cinder-nbd ends it"
        );
    }
}

/// Ends the fence by an export, and takes the mark away.
pub(crate) async fn open_again(
    cx: &Context,
    entry: &Entry,
    address: &Address,
) -> Result<(), Error> {
    let control = control_of(cx, entry, address)?;
    let lifted = cx.out.unfence(control, cx.reservation_key()).await;
    lifted.map_err(|cause| {
        Error::step(format!("ending the reservation on {}", entry.volume), cause)
    })?;
    let volume_id = entry.volume_id.as_deref().unwrap_or_default();
    let unmarked = cx.out.untag(volume_id, FENCED).await;
    unmarked.map_err(|cause| {
        let step = format!("telling Cinder that {} is open again", entry.volume);
        Error::step(step, cause)
    })
}

/// A row with our tag and without an entry: the journal was lost, or somebody tidied it by hand.
async fn forget_stale(cx: &Context, name: &str, volume: &Volume, row: Holder) -> Result<(), Error> {
    if let Some(device) = recover::device_of_volume(cx, &volume.id).await? {
        return Err(Error::Invalid {
            what: format!(
                "{name} is attached by this host as {}, of which the journal knows nothing; 'cinder-nbd doctor --repair' \
                 takes it off once nobody uses it",
                device.display()
            ),
        });
    }
    tracing::warn!(
        volume = name,
        row = row.attachment_id,
        "an attachment of this host of which the journal knows nothing: deleted"
    );
    let mut entry = Entry::new(name, Some(&volume.id), Phase::Detaching);
    entry.attachment_id = Some(row.attachment_id);
    cx.out.save_entry(&entry).await?;
    attachment::settle(cx, entry)
        .await
        .map_err(|(_, error)| error)
}

/// Rows that hold the volume.
pub(crate) async fn holders(
    cx: &Context,
    name: &str,
    volume_id: &str,
) -> Result<Vec<Holder>, Error> {
    let rows = cx.out.holders(volume_id).await;
    let mut rows =
        rows.map_err(|cause| Error::step(format!("asking Cinder who has {name} attached"), cause))?;
    // An attachment in error holds nothing.
    rows.retain(|row| row.status != "detached" && !row.status.starts_with("error"));
    Ok(rows)
}

fn refusal(name: &str, volume: &Volume, others: &[Holder], wish: Wish) -> Error {
    let mut by: Vec<String> = others.iter().map(ToString::to_string).collect();
    if let Elsewhere::Wait(patience) = wish.elsewhere {
        by.push(format!("waited {} s", patience.as_secs()));
    }
    Error::Elsewhere {
        name: name.to_owned(),
        by: by.join(", "),
        remedy: if volume.multiattach {
            "a filesystem is for one host that writes: attach it read-only, or '--raw' for what is made to be shared"
        } else {
            "detach it there, or choose 'wait=SECONDS', 'take', or 'take-without-fence' for a host that is surely dead"
        },
    }
}

fn tags_of_others(cx: &Context, volume: &Volume) -> Vec<String> {
    tags(volume, |host| host != cx.name())
}

fn tags(volume: &Volume, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let all = volume.metadata.iter();
    let tags = all.filter(|(key, host)| key.starts_with(ATTACHING) && is_wanted(host));
    tags.map(|(key, _)| key.clone()).collect()
}

/// After a death in `Reserve`: our reservation, whose id nobody knows. It is one that the volume did not have before,
/// that is exported to nobody, and that stays so for a while: another host that is attaching goes on at once.
///
/// To delete another's by mistake would end that host's attach with an error; no data is at risk.
pub(crate) async fn forget_nameless(cx: &Context, entry: &Entry) -> Result<(), Error> {
    let (Phase::Reserving, None, Some(volume_id)) =
        (entry.phase, &entry.attachment_id, &entry.volume_id)
    else {
        return Ok(());
    };
    let name = &entry.volume;
    let Some(volume) = cx.find_volume(volume_id, name).await? else {
        return Ok(());
    };
    let nameless = async || -> Result<Vec<String>, Error> {
        let mut rows = holders(cx, name, volume_id).await?;
        rows.retain(|row| row.status == "reserved" && !entry.before.contains(&row.attachment_id));
        Ok(rows.into_iter().map(|row| row.attachment_id).collect())
    };
    let first = nameless().await?;
    if first.is_empty() {
        return Ok(());
    }
    if !tags_of_others(cx, &volume).is_empty() {
        tracing::warn!(
            volume = name,
            rows = first.join(" "),
            "may be left of an interrupted attach, or another host's, whose tag is there too: left alone; 'cinder-nbd \
             doctor' looks again"
        );
        return Ok(());
    }
    tokio::time::sleep(NAMELESS_PATIENCE).await;
    for id in nameless()
        .await?
        .into_iter()
        .filter(|id| first.contains(id))
    {
        tracing::info!(
            volume = name,
            row = id,
            "a reservation of an interrupted attach: deleted"
        );
        let deleted = cx.out.delete_attachment(&id).await;
        deleted.map_err(|cause| {
            Error::step(
                format!("deleting attachment {id} of {name} in Cinder"),
                cause,
            )
        })?;
    }
    Ok(())
}

/// A host that attaches asks for the export right after its reservation; chosen freely, above any cloud's time for that.
const NAMELESS_PATIENCE: Duration = Duration::from_secs(5);

const _: () = assert!(
    LANES_MAX > 1,
    "the control session has the last lane's name"
);
