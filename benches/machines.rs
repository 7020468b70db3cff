//! The initiator without sockets, and a lane of the export with them, both against a target that answers at once.
//!
//! `cargo bench --bench machines`; `-- --quick` for a look.

#![expect(
    missing_docs,
    reason = "criterion's macro makes a function without documentation"
)]

mod scripted;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Operation size, commands at once, writing or reading.
const CASES: [(&str, u32, usize, bool); 5] = [
    ("read 4 KiB depth 1", 4096, 1, false),
    ("read 4 KiB depth 32", 4096, 32, false),
    ("write 4 KiB depth 1", 4096, 1, true),
    ("write 4 KiB depth 32", 4096, 32, true),
    ("read 1 MiB depth 4", 1 << 20, 4, false),
];

fn machines(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime can be built");
    let mut group = criterion.benchmark_group("machines, a burst");
    for (name, bytes, depth, is_write) in CASES {
        let mut bed = runtime.block_on(scripted::driver::Bed::start(depth));
        group.throughput(Throughput::Elements(u64::try_from(depth).expect("it fits")));
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(bed.burst(depth, bytes, is_write)));
        });
    }
    group.finish();
}

fn lane(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lane over loopback, a burst");
    for (name, bytes, depth, is_write) in CASES {
        let mut bed = scripted::lane::Bed::start(depth);
        group.throughput(Throughput::Elements(u64::try_from(depth).expect("it fits")));
        group.bench_function(name, |bencher| {
            bencher.iter(|| bed.burst(depth, bytes, is_write));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = machines, lane
}
criterion_main!(benches);
