//! `docs/errors.md`, the section "NBD device": each of its lines happens, and each kind of error has its line.
//!
//! What only a kernel with the driver says, or one without, cannot be brought about on every machine: those errors are
//! made here from what the kernel would say, and happen in `tests/nbd_kernel.rs` and beside `kernel::driver`.

use std::io;
use std::path::PathBuf;
use std::task::{Context, Poll};

use support::errors::{Section, in_one_line};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::block::{Backend, Completion, Geometry, Request};
use crate::sys::netlink;

/// A volume that is never asked for anything.
struct Unused(Geometry);

fn unused(size_bytes: u64, block_bytes: u32) -> Unused {
    Unused(Geometry {
        size_bytes,
        block_bytes,
        physical_block_bytes: block_bytes,
        preferred_bytes: block_bytes,
        request_bytes_max: 1 << 20,
        read_only: true,
        write_cache: false,
        can_trim: false,
        can_write_zeroes: false,
        rotational: false,
    })
}

impl Backend for Unused {
    fn geometry(&self) -> &Geometry {
        &self.0
    }
    fn free_slots(&self) -> usize {
        0
    }
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        Err(request)
    }
    fn poll_completion(&mut self, _cx: &mut Context<'_>) -> Poll<Completion> {
        Poll::Pending
    }
    async fn close(self) {}
}

/// A name for each kind: one that is new does not compile here until it has one.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::NoDriver => "NoDriver",
        Error::NotLoaded => "NotLoaded",
        Error::OutOfReach => "OutOfReach",
        Error::NoneFree { .. } => "NoneFree",
        Error::NoNode { .. } => "NoNode",
        Error::NotPermitted => "NotPermitted",
        Error::Listen { .. } => "Listen",
        Error::TlsRequired(_) => "TlsRequired",
        Error::TextTooLong { .. } => "TextTooLong",
        Error::NoEndpoints => "NoEndpoints",
        Error::NoConnection(_) => "NoConnection",
        Error::Client(_) => "Client",
        Error::Lane(_) => "Lane",
        Error::Backend(_) => "Backend",
        Error::LaneLost => "LaneLost",
        Error::NoLanes => "NoLanes",
        Error::Geometry => "Geometry",
        Error::BlockBytes(_) => "BlockBytes",
        Error::SizeBytes(_) => "SizeBytes",
        Error::Identifier(_) => "Identifier",
        Error::NoDevice(_) => "NoDevice",
        Error::NotAdopted { .. } => "NotAdopted",
        Error::Netlink { .. } => "Netlink",
        Error::Deadline { .. } => "Deadline",
        Error::Settings { .. } => "Settings",
        Error::Busy { .. } => "Busy",
        Error::Open { .. } => "Open",
        Error::Flush { .. } => "Flush",
    }
}

const KINDS: usize = 28;

/// What no kernel is asked for.
async fn of_volumes() -> Vec<Error> {
    let connect = async |backends: Vec<Unused>, identifier: &str| {
        let connected = KernelDevice::connect(backends, identifier).await;
        connected.map(drop).unwrap_err()
    };
    let params = || DeviceParams::new("cinder-nbd:test:errors");
    let refusing = |_| async { Err::<Unused, OpenError>("the target is away".into()) };
    let refused = KernelDevice::connect_with(1, refusing, params()).await;
    let panicking = |lane| async move {
        assert_eq!(lane, 1, "a defect, as this test wants it");
        Err::<Unused, OpenError>("no".into())
    };
    let lost = KernelDevice::connect_with(1, panicking, params()).await;
    let absent = KernelDevice::adopt(1, Vec::new(), refusing, params()).await;
    vec![
        connect(Vec::new(), "x").await,
        connect(vec![unused(4096, 512)], "").await,
        connect(vec![unused(4096, 512), unused(8192, 512)], "x").await,
        connect(vec![unused(1 << 20, 8192)], "x").await,
        connect(vec![unused(0, 512)], "x").await,
        refused.map(drop).unwrap_err(),
        lost.map(drop).unwrap_err(),
        absent.map(drop).unwrap_err().1,
    ]
}

/// Exports that are not made, and a client that is none.
async fn of_exports() -> Vec<Error> {
    let bind = async |options: ExportOptions| Export::bind(options).await.map(drop).unwrap_err();
    let at = |place: &str| ExportOptions::at(vec![Endpoint::Tcp(place.to_owned())]);
    let mut wordy = at("127.0.0.1:0");
    wordy.name = "x".repeat(8192);
    let single = async |streams| {
        let open = || async { Ok::<_, OpenError>(unused(4096, 512)) };
        let shutdown = CancellationToken::new();
        let served = serve_single(ExportOptions::at(Vec::new()), streams, open, shutdown).await;
        served.unwrap_err()
    };
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    io::Write::write_all(&mut theirs, &[0xff; 4]).unwrap();
    vec![
        bind(ExportOptions::new("/proc/no/such/place")).await,
        bind(at("0.0.0.0:0")).await,
        bind(wordy).await,
        bind(ExportOptions::at(Vec::new())).await,
        single((null(), null())).await,
        single((ours.into(), null())).await,
    ]
}

/// What the kernel says, or does not.
fn of_kernels() -> Vec<Error> {
    let device = || PathBuf::from("/dev/nbd0");
    let source = || io::Error::from_raw_os_error(libc::EIO);
    vec![
        Error::NoDriver,
        Error::NotLoaded,
        Error::OutOfReach,
        Error::NotPermitted,
        Error::NoneFree {
            devices: 16,
            source: source(),
        },
        Error::NoNode { device: device() },
        Error::Lane(source()),
        Error::NotAdopted {
            device: device(),
            lane: 1,
        },
        Error::Netlink {
            doing: "connect a device",
            source: netlink::Error::Refused(source()),
        },
        Error::Deadline {
            doing: "connect a device",
            seconds: 30,
        },
        Error::Settings {
            device: device(),
            what: "a size",
            found: "1".into(),
            expected: "2".into(),
        },
        Error::Busy {
            device: device(),
            users: "process 7 (mount)".into(),
        },
        Error::Open {
            device: device(),
            source: source(),
        },
        Error::Flush {
            device: device(),
            source: source(),
        },
    ]
}

#[tokio::test]
async fn every_error_of_a_device_happens_and_stands_in_the_document() {
    let mut errors = of_volumes().await;
    errors.extend(of_exports().await);
    errors.extend(of_kernels());
    let kinds: std::collections::BTreeSet<_> = errors.iter().map(kind).collect();
    assert_eq!(kinds.len(), KINDS, "not all kinds happened: {kinds:?}");
    let texts: Vec<String> = errors.iter().map(|error| in_one_line(error)).collect();
    Section::read("NBD device").assert_is_of(&texts);
}
