//! Pairs of connected sockets for the lanes of a kernel device.
//!
//! Source: unix(7), socket(7). The kernel's NBD driver takes TCP and Unix *stream* sockets only.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Bytes that may lie in a socket unread, each way: a whole large request, so that its sender need not wait in the
/// middle of it. Half of this is for data on a Unix socket; measured, 4 MiB doubles the speed of large reads.
const BUFFER_BYTES: usize = 4 << 20;

/// A pair of connected stream sockets, closed in child processes, with large buffers where we have the right to them.
///
/// # Errors
/// No descriptors or memory left.
pub fn lane_pair() -> io::Result<(UnixStream, UnixStream)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, kernels) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    for end in [&ours, &kernels] {
        sockopt::set_socket_send_buffer_size(end, BUFFER_BYTES)?;
        if let Err(error) = force_send_buffer(end) {
            // Needs CAP_NET_ADMIN; what the system grants everybody is slower, not wrong.
            tracing::debug!("send buffer of a lane stays small: {error}");
        }
    }
    Ok((ours.into(), kernels.into()))
}

/// Whether the other end of a connected socket is gone.
///
/// # Errors
/// It cannot be asked.
pub fn has_hung_up<F: AsFd>(socket: F) -> io::Result<bool> {
    let mut poll = [PollFd::new(&socket, PollFlags::empty())];
    rustix::event::poll(&mut poll, Some(&Timespec::default()))?;
    Ok(poll[0].revents().contains(PollFlags::HUP))
}

/// Bytes that lie in a Unix stream socket for us to read.
///
/// # Errors
/// It cannot be asked.
pub fn readable_bytes<F: AsFd>(socket: F) -> io::Result<usize> {
    let bytes = rustix::io::ioctl_fionread(socket)?;
    Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Whether the other end has read all that was sent.
///
/// # Errors
/// It cannot be asked.
#[expect(unsafe_code, reason = "rustix and std have no SIOCOUTQ")]
pub fn is_all_read<F: AsFd>(socket: F) -> io::Result<bool> {
    use std::os::fd::AsRawFd;

    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed and so open for the whole call; the request writes one int, to `bytes`, which
    // lives until the call returns.
    let outcome =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if outcome == 0 {
        Ok(bytes == 0)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[expect(
    unsafe_code,
    reason = "rustix and std have no SO_SNDBUFFORCE; the system's limit is far below one request"
)]
fn force_send_buffer(socket: &rustix::fd::OwnedFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let bytes = libc::c_int::try_from(BUFFER_BYTES).expect("a small constant");
    let length = libc::socklen_t::try_from(size_of_val(&bytes)).expect("four");
    // SAFETY: the descriptor is borrowed and so open for the whole call; the option wants one int, and pointer and
    // length describe `bytes`, which lives until the call returns. The kernel only reads it.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const bytes).cast(),
            length,
        )
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_pair_is_connected_and_does_not_block() {
        let (mut ours, mut kernels) = lane_pair().unwrap();
        ours.write_all(b"there").unwrap();
        let mut got = [0; 5];
        kernels.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"there");
        assert_eq!(
            kernels.read(&mut got).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let flags = rustix::io::fcntl_getfd(&ours).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn what_lies_in_a_socket_and_who_is_gone_is_seen() {
        let (mut ours, mut kernels) = lane_pair().unwrap();
        assert!(is_all_read(&ours).unwrap());
        ours.write_all(&[7; 5000]).unwrap();
        assert!(!is_all_read(&ours).unwrap());
        assert_eq!(readable_bytes(&kernels).unwrap(), 5000);
        kernels.read_exact(&mut [0; 5000]).unwrap();
        assert!(is_all_read(&ours).unwrap());
        assert_eq!(readable_bytes(&kernels).unwrap(), 0);
        assert!(!has_hung_up(&ours).unwrap());
        drop(kernels);
        assert!(has_hung_up(&ours).unwrap());
    }

    #[test]
    fn with_the_right_to_it_the_send_buffer_is_large() {
        let (ours, _kernels) = lane_pair().unwrap();
        let size = sockopt::socket_send_buffer_size(&ours).unwrap();
        let forced = rustix::process::geteuid().is_root();
        assert!(
            if forced {
                size >= BUFFER_BYTES
            } else {
                size > 0
            },
            "{size}"
        );
    }
}
