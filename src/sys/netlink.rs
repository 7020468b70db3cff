//! The kernel's NBD driver over generic netlink: connect, disconnect, reconfigure, status.
//!
//! A room of its own so that the rest of the house sees five calls instead of messages and attributes.
//! Source: `linux/nbd-netlink.h`, `drivers/block/nbd.c` (`nbd_genl_*`), netlink(7).
//!
//! Invariants:
//! 1. Every request asks for an acknowledgement, and a call reads until the one with its own sequence number: a
//!    message that came earlier or late is never taken for the answer.
//! 2. Nothing is retried: after an error or a lost answer the caller asks sysfs what is true.
//!
//! A call blocks while the driver works, which may include a wait for I/O: call it on a thread that may block.
//! What it does not do: choose settings, or decide when a device may go (`nbd`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use neli::consts::genl::{CtrlAttr, CtrlCmd};
use neli::consts::nl::{GenlId, NlmF};
use neli::consts::socket::NlFamily;
use neli::err::SocketError;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder};
use neli::nl::{NlPayload, Nlmsghdr, NlmsghdrBuilder};
use neli::socket::synchronous::NlSocketHandle;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;
use rustix::net::sockopt;
use rustix::thread::CapabilitySet;

/// How long an answer may be on its way once the kernel has taken the request; it is there at once, or never.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

/// `NBD_CMD_*`.
mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
    pub(super) const STATUS: u8 = 5;
}

/// `NBD_ATTR_*` and the attributes nested in them.
mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const SOCK_ITEM: u16 = 1;
    pub(super) const SOCK_FD: u16 = 1;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const DEVICE_LIST: u16 = 9;
    pub(super) const DEVICE_ITEM: u16 = 1;
    pub(super) const DEVICE_INDEX: u16 = 1;
    pub(super) const DEVICE_CONNECTED: u16 = 2;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver is not there.
    #[error("there is no generic netlink family 'nbd'")]
    NoFamily,
    /// `CAP_SYS_ADMIN` in the initial user namespace is missing.
    #[error("no permission")]
    NotPermitted,
    /// The driver refused.
    #[error("the nbd driver refused: {0}")]
    Refused(#[source] io::Error),
    /// The socket failed, or the answer did not come.
    #[error("the netlink socket failed: {0}")]
    Socket(#[from] SocketError),
    /// A system call around it failed.
    #[error("{0}")]
    System(#[from] io::Error),
    /// A message could not be put together, or an answer not be taken apart.
    #[error("an unexpected netlink message: {0}")]
    Malformed(String),
}

/// Settings of a connection; times in whole seconds.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// Size of the device, a multiple of `block_bytes`.
    pub size_bytes: u64,
    /// Logical and physical block, a power of two in 512..=4096.
    pub block_bytes: u32,
    /// What the server can do: the protocol's transmission flags.
    pub server_flags: u16,
    /// How long a request may take; 0: for ever.
    pub timeout_s: u64,
    /// How long I/O waits when no socket is alive; 0: not at all.
    pub dead_conn_timeout_s: u64,
    /// Shown in sysfs as `backend`.
    pub identifier: &'a str,
}

/// A device as `STATUS` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// The number in `/dev/nbdX`.
    pub index: u32,
    /// Somebody holds its configuration, be it only by having it open: no proof that it is served.
    pub connected: bool,
}

/// A socket to the driver.
pub struct NbdFamily {
    socket: NlSocketHandle,
    family: u16,
    sequence: u32,
}

