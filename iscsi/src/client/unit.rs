//! The commands of one logical unit: what a `Disk` does, over any carrier.
//!
//! A room of its own so that it can be tried with a script instead of a session.
//! Source: SBC-4 4.15 (caches), 5 (commands), 6.6.4 (Block Limits).
//!
//! Invariants:
//! 1. Every command stays within the limits that the unit told; what is larger is sent in pieces, in order.
//! 2. A read or write that returns well moved every byte.
//! 3. What a unit once refused as unknown is not asked for again.

mod provisioning;

use std::sync::atomic::AtomicBool;

use bytes::{Bytes, BytesMut};

use super::execute::{Execute, perform};
use super::{Error, LunInfo};
use crate::io::{Command, Completion, Data};
use crate::scsi::sense::code;
use crate::scsi::{Blocks, ByteCount, Cdb, Lba, LunAddress, Sense, SenseKey, Status};

/// One logical unit, as one call sees it.
#[derive(Debug)]
pub(super) struct Unit<'a, E> {
    pub(super) carrier: E,
    pub(super) info: &'a LunInfo,
    pub(super) refusals: &'a Refusals,
}

/// What the unit has refused as unknown, although it might have known it.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    write_same: AtomicBool,
    get_lba_status: AtomicBool,
}

/// What COMPARE AND WRITE found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The expected data, and the new data was written.
    Equal,
    /// Other data; nothing was written.
    Differs {
        /// The first byte that differs, from the beginning of the range, if the unit tells.
        offset: Option<u64>,
    },
}

