//! The crash matrix: a process dies before or after any step of anything that can be asked for, and again while the next
//! one recovers; whoever comes last must have everything in order.
//!
//! How it works. A scenario is played once without a death, and the points that it reaches are written down by a
//! witness in the door (`outside`). Then it is played anew for each of these points, with a death there; then anew for
//! each point that the recovery reaches, with a second death there. A death ends all tasks of the process; what remains is
//! the directory and the world: Cinder, the kernel, the LUNs. What must be true afterwards stands in `assert_in_order`.
//!
//! That what a step needs to be survived is on the disk *before* it, is looked at on the disk at each `Before`.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::super::context::{ATTACHING, FENCED};
use super::super::fake::Row;
use super::super::journal::{Entry, Formatted, Record};
use super::super::outside::Witness;
use super::super::step::{Intent, Point, Step};
use super::*;

/// What is asked for while the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    Create,
    FirstMount,
    NextMount,
    MountGrown,
    Unmount,
    Attach,
    AttachStatic,
    Detach,
    Remove,
    ExtendMounted,
    ExtendAway,
    Format,
    Snapshot,
    Take,
    TakeUnfenced,
    LostJournal,
    HandOver,
    Restart,
}

const ALL: [Scenario; 18] = [
    Scenario::Create,
    Scenario::FirstMount,
    Scenario::NextMount,
    Scenario::MountGrown,
    Scenario::Unmount,
    Scenario::Attach,
    Scenario::AttachStatic,
    Scenario::Detach,
    Scenario::Remove,
    Scenario::ExtendMounted,
    Scenario::ExtendAway,
    Scenario::Format,
    Scenario::Snapshot,
    Scenario::Take,
    Scenario::TakeUnfenced,
    Scenario::LostJournal,
    Scenario::HandOver,
    Scenario::Restart,
];

/// What happens to the host between a death and the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    /// Devices, mounts and the runtime directory are gone.
    Reboot,
    /// Another host takes the volume; then as `Reboot`.
    TakenOver,
}

/// Looks at each step, and is where the process dies.
#[derive(Debug)]
struct Recorder {
    world: World,
    state_dir: PathBuf,
    is_armed: AtomicBool,
    is_dead: AtomicBool,
    die_at: Option<usize>,
    died: Notify,
    seen: Mutex<Vec<Point>>,
    complaints: Mutex<Vec<String>>,
}

impl Witness for Recorder {
    fn reach(&self, point: Point) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.is_dead.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if !self.is_armed.load(Ordering::SeqCst) {
                return;
            }
            if let Point::Before(step) = point
                && !is_intended(&self.state_dir, step)
            {
                let complaint = format!("{step:?} was begun without {:?}", step.intent());
                self.complaints.lock().unwrap().push(complaint);
            }
            let index = {
                let mut seen = self.seen.lock().unwrap();
                seen.push(point);
                seen.len() - 1
            };
            if self.die_at == Some(index) {
                self.is_dead.store(true, Ordering::SeqCst);
                self.world.kill();
                self.died.notify_one();
                std::future::pending::<()>().await;
            }
        })
    }
}

fn files<T: serde::de::DeserializeOwned>(directory: &Path) -> Vec<T> {
    let files = std::fs::read_dir(directory).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let whole = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    whole
        .map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
        .collect()
}

/// Whether the disk says what the table of steps says it does.
fn is_intended(state_dir: &Path, step: Step) -> bool {
    let entries: Vec<Entry> = files(&state_dir.join("attachments"));
    let records: Vec<Record> = files(&state_dir.join("volumes"));
    match step.intent() {
        Intent::Entry([]) => !entries.is_empty(),
        Intent::Entry(phases) => entries.iter().any(|entry| phases.contains(&entry.phase)),
        Intent::Mountpoint => entries.iter().any(|entry| entry.mountpoint.is_some()),
        Intent::Pending(kind) => {
            let mut pending = records.iter().filter_map(|record| record.pending.as_ref());
            pending.any(|pending| pending.kind() == kind)
        }
        Intent::Formatting => records
            .iter()
            .any(|record| record.formatted != Formatted::No),
        Intent::Frozen => entries.iter().any(|entry| entry.frozen),
        Intent::Nothing | Intent::Itself => true,
    }
}