/// Whether this process may configure devices, without asking the driver: a refusal would go to the kernel's log.
/// What cannot be found out counts as no.
pub fn is_permitted() -> bool {
    /// Inode of the initial user namespace, a constant of the kernel (`PROC_USER_INIT_INO`).
    const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFD;
    let namespace = std::fs::metadata("/proc/self/ns/user").map(|found| found.ino());
    let capabilities = rustix::thread::capabilities(None);
    namespace.is_ok_and(|inode| inode == INITIAL_NAMESPACE)
        && capabilities.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

type Message = Genlmsghdr<u8, u16>;
type Attribute = Nlattr<u16, Buffer>;

impl NbdFamily {
    /// Opens a socket and asks for the driver; kernels since 6.12 load the module upon that.
    ///
    /// # Errors
    /// `NoFamily` when the driver is not there.
    pub fn open() -> Result<Self, Error> {
        let socket = NlSocketHandle::connect(NlFamily::Generic, None, Groups::empty())?;
        limit_wait(&socket)?;
        let mut opened = Self {
            socket,
            family: GenlId::Ctrl.into(),
            sequence: 0,
        };
        let name = attribute(u16::from(CtrlAttr::FamilyName), FAMILY)?;
        let answer = opened.call(u8::from(CtrlCmd::Getfamily), 2, vec![name]);
        let answer = match answer {
            Err(Error::Refused(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoFamily);
            }
            answer => answer?,
        };
        let answer = answer.ok_or_else(|| malformed(&"no family"))?;
        opened.family = number(&answer, u16::from(CtrlAttr::FamilyId))?;
        Ok(opened)
    }

    /// Connects the sockets, already in their transmission phase, to a free device; gives its number.
    ///
    /// # Errors
    /// The driver's refusal; or no understandable answer, and then the device may exist.
    pub fn connect(
        &mut self,
        settings: &Connect<'_>,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<u32, Error> {
        let attributes = connect_attributes(settings, sockets)?;
        let answer = self.call(command::CONNECT, VERSION, attributes)?;
        let answer = answer.ok_or_else(|| malformed(&"no device number"))?;
        number(&answer, attribute::INDEX)
    }

    /// Disconnects a device, whoever uses it. One that is not connected is no error.
    ///
    /// # Errors
    /// The driver's refusal: there is no such device.
    pub fn disconnect(&mut self, index: u32) -> Result<(), Error> {
        let attributes = vec![attribute(attribute::INDEX, index)?];
        self.call(command::DISCONNECT, VERSION, attributes)
            .map(drop)
    }

    /// Gives a device new sockets for those that are dead. Success does not mean that they are used: one that found
    /// no dead slot is silently closed.
    ///
    /// # Errors
    /// The driver's refusal: not connected, or another identifier.
    pub fn reconfigure(
        &mut self,
        index: u32,
        identifier: &str,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let attributes = reconfigure_attributes(index, identifier, sockets)?;
        self.call(command::RECONFIGURE, VERSION, attributes)
            .map(drop)
    }

    /// Gives a connected device another size, a multiple of its block. May wait for what is under way, and keeps all
    /// other calls to every generic netlink family waiting as long.
    ///
    /// # Errors
    /// The driver's refusal: not connected, or another identifier.
    pub fn resize(&mut self, index: u32, identifier: &str, size_bytes: u64) -> Result<(), Error> {
        let attributes = resize_attributes(index, identifier, size_bytes)?;
        self.call(command::RECONFIGURE, VERSION, attributes)
            .map(drop)
    }

    /// Lists one device, or all.
    ///
    /// # Errors
    /// The driver's refusal, or an answer that is not understood.
    pub fn status(&mut self, index: Option<u32>) -> Result<Vec<DeviceStatus>, Error> {
        let mut attributes = Vec::new();
        if let Some(index) = index {
            attributes.push(attribute(attribute::INDEX, index)?);
        }
        match self.call(command::STATUS, VERSION, attributes)? {
            Some(answer) => device_list(&answer),
            None => Err(malformed(&"no device list")),
        }
    }

    /// Sends a request and reads up to its acknowledgement; the message that came before that, if any.
    fn call(
        &mut self,
        command: u8,
        version: u8,
        attributes: Vec<Attribute>,
    ) -> Result<Option<Message>, Error> {
        self.sequence += 1;
        let request: Nlmsghdr<u16, Message> = NlmsghdrBuilder::default()
            .nl_type(self.family)
            .nl_flags(NlmF::REQUEST | NlmF::ACK)
            .nl_seq(self.sequence)
            .nl_pid(self.socket.pid())
            .nl_payload(NlPayload::Payload(message(command, version, attributes)?))
            .build()
            .map_err(|error| malformed(&error))?;
        self.socket.send(&request)?;
        let mut answer = None;
        loop {
            let (messages, _) = self.socket.recv::<u16, Message>()?;
            for received in messages {
                let received = received?;
                if *received.nl_seq() != self.sequence {
                    continue;
                }
                match received.nl_payload() {
                    NlPayload::Ack(_) => return Ok(answer),
                    NlPayload::Err(refusal) => return Err(refused(*refusal.error())),
                    NlPayload::Payload(payload) => answer = Some(payload.clone()),
                    NlPayload::DumpExtAck(_) | NlPayload::Empty => {}
                }
            }
        }
    }
}

impl std::fmt::Debug for NbdFamily {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("NbdFamily")
            .field("family", &self.family)
            .finish_non_exhaustive()
    }
}

