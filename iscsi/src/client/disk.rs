//! A disk: one logical unit, by blocks. What its calls do, `unit` says.

use bytes::{Bytes, BytesMut};

use super::owner::{self, Commands, Task};
use super::unit::{Compared, Refusals, Unit};
use super::{DiskBuilder, Error, LunInfo, Reservations, probe, target_port_groups};
use crate::io::{Nexus, NexusParams};
use crate::proto::{IscsiName, Portal, SessionParams};
use crate::scsi::lba_status::LbaStatus;
use crate::scsi::{Blocks, Extent, Lba, LunAddress, TargetPortGroups};

/// One logical unit. All its calls may be made at once, from many tasks.
///
/// Opened by itself (`Disk::open`, `Disk::over`) it outlives its sessions: when one is lost, calls wait, and go on after
/// a new login and the identity gate (`io::Nexus`). One that a `Session` gave ends with that session.
#[derive(Debug)]
pub struct Disk {
    commands: Commands,
    /// Only if what carries its commands is its own.
    task: Option<Task>,
    info: LunInfo,
    refusals: Refusals,
}

impl Disk {
    /// Begins a disk: who we are, where, at which target, under which number.
    pub fn builder(
        initiator_name: IscsiName,
        portal: Portal,
        target_name: IscsiName,
        lun: impl Into<LunAddress>,
    ) -> DiskBuilder {
        DiskBuilder::new(initiator_name, portal, target_name, lun.into())
    }

    /// Logs in, probes the logical unit, and starts the task that carries its commands on the current runtime; one
    /// path, and the patience that is usual for disks: calls wait two minutes for a target that is away.
    ///
    /// # Errors
    /// `Misuse` if the parameters name no target; as `over`.
    ///
    /// # Cancel safety
    /// As `over`.
    pub async fn open(params: &SessionParams, lun: impl Into<LunAddress>) -> Result<Self, Error> {
        let lun = lun.into();
        Self::over(NexusParams::new(params.clone(), lun)?).await
    }

    /// As `open`, with several paths and a patience of one's own.
    ///
    /// # Errors
    /// `Login`; `NoSuchLun`, `Nexus` if the unit did not pass its examination; or as `probe`.
    ///
    /// # Cancel safety
    /// The session is dropped, and the target ends it by itself.
    pub async fn over(params: NexusParams) -> Result<Self, Error> {
        let first = params.paths.first();
        let lun = first.ok_or(Error::Misuse("a disk needs a path"))?.lun;
        let nexus = Nexus::open(params)
            .await
            .map_err(|error| Error::of_nexus(error, lun))?;
        let (commands, task) = owner::start(nexus);
        match Self::of(commands, lun).await {
            Ok(disk) => Ok(Self {
                task: Some(task),
                ..disk
            }),
            Err(error) => {
                // The first error is the one to tell.
                let _ = task.ended().await;
                Err(error)
            }
        }
    }

    pub(super) async fn of(commands: Commands, lun: LunAddress) -> Result<Self, Error> {
        let mut commands = commands;
        let info = probe(&mut commands, lun).await?;
        Ok(Self {
            commands,
            task: None,
            info,
            refusals: Refusals::default(),
        })
    }

    /// Waits for what is in flight and, if the session is the disk's own, logs out.
    ///
    /// # Errors
    /// `Session` if it had ended otherwise.
    pub async fn close(self) -> Result<(), Error> {
        let Self { commands, task, .. } = self;
        drop(commands);
        match task {
            Some(task) => task.ended().await,
            None => Ok(()),
        }
    }

    /// What the logical unit is and can do, as it said when it was opened.
    pub fn info(&self) -> &LunInfo {
        &self.info
    }

    /// Bytes a block.
    pub fn block_size(&self) -> u32 {
        self.info.capacity.block_length.bytes()
    }

    /// Number of blocks; addresses are `0..blocks`.
    pub fn blocks(&self) -> u64 {
        self.info.capacity.end.0
    }

    /// Reads `lba..lba + blocks`.
    ///
    /// # Errors
    /// `Misuse` if the range is not on the disk; `Refused`, `Short`, `NotReady`, `Session`.
    ///
    /// # Cancel safety
    /// The data is lost, nothing else.
    pub async fn read(&self, lba: Lba, blocks: Blocks) -> Result<BytesMut, Error> {
        self.unit().read(lba, blocks).await
    }

