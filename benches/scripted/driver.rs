//! The library alone: a nexus over the invented network, no system call between it and the scripted target.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use iscsi::io::{Command, Data, Event, Nexus, NexusParams};
use iscsi::proto::{Isid, SessionParams};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, Status};

use super::Invented;

/// A nexus, and the buffers that go round.
pub(crate) struct Bed {
    nexus: Nexus<Invented>,
    spare: Vec<BytesMut>,
    payload: Bytes,
    next: u64,
}

impl Bed {
    /// The target answers when `depth` reads or writes have come.
    pub(crate) async fn start(depth: usize) -> Self {
        let name = "iqn.2026-11.org.cinder-nbd:bench"
            .parse()
            .expect("a legal name");
        let portal = "192.0.2.1".parse().expect("a portal");
        let mut session = SessionParams::new(portal, name, Isid::random([1, 1, 1], 1));
        session.target_name = Some("iqn.2026-11.test:bench".parse().expect("a legal name"));
        let params =
            NexusParams::new(session, LunAddress::from_number(0)).expect("a target is named");
        let nexus = Nexus::open_over(Invented { burst: depth }, params).await;
        Self {
            nexus: nexus.expect("the scripted target answers well"),
            spare: Vec::new(),
            payload: Bytes::from(vec![0x5A; 1 << 20]),
            next: 0,
        }
    }

    /// Submits `depth` commands, and waits for all answers.
    pub(crate) async fn burst(&mut self, depth: usize, bytes: u32, is_write: bool) {
        let length = usize::try_from(bytes).expect("it fits");
        let (blocks, lun) = (Blocks(bytes / 512), LunAddress::from_number(0));
        for _ in 0..depth {
            self.next = (self.next + 17 * u64::from(blocks.0)) % (1 << 20);
            let lba = Lba(self.next);
            let (cdb, data) = if is_write {
                (
                    Cdb::write_16(lba, blocks, false),
                    Data::Out(self.payload.slice(..length)),
                )
            } else {
                let buffer = self.spare.pop().unwrap_or_else(|| BytesMut::zeroed(length));
                (Cdb::read_16(lba, blocks), Data::In(buffer))
            };
            self.nexus
                .submit(0, Command { lun, cdb, data })
                .expect("a slot is free");
        }
        for _ in 0..depth {
            let Event::Completed(done) = poll_fn(|cx| self.nexus.poll_event(cx)).await else {
                panic!("the scripted target answers all")
            };
            assert_eq!(done.status, Status::GOOD);
            if let Data::In(buffer) = done.data {
                self.spare.push(buffer);
            }
        }
    }
}
