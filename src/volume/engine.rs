//! The engine: the owner of the set of volumes, and the handle by which faces ask for things.
//!
//! ```text
//!  docker, control socket --Engine--> registry --+--> worker of v1   (one task each: what is asked of one
//!                                                +--> worker of v2    volume never waits for another)
//! ```
//!
//! Invariants:
//! 1. The registry alone routes to workers and lets them go; a worker with nothing to remember is
//!    let go.
//! 2. The registry never awaits a volume: listing answers from what the workers last showed.
//! 3. One daemon at a time works in a state directory: a lock is held for the engine's life.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::address::Addresses;
use super::cloud::Cloud;
use super::context::Context;
use super::doctor::{self, Finding};
use super::error::{Error, line};
use super::journal::{Entry, Record, Store};
use super::outside::Outside;
use super::platform::Platform;
use super::request::{
    AttachRequest, CreateRequest, FormatRequest, SizeGib, SnapshotRequest, State, StaticTarget,
    Status, Taken, View, VolumeName,
};
use super::worker::{Command, Finished, Reply, Worker};
use super::{CREATED_BY, Settings};
use crate::cinder::Volume;

/// A handle on the engine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    messages: mpsc::Sender<Message>,
    cx: Arc<Context>,
    started: Instant,
}

/// What becomes of the volumes when the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// All are taken off this host; those in use are flushed and cut off in the end.
    TakeOff,
    /// Those in use (mounted, attached by hand, open) are left to the kernel for the next daemon; the others are taken
    /// off.
    LeaveUsed,
}

/// The engine's task, to be stopped and awaited by whoever started it.
#[derive(Debug)]
pub struct Running {
    messages: mpsc::Sender<Message>,
    task: JoinHandle<()>,
    /// Held, not used: the lock goes with it.
    _lock: File,
}

#[derive(Debug)]
enum Message {
    Volume(String, Box<Command>),
    List(oneshot::Sender<Vec<View>>),
    Stop { deadline: Instant, parting: Parting },
}

/// Requests that may wait, of all volumes. Chosen freely: `docker compose up` of a large project
/// asks for dozens.
const MESSAGES_MAX: usize = 256;
/// Requests that may wait for one volume.
const COMMANDS_MAX: usize = 64;

impl Engine {
    /// Starts the engine: takes the lock, loads what is written down, and begins to serve again, or to
    /// remove, what the daemon before left.
    ///
    /// # Errors
    /// Another daemon holds the directory; a directory cannot be made or read.
    pub fn start(
        settings: Settings,
        cloud: Arc<dyn Cloud>,
        platform: Arc<dyn Platform>,
    ) -> Result<(Self, Running), Error> {
        let lock = lock(&settings)?;
        let cx = Arc::new(open(settings, cloud, platform)?);
        Self::begin(cx, lock)
    }

    /// As `start`, with somebody who looks on.
    #[cfg(test)]
    pub(crate) fn start_watched(
        settings: Settings,
        cloud: Arc<dyn Cloud>,
        platform: Arc<dyn Platform>,
        witness: Arc<dyn super::outside::Witness>,
    ) -> Result<(Self, Running), Error> {
        let lock = lock(&settings)?;
        let mut cx = open(settings, cloud, platform)?;
        cx.out = cx.out.watched(Some(witness));
        Self::begin(Arc::new(cx), lock)
    }

    fn begin(cx: Arc<Context>, lock: File) -> Result<(Self, Running), Error> {
        let (records, entries) = cx.out.load()?;
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        cx.out.keep_only(&ids);
        let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
        let mut registry = Registry::new(Arc::clone(&cx));
        registry.restore(records, entries);
        let task = tokio::spawn(registry.run(inbox));
        let engine = Self {
            messages: messages.clone(),
            cx,
            started: Instant::now(),
        };
        Ok((
            engine,
            Running {
                messages,
                task,
                _lock: lock,
            },
        ))
    }

    /// Creates a volume, or takes the one that has this name already.
    ///
    /// # Errors
    /// The name or the options cannot be; Cinder refused.
    pub async fn create(&self, name: &str, request: CreateRequest) -> Result<View, Error> {
        let name: VolumeName = name.parse()?;
        self.ask(name.as_str(), |reply| {
            Command::Create(Box::new(request), reply)
        })
        .await
    }

