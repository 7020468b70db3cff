//! The export judged by other people's clients: libnbd's tools, qemu's tools, fio; and by hand where none is rude
//! enough. The backend is memory; what is judged is the protocol, the lane and the listener.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so do its helpers"
)]

#[path = "nbd_bed/export.rs"]
mod export;
mod nbd_bed;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cinder_nbd::block::ErrorKind;
use cinder_nbd::nbd::wire::{self, OptionHeader, Request, command, option};
use cinder_nbd::nbd::{Endpoint, ExportOptions};
use export::{Export, serve};
use nbd_bed::{Medium, run, run_ok, wait_for};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

#[test]
fn nbdinfo_sees_what_the_backend_can_do() {
    let export = Export::of(&Medium::new(16 * MIB));
    let uri = export.uri();
    let info: Value = serde_json::from_str(&run_ok("nbdinfo", &["--json", &uri])).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    assert_eq!(info["exports"][0]["contexts"][0], "base:allocation");
    let entry = &info["exports"][0];
    for (key, expected) in [
        ("export-name", Value::from("")),
        (
            "description",
            Value::from("block device served by cinder-nbd"),
        ),
        ("export-size", Value::from(16 * MIB)),
        ("is_read_only", Value::from(false)),
        ("is_rotational", Value::from(false)),
        ("can_flush", Value::from(true)),
        ("can_fua", Value::from(true)),
        ("can_multi_conn", Value::from(true)),
        ("can_trim", Value::from(true)),
        ("can_zero", Value::from(true)),
        ("can_fast_zero", Value::from(true)),
        ("can_cache", Value::from(true)),
        ("can_df", Value::from(true)),
        ("block_size_minimum", Value::from(512)),
        ("block_size_preferred", Value::from(64 << 10)),
        ("block_size_maximum", Value::from(32 << 20)),
    ] {
        assert_eq!(entry[key], expected, "{key}");
    }
    let list: Value =
        serde_json::from_str(&run_ok("nbdinfo", &["--json", "--list", &uri])).unwrap();
    assert_eq!(list["exports"].as_array().unwrap().len(), 1);
    assert_eq!(
        run_ok("nbdinfo", &["--size", &uri]).trim(),
        (16 * MIB).to_string()
    );
    for (question, status) in [
        ("connect", 0),
        ("write", 0),
        ("multi-conn", 0),
        ("structured-reply", 0),
        ("cache", 0),
        ("df", 0),
        ("fast-zero", 0),
    ] {
        let output = run("nbdinfo", &["--can", question, &uri]);
        assert_eq!(output.status.code(), Some(status), "can {question}");
    }
    export.stop();
}

#[test]
fn a_read_only_export_offers_nothing_that_writes() {
    let medium = Medium::with(MIB, |geometry| {
        geometry.read_only = true;
        geometry.rotational = true;
    });
    let export = Export::of(&medium);
    let info: Value = serde_json::from_str(&run_ok("nbdinfo", &["--json", &export.uri()])).unwrap();
    let entry = &info["exports"][0];
    assert_eq!(entry["is_read_only"], true);
    assert_eq!(entry["is_rotational"], true);
    assert_eq!(entry["can_trim"], false);
    assert!(
        !run("nbdcopy", &["/etc/hostname", &export.uri()])
            .status
            .success()
    );
    export.stop();
    assert_eq!(medium.counts().flushes, 0, "there was nothing to flush");
}

#[test]
fn nbdcopy_in_and_out_gives_the_same_image() {
    let directory = tempfile::tempdir().unwrap();
    let (source, copy) = (
        directory.path().join("source"),
        directory.path().join("copy"),
    );
    let mut image = random_bytes(96 * MIB, 1);
    image[20 * MIB..40 * MIB].fill(0);
    std::fs::write(&source, &image).unwrap();
    let medium = Medium::new(image.len());
    let export = Export::of(&medium);
    run_ok(
        "nbdcopy",
        &["--flush", source.to_str().unwrap(), &export.uri()],
    );
    assert!(
        medium.bytes(0..image.len()) == image,
        "what arrived is what was sent"
    );
    run_ok("nbdcopy", &[&export.uri(), copy.to_str().unwrap()]);
    assert!(
        std::fs::read(&copy).unwrap() == image,
        "what came back is what was sent"
    );
    export.stop();
    let counts = medium.counts();
    assert!(
        counts.opened >= 4,
        "nbdcopy uses several connections: {counts:?}"
    );
    assert_eq!(counts.opened, counts.closed);
    assert!(counts.flushes > 0);
}

