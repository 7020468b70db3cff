//! Attaching and detaching, by hand or for a mount, and what failed undos left.
//!
//! Invariant: nothing new is attached while something of an earlier attachment is left: Cinder
//! would take it for a second one.

use tokio::time::Instant;

use super::{RETRY_INTERVAL, Worker, marks_of, same_mode};
use crate::cinder::Volume;
use crate::volume::attachment::{self, Failure, Left};
use crate::volume::error::Error;
use crate::volume::platform::Release;
use crate::volume::recover;
use crate::volume::request::{AttachRequest, StaticTarget, View};
use crate::volume::takeover::{self, Wish};

const COUNTED_REMEDY: &str =
    "stop the containers first, or use --force, which still asks the kernel";

impl Worker {
    pub(super) async fn attach(
        &mut self,
        volume: Option<Box<Volume>>,
        request: AttachRequest,
    ) -> Result<View, Error> {
        self.settle_volume().await?;
        if self.record.is_none()
            && let Some(volume) = volume
        {
            self.record = Some(self.record_of(&volume));
        }
        let attached = self.ensure_attached(request).await;
        if attached.is_err() {
            self.forget_unstored();
        }
        attached?;
        self.held = true;
        self.again_at = None;
        self.note().await;
        self.measure().await;
        Ok(self.view())
    }

    pub(super) async fn attach_static(&mut self, target: StaticTarget) -> Result<View, Error> {
        self.take_over_now().await?;
        if let Some(live) = &self.live {
            same_mode(&self.name, live, target.read_only)?;
        } else {
            self.settle_left().await?;
            let attached = attachment::attach_static(&self.cx, target).await;
            self.live = Some(attached.map_err(|failure| self.keep(failure))?);
        }
        self.held = true;
        self.again_at = None;
        self.note().await;
        self.measure().await;
        Ok(self.view())
    }

    pub(super) async fn detach(&mut self, force: bool) -> Result<(), Error> {
        if self.waiting.is_some() {
            if self.count() > 0 && !force {
                return Err(self.counted(COUNTED_REMEDY));
            }
            match self.take_over_now().await {
                Ok(()) if self.live.is_none() => return self.settle_left().await,
                Ok(()) => {}
                Err(error) if !force => return Err(error),
                Err(_) => return self.give_up_waiting().await,
            }
        }
        if self.live.is_none() {
            if self.left.is_empty() {
                return Err(Error::Invalid {
                    what: format!(
                        "{} is not attached here; 'cinder-nbd list' shows what is",
                        self.name
                    ),
                });
            }
            return self.settle_left().await;
        }
        if self.count() > 0 && !force {
            return Err(self.counted(COUNTED_REMEDY));
        }
        let held = std::mem::replace(&mut self.held, false);
        let how = if force {
            Release::LoseUnwritten
        } else {
            Release::Clean
        };
        let result = self.release(how).await;
        if self.live.is_some() {
            // Nothing was lost by asking: it stays what it was.
            self.held = held;
            self.note().await;
        } else {
            self.counts.clear();
        }
        result
    }

    pub(super) async fn ensure_attached(&mut self, request: AttachRequest) -> Result<(), Error> {
        self.take_over_now().await?;
        if let Some(live) = &self.live {
            return same_mode(&self.name, live, request.read_only);
        }
        self.settle_left().await?;
        let asked = self
            .record
            .as_ref()
            .map_or(&self.name, |record| &record.volume_id)
            .clone();
        let found = self.find(&asked).await?;
        let mut volume = found.ok_or_else(|| Error::NoSuchVolume {
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
        let told = self.record.as_ref().and_then(|record| record.elsewhere);
        let elsewhere = request.elsewhere.or(told);
        let wish = Wish {
            read_only: request.read_only,
            raw: request.raw,
            elsewhere: elsewhere.unwrap_or(self.cx.settings.elsewhere),
        };
        let room = takeover::find_room(&self.cx, &self.name, &mut volume, wish).await?;
        self.marks = marks_of(&volume);
        match &mut self.record {
            // Somebody may have made it larger.
            Some(record) => record.size_gib = volume.size,
            None => self.record = Some(self.record_of(&volume)),
        }
        let (cx, name) = (&self.cx, &self.name);
        let attached = attachment::attach_volume(cx, name, &volume, room, request.read_only).await;
        self.live = Some(attached.map_err(|failure| self.keep(failure))?);
        Ok(())
    }

    pub(super) async fn settle_left(&mut self) -> Result<(), Error> {
        while let Some(entry) = self.left.pop() {
            let settled = if self.must_reclaim {
                recover::reclaim(&self.cx, entry).await
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
    pub(super) fn keep(&mut self, failure: Failure) -> Error {
        match failure.left {
            Left::Nothing => return failure.error,
            Left::Entry(entry) => self.left.push(entry),
            Left::Attached(attached) => self.live = Some(attached),
        }
        self.again_at = Some(Instant::now() + RETRY_INTERVAL);
        failure.error
    }

    /// A record that was only known for the time of an attachment goes with it.
    pub(super) fn forget_unstored(&mut self) {
        if !self.is_stored && self.live.is_none() {
            self.record = None;
        }
    }
}