    /// Deletes a volume that a cinder-nbd created; forgets one that it did not.
    ///
    /// # Errors
    /// In use, absent, or Cinder refused.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let name: VolumeName = name.parse()?;
        self.ask(name.as_str(), Command::Remove).await
    }

    /// Attaches a volume by name or UUID and keeps it attached until `detach`.
    ///
    /// # Errors
    /// Any step failed; all before it was undone.
    pub async fn attach(&self, asked: &str, request: AttachRequest) -> Result<View, Error> {
        let (name, volume) = self.resolve(asked).await?;
        self.ask(&name, |reply| Command::Attach {
            volume,
            request,
            reply,
        })
        .await
    }

    /// Makes a volume larger, by name or UUID: in Cinder, and, if it is here, the device and the mounted filesystem.
    ///
    /// # Errors
    /// Smaller than it is, or a step failed; what Cinder has begun is gone on with.
    pub async fn extend(&self, asked: &str, to: SizeGib) -> Result<View, Error> {
        let (name, _) = self.resolve(asked).await?;
        self.ask(&name, |reply| Command::Extend(to, reply)).await
    }

    /// Makes a filesystem on a volume, by name or UUID, also where that is never done by itself.
    ///
    /// # Errors
    /// In use, here or elsewhere; there is something on it that the request does not name; a step failed.
    pub async fn format(&self, asked: &str, request: FormatRequest) -> Result<View, Error> {
        let (name, _) = self.resolve(asked).await?;
        self.ask(&name, |reply| Command::Format(request, reply))
            .await
    }

    /// Has Cinder take a snapshot of a volume, by name or UUID. Where it is mounted here, its filesystem is frozen until
    /// the snapshot is taken or the limit is over.
    ///
    /// # Errors
    /// A step failed, or nothing was frozen although that was asked for; the filesystem is thawed in any case.
    pub async fn snapshot(&self, asked: &str, request: SnapshotRequest) -> Result<Taken, Error> {
        let (name, _) = self.resolve(asked).await?;
        self.ask(&name, |reply| Command::Snapshot(request, reply))
            .await
    }

    /// Attaches a LUN that no cloud knows of.
    ///
    /// # Errors
    /// Any step failed; all before it was undone.
    pub async fn attach_static(&self, target: StaticTarget) -> Result<View, Error> {
        let name = target.name();
        self.ask(&name, |reply| Command::AttachStatic(target, reply))
            .await
    }

    /// Detaches by name, UUID or device. `force` overrides Docker's count, never the kernel.
    ///
    /// # Errors
    /// Not attached, in use, or a step failed.
    pub async fn detach(&self, asked: &str, force: bool) -> Result<(), Error> {
        let views = self.list().await?;
        let known = views.into_iter().find(|view| {
            view.name == asked
                || view.volume_id.as_deref() == Some(asked)
                || view.device.as_deref() == Some(Path::new(asked))
        });
        let Some(view) = known else {
            return Err(Error::Invalid {
                what: format!("{asked} is not attached here; 'cinder-nbd list' shows what is"),
            });
        };
        self.ask(&view.name, |reply| Command::Detach { force, reply })
            .await
    }

    /// Attaches, formats when proved allowed, mounts, and counts one mount for `id`.
    ///
    /// # Errors
    /// Any step failed; all before it was undone.
    ///
    /// # Cancel safety
    /// A caller that goes away has not mounted; what was done is kept a while for its retry.
    pub async fn mount(&self, name: &str, id: &str) -> Result<PathBuf, Error> {
        let name: VolumeName = name.parse()?;
        let id = id.to_owned();
        self.ask(name.as_str(), |reply| Command::Mount { id, reply })
            .await
    }

    /// Gives back one mount of `id`; the last one takes the volume off this host, now or when its
    /// users have left.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub async fn unmount(&self, name: &str, id: &str) -> Result<(), Error> {
        let name: VolumeName = name.parse()?;
        let id = id.to_owned();
        self.ask(name.as_str(), |reply| Command::Unmount { id, reply })
            .await
    }

    /// All that is known here, sorted by name. Asks nobody.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub async fn list(&self) -> Result<Vec<View>, Error> {
        let (reply, answer) = oneshot::channel();
        self.messages
            .send(Message::List(reply))
            .await
            .map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)
    }

    /// One volume: from what is known here, or else from Cinder.
    ///
    /// # Errors
    /// Absent, or unknown here while Cinder cannot be asked.
    pub async fn get(&self, name: &str) -> Result<View, Error> {
        if let Some(view) = self
            .list()
            .await?
            .into_iter()
            .find(|view| view.name == name)
        {
            return Ok(view);
        }
        let checked: VolumeName = name.parse()?;
        let volume = self.find(checked.as_str()).await?;
        let volume = volume.ok_or_else(|| Error::NoSuchVolume {
            name: name.to_owned(),
        })?;
        Ok(view_of(name, &volume))
    }

    /// What is left over of us, beside what the daemon itself goes on with; removed if that is wished.
    ///
    /// # Errors
    /// A directory of ours or the kernel cannot be asked.
    pub async fn doctor(&self, is_repaired: bool) -> Result<Vec<Finding>, Error> {
        doctor::examine(&self.cx, true, is_repaired).await
    }

    /// The daemon in figures.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub async fn status(&self) -> Result<Status, Error> {
        let views = self.list().await?;
        let kernel = match self.cx.out.probe().await {
            Ok(()) => "ready".to_owned(),
            Err(cause) => line(&*cause),
        };
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            host: self.cx.settings.host.clone(),
            initiator_name: self.cx.settings.initiator_name.clone(),
            cloud: self.cx.out.has_cloud(),
            kernel,
            volumes: views.len(),
            attached: views.iter().filter(|view| view.device.is_some()).count(),
            mounted: views
                .iter()
                .filter(|view| view.state == State::Mounted)
                .count(),
        })
    }

    /// Under which name a volume is, or will be, known: its own if it can be one, else its UUID.
    async fn resolve(&self, asked: &str) -> Result<(String, Option<Box<Volume>>), Error> {
        let views = self.list().await?;
        let known = |text: &str| {
            let mut views = views.iter();
            views.find(|view| view.name == text || view.volume_id.as_deref() == Some(text))
        };
        if let Some(view) = known(asked) {
            return Ok((view.name.clone(), None));
        }
        let volume = self.find(asked).await?;
        let volume = volume.ok_or_else(|| Error::NoSuchVolume {
            name: asked.to_owned(),
        })?;
        if let Some(view) = known(&volume.id) {
            return Ok((view.name.clone(), None));
        }
        let name = match &volume.name {
            Some(name) if name.parse::<VolumeName>().is_ok() && known(name).is_none() => {
                name.clone()
            }
            _ => volume.id.clone(),
        };
        Ok((name, Some(Box::new(volume))))
    }

    async fn find(&self, asked: &str) -> Result<Option<Volume>, Error> {
        if !self.cx.out.has_cloud() {
            return Err(Error::NoCloud);
        }
        self.cx.find_volume(asked, asked).await
    }

    async fn ask<T>(
        &self,
        name: &str,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Volume(name.to_owned(), Box::new(command(reply)));
        self.messages
            .send(message)
            .await
            .map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)?
    }
}

