//! What `cinder-nbd export` speaks, and where: judged by libnbd's, qemu's, nbdkit's and systemd's tools, with a real
//! tgtd behind it. The data over a Unix socket is judged in `interop_export.rs`.
//!
//! libnbd's own interop programs (`interop/*.c`) are no package and take the server as a macro when they are compiled;
//! what they do (stdio, socket activation, TLS, lists, metadata) is done here through `nbdsh`.

#![expect(
    clippy::unwrap_used,
    reason = "a test's bed that cannot be made is a failed test"
)]

mod export_bed;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use export_bed::{Bed, Certificates, TARGET, assert_success, nbdsh, random_image, run, run_ok};
use serde_json::Value;

const MIB: u64 = 1 << 20;

#[test]
fn a_thin_lun_tells_what_it_holds() {
    let bed = Bed::new(64 * MIB).thin();
    let export = bed.export(&[]);
    let script = r#"
import nbd
assert h.can_meta_context("base:allocation")
h.pwrite(b"x" * 65536, 1 << 20)
h.pwrite(b"y" * 65536, 8 << 20)
h.flush()
def status(count, offset, flags=0):
    seen = []
    h.block_status(count, offset, lambda name, at, entries, err: seen.append((name, at, entries)), flags)
    return seen
[(name, at, entries)] = status(16 << 20, 0)
assert (name, at) == ("base:allocation", 0)
assert len(entries) > 2 and sum(entries[::2]) <= 16 << 20, entries
hole = nbd.STATE_HOLE | nbd.STATE_ZERO
assert entries[:4] == [1 << 20, hole, 65536, 0], entries
[(_, _, one)] = status(16 << 20, 1 << 20, nbd.CMD_FLAG_REQ_ONE)
assert one == [65536, 0], one
h.cache(1 << 20, 0)
h.zero(65536, 1 << 20, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(65536, 1 << 20) == bytes(65536)
h.trim(65536, 8 << 20)
[(_, _, entries)] = status(16 << 20, 0)
assert entries == [16 << 20, hole], entries
try:
    h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    raise SystemExit("allocated zeroes are not fast")
except nbd.Error as error:
    assert error.errno == "ENOTSUP", error
h.pwrite(b"z" * 65536, 32 << 20)
print("told")
"#;
    let told = nbdsh(&["--base-allocation", "-u", export.uri(), "-c", script]);
    assert_eq!(told.trim(), "told");

    let map = run_ok("nbdinfo", &["--map", "--json", export.uri()]);
    let map: Value = serde_json::from_str(&map).unwrap();
    let kinds: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["type"])
        .collect();
    assert_eq!(kinds, [3, 0, 3], "{map}");
    assert_eq!(map[1]["offset"], 32 * MIB);
    let map = run_ok(
        "qemu-img",
        &["map", "--output=json", "-f", "raw", export.uri()],
    );
    let map: Value = serde_json::from_str(&map).unwrap();
    let data: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["data"])
        .collect();
    assert_eq!(data, [false, true, false], "{map}");
    assert!(export.stop().status.success());
}

#[test]
fn a_lun_that_does_not_tell_is_all_data() {
    let bed = Bed::new(16 * MIB);
    let export = bed.export(&["--export-name", "disk1", "--export-description", "a disk"]);
    assert!(export.uri().contains(":///disk1?"), "{}", export.uri());
    let map = run_ok("nbdinfo", &["--map", "--json", export.uri()]);
    let map: Value = serde_json::from_str(&map).unwrap();
    assert_eq!(map.as_array().unwrap().len(), 1, "{map}");
    assert_eq!(map[0]["type"], 0);
    let list = run_ok("nbdinfo", &["--list", "--json", export.uri()]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["exports"][0]["export-name"], "disk1");
    assert_eq!(list["exports"][0]["description"], "a disk");
    let nobody = export.uri().replace("disk1", "disk2");
    assert!(!run(Command::new("nbdinfo").arg(nobody)).status.success());
    for question in [
        "connect",
        "read",
        "write",
        "flush",
        "fua",
        "trim",
        "zero",
        "fast-zero",
        "cache",
        "df",
        "multi-conn",
        "structured-reply",
    ] {
        let answer = run(Command::new("nbdinfo").args(["--can", question, export.uri()]));
        // Trim is offered where the LUN has it; tgt says so only of thin ones.
        let expected = if question == "trim" { 2 } else { 0 };
        assert_eq!(answer.status.code(), Some(expected), "can {question}");
    }
    assert!(export.stop().status.success());
}

#[test]
fn a_grown_lun_shows_its_size_to_the_next_client() {
    let bed = Bed::new(16 * MIB);
    let export = bed.export(&[]);
    let size = || {
        run_ok("nbdinfo", &["--size", export.uri()])
            .trim()
            .to_owned()
    };
    assert_eq!(size(), (16 * MIB).to_string());
    bed.tgtd.wait_sessions(0);
    bed.tgtd.remove_lun(TARGET, 1);
    bed.tgtd.add_lun_file(1, 48 * MIB);
    assert_eq!(size(), (48 * MIB).to_string());
    let script = "h.pwrite(b'n' * 512, (48 << 20) - 512); h.flush()";
    nbdsh(&["-u", export.uri(), "-c", script]);
    assert!(export.stop().status.success());
}

