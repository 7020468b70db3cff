//! A target of the Linux kernel (LIO) of a test's own, made by writing to configfs: needs root and a kernel of one's
//! own, so the VM of the test bed.
//!
//! Source: Linux `Documentation/target`, and what `targetcli` writes; seen with 6.1.
//!
//! Read before changing:
//! - Values are written without a newline: LIO takes one as part of a CHAP name.
//! - A backstore's block size can be set only before a LUN uses it, most other attributes at any time.
//! - A LUN is a link; it goes before its backstore, and the portal group is disabled before all of it.
//!
//! Invariants:
//! 1. Nothing is left in configfs when the fixture is dropped.
//! 2. What was set is remembered, so that `create` makes the same target again after `delete`; the backstores and
//!    their data stay meanwhile.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A target with one or more portal groups, removed on drop.
#[derive(Debug)]
pub struct Lio {
    iqn: String,
    groups: Vec<Group>,
    stores: Vec<Store>,
    files: tempfile::TempDir,
}

#[derive(Debug)]
struct Group {
    tag: u16,
    port: u16,
    /// Files under the group's folder, with what was written to them, in order.
    settings: Vec<(String, String)>,
    /// Number of the LUN, and its backstore.
    luns: Vec<(u32, usize)>,
    is_enabled: bool,
}

#[derive(Debug)]
struct Store {
    dir: PathBuf,
    name: String,
}

impl Store {
    fn remove(&self) -> std::io::Result<()> {
        for entry in fs::read_dir(self.dir.join("alua"))? {
            let group = entry?.path();
            // One group is LIO's own.
            if !group.ends_with("default_tg_pt_gp") {
                fs::remove_dir(group)?;
            }
        }
        fs::remove_dir(&self.dir)
    }
}

/// What a backstore is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Pages of the kernel's memory.
    Ramdisk,
    /// A sparse file.
    File,
}

impl Lio {
    /// A target `iqn.2026-11.test.lio:NAME` with portal group 1 on a free port of 127.0.0.1, open to any initiator.
    ///
    /// # Panics
    /// If this kernel has no LIO (modules `iscsi_target_mod`, `target_core_file`), or we are not root.
    pub fn start(name: &str) -> Self {
        let files = tempfile::tempdir().expect("a temporary folder can be made");
        let mut lio = Self {
            iqn: format!("iqn.2026-11.test.lio:{name}"),
            groups: Vec::new(),
            stores: Vec::new(),
            files,
        };
        lio.add_group();
        lio
    }

