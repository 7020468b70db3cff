//! The owner of one volume: it does what is asked of the volume one thing after the other, and
//! keeps its promises (undo what is left, take down what nobody wants) in between.
//!
//! Invariants:
//! 1. All state of a volume is changed here and nowhere else; others see `View`s.
//! 2. A mount is taken down only when the count is at zero *and* the kernel knows no other user.
//!    Counts are a hint: `docker cp` sends a second Mount and Unmount with the same ID, and a
//!    crashed engine sends no Unmount at all, and mounts again with the same ID.
//! 3. Who has it mounted, and that it was attached by hand, is in the entry on the disk before the
//!    answer: the next process goes on with it.
//! 4. A caller that hangs up during a mount has not mounted: what was done is kept for a while, for
//!    its retry.
//!
//! What each thing asked for takes stands in the files beside: `create`, `attach`, `mount`, `extend`,
//! `snapshot`, `reformat`, `release`; `resume` is what comes before all of them after a restart.

mod attach;
mod create;
mod extend;
mod mount;
mod reformat;
mod release;
mod resume;
mod snapshot;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::attachment::Attached;
use super::context::Context;
use super::engine::Parting;
use super::error::{Error, line};
use super::journal::{Entry, Pending, Record};
use super::platform::Sizes;
use super::request::{
    AttachRequest, CreateRequest, FormatRequest, SizeGib, SnapshotRequest, State, StaticTarget,
    Taken, View,
};
use super::{CREATED_BY, FORMATTED};
use crate::cinder::Volume;
use resume::{Waiting, adoption};

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What can be asked of a volume.
#[derive(Debug)]
pub(crate) enum Command {
    Create(Box<CreateRequest>, Reply<View>),
    Remove(Reply<()>),
    Attach {
        volume: Option<Box<Volume>>,
        request: AttachRequest,
        reply: Reply<View>,
    },
    Extend(SizeGib, Reply<View>),
    Snapshot(SnapshotRequest, Reply<Taken>),
    Format(FormatRequest, Reply<View>),
    AttachStatic(StaticTarget, Reply<View>),
    Detach {
        force: bool,
        reply: Reply<()>,
    },
    Mount {
        id: String,
        reply: Reply<PathBuf>,
    },
    Unmount {
        id: String,
        reply: Reply<()>,
    },
    Stop {
        deadline: Instant,
        parting: Parting,
    },
}

impl Command {
    /// Answers without doing it.
    pub(crate) fn refuse(self, error: Error) {
        // A caller that has gone needs no answer.
        match self {
            Self::Create(_, reply)
            | Self::Attach { reply, .. }
            | Self::AttachStatic(_, reply)
            | Self::Format(_, reply)
            | Self::Extend(_, reply) => drop(reply.send(Err(error))),
            Self::Remove(reply) | Self::Detach { reply, .. } | Self::Unmount { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Self::Mount { reply, .. } => drop(reply.send(Err(error))),
            Self::Snapshot(_, reply) => drop(reply.send(Err(error))),
            Self::Stop { .. } => {}
        }
    }

    /// Whether whoever asked has gone before it was begun, and nothing is lost by not doing it. What gives something back
    /// is always done.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Create(_, reply)
            | Self::Attach { reply, .. }
            | Self::AttachStatic(_, reply)
            | Self::Format(_, reply)
            | Self::Extend(_, reply) => reply.is_closed(),
            Self::Mount { reply, .. } => reply.is_closed(),
            Self::Snapshot(_, reply) => reply.is_closed(),
            Self::Remove(_) | Self::Detach { .. } | Self::Unmount { .. } | Self::Stop { .. } => {
                false
            }
        }
    }
}

/// Told to the registry when a worker has done something.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Whose.
    pub(crate) name: String,
    /// A command, as opposed to work of the timer.
    pub(crate) is_command: bool,
}

