//! A load of stamped blocks over a nexus: writes, reads and flushes in flight at once, each read compared with what may
//! be there. A write that was lost, torn, misplaced, or that landed after a newer one is found out.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use iscsi::io::{Command, Completion, Data, Event, Nexus, NexusParams};
use iscsi::proto::SessionParams;
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, Status};
use support::stamp::{Map, Write};

use crate::bed::PATIENCE;

const BLOCK: usize = 512;
/// Pieces of the disk; no two commands are on one at the same time.
const PIECES: u64 = 64;
const PIECE_BLOCKS: u64 = 64;
const IN_FLIGHT_MAX: usize = 24;
/// A cache is flushed as often as this, in commands.
pub(crate) const FLUSH_EVERY: u64 = 50;
/// MiB of a disk for it, at least.
pub(crate) const DISK_MIB: u64 = 2;

/// What a token stands for.
enum Job {
    Write(Write),
    Read(u64),
    Flush(support::stamp::Flush),
}

pub(crate) struct Load {
    nexus: Nexus,
    map: Map,
    jobs: BTreeMap<u64, Job>,
    busy: [bool; 64],
    token: u64,
    /// Commands that were answered so far.
    pub(crate) answered: Arc<AtomicU64>,
    reinstated: u64,
}

impl Load {
    /// Logs in to LUN 0.
    pub(crate) async fn begin(params: &SessionParams) -> Self {
        let params = NexusParams::new(params.clone(), LunAddress::from_number(0)).unwrap();
        Self {
            nexus: Nexus::open(params).await.unwrap(),
            map: Map::new(BLOCK),
            jobs: BTreeMap::new(),
            busy: [false; 64],
            token: 0,
            answered: Arc::default(),
            reinstated: 0,
        }
    }

    /// Loads the nexus until told otherwise.
    pub(crate) async fn run_until(&mut self, is_over: impl Fn() -> bool) {
        while !is_over() {
            self.fill();
            self.event().await;
        }
    }

    fn fill(&mut self) {
        while self.jobs.len() < IN_FLIGHT_MAX && self.nexus.free_slots() > 0 {
            self.token += 1;
            let (job, cdb, data) = self.draw();
            let lun = LunAddress::from_number(0);
            self.nexus
                .submit(self.token, Command { lun, cdb, data })
                .unwrap();
            self.jobs.insert(self.token, job);
        }
    }

    /// Every piece in turn, in a scattered order: two writes, then a read.
    fn draw(&mut self) -> (Job, Cdb, Data) {
        if self.token.is_multiple_of(FLUSH_EVERY) {
            let cdb = Cdb::synchronize_cache_16(Lba(0), Blocks(0));
            return (Job::Flush(self.map.flush()), cdb, Data::None);
        }
        let wanted = self.token.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let piece = (wanted..wanted + PIECES)
            .map(|piece| piece % PIECES)
            .find(|piece| !self.busy[usize::try_from(*piece).unwrap()])
            .expect("fewer commands than pieces");
        self.busy[usize::try_from(piece).unwrap()] = true;
        let lba = piece * PIECE_BLOCKS;
        let blocks = Blocks(u32::try_from(PIECE_BLOCKS).unwrap());
        if self.token.is_multiple_of(3) {
            let data = Data::In(BytesMut::zeroed(BLOCK * 64));
            return (Job::Read(lba), Cdb::read_16(Lba(lba), blocks), data);
        }
        let write = self.map.write(lba, PIECE_BLOCKS);
        let data = Data::Out(Bytes::from(write.data.clone()));
        (
            Job::Write(write),
            Cdb::write_16(Lba(lba), blocks, false),
            data,
        )
    }

    async fn event(&mut self) {
        let event = tokio::time::timeout(PATIENCE, poll_fn(|cx| self.nexus.poll_event(cx)));
        match event.await.expect("something happens") {
            Event::Completed(completion) => self.complete(completion),
            Event::Reinstated(_) => self.reinstated += 1,
            Event::Lost(_) | Event::Examined(_) => {}
            Event::Failed(failed) => panic!("a command failed: {:?}", failed.cause),
            Event::Expired(cause) => panic!("given up: {cause}"),
        }
    }

    fn complete(&mut self, completion: Completion) {
        assert_eq!(completion.status, Status::GOOD, "{:?}", completion.sense);
        self.answered.fetch_add(1, Ordering::Relaxed);
        let lba = match self.jobs.remove(&completion.token).unwrap() {
            Job::Flush(flush) => return self.map.flushed(flush),
            Job::Write(write) => {
                self.map.answered(&write);
                write.lba
            }
            Job::Read(lba) => {
                let Data::In(data) = completion.data else {
                    panic!("the buffer comes back")
                };
                assert_eq!(usize::try_from(completion.transferred), Ok(data.len()));
                self.map.check(lba, &data).unwrap();
                lba
            }
        };
        self.busy[usize::try_from(lba / PIECE_BLOCKS).unwrap()] = false;
    }

    /// What is on its way, then every block once more; tells how often the session came back.
    pub(crate) async fn finish(mut self) -> u64 {
        while !self.jobs.is_empty() {
            self.event().await;
        }
        for piece in 0..PIECES {
            let lba = piece * PIECE_BLOCKS;
            let command = Command {
                lun: LunAddress::from_number(0),
                cdb: Cdb::read_16(Lba(lba), Blocks(64)),
                data: Data::In(BytesMut::zeroed(BLOCK * 64)),
            };
            self.token += 1;
            self.nexus.submit(self.token, command).unwrap();
            self.jobs.insert(self.token, Job::Read(lba));
            self.busy[usize::try_from(piece).unwrap()] = true;
            while !self.jobs.is_empty() {
                self.event().await;
            }
        }
        let reinstated = self.reinstated;
        self.nexus.logout().await.unwrap();
        reinstated
    }
}
