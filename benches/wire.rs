//! PDU headers and text keys: how long a value takes to bytes and back.
//!
//! `cargo bench --bench wire`; `-- --quick` for a look.

#![expect(
    missing_docs,
    reason = "criterion's macro makes a function without documentation"
)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use iscsi::scsi::{Blocks, Cdb, Lba, LunAddress, Sense};
use iscsi::wire::FromTarget;
use iscsi::wire::data_in::{DataIn, DataInStatus};
use iscsi::wire::header::ResponseNumbers;
use iscsi::wire::scsi_command::{ScsiCommand, TaskAttribute};
use iscsi::wire::scsi_response::Residual;
use iscsi::wire::serial::{CmdSn, DataSn, StatSn};
use iscsi::wire::tag::{InitiatorTaskTag, TargetTransferTag};
use iscsi::wire::text_keys;

fn command() -> ScsiCommand {
    ScsiCommand {
        immediate: false,
        is_final: true,
        read: true,
        write: false,
        attribute: TaskAttribute::SIMPLE,
        lun: LunAddress::from_number(1).0,
        initiator_task_tag: InitiatorTaskTag(7),
        expected_data_transfer_bytes: 4096,
        cmd_sn: CmdSn(11),
        exp_stat_sn: StatSn(12),
        cdb: Cdb::read_16(Lba(1 << 33), Blocks(8)).0,
    }
}

fn data_in() -> DataIn {
    DataIn {
        is_final: true,
        acknowledge: false,
        status: Some(DataInStatus {
            status: 0,
            residual: Residual::None,
        }),
        lun: 0,
        initiator_task_tag: InitiatorTaskTag(7),
        target_transfer_tag: TargetTransferTag::RESERVED,
        numbers: ResponseNumbers {
            stat_sn: StatSn(12),
            exp_cmd_sn: CmdSn(12),
            max_cmd_sn: CmdSn(140),
        },
        data_sn: DataSn(0),
        buffer_offset: 0,
    }
}

fn wire(criterion: &mut Criterion) {
    let command = command();
    criterion.bench_function("emit SCSI Command", |bencher| {
        bencher.iter(|| black_box(&command).emit());
    });
    let header = data_in().emit();
    criterion.bench_function("parse Data-In", |bencher| {
        bencher.iter(|| FromTarget::parse(black_box(&header)));
    });
    criterion.bench_function("READ(16) of a range", |bencher| {
        bencher.iter(|| Cdb::read_16(black_box(Lba(1 << 33)), black_box(Blocks(8))));
    });
    let sense = [
        0x70, 0, 0x06, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0,
    ];
    criterion.bench_function("parse sense data", |bencher| {
        bencher.iter(|| Sense::parse(black_box(&sense)));
    });
    let mut text = Vec::new();
    for (key, value) in [
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("MaxRecvDataSegmentLength", "262144"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "262144"),
    ] {
        text_keys::emit(&mut text, key, value);
    }
    criterion.bench_function("parse the text of a login", |bencher| {
        bencher.iter(|| text_keys::parse(black_box(&text)));
    });
}

criterion_group! {
    name = benches;
    // These are nanoseconds: a second holds millions of them.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = wire
}
criterion_main!(benches);