#[test]
fn qemu_img_reads_and_compares() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    std::fs::write(&source, random_bytes(8 * MIB, 2)).unwrap();
    let medium = Medium::new(8 * MIB);
    let export = Export::of(&medium);
    let (file, uri) = (source.to_str().unwrap(), export.uri());
    run_ok(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", file, &uri],
    );
    let info: Value =
        serde_json::from_str(&run_ok("qemu-img", &["info", "--output=json", &uri])).unwrap();
    assert_eq!(info["virtual-size"], 8 * MIB);
    run_ok(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", file, &uri],
    );
    medium.fill(5 * MIB, b"changed");
    let output = run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", file, &uri],
    );
    assert_eq!(output.status.code(), Some(1), "a difference is seen");
    export.stop();
}

#[test]
fn qemu_io_writes_zeroes_trims_and_flushes() {
    for can_write_zeroes in [true, false] {
        let medium = Medium::with(8 * MIB, |geometry| {
            geometry.can_write_zeroes = can_write_zeroes;
        });
        let export = Export::of(&medium);
        let script = [
            "aio_write -P 0x11 0 1M",
            "aio_write -P 0x22 1M 2M",
            "aio_write -P 0x33 3M 512",
            "aio_flush",
            "write -f -P 0x44 4M 64k",
            "write -z 1M 1M",
            "write -z -u 0 64k",
            "discard 5M 1M",
            "flush",
            "read -P 0 1M 1M",
            "read -P 0x22 2M 1M",
            "read -P 0x11 64k 64k",
            "read -P 0 0 64k",
            "read -P 0x33 3M 512",
            "read -P 0x44 4M 64k",
        ];
        let uri = export.uri();
        let mut arguments = vec!["-f", "raw"];
        for line in script {
            arguments.extend(["-c", line]);
        }
        arguments.push(&uri);
        let output = run_ok("qemu-io", &arguments);
        assert!(
            !output.contains("verification failed") && !output.contains("error"),
            "{output}"
        );
        export.stop();
        let counts = medium.counts();
        assert!(
            counts.fua >= 1 && counts.flushes >= 2 && counts.trims == 1,
            "{counts:?}"
        );
        assert_eq!(counts.zeroes > 0, can_write_zeroes, "{counts:?}");
    }
}

/// The client checks nothing itself (strict mode 0), so the server must.
#[test]
fn nbdsh_without_strictness_is_refused_with_the_right_errors() {
    let medium = Medium::with(MIB, |geometry| geometry.request_bytes_max = 128 << 10);
    let export = Export::of(&medium);
    let script = r#"
import errno, nbd
h.set_strict_mode(0)
def refused(expected, call, *args, **kw):
    try:
        call(*args, **kw)
    except nbd.Error as error:
        assert error.errnum == expected, (args, kw, error)
        return
    raise AssertionError(("accepted", args, kw))
size = h.get_size()
block = b"\x5a" * 512
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.EINVAL, h.pread, 1024, size - 512)
refused(errno.EINVAL, h.pread, 512, 1)
refused(errno.EINVAL, h.pread, 100, 0)
refused(errno.EINVAL, h.pread, 256 << 10, 0)
refused(errno.ENOSPC, h.pwrite, block, size)
refused(errno.EINVAL, h.pwrite, block, 7)
refused(errno.EINVAL, h.pwrite, block[:300], 0)
refused(errno.EINVAL, h.pwrite, block * 512, 0)
refused(errno.EINVAL, h.pwrite, block, 0, flags=0x40)
refused(errno.EINVAL, h.pwrite, block, 0, flags=nbd.CMD_FLAG_NO_HOLE)
refused(errno.EINVAL, h.trim, 512, size)
refused(errno.EINVAL, h.trim, 512, 100)
refused(errno.ENOSPC, h.zero, 512, size)
refused(errno.ENOTSUP, h.zero, 512, 0, flags=nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
refused(errno.EINVAL, h.zero, 512, 0, flags=nbd.CMD_FLAG_DF)
refused(errno.EINVAL, h.pread, 512, 0, flags=nbd.CMD_FLAG_REQ_ONE)
refused(errno.EINVAL, h.cache, 512, size)
refused(errno.EINVAL, h.cache, 511, 0)
refused(errno.EINVAL, h.block_status, 512, size, lambda *args: 0)
refused(errno.EINVAL, h.block_status, 512, 1, lambda *args: 0)
refused(errno.EINVAL, h.block_status, 0, 0, lambda *args: 0)
# After all that the connection is whole.
h.pwrite(block, 512, flags=nbd.CMD_FLAG_FUA)
assert h.pread(512, 512) == block
h.zero(512, 512, flags=nbd.CMD_FLAG_NO_HOLE)
assert h.pread(512, 512) == bytes(512)
h.flush()
h.trim(1024, 0, flags=nbd.CMD_FLAG_FUA)
h.pread(128 << 10, 0)
print("all refused")
"#;
    let output = run_ok("nbdsh", &["-u", &export.uri(), "-c", script]);
    assert_eq!(output.trim(), "all refused");
    export.stop();
}