impl Running {
    /// As a kill ends it: nothing is undone, nothing is said.
    #[cfg(test)]
    pub(crate) async fn die(self) {
        self.task.abort();
        // Aborted, as it was just told.
        drop(self.task.await);
    }

    /// Takes the volumes off this host, or leaves those in use, and ends. Busy volumes that are to be
    /// taken off get `patience`; then they are flushed and cut off.
    pub async fn stop(self, patience: Duration, parting: Parting) {
        let Self {
            messages,
            mut task,
            _lock,
        } = self;
        let deadline = Instant::now() + patience;
        let stop = Message::Stop { deadline, parting };
        if messages.send(stop).await.is_err() {
            tracing::error!("the engine had ended before it was told to");
        }
        drop(messages);
        // What hangs in Cinder or in the kernel beyond that is in the journal, and the next start
        // undoes it.
        match tokio::time::timeout_at(deadline + STOP_MARGIN, &mut task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the engine ended badly"),
            Err(_) => {
                tracing::error!(
                    "not all volumes could be taken off in time; the next start does the rest"
                );
                task.abort();
            }
        }
    }
}

/// Beyond the deadline: the time to cut off (write-back 10 s) and to delete attachments.
const STOP_MARGIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Registry {
    cx: Arc<Context>,
    workers: BTreeMap<String, Post>,
    tasks: JoinSet<()>,
    finished: mpsc::Sender<Finished>,
    finishes: mpsc::Receiver<Finished>,
}

/// One worker as the registry sees it.
#[derive(Debug)]
struct Post {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    /// Commands routed and not yet finished.
    outstanding: usize,
    task: Id,
}

impl Registry {
    fn new(cx: Arc<Context>) -> Self {
        let (finished, finishes) = mpsc::channel(MESSAGES_MAX);
        Self {
            cx,
            workers: BTreeMap::new(),
            tasks: JoinSet::new(),
            finished,
            finishes,
        }
    }

