//! Pairs of connected sockets for the lanes of a kernel device.
//!
//! Source: unix(7), socket(7). The kernel's NBD driver takes TCP and Unix *stream* sockets only.

use std::io;
use std::os::unix::net::UnixStream;

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