#[test]
fn nbdsh_on_a_read_only_export_gets_eperm() {
    let medium = Medium::with(MIB, |geometry| geometry.read_only = true);
    let export = Export::of(&medium);
    let script = r#"
import errno, nbd
h.set_strict_mode(0)
for call in (lambda: h.pwrite(bytes(512), 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)):
    try:
        call()
        raise SystemExit("accepted")
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
h.pread(512, 0)
"#;
    run_ok("nbdsh", &["-u", &export.uri(), "-c", script]);
    export.stop();
}

#[test]
fn fio_verifies_mixed_sizes_over_several_connections() {
    let export = Export::of(&Medium::new(64 * MIB));
    let uri = format!("--uri={}", export.uri());
    let directory = tempfile::tempdir().unwrap();
    for job in [
        ["--bsrange=512-128k", "--iodepth=32", "--rw=randrw"],
        ["--bs=4k", "--iodepth=128", "--rw=randwrite"],
        ["--bs=1M", "--iodepth=8", "--rw=write"],
    ] {
        // Each job has its own half, or one would judge what the other wrote.
        let mut arguments = vec![
            "--name=verify",
            "--ioengine=nbd",
            "--thread",
            "--numjobs=2",
            "--size=32M",
            "--offset_increment=32M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randrepeat=0",
            "--end_fsync=1",
            "--group_reporting",
            "--output-format=json",
            &uri,
        ];
        arguments.extend(job);
        let state = format!("--aux-path={}", directory.path().display());
        arguments.push(&state);
        let text = run_ok("fio", &arguments);
        let report: Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
        assert_eq!(report["jobs"][0]["error"], 0, "{job:?}");
        assert!(
            report["jobs"][0]["read"]["total_ios"].as_u64().unwrap() > 0,
            "{job:?}"
        );
    }
    export.stop();
}

#[test]
fn blocks_of_4096_bytes_are_kept_to() {
    let medium = Medium::with(MIB, |geometry| geometry.block_bytes = 4096);
    let export = Export::of(&medium);
    let uri = export.uri();
    run_ok(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 9 4k 8k",
            "-c",
            "read -P 9 4k 8k",
            &uri,
        ],
    );
    let info: Value = serde_json::from_str(&run_ok("nbdinfo", &["--json", &uri])).unwrap();
    assert_eq!(info["exports"][0]["block_size_minimum"], 4096);
    export.stop();
}

#[test]
fn a_failure_to_open_is_told_to_the_client() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let options = ExportOptions::new(&socket);
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let open = || async { Err::<nbd_bed::MemoryBackend, _>("the target is closed".into()) };
        runtime.block_on(cinder_nbd::nbd::serve_export(options, open, token))
    });
    wait_for("the socket", || socket.exists());
    let output = run(
        "nbdinfo",
        &[&format!("nbd+unix:///?socket={}", socket.display())],
    );
    assert!(!output.status.success());
    let mut client = connect(&socket);
    client.write_all(&go()).unwrap();
    let mut reply = [0; 40];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(&reply[20..], b"the target is closed");
    shutdown.cancel();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let export = Export::of(&Medium::new(MIB));
    let options = ExportOptions::new(&export.socket);
    let error = serve(options, Medium::new(MIB), CancellationToken::new()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {}", export.socket.display())
    );
    assert!(source.contains("another process"), "{source}");
    run_ok("nbdinfo", &["--size", &export.uri()]);

    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let second = Export::with(&Medium::new(MIB), |options| {
        options.endpoints.push(Endpoint::Socket(stale.clone()));
    });
    wait_for("the new socket", || UnixStream::connect(&stale).is_ok());
    drop(second);
    export.stop();
}