#[expect(unsafe_code, reason = "neli lends its descriptor only as a number")]
fn limit_wait(socket: &NlSocketHandle) -> io::Result<()> {
    // SAFETY: the descriptor belongs to `socket`, which is borrowed for the whole function and does not close it.
    let descriptor = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    sockopt::set_socket_timeout(descriptor, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    Ok(())
}

fn connect_attributes(
    settings: &Connect<'_>,
    sockets: &[BorrowedFd<'_>],
) -> Result<Vec<Attribute>, Error> {
    Ok(vec![
        attribute(attribute::SIZE_BYTES, settings.size_bytes)?,
        attribute(attribute::BLOCK_SIZE_BYTES, u64::from(settings.block_bytes))?,
        // Always sent: a device that was used before keeps the old value otherwise.
        attribute(attribute::TIMEOUT, settings.timeout_s)?,
        attribute(attribute::SERVER_FLAGS, u64::from(settings.server_flags))?,
        attribute(attribute::DEAD_CONN_TIMEOUT, settings.dead_conn_timeout_s)?,
        attribute(attribute::BACKEND_IDENTIFIER, settings.identifier)?,
        socket_list(sockets)?,
    ])
}

fn reconfigure_attributes(
    index: u32,
    identifier: &str,
    sockets: &[BorrowedFd<'_>],
) -> Result<Vec<Attribute>, Error> {
    // No size: a changed one freezes the queue while it holds a lock that all of netlink needs.
    Ok(vec![
        attribute(attribute::INDEX, index)?,
        attribute(attribute::BACKEND_IDENTIFIER, identifier)?,
        socket_list(sockets)?,
    ])
}

fn resize_attributes(
    index: u32,
    identifier: &str,
    size_bytes: u64,
) -> Result<Vec<Attribute>, Error> {
    Ok(vec![
        attribute(attribute::INDEX, index)?,
        attribute(attribute::SIZE_BYTES, size_bytes)?,
        attribute(attribute::BACKEND_IDENTIFIER, identifier)?,
    ])
}

fn socket_list(sockets: &[BorrowedFd<'_>]) -> Result<Attribute, Error> {
    let mut list = attribute(attribute::SOCKETS, Vec::<u8>::new())?;
    for socket in sockets {
        let number =
            u32::try_from(socket.as_fd().as_raw_fd()).map_err(|error| malformed(&error))?;
        let item = attribute(attribute::SOCK_ITEM, Vec::<u8>::new())?
            .nest(&attribute(attribute::SOCK_FD, number)?)
            .map_err(|error| malformed(&error))?;
        list = list.nest(&item).map_err(|error| malformed(&error))?;
    }
    Ok(list)
}

fn attribute<P: neli::Size + neli::ToBytes>(kind: u16, payload: P) -> Result<Attribute, Error> {
    let kind = AttrTypeBuilder::default()
        .nla_type(kind)
        .build()
        .map_err(|error| malformed(&error))?;
    NlattrBuilder::default()
        .nla_type(kind)
        .nla_payload(payload)
        .build()
        .map_err(|error| malformed(&error))
}

fn message(command: u8, version: u8, attributes: Vec<Attribute>) -> Result<Message, Error> {
    GenlmsghdrBuilder::default()
        .cmd(command)
        .version(version)
        .attrs(attributes.into_iter().collect::<GenlBuffer<_, _>>())
        .build()
        .map_err(|error| malformed(&error))
}

fn number<T: neli::FromBytes>(answer: &Message, kind: u16) -> Result<T, Error> {
    answer
        .attrs()
        .get_attr_handle()
        .get_attr_payload_as::<T>(kind)
        .map_err(|error| malformed(&error))
}

fn device_list(answer: &Message) -> Result<Vec<DeviceStatus>, Error> {
    let attributes = answer.attrs().get_attr_handle();
    let list = attributes
        .get_nested_attributes::<u16>(attribute::DEVICE_LIST)
        .map_err(|error| malformed(&error))?;
    let items = list
        .iter()
        .filter(|item| *item.nla_type().nla_type() == attribute::DEVICE_ITEM);
    items
        .map(|item| {
            let item = item
                .get_attr_handle::<u16>()
                .map_err(|error| malformed(&error))?;
            let index = item
                .get_attr_payload_as(attribute::DEVICE_INDEX)
                .map_err(|error| malformed(&error))?;
            let connected: u8 = item
                .get_attr_payload_as(attribute::DEVICE_CONNECTED)
                .map_err(|error| malformed(&error))?;
            Ok(DeviceStatus {
                index,
                connected: connected != 0,
            })
        })
        .collect()
}

fn refused(code: i32) -> Error {
    let error = io::Error::from_raw_os_error(-code);
    if error.kind() == io::ErrorKind::PermissionDenied {
        Error::NotPermitted
    } else {
        Error::Refused(error)
    }
}

fn malformed(what: &dyn std::fmt::Display) -> Error {
    Error::Malformed(what.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use neli::{FromBytesWithInput, Size, ToBytes};

    use super::*;

    fn bytes(message: &Message) -> Vec<u8> {
        let mut buffer = Cursor::new(vec![0; message.padded_size()]);
        message.to_bytes(&mut buffer).unwrap();
        buffer.into_inner()
    }

    /// The descriptors' numbers are what the message carries, so they are taken from the test's own.
    fn standard() -> (io::Stdin, io::Stdout) {
        (io::stdin(), io::stdout())
    }

    /// Written by hand from linux/nbd-netlink.h: u16 length, u16 type, payload, padded to four; little-endian.
    #[test]
    #[cfg(target_endian = "little")]
    fn connect_is_laid_out_as_the_kernel_reads_it() {
        let settings = Connect {
            size_bytes: 0x1_0000_0000,
            block_bytes: 4096,
            server_flags: 0x10d,
            timeout_s: 90,
            dead_conn_timeout_s: 0,
            identifier: "vol-1",
        };
        let (stdin, stdout) = standard();
        let attributes = connect_attributes(&settings, &[stdin.as_fd(), stdout.as_fd()]).unwrap();
        #[rustfmt::skip]
        let expected = [
            1, 1, 0, 0, // CONNECT, version 1, reserved
            12, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, // SIZE_BYTES
            12, 0, 3, 0, 0, 16, 0, 0, 0, 0, 0, 0, // BLOCK_SIZE_BYTES
            12, 0, 4, 0, 90, 0, 0, 0, 0, 0, 0, 0, // TIMEOUT
            12, 0, 5, 0, 0x0d, 1, 0, 0, 0, 0, 0, 0, // SERVER_FLAGS
            12, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, // DEAD_CONN_TIMEOUT
            10, 0, 10, 0, b'v', b'o', b'l', b'-', b'1', 0, 0, 0, // BACKEND_IDENTIFIER, NUL, padding
            28, 0, 7, 0x80, // SOCKETS, nested
            12, 0, 1, 0x80, 8, 0, 1, 0, 0, 0, 0, 0, // SOCK_ITEM, SOCK_FD 0
            12, 0, 1, 0x80, 8, 0, 1, 0, 1, 0, 0, 0, // SOCK_ITEM, SOCK_FD 1
        ];
        assert_eq!(
            bytes(&message(command::CONNECT, VERSION, attributes).unwrap()),
            expected
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn disconnect_reconfigure_and_status_carry_the_index() {
        let index = || vec![attribute(attribute::INDEX, 17_u32).unwrap()];
        assert_eq!(
            bytes(&message(command::DISCONNECT, VERSION, index()).unwrap()),
            [2, 1, 0, 0, 8, 0, 1, 0, 17, 0, 0, 0]
        );
        assert_eq!(
            bytes(&message(command::STATUS, VERSION, index()).unwrap()),
            [5, 1, 0, 0, 8, 0, 1, 0, 17, 0, 0, 0]
        );
        let (stdin, _) = standard();
        let attributes = reconfigure_attributes(17, "abc", &[stdin.as_fd()]).unwrap();
        #[rustfmt::skip]
        let expected = [
            3, 1, 0, 0,
            8, 0, 1, 0, 17, 0, 0, 0,
            8, 0, 10, 0, b'a', b'b', b'c', 0,
            16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 0, 0, 0, 0,
        ];
        assert_eq!(
            bytes(&message(command::RECONFIGURE, VERSION, attributes).unwrap()),
            expected
        );
    }

    /// Neither sockets nor times: what is not sent stays as it is.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_resize_carries_the_size_alone() {
        let attributes = resize_attributes(17, "abc", 0x1_0000_0000).unwrap();
        #[rustfmt::skip]
        let expected = [
            3, 1, 0, 0,
            8, 0, 1, 0, 17, 0, 0, 0,
            12, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0,
            8, 0, 10, 0, b'a', b'b', b'c', 0,
        ];
        assert_eq!(
            bytes(&message(command::RECONFIGURE, VERSION, attributes).unwrap()),
            expected
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_device_list_is_taken_apart() {
        #[rustfmt::skip]
        let answer = [
            5, 1, 0, 0,
            44, 0, 9, 0x80,
            20, 0, 1, 0x80, 8, 0, 1, 0, 3, 0, 0, 0, 5, 0, 2, 0, 1, 0, 0, 0,
            20, 0, 1, 0x80, 8, 0, 1, 0, 4, 0, 0, 0, 5, 0, 2, 0, 0, 0, 0, 0,
        ];
        let answer =
            Message::from_bytes_with_input(&mut Cursor::new(&answer[..]), answer.len()).unwrap();
        assert_eq!(
            device_list(&answer).unwrap(),
            [
                DeviceStatus {
                    index: 3,
                    connected: true
                },
                DeviceStatus {
                    index: 4,
                    connected: false
                }
            ]
        );
    }

    #[test]
    fn refusals_are_told_apart() {
        assert!(matches!(refused(-1), Error::NotPermitted));
        assert!(matches!(refused(-22), Error::Refused(_)));
        let text = refused(-16).to_string();
        assert!(text.starts_with("the nbd driver refused: "), "{text}");
    }

    /// The controller's own family is there on every Linux: the exchange itself works, without the driver.
    #[test]
    fn a_kernel_without_the_driver_says_so() {
        match NbdFamily::open() {
            Ok(family) => assert!(
                std::path::Path::new("/sys/module/nbd").exists(),
                "{family:?}"
            ),
            Err(Error::NoFamily) => assert!(!std::path::Path::new("/sys/module/nbd").exists()),
            Err(error) => panic!("{error}"),
        }
    }
}
