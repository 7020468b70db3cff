//! Read errors at the places of signatures: what cannot be read is not blank.

use std::future::poll_fn;
use std::io::{self, Read, Seek, SeekFrom};

use bytes::BytesMut;
use iscsi::proto::{Isid, SessionParams};
use support::target::{Disk, Fault, Target};

use super::images::places;
use crate::block::{Backend, Operation, Request};
use crate::lun::{Lun, LunSpec};
use crate::volume::blank::{first_nonzero, regions};

const IQN: &str = "iqn.2026-11.test:never";
const SIZE: u64 = 1 << 30;

/// The LUN as a file: what the kernel's device reads when it is read.
struct Medium {
    runtime: tokio::runtime::Runtime,
    lun: Lun,
    at: u64,
}

impl Medium {
    fn open(target: &Target) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let name = "iqn.2026-11.org.cinder-nbd:test".parse().unwrap();
        let isid = Isid::random([7, 7, 7], 1);
        let mut session = SessionParams::new(target.portal().parse().unwrap(), name, isid);
        session.target_name = Some(IQN.parse().unwrap());
        let lun = runtime.block_on(Lun::open(&LunSpec::new(session, 1)));
        Self {
            lun: lun.unwrap(),
            runtime,
            at: 0,
        }
    }
}

impl Read for Medium {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // What the kernel asks for at most, with the read-ahead that we give the device.
        let bytes = into.len().min(128 << 10);
        let request = Request {
            token: 1,
            operation: Operation::Read(BytesMut::zeroed(bytes)),
            offset: self.at,
        };
        assert!(self.lun.submit(request).is_ok(), "one at a time");
        let done = self
            .runtime
            .block_on(poll_fn(|cx| self.lun.poll_completion(cx)));
        let data = done
            .result
            .map_err(|kind| io::Error::other(format!("{kind:?}")))?;
        into[..bytes].copy_from_slice(&data);
        self.at += u64::try_from(bytes).unwrap();
        Ok(bytes)
    }
}

/// What is read for signatures is sought from the start alone.
fn from_start(to: SeekFrom) -> io::Result<u64> {
    match to {
        SeekFrom::Start(at) => Ok(at),
        SeekFrom::Current(_) | SeekFrom::End(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

impl Seek for Medium {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = from_start(to)?;
        Ok(self.at)
    }
}

#[test]
fn a_medium_error_at_a_signatures_place_is_an_error() {
    let disk = Disk::memory(SIZE);
    let target = Target::builder().iqn(IQN).lun(1, disk).start_blocking();
    let mut medium = Medium::open(&target);
    for place in places(SIZE) {
        let begin = place / 512;
        target.inject(Fault::BadBlocks {
            begin,
            end: begin + 1,
        });
        let error = first_nonzero(&mut medium, SIZE).expect_err("it cannot be read");
        assert!(error.to_string() == "Io", "{place}: {error}");
        target.clear_faults();
    }
    let found = first_nonzero(&mut medium, SIZE).unwrap();
    assert_eq!(found, None, "a medium without errors is what it was");
}

/// Zeroes, and one byte that cannot be read.
struct Holed {
    hole: u64,
    at: u64,
}

impl Read for Holed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let end = self.at + u64::try_from(into.len()).unwrap();
        if (self.at..end).contains(&self.hole) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        into.fill(0);
        self.at = end;
        Ok(into.len())
    }
}

impl Seek for Holed {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = from_start(to)?;
        Ok(self.at)
    }
}

#[test]
fn no_region_may_fail_to_its_last_byte() {
    for (begin, end) in regions(SIZE) {
        for hole in [begin, end - 1] {
            let error = first_nonzero(&mut Holed { hole, at: 0 }, SIZE).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "byte {hole}");
        }
    }
}