    /// One more portal group with a port of its own; LUNs and settings that follow go to it.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn add_group(&mut self) -> &mut Self {
        let tag = u16::try_from(self.groups.len() + 1).expect("few groups");
        self.groups.push(Group {
            tag,
            port: free_port(),
            settings: Vec::new(),
            luns: Vec::new(),
            is_enabled: true,
        });
        self.make_group(self.groups.len() - 1);
        for (attribute, value) in OPEN_TO_ALL {
            self.set(&format!("attrib/{attribute}"), value);
        }
        self
    }

    /// A new backstore of so many MiB, as LUN `lun` of the group added last.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn add_lun(&mut self, lun: u32, medium: Medium, mib: u64) -> &mut Self {
        self.add_lun_with(lun, medium, mib, &[])
    }

    /// As `add_lun`, with attributes of the backstore (`block_size`, `emulate_tpu`, ...).
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn add_lun_with(
        &mut self,
        lun: u32,
        medium: Medium,
        mib: u64,
        attributes: &[(&str, &str)],
    ) -> &mut Self {
        // Unique over all fixtures of the process: the names of backstores are.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bed{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (hba, control) = match medium {
            Medium::Ramdisk => ("rd_mcp_0", format!("rd_pages={}", mib * PAGES_A_MIB)),
            Medium::File => {
                let path = self.files.path().join(&name);
                let file = fs::File::create(&path).expect("a file can be made in the own folder");
                file.set_len(mib << 20).expect("a file can be made sparse");
                let (path, bytes) = (path.display(), mib << 20);
                (
                    "fileio_0",
                    format!("fd_dev_name={path},fd_dev_size={bytes},fd_buffered_io=1"),
                )
            }
        };
        let dir = Path::new(ROOT).join("core").join(hba).join(&name);
        make(&dir);
        put(&dir.join("control"), &control);
        put(&dir.join("wwn/vpd_unit_serial"), &format!("serial-{name}"));
        put(&dir.join("enable"), "1");
        for (attribute, value) in attributes {
            put(&dir.join("attrib").join(attribute), value);
        }
        self.stores.push(Store { dir, name });
        self.map(lun, self.stores.len() - 1)
    }

    /// The backstore added last as another LUN, in the group added last.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn add_lun_again(&mut self, lun: u32) -> &mut Self {
        self.map(lun, self.stores.len() - 1)
    }

    /// Writes to a file of the group added last, for example `param/MaxConnections` or `auth/userid`.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn set(&mut self, file: &str, value: &str) -> &mut Self {
        let at = self.groups.len() - 1;
        put(&self.group_dir(at).join(file), value);
        let setting = (file.to_owned(), value.to_owned());
        self.groups[at].settings.push(setting);
        self
    }

    /// Only this user may log in to the group added last.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn chap(&mut self, user: &str, secret: &str) -> &mut Self {
        self.set("attrib/authentication", "1")
            .set("auth/userid", user)
            .set("auth/password", secret)
    }

    /// What the group added last proves itself with.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn mutual_chap(&mut self, user: &str, secret: &str) -> &mut Self {
        self.set("auth/userid_mutual", user)
            .set("auth/password_mutual", secret)
    }

    /// Puts a LUN of the group added last into an ALUA group of its backstore with this number and access state
    /// (0 active/optimized, 1 active/non-optimized, 2 standby, 3 unavailable).
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn access(&mut self, lun: u32, number: u16, state: u8) -> &mut Self {
        let name = format!("group{number}");
        let dir = self.store_dir().join("alua").join(&name);
        make(&dir);
        put(&dir.join("tg_pt_gp_id"), &number.to_string());
        put(&dir.join("alua_access_state"), &state.to_string());
        self.set(&format!("lun/lun_{lun}/alua_tg_pt_gp"), &name)
    }

    /// Takes the first group out of service: its sessions are cut, logins are refused.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn disable(&mut self) {
        put(&self.group_dir(0).join("enable"), "0");
        self.groups[0].is_enabled = false;
    }

    /// Undoes `disable`.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn enable(&mut self) {
        put(&self.group_dir(0).join("enable"), "1");
        self.groups[0].is_enabled = true;
    }

    /// Removes the target with its groups, LUNs and portals; the port is closed. Backstores stay.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn delete(&self) {
        self.take_down().expect("LIO lets go of its target");
    }

    /// Makes the target again that `delete` removed.
    ///
    /// # Panics
    /// If LIO refuses.
    pub fn create(&self) {
        for at in 0..self.groups.len() {
            self.make_group(at);
        }
    }

    /// The name of the target.
    pub fn iqn(&self) -> &str {
        &self.iqn
    }

    /// `127.0.0.1:PORT` of the first group.
    pub fn portal(&self) -> String {
        self.portal_of(1)
    }

    /// `127.0.0.1:PORT` of a group, by its tag.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn portal_of(&self, tag: u16) -> String {
        let group = self.groups.iter().find(|group| group.tag == tag);
        format!("127.0.0.1:{}", group.expect("the group was added").port)
    }

    /// The folder of the backstore added last; below it are `alua`, `attrib`, `pr`.
    ///
    /// # Panics
    /// If there is none.
    pub fn store_dir(&self) -> &Path {
        &self.stores.last().expect("a LUN was added").dir
    }

    /// What LIO says of the sessions of the group, one text an initiator.
    pub fn sessions(&self) -> Vec<String> {
        let dir = self.group_dir(0).join("acls");
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| fs::read_to_string(entry.path().join("info")).ok())
            .collect()
    }

    fn map(&mut self, lun: u32, store: usize) -> &mut Self {
        let at = self.groups.len() - 1;
        self.make_lun(at, lun, store);
        self.groups[at].luns.push((lun, store));
        self
    }

    fn make_group(&self, at: usize) {
        let group = &self.groups[at];
        let dir = self.group_dir(at);
        make(&dir);
        for (lun, store) in &group.luns {
            self.make_lun(at, *lun, *store);
        }
        // Some of them are a LUN's.
        for (file, value) in &group.settings {
            put(&dir.join(file), value);
        }
        make(&dir.join(format!("np/127.0.0.1:{}", group.port)));
        put(
            &dir.join("enable"),
            if group.is_enabled { "1" } else { "0" },
        );
    }

    fn make_lun(&self, at: usize, lun: u32, store: usize) {
        let dir = self.group_dir(at).join(format!("lun/lun_{lun}"));
        make(&dir);
        let store = &self.stores[store];
        let link = dir.join(&store.name);
        std::os::unix::fs::symlink(&store.dir, &link)
            .unwrap_or_else(|error| panic!("link {}: {error}", link.display()));
    }

    fn take_down(&self) -> std::io::Result<()> {
        let target = self.target_dir();
        if !target.exists() {
            return Ok(());
        }
        for (at, group) in self.groups.iter().enumerate() {
            let dir = self.group_dir(at);
            // Refused if it is disabled already.
            let _ = fs::write(dir.join("enable"), "0");
            for (lun, store) in &group.luns {
                let lun = dir.join(format!("lun/lun_{lun}"));
                fs::remove_file(lun.join(&self.stores[*store].name))?;
                fs::remove_dir(lun)?;
            }
            fs::remove_dir(dir.join(format!("np/127.0.0.1:{}", group.port)))?;
            fs::remove_dir(dir)?;
        }
        fs::remove_dir(target)
    }

    fn target_dir(&self) -> PathBuf {
        Path::new(ROOT).join("iscsi").join(&self.iqn)
    }

    fn group_dir(&self, at: usize) -> PathBuf {
        self.target_dir()
            .join(format!("tpgt_{}", self.groups[at].tag))
    }
}

impl Drop for Lio {
    fn drop(&mut self) {
        let mut ended = self.take_down();
        for store in &self.stores {
            ended = ended.and_then(|()| store.remove());
        }
        if let Err(error) = ended
            && !std::thread::panicking()
        {
            panic!("LIO keeps something of {}: {error}", self.iqn);
        }
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("loopback has a free port")
        .port()
}

/// Makes a folder of configfs, and those above it; one that is there already is as good.
fn make(dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_else(|error| panic!("make {}: {error}", dir.display()));
}

/// Writes a value to a file of configfs.
fn put(file: &Path, value: &str) {
    fs::write(file, value)
        .unwrap_or_else(|error| panic!("write {value:?} to {}: {error}", file.display()));
}

/// configfs, as every distribution mounts it.
const ROOT: &str = "/sys/kernel/config/target";
const PAGES_A_MIB: u64 = 256;
/// Without access lists and without authentication.
const OPEN_TO_ALL: [(&str, &str); 5] = [
    ("authentication", "0"),
    ("generate_node_acls", "1"),
    ("cache_dynamic_acls", "1"),
    ("demo_mode_write_protect", "0"),
    ("default_cmdsn_depth", "64"),
];