    fn restore(&mut self, records: Vec<Record>, entries: Vec<Entry>) {
        let mut left: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for entry in entries {
            let plan = if entry.is_standing() {
                "is served again if the kernel still has its device"
            } else {
                "will be undone"
            };
            tracing::info!(volume = entry.volume, phase = ?entry.phase, "left of an earlier run; {plan}");
            left.entry(entry.volume.clone()).or_default().push(entry);
        }
        for record in records {
            let name = record.name.clone();
            let entries = left.remove(&name).unwrap_or_default();
            self.spawn(name, Some(record), entries);
        }
        for (name, entries) in left {
            self.spawn(name, None, entries);
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let told = loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(Message::Volume(name, command)) => self.route(name, *command),
                    // A caller that has gone needs no answer.
                    Some(Message::List(reply)) => drop(reply.send(self.views())),
                    Some(Message::Stop { deadline, parting }) => break Some((deadline, parting)),
                    None => break None,
                },
                Some(finished) = self.finishes.recv() => self.finish(&finished),
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.bury(ended),
            }
        };
        // Whoever still waits in the inbox is answered by its closing: `Stopping`.
        drop(inbox);
        for post in std::mem::take(&mut self.workers).into_values() {
            if let Some((deadline, parting)) = told {
                // There is always a place left for it, so this fails only for a worker that has
                // ended.
                if let Err(error) = post.commands.try_send(Command::Stop { deadline, parting }) {
                    tracing::warn!(%error, "a volume could not be told to stop");
                }
            }
        }
        loop {
            tokio::select! {
                Some(_) = self.finishes.recv() => {}
                ended = self.tasks.join_next_with_id() => match ended {
                    Some(ended) => self.bury(ended),
                    None => break,
                },
            }
        }
    }

    fn route(&mut self, name: String, command: Command) {
        if !self.workers.contains_key(&name) {
            self.spawn(name.clone(), None, Vec::new());
        }
        let Some(post) = self.workers.get_mut(&name) else {
            return;
        };
        if post.outstanding >= COMMANDS_MAX {
            command.refuse(Error::Overloaded { name });
            return;
        }
        match post.commands.try_send(command) {
            Ok(()) => post.outstanding += 1,
            Err(
                mpsc::error::TrySendError::Full(command)
                | mpsc::error::TrySendError::Closed(command),
            ) => {
                command.refuse(Error::Overloaded { name });
            }
        }
    }

    fn spawn(&mut self, name: String, record: Option<Record>, left: Vec<Entry>) {
        let (worker, view) = Worker::new(Arc::clone(&self.cx), name.clone(), record, left);
        // One place more than commands are let in: for the stop.
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX + 1);
        let task = self
            .tasks
            .spawn(worker.run(inbox, self.finished.clone()))
            .id();
        self.workers.insert(
            name,
            Post {
                commands,
                view,
                outstanding: 0,
                task,
            },
        );
    }

    /// A worker that remembers nothing and has nothing to do is let go. Only we send to it, so one
    /// without an outstanding command is idle and stays so.
    fn finish(&mut self, finished: &Finished) {
        let Some(post) = self.workers.get_mut(&finished.name) else {
            return;
        };
        if finished.is_command {
            post.outstanding = post.outstanding.saturating_sub(1);
        }
        if post.outstanding == 0 && !is_worth_showing(&post.view.borrow()) {
            self.workers.remove(&finished.name);
        }
    }

    fn bury(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        if let Err(error) = ended {
            // Its journal entry stays; the next start undoes it.
            tracing::error!(%error, "the owner of a volume ended badly; restart the daemon to clean up");
        }
        self.workers.retain(|_, post| post.task != id);
    }

    fn views(&self) -> Vec<View> {
        let views = self.workers.values().map(|post| post.view.borrow().clone());
        views.filter(is_worth_showing).collect()
    }
}

/// Whether anything is known of the volume: a worker that was only asked in vain knows nothing.
fn is_worth_showing(view: &View) -> bool {
    view.volume_id.is_some() || view.device.is_some() || view.state != State::Detached
}

/// A volume of the cloud of which nothing is known here.
fn view_of(name: &str, volume: &Volume) -> View {
    View {
        name: name.to_owned(),
        volume_id: Some(volume.id.clone()),
        size_gib: Some(volume.size),
        volume_type: volume.volume_type.clone(),
        created_at: volume.created_at.clone(),
        created_by_us: volume.metadata.contains_key(CREATED_BY),
        ..View::default()
    }
}

/// One daemon, or one doctor, at a time.
pub(super) fn lock(settings: &Settings) -> Result<File, Error> {
    make_directory(&settings.runtime_dir)?;
    make_directory(&settings.state_dir)?;
    take_lock(&settings.state_dir)
}

/// The door, and who we are.
pub(super) fn open(
    settings: Settings,
    cloud: Arc<dyn Cloud>,
    platform: Arc<dyn Platform>,
) -> Result<Context, Error> {
    let store = Store::open(&settings.state_dir)?;
    let installation = Store::installation(&settings.state_dir)?;
    let addresses = Addresses::open(&settings.runtime_dir)?;
    Ok(Context {
        settings,
        out: Outside::new(cloud, platform, store, addresses),
        installation,
    })
}

fn make_directory(path: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Error::file("making the directory", path, error))
}

fn take_lock(state_dir: &Path) -> Result<File, Error> {
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Error::file("opening", &path, error))?;
    let deadline = std::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if std::time::Instant::now() < deadline => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::SecondDaemon { path }),
            Err(error) => return Err(Error::file("locking", path, error.into())),
        }
    }
}

/// A predecessor that was killed may have a child between its fork and its exec, which holds the lock a moment longer.
/// Chosen freely, any value above the time of an exec works.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