/// One process.
struct Life {
    engine: Engine,
    running: Running,
    recorder: Arc<Recorder>,
}

/// A host, and what has been seen of its processes.
struct Play {
    scenario: Scenario,
    world: World,
    directory: tempfile::TempDir,
    seen: Vec<Vec<Point>>,
}

impl Play {
    fn new(scenario: Scenario) -> Self {
        // On memory where there is some: this is thousands of runs, and it is not the disk that is tested.
        let shared = Path::new("/dev/shm");
        let directory = if shared.is_dir() {
            tempfile::tempdir_in(shared)
        } else {
            tempfile::tempdir()
        };
        Self {
            scenario,
            world: World::default(),
            directory: directory.unwrap(),
            seen: Vec::new(),
        }
    }

    fn begin(&self, is_armed: bool, die_at: Option<usize>) -> Life {
        let world = self.world.living();
        let mut settings = World::settings(self.directory.path());
        // A lane more would only be more of the same.
        settings.lanes = 1;
        let recorder = Arc::new(Recorder {
            world: world.clone(),
            state_dir: settings.state_dir.clone(),
            is_armed: AtomicBool::new(is_armed),
            is_dead: AtomicBool::new(false),
            die_at,
            died: Notify::new(),
            seen: Mutex::default(),
            complaints: Mutex::default(),
        });
        let (cloud, platform) = (Arc::new(world.clone()), Arc::new(world));
        let witness: Arc<dyn Witness> = Arc::<Recorder>::clone(&recorder);
        let (engine, running) = Engine::start_watched(settings, cloud, platform, witness).unwrap();
        Life {
            engine,
            running,
            recorder,
        }
    }

    /// Ends a process without a word.
    async fn end(&mut self, life: Life) {
        let Life {
            engine,
            running,
            recorder,
        } = life;
        drop(engine);
        running.die().await;
        if !recorder.is_dead.load(Ordering::SeqCst) {
            self.world.kill();
        }
        self.note(&recorder);
    }

    fn note(&mut self, recorder: &Recorder) {
        let complaints = recorder.complaints.lock().unwrap();
        assert!(complaints.is_empty(), "{:?}: {complaints:?}", self.scenario);
        self.seen.push(recorder.seen.lock().unwrap().clone());
    }

    /// What is there before.
    async fn prepare(&self, life: &Life) {
        let engine = &life.engine;
        let create = async || {
            engine
                .create("v1", CreateRequest::default())
                .await
                .map(drop)
                .unwrap();
        };
        let mount = async || drop(engine.mount("v1", "c1").await.unwrap());
        let unmount = async || engine.unmount("v1", "c1").await.unwrap();
        match self.scenario {
            Scenario::Create | Scenario::AttachStatic => {}
            Scenario::FirstMount | Scenario::Remove | Scenario::ExtendAway => create().await,
            Scenario::NextMount => {
                create().await;
                mount().await;
                unmount().await;
            }
            Scenario::MountGrown => {
                create().await;
                mount().await;
                unmount().await;
                self.world.set_size(&self.id(), 3);
            }
            Scenario::Unmount
            | Scenario::ExtendMounted
            | Scenario::Snapshot
            | Scenario::HandOver
            | Scenario::Restart => {
                create().await;
                mount().await;
            }
            Scenario::Attach => drop(self.world.add_foreign("v1")),
            Scenario::Format => {
                let id = self.world.add_foreign("v1");
                let theirs = Content::Filesystem("xfs".to_owned());
                self.world.set_content(&id, theirs);
            }
            Scenario::Detach | Scenario::LostJournal => {
                self.world.add_foreign("v1");
                let attached = engine.attach("v1", AttachRequest::default()).await;
                drop(attached.unwrap());
            }
            Scenario::Take | Scenario::TakeUnfenced => {
                let id = self.world.add_foreign("v1");
                self.world.add_row(&id, theirs());
                self.world
                    .mark(&id, &format!("{ATTACHING}other"), Some("other"));
            }
        }
    }

