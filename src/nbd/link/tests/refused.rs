//! An answer given again that the driver refuses while the lane takes nothing new, and so does not read.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;

use super::*;

/// Larger than the send buffer below, so that it cannot leave wholly.
const LENGTH: usize = 256 << 10;

/// Gives the one socket that it has.
struct One(Mutex<Option<StdStream>>);

impl Relinker for One {
    fn relink(&self) -> Pin<Box<dyn Future<Output = io::Result<StdStream>> + Send>> {
        let socket = self.0.lock().unwrap().take();
        Box::pin(async move { socket.ok_or_else(|| io::ErrorKind::NotConnected.into()) })
    }

    fn is_over(&self) -> bool {
        false
    }
}

fn medium() -> FileBackend {
    let medium = rustix::fs::memfd_create("medium", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let medium = File::from(medium);
    medium
        .set_len(u64::try_from(BLOCKS * BLOCK).unwrap())
        .unwrap();
    FileBackend::new(medium)
}

fn asked(command: u16, cookie: u64, length: u32) -> [u8; 28] {
    let request = Request {
        flags: 0,
        command,
        cookie,
        offset: 0,
        length,
    };
    request.emit()
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

/// A lane that dies with its answer sent in part; its journal, and its end of the socket.
async fn dies_while_sending() -> (OwnedFd, StdStream) {
    let (ours, mut kernels) = socket::lane_pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
    let journal = Journal::create().unwrap();
    let (left, kept) = (
        journal.file().try_clone_to_owned().unwrap(),
        ours.try_clone().unwrap(),
    );
    let backend = medium();
    let geometry = backend.geometry().clone();
    let stream = tokio::net::UnixStream::from_std(ours).unwrap();
    let nobody = Arc::new(One(Mutex::new(None)));
    let link = Link::new(Some(stream), journal, &geometry, nobody);
    let read = u32::try_from(LENGTH).unwrap();
    kernels.write_all(&asked(command::READ, 7, read)).unwrap();
    let never = CancellationToken::new();
    tokio::select! {
        _ = lane::serve(link, backend, &never) => panic!("nothing ends the lane"),
        () = until(|| socket::readable_bytes(&kernels).unwrap() > 0) => {}
    }
    // Their answers wait for that one's.
    for cookie in 8..12 {
        kernels
            .write_all(&asked(command::FLUSH, cookie, 0))
            .unwrap();
    }
    (left, kept)
}

#[tokio::test]
async fn lane_that_leaves_hears_that_its_last_answer_was_refused() {
    let (journal, kept) = dies_while_sending().await;
    let (journal, left) = Journal::open(journal).unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    let (ours, mut kernels) = socket::lane_pair().unwrap();
    let relinker = Arc::new(One(Mutex::new(Some(ours))));
    let backend = medium();
    let geometry = backend.geometry().clone();
    let (standing, _stands) = tokio::sync::oneshot::channel();
    let link = Link::resume(Some(kept), journal, left, &geometry, relinker, standing);
    let leave = CancellationToken::new();
    let driver = async {
        until(|| socket::readable_bytes(kernels.as_fd()).unwrap() == 16 + LENGTH).await;
        leave.cancel();
        // The lane has its turn: from here on it reads nothing more.
        tokio::time::sleep(Duration::from_millis(5)).await;
        // As the driver does: of an answer that it does not know it reads the header.
        kernels.read_exact(&mut [0; 16]).unwrap();
        kernels.shutdown(std::net::Shutdown::Both).unwrap();
    };
    let both = async { tokio::join!(lane::serve(link, backend, &leave), driver) };
    let (end, ()) = tokio::time::timeout(PATIENCE, both)
        .await
        .expect("the lane does not leave");
    assert!(
        matches!(end, crate::nbd::connection::End::Shutdown),
        "{end:?}"
    );
}
