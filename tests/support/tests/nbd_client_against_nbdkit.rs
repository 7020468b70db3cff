//! Our NBD client before a server that we did not write: nbdkit's memory disk.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::nbd::{
    Client, Error, Handshake, command, flag, info_request, option, reply, transmission,
};

#[test]
fn go_tells_size_flags_and_block_sizes() {
    let server = Nbdkit::start(&["memory", "1M"]);
    let client = Client::connect_unix(server.socket(), "").unwrap();
    assert_eq!(client.export().size, 1 << 20);
    for flag in [
        transmission::HAS_FLAGS,
        transmission::SEND_FLUSH,
        transmission::SEND_FUA,
        transmission::SEND_TRIM,
        transmission::SEND_WRITE_ZEROES,
        transmission::CAN_MULTI_CONN,
    ] {
        assert!(client.export().has(flag), "{flag:#x}");
    }
    assert!(!client.export().has(transmission::READ_ONLY));
    client.disconnect().unwrap();
    let by_name = Client::connect_unix_by_name(server.socket(), "").unwrap();
    assert_eq!(by_name.export().size, 1 << 20);
}

#[test]
fn data_comes_back_through_every_command() {
    let server = Nbdkit::start(&["memory", "1M"]);
    let mut client = Client::connect_unix(server.socket(), "").unwrap();
    let data: Vec<u8> = (0..8192_u32)
        .map(|number| number.to_be_bytes()[3] | 1)
        .collect();
    client.write(512, &data).unwrap();
    assert_eq!(client.read(512, 8192).unwrap(), data);
    client.write_flags(0, &[9; 512], flag::FUA).unwrap();
    client.flush().unwrap();
    client.trim(512, 1024).unwrap();
    client.write_zeroes(1536, 512, flag::NO_HOLE).unwrap();
    let seen = client.read(0, 2560).unwrap();
    assert_eq!(seen[..512], [9; 512]);
    assert_eq!(seen[512..2048], [0; 1536]);
    assert_eq!(seen[2048..], data[1536..2048]);
    client.disconnect().unwrap();
}

#[test]
fn many_requests_are_in_flight_and_errors_come_back() {
    let server = Nbdkit::start(&["memory", "1M"]);
    let mut client = Client::connect_unix(server.socket(), "").unwrap();
    client.write(4096, &[3; 4096]).unwrap();
    let sent: Vec<u64> = (0..16)
        .map(|index| {
            client
                .send(command::READ, 0, index * 4096, 4096, &[])
                .unwrap()
        })
        .collect();
    assert_eq!(client.in_flight(), 16);
    for _ in 0..16 {
        let reply = client.receive().unwrap();
        let expected = if reply.cookie == sent[1] { 3 } else { 0 };
        assert_eq!((reply.error, reply.data), (0, vec![expected; 4096]));
    }
    let Err(Error::Answered(code)) = client.read(1 << 20, 512) else {
        panic!("a read behind the end was let through")
    };
    assert_eq!(code, 22);
}

#[test]
fn options_are_answered_one_by_one() {
    let server = Nbdkit::start(&["memory", "1M"]);
    let stream = std::os::unix::net::UnixStream::connect(server.socket()).unwrap();
    let mut handshake = Handshake::begin(Box::new(stream)).unwrap();
    assert_eq!(handshake.server_flags() & 3, 3);
    let refused = handshake.option(0x1234_5678, b"what").unwrap();
    assert_eq!(refused[0].kind, reply::UNSUPPORTED);
    assert_eq!(handshake.list().unwrap(), [""]);
    assert_eq!(handshake.info("").unwrap().size, 1 << 20);
    let replies = handshake.option(option::INFO, &info_request("")).unwrap();
    assert_eq!(replies.last().unwrap().kind, reply::ACK);
    handshake.abort().unwrap();
}

struct Nbdkit {
    child: Child,
    folder: tempfile::TempDir,
    socket: PathBuf,
}

impl Nbdkit {
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let socket = folder.path().join("socket");
        let child = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(&socket)
            .args(args)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("nbdkit: {error}; install nbdkit (apt-get install nbdkit); cargo xtask test does it")
            });
        let server = Self {
            child,
            folder,
            socket,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(&server.socket).is_err() {
            assert!(
                Instant::now() < deadline,
                "nbdkit does not listen in {:?}",
                server.folder
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
