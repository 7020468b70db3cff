//! The whole way of an I/O: an NBD client, the export's lane, a LUN at the scripted target, over sockets of this host.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use cinder_nbd::lun::{Lun, LunSpec};
use cinder_nbd::nbd::{ExportOptions, serve_export};
use iscsi::proto::{Isid, SessionParams};
use tokio_util::sync::CancellationToken;

use super::Target;

/// Offsets go round within so many bytes of the disk.
const ROUND_BYTES: u64 = 512 << 20;

/// One client in transmission phase, and all that is behind it.
pub(crate) struct Bed {
    client: UnixStream,
    shutdown: CancellationToken,
    export: Option<JoinHandle<()>>,
    target: Option<JoinHandle<()>>,
    requests: Vec<u8>,
    replies: Vec<u8>,
    next: u64,
    _dir: tempfile::TempDir,
}

impl Bed {
    /// The target answers when `depth` reads or writes have come.
    pub(crate) fn start(depth: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let target = std::thread::spawn(move || serve_target(&listener, depth));
        let dir = tempfile::tempdir().expect("a folder can be made");
        let socket = dir.path().join("socket");
        let name = "iqn.2026-11.org.cinder-nbd:bench"
            .parse()
            .expect("a legal name");
        let portal = address.to_string().parse().expect("a portal");
        let mut session = SessionParams::new(portal, name, Isid::random([1, 1, 1], 1));
        session.target_name = Some("iqn.2026-11.test:bench".parse().expect("a legal name"));
        let spec = LunSpec::new(session, 0);
        let shutdown = CancellationToken::new();
        let (options, token) = (ExportOptions::new(&socket), shutdown.clone());
        let export = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let open = move || {
                let spec = spec.clone();
                async move { Ok(Lun::open(&spec).await?) }
            };
            let runtime = runtime.expect("a runtime can be built");
            runtime
                .block_on(serve_export(options, open, token))
                .expect("the export serves");
        });
        Self {
            client: negotiate(&socket),
            shutdown,
            export: Some(export),
            target: Some(target),
            requests: Vec::new(),
            replies: Vec::new(),
            next: 0,
            _dir: dir,
        }
    }

    /// Sends `depth` requests in one write, and waits for all answers.
    pub(crate) fn burst(&mut self, depth: usize, bytes: u32, is_write: bool) {
        let length = usize::try_from(bytes).expect("it fits");
        self.requests.clear();
        for _ in 0..depth {
            self.next = (self.next + 17 * u64::from(bytes)) % ROUND_BYTES;
            // proto.md: "Request message": magic, flags, type, cookie, offset, length
            self.requests
                .extend_from_slice(&0x2560_9513_u32.to_be_bytes());
            self.requests
                .extend_from_slice(&u32::from(is_write).to_be_bytes());
            self.requests.extend_from_slice(&self.next.to_be_bytes());
            self.requests.extend_from_slice(&self.next.to_be_bytes());
            self.requests.extend_from_slice(&bytes.to_be_bytes());
            if is_write {
                self.requests.resize(self.requests.len() + length, 0x5A);
            }
        }
        self.client
            .write_all(&self.requests)
            .expect("the export takes requests");
        // "Simple reply message": 16 bytes, the second four an error; a read's data behind them
        let reply = 16 + if is_write { 0 } else { length };
        self.replies.resize(reply * depth, 0);
        self.client
            .read_exact(&mut self.replies)
            .expect("the export answers");
        for reply in self.replies.chunks(reply) {
            assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "an error");
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // NBD_CMD_DISC
        let mut leave = [0; 28];
        leave[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2]);
        let _ = self.client.write_all(&leave);
        self.shutdown.cancel();
        for thread in [self.export.take(), self.target.take()]
            .into_iter()
            .flatten()
        {
            let _ = thread.join();
        }
    }
}

fn serve_target(listener: &TcpListener, depth: usize) {
    let (mut stream, _) = listener.accept().expect("the lane connects");
    stream.set_nodelay(true).expect("a socket of this host");
    let mut target = Target::new(depth);
    let (mut input, mut output) = (vec![0; 1 << 20], Vec::new());
    while let Ok(bytes @ 1..) = stream.read(&mut input) {
        target.handle(&input[..bytes], &mut output);
        if !output.is_empty() && stream.write_all(&output).is_err() {
            return;
        }
        output.clear();
    }
}

/// Connects by `NBD_OPT_EXPORT_NAME` of the empty name, without the zeroes.
fn negotiate(socket: &Path) -> UnixStream {
    let mut stream = loop {
        // the export's thread makes it
        if let Ok(stream) = UnixStream::connect(socket) {
            break stream;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    let mut option = Vec::from(3_u32.to_be_bytes());
    option.extend_from_slice(b"IHAVEOPT");
    option.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
    stream.write_all(&option).expect("the export listens");
    let mut size_and_flags = [0; 10];
    stream
        .read_exact(&mut size_and_flags)
        .expect("the export is given");
    stream
}
