//! The other end of `notify`: hears what one process tells, and takes the descriptors that it gives to be held.
//!
//! Source: `sd_notify(3)`. Of its words those are understood that `Notifier` says; others are passed over.
//!
//! Invariants:
//! 1. Only the process that is named is heard: the kernel tells who sent a message (`SCM_CREDENTIALS`).
//! 2. A descriptor that comes with anything but a whole `FDSTORE=1` is closed.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, sockopt};

/// What a message says.
#[derive(Debug, Default)]
pub struct Message {
    /// It serves.
    pub ready: bool,
    /// It is about to end.
    pub stopping: bool,
    /// What it is at.
    pub status: Option<String>,
    /// To be held under a name.
    pub hold: Option<(String, Vec<OwnedFd>)>,
    /// No longer to be held.
    pub release: Option<String>,
}

/// A socket to be named in `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct Holder {
    socket: UnixDatagram,
    address: String,
}

/// Longer messages are cut off, and then not understood; ours have at most some 300 bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// A message of ours brings one.
const FDS_MAX: usize = 16;

impl Holder {
    /// Listens under an abstract name, which goes with the process and needs no directory.
    ///
    /// # Errors
    /// No descriptors left, or the name is taken.
    pub fn bind(name: &str) -> io::Result<Self> {
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes())?)?;
        socket.set_nonblocking(true)?;
        sockopt::set_socket_passcred(&socket, true)?;
        Ok(Self {
            socket,
            address: format!("@{name}"),
        })
    }

    /// For `NOTIFY_SOCKET`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same socket once more, to be told when there is something to receive.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn try_clone_socket(&self) -> io::Result<UnixDatagram> {
        self.socket.try_clone()
    }

    /// The next message of process `pid`; `None` when there is none now.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn receive(&self, pid: u32) -> io::Result<Option<Message>> {
        loop {
            let mut text = [0; TEXT_BYTES_MAX];
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX), ScmCredentials(1))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut slices = [IoSliceMut::new(&mut text)];
            let received = match rustix::net::recvmsg(&self.socket, &mut slices, &mut beside, flags)
            {
                Ok(received) => received,
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let (mut sender, mut fds) = (None, Vec::new());
            for message in beside.drain() {
                match message {
                    RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
                    RecvAncillaryMessage::ScmCredentials(theirs) => {
                        sender = u32::try_from(theirs.pid.as_raw_nonzero().get()).ok();
                    }
                    _ => {}
                }
            }
            let is_whole = !received
                .flags
                .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
            if sender == Some(pid)
                && is_whole
                && let Ok(text) = std::str::from_utf8(&text[..received.bytes])
            {
                return Ok(Some(parse(text, fds)));
            }
            tracing::debug!(?sender, "a message that is not for us, or not whole");
        }
    }
}

fn parse(text: &str, fds: Vec<OwnedFd>) -> Message {
    let mut message = Message::default();
    let (mut holds, mut releases, mut name) = (false, false, None);
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => message.ready = true,
            Some(("STOPPING", "1")) => message.stopping = true,
            Some(("STATUS", status)) => message.status = Some(status.to_owned()),
            Some(("FDSTORE", "1")) => holds = true,
            Some(("FDSTOREREMOVE", "1")) => releases = true,
            Some(("FDNAME", given)) => name = Some(given.to_owned()),
            _ => {}
        }
    }
    let name = name.filter(|name| super::notify::check_name(name).is_ok());
    match name {
        Some(name) if holds && !fds.is_empty() => message.hold = Some((name, fds)),
        Some(name) if releases => message.release = Some(name),
        _ => {}
    }
    message
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::notify::Notifier;
    use super::*;

    fn pair(name: &str) -> (Holder, Notifier) {
        let holder = Holder::bind(&format!("cinder-nbd-{name}-{}", std::process::id())).unwrap();
        let notifier = Notifier::connect(holder.address().as_bytes()).unwrap();
        (holder, notifier)
    }

    #[test]
    fn what_a_notifier_says_is_heard() {
        let (holder, notifier) = pair("heard");
        let pid = std::process::id();
        assert!(holder.receive(pid).unwrap().is_none());
        notifier.ready("serving").unwrap();
        let message = holder.receive(pid).unwrap().unwrap();
        assert!(message.ready && !message.stopping);
        assert_eq!(message.status.as_deref(), Some("serving"));
        let null = std::fs::File::open("/dev/null").unwrap();
        notifier.hold("a.0.socket", null.as_fd()).unwrap();
        let (name, fds) = holder.receive(pid).unwrap().unwrap().hold.unwrap();
        assert_eq!((name.as_str(), fds.len()), ("a.0.socket", 1));
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        notifier.release("a.0.socket").unwrap();
        let message = holder.receive(pid).unwrap().unwrap();
        assert_eq!(message.release.as_deref(), Some("a.0.socket"));
        notifier.stopping("bye").unwrap();
        assert!(holder.receive(pid).unwrap().unwrap().stopping);
    }

    #[test]
    fn a_stranger_is_not_heard() {
        let (holder, notifier) = pair("stranger");
        notifier.ready("let me in").unwrap();
        assert!(holder.receive(std::process::id() + 1).unwrap().is_none());
        assert!(holder.receive(std::process::id()).unwrap().is_none());
    }

    #[test]
    fn words_that_are_not_whole_do_nothing() {
        let null = || vec![OwnedFd::from(std::fs::File::open("/dev/null").unwrap())];
        for (text, fds) in [
            ("", null()),
            ("FDSTORE=1", null()),
            ("FDNAME=a", null()),
            ("FDSTORE=1\nFDNAME=a:b", null()),
            ("FDSTORE=1\nFDNAME=a", Vec::new()),
            ("FDSTORE=0\nFDNAME=a", null()),
            ("FDSTOREREMOVE=1", Vec::new()),
            ("READY=2\nX\n=\nSTOPPING=", Vec::new()),
        ] {
            let message = parse(text, fds);
            let is_nothing = message.hold.is_none() && message.release.is_none();
            assert!(is_nothing && !message.ready && !message.stopping, "{text}");
        }
    }
}