    /// What is asked for. May be asked for again, and must then be well.
    async fn act(&self, engine: &Engine) -> Result<(), Error> {
        let attach = async |elsewhere| {
            let request = AttachRequest {
                elsewhere: Some(elsewhere),
                ..AttachRequest::default()
            };
            engine.attach("v1", request).await.map(drop)
        };
        match self.scenario {
            Scenario::Create => {
                let request = CreateRequest {
                    mount_options: Some("noatime".to_owned()),
                    ..CreateRequest::default()
                };
                engine.create("v1", request).await.map(drop)
            }
            // After a restart the engine asks again with the id that it knows.
            Scenario::FirstMount
            | Scenario::NextMount
            | Scenario::MountGrown
            | Scenario::HandOver
            | Scenario::Restart => engine.mount("v1", "c1").await.map(drop),
            Scenario::Unmount => engine.unmount("v1", "c1").await,
            Scenario::Attach | Scenario::LostJournal => attach(Elsewhere::Refuse).await,
            Scenario::AttachStatic => engine.attach_static(static_target()).await.map(drop),
            Scenario::Detach => match engine.detach("v1", false).await {
                Err(Error::Invalid { what }) if what.contains("is not attached") => Ok(()),
                ended => ended,
            },
            Scenario::Remove => match engine.remove("v1").await {
                Err(error) if error.is_absent() => Ok(()),
                ended => ended,
            },
            Scenario::ExtendMounted | Scenario::ExtendAway => {
                let size = SizeGib::new(5).unwrap();
                engine.extend("v1", size).await.map(drop)
            }
            Scenario::Format => {
                let format = async |found: &str| {
                    let request = FormatRequest {
                        fstype: Some(Fstype::Ext4),
                        destroy: Some(found.to_owned()),
                        ..FormatRequest::default()
                    };
                    engine.format("v1", request).await.map(drop)
                };
                match format("a xfs filesystem").await {
                    // It was done, and the answer was lost.
                    Err(Error::NotMountable { found, .. }) if found.contains("ext4") => Ok(()),
                    ended => ended,
                }
            }
            Scenario::Snapshot => {
                let request = SnapshotRequest {
                    name: "s1".to_owned(),
                    description: None,
                    freeze_limit: Some(Duration::from_secs(20)),
                };
                engine.snapshot("v1", request).await.map(drop)
            }
            Scenario::Take => attach(Elsewhere::Take).await,
            Scenario::TakeUnfenced => attach(Elsewhere::TakeWithoutFence).await,
        }
    }

    /// Plays it with a death at each of these points, one a process; without, to its end.
    async fn play(&mut self, deaths: &[usize], meanwhile: Meanwhile) {
        let mut life = self.begin(false, deaths.first().copied());
        self.prepare(&life).await;
        if self.scenario == Scenario::LostJournal {
            self.end(life).await;
            self.seen.clear();
            // The journal and the device are gone, the row in Cinder is not.
            self.world.reboot();
            for lost in ["state/attachments", "run/sessions"] {
                std::fs::remove_dir_all(self.directory.path().join(lost)).unwrap();
            }
            life = self.begin(false, deaths.first().copied());
        }
        let life = match self.scenario {
            Scenario::HandOver => self.play_hand_over(life, deaths, meanwhile).await,
            Scenario::Restart => self.play_restart(life, deaths, meanwhile).await,
            Scenario::Create
            | Scenario::FirstMount
            | Scenario::NextMount
            | Scenario::MountGrown
            | Scenario::Unmount
            | Scenario::Attach
            | Scenario::AttachStatic
            | Scenario::Detach
            | Scenario::Remove
            | Scenario::ExtendMounted
            | Scenario::ExtendAway
            | Scenario::Format
            | Scenario::Snapshot
            | Scenario::Take
            | Scenario::TakeUnfenced
            | Scenario::LostJournal => self.play_act(life, deaths, meanwhile).await,
        };
        self.conclude(life, meanwhile).await;
    }

