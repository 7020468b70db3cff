//! The hot path: a `Lun` polled by one task, over TCP loopback to the target of `support` in the same process.
//!
//! `cargo bench --bench loopback`; `-- --quick` for a look. The target has a thread of its own and keeps its disk in
//! memory, so the figures are those of both ends together: they compare versions, not products.

#![expect(
    missing_docs,
    reason = "criterion's macro makes a function without documentation"
)]

use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cinder_nbd::block::{Backend as _, Operation, Request};
use cinder_nbd::lun::{Lun, LunSpec};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iscsi::proto::{Isid, SessionParams};
use support::target::{Disk, Target};
use tokio::runtime::{Builder, Runtime};

const IQN: &str = "iqn.2026-11.test:bench";
const DISK_BYTES: u64 = 64 << 20;

/// Operation size, commands at once, writing or reading.
const CASES: [(&str, u32, u64, bool); 6] = [
    ("read 4 KiB depth 1", 4096, 1, false),
    ("read 4 KiB depth 32", 4096, 32, false),
    ("write 4 KiB depth 1", 4096, 1, true),
    ("write 4 KiB depth 32", 4096, 32, true),
    ("read 1 MiB depth 4", 1 << 20, 4, false),
    ("write 1 MiB depth 4", 1 << 20, 4, true),
];

/// One LUN, and the buffers that go round.
struct Bench {
    lun: Lun,
    spare: Vec<BytesMut>,
    payload: Bytes,
    next: u64,
}

impl Bench {
    async fn open(portal: &str) -> Self {
        let name = "iqn.2026-11.org.cinder-nbd:bench"
            .parse()
            .expect("a legal name");
        let portal = portal.parse().expect("the target's portal");
        let mut session = SessionParams::new(portal, name, Isid::random([1, 1, 1], 1));
        session.target_name = Some(IQN.parse().expect("a legal name"));
        let spec = LunSpec::new(session, 1);
        let lun = Lun::open(&spec).await.expect("the LUN can be opened");
        Self {
            lun,
            spare: Vec::new(),
            payload: Bytes::from(vec![0x5A; 1 << 20]),
            next: 0,
        }
    }

    /// Runs `count` operations, `depth` at once; how long they took.
    async fn run(&mut self, count: u64, bytes: u32, depth: u64, write: bool) -> Duration {
        let begin = Instant::now();
        let (mut sent, mut ended) = (0, 0);
        while ended < count {
            while sent < count && sent - ended < depth {
                self.send(bytes, write);
                sent += 1;
            }
            let done = poll_fn(|cx| self.lun.poll_completion(cx)).await;
            let buffer = done.result.expect("the target answers well");
            if !write {
                self.spare.push(buffer);
            }
            ended += 1;
        }
        begin.elapsed()
    }

    fn send(&mut self, bytes: u32, write: bool) {
        let length = usize::try_from(bytes).expect("it fits");
        let operation = if write {
            Operation::Write {
                data: self.payload.slice(..length),
                fua: false,
            }
        } else {
            let mut buffer = self.spare.pop().unwrap_or_default();
            buffer.resize(length, 0);
            Operation::Read(buffer)
        };
        // A stride that is no divisor of the disk: neighbours are not merged by anybody.
        self.next = (self.next + 17 * u64::from(bytes)) % DISK_BYTES;
        let offset = self.next;
        self.lun
            .submit(Request {
                token: 0,
                operation,
                offset,
            })
            .expect("a slot is free");
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built")
}

fn loopback(criterion: &mut Criterion) {
    let target = Target::builder()
        .iqn(IQN)
        .lun(1, Disk::memory(DISK_BYTES))
        .start_blocking();
    let runtime = runtime();
    let mut bench = runtime.block_on(Bench::open(&target.portal()));
    let mut group = criterion.benchmark_group("loopback");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(2));
    group.warm_up_time(Duration::from_millis(300));
    for (name, bytes, depth, write) in CASES {
        bench.spare.clear();
        // Offsets stay multiples of the size, so that no operation reaches beyond the end.
        bench.next = 0;
        group.throughput(Throughput::Bytes(u64::from(bytes)));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| runtime.block_on(bench.run(count, bytes, depth, write)));
        });
    }
    group.finish();
    runtime.block_on(bench.lun.close());
}

criterion_group!(benches, loopback);
criterion_main!(benches);
