//! The table of steps: all that is ever changed outside of this process for a volume, what stands on the disk before
//! it is done, and what the next start makes of a process that died in it.
//!
//! ```text
//!  step             on the disk before                 a death in it leaves             the next start
//!  CreateVolume     record: creating, with a mark      perhaps a volume, marked         keeps it if it is there; else forgets
//!  TagVolume        entry: reserving                   our tag in its metadata          as Reserve
//!  Reserve          entry: reserving                   perhaps a row, reserved          deletes the row that is new and tagged
//!  Fence            entry: taking or connecting        a reservation on the LUN         as Reserve; ends it where it is exported
//!  TakeAway         entry: taking, whose row           the other's row, or not          as Fence
//!  Connect          entry: connecting, its id          attaching, exported              deletes the row
//!  Unfence          an entry, with the key             a reservation on the LUN         ends it; or the next attach does
//!  MakeDevice       entry: exporting                   perhaps sessions and a device    disconnects, deletes the row
//!  Complete         entry: completing                  the device, perhaps in-use       disconnects, deletes the row
//!  Erase            record: formatting begun           what was there, or a part     serves it again; mkfs only if still blank
//!  Format           record: formatting begun           perhaps a filesystem             serves it again; mkfs only if still blank
//!  MarkFormatted    record: formatted                  the mark, or not                 serves it again
//!  Mend             entry: mountpoint                  a part of the mending             serves it again; mends at the next mount
//!  Mount            entry: mountpoint                  perhaps a mount                  serves it again; unwanted, it is unmounted
//!  Unmount          entry: mountpoint                  perhaps a mount                  serves it again; unwanted, it comes off
//!  Disconnect       entry: detaching                   the device, or not               serves it again and ends it in order
//!  DeleteAttachment an entry, its id                   the row, or not                  deletes it
//!  UntagVolume      an entry                           our tag, or not                  removes it
//!  HandOver         entry: attached                    the device, not served           serves it again
//!  Adopt            entry: attached or detaching       the device, not served           serves it again
//!  Reclaim          an entry                           a part of mount and device       goes on with it
//!  DeleteVolume     record: removing                   perhaps the volume               deletes it
//!  ExtendVolume     record: growing, to what size      perhaps a larger volume          goes on if Cinder began; else forgets
//!  GrowDevice       record: growing                    the device as it was             goes on
//!  GrowFilesystem   record: growing                    a part of the growth             goes on
//!  Freeze           entry: frozen                      perhaps a frozen filesystem      thaws it
//!  TakeSnapshot     nothing                            perhaps a snapshot               leaves it: it was asked for
//!  Thaw             entry: frozen                      perhaps a frozen filesystem      thaws it
//! ```
//!
//! And the files themselves, each replaced or removed whole: `WriteEntry`, `EraseEntry`, `WriteRecord`, `EraseRecord`,
//! `KeepAddress`, `DropAddress`.
//!
//! A room of its own because it is what one reads first, and what cannot be got around: `outside` alone holds cloud, host
//! and disk, and every change that it makes names its step here. The columns are code below: `Step::intent` is
//! checked against the disk each time a test takes a step, and `tests::crash` dies before and after each of them,
//! and again while it recovers. A step that no scenario reaches fails that test.

use super::journal::{PendingKind, Phase};

/// One change outside of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Cinder makes the volume.
    CreateVolume,
    /// The volume's metadata say that this host attaches it.
    TagVolume,
    /// Cinder keeps the volume for an attachment.
    Reserve,
    /// The LUN refuses the writes of whoever has it.
    Fence,
    /// Another host's attachment is deleted.
    TakeAway,
    /// Cinder exports to us.
    Connect,
    /// The LUN takes writes of everyone it is exported to again.
    Unfence,
    /// Logins, and a device of the kernel.
    MakeDevice,
    /// Cinder is told that we have it.
    Complete,
    /// What is on the device is destroyed, as it was asked for.
    Erase,
    /// mkfs.
    Format,
    /// The volume's metadata say that it has a filesystem.
    MarkFormatted,
    /// A filesystem that was there is checked, and mended where that needs no answer.
    Mend,
    /// The filesystem is mounted.
    Mount,
    /// The filesystem is unmounted.
    Unmount,
    /// The device is flushed, disconnected, its sessions logged out.
    Disconnect,
    /// Our attachment in Cinder is deleted.
    DeleteAttachment,
    /// Our tag is taken out of the volume's metadata.
    UntagVolume,
    /// The device is left to the kernel for the next process.
    HandOver,
    /// The device of an earlier process is served.
    Adopt,
    /// What an earlier process left is taken down, by force.
    Reclaim,
    /// Cinder deletes the volume.
    DeleteVolume,
    /// Cinder makes the volume larger.
    ExtendVolume,
    /// The kernel's device gets the new size.
    GrowDevice,
    /// The filesystem gets the new size.
    GrowFilesystem,
    /// The filesystem takes no writes.
    Freeze,
    /// Cinder takes a snapshot.
    TakeSnapshot,
    /// The filesystem takes writes again.
    Thaw,
    /// The entry of an attachment is written.
    WriteEntry,
    /// The entry of an attachment is removed.
    EraseEntry,
    /// The record of a volume is written.
    WriteRecord,
    /// The record of a volume is removed.
    EraseRecord,
    /// How to log in is written down, on tmpfs.
    KeepAddress,
    /// How to log in is removed.
    DropAddress,
}