    async fn play_hand_over(&mut self, life: Life, deaths: &[usize], meanwhile: Meanwhile) -> Life {
        life.recorder.is_armed.store(true, Ordering::SeqCst);
        let recorder = Arc::clone(&life.recorder);
        let stop = life
            .running
            .stop(Duration::from_secs(20), Parting::LeaveUsed);
        tokio::select! {
            () = recorder.died.notified() => {}
            () = stop => {}
        }
        if !recorder.is_dead.load(Ordering::SeqCst) {
            self.world.kill();
        }
        self.note(&recorder);
        self.recover(deaths, meanwhile).await
    }

    async fn play_restart(&mut self, life: Life, deaths: &[usize], meanwhile: Meanwhile) -> Life {
        self.end(life).await;
        self.seen.clear();
        let life = self.begin(true, deaths.first().copied());
        if self.until_settled_or_dead(&life).await {
            self.end(life).await;
            return self.recover(deaths, meanwhile).await;
        }
        life.recorder.is_armed.store(false, Ordering::SeqCst);
        self.note(&life.recorder);
        life
    }

    async fn play_act(&mut self, life: Life, deaths: &[usize], meanwhile: Meanwhile) -> Life {
        life.recorder.is_armed.store(true, Ordering::SeqCst);
        let recorder = Arc::clone(&life.recorder);
        let has_died = tokio::select! {
            () = recorder.died.notified() => true,
            ended = self.act(&life.engine) => {
                ended.unwrap_or_else(|error| panic!("{:?}: {}", self.scenario, line(&error)));
                false
            }
        };
        if has_died {
            self.end(life).await;
            return self.recover(deaths, meanwhile).await;
        }
        recorder.is_armed.store(false, Ordering::SeqCst);
        self.note(&recorder);
        life
    }

    /// The processes after the first death; the last one lives.
    async fn recover(&mut self, deaths: &[usize], meanwhile: Meanwhile) -> Life {
        self.happen(meanwhile);
        for death in deaths.iter().skip(1) {
            let life = self.begin(true, Some(*death));
            if !self.until_settled_or_dead(&life).await {
                self.note(&life.recorder);
                return life;
            }
            self.end(life).await;
        }
        let life = self.begin(true, None);
        self.until_settled_or_dead(&life).await;
        life.recorder.is_armed.store(false, Ordering::SeqCst);
        self.note(&life.recorder);
        life
    }

    fn happen(&self, meanwhile: Meanwhile) {
        match meanwhile {
            Meanwhile::Nothing => return,
            Meanwhile::Reboot => {}
            Meanwhile::TakenOver => {
                let volumes = self.world.volumes();
                if let Some(volume) = volumes.first() {
                    self.world.drop_rows(&volume.id);
                    self.world.add_row(&volume.id, theirs());
                    // A fence of ours does not outlive that: theirs would have ended it.
                    self.world.drop_fence(&volume.id);
                }
            }
        }
        self.world.reboot();
        std::fs::remove_dir_all(self.directory.path().join("run")).unwrap();
    }

    /// True if it has died.
    async fn until_settled_or_dead(&self, life: &Life) -> bool {
        let settled = async {
            for _ in 0..60 {
                // The clock stands still as long as there is anything to do: a pause longer than any of the worker's
                // is the end of all that it can do by itself.
                tokio::time::sleep(Duration::from_secs(31)).await;
                let views = life.engine.list().await.unwrap();
                let is_open = |view: &View| {
                    matches!(view.state, State::Waiting | State::Cleaning) || view.pending.is_some()
                };
                if !views.iter().any(is_open) {
                    return;
                }
            }
            let views = life.engine.list().await.unwrap();
            panic!(
                "{:?}: never settled: {views:?}\n{:?}",
                self.scenario, self.world
            );
        };
        tokio::select! {
            () = life.recorder.died.notified() => true,
            () = settled => false,
        }
    }

