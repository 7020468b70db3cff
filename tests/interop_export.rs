//! `cinder-nbd export` between strangers: a real tgtd with CHAP behind it, fio and nbdcopy before it.
//!
//! The binary is run as a user runs it: in the foreground, without root's help, without a daemon. What is judged
//! is the data: fio verifies each block that it reads, nbdcopy's image must come back equal.

#![expect(
    clippy::unwrap_used,
    reason = "a test's bed that cannot be made is a failed test"
)]

#[expect(dead_code, reason = "other tests need more of the bed")]
mod export_bed;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use export_bed::{Bed, TARGET, assert_success, random_image, run};

#[test]
fn fio_verifies_mixed_random_sizes() {
    let bed = Bed::new(512 << 20);
    let export = bed.export(&[]);
    let report = bed.dir.path().join("fio.json");

    let output = run(Command::new("fio")
        .args([
            "--name=verify",
            "--ioengine=nbd",
            "--rw=randrw",
            "--rwmixread=40",
            "--bsrange=512-1m",
            "--bs_unaligned=0",
            "--blockalign=512",
            "--iodepth=32",
            "--size=512m",
            "--io_size=768m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--do_verify=1",
            "--fsync=64",
            "--randseed=20261122",
            "--output-format=json",
        ])
        .arg(format!("--uri={}", export.uri()))
        .arg(format!("--output={}", report.display())));

    assert_success(&output, "fio");
    let text = std::fs::read_to_string(&report).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let job = &json["jobs"][0];
    assert_eq!(job["error"], 0, "{text}");
    assert!(
        job["write"]["io_bytes"].as_u64().unwrap() > 100 << 20,
        "fio wrote too little to judge"
    );
    assert!(
        job["read"]["io_bytes"].as_u64().unwrap() > 100 << 20,
        "fio read too little to judge"
    );
    assert!(export.stop().status.success());
    bed.tgtd.wait_sessions(0);
}

#[test]
fn a_random_image_of_one_gibibyte_comes_back_equal() {
    let bed = Bed::new(1 << 30);
    let image = bed.dir.path().join("image");
    let back = bed.dir.path().join("back");
    random_image(&image, 1 << 30);
    let export = bed.export(&[]);

    assert_success(
        &run(Command::new("nbdcopy")
            .arg("--flush")
            .arg(&image)
            .arg(export.uri())),
        "nbdcopy in",
    );
    assert_success(
        &run(Command::new("nbdcopy").arg(export.uri()).arg(&back)),
        "nbdcopy out",
    );

    assert!(export.stop().status.success());
    assert_success(
        &run(Command::new("cmp").arg(&image).arg(&back)),
        "cmp of what came back",
    );
    // The same bytes are in the file behind the target: nothing stayed in a cache of ours.
    let behind = bed.tgtd.lun_path(TARGET, 1).unwrap();
    assert_success(
        &run(Command::new("cmp").arg(&image).arg(behind)),
        "cmp of the target's file",
    );
}

#[test]
fn read_only_export_refuses_writes_and_serves_reads() {
    let bed = Bed::new(64 << 20);
    std::fs::write(bed.tgtd.lun_path(TARGET, 1).unwrap(), {
        let mut bytes = vec![0_u8; 64 << 20];
        bytes[4096..8192].fill(0x5a);
        bytes
    })
    .unwrap();
    let export = bed.export(&["--read-only"]);

    let info = run(Command::new("nbdinfo").arg("--json").arg(export.uri()));
    assert_success(&info, "nbdinfo");
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true);
    assert_eq!(info["exports"][0]["export-size"], 64 << 20);
    let read = run(Command::new("qemu-io")
        .args(["-r", "-f", "raw", "-c", "read -P 0x5a 4k 4k"])
        .arg(export.uri()));
    assert_success(&read, "qemu-io read");
    assert!(!String::from_utf8_lossy(&read.stdout).contains("verification failed"));
    let write = run(Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 4k"])
        .arg(export.uri()));
    assert!(!write.status.success() || String::from_utf8_lossy(&write.stdout).contains("failed"));
    assert!(export.stop().status.success());
}

#[test]
fn sigterm_drains_and_leaves_neither_socket_nor_session() {
    let bed = Bed::new(64 << 20);
    let export = bed.export(&[]);
    let socket = bed.dir.path().join("nbd.sock");
    // A client that stays connected while the export is told to end.
    let mut client = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(export.uri())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"write -P 0x11 0 1M\nflush\n")
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("wrote 1048576/1048576") {
        line.clear();
        assert_ne!(
            lines.read_line(&mut line).unwrap(),
            0,
            "qemu-io ended early"
        );
    }

    let output = export.stop();

    assert!(output.status.success(), "{output:?}");
    assert!(!socket.exists());
    drop(client.stdin.take());
    let _ = client.wait();
    bed.tgtd.wait_sessions(0);
    let mut start = vec![0_u8; 1 << 20];
    let mut file = std::fs::File::open(bed.tgtd.lun_path(TARGET, 1).unwrap()).unwrap();
    file.read_exact(&mut start).unwrap();
    assert!(start.iter().all(|byte| *byte == 0x11));
}