#[test]
fn connections_beyond_the_limit_are_closed_at_once() {
    let medium = Medium::new(MIB);
    let export = Export::with(&medium, |options| options.connections_max = 2);
    let first = transmission(&export);
    let second = transmission(&export);
    let mut third = UnixStream::connect(&export.socket).unwrap();
    third
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert_eq!(third.read(&mut [0; 18]).unwrap(), 0);
    drop(first);
    wait_for("the first to be gone", || medium.counts().closed == 1);
    wait_for("room for another", || {
        let mut again = UnixStream::connect(&export.socket).unwrap();
        again.read(&mut [0; 18]).unwrap() == 18
    });
    drop(second);
    export.stop();
}

#[test]
fn an_old_client_gets_its_zeroes() {
    let medium = Medium::new(MIB);
    let export = Export::of(&medium);
    let mut client = connect_with(&export.socket, 0);
    let name = OptionHeader {
        option: option::EXPORT_NAME,
        length: 0,
    };
    client.write_all(&name.emit()).unwrap();
    let mut answer = [0xff; 134];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..8], (MIB as u64).to_be_bytes());
    assert_eq!(answer[10..], [0; 124]);
    ask(&mut client, command::READ, 1, 512);
    assert_eq!(answer_to(&mut client, 512), (0, 1));
    export.stop();
}

#[test]
fn requests_in_flight_are_answered_on_shutdown_and_later_ones_are_not_taken() {
    let medium = Medium::new(MIB);
    let export = Export::of(&medium);
    let mut client = transmission(&export);
    medium.hold(true);
    ask(&mut client, command::READ, 1, 512);
    ask(&mut client, command::FLUSH, 2, 0);
    std::thread::sleep(Duration::from_millis(50));
    export.cancel();
    wait_for("the socket to go", || !export.socket.exists());
    medium.hold(false);
    let mut cookies = [answer_to_any(&mut client), answer_to_any(&mut client)];
    cookies.sort_unstable();
    assert_eq!(cookies, [(0, 1), (0, 2)]);
    assert_eq!(
        client.read(&mut [0; 16]).unwrap(),
        0,
        "then the connection ends"
    );
    export.stop();
    let counts = medium.counts();
    assert_eq!((counts.opened, counts.closed), (1, 1));
    assert_eq!(
        counts.flushes, 2,
        "the client's, and the last one of the lane"
    );
}

#[test]
fn a_client_that_vanishes_does_not_take_its_writes_with_it() {
    let medium = Medium::new(MIB);
    let export = Export::of(&medium);
    let mut client = transmission(&export);
    medium.hold(true);
    let write = Request {
        flags: 0,
        command: command::WRITE,
        cookie: 7,
        offset: 512,
        length: 512,
    };
    client
        .write_all(&[&write.emit()[..], &[0xab; 512]].concat())
        .unwrap();
    // A second write that never becomes complete must leave no trace.
    let torn = Request {
        cookie: 8,
        offset: 4096,
        ..write
    };
    client
        .write_all(&[&torn.emit()[..], &[0xcd; 300]].concat())
        .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(medium.counts().closed, 0, "it waits for what is under way");
    medium.hold(false);
    wait_for("the backend to be closed", || medium.counts().closed == 1);
    assert_eq!(medium.bytes(512..1024), [0xab; 512]);
    assert_eq!(medium.bytes(4096..4608), [0; 512]);
    assert_eq!(medium.counts().flushes, 1, "flushed before it is closed");
    export.stop();
}