    /// In order; what was asked for can be asked for again; and all can be taken off.
    async fn conclude(&self, life: Life, meanwhile: Meanwhile) {
        self.assert_in_order(&life, RECOVERED).await;
        if meanwhile == Meanwhile::TakenOver {
            let rows = self
                .world
                .volumes()
                .first()
                .map(|volume| self.world.rows(&volume.id));
            let rows = rows.unwrap_or_default();
            let is_theirs = |row: &Row| row.host.as_deref() == Some("other");
            assert!(rows.iter().all(is_theirs), "{:?}: {rows:?}", self.scenario);
            assert!(self.world.devices().is_empty());
        } else {
            let again = self.act(&life.engine).await;
            again.unwrap_or_else(|error| panic!("{:?}, again: {}", self.scenario, line(&error)));
            self.assert_in_order(&life, "after it was asked for again")
                .await;
            self.assert_done(&life).await;
        }
        let Life { running, .. } = life;
        running
            .stop(Duration::from_secs(20), Parting::TakeOff)
            .await;
        assert!(self.world.devices().is_empty(), "{:?}", self.scenario);
        assert!(self.world.mountpoints().is_empty(), "{:?}", self.scenario);
        let entries: Vec<Entry> = files(&self.directory.path().join("state/attachments"));
        assert!(entries.is_empty(), "{:?}: {entries:?}", self.scenario);
    }

    /// What is always true of a host on which nothing is under way.
    async fn assert_in_order(&self, life: &Life, when: &str) {
        let what = format!("{:?}, {when}: {:?}", self.scenario, self.world);
        let views = life.engine.list().await.unwrap();
        let entries: Vec<Entry> = files(&self.directory.path().join("state/attachments"));
        let devices = self.world.devices();
        assert!(!self.world.is_frozen(), "frozen; {what}");
        assert!(self.world.volumes().len() <= 1, "a second volume; {what}");
        assert_eq!(entries.len(), devices.len(), "entries and devices; {what}");
        for device in &devices {
            let of_device = |view: &&View| view.device.as_ref() == Some(device);
            let view = views
                .iter()
                .find(of_device)
                .unwrap_or_else(|| panic!("{what}"));
            assert!(
                matches!(view.state, State::Attached | State::Mounted),
                "{what}"
            );
        }
        assert!(devices.is_empty() || self.world.all_served(), "{what}");
        for at in self.world.mountpoints() {
            let is_shown = |view: &View| view.mountpoint.as_ref() == Some(&at);
            assert!(views.iter().any(is_shown), "a mount of nobody; {what}");
        }
        let sessions = self.directory.path().join("run/sessions");
        assert_eq!(
            std::fs::read_dir(sessions).unwrap().count(),
            entries.len(),
            "{what}"
        );
        for volume in self.world.volumes() {
            let rows = self.world.rows(&volume.id);
            let is_kept = |row: &Row| row.status == "attached";
            assert!(rows.iter().all(is_kept), "stuck; {what}");
            let ours = |row: &&Row| row.host.as_deref() == Some("testhost");
            let lost = usize::from(self.is_lost(when));
            let kept = rows.iter().filter(ours).count();
            assert!(
                (devices.len()..=devices.len() + lost).contains(&kept),
                "{what}"
            );
            assert!(
                self.world.formats(&volume.id) <= 1,
                "formatted twice; {what}"
            );
            let own_tag = |key: &&String| key.starts_with(ATTACHING) && !key.ends_with("other");
            let tags = volume.metadata.keys().filter(own_tag).count();
            assert!(
                (devices.len()..=devices.len() + lost).contains(&tags),
                "tags; {what}"
            );
            let is_kept = entries.iter().any(|entry| entry.fenced);
            if self.world.fenced_for(&volume.id).is_some() && !is_kept {
                assert!(rows.is_empty(), "fenced, and attached; {what}");
                assert!(volume.metadata.contains_key(FENCED), "{what}");
            }
        }
    }