/// One volume and all that is known of it here.
#[derive(Debug)]
pub(crate) struct Worker {
    cx: Arc<Context>,
    name: String,
    record: Option<Record>,
    /// The record is on the disk, not only known for as long as it is attached.
    is_stored: bool,
    live: Option<Attached>,
    /// A device that the kernel has from a process before us, and that we do not serve yet. Never beside `live`.
    waiting: Option<Waiting>,
    /// What Cinder's metadata said when the volume was attached.
    marks: Marks,
    mountpoint: Option<PathBuf>,
    counts: BTreeMap<String, u32>,
    /// When somebody was last told where it is mounted.
    told_at: Instant,
    held: bool,
    /// Attachments still to be taken out of Cinder.
    left: Vec<Entry>,
    /// The first start finds what a dead daemon left: its device and mount go before anything else.
    must_reclaim: bool,
    /// When to look again at what could not be taken down.
    again_at: Option<Instant>,
    last_error: Option<String>,
    /// Of the device and what is mounted of it, when it was last looked at.
    sizes: Option<Sizes>,
    view: watch::Sender<View>,
}

/// Why a worker's turn has come.
enum Due {
    Command(Command),
    /// The attempt to serve a device again has ended.
    Adopted(resume::Ended),
    Timer,
}

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    created_by_us: bool,
    formatted: bool,
}

/// Between two attempts at an undo or a teardown. Chosen freely: short enough to help, long enough
/// not to hammer a cloud that is down.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How long a mount is kept for a caller that hung up. Docker gives up after 120 s, and people try
/// again at once.
const ABANDONED_INTERVAL: Duration = Duration::from_mins(5);
/// From Mount until a container that starts at once has begun. Chosen freely: a removal in that time is refused, whatever the
/// kernel says, as it cannot be undone.
const START_INTERVAL: Duration = Duration::from_secs(10);
/// From Mount to the moment when the kernel knows its caller: an engine mounts all volumes of a container, with two
/// minutes for each, before the container has any. Chosen freely, any value above that works.
const BEGIN_INTERVAL: Duration = Duration::from_mins(10);

impl Worker {
    /// A volume with what is on the disk about it.
    pub(crate) fn new(
        cx: Arc<Context>,
        name: String,
        record: Option<Record>,
        mut left: Vec<Entry>,
    ) -> (Self, watch::Receiver<View>) {
        let is_stored = record.is_some();
        let standing = left.iter().position(Entry::is_standing);
        let waiting = standing.map(|at| Waiting::new(left.swap_remove(at)));
        let must_reclaim = !left.is_empty();
        let is_pending = record
            .as_ref()
            .is_some_and(|record| record.pending.is_some());
        let (view, watcher) = watch::channel(View::default());
        let mut worker = Self {
            cx,
            name,
            record,
            is_stored,
            live: None,
            waiting: None,
            marks: Marks::default(),
            mountpoint: None,
            counts: BTreeMap::new(),
            // By a process before us, perhaps just now.
            told_at: Instant::now(),
            held: false,
            left,
            must_reclaim,
            again_at: (must_reclaim || waiting.is_some() || is_pending).then(Instant::now),
            last_error: None,
            sizes: None,
            view,
        };
        if let Some(waiting) = waiting {
            worker.expect_back(waiting);
        }
        worker.show();
        (worker, watcher)
    }

