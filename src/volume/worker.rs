//! The owner of one volume: it does what is asked of the volume one thing after the other, and keeps its promises
//! (undo what is left, take down what nobody wants) in between.
//!
//! Invariants:
//! 1. All state of a volume is changed here and nowhere else; others see `View`s.
//! 2. A mount is taken down only when the count is at zero *and* the kernel knows no other user. Counts are a hint:
//!    `docker cp` sends a second Mount and Unmount with the same ID, and a crashed engine sends no Unmount at all.
//! 3. mkfs runs only on a device that was proved blank, of a volume that a cinder-nbd created (our record and the
//!    volume's metadata both say so) and never formatted.
//! 4. A caller that hangs up during a mount has not mounted: what was done is kept for a while, for its retry.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::attachment::{self, Attached, Context, Failure, Left};
use super::error::{Cause, Error, line};
use super::journal::{Entry, Formatted, Record};
use super::platform::Content;
use super::request::{CreateRequest, State, StaticTarget, View, parse_mount_options};
use super::{CREATED_BY, FORMATTED};
use crate::cinder::{NewVolume, Volume};

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What can be asked of a volume.
#[derive(Debug)]
pub(crate) enum Command {
    Create(CreateRequest, Reply<View>),
    Remove(Reply<()>),
    Attach {
        volume: Option<Box<Volume>>,
        read_only: bool,
        reply: Reply<View>,
    },
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
    },
}

