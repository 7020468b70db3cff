//! The kernel's driver itself: is it there, may we use it, and what to do if not.
//!
//! A room of its own because a missing driver has many faces, and each wants another remedy.
//! Source: `drivers/block/nbd.c` (module parameters, `nbd_genl_connect`, `netnsok`), modprobe(8), capabilities(7).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

use rustix::thread::CapabilitySet;

use crate::nbd::Error;
use crate::sys::netlink::{self, NbdFamily};

use super::refusal;

/// A module without partitions is told of once.
static TOLD: Once = Once::new();

/// Is there a kernel to speak to? Tries to load the module. Blocks for as long as that takes.
pub(super) fn probe() -> Result<(), Error> {
    let family = match NbdFamily::open() {
        Err(netlink::Error::NoFamily) => {
            load_module();
            NbdFamily::open()
        }
        family => family,
    };
    match family {
        Ok(_) => {}
        Err(netlink::Error::NoFamily) => return Err(why_absent(&Seen::here())),
        Err(error) => return Err(refusal("be asked for its nbd driver", error)),
    }
    if !netlink::is_permitted() {
        return Err(Error::NotPermitted);
    }
    if parameter("max_part").is_some_and(|parts| parts == 0) {
        TOLD.call_once(|| {
            tracing::warn!(
                "the nbd module was loaded with max_part=0: partitions of volumes do not appear"
            );
        });
    }
    Ok(())
}

/// The driver's refusal of a new device, with the remedy where there is one.
pub(super) fn explained(refused: Error) -> Error {
    let Error::Netlink {
        doing,
        source: netlink::Error::Refused(source),
    } = refused
    else {
        return refused;
    };
    // EBUSY: one that was free a moment ago; ENOSPC, EEXIST: no number is left for another one.
    let none_free = [libc::EBUSY, libc::ENOSPC, libc::EEXIST].map(Some);
    if none_free.contains(&source.raw_os_error()) {
        let devices = parameter("nbds_max").unwrap_or_default();
        return Error::NoneFree { devices, source };
    }
    let source = netlink::Error::Refused(source);
    Error::Netlink { doing, source }
}

/// What can be seen of a driver that does not answer.
struct Seen {
    /// `/sys/module/nbd` is there: loaded, or built in.
    is_loaded: bool,
    /// The module's file is among those of the running kernel.
    has_file: bool,
    /// `CAP_SYS_MODULE`.
    may_load: bool,
}

impl Seen {
    fn here() -> Self {
        let release = rustix::system::uname();
        let modules = Path::new("/lib/modules").join(release.release().to_string_lossy().as_ref());
        let sets = rustix::thread::capabilities(None);
        Self {
            is_loaded: Path::new("/sys/module/nbd").exists(),
            has_file: module_file(&modules).is_some(),
            may_load: sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_MODULE)),
        }
    }
}

fn why_absent(seen: &Seen) -> Error {
    if seen.is_loaded {
        Error::OutOfReach
    } else if seen.has_file && !seen.may_load {
        Error::NotLoaded
    } else {
        Error::NoDriver
    }
}

/// Where the kernel of these modules has its driver, if it has.
fn module_file(modules: &Path) -> Option<PathBuf> {
    let folder = modules.join("kernel/drivers/block");
    let names = ["nbd.ko", "nbd.ko.xz", "nbd.ko.zst", "nbd.ko.gz"];
    names
        .map(|name| folder.join(name))
        .into_iter()
        .find(|file| file.exists())
}

/// A parameter of the module as it was loaded.
fn parameter(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/sys/module/nbd/parameters").join(name));
    text.ok()?.trim().parse().ok()
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_face_of_a_missing_driver_has_its_remedy() {
        let seen = |is_loaded, has_file, may_load| Seen {
            is_loaded,
            has_file,
            may_load,
        };
        for (seen, remedy) in [
            (seen(false, false, true), "boot a kernel that has"),
            (seen(false, true, true), "load it with 'modprobe nbd'"),
            (seen(false, true, false), "'modprobe nbd' on the host"),
            (seen(true, false, true), "network namespace"),
            (seen(true, true, false), "network namespace"),
        ] {
            let text = why_absent(&seen).to_string();
            assert!(text.contains(remedy) && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn a_refused_connect_says_when_no_device_is_free() {
        let refused = |code| {
            let source = netlink::Error::Refused(io::Error::from_raw_os_error(code));
            explained(refusal("connect a device", source))
        };
        for code in [libc::EBUSY, libc::ENOSPC, libc::EEXIST] {
            let text = refused(code).to_string();
            assert!(text.contains("nbds_max"), "{text}");
        }
        assert!(matches!(refused(libc::EINVAL), Error::Netlink { .. }));
    }

    #[test]
    fn the_modules_file_is_found_compressed_or_not() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(module_file(root.path()), None);
        let folder = root.path().join("kernel/drivers/block");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("nbd.ko.zst"), "").unwrap();
        assert_eq!(module_file(root.path()), Some(folder.join("nbd.ko.zst")));
    }
}
