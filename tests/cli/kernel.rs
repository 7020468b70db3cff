//! The daemon on a kernel that has nbd: what only real devices, mounts and namespaces can show.
//!
//! Where the kernel has none these tests say so and end; the VM bed runs them where it has one,
//! with `CINDER_NBD_IN_VM` set, and then its absence is a failure. `CINDER_NBD_PROGRAM` names the
//! program there.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use support::cloud::Cloud;

use crate::bed::{Home, Running, kernel_has_nbd, signal, wait_until};

/// A cloud, a daemon on it, and a mount through Docker's socket.
pub(crate) struct Host {
    pub(crate) cloud: Cloud,
    pub(crate) home: Home,
    daemon: Running,
}

impl Host {
    /// None where the kernel cannot.
    pub(crate) fn new() -> Option<Self> {
        if !kernel_has_nbd() {
            assert!(
                std::env::var_os("CINDER_NBD_IN_VM").is_none(),
                "this kernel has no nbd, and it shall"
            );
            eprintln!(
                "CANNOT RUN HERE: this kernel has no nbd; 'cargo xtask test' runs this in its VM"
            );
            return None;
        }
        let cloud = Cloud::builder().start_blocking();
        let home = Home::with_environment(cloud.env());
        let daemon = home.daemon();
        Some(Self {
            cloud,
            home,
            daemon,
        })
    }

    /// The daemon is killed, and another one started.
    pub(crate) fn with_another_daemon(self) -> Self {
        let Self {
            cloud,
            home,
            daemon,
        } = self;
        signal(daemon.pid(), "KILL");
        daemon.terminate();
        Self {
            cloud,
            daemon: home.daemon(),
            home,
        }
    }

    pub(crate) fn call(&self, call: &str, body: &str) -> serde_json::Value {
        self.home.docker(call, body)
    }

    #[track_caller]
    pub(crate) fn done(&self, call: &str, body: &str) -> serde_json::Value {
        let answer = self.call(call, body);
        assert_eq!(answer["Err"], "", "{call} {body}: {answer}");
        answer
    }

