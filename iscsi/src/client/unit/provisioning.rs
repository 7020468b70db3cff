//! Blocks given back, blocks made zero, and which are which.
//!
//! Source: SBC-4 4.7 (logical block provisioning), 5.6 (GET LBA STATUS), 5.35 (UNMAP), 5.49 (WRITE SAME(16)).

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::{COMMAND_BYTES_MAX, Unit, is_unknown, pieces};
use crate::client::Error;
use crate::client::execute::{Execute, ask};
use crate::io::Data;
use crate::scsi::lba_status::{self, LbaStatus};
use crate::scsi::{Blocks, Cdb, Extent, Lba, unmap};

impl<E: Execute> Unit<'_, E> {
    pub(in crate::client) async fn unmap(mut self, extents: &[Extent]) -> Result<(), Error> {
        let during = "UNMAP";
        for extent in extents {
            self.check_range(extent.lba, extent.blocks)?;
        }
        let limits = self.info.unmap_limits();
        let limits = limits.ok_or(Error::Unsupported(during))?;
        for extents in limits.commands(extents) {
            let cdb = Cdb::unmap(unmap::list_bytes(&extents));
            let data = Data::Out(unmap::list(&extents));
            self.perform(during, cdb, data).await?;
        }
        Ok(())
    }

    pub(in crate::client) async fn write_zeroes(
        mut self,
        lba: Lba,
        blocks: Blocks,
        may_unmap: bool,
    ) -> Result<(), Error> {
        self.check_range(lba, blocks)?;
        if let Some(limits) = self.info.write_same_limits()
            && !self.refusals.write_same.load(Relaxed)
        {
            let unmap = limits.unmap && may_unmap;
            match self.write_same(lba, blocks, limits.blocks_max, unmap).await {
                Err(error) if is_unknown(&error) => {
                    // It was told that the unit can, and it cannot. Zeroes over zeroes do no harm.
                    self.refusals.write_same.store(true, Relaxed);
                }
                done => return done,
            }
        }
        self.send_zeroes(lba, blocks).await
    }

    /// `None` if the unit does not know the command.
    pub(in crate::client) async fn lba_status(
        mut self,
        lba: Lba,
    ) -> Result<Option<Vec<LbaStatus>>, Error> {
        let during = "GET LBA STATUS";
        self.check_range(lba, Blocks(1))?;
        if self.refusals.get_lba_status.load(Relaxed) {
            return Ok(None);
        }
        let (lun, cdb) = (self.lun(), Cdb::get_lba_status(lba, STATUS_BYTES));
        match ask(&mut self.carrier, during, lun, cdb, STATUS_BYTES).await {
            Ok(data) => lba_status::parse(&data)
                .map(Some)
                .map_err(|source| Error::Violation { during, source }),
            Err(error) if is_unknown(&error) => {
                self.refusals.get_lba_status.store(true, Relaxed);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn write_same(
        &mut self,
        lba: Lba,
        blocks: Blocks,
        each: Blocks,
        unmap: bool,
    ) -> Result<(), Error> {
        // With a block of data: not every unit knows WRITE SAME without (NDOB).
        let block = Bytes::from(vec![0; self.bytes_of(Blocks(1))]);
        for (lba, blocks) in pieces(lba, blocks, each) {
            let cdb = Cdb::write_same_16(lba, blocks, unmap);
            let data = Data::Out(block.clone());
            self.perform("WRITE SAME(16)", cdb, data).await?;
        }
        Ok(())
    }

    async fn send_zeroes(&mut self, lba: Lba, blocks: Blocks) -> Result<(), Error> {
        let each = self.blocks_a_command().min(blocks);
        let zeroes = Bytes::from(vec![0; self.bytes_of(each)]);
        for (lba, blocks) in pieces(lba, blocks, each) {
            let data = Data::Out(zeroes.slice(..self.bytes_of(blocks).min(zeroes.len())));
            let cdb = Cdb::write_16(lba, blocks, false);
            self.transfer("WRITE(16)", cdb, data).await?;
        }
        Ok(())
    }
}

/// The header and 255 descriptors: within a page, and more than one look needs.
const STATUS_BYTES: u32 = 8 + 255 * 16;
const _: () = assert!(COMMAND_BYTES_MAX.0 >= 65536, "a block fits into a command");
