//! The engine against a cloud and a host that fail where they are told to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::fake::{World, ours};
use super::platform::{Content, MountUser};
use super::*;

mod crash;
mod doctor;
mod elsewhere;
mod errors;
mod life;
mod never_formats;
mod reformat;
mod restart;
mod snapshot;

struct Bed {
    world: World,
    directory: tempfile::TempDir,
    engine: Engine,
    running: Running,
}

impl Bed {
    fn new() -> Self {
        let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
        let (engine, running) = start(&world, directory.path());
        Self {
            world,
            directory,
            engine,
            running,
        }
    }

    /// A volume of ours, with nothing asked for.
    async fn create(&self, name: &str) -> View {
        let created = self.engine.create(name, CreateRequest::default()).await;
        created.unwrap()
    }

    /// By hand, with nothing asked for.
    async fn attach(&self, name: &str) -> View {
        let attached = self.engine.attach(name, AttachRequest::default()).await;
        attached.unwrap()
    }

    fn journal(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("state/attachments"))
            .unwrap()
            .count()
    }

    async fn state(&self, name: &str) -> State {
        let views = self.engine.list().await.unwrap();
        views
            .into_iter()
            .find(|view| view.name == name)
            .map_or(State::Detached, |view| view.state)
    }
}

fn start(world: &World, directory: &Path) -> (Engine, Running) {
    start_with(world, World::settings(directory))
}

fn start_with(world: &World, settings: Settings) -> (Engine, Running) {
    let world = world.living();
    let (cloud, platform) = (Arc::new(world.clone()), Arc::new(world));
    Engine::start(settings, cloud, platform).unwrap()
}

fn user() -> MountUser {
    MountUser {
        pid: 4711,
        mountpoint: PathBuf::from("/data"),
        own_namespace: false,
    }
}

fn static_target() -> StaticTarget {
    StaticTarget {
        portal: "127.0.0.1:3260".parse().unwrap(),
        target: "iqn.2026-11.example:disk".parse().unwrap(),
        lun: 3,
        chap: None,
        read_only: false,
    }
}