    /// Writes at `lba`; `fua`: the data is on the medium when this returns.
    ///
    /// # Errors
    /// As `read`; `Misuse` also if the data is not whole blocks.
    ///
    /// # Cancel safety
    /// What was sent may or may not be written.
    pub async fn write(&self, lba: Lba, data: Bytes, fua: bool) -> Result<(), Error> {
        self.unit().write(lba, data, fua).await
    }

    /// All writes that have returned are on the medium when this returns.
    ///
    /// # Errors
    /// `Refused`, `NotReady`, `Session`.
    pub async fn flush(&self) -> Result<(), Error> {
        self.unit().flush(Lba(0), Blocks(0)).await
    }

    /// The writes to `lba..lba + blocks` that have returned are on the medium when this returns. Zero blocks mean: to
    /// the end of the disk.
    ///
    /// # Errors
    /// As `flush`; `Misuse` if the range is not on the disk.
    pub async fn flush_range(&self, lba: Lba, blocks: Blocks) -> Result<(), Error> {
        self.unit().flush(lba, blocks).await
    }

    /// Gives blocks back. This is advice: parts of groups of the unit's granularity may stay as they are, and what the
    /// blocks read as afterwards, `LunInfo::unmapped_reads_zero` says.
    ///
    /// # Errors
    /// `Unsupported`; `Misuse` if an extent is not on the disk; `Refused`, `NotReady`, `Session`.
    ///
    /// # Cancel safety
    /// Some of the blocks may have been given back.
    pub async fn unmap(&self, extents: &[Extent]) -> Result<(), Error> {
        self.unit().unmap(extents).await
    }

    /// Makes `lba..lba + blocks` read as zeroes, by WRITE SAME(16) if the unit has it, else by sending zeroes.
    /// `may_unmap`: the blocks may be given back, if they then read as zeroes.
    ///
    /// # Errors
    /// As `write`.
    ///
    /// # Cancel safety
    /// Some of the blocks may have been zeroed.
    pub async fn write_zeroes(
        &self,
        lba: Lba,
        blocks: Blocks,
        may_unmap: bool,
    ) -> Result<(), Error> {
        self.unit().write_zeroes(lba, blocks, may_unmap).await
    }

    /// Writes `new` at `lba` if `expected` is there, in one step that no other initiator comes between.
    /// Both are of one length, and at most `LunInfo::limits` `compare_and_write_max` blocks long.
    ///
    /// A command whose outcome is unknown is not repeated: the error says so, and a read tells.
    ///
    /// # Errors
    /// `Unsupported`, `Misuse`, `Refused`, `NotReady`, `Session`.
    ///
    /// # Cancel safety
    /// It may or may not be done.
    pub async fn compare_and_write(
        &self,
        lba: Lba,
        expected: &[u8],
        new: &[u8],
        fua: bool,
    ) -> Result<Compared, Error> {
        let unit = self.unit();
        unit.compare_and_write(lba, expected, new, fua).await
    }

    /// Which blocks are mapped, from `lba` on and as far as the unit likes to tell at once; `None` if it does not tell
    /// at all, which is remembered.
    ///
    /// # Errors
    /// `Misuse`, `Violation`, `Refused`, `NotReady`, `Session`.
    pub async fn lba_status(&self, lba: Lba) -> Result<Option<Vec<LbaStatus>>, Error> {
        self.unit().lba_status(lba).await
    }

    /// The target port groups through which it is reached; `None` if it has no asymmetric access to report.
    ///
    /// # Errors
    /// `Violation`, `Refused`, `NotReady`, `Session`.
    pub async fn target_port_groups(&self) -> Result<Option<TargetPortGroups>, Error> {
        let unit = self.unit();
        let (lun, mut carrier) = (unit.lun(), unit.carrier);
        target_port_groups(&mut carrier, lun).await
    }

    /// The persistent reservations of the disk, for one call.
    pub fn reservations(&self) -> Reservations {
        Reservations::of(self.commands.clone(), self.info.lun)
    }

    fn unit(&self) -> Unit<'_, Commands> {
        Unit {
            carrier: self.commands.clone(),
            info: &self.info,
            refusals: &self.refusals,
        }
    }
}
