//! A disk: one logical unit of a session, by blocks.

use bytes::{Bytes, BytesMut};

use super::execute::perform;
use super::owner::Commands;
use super::{Error, LunInfo, Session, probe};
use crate::io::{Command, Data};
use crate::proto::SessionParams;
use crate::scsi::{Blocks, ByteCount, Cdb, Lba, LunAddress};

/// One logical unit of a session. All its calls may be made at once, from many tasks.
#[derive(Debug)]
pub struct Disk {
    commands: Commands,
    /// Only if it was opened with a session of its own.
    session: Option<Session>,
    info: LunInfo,
}

impl Disk {
    /// Logs in with a session of its own and probes the logical unit.
    ///
    /// # Errors
    /// `Login`, or as `probe`.
    ///
    /// # Cancel safety
    /// The session is dropped, and logs out by itself.
    pub async fn open(params: &SessionParams, lun: u16) -> Result<Self, Error> {
        let session = Session::connect(params).await?;
        match Self::of(session.commands(), lun).await {
            Ok(disk) => Ok(Self {
                session: Some(session),
                ..disk
            }),
            Err(error) => {
                // The first error is the one to tell.
                let _ = session.logout().await;
                Err(error)
            }
        }
    }

    pub(super) async fn of(commands: Commands, lun: u16) -> Result<Self, Error> {
        let mut commands = commands;
        let info = probe(&mut commands, lun).await?;
        Ok(Self {
            commands,
            session: None,
            info,
        })
    }

    /// Waits for what is in flight and, if the session is the disk's own, logs out.
    ///
    /// # Errors
    /// `Session` if it had ended otherwise.
    pub async fn close(self) -> Result<(), Error> {
        let Self {
            commands, session, ..
        } = self;
        drop(commands);
        match session {
            Some(session) => session.logout().await,
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
    /// `Misuse` if the range is not on the disk; `Refused`, `Short`, `NotReady`, `TimedOut`, `Session`.
    ///
    /// # Cancel safety
    /// The data is lost, nothing else.
    pub async fn read(&self, lba: Lba, blocks: Blocks) -> Result<BytesMut, Error> {
        self.check_range(lba, blocks)?;
        let length = self.info.capacity.block_length;
        let whole = usize::try_from(length.bytes_of(blocks).0);
        let mut rest =
            BytesMut::zeroed(whole.map_err(|_| Error::Misuse("a read of more than memory"))?);
        let mut filled = BytesMut::new();
        for (lba, blocks) in pieces(lba, blocks, self.blocks_a_command()) {
            let bytes = usize::try_from(length.bytes_of(blocks).0).unwrap_or(usize::MAX);
            let data = Data::In(rest.split_to(bytes.min(rest.len())));
            if let Data::In(piece) = self
                .command("READ(16)", Cdb::read_16(lba, blocks), data)
                .await?
            {
                filled.unsplit(piece);
            }
        }
        Ok(filled)
    }

    /// Writes at `lba`; `fua`: the data is on the medium when this returns.
    ///
    /// # Errors
    /// As `read`; `Misuse` also if the data is not whole blocks.
    ///
    /// # Cancel safety
    /// What was sent may or may not be written.
    pub async fn write(&self, lba: Lba, data: Bytes, fua: bool) -> Result<(), Error> {
        let length = self.info.capacity.block_length;
        let bytes = u64::try_from(data.len()).map(ByteCount);
        let blocks = bytes.ok().and_then(|bytes| length.blocks_in(bytes));
        let blocks = blocks.ok_or(Error::Misuse("the data is not a whole number of blocks"))?;
        self.check_range(lba, blocks)?;
        let by_bit = fua && self.info.mode.is_some_and(|mode| mode.fua_supported);
        let mut rest = data;
        for (lba, blocks) in pieces(lba, blocks, self.blocks_a_command()) {
            let bytes = usize::try_from(length.bytes_of(blocks).0).unwrap_or(usize::MAX);
            let data = Data::Out(rest.split_to(bytes.min(rest.len())));
            self.command("WRITE(16)", Cdb::write_16(lba, blocks, by_bit), data)
                .await?;
        }
        if fua && !by_bit {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// All writes that have returned are on the medium when this returns.
    ///
    /// # Errors
    /// `Refused`, `NotReady`, `TimedOut`, `Session`.
    pub async fn flush(&self) -> Result<(), Error> {
        let cdb = Cdb::synchronize_cache_16(Lba(0), Blocks(0));
        self.command("SYNCHRONIZE CACHE(16)", cdb, Data::None)
            .await
            .map(drop)
    }

    /// A command that must move all of its data.
    async fn command(&self, during: &'static str, cdb: Cdb, data: Data) -> Result<Data, Error> {
        let asked = match &data {
            Data::None => 0,
            Data::Out(data) => data.len(),
            Data::In(data) => data.len(),
        };
        let lun = LunAddress::from_number(self.info.lun);
        let mut commands = self.commands.clone();
        let completion = perform(&mut commands, during, Command { lun, cdb, data }).await?;
        let moved = completion.transferred;
        if usize::try_from(moved) == Ok(asked) {
            Ok(completion.data)
        } else {
            Err(Error::Short {
                during,
                moved,
                asked,
            })
        }
    }

    fn check_range(&self, lba: Lba, blocks: Blocks) -> Result<(), Error> {
        match lba.checked_add(blocks) {
            Some(end) if end <= self.info.capacity.end => Ok(()),
            _ => Err(Error::Misuse(
                "the range reaches beyond the end of the disk",
            )),
        }
    }

    fn blocks_a_command(&self) -> Blocks {
        let ours = self
            .info
            .capacity
            .block_length
            .blocks_within(COMMAND_BYTES_MAX);
        Blocks(
            self.info
                .limits
                .transfer_max
                .map_or(ours.0, |theirs| theirs.min(ours.0))
                .max(1),
        )
    }
}

/// The range in order, in pieces of at most `each` blocks.
fn pieces(lba: Lba, blocks: Blocks, each: Blocks) -> impl Iterator<Item = (Lba, Blocks)> {
    let mut next = Some((lba, blocks)).filter(|(_, blocks)| blocks.0 > 0);
    std::iter::from_fn(move || {
        let (lba, left) = next?;
        let piece = left.min(each);
        next = lba
            .checked_add(piece)
            .map(|lba| (lba, Blocks(left.0 - piece.0)))
            .filter(|(_, left)| left.0 > 0);
        Some((lba, piece))
    })
}

/// What a command may move where the unit names no limit: initiators in kernels use about this much, so every
/// target has met it.
const COMMAND_BYTES_MAX: ByteCount = ByteCount(1 << 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_once() {
        let cut = |lba, blocks, each| -> Vec<(u64, u32)> {
            pieces(Lba(lba), Blocks(blocks), Blocks(each))
                .map(|(lba, blocks)| (lba.0, blocks.0))
                .collect()
        };
        assert_eq!(cut(5, 10, 4), [(5, 4), (9, 4), (13, 2)]);
        assert_eq!(cut(5, 4, 4), [(5, 4)]);
        assert_eq!(cut(5, 0, 4), []);
        assert_eq!(
            cut(u64::MAX - 4, 4, 2),
            [(u64::MAX - 4, 2), (u64::MAX - 2, 2)]
        );
    }
}
