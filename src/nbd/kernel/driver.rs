//! The kernel's driver itself: is it there, may we use it, and what to do if not.
//!
//! A room of its own because a missing driver has many faces, and each wants another remedy.

use std::process::{Command, Stdio};

use crate::nbd::Error;
use crate::sys::netlink::{self, NbdFamily};

use super::refusal;

/// Is there a kernel to speak to? Tries to load the module. Blocks for as long as that takes.
pub(super) fn probe() -> Result<(), Error> {
    let family = match NbdFamily::open() {
        Err(netlink::Error::NoFamily) => {
            load_module();
            NbdFamily::open()
        }
        family => family,
    };
    family.map_err(|error| refusal("be asked for its nbd driver", error))?;
    if netlink::is_permitted() {
        Ok(())
    } else {
        Err(Error::NotPermitted)
    }
}

/// `modprobe nbd`; whether it helped is seen at the next look for the driver.
fn load_module() {
    let outcome = Command::new("modprobe")
        .arg("nbd")
        // It is in a system directory, which the path of a service or of `su` may lack.
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match outcome {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::debug!("modprobe nbd: {status}"),
        Err(error) => tracing::debug!("modprobe nbd: {error}"),
    }
}