#[test]
fn disc_finishes_what_was_asked_before() {
    let medium = Medium::new(MIB);
    let export = Export::of(&medium);
    let mut client = transmission(&export);
    medium.hold(true);
    ask(&mut client, command::READ, 1, 512);
    ask(&mut client, command::DISC, 2, 0);
    std::thread::sleep(Duration::from_millis(50));
    medium.hold(false);
    assert_eq!(answer_to(&mut client, 512), (0, 1));
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
    export.stop();
}

#[test]
fn a_flood_of_requests_that_nobody_reads_is_held_back_and_then_answered() {
    let medium = Medium::new(4 * MIB);
    let export = Export::of(&medium);
    let mut client = transmission(&export);
    let mut writer = client.try_clone().unwrap();
    // 1200 reads of 128 KiB: far more than the lane's bytes (32 MiB), requests and socket buffers.
    let sender = std::thread::spawn(move || {
        for cookie in 0..1200 {
            ask(&mut writer, command::READ, cookie, 128 << 10);
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(medium.counts().reads < 600, "{:?}", medium.counts());
    let mut seen = vec![false; 1200];
    for _ in 0..1200 {
        let (error, cookie) = answer_to(&mut client, 128 << 10);
        assert_eq!(error, 0);
        assert!(!std::mem::replace(
            &mut seen[usize::try_from(cookie).unwrap()],
            true
        ));
    }
    sender.join().unwrap();
    export.stop();
}

#[test]
fn failures_of_the_backend_reach_the_client_and_the_connection_stays() {
    let medium = Medium::new(MIB);
    let export = Export::of(&medium);
    let mut client = transmission(&export);
    for (kind, errno) in [
        (ErrorKind::Io, 5),
        (ErrorKind::NoSpace, 28),
        (ErrorKind::Shutdown, 108),
    ] {
        medium.fail(Some(kind));
        ask(&mut client, command::READ, 3, 512);
        assert_eq!(answer_to(&mut client, 0), (errno, 3));
    }
    medium.fail(None);
    ask(&mut client, command::READ, 4, 512);
    assert_eq!(answer_to(&mut client, 512), (0, 4));
    export.stop();
}

/// A client that has said its flags and heard the greeting.
fn connect(socket: &std::path::Path) -> UnixStream {
    connect_with(socket, 3)
}

fn connect_with(socket: &std::path::Path, flags: u32) -> UnixStream {
    let mut client = UnixStream::connect(socket).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    client
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut greeting = [0; wire::GREETING_BYTES];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, wire::greeting(3));
    client.write_all(&flags.to_be_bytes()).unwrap();
    client
}

fn go() -> Vec<u8> {
    [
        &OptionHeader {
            option: option::GO,
            length: 6,
        }
        .emit()[..],
        &[0; 6],
    ]
    .concat()
}

/// A client in its transmission phase.
fn transmission(export: &Export) -> UnixStream {
    let mut client = connect(&export.socket);
    client.write_all(&go()).unwrap();
    // EXPORT, BLOCK_SIZE, ACK.
    let mut replies = [0; 20 + 12 + 20 + 14 + 20];
    client.read_exact(&mut replies).unwrap();
    assert_eq!(replies[78..82], [0, 0, 0, 1]);
    client
}

fn ask(client: &mut UnixStream, command: u16, cookie: u64, length: u32) {
    let request = Request {
        flags: 0,
        command,
        cookie,
        offset: 0,
        length,
    };
    client.write_all(&request.emit()).unwrap();
}

/// Error and cookie of the next reply, whose data have this length.
fn answer_to(client: &mut UnixStream, length: usize) -> (u32, u64) {
    let mut reply = [0; wire::SIMPLE_REPLY_BYTES];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], [0x67, 0x44, 0x66, 0x98]);
    client.read_exact(&mut vec![0; length]).unwrap();
    let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
    (error, u64::from_be_bytes(reply[8..].try_into().unwrap()))
}

/// The same for a client whose only read is of 512 bytes and has the cookie 1.
fn answer_to_any(client: &mut UnixStream) -> (u32, u64) {
    let (error, cookie) = answer_to(client, 0);
    if cookie == 1 {
        client.read_exact(&mut [0; 512]).unwrap();
    }
    (error, cookie)
}

/// Bytes that do not compress and do not repeat; the same for the same seed.
fn random_bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // SplitMix64, by its published constants.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
