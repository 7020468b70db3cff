//! A filesystem by explicit request, once: for what is never formatted by itself.
//!
//! ```text
//!  attach (nobody else has it) --> what is on it? -- blank -----------------------------+--> mkfs --> as it was before
//!                                      | something: only with its name in the request   |
//!                                      +--> record "begun" --> zeroes, wipefs --> blank? +
//! ```
//!
//! Invariants:
//! 1. What is destroyed was named by whoever asks, in the words in which it was found: a volume that has changed since is
//!    refused.
//! 2. mkfs runs on what is proved blank, here as well.
//! 3. A device that is mounted or counted is refused before anything is asked of it.

use std::path::Path;

use super::Worker;
use crate::volume::error::{Cause, Error, line};
use crate::volume::journal::{Formatted, Record};
use crate::volume::layout::{Fstype, MkfsOptions};
use crate::volume::platform::Release;
use crate::volume::request::{AttachRequest, Elsewhere, FormatRequest, View};

const IN_USE_REMEDY: &str = "stop what uses it first; nothing was changed";
const DESTROY_REMEDY: &str =
    "nothing was changed; to lose that, repeat with --destroy and these words";
const STAYS_REMEDY: &str = "it could not be erased; nothing was formatted";

impl Worker {
    pub(super) async fn format_once(&mut self, wanted: FormatRequest) -> Result<View, Error> {
        let volume = self.find_settled().await?;
        if self.count() > 0 {
            return Err(self.counted(IN_USE_REMEDY));
        }
        if let Some(at) = self.standing_mount().await? {
            return Err(Error::InUse {
                name: self.name.clone(),
                by: format!("it is mounted at {}", at.display()),
                remedy: IN_USE_REMEDY,
            });
        }
        let was_stored = self.is_stored;
        if self.record.is_none() {
            self.record = Some(self.record_of(&volume));
        }
        let formatted = async {
            let request = AttachRequest {
                elsewhere: Some(Elsewhere::Refuse),
                ..AttachRequest::default()
            };
            self.ensure_attached(request).await?;
            self.make_once(&wanted).await
        };
        let result = formatted.await;
        if let Err(error) = self.release(Release::Clean).await {
            let error = line(&error);
            tracing::warn!(volume = self.name, error, "formatted, and not detached yet");
        }
        let view = self.view();
        if !was_stored && self.is_stored {
            // It was written down for this only: Docker lists what has a record.
            self.cx.out.forget_record(&self.name).await?;
            self.is_stored = false;
        }
        self.forget_unstored();
        result.map(|()| view)
    }

    async fn make_once(&mut self, request: &FormatRequest) -> Result<(), Error> {
        let (Some(live), Some(record)) = (&self.live, self.record.clone()) else {
            return Err(Error::NoSuchVolume {
                name: self.name.clone(),
            });
        };
        if live.read_only {
            return Err(Error::OtherMode {
                name: self.name.clone(),
                mode: "read-only",
            });
        }
        let device = live.device.path();
        let found = self.found_on(&device).await?;
        let is_named = |found: &str| request.destroy.as_deref() == Some(found);
        if let Some(found) = &found
            && !is_named(found)
        {
            return Err(not_mountable(&device, found.clone(), DESTROY_REMEDY));
        }
        let fstype = request.fstype.unwrap_or(record.fstype);
        let record = Record {
            fstype,
            mkfs_options: options_for(fstype, request, &record)?,
            formatted: Formatted::Begun,
            ..record
        };
        self.keep_record(record.clone()).await?;
        if let Some(found) = found {
            tracing::warn!(volume = self.name, found, "erased, as it was asked for");
            let erased = self.cx.out.erase(&device).await;
            erased.map_err(|cause| Error::step(format!("erasing {}", device.display()), cause))?;
            if let Some(found) = self.found_on(&device).await? {
                return Err(not_mountable(&device, found, STAYS_REMEDY));
            }
        }
        self.format(record, &device).await?;
        self.remember(Formatted::Done).await
    }

    /// What is on it, in the words of an error; none when it is proved blank.
    async fn found_on(&self, device: &Path) -> Result<Option<String>, Error> {
        let looking = |cause: Cause| {
            Error::step(format!("looking at what is on {}", device.display()), cause)
        };
        let content = self.cx.out.inspect(device).await.map_err(looking)?;
        Ok(content.in_words())
    }
}

/// What mkfs is told: what was asked for now, or for this filesystem when the volume was created.
fn options_for(
    fstype: Fstype,
    request: &FormatRequest,
    record: &Record,
) -> Result<MkfsOptions, Error> {
    match &request.mkfs_options {
        Some(text) => MkfsOptions::parse(text, fstype),
        None if fstype == record.fstype => Ok(record.mkfs_options.clone()),
        None => Ok(MkfsOptions::default()),
    }
}

fn not_mountable(device: &Path, found: String, remedy: &'static str) -> Error {
    Error::NotMountable {
        device: device.to_owned(),
        found,
        remedy,
    }
}
