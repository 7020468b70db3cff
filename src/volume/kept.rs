//! What outlives this process of each device: our ends of the lanes' sockets, and the journals of what is in flight.
//!
//! ```text
//!  lane --Keeper--> Kept (one device) --FDSTORE--> systemd, or `cinder-nbd supervise`
//!                                                      |  LISTEN_FDS
//!  next process: Keeping::new <------------------------+
//! ```
//!
//! A room of its own because it is the only one that knows both the lanes and who holds their descriptors: `nbd` knows
//! neither names nor holders, `sys` knows no lanes.
//!
//! Invariants:
//! 1. A name is `ID.LANE.WHAT`. There is one of each: `nbd` forgets what it replaces.
//! 2. Until a device is served again, what is held of it is here or with the attempt that is under way, so that one
//!    that failed half-way is repeated with what is there then, and never with what was there first.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::nbd::{Keeper, Keepsake, LaneRemains};
use crate::sys::inherited::Inherited;
use crate::sys::notify::Notifier;

/// Whoever holds descriptors for us, and what it held when we started.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    holder: Option<Arc<Notifier>>,
    inherited: Mutex<BTreeMap<Name, OwnedFd>>,
}

/// What is held of one device.
#[derive(Debug)]
pub(super) struct Kept {
    holder: Arc<Notifier>,
    id: Uuid,
    lanes: usize,
    /// `None` once the device is served.
    remains: Mutex<Option<BTreeMap<Name, OwnedFd>>>,
}

/// Of one thing that is held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    id: Uuid,
    lane: usize,
    what: &'static str,
}

impl Keeping {
    pub(super) fn new(holder: Option<Arc<Notifier>>, inherited: Vec<Inherited>) -> Self {
        let mut kept = BTreeMap::new();
        for Inherited { name, fd } in inherited {
            if let Some(name) = Name::parse(&name) {
                kept.insert(name, fd);
            } else {
                tracing::debug!(name, "inherited, and none of ours");
            }
        }
        if !kept.is_empty() {
            tracing::info!(
                descriptors = kept.len(),
                "held for us by whoever started us"
            );
        }
        Self {
            holder,
            inherited: Mutex::new(kept),
        }
    }

    /// Gives up what was held for attachments other than these.
    pub(super) fn keep_only(&self, ids: &[Uuid]) {
        let mut inherited = held(&self.inherited);
        let names: Vec<Name> = inherited.keys().cloned().collect();
        for name in names.into_iter().filter(|name| !ids.contains(&name.id)) {
            inherited.remove(&name);
            if let Some(holder) = &self.holder {
                release(holder, &name);
            }
        }
    }

    /// The keeper of a device, with what was left of it; `None` if nobody holds anything for us.
    pub(super) fn of_device(&self, id: Uuid, lanes: usize) -> Option<Arc<Kept>> {
        let holder = Arc::clone(self.holder.as_ref()?);
        let mut inherited = held(&self.inherited);
        let (ours, others) = std::mem::take(&mut *inherited)
            .into_iter()
            .partition(|(name, _)| name.id == id);
        *inherited = others;
        Some(Arc::new(Kept {
            holder,
            id,
            lanes,
            remains: Mutex::new(Some(ours)),
        }))
    }

    /// An attempt has failed: what is left of the device is for the next one.
    pub(super) fn take_back(&self, kept: &Kept) {
        if let Some(remains) = held(&kept.remains).take() {
            held(&self.inherited).extend(remains);
        }
    }
}

impl Kept {
    /// What is left of each lane; no copy stays here, as one would keep the kernel from seeing a socket's end.
    pub(super) fn take_remains(&self) -> Vec<LaneRemains> {
        let mut remains = held(&self.remains);
        let mut take = |lane, what| remains.as_mut()?.remove(&self.name(lane, what));
        let lane = |lane| LaneRemains {
            socket: take(lane, Keepsake::Socket),
            journal: take(lane, Keepsake::Journal),
        };
        (0..self.lanes).map(lane).collect()
    }

    /// What an attempt that failed has not used: that of the last lanes. What it has kept anew is the newer.
    pub(super) fn give_back(&self, unused: Vec<LaneRemains>) {
        let Some(remains) = &mut *held(&self.remains) else {
            return;
        };
        let first = self.lanes.saturating_sub(unused.len());
        for (lane, left) in (first..).zip(unused) {
            let both = [
                (Keepsake::Socket, left.socket),
                (Keepsake::Journal, left.journal),
            ];
            for (what, fd) in both {
                if let Some(fd) = fd {
                    remains.entry(self.name(lane, what)).or_insert(fd);
                }
            }
        }
    }

    /// The device is served: copies of our own would keep sockets open that their lanes have closed.
    pub(super) fn settle(&self) {
        *held(&self.remains) = None;
    }

    /// The device is gone.
    pub(super) fn forget_all(&self) {
        for lane in 0..self.lanes {
            for what in [Keepsake::Socket, Keepsake::Journal] {
                self.forget(lane, what);
            }
        }
    }