impl Command {
    /// Answers without doing it.
    pub(crate) fn refuse(self, error: Error) {
        // A caller that has gone needs no answer.
        match self {
            Self::Create(_, reply) | Self::Attach { reply, .. } | Self::AttachStatic(_, reply) => {
                drop(reply.send(Err(error)));
            }
            Self::Remove(reply) | Self::Detach { reply, .. } | Self::Unmount { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Self::Mount { reply, .. } => drop(reply.send(Err(error))),
            Self::Stop { .. } => {}
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
    /// What Cinder's metadata said when the volume was attached.
    marks: Marks,
    mountpoint: Option<PathBuf>,
    counts: BTreeMap<String, u32>,
    held: bool,
    /// Attachments still to be taken out of Cinder.
    left: Vec<Entry>,
    /// The first start finds what a dead daemon left: its device and mount go before anything else.
    must_reclaim: bool,
    /// When to look again at what could not be taken down.
    again_at: Option<Instant>,
    last_error: Option<String>,
    view: watch::Sender<View>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    created_by_us: bool,
    formatted: bool,
}

/// Between two attempts at an undo or a teardown. Chosen freely: short enough to help, long enough not to hammer a
/// cloud that is down.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How long a mount is kept for a caller that hung up. Docker gives up after 120 s, and people try again at once.
const ABANDONED_INTERVAL: Duration = Duration::from_mins(5);
/// Between two looks at a busy volume while the daemon stops.
const STOP_INTERVAL: Duration = Duration::from_millis(500);
/// For the write-back of a busy volume when the daemon stops.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

impl Worker {
    /// A volume with what is on the disk about it.
    pub(crate) fn new(
        cx: Arc<Context>,
        name: String,
        record: Option<Record>,
        left: Vec<Entry>,
    ) -> (Self, watch::Receiver<View>) {
        let is_stored = record.is_some();
        let must_reclaim = !left.is_empty();
        let (view, watcher) = watch::channel(View::default());
        let worker = Self {
            cx,
            name,
            record,
            is_stored,
            live: None,
            marks: Marks::default(),
            mountpoint: None,
            counts: BTreeMap::new(),
            held: false,
            left,
            must_reclaim,
            again_at: must_reclaim.then(Instant::now),
            last_error: None,
            view,
        };
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
            let command = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => Some(command),
                    None => break,
                },
                () = timer => None,
            };
            let is_command = command.is_some();
            if let Some(command) = command {
                Box::pin(self.apply(command)).await;
            } else {
                self.again_at = None;
                Box::pin(self.tidy()).await;
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
        match command {
            Command::Create(request, reply) => {
                let result = self.create(request).await;
                self.answer("create", reply, result);
            }
            Command::Remove(reply) => {
                let result = self.remove().await;
                self.answer("remove", reply, result);
            }
            Command::Attach {
                volume,
                read_only,
                reply,
            } => {
                let result = self.attach(volume, read_only).await;
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
                    self.again_at = Some(Instant::now() + ABANDONED_INTERVAL);
                }
            }
            Command::Unmount { id, reply } => {
                let stays = self.unmount(&id).await.err().map(|error| line(&error));
                // The engine never asks twice, so the asking again is ours, and the answer is "done".
                self.answer("unmount", reply, Ok(()));
                if let Some(why) = stays {
                    tracing::warn!(volume = self.name, why, "stays for now");
                    self.last_error = Some(why);
                    self.again_at = Some(Instant::now() + RETRY_INTERVAL);
                }
            }
            Command::Stop { deadline } => self.stop(deadline).await,
        }
    }

    /// Sends the answer and keeps its error; false when nobody waits for it.
    fn answer<T>(&mut self, verb: &str, reply: Reply<T>, result: Result<T, Error>) -> bool {
        match &result {
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

    async fn create(&mut self, request: CreateRequest) -> Result<View, Error> {
        request.check()?;
        if self.record.is_some() && self.is_stored {
            // Docker's retry of a call whose answer it did not see.
            return Ok(self.view());
        }
        let existing = match &request.volume_id {
            Some(id) => {
                let found = self.find(id).await?;
                Some(found.ok_or_else(|| Error::NoSuchVolume { name: id.clone() })?)
            }
            None => self.find(&self.name).await?,
        };
        let volume = match existing {
            Some(volume) => volume,
            None => self.create_in_cloud(&request).await?,
        };
        let mut record = self.record_of(&volume);
        record.fstype = request.fstype.unwrap_or(record.fstype);
        record.mount_options = request.mount_options.unwrap_or_default();
        record.read_only = request.read_only;
        self.cx.store.save_record(&record).await?;
        self.record = Some(record);
        self.is_stored = true;
        Ok(self.view())
    }

    async fn create_in_cloud(&self, request: &CreateRequest) -> Result<Volume, Error> {
        let mark = (CREATED_BY.to_owned(), self.cx.settings.host.clone());
        let new = NewVolume {
            name: self.name.clone(),
            size: request
                .size
                .map_or(self.cx.settings.default_size, super::SizeGib::get),
            volume_type: request.volume_type.clone(),
            availability_zone: request.availability_zone.clone(),
            description: request.description.clone(),
            snapshot_id: request.snapshot_id.clone(),
            source_volid: request.source_volid.clone(),
            image: request.image.clone(),
            metadata: BTreeMap::from([mark]),
        };
        let created = self.cx.cloud.create(new).await;
        created.map_err(|cause| Error::step(format!("creating {} in Cinder", self.name), cause))
    }

    async fn remove(&mut self) -> Result<(), Error> {
        if self.count() > 0 {
            return Err(self.counted("unmount it first"));
        }
        if self.held {
            return Err(Error::InUse {
                name: self.name.clone(),
                by: "it was attached by hand".to_owned(),
                remedy: "detach it first",
            });
        }
        self.release().await?;
        self.settle_left().await?;
        let record = if let Some(record) = self.record.clone() {
            record
        } else {
            let found = self.find(&self.name).await?;
            let volume = found.ok_or_else(|| Error::NoSuchVolume {
                name: self.name.clone(),
            })?;
            self.record_of(&volume)
        };
        if record.created_by_us {
            let deleted = self.cx.cloud.delete(&record.volume_id).await;
            deleted
                .map_err(|cause| Error::step(format!("deleting {} in Cinder", self.name), cause))?;
        } else {
            tracing::info!(
                volume = self.name,
                id = record.volume_id,
                "forgotten, not deleted: not created by us"
            );
        }
        self.cx.store.forget_record(&self.name).await?;
        self.record = None;
        self.is_stored = false;
        Ok(())
    }

    async fn attach(
        &mut self,
        volume: Option<Box<Volume>>,
        read_only: bool,
    ) -> Result<View, Error> {
        if self.record.is_none()
            && let Some(volume) = volume
        {
            self.record = Some(self.record_of(&volume));
        }
        let attached = self.ensure_attached(read_only).await;
        if attached.is_err() {
            self.forget_unstored();
        }
        attached?;
        self.held = true;
        self.again_at = None;
        Ok(self.view())
    }

    async fn attach_static(&mut self, target: StaticTarget) -> Result<View, Error> {
        if let Some(live) = &self.live {
            same_mode(&self.name, live, target.read_only)?;
        } else {
            self.settle_left().await?;
            let attached = attachment::attach_static(&self.cx, target).await;
            self.live = Some(attached.map_err(|failure| self.keep(failure))?);
        }
        self.held = true;
        self.again_at = None;
        Ok(self.view())
    }

    async fn detach(&mut self, force: bool) -> Result<(), Error> {
        if self.live.is_none() {
            if self.left.is_empty() {
                return Err(Error::Invalid {
                    what: format!("{} is not attached here", self.name),
                });
            }
            return self.settle_left().await;
        }
        if self.count() > 0 && !force {
            return Err(self.counted(
                "stop the containers first, or use --force, which still asks the kernel",
            ));
        }
        let held = std::mem::replace(&mut self.held, false);
        let result = self.release().await;
        if self.live.is_some() {
            // Nothing was lost by asking: it stays what it was.
            self.held = held;
        } else {
            self.counts.clear();
        }
        result
    }

    async fn mount(&mut self, id: &str) -> Result<PathBuf, Error> {
        self.again_at = None;
        if let Some(at) = self.standing_mount().await? {
            self.count_up(id);
            return Ok(at);
        }
        if self.record.is_none() {
            let found = self.find(&self.name).await?;
            let volume = found.ok_or_else(|| Error::NoSuchVolume {
                name: self.name.clone(),
            })?;
            let record = self.record_of(&volume);
            self.cx.store.save_record(&record).await?;
            self.record = Some(record);
        }
        if !self.is_stored
            && let Some(record) = &self.record
        {
            self.cx.store.save_record(record).await?;
            self.is_stored = true;
        }
        let read_only = self.record.as_ref().is_some_and(|record| record.read_only);
        self.ensure_attached(read_only).await?;
        match self.bring_up().await {
            Ok(at) => {
                self.count_up(id);
                Ok(at)
            }
            Err(error) => {
                if let Err(undo) = self.release().await {
                    tracing::warn!(
                        volume = self.name,
                        error = line(&undo),
                        "undoing a mount failed"
                    );
                    self.again_at = Some(Instant::now() + RETRY_INTERVAL);
                }
                Err(error)
            }
        }
    }

    async fn unmount(&mut self, id: &str) -> Result<(), Error> {
        self.discount(id);
        if self.count() > 0 || self.mountpoint.is_none() {
            return Ok(());
        }
        self.release().await
    }

    /// Everything of this volume off this host before the deadline. Who is still busy then is flushed and cut off:
    /// this process is the path to the data, so the device ends with it in any case. Ended in order, all that was
    /// written is on the target, and another host may attach.
    async fn stop(&mut self, deadline: Instant) {
        self.counts.clear();
        self.held = false;
        while let Err(error) = self.release().await {
            if self.live.is_none() {
                tracing::warn!(
                    volume = self.name,
                    error = line(&error),
                    "left for the next start"
                );
                break;
            }
            if Instant::now() + STOP_INTERVAL >= deadline {
                self.cut_off(&error).await;
                break;
            }
            tokio::time::sleep(STOP_INTERVAL).await;
        }
        if let Err(error) = self.settle_left().await {
            tracing::warn!(
                volume = self.name,
                error = line(&error),
                "left for the next start"
            );
        }
        self.again_at = None;
    }

    async fn cut_off(&mut self, why: &Error) {
        let Some(live) = self.live.take() else { return };
        tracing::error!(
            volume = self.name,
            device = %live.device.path().display(),
            why = line(why),
            "still in use while the daemon stops: flushed and cut off, later writes of its users fail"
        );
        if let Some(at) = self.mountpoint.take() {
            match tokio::time::timeout(SYNC_TIMEOUT, self.cx.platform.sync(&at)).await {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => tracing::error!(
                    volume = self.name,
                    error = line(&*cause),
                    "write-back failed"
                ),
                Err(_) => tracing::error!(volume = self.name, "write-back did not end in time"),
            }
            if let Err(cause) = self.cx.platform.unmount(&at, true).await {
                tracing::error!(
                    volume = self.name,
                    error = line(&*cause),
                    "lazy unmount failed"
                );
            }
        }
        if let Err(failure) = attachment::detach(&self.cx, live, true).await {
            let error = self.keep(failure);
            tracing::error!(
                volume = self.name,
                error = line(&error),
                "left for the next start"
            );
        }
    }

    /// The timer's work: what is left of earlier attempts.
    async fn tidy(&mut self) {
        let result = if self.live.is_some() && self.count() == 0 && !self.held {
            self.release().await
        } else {
            Ok(())
        };
        let result = match result {
            Ok(()) => self.settle_left().await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(
                volume = self.name,
                error = line(&error),
                "will be tried again"
            );
            self.last_error = Some(line(&error));
            self.again_at = Some(Instant::now() + RETRY_INTERVAL);
        }
    }

    /// Takes down, as far as nobody wants it: the mount when none is counted, the device when it is not held.
    /// On an error it stands as the error says, and may be tried again.
    async fn release(&mut self) -> Result<(), Error> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let path = live.device.path();
        if let Some(at) = self.mountpoint.clone() {
            let users = self.cx.platform.users(&path, &at).await;
            let users = users.map_err(|cause| {
                Error::step(format!("asking who uses {}", path.display()), cause)
            })?;
            if !users.is_empty() {
                return Err(Error::mounted(&self.name, &users));
            }
            let unmounted = self.cx.platform.unmount(&at, false).await;
            unmounted
                .map_err(|cause| Error::step(format!("unmounting {}", at.display()), cause))?;
            self.mountpoint = None;
            self.counts.clear();
        }
        if self.held {
            return Ok(());
        }
        let Some(live) = self.live.take() else {
            return Ok(());
        };
        let detached = attachment::detach(&self.cx, live, false).await;
        let result = detached.map_err(|failure| self.keep(failure));
        self.forget_unstored();
        result
    }

    /// A record that was only known for the time of an attachment goes with it.
    fn forget_unstored(&mut self) {
        if !self.is_stored && self.live.is_none() {
            self.record = None;
        }
    }

    async fn settle_left(&mut self) -> Result<(), Error> {
        while let Some(entry) = self.left.pop() {
            let settled = if self.must_reclaim {
                attachment::reclaim(&self.cx, entry).await
            } else {
                attachment::settle(&self.cx, entry).await
            };
            if let Err((entry, error)) = settled {
                self.left.push(entry);
                return Err(error);
            }
        }
        self.must_reclaim = false;
        Ok(())
    }

    /// Takes over what a failure left, for a later attempt.
    fn keep(&mut self, failure: Failure) -> Error {
        match failure.left {
            Left::Nothing => return failure.error,
            Left::Entry(entry) => self.left.push(entry),
            Left::Attached(attached) => self.live = Some(attached),
        }
        self.again_at = Some(Instant::now() + RETRY_INTERVAL);
        failure.error
    }

    async fn ensure_attached(&mut self, read_only: bool) -> Result<(), Error> {
        if let Some(live) = &self.live {
            return same_mode(&self.name, live, read_only);
        }
        self.settle_left().await?;
        let asked = self
            .record
            .as_ref()
            .map_or(&self.name, |record| &record.volume_id)
            .clone();
        let found = self.find(&asked).await?;
        let volume = found.ok_or_else(|| Error::NoSuchVolume {
            name: self.name.clone(),
        })?;
        if volume.encrypted {
            return Err(Error::Invalid {
                what: format!(
                    "{} is encrypted, which this release cannot open; use an unencrypted type",
                    self.name
                ),
            });
        }
        self.marks = marks_of(&volume);
        match &mut self.record {
            Some(record) => record.size_gib = volume.size,
            None => self.record = Some(self.record_of(&volume)),
        }
        let attached = attachment::attach_volume(&self.cx, &self.name, &volume.id, read_only).await;
        self.live = Some(attached.map_err(|failure| self.keep(failure))?);
        Ok(())
    }

    /// The mountpoint, if it is really mounted: somebody may have unmounted it by hand.
    async fn standing_mount(&mut self) -> Result<Option<PathBuf>, Error> {
        let (Some(live), Some(at)) = (&self.live, &self.mountpoint) else {
            return Ok(None);
        };
        let mounted = self.cx.platform.is_mounted(&live.device.path(), at).await;
        if mounted.map_err(|cause| Error::step(format!("looking at {}", at.display()), cause))? {
            return Ok(Some(at.clone()));
        }
        tracing::warn!(
            volume = self.name,
            "was unmounted by somebody else; mounting it again"
        );
        self.mountpoint = None;
        Ok(None)
    }

    /// From a device to a mounted filesystem.
    async fn bring_up(&mut self) -> Result<PathBuf, Error> {
        let record = self.record.clone().ok_or_else(|| Error::NoSuchVolume {
            name: self.name.clone(),
        })?;
        let Some(live) = &mut self.live else {
            return Err(Error::Invalid {
                what: format!("{} is not attached", record.name),
            });
        };
        let device = live.device.path();
        let at = self.cx.settings.mount_dir.join(&record.name);
        live.entry.mountpoint = Some(at.clone());
        let entry = live.entry.clone();
        self.cx.store.save_entry(&entry).await?;
        let inspected = self.cx.platform.inspect(&device).await;
        let content = inspected.map_err(|cause| step("looking at what is on", &device, cause))?;
        let fresh = match content {
            Content::Filesystem(found) if found == record.fstype.as_str() => false,
            Content::Filesystem(found) => {
                let remedy = "it was asked for as another filesystem and is left alone; use 'cinder-nbd attach'";
                return Err(Error::NotMountable {
                    device,
                    found: format!("a {found} filesystem"),
                    remedy,
                });
            }
            Content::Other(found) => {
                let remedy =
                    "it is neither mounted nor formatted; look at it with 'cinder-nbd attach'";
                return Err(Error::NotMountable {
                    device,
                    found,
                    remedy,
                });
            }
            Content::Blank => {
                self.may_format(&record)?;
                self.format(record.clone(), &device).await?;
                true
            }
        };
        let mut options = parse_mount_options(&record.mount_options)?;
        if record.read_only {
            options = options.read_only();
        }
        let mounted = self
            .cx
            .platform
            .mount(&device, &at, record.fstype, options, fresh)
            .await;
        mounted.map_err(|cause| step("mounting", &device, cause))?;
        if !fresh && record.formatted != Formatted::Done {
            self.remember(Formatted::Done).await?;
        }
        self.mountpoint = Some(at.clone());
        Ok(at)
    }

    /// Whether this blank volume is ours to format.
    fn may_format(&self, record: &Record) -> Result<(), Error> {
        const BY_HAND: &str = "if it shall be, make a filesystem by hand: 'cinder-nbd attach', mkfs.ext4, 'cinder-nbd detach'";
        let reason = if record.read_only || self.live.as_ref().is_some_and(|live| live.read_only) {
            "it is read-only"
        } else if record.formatted == Formatted::Done || self.marks.formatted {
            "it had a filesystem before; its data is lost, or this is another volume"
        } else if !record.created_by_us || !self.marks.created_by_us {
            "it was not created by cinder-nbd"
        } else {
            return Ok(());
        };
        Err(Error::NotOurs {
            name: self.name.clone(),
            reason,
            remedy: BY_HAND,
        })
    }

    async fn format(&mut self, record: Record, device: &std::path::Path) -> Result<(), Error> {
        self.remember(Formatted::Begun).await?;
        tracing::info!(
            volume = self.name,
            fstype = record.fstype.as_str(),
            "making a filesystem"
        );
        let formatted = self.cx.platform.format(device, record.fstype).await;
        formatted.map_err(|cause| step("making a filesystem on", device, cause))?;
        self.marks.formatted = true;
        self.remember(Formatted::Done).await?;
        // For other hosts; they would find the filesystem all the same.
        let marked = self
            .cx
            .cloud
            .set_metadata(&record.volume_id, FORMATTED, record.fstype.as_str())
            .await;
        if let Err(cause) = marked {
            tracing::warn!(
                volume = self.name,
                error = line(&*cause),
                "not marked as formatted in Cinder"
            );
        }
        Ok(())
    }

    async fn remember(&mut self, formatted: Formatted) -> Result<(), Error> {
        let Some(record) = &mut self.record else {
            return Ok(());
        };
        record.formatted = formatted;
        self.cx.store.save_record(record).await
    }

    async fn find(&self, asked: &str) -> Result<Option<Volume>, Error> {
        let found = self.cx.cloud.find(asked).await;
        found.map_err(|cause| Error::step(format!("asking Cinder for {asked}"), cause))
    }

    /// A record for a volume that had none.
    fn record_of(&self, volume: &Volume) -> Record {
        let marks = marks_of(volume);
        Record {
            name: self.name.clone(),
            volume_id: volume.id.clone(),
            size_gib: volume.size,
            volume_type: volume.volume_type.clone(),
            created_at: volume.created_at.clone(),
            created_by_us: marks.created_by_us,
            fstype: self.cx.settings.default_fstype,
            mount_options: String::new(),
            read_only: false,
            formatted: if marks.formatted {
                Formatted::Done
            } else {
                Formatted::No
            },
        }
    }

    fn count_up(&mut self, id: &str) {
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

    fn show(&self) {
        // Nobody watching is no fault: the registry holds a receiver as long as it routes to us.
        self.view.send_replace(self.view());
    }

    fn view(&self) -> View {
        let record = self.record.as_ref();
        let live = self.live.as_ref();
        View {
            name: self.name.clone(),
            volume_id: record.map(|record| record.volume_id.clone()),
            size_gib: record.map(|record| record.size_gib),
            volume_type: record.and_then(|record| record.volume_type.clone()),
            created_at: record.and_then(|record| record.created_at.clone()),
            created_by_us: record.is_some_and(|record| record.created_by_us),
            fstype: record.map(|record| record.fstype.as_str().to_owned()),
            state: match (live, &self.mountpoint) {
                (Some(_), Some(_)) => State::Mounted,
                (Some(_), None) => State::Attached,
                (None, _) if !self.left.is_empty() => State::Cleaning,
                (None, _) => State::Detached,
            },
            read_only: live.map_or_else(
                || record.is_some_and(|record| record.read_only),
                |live| live.read_only,
            ),
            device: live.map(|live| live.device.path()),
            target: live.map(|live| live.target.clone()),
            portal: live.map(|live| live.portal.clone()),
            identity: live.map(|live| live.device.identity()),
            mountpoint: self.mountpoint.clone(),
            mounts: self.count(),
            held: self.held,
            last_error: self.last_error.clone(),
        }
    }
}

fn step(what: &str, device: &std::path::Path, cause: Cause) -> Error {
    Error::step(format!("{what} {}", device.display()), cause)
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