/// What stands on the disk before a step is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// An entry of the volume in one of these phases; none named is any.
    Entry(&'static [Phase]),
    /// An entry that names the mountpoint.
    Mountpoint,
    /// A record that says that this was begun.
    Pending(PendingKind),
    /// A record that says that a filesystem was begun, or that there is one.
    Formatting,
    /// An entry that says that its filesystem is frozen.
    Frozen,
    /// Nothing: what a death leaves is what was asked for.
    Nothing,
    /// Nothing: the step is the writing itself.
    Itself,
}

impl Step {
    /// What stands on the disk before this step.
    pub(crate) fn intent(self) -> Intent {
        match self {
            Self::CreateVolume => Intent::Pending(PendingKind::Create),
            Self::TagVolume => Intent::Entry(&[Phase::Reserving, Phase::Taking]),
            Self::Reserve => Intent::Entry(&[Phase::Reserving]),
            Self::Fence => Intent::Entry(&[Phase::Taking, Phase::Connecting]),
            Self::TakeAway => Intent::Entry(&[Phase::Taking]),
            Self::Connect => Intent::Entry(&[Phase::Connecting]),
            Self::MakeDevice => Intent::Entry(&[Phase::Exporting]),
            Self::Complete => Intent::Entry(&[Phase::Completing]),
            Self::Erase | Self::Format | Self::MarkFormatted => Intent::Formatting,
            Self::Mend | Self::Mount | Self::Unmount => Intent::Mountpoint,
            Self::Disconnect => Intent::Entry(&[Phase::Detaching]),
            Self::HandOver => Intent::Entry(&[Phase::Attached]),
            Self::Adopt => Intent::Entry(&[Phase::Attached, Phase::Detaching]),
            Self::Unfence | Self::DeleteAttachment | Self::UntagVolume | Self::Reclaim => {
                Intent::Entry(&[])
            }
            Self::DeleteVolume => Intent::Pending(PendingKind::Remove),
            Self::ExtendVolume | Self::GrowDevice | Self::GrowFilesystem => {
                Intent::Pending(PendingKind::Extend)
            }
            Self::Freeze | Self::Thaw => Intent::Frozen,
            Self::TakeSnapshot => Intent::Nothing,
            Self::WriteEntry
            | Self::EraseEntry
            | Self::WriteRecord
            | Self::EraseRecord
            | Self::KeepAddress
            | Self::DropAddress => Intent::Itself,
        }
    }

    /// The step after this one in the table, the first for none: all of them, so that none can be left out of a test.
    #[cfg(test)]
    pub(crate) fn next(this: Option<Self>) -> Option<Self> {
        Some(match this {
            None => Self::CreateVolume,
            Some(Self::CreateVolume) => Self::TagVolume,
            Some(Self::TagVolume) => Self::Reserve,
            Some(Self::Reserve) => Self::Fence,
            Some(Self::Fence) => Self::TakeAway,
            Some(Self::TakeAway) => Self::Connect,
            Some(Self::Connect) => Self::Unfence,
            Some(Self::Unfence) => Self::MakeDevice,
            Some(Self::MakeDevice) => Self::Complete,
            Some(Self::Complete) => Self::Erase,
            Some(Self::Erase) => Self::Format,
            Some(Self::Format) => Self::MarkFormatted,
            Some(Self::MarkFormatted) => Self::Mend,
            Some(Self::Mend) => Self::Mount,
            Some(Self::Mount) => Self::Unmount,
            Some(Self::Unmount) => Self::Disconnect,
            Some(Self::Disconnect) => Self::DeleteAttachment,
            Some(Self::DeleteAttachment) => Self::UntagVolume,
            Some(Self::UntagVolume) => Self::HandOver,
            Some(Self::HandOver) => Self::Adopt,
            Some(Self::Adopt) => Self::Reclaim,
            Some(Self::Reclaim) => Self::DeleteVolume,
            Some(Self::DeleteVolume) => Self::ExtendVolume,
            Some(Self::ExtendVolume) => Self::GrowDevice,
            Some(Self::GrowDevice) => Self::GrowFilesystem,
            Some(Self::GrowFilesystem) => Self::Freeze,
            Some(Self::Freeze) => Self::TakeSnapshot,
            Some(Self::TakeSnapshot) => Self::Thaw,
            Some(Self::Thaw) => Self::WriteEntry,
            Some(Self::WriteEntry) => Self::EraseEntry,
            Some(Self::EraseEntry) => Self::WriteRecord,
            Some(Self::WriteRecord) => Self::EraseRecord,
            Some(Self::EraseRecord) => Self::KeepAddress,
            Some(Self::KeepAddress) => Self::DropAddress,
            Some(Self::DropAddress) => return None,
        })
    }
}

/// A place where a process can die: before a step, or after it and before anything else.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    /// Nothing of the step was done.
    Before(Step),
    /// All of it was done, or failed.
    After(Step),
}