    fn name(&self, lane: usize, what: Keepsake) -> Name {
        let what = match what {
            Keepsake::Socket => SOCKET,
            Keepsake::Journal => JOURNAL,
        };
        Name {
            id: self.id,
            lane,
            what,
        }
    }
}

impl Keeper for Kept {
    fn keep(&self, lane: usize, what: Keepsake, fd: BorrowedFd<'_>) -> io::Result<()> {
        let name = self.name(lane, what);
        self.holder.hold(&name.to_string(), fd.as_fd())?;
        if let Some(remains) = &mut *held(&self.remains) {
            remains.insert(name, fd.try_clone_to_owned()?);
        }
        Ok(())
    }

    fn forget(&self, lane: usize, what: Keepsake) {
        let name = self.name(lane, what);
        release(&self.holder, &name);
        if let Some(remains) = &mut *held(&self.remains) {
            remains.remove(&name);
        }
    }
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let name = Self {
            id: parts.next()?.parse().ok()?,
            lane: parts.next()?.parse().ok()?,
            what: [SOCKET, JOURNAL]
                .into_iter()
                .find(|what| text.ends_with(what))?,
        };
        // Nothing but what we would have written.
        (name.to_string() == text).then_some(name)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.lane, self.what)
    }
}

const SOCKET: &str = "socket";
const JOURNAL: &str = "journal";

fn release(holder: &Notifier, name: &Name) {
    if let Err(error) = holder.release(&name.to_string()) {
        // It is held for longer than it is needed, which costs a descriptor.
        tracing::warn!(%name, %error, "whoever holds our descriptors does not answer");
    }
}

/// No code panics while it holds one of these.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn inherited(name: &str) -> Inherited {
        Inherited {
            name: name.to_owned(),
            fd: null(),
        }
    }

    fn holder(directory: &tempfile::TempDir) -> (UnixDatagram, Arc<Notifier>) {
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let notifier = Notifier::connect(path.as_os_str().as_bytes()).unwrap();
        (socket, Arc::new(notifier))
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut texts = Vec::new();
        let mut text = [0; 512];
        while let Ok(bytes) = socket.recv(&mut text) {
            texts.push(String::from_utf8(text[..bytes].to_vec()).unwrap());
        }
        texts
    }

    #[test]
    fn names_come_back_and_nothing_else_does() {
        let id = Uuid::new_v4();
        for what in [SOCKET, JOURNAL] {
            let name = Name { id, lane: 3, what };
            assert_eq!(Name::parse(&name.to_string()), Some(name));
        }
        for text in [
            String::new(),
            "unknown".to_owned(),
            format!("{id}"),
            format!("{id}.0"),
            format!("{id}.0.pipe"),
            format!("{id}.00.socket"),
            format!("{id}.-1.socket"),
            format!("{id}.0.x.socket"),
            "1.0.socket".to_owned(),
        ] {
            assert_eq!(Name::parse(&text), None, "{text}");
        }
    }

    #[test]
    fn a_device_gets_what_was_left_of_it_and_the_rest_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, notifier) = holder(&directory);
        let (id, gone) = (Uuid::new_v4(), Uuid::new_v4());
        let keeping = Keeping::new(
            Some(notifier),
            vec![
                inherited(&format!("{id}.0.socket")),
                inherited(&format!("{id}.0.journal")),
                inherited(&format!("{id}.1.journal")),
                inherited(&format!("{gone}.0.socket")),
                inherited("cinder-nbd.socket"),
            ],
        );
        keeping.keep_only(&[id]);
        assert_eq!(
            heard(&socket),
            [format!("FDSTOREREMOVE=1\nFDNAME={gone}.0.socket")]
        );
        let seen = |remains: &[LaneRemains]| -> Vec<(bool, bool)> {
            let lanes = remains.iter();
            lanes
                .map(|lane| (lane.socket.is_some(), lane.journal.is_some()))
                .collect()
        };
        let kept = keeping.of_device(id, 2).unwrap();
        let mut remains = kept.take_remains();
        assert_eq!(seen(&remains), [(true, true), (false, true)]);
        assert_eq!(seen(&kept.take_remains()), [(false, false); 2]);
        // Half-way: the first lane is used up and has a new socket, the second was not touched; then it fails.
        let unused = remains.split_off(1);
        kept.keep(0, Keepsake::Socket, null().as_fd()).unwrap();
        kept.forget(0, Keepsake::Journal);
        kept.give_back(unused);
        keeping.take_back(&kept);
        let kept = keeping.of_device(id, 2).unwrap();
        let remains = kept.take_remains();
        assert_eq!(seen(&remains), [(true, false), (false, true)]);
        kept.give_back(remains);
        kept.settle();
        assert_eq!(seen(&kept.take_remains()), [(false, false); 2]);
        heard(&socket);
        kept.forget_all();
        assert_eq!(heard(&socket).len(), 4);
    }

    #[test]
    fn without_a_holder_nothing_is_kept() {
        let keeping = Keeping::new(None, Vec::new());
        assert!(keeping.of_device(Uuid::new_v4(), 1).is_none());
        keeping.keep_only(&[]);
    }
}