    /// As `docker volume create -o`; `options` are the members of a JSON object.
    #[track_caller]
    pub(crate) fn create(&self, name: &str, options: &str) {
        let body = format!(r#"{{"Name":"{name}","Opts":{{{options}}}}}"#);
        self.done("VolumeDriver.Create", &body);
    }

    /// A volume of ours, mounted for Docker.
    #[track_caller]
    fn mounted(&self, name: &str) -> PathBuf {
        self.done("VolumeDriver.Create", &format!(r#"{{"Name":"{name}"}}"#));
        self.mount(name)
    }

    /// Where a volume that exists is mounted for Docker.
    #[track_caller]
    pub(crate) fn mount(&self, name: &str) -> PathBuf {
        let answer = self.done(
            "VolumeDriver.Mount",
            &format!(r#"{{"Name":"{name}","ID":"c1"}}"#),
        );
        PathBuf::from(answer["Mountpoint"].as_str().unwrap())
    }

    pub(crate) fn unmount(&self, name: &str) {
        self.done(
            "VolumeDriver.Unmount",
            &format!(r#"{{"Name":"{name}","ID":"c1"}}"#),
        );
    }

    pub(crate) fn view(&self, name: &str) -> serde_json::Value {
        let views = self.home.run(&["list", "--json"]).ok().stdout;
        let views: Vec<serde_json::Value> = serde_json::from_str(&views).unwrap();
        views
            .into_iter()
            .find(|view| view["name"] == name)
            .unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn assert_nothing_is_left(&self) {
        assert!(
            self.cloud.attachments().is_empty(),
            "{:?}",
            self.cloud.attachments()
        );
        assert_eq!(connected_devices(), Vec::<PathBuf>::new());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(self.home.directory.path().to_str().unwrap()),
            "{mounts}"
        );
        assert_eq!(self.home.journal(), 0);
        self.cloud.target().wait_sessions(0);
    }
}

fn connected_devices() -> Vec<PathBuf> {
    let devices = std::fs::read_dir("/sys/block")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    devices
        .filter(|device| device.join("pid").exists())
        .collect()
}

/// A process in a mount namespace of its own that holds the filesystem elsewhere, as a container
/// does.
struct Holder(Child);

impl Holder {
    fn new(filesystem: &Path, elsewhere: &Path) -> Self {
        std::fs::create_dir(elsewhere).unwrap();
        let ready = elsewhere.with_extension("ready");
        let script = format!(
            "mount --bind {} {} && umount {} && touch {} && exec sleep 600",
            filesystem.display(),
            elsewhere.display(),
            filesystem.display(),
            ready.display()
        );
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .spawn()
            .unwrap();
        wait_until("the namespace is ready", || ready.exists());
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn data_outlives_an_unmount_and_the_filesystem_is_handed_over_empty() {
    let Some(host) = Host::new() else { return };
    let at = host.mounted("v1");
    assert_eq!(
        std::fs::read_dir(&at).unwrap().count(),
        0,
        "lost+found is in the way"
    );
    std::fs::write(at.join("kept"), vec![0x5a; 3 << 20]).unwrap();
    host.unmount("v1");
    host.assert_nothing_is_left();
    assert!(!at.exists(), "the mountpoint stays");

    let again = host.mounted("v1");
    assert_eq!(again, at);
    assert_eq!(std::fs::read(at.join("kept")).unwrap(), vec![0x5a; 3 << 20]);
    host.unmount("v1");
    host.assert_nothing_is_left();
}

#[test]
fn what_is_no_filesystem_is_neither_mounted_nor_formatted() {
    let Some(host) = Host::new() else { return };
    host.done("VolumeDriver.Create", r#"{"Name":"v1"}"#);
    let device = host
        .home
        .run(&["attach", "v1"])
        .ok()
        .stdout
        .trim()
        .to_owned();
    let mut magic = b"LUKS\xba\xbe\x00\x01".to_vec();
    magic.resize(4096, 0);
    std::fs::write(&device, &magic).unwrap();
    host.home.run(&["detach", &device]).ok();
    let refused = host.call("VolumeDriver.Mount", r#"{"Name":"v1","ID":"c1"}"#);
    assert!(
        refused["Err"].as_str().unwrap().contains("holds "),
        "{refused}"
    );
    host.assert_nothing_is_left();
    let device = host
        .home
        .run(&["attach", "v1"])
        .ok()
        .stdout
        .trim()
        .to_owned();
    let mut head = vec![0; magic.len()];
    std::fs::File::open(&device)
        .unwrap()
        .read_exact(&mut head)
        .unwrap();
    assert_eq!(head, magic, "it was written to");
    host.home.run(&["detach", &device]).ok();
}

#[test]
fn a_mount_in_another_namespace_keeps_the_volume() {
    let Some(host) = Host::new() else { return };
    let at = host.mounted("v1");
    std::fs::write(at.join("kept"), "kept").unwrap();
    let elsewhere = host.home.path("elsewhere");
    let holder = Holder::new(&at, &elsewhere);
    host.unmount("v1");
    let view = host.view("v1");
    assert_eq!(view["state"], "mounted", "{view}");
    assert!(
        view["last_error"].as_str().unwrap().contains("elsewhere"),
        "{view}"
    );
    host.home
        .run(&["detach", "v1", "--force"])
        .fails_with(&["in use", "elsewhere"]);
    drop(holder);
    host.home.run(&["detach", "v1"]).ok();
    host.assert_nothing_is_left();
}

#[test]
fn a_device_that_is_mounted_by_hand_is_not_detached() {
    let Some(host) = Host::new() else { return };
    host.home.run(&["volume", "create", "v1"]).ok();
    let device = host
        .home
        .run(&["attach", "v1"])
        .ok()
        .stdout
        .trim()
        .to_owned();
    let run = |program: &str, args: &[&str]| {
        assert!(
            Command::new(program).args(args).status().unwrap().success(),
            "{program} {args:?}"
        );
    };
    run("mkfs.ext4", &["-q", &device]);
    let at = host.home.path("by-hand");
    std::fs::create_dir(&at).unwrap();
    run("mount", &[&device, at.to_str().unwrap()]);
    host.home
        .run(&["detach", "v1"])
        .fails_with(&["detaching v1"]);
    std::fs::write(at.join("still"), "there").unwrap();
    run("umount", &[at.to_str().unwrap()]);
    host.home.run(&["detach", "v1"]).ok();
    host.assert_nothing_is_left();
}

#[test]
fn a_volume_that_is_attached_elsewhere_is_refused_by_name() {
    let Some(host) = Host::new() else { return };
    let id = host
        .home
        .run(&["volume", "create", "v1"])
        .ok()
        .stdout
        .trim()
        .to_owned();
    let attachment = host.cloud.attach_elsewhere(&id, "another-host");
    host.home
        .run(&["attach", "v1"])
        .fails_with(&["attaching v1", "attached"]);
    let attachments = host.cloud.attachments();
    assert_eq!(
        (attachments.len(), &attachments[0].id),
        (1, &attachment),
        "the other's attachment was touched"
    );
    assert_eq!(connected_devices(), Vec::<PathBuf>::new());
    assert_eq!(host.home.journal(), 0);
}

#[test]
fn a_killed_daemon_is_followed_by_one_that_goes_on() {
    let Some(mut host) = Host::new() else { return };
    let (code, log) = host.daemon.terminate();
    assert_eq!(code, Some(0), "{log}");
    host.daemon = host.home.supervisor();
    let at = host.mounted("v1");
    host.home.run(&["volume", "create", "v2"]).ok();
    let device = host.home.run(&["attach", "v2"]).ok().stdout;
    let device = device.trim();
    std::fs::write(device, vec![0x3c; 1 << 20]).unwrap();
    for round in 0..3_u8 {
        let before = host.home.pid_of_daemon().unwrap();
        std::fs::write(at.join("round"), vec![round; 1 << 20]).unwrap();
        signal(before, "KILL");
        // Not yet written back, and the filesystem asks for it now.
        let file = std::fs::File::open(at.join("round")).unwrap();
        file.sync_all().unwrap();
        wait_until("another daemon", || {
            host.home.pid_of_daemon().is_some_and(|pid| pid != before)
        });
        wait_until("both are served", || {
            host.view("v1")["state"] == "mounted" && host.view("v2")["state"] == "attached"
        });
        assert_eq!(host.view("v1")["mounts"], 1);
    }
    assert_eq!(host.cloud.attachments().len(), 2);
    let mut head = vec![0; 1 << 20];
    std::fs::File::open(device)
        .unwrap()
        .read_exact(&mut head)
        .unwrap();
    assert_eq!(head, vec![0x3c; 1 << 20]);
    host.home.run(&["detach", "v2"]).ok();
    host.unmount("v1");
    host.assert_nothing_is_left();
    let (code, log) = host.daemon.terminate();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn sigterm_takes_all_off_the_host() {
    let Some(host) = Host::new() else { return };
    let at = host.mounted("v1");
    std::fs::write(at.join("kept"), "kept").unwrap();
    host.home.run(&["volume", "create", "v2"]).ok();
    host.home.run(&["attach", "v2"]).ok();
    let Host {
        cloud,
        home,
        daemon,
    } = host;
    let (code, log) = daemon.terminate();
    assert_eq!(code, Some(0), "{log}");
    let host = Host {
        daemon: home.daemon(),
        cloud,
        home,
    };
    host.assert_nothing_is_left();
    assert_eq!(
        std::fs::read(host.mounted("v1").join("kept")).unwrap(),
        b"kept"
    );
    host.unmount("v1");
}

#[test]
fn sigterm_flushes_a_busy_volume_before_it_cuts_it_off() {
    let Some(host) = Host::new() else { return };
    let at = host.mounted("v1");
    let holder = Holder::new(&at, &host.home.path("elsewhere"));
    std::fs::write(at.join("written"), vec![0xa5; 1 << 20]).unwrap();
    let Host {
        cloud,
        home,
        daemon,
    } = host;
    let (code, log) = daemon.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("still in use"), "{log}");
    assert!(cloud.attachments().is_empty());
    drop(holder);
    let host = Host {
        daemon: home.daemon(),
        cloud,
        home,
    };
    assert_eq!(
        std::fs::read(host.mounted("v1").join("written")).unwrap(),
        vec![0xa5; 1 << 20]
    );
    host.unmount("v1");
    host.assert_nothing_is_left();
}