    /// What was asked for is so.
    async fn assert_done(&self, life: &Life) {
        let views = life.engine.list().await.unwrap();
        let view = views.first();
        let state = view.map_or(State::Detached, |view| view.state);
        let what = format!("{:?}: {view:?}", self.scenario);
        match self.scenario {
            Scenario::Create => assert_eq!(self.world.volumes().len(), 1, "{what}"),
            Scenario::FirstMount | Scenario::NextMount | Scenario::Restart | Scenario::HandOver => {
                assert_eq!(state, State::Mounted, "{what}");
                assert_eq!(self.world.formats(&self.id()), 1, "{what}");
            }
            Scenario::MountGrown => assert_eq!(self.world.grown(&self.id()), (3, 3), "{what}"),
            Scenario::ExtendMounted => {
                // After a reboot it is the next mount that goes on with it.
                life.engine.mount("v1", "c1").await.unwrap();
                assert_eq!(self.world.grown(&self.id()), (5, 5), "{what}");
                let view = life.engine.get("v1").await.unwrap();
                assert_eq!(view.filesystem_bytes, Some(5 << 30), "{view:?}");
            }
            Scenario::ExtendAway => assert_eq!(self.world.volumes()[0].size, 5, "{what}"),
            Scenario::Format => {
                assert_eq!(self.world.formats(&self.id()), 1, "{what}");
                let at = life.engine.mount("v1", "c1").await;
                assert!(at.is_ok(), "{what}: {at:?}");
            }
            Scenario::Snapshot => assert!(!self.world.taken().is_empty(), "{what}"),
            Scenario::Unmount | Scenario::Detach => assert_eq!(state, State::Detached, "{what}"),
            Scenario::Remove => assert!(self.world.volumes().is_empty(), "{what}"),
            Scenario::Attach | Scenario::AttachStatic | Scenario::LostJournal => {
                assert_eq!(state, State::Attached, "{what}");
            }
            Scenario::Take | Scenario::TakeUnfenced => {
                assert_eq!(state, State::Attached, "{what}");
                assert!(self.world.living().can_write(&self.id()), "{what}");
            }
        }
    }

    /// Nobody knows of a row whose journal was lost until the volume is asked for again.
    fn is_lost(&self, when: &str) -> bool {
        self.scenario == Scenario::LostJournal && when == RECOVERED
    }

    fn id(&self) -> String {
        self.world.volumes()[0].id.clone()
    }
}

const RECOVERED: &str = "after the recovery";

fn theirs() -> Row {
    Row {
        volume: String::new(),
        status: "attached",
        tag: Some("cinder-nbd:other:01234567".to_owned()),
        host: Some("other".to_owned()),
    }
}

/// All points of a scenario that is not disturbed.
async fn points_of(scenario: Scenario) -> Vec<Point> {
    let mut play = Play::new(scenario);
    play.play(&[], Meanwhile::Nothing).await;
    play.seen.concat()
}

#[tokio::test(start_paused = true)]
async fn a_death_at_any_step_and_another_in_its_recovery_leave_everything_in_order() {
    let mut reached = BTreeSet::new();
    let mut plays = 0;
    for scenario in ALL {
        let mut first = Play::new(scenario);
        first.play(&[], Meanwhile::Nothing).await;
        let points = first.seen[0].len();
        reached.extend(first.seen.concat());
        for death in 0..points {
            let mut once = Play::new(scenario);
            once.play(&[death], Meanwhile::Nothing).await;
            let recovery = once.seen.get(1).map_or(0, Vec::len);
            reached.extend(once.seen.concat());
            plays += 1;
            for second in 0..recovery {
                let mut twice = Play::new(scenario);
                twice.play(&[death, second], Meanwhile::Nothing).await;
                plays += 1;
            }
        }
    }
    assert!(plays > 1000, "{plays} plays are no matrix");
    let mut step = Step::next(None);
    while let Some(this) = step {
        for point in [Point::Before(this), Point::After(this)] {
            assert!(reached.contains(&point), "no scenario reaches {point:?}");
        }
        step = Step::next(step);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reboot_at_any_step_leaves_nothing_behind() {
    for scenario in ALL {
        for death in 0..points_of(scenario).await.len() {
            let mut play = Play::new(scenario);
            play.play(&[death], Meanwhile::Reboot).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_another_host_took_meanwhile_stays_with_it() {
    for scenario in ALL {
        if matches!(scenario, Scenario::AttachStatic | Scenario::Remove) {
            continue;
        }
        for death in 0..points_of(scenario).await.len() {
            let mut play = Play::new(scenario);
            play.play(&[death], Meanwhile::TakenOver).await;
        }
    }
}