#[test]
fn qemu_ios_commands_all_work() {
    let bed = Bed::new(64 * MIB).thin();
    let export = bed.export(&[]);
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", "-d", "unmap"]);
    for words in [
        "aio_write -P 1 0 1M",
        "aio_write -P 2 1M 64k",
        "aio_flush",
        "read -P 1 0 1M",
        "write -z 256k 128k",
        "read -P 0 256k 128k",
        "write -z -u 512k 128k",
        "read -P 0 512k 128k",
        "write -z -u -n 1M 64k",
        "discard 0 128k",
        "write -f -P 3 2M 4k",
        "read -P 3 2M 4k",
        "flush",
        "map",
    ] {
        command.args(["-c", words]);
    }
    let output = run(command.arg(export.uri()));
    assert_success(&output, "qemu-io");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("fail") && !text.contains("error"), "{text}");
    assert!(export.stop().status.success());
}

#[test]
fn nbdkit_as_a_proxy_passes_everything_on() {
    let bed = Bed::new(32 * MIB);
    let export = bed.export(&[]);
    let (image, back) = (bed.path("image"), bed.path("back"));
    random_image(image.as_ref(), 32 * MIB);
    let uri = format!("uri={}", export.uri());
    let copy = format!(
        "nbdinfo --can multi-conn \"$uri\" && nbdcopy --flush {image} \"$uri\" && nbdcopy \"$uri\" {back} && nbdinfo --map \"$uri\""
    );
    run_ok(
        "nbdkit",
        &["-U", "-", "nbd", &uri, "shared=true", "--run", &copy],
    );
    run_ok("cmp", &[&image, &back]);
    assert!(export.stop().status.success());
}

#[test]
fn nbd_client_lists_the_export_over_tcp() {
    let bed = Bed::new(16 * MIB);
    let export = bed.export_at(&["--listen", "127.0.0.1:0", "--export-name", "disk1"]);
    assert_eq!(
        export.uri(),
        format!("nbd://127.0.0.1:{}/disk1", export.port())
    );
    let list = run_ok("/usr/sbin/nbd-client", &["-l", "127.0.0.1", export.port()]);
    assert!(list.contains("disk1"), "{list}");
    run_ok("nbdinfo", &[export.uri()]);
    assert!(export.stop().status.success());
}

#[test]
fn over_tls_data_comes_and_goes_and_nothing_without() {
    let bed = Bed::new(64 * MIB);
    let ours = Certificates::new(&bed, "ours");
    let export = bed.export_at(&[
        "--listen",
        "0.0.0.0:0",
        "--tls-cert",
        &ours.file("server-cert.pem"),
        "--tls-key",
        &ours.file("server-key.pem"),
        "--tls-client-ca",
        &ours.file("ca-cert.pem"),
    ]);
    let port = export.port();
    let trusted = |folder: &Certificates| {
        let folder = folder.folder.display();
        format!("nbds://localhost:{port}/?tls-certificates={folder}")
    };
    let uri = trusted(&ours);
    let info = run_ok("nbdinfo", &["--json", &uri]);
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(
        (&info["TLS"], &info["structured"]),
        (&Value::Bool(true), &Value::Bool(true))
    );

    let (image, back) = (bed.path("image"), bed.path("back"));
    random_image(image.as_ref(), 64 * MIB);
    run_ok("nbdcopy", &["--flush", &image, &uri]);
    run_ok("nbdcopy", &[&uri, &back]);
    run_ok("cmp", &[&image, &back]);

    let credentials = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        ours.folder.display()
    );
    let place = format!("driver=nbd,host=localhost,port={port},tls-creds=tls0");
    let compared = run(Command::new("qemu-img").args([
        "compare",
        "--object",
        &credentials,
        "--image-opts",
        &place,
        &format!("driver=file,filename={image}"),
    ]));
    assert_success(&compared, "qemu-img compare");

    // In the clear, and with a certificate that nobody here signed.
    let clear = run(Command::new("nbdinfo").arg(format!("nbd://localhost:{port}/")));
    assert!(!clear.status.success());
    let theirs = Certificates::new(&bed, "theirs");
    std::fs::copy(ours.file("ca-cert.pem"), theirs.file("ca-cert.pem")).unwrap();
    assert!(
        !run(Command::new("nbdinfo").arg(trusted(&theirs)))
            .status
            .success()
    );
    // Who was refused took nobody's place.
    run_ok("nbdinfo", &["--size", &uri]);
    let output = export.stop();
    assert!(output.status.success());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("TLS could not be agreed on"), "{log}");
    bed.tgtd.wait_sessions(0);
}