impl<E: Execute> Unit<'_, E> {
    pub(super) async fn read(mut self, lba: Lba, blocks: Blocks) -> Result<BytesMut, Error> {
        self.check_range(lba, blocks)?;
        let length = self.info.capacity.block_length;
        let whole = usize::try_from(length.bytes_of(blocks).0);
        let mut rest =
            BytesMut::zeroed(whole.map_err(|_| Error::Misuse("a read of more than memory"))?);
        let mut filled = BytesMut::new();
        for (lba, blocks) in pieces(lba, blocks, self.blocks_a_command()) {
            let data = Data::In(rest.split_to(self.bytes_of(blocks).min(rest.len())));
            let cdb = Cdb::read_16(lba, blocks);
            if let Data::In(piece) = self.transfer("READ(16)", cdb, data).await? {
                filled.unsplit(piece);
            }
        }
        Ok(filled)
    }

    pub(super) async fn write(mut self, lba: Lba, data: Bytes, fua: bool) -> Result<(), Error> {
        let blocks = self.blocks_in(&data)?;
        self.check_range(lba, blocks)?;
        let by_bit = fua && self.has_fua();
        let mut rest = data;
        for (lba, blocks) in pieces(lba, blocks, self.blocks_a_command()) {
            let data = Data::Out(rest.split_to(self.bytes_of(blocks).min(rest.len())));
            let cdb = Cdb::write_16(lba, blocks, by_bit);
            self.transfer("WRITE(16)", cdb, data).await?;
        }
        self.flush_if(fua && !by_bit).await
    }

    /// Zero blocks from block zero: the whole medium.
    pub(super) async fn flush(mut self, lba: Lba, blocks: Blocks) -> Result<(), Error> {
        self.check_range(lba, blocks)?;
        self.synchronize(lba, blocks).await
    }

    pub(super) async fn compare_and_write(
        mut self,
        lba: Lba,
        expected: &[u8],
        new: &[u8],
        fua: bool,
    ) -> Result<Compared, Error> {
        let during = "COMPARE AND WRITE";
        let blocks = self.blocks_in(new)?;
        self.check_range(lba, blocks)?;
        if expected.len() != new.len() || blocks.0 == 0 {
            return Err(Error::Misuse(
                "what is compared and what is written are not of one length",
            ));
        }
        let most = self.info.limits.compare_and_write_max;
        let most = most.ok_or(Error::Unsupported(during))?;
        // A unit compares and writes in one step only what is in one command: there is no splitting.
        let blocks = u8::try_from(blocks.0).ok().filter(|blocks| *blocks <= most);
        let blocks = blocks.ok_or(Error::Misuse(
            "more blocks than the unit compares and writes in one step",
        ))?;
        let by_bit = fua && self.has_fua();
        let data = Data::Out([expected, new].concat().into());
        let cdb = Cdb::compare_and_write(lba, blocks, by_bit);
        match self.perform(during, cdb, data).await {
            Ok(_) => {
                self.flush_if(fua && !by_bit).await?;
                Ok(Compared::Equal)
            }
            Err(Error::Refused {
                sense: Some(sense), ..
            }) if sense.key == SenseKey::Miscompare => Ok(Compared::Differs {
                offset: sense.information,
            }),
            // tgt 1.0.85 tells a maximum and does not know the command.
            Err(error) if is_unknown(&error) => Err(Error::Unsupported(during)),
            Err(error) => Err(error),
        }
    }

    /// A command whose data is a parameter: GOOD says all.
    pub(super) async fn perform(
        &mut self,
        during: &'static str,
        cdb: Cdb,
        data: Data,
    ) -> Result<Completion, Error> {
        let lun = self.lun();
        perform(&mut self.carrier, during, Command { lun, cdb, data }).await
    }

    pub(super) fn lun(&self) -> LunAddress {
        self.info.lun
    }

    /// A command that must move all of its data.
    async fn transfer(
        &mut self,
        during: &'static str,
        cdb: Cdb,
        data: Data,
    ) -> Result<Data, Error> {
        let asked = match &data {
            Data::None => 0,
            Data::Out(data) => data.len(),
            Data::In(data) => data.len(),
        };
        let completion = self.perform(during, cdb, data).await?;
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

    async fn flush_if(&mut self, wanted: bool) -> Result<(), Error> {
        if wanted {
            self.synchronize(Lba(0), Blocks(0)).await
        } else {
            Ok(())
        }
    }

    async fn synchronize(&mut self, lba: Lba, blocks: Blocks) -> Result<(), Error> {
        let cdb = Cdb::synchronize_cache_16(lba, blocks);
        let flushed = self.perform("SYNCHRONIZE CACHE(16)", cdb, Data::None).await;
        match flushed {
            Ok(_) => Ok(()),
            // SBC-4: a unit without a volatile cache need not know the command; one that says it has a cache must.
            Err(error)
                if self.write_cache() != Some(true)
                    && refusal(&error)
                        .is_some_and(|sense| sense.is(code::INVALID_OPERATION_CODE)) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
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

    fn blocks_in(&self, data: &[u8]) -> Result<Blocks, Error> {
        u64::try_from(data.len())
            .ok()
            .and_then(|bytes| self.info.capacity.block_length.blocks_in(ByteCount(bytes)))
            .ok_or(Error::Misuse("the data is not a whole number of blocks"))
    }

    fn bytes_of(&self, blocks: Blocks) -> usize {
        let bytes = self.info.capacity.block_length.bytes_of(blocks).0;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    fn has_fua(&self) -> bool {
        self.info.mode.is_some_and(|mode| mode.fua_supported)
    }

    fn write_cache(&self) -> Option<bool> {
        self.info.mode.and_then(|mode| mode.write_cache)
    }

    fn blocks_a_command(&self) -> Blocks {
        let length = self.info.capacity.block_length;
        let ours = length.blocks_within(COMMAND_BYTES_MAX).0;
        let theirs = self.info.limits.transfer_max.unwrap_or(ours);
        Blocks(theirs.min(ours).max(1))
    }
}

/// Why the target refused a command as one that it does not take.
fn refusal(error: &Error) -> Option<&Sense> {
    let Error::Refused {
        status: Status::CHECK_CONDITION,
        sense: Some(sense),
        ..
    } = error
    else {
        return None;
    };
    (sense.key == SenseKey::IllegalRequest).then_some(sense)
}

/// Is it the command, or a bit of it, that the unit does not know?
fn is_unknown(error: &Error) -> bool {
    refusal(error).is_some_and(|sense| {
        sense.is(code::INVALID_OPERATION_CODE) || sense.is(code::INVALID_FIELD_IN_CDB)
    })
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
mod tests;
