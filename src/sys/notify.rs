//! What a service tells whoever runs it, and gives it to hold: systemd's notification protocol.
//!
//! Source: `sd_notify(3)`, `sd_pid_notify_with_fds(3)`, "File Descriptor Store" of systemd.service(5): datagrams of
//! `NAME=VALUE` lines to the socket that `NOTIFY_SOCKET` names, descriptors beside them (`SCM_RIGHTS`).
//!
//! Invariants:
//! 1. A descriptor that is held is named; the names are the caller's, and what is held under a name that is used again
//!    is held beside the first until that is forgotten.
//! 2. No call hangs: a holder that does not read for `SEND_TIMEOUT` is an error.
//!
//! What is held comes back to the next process through `inherited`. The other end, where no systemd is, is `holder`.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// A line to whoever runs us.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
}

/// Names the socket to speak to.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// A name may have this many bytes (`sd_pid_notify_with_fds(3)`).
const NAME_BYTES_MAX: usize = 255;
/// A holder reads at once; one that has not for this long hangs. Chosen freely, any value above a second works.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

impl Notifier {
    /// The line that our environment names; `None` when nobody listens to us.
    ///
    /// # Errors
    /// An address that is none, or nobody behind it.
    pub fn from_environment() -> io::Result<Option<Self>> {
        match std::env::var_os(VARIABLE) {
            Some(address) if !address.is_empty() => Self::connect(address.as_bytes()).map(Some),
            _ => Ok(None),
        }
    }

    /// A line to this address: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// As `from_environment`.
    pub fn connect(address: &[u8]) -> io::Result<Self> {
        let address = match address {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "NOTIFY_SOCKET is neither an absolute path nor an abstract name",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { socket })
    }

    /// We serve.
    ///
    /// # Errors
    /// Nobody listens any more, or the listener hangs.
    pub fn ready(&self, status: &str) -> io::Result<()> {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)), &[])
    }

    /// What we are at, for people.
    ///
    /// # Errors
    /// As `ready`.
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.send(&format!("STATUS={}", one_line(status)), &[])
    }

    /// We are about to end.
    ///
    /// # Errors
    /// As `ready`.
    pub fn stopping(&self, status: &str) -> io::Result<()> {
        self.send(&format!("STOPPING=1\nSTATUS={}", one_line(status)), &[])
    }

    /// Gives a descriptor to be held under a name; ours stays ours.
    ///
    /// # Errors
    /// As `ready`; a name that cannot be one.
    pub fn hold(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        check_name(name)?;
        // FDPOLL=0: a socket whose other end has closed is still needed, for what lies in it unread.
        self.send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), &[fd])
    }

    /// What is held under this name is closed. Nothing is done.
    ///
    /// # Errors
    /// As `hold`.
    pub fn release(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    fn send(&self, text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "more than one descriptor in a message",
            ));
        }
        let text = [IoSlice::new(text.as_bytes())];
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &text, &mut beside, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }
}

/// `:` separates names where they are listed, and a line ends a field.
pub(super) fn check_name(name: &str) -> io::Result<()> {
    let is_plain = |byte: u8| (0x21..0x7f).contains(&byte) && byte != b':';
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{name:?} cannot be the name of a descriptor"),
    ))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

    use super::*;

    fn received(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let mut text = [0; 512];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = rustix::net::recvmsg(socket, &mut slices, &mut beside, flags).unwrap();
        let mut fds = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        (String::from_utf8(text[..got.bytes].to_vec()).unwrap(), fds)
    }

    #[test]
    fn a_descriptor_arrives_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let holder = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::connect(path.as_os_str().as_bytes()).unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        notifier.hold("v.0.socket", far.as_fd()).unwrap();
        drop(far);
        near.write_all(b"kept").unwrap();
        let (text, mut fds) = received(&holder);
        assert_eq!(text, "FDSTORE=1\nFDNAME=v.0.socket\nFDPOLL=0");
        let mut kept = UnixStream::from(fds.pop().unwrap());
        assert!(fds.is_empty());
        let mut bytes = [0; 4];
        kept.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"kept");
        notifier.release("v.0.socket").unwrap();
        assert_eq!(received(&holder).0, "FDSTOREREMOVE=1\nFDNAME=v.0.socket");
    }

    #[test]
    fn an_abstract_name_is_spoken_to_and_a_status_is_one_line() {
        let name = format!("cinder-nbd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let holder = UnixDatagram::bind_addr(&address).unwrap();
        let notifier = Notifier::connect(format!("@{name}").as_bytes()).unwrap();
        notifier.ready("serving\nX=1").unwrap();
        assert_eq!(received(&holder).0, "READY=1\nSTATUS=serving X=1");
        notifier.status("a").unwrap();
        assert_eq!(received(&holder).0, "STATUS=a");
        notifier.stopping("b").unwrap();
        assert_eq!(received(&holder).0, "STOPPING=1\nSTATUS=b");
    }

    #[test]
    fn what_cannot_be_a_name_or_an_address_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        assert_eq!(
            Notifier::connect(path.as_os_str().as_bytes())
                .unwrap_err()
                .kind(),
            io::ErrorKind::NotFound
        );
        assert!(Notifier::connect(b"vsock:2:1").is_err());
        let _holder = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::connect(path.as_os_str().as_bytes()).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        for name in ["", "a:b", "a\nREADY=1", "a b", &"x".repeat(256)] {
            assert!(notifier.hold(name, null.as_fd()).is_err(), "{name}");
            assert!(notifier.release(name).is_err(), "{name}");
        }
    }
}