    /// Serves until the registry lets go.
    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        finished: mpsc::Sender<Finished>,
    ) {
        loop {
            let again_at = self.again_at;
            let timer = async {
                match again_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let due = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => Due::Command(command),
                    None => break,
                },
                ended = adoption(&mut self.waiting) => Due::Adopted(ended),
                () = timer => Due::Timer,
            };
            let is_command = matches!(due, Due::Command(_));
            match due {
                Due::Command(command) => Box::pin(self.apply(command)).await,
                Due::Adopted(ended) => Box::pin(self.conclude(ended)).await,
                Due::Timer => {
                    self.again_at = None;
                    Box::pin(self.tidy()).await;
                }
            }
            self.show();
            if finished
                .send(Finished {
                    name: self.name.clone(),
                    is_command,
                })
                .await
                .is_err()
            {
                break;
            }
        }
    }

    async fn apply(&mut self, command: Command) {
        if command.is_abandoned() {
            tracing::debug!(volume = self.name, "not begun: whoever asked has hung up");
            return;
        }
        match command {
            Command::Create(request, reply) => {
                let result = self.create(*request).await;
                self.answer("create", reply, result);
            }
            Command::Remove(reply) => {
                let result = self.remove().await;
                self.answer("remove", reply, result);
            }
            Command::Extend(to, reply) => {
                let result = self.extend(to).await;
                self.answer("extend", reply, result);
            }
            Command::Format(request, reply) => {
                let result = self.format_once(request).await;
                self.answer("format", reply, result);
            }
            Command::Snapshot(request, reply) => {
                let result = self.snapshot(request).await;
                self.answer("snapshot", reply, result);
            }
            Command::Attach {
                volume,
                request,
                reply,
            } => {
                let result = self.attach(volume, request).await;
                self.answer("attach", reply, result);
            }
            Command::AttachStatic(target, reply) => {
                let result = self.attach_static(target).await;
                self.answer("attach", reply, result);
            }
            Command::Detach { force, reply } => {
                let result = self.detach(force).await;
                self.answer("detach", reply, result);
            }
            Command::Mount { id, reply } => {
                let result = self.mount(&id).await;
                let mounted = result.is_ok();
                if !self.answer("mount", reply, result) && mounted {
                    tracing::warn!(
                        volume = self.name,
                        "mounted for a caller that has hung up; kept for its retry"
                    );
                    self.discount(&id);
                    self.note().await;
                    self.again_at = Some(Instant::now() + ABANDONED_INTERVAL);
                }
            }
            Command::Unmount { id, reply } => {
                let stays = self.unmount(&id).await.err().map(|error| line(&error));
                // The engine never asks twice, so the asking again is ours, and the answer is
                // "done".
                self.answer("unmount", reply, Ok(()));
                if let Some(why) = stays {
                    tracing::warn!(volume = self.name, why, "stays for now");
                    self.last_error = Some(why);
                    self.again_at = Some(Instant::now() + RETRY_INTERVAL);
                }
            }
            Command::Stop { deadline, parting } => self.stop(deadline, parting).await,
        }
    }

    /// Sends the answer and keeps its error; false when nobody waits for it.
    fn answer<T>(&mut self, verb: &str, reply: Reply<T>, result: Result<T, Error>) -> bool {
        match &result {
            // What goes on behind a call that ended well still has its reason.
            Ok(_) if self.is_extending().is_some() => {}
            Ok(_) => self.last_error = None,
            Err(error) => {
                let text = line(error);
                tracing::warn!(volume = self.name, error = text, "{verb} failed");
                self.last_error = Some(text);
            }
        }
        // The view is shown before the caller can ask for it.
        self.show();
        reply.send(result).is_ok()
    }

    fn count_up(&mut self, id: &str) {
        self.told_at = Instant::now();
        *self.counts.entry(id.to_owned()).or_default() += 1;
    }

    fn discount(&mut self, id: &str) {
        if let Some(count) = self.counts.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(id);
            }
        }
    }

    fn count(&self) -> u32 {
        self.counts.values().sum()
    }

    fn counted(&self, remedy: &'static str) -> Error {
        let count = self.count();
        let by = format!(
            "{count} mount{} counted",
            if count == 1 { " is" } else { "s are" }
        );
        Error::InUse {
            name: self.name.clone(),
            by,
            remedy,
        }
    }

    /// The entry on the disk says who uses the volume. A failure is no reason to refuse the use.
    async fn note(&mut self) {
        let (held, counts, marks) = (self.held, self.counts.clone(), self.marks);
        let Some(entry) = self.entry_mut() else {
            return;
        };
        let standing = entry
            .standing
            .clone()
            .map(|standing| super::standing::Standing {
                created_by_us: marks.created_by_us,
                formatted: marks.formatted,
                ..standing
            });
        if entry.held == held && entry.counts == counts && entry.standing == standing {
            return;
        }
        entry.held = held;
        entry.counts = counts;
        entry.standing = standing;
        let entry = entry.clone();
        if let Err(error) = self.cx.out.save_entry(&entry).await {
            tracing::warn!(
                volume = self.name,
                error = line(&error),
                "who uses the volume is not written down: after a restart the kernel alone knows"
            );
        }
    }

    fn entry_mut(&mut self) -> Option<&mut Entry> {
        match (&mut self.live, &mut self.waiting) {
            (Some(live), _) => Some(&mut live.entry),
            (None, Some(waiting)) => Some(&mut waiting.entry),
            (None, None) => None,
        }
    }

    fn entry(&self) -> Option<&Entry> {
        let live = self.live.as_ref().map(|live| &live.entry);
        live.or_else(|| Some(&self.waiting.as_ref()?.entry))
    }

    /// Looks how large device and filesystem are, for who asks. Nothing depends on it.
    async fn measure(&mut self) {
        let Some(device) = self.device() else {
            self.sizes = None;
            return;
        };
        let sizes = self.cx.out.sizes(&device, self.mountpoint.as_deref()).await;
        match sizes {
            Ok(sizes) => self.sizes = Some(sizes),
            Err(cause) => {
                tracing::debug!(volume = self.name, error = line(&*cause), "sizes unknown");
            }
        }
    }

    /// The kernel's device, served or not.
    fn device(&self) -> Option<PathBuf> {
        let live = self.live.as_ref().map(|live| live.device.path());
        live.or_else(|| self.waiting.as_ref()?.path.clone())
    }

    fn show(&self) {
        // Nobody watching is no fault: the registry holds a receiver as long as it routes to us.
        self.view.send_replace(self.view());
    }

    fn view(&self) -> View {
        let record = self.record.as_ref();
        let live = self.live.as_ref();
        let waiting = self.waiting.as_ref();
        let pending = record.and_then(|record| record.pending.as_ref());
        let is_unsettled = matches!(pending, Some(Pending::Create { .. } | Pending::Remove));
        let standing = waiting.and_then(|waiting| waiting.entry.standing.as_ref());
        View {
            name: self.name.clone(),
            volume_id: record
                .map(|record| record.volume_id.clone())
                .filter(|id| !id.is_empty()),
            size_gib: record.map(|record| record.size_gib),
            device_bytes: self.sizes.map(|sizes| sizes.device),
            filesystem_bytes: self.sizes.and_then(|sizes| sizes.filesystem),
            taken: self.entry().and_then(|entry| entry.taken.clone()),
            pending: pending.map(|pending| match pending {
                Pending::Create { .. } => "creating".to_owned(),
                Pending::Remove => "removing".to_owned(),
                Pending::Extend { to_gib } => format!("extending to {to_gib} GiB"),
            }),
            volume_type: record.and_then(|record| record.volume_type.clone()),
            created_at: record.and_then(|record| record.created_at.clone()),
            created_by_us: record.is_some_and(|record| record.created_by_us),
            fstype: record.map(|record| record.fstype.as_str().to_owned()),
            state: match (live, &self.mountpoint) {
                (Some(_), Some(_)) => State::Mounted,
                (Some(_), None) => State::Attached,
                (None, _) if waiting.is_some() => State::Waiting,
                (None, _) if !self.left.is_empty() || is_unsettled => State::Cleaning,
                (None, _) => State::Detached,
            },
            read_only: match (live, standing) {
                (Some(live), _) => live.read_only,
                (None, Some(standing)) => standing.read_only,
                (None, None) => record.is_some_and(|record| record.read_only),
            },
            device: self.device(),
            target: live
                .map(|live| live.target.clone())
                .or_else(|| Some(standing?.target.clone())),
            portal: live
                .map(|live| live.portal.clone())
                .or_else(|| Some(standing?.portal.clone())),
            identity: live
                .map(|live| live.device.identity().to_string())
                .or_else(|| Some(standing?.unit.identity()?.to_string())),
            mountpoint: self.mountpoint.as_deref().map(|at| self.handed_out(at)),
            mounts: self.count(),
            held: self.held,
            last_error: self.last_error.clone(),
        }
    }
}

fn same_mode(name: &str, live: &Attached, read_only: bool) -> Result<(), Error> {
    if live.read_only == read_only {
        return Ok(());
    }
    let mode = if live.read_only {
        "read-only"
    } else {
        "read-write"
    };
    Err(Error::OtherMode {
        name: name.to_owned(),
        mode,
    })
}

fn marks_of(volume: &Volume) -> Marks {
    Marks {
        created_by_us: volume.metadata.contains_key(CREATED_BY),
        formatted: volume.metadata.contains_key(FORMATTED),
    }
}