#[tokio::test]
async fn a_volume_is_created_formatted_mounted_and_comes_all_the_way_back() {
    let bed = Bed::new();
    bed.create("v1").await;
    let at = bed.engine.mount("v1", "c1").await.unwrap();
    assert_eq!(at, bed.directory.path().join("mnt/v1"));
    assert_eq!(bed.world.mountpoints(), [at]);
    assert_eq!(bed.journal(), 1);
    let calls = bed.world.take_calls();
    let steps = [
        "find",
        "create",
        "find",
        "probe",
        "set_metadata",
        "reserve",
        "connect_attachment",
        "connect",
        "complete",
        "inspect",
        "format",
        "set_metadata",
        "mount",
    ];
    assert_eq!(calls, steps);

    bed.engine.unmount("v1", "c1").await.unwrap();
    assert_eq!(
        bed.world.take_calls(),
        [
            "users",
            "unmount",
            "disconnect",
            "delete_attachment",
            "remove_metadata"
        ]
    );
    assert!(bed.world.is_clean());
    assert_eq!(bed.journal(), 0);

    bed.engine.mount("v1", "c2").await.unwrap();
    assert_eq!(bed.world.count("format"), 0, "formatted twice");
    bed.engine.unmount("v1", "c2").await.unwrap();
    bed.engine.remove("v1").await.unwrap();
    assert!(bed.world.volumes().is_empty());
    assert!(bed.engine.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_failure_at_any_step_of_a_mount_leaves_nothing_behind() {
    for step in [
        "find",
        "probe",
        "reserve",
        "connect_attachment",
        "connect",
        "complete",
        "inspect",
        "format",
        "mount",
    ] {
        let bed = Bed::new();
        bed.create("v1").await;
        bed.world.take_calls();
        bed.world.fail(step);
        let error = bed.engine.mount("v1", "c1").await.unwrap_err();
        assert!(
            line(&error).contains(&format!("{step} fails in this test")),
            "{step}: {}",
            line(&error)
        );
        assert!(bed.world.is_clean(), "{step} left {:?}", bed.world);
        assert_eq!(bed.journal(), 0, "{step}");
        assert_eq!(bed.state("v1").await, State::Detached, "{step}");

        bed.world.heal();
        bed.engine
            .mount("v1", "c1")
            .await
            .unwrap_or_else(|error| panic!("{step}: {}", line(&error)));
    }
}

#[tokio::test]
async fn the_kernel_is_asked_before_cinder_is_changed() {
    let bed = Bed::new();
    bed.world.add_foreign("v1");
    bed.world.fail("probe");
    bed.engine
        .attach("v1", AttachRequest::default())
        .await
        .unwrap_err();
    assert_eq!(bed.world.count("reserve"), 0);
}

#[tokio::test]
async fn without_a_journal_nothing_is_begun() {
    let bed = Bed::new();
    bed.world.add_foreign("v1");
    std::fs::remove_dir(bed.directory.path().join("state/attachments")).unwrap();
    bed.engine
        .attach("v1", AttachRequest::default())
        .await
        .unwrap_err();
    assert_eq!(bed.world.count("reserve"), 0);
    std::fs::create_dir(bed.directory.path().join("state/attachments")).unwrap();
    bed.attach("v1").await;
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_fails_is_told_written_down_and_tried_again() {
    let bed = Bed::new();
    bed.world.add_foreign("v1");
    bed.world.fail("connect");
    bed.world.fail("delete_attachment");
    let error = line(
        &bed.engine
            .attach("v1", AttachRequest::default())
            .await
            .unwrap_err(),
    );
    assert!(
        error.contains("left over") && error.contains("connect fails"),
        "{error}"
    );
    assert_eq!(bed.state("v1").await, State::Cleaning);
    assert_eq!((bed.journal(), bed.world.attachments().len()), (1, 1));

    bed.world.heal();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(bed.world.is_clean());
    assert_eq!(bed.journal(), 0);
    assert_eq!(bed.state("v1").await, State::Detached);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_cannot_be_undone_is_kept_and_taken_down_later() {
    let bed = Bed::new();
    bed.world.add_foreign("v1");
    bed.world.fail("complete");
    bed.world.fail("disconnect_by_force");
    bed.engine
        .attach("v1", AttachRequest::default())
        .await
        .unwrap_err();
    assert_eq!(bed.world.devices().len(), 1);
    bed.world.heal();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(bed.world.is_clean());
    assert_eq!(bed.journal(), 0);
}

#[tokio::test]
async fn a_blank_volume_is_formatted_only_if_it_is_ours_and_never_was() {
    type Prepare = fn(&World, &str);
    let cases: [(&str, Prepare, &str); 5] = [
        (
            "foreign",
            |world, id| world.mark(id, CREATED_BY, None),
            "not created by cinder-nbd",
        ),
        (
            "formatted",
            |world, id| world.mark(id, FORMATTED, Some("ext4")),
            "had a filesystem before",
        ),
        (
            "luks",
            |world, id| world.set_content(id, Content::Other("crypto_LUKS (crypto)".to_owned())),
            "holds crypto_LUKS",
        ),
        (
            "xfs",
            |world, id| world.set_content(id, Content::Filesystem("xfs".to_owned())),
            "holds a xfs filesystem",
        ),
        (
            "unreadable",
            |world, _| world.fail("inspect"),
            "inspect fails",
        ),
    ];
    for (name, prepare, wanted) in cases {
        let bed = Bed::new();
        let id = bed.world.add(name, ours());
        prepare(&bed.world, &id);
        let error = line(&bed.engine.mount(name, "c1").await.unwrap_err());
        assert!(error.contains(wanted), "{name}: {error}");
        assert_eq!(bed.world.count("format"), 0, "{name} was formatted");
        assert!(bed.world.is_clean(), "{name}");
    }
}

#[tokio::test]
async fn a_record_alone_does_not_make_a_volume_ours() {
    let bed = Bed::new();
    bed.create("v1").await;
    let id = bed.world.volumes()[0].id.clone();
    bed.world.mark(&id, CREATED_BY, None);
    bed.engine.mount("v1", "c1").await.unwrap_err();
    assert_eq!(bed.world.count("format"), 0);
}

#[tokio::test]
async fn a_volume_that_lost_its_filesystem_is_not_made_anew() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.engine.unmount("v1", "c1").await.unwrap();
    let id = bed.world.volumes()[0].id.clone();
    bed.world.mark(&id, FORMATTED, None);
    bed.world.set_content(&id, Content::Blank);
    bed.world.take_calls();
    let error = line(&bed.engine.mount("v1", "c1").await.unwrap_err());
    assert!(error.contains("had a filesystem before"), "{error}");
    assert_eq!(bed.world.count("format"), 0);
}

#[tokio::test]
async fn docker_cp_does_not_take_the_volume_from_under_its_container() {
    let bed = Bed::new();
    bed.create("v1").await;
    let at = bed.engine.mount("v1", "c1").await.unwrap();
    bed.world.set_users(vec![user()]);
    assert_eq!(bed.engine.mount("v1", "c1").await.unwrap(), at);
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert_eq!(bed.world.mountpoints(), [at]);
    bed.world.set_users(Vec::new());
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert!(bed.world.is_clean());
    // One too many harms nobody.
    bed.engine.unmount("v1", "c1").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_mount_stays_while_the_kernel_knows_a_user() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.world.set_users(vec![user()]);
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert_eq!(bed.state("v1").await, State::Mounted);
    let view = bed.engine.get("v1").await.unwrap();
    assert!(view.last_error.unwrap().contains("process 4711"));
    bed.world.set_users(Vec::new());
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(bed.world.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_mount_whose_caller_hung_up_is_kept_for_the_retry_and_then_given_up() {
    let bed = Bed::new();
    bed.create("v1").await;
    let gate = bed.world.gate("mount");
    let engine = bed.engine.clone();
    let caller = tokio::spawn(async move { engine.mount("v1", "c1").await });
    while bed.world.count("mount") == 0 {
        tokio::task::yield_now().await;
    }
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    gate.notify_one();
    while bed.state("v1").await != State::Mounted {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(bed.engine.get("v1").await.unwrap().mounts, 0);
    bed.world.take_calls();
    bed.engine.mount("v1", "c1").await.unwrap();
    assert_eq!(
        bed.world.take_calls(),
        ["is_mounted"],
        "the retry finds the finished work"
    );
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert!(bed.world.is_clean());

    let engine = bed.engine.clone();
    let caller = tokio::spawn(async move { engine.mount("v1", "c1").await });
    while bed.world.count("mount") == 0 {
        tokio::task::yield_now().await;
    }
    caller.abort();
    gate.notify_one();
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert!(bed.world.is_clean(), "nobody came back for it");
}

#[tokio::test]
async fn a_mount_that_was_undone_by_hand_is_made_again() {
    let bed = Bed::new();
    bed.create("v1").await;
    let at = bed.engine.mount("v1", "c1").await.unwrap();
    bed.world.unmount_by_hand();
    assert_eq!(bed.engine.mount("v1", "c2").await.unwrap(), at);
    assert_eq!(bed.world.mountpoints(), [at]);
}

#[tokio::test]
async fn a_slow_volume_holds_up_no_other() {
    let bed = Bed::new();
    bed.world.add_foreign("slow");
    bed.world.add_foreign("fast");
    let gate = bed.world.gate("connect");
    let engine = bed.engine.clone();
    let slow = tokio::spawn(async move { engine.attach("slow", AttachRequest::default()).await });
    while bed.world.count("connect") == 0 {
        tokio::task::yield_now().await;
    }
    // `fast` waits at the same gate; the list and a lookup do not.
    assert!(bed.engine.list().await.is_ok());
    let engine = bed.engine.clone();
    let fast = tokio::spawn(async move { engine.attach("fast", AttachRequest::default()).await });
    while bed.world.count("connect") < 2 {
        tokio::task::yield_now().await;
    }
    gate.notify_one();
    gate.notify_one();
    gate.notify_waiters();
    fast.await.unwrap().unwrap();
    slow.await.unwrap().unwrap();
    assert_eq!(bed.world.devices().len(), 2);
}

#[tokio::test]
async fn an_attached_volume_is_found_by_name_id_and_device() {
    for by in ["name", "id", "device"] {
        let bed = Bed::new();
        let id = bed.world.add_foreign("v1");
        let view = bed
            .engine
            .attach("v1", AttachRequest::default())
            .await
            .unwrap();
        let device = view.device.unwrap().display().to_string();
        let again = bed
            .engine
            .attach(&id, AttachRequest::default())
            .await
            .unwrap();
        assert_eq!(
            again.device.unwrap().display().to_string(),
            device,
            "attached twice"
        );
        let asked = match by {
            "name" => "v1",
            "id" => &id,
            _ => &device,
        };
        bed.engine.detach(asked, false).await.unwrap();
        assert!(bed.world.is_clean(), "{by}");
        assert!(
            bed.engine.list().await.unwrap().is_empty(),
            "an adopted volume is forgotten: {by}"
        );
        let error = line(&bed.engine.detach(asked, false).await.unwrap_err());
        assert!(error.contains("not attached here"), "{error}");
    }
}

#[tokio::test]
async fn what_is_attached_by_hand_stays_when_docker_leaves() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.attach("v1").await;
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert_eq!(bed.state("v1").await, State::Attached);
    let error = line(&bed.engine.remove("v1").await.unwrap_err());
    assert!(error.contains("attached by hand"), "{error}");
    bed.engine.detach("v1", false).await.unwrap();
    assert!(bed.world.is_clean());
}

#[tokio::test]
async fn a_busy_volume_is_not_detached_and_stays_what_it_was() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.engine.mount("v1", "c1").await.unwrap();
    let error = line(&bed.engine.detach("v1", false).await.unwrap_err());
    assert!(error.contains("1 mount is counted"), "{error}");
    bed.world.set_users(vec![user()]);
    let error = line(&bed.engine.detach("v1", true).await.unwrap_err());
    assert!(
        error.contains("process 4711 has it mounted on /data"),
        "{error}"
    );
    assert_eq!(bed.state("v1").await, State::Mounted);
    let error = line(&bed.engine.remove("v1").await.unwrap_err());
    assert!(error.contains("in use"), "{error}");
    bed.world.set_users(Vec::new());
    bed.engine.detach("v1", true).await.unwrap();
    assert!(bed.world.is_clean());
}

#[tokio::test]
async fn a_volume_whose_target_takes_no_more_writes_is_given_up_only_by_force() {
    let bed = Bed::new();
    bed.world.add_foreign("v1");
    bed.attach("v1").await;
    bed.world.fail("disconnect");
    bed.engine.detach("v1", false).await.unwrap_err();
    assert_eq!(bed.state("v1").await, State::Attached);
    bed.engine.detach("v1", true).await.unwrap();
    assert_eq!(
        bed.world.count("disconnect_by_force"),
        0,
        "the kernel was not asked"
    );
    assert!(bed.world.is_clean());
}

#[tokio::test]
async fn static_targets_need_no_cloud_and_undo_theirs_too() {
    let bed = Bed::new();
    bed.world.fail("find");
    bed.world.fail("connect");
    bed.engine.attach_static(static_target()).await.unwrap_err();
    assert!(bed.world.is_clean());
    assert_eq!(bed.journal(), 0);
    bed.world.heal();
    bed.world.fail("find");
    let view = bed.engine.attach_static(static_target()).await.unwrap();
    assert_eq!(view.name, "iqn.2026-11.example:disk-lun-3");
    let error = line(
        &bed.engine
            .attach_static(StaticTarget {
                read_only: true,
                ..static_target()
            })
            .await
            .unwrap_err(),
    );
    assert!(error.contains("attached read-write already"), "{error}");
    bed.engine
        .detach(&view.device.unwrap().display().to_string(), false)
        .await
        .unwrap();
    assert!(bed.world.is_clean());
    assert_eq!(bed.journal(), 0);
}

#[tokio::test]
async fn create_is_idempotent_by_name() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.create("v1").await;
    assert_eq!(bed.world.volumes().len(), 1);
    // Another host has made it, or our record was lost after Cinder had answered.
    bed.world.add("v2", ours());
    assert!(bed.create("v2").await.created_by_us);
    assert_eq!(bed.world.volumes().len(), 2);
    bed.world.add_foreign("v3");
    bed.world.add_foreign("v3");
    let error = line(
        &bed.engine
            .create("v3", CreateRequest::default())
            .await
            .unwrap_err(),
    );
    assert!(error.contains("several volumes"), "{error}");
    assert!(matches!(
        bed.engine.create("a/b", CreateRequest::default()).await,
        Err(Error::Name { .. })
    ));
}

#[tokio::test]
async fn a_volume_of_others_is_forgotten_not_deleted() {
    let bed = Bed::new();
    let id = bed.world.add_foreign("theirs");
    let request = CreateRequest {
        volume_id: Some(id),
        ..CreateRequest::default()
    };
    bed.engine.create("mine", request).await.unwrap();
    assert_eq!(bed.engine.list().await.unwrap()[0].name, "mine");
    bed.engine.remove("mine").await.unwrap();
    assert_eq!(bed.world.volumes().len(), 1);
    assert!(bed.engine.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn read_only_goes_all_the_way_down() {
    let bed = Bed::new();
    let id = bed.world.add("v1", ours());
    bed.world
        .set_content(&id, Content::Filesystem("ext4".to_owned()));
    let request = CreateRequest {
        read_only: true,
        mount_options: Some("noatime".to_owned()),
        ..CreateRequest::default()
    };
    bed.engine.create("v1", request).await.unwrap();
    bed.engine.mount("v1", "c1").await.unwrap();
    assert!(bed.world.options_of_last_mount().unwrap().is_read_only());
    assert!(bed.engine.get("v1").await.unwrap().read_only);
}

#[tokio::test]
async fn what_is_known_is_told_while_the_cloud_is_away() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.world.fail("find");
    assert_eq!(bed.engine.get("v1").await.unwrap().name, "v1");
    assert_eq!(bed.engine.list().await.unwrap().len(), 1);
    assert!(
        !bed.engine.get("v2").await.unwrap_err().is_absent(),
        "unknown is not absent"
    );
    bed.world.heal();
    assert!(bed.engine.get("v2").await.unwrap_err().is_absent());
}

#[tokio::test]
async fn a_stop_takes_everything_off_the_host() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.world.add_foreign("v2");
    bed.attach("v2").await;
    bed.engine.attach_static(static_target()).await.unwrap();
    let Bed {
        world,
        directory,
        engine,
        running,
    } = bed;
    running
        .stop(Duration::from_secs(20), Parting::TakeOff)
        .await;
    assert!(world.is_clean());
    assert!(matches!(engine.list().await, Err(Error::Stopping)));
    assert_eq!(
        std::fs::read_dir(directory.path().join("state/attachments"))
            .unwrap()
            .count(),
        0
    );
    // The record is kept: the next daemon knows the volume.
    let (engine, _running) = start(&world, directory.path());
    assert_eq!(engine.list().await.unwrap()[0].name, "v1");
}

#[tokio::test(start_paused = true)]
async fn a_stop_flushes_a_busy_volume_before_it_cuts_it_off() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.world.set_users(vec![user()]);
    bed.world.take_calls();
    let before = tokio::time::Instant::now();
    bed.running
        .stop(Duration::from_secs(20), Parting::TakeOff)
        .await;
    assert!(before.elapsed() < Duration::from_secs(21));
    let calls = bed.world.take_calls();
    let last: Vec<&str> = calls
        .iter()
        .map(String::as_str)
        .filter(|call| *call != "users")
        .collect();
    assert_eq!(
        last,
        [
            "sync",
            "unmount_lazily",
            "disconnect_by_force",
            "delete_attachment",
            "remove_metadata"
        ]
    );
    assert!(bed.world.is_clean());
}

#[tokio::test]
async fn after_a_reboot_what_was_left_is_rolled_back() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.engine.mount("v1", "c1").await.unwrap();
    let Bed {
        world,
        directory,
        engine,
        running,
    } = bed;
    drop(engine);
    drop(running);
    tokio::task::yield_now().await;
    world.reboot();
    let (engine, _running) = start(&world, directory.path());
    // Asking for it again is served after the rollback.
    engine
        .mount("v1", "c1")
        .await
        .unwrap_or_else(|error| panic!("{}", line(&error)));
    assert!(world.count("reclaim") == 1);
    assert_eq!(world.count("adopt"), 0);
    assert_eq!(
        (
            world.devices().len(),
            world.attachments().len(),
            world.mountpoints().len()
        ),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn two_daemons_do_not_share_a_directory() {
    let bed = Bed::new();
    let (cloud, platform) = (Arc::new(bed.world.clone()), Arc::new(bed.world.clone()));
    let second = Engine::start(World::settings(bed.directory.path()), cloud, platform);
    assert!(matches!(second, Err(Error::SecondDaemon { .. })));
}