#[test]
fn beyond_loopback_there_is_no_export_without_tls() {
    let bed = Bed::new(16 * MIB);
    let output = run(&mut bed.command(&["--listen", "0.0.0.0:0"]));
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    let last = log.lines().last().unwrap();
    assert!(last.contains("has no TLS: give it a certificate"), "{log}");
    // Certificates that are none, in one line too.
    let secret = bed.path("secret");
    let words = [
        "--listen",
        "0.0.0.0:0",
        "--tls-cert",
        &secret,
        "--tls-key",
        &secret,
    ];
    let output = run(&mut bed.command(&words));
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.lines().last().unwrap().contains("holds no certificate"),
        "{log}"
    );
}

/// The words of a server as a list of Python.
fn python_list(words: &[String]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", quoted.join(", "))
}

const WORK: &str = r#"
h.pwrite(b"s" * 65536, 65536)
h.flush()
assert h.pread(65536, 65536) == b"s" * 65536
assert h.get_structured_replies_negotiated()
h.shutdown()
print("worked")
"#;

#[test]
fn libnbd_runs_it_on_standard_input_and_output() {
    let bed = Bed::new(16 * MIB);
    let mut words = bed.words();
    words.push("--stdio".into());
    let script = format!("h.connect_command({})\n{WORK}", python_list(&words));
    assert_eq!(nbdsh(&["-c", &script]).trim(), "worked");
    bed.tgtd.wait_sessions(0);
}

#[test]
fn two_pipes_are_a_connection_too() {
    let bed = Bed::new(16 * MIB);
    let mut child = bed
        .command(&["--stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = child.stdin.take().unwrap();
    let mut from = child.stdout.take().unwrap();
    let mut greeting = [0; 18];
    from.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    // Fixed newstyle without zeroes, and EXPORT_NAME.
    to.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")
        .unwrap();
    let mut export = [0; 10];
    from.read_exact(&mut export).unwrap();
    assert_eq!(export[..8], (16 * MIB).to_be_bytes());
    // A read of 8 MiB, more than a pipe holds, and goodbye.
    let length = 8 << 20_u32;
    let read = [
        &b"\x25\x60\x95\x13\0\0\0\0COOKIE01\0\0\0\0\0\0\0\0"[..],
        &u32::to_be_bytes(length),
    ]
    .concat();
    to.write_all(&read).unwrap();
    let mut answer = vec![0xff; 16 + (8 << 20)];
    from.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..16], *b"\x67\x44\x66\x98\0\0\0\0COOKIE01");
    assert!(answer[16..].iter().all(|byte| *byte == 0));
    to.write_all(b"\x25\x60\x95\x13\0\0\0\x02COOKIE02\0\0\0\0\0\0\0\0\0\0\0\0")
        .unwrap();
    assert_eq!(from.read(&mut [0; 1]).unwrap(), 0, "then it ends");
    assert!(child.wait().unwrap().success());
    bed.tgtd.wait_sessions(0);
}

#[test]
fn sockets_that_were_passed_are_served() {
    let bed = Bed::new(16 * MIB);
    let mut words = bed.words();
    words.push("--socket-activation".into());
    let list = python_list(&words);
    let script = format!("h.connect_systemd_socket_activation({list})\n{WORK}");
    // The export says where it can be found, on the same output.
    assert_eq!(nbdsh(&["-c", &script]).lines().last(), Some("worked"));
    bed.tgtd.wait_sessions(0);
    // Nothing was passed: one line that says what to do.
    let output = run(&mut bed.command(&["--socket-activation"]));
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.lines()
            .last()
            .unwrap()
            .contains("systemd-socket-activate"),
        "{log}"
    );
}

#[test]
fn systemd_starts_it_with_the_first_client() {
    let bed = Bed::new(16 * MIB);
    let socket = bed.path("activated.sock");
    let mut child = Command::new("systemd-socket-activate")
        .args(["-l", &socket])
        .args(bed.words())
        .arg("--socket-activation")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !std::path::Path::new(&socket).exists() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "systemd-socket-activate ended"
        );
        std::thread::yield_now();
    }
    let uri = format!("nbd+unix:///?socket={socket}");
    assert_eq!(
        run_ok("nbdinfo", &["--size", &uri]).trim(),
        (16 * MIB).to_string()
    );
    let pid = child.id().to_string();
    run_ok("kill", &["-TERM", &pid]);
    assert!(child.wait().unwrap().success());
    let mut told = String::new();
    child.stdout.unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told.trim(), uri);
    bed.tgtd.wait_sessions(0);
}

#[test]
fn further_connections_than_were_allowed_are_closed() {
    let bed = Bed::new(16 * MIB);
    let export = bed.export_at(&["--listen", "127.0.0.1:0", "--connections", "1"]);
    let script = format!(
        r#"
other = nbd.NBD()
try:
    other.connect_tcp("127.0.0.1", "{}")
    raise SystemExit("let in")
except nbd.Error:
    pass
h.pread(512, 0)
print("kept out")
"#,
        export.port()
    );
    let told = nbdsh(&["-u", export.uri(), "-c", &script]);
    assert_eq!(told.trim(), "kept out");
    assert!(export.stop().status.success());
}
