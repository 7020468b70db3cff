//! What becomes of attached volumes when the daemon ends, by a kill or in order, and another one starts.

use super::*;

/// Dead without a word: kernel and Cinder keep what they have.
pub(super) async fn killed(bed: Bed) -> (World, tempfile::TempDir) {
    let Bed {
        world,
        directory,
        engine,
        running,
    } = bed;
    drop(engine);
    drop(running);
    tokio::task::yield_now().await;
    world.kill();
    world.take_calls();
    (world, directory)
}

pub(super) fn reborn((world, directory): (World, tempfile::TempDir)) -> Bed {
    let (engine, running) = start(&world, directory.path());
    Bed {
        world,
        directory,
        engine,
        running,
    }
}

pub(super) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    for _ in 0..6000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to be: {what}");
}

async fn served(bed: &Bed) {
    until("served", async || bed.world.all_served()).await;
    // The worker hears of it after the world.
    until("shown", async || {
        let views = bed.engine.list().await.unwrap();
        views.iter().all(|view| view.state != State::Waiting)
    })
    .await;
}

pub(super) async fn view(bed: &Bed) -> View {
    bed.engine.list().await.unwrap().remove(0)
}

pub(super) async fn mounted() -> Bed {
    let bed = Bed::new();
    let request = CreateRequest::default();
    bed.engine.create("v1", request).await.unwrap();
    bed.engine.mount("v1", "c1").await.unwrap();
    bed
}

/// What must not happen to a volume that containers go on using.
fn assert_untouched(world: &World) {
    for call in [
        "reclaim",
        "connect",
        "reserve",
        "unmount",
        "unmount_lazily",
        "delete_attachment",
        "mount",
        "format",
        "disconnect_by_force",
    ] {
        assert_eq!(world.count(call), 0, "{call}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mounted_volume_goes_on_after_a_kill() {
    let bed = mounted().await;
    bed.engine.mount("v1", "c2").await.unwrap();
    let before = view(&bed).await;
    let bed = reborn(killed(bed).await);
    // From the first moment on, as Docker asks at once.
    let early = view(&bed).await;
    assert_eq!((early.state, early.mounts), (State::Waiting, 2));
    assert_eq!(early.mountpoint, before.mountpoint);
    served(&bed).await;
    assert_untouched(&bed.world);
    assert_eq!(bed.world.kept().len(), 1);
    let after = view(&bed).await;
    assert_eq!(after, before);
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert_eq!(view(&bed).await.mounts, 1);
    // What was counted since then is known after the next kill, too.
    let bed = reborn(killed(bed).await);
    served(&bed).await;
    assert_eq!(view(&bed).await.mounts, 1);
    bed.engine.unmount("v1", "c2").await.unwrap();
    assert!(bed.world.is_clean());
    assert_eq!(bed.journal(), 0);
    let sessions = bed.directory.path().join("run/sessions");
    assert_eq!(std::fs::read_dir(sessions).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_attached_by_hand_is_served_again_without_a_cloud() {
    let bed = Bed::new();
    bed.engine.attach_static(static_target()).await.unwrap();
    let before = view(&bed).await;
    let bed = reborn(killed(bed).await);
    served(&bed).await;
    assert_eq!(view(&bed).await, before);
    assert!(before.held);
    assert_eq!(bed.world.take_calls(), ["find_device", "adopt"]);
    bed.engine.detach(&before.name, false).await.unwrap();
    assert!(bed.world.is_clean());
}

#[tokio::test(start_paused = true)]
async fn while_the_target_is_away_containers_come_and_go_and_nothing_is_given_up() {
    let (world, directory) = killed(mounted().await).await;
    world.fail("adopt");
    let bed = reborn((world, directory));
    until("tried", async || view(&bed).await.last_error.is_some()).await;
    let waiting = view(&bed).await;
    assert_eq!(waiting.state, State::Waiting);
    assert!(waiting.device.is_some() && waiting.identity.is_some());
    assert!(waiting.last_error.unwrap().contains("adopt fails"));
    let at = bed.engine.mount("v1", "c2").await.unwrap();
    assert_eq!(Some(at), waiting.mountpoint);
    for refused in [
        bed.engine.detach("v1", false).await,
        bed.engine.remove("v1").await,
    ] {
        assert!(matches!(refused, Err(Error::InUse { .. })), "{refused:?}");
    }
    bed.engine.unmount("v1", "c1").await.unwrap();
    bed.engine.unmount("v1", "c2").await.unwrap();
    let refused = bed.engine.detach("v1", false).await.unwrap_err();
    assert!(line(&refused).contains("adopt fails"), "{}", line(&refused));
    // An hour later it still tries, and not too often.
    bed.world.take_calls();
    tokio::time::sleep(Duration::from_hours(1)).await;
    let attempts = bed.world.count("adopt");
    assert!((100..=130).contains(&attempts), "{attempts}");
    assert_untouched(&bed.world);
    bed.world.heal();
    // Nobody wants it any more: once it is served it comes off in order.
    until("off", async || bed.world.is_clean()).await;
    assert_eq!(bed.world.count("disconnect"), 1);
    assert_eq!(bed.world.count("reclaim"), 0);
}

#[tokio::test(start_paused = true)]
async fn another_unit_behind_the_lun_is_never_served_and_goes_by_force_alone() {
    let bed = mounted().await;
    let key = view(&bed).await.volume_id.unwrap();
    let (world, directory) = killed(bed).await;
    world.exchange(&key, "another");
    world.set_users(vec![user()]);
    let bed = reborn((world, directory));
    until("tried", async || view(&bed).await.last_error.is_some()).await;
    let error = view(&bed).await.last_error.unwrap();
    assert!(error.contains("serial was"), "{error}");
    let counted = bed.engine.detach("v1", false).await.unwrap_err();
    assert!(matches!(counted, Error::InUse { .. }), "{counted}");
    let used = bed.engine.detach("v1", true).await.unwrap_err();
    assert!(line(&used).contains("4711"), "{}", line(&used));
    assert_untouched(&bed.world);
    assert!(!bed.world.all_served());
    bed.world.set_users(Vec::new());
    bed.engine.detach("v1", true).await.unwrap();
    assert!(bed.world.is_clean());
    assert_eq!(bed.journal(), 0);
    assert_eq!(bed.state("v1").await, State::Detached);
}

#[tokio::test(start_paused = true)]
async fn cinder_is_asked_for_an_address_that_was_lost() {
    let (world, directory) = killed(mounted().await).await;
    std::fs::remove_dir_all(directory.path().join("run/sessions")).unwrap();
    let bed = reborn((world, directory));
    served(&bed).await;
    assert_eq!(
        bed.world.take_calls(),
        ["find_device", "is_mounted", "connection_of", "adopt"]
    );
    // It is kept again.
    let bed = reborn(killed(bed).await);
    served(&bed).await;
    assert_eq!(bed.world.count("connection_of"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_static_target_whose_address_was_lost_is_named_and_given_up_by_force() {
    let bed = Bed::new();
    bed.engine.attach_static(static_target()).await.unwrap();
    let name = view(&bed).await.name;
    let (world, directory) = killed(bed).await;
    std::fs::remove_dir_all(directory.path().join("run/sessions")).unwrap();
    let bed = reborn((world, directory));
    until("tried", async || view(&bed).await.last_error.is_some()).await;
    let error = view(&bed).await.last_error.unwrap();
    assert!(error.contains(&format!("detach --force {name}")), "{error}");
    assert_eq!(bed.world.count("adopt"), 0);
    bed.engine.detach(&name, true).await.unwrap();
    assert!(bed.world.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_was_tampered_with_serves_nothing() {
    for (from, to) in [
        ("\"lanes\": 2", "\"lanes\": 0"),
        ("\"lanes\": 2", "\"lanes\": 17"),
        ("\"block_bytes\": 512", "\"block_bytes\": 513"),
    ] {
        let (world, directory) = killed(mounted().await).await;
        let entries = directory.path().join("state/attachments");
        let file = std::fs::read_dir(&entries).unwrap().next().unwrap();
        let file = file.unwrap().path();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
        let bed = reborn((world, directory));
        until("tried", async || view(&bed).await.last_error.is_some()).await;
        assert_eq!(bed.world.count("adopt"), 0);
        assert_untouched(&bed.world);
        assert_eq!(bed.state("v1").await, State::Waiting);
    }
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_cannot_be_asked_is_asked_again() {
    let (world, directory) = killed(mounted().await).await;
    world.fail("find_device");
    let bed = reborn((world, directory));
    until("tried", async || view(&bed).await.last_error.is_some()).await;
    assert_untouched(&bed.world);
    bed.world.heal();
    served(&bed).await;
    assert_untouched(&bed.world);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_went_while_it_waited_is_cleaned_up_after() {
    let (world, directory) = killed(mounted().await).await;
    world.fail("adopt");
    let bed = reborn((world, directory));
    until("tried", async || view(&bed).await.last_error.is_some()).await;
    bed.world.lose_devices();
    until("cleaned", async || bed.world.is_clean()).await;
    assert_eq!(bed.state("v1").await, State::Detached);
}

#[tokio::test(start_paused = true)]
async fn what_was_unmounted_meanwhile_is_not_taken_for_mounted() {
    let (world, directory) = killed(mounted().await).await;
    world.unmount_by_hand();
    let bed = reborn((world, directory));
    served(&bed).await;
    assert_eq!(view(&bed).await.state, State::Attached);
    bed.engine.mount("v1", "c2").await.unwrap();
    assert_eq!(bed.world.count("format"), 0);
    assert_eq!(bed.world.mountpoints().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_needs_the_device_waits_for_the_attempt_under_way() {
    let (world, directory) = killed(mounted().await).await;
    let gate = world.gate("adopt");
    let bed = reborn((world, directory));
    until("begun", async || bed.world.count("adopt") == 1).await;
    // What is known is told meanwhile.
    bed.engine.mount("v1", "c2").await.unwrap();
    bed.engine.unmount("v1", "c2").await.unwrap();
    bed.engine.unmount("v1", "c1").await.unwrap();
    let engine = bed.engine.clone();
    let detached = tokio::spawn(async move { engine.detach("v1", false).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!detached.is_finished());
    gate.notify_one();
    detached.await.unwrap().unwrap();
    assert!(bed.world.is_clean());
    assert_eq!(bed.world.count("adopt"), 1);
}

#[tokio::test]
async fn an_attach_that_was_interrupted_is_rolled_back() {
    let bed = Bed::new();
    let request = CreateRequest::default();
    bed.engine.create("v1", request).await.unwrap();
    let _gate = bed.world.gate("complete");
    let engine = bed.engine.clone();
    let mount = tokio::spawn(async move { engine.mount("v1", "c1").await });
    until("nearly", async || bed.world.count("complete") == 1).await;
    mount.abort();
    let (world, directory) = killed(bed).await;
    let bed = reborn((world, directory));
    until("rolled back", async || bed.world.is_clean()).await;
    assert_eq!(bed.world.count("adopt"), 0);
    until("forgotten", async || bed.journal() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_planned_restart_leaves_what_is_in_use_and_takes_the_rest_off() {
    let bed = mounted().await;
    bed.engine.attach_static(static_target()).await.unwrap();
    let before = bed.engine.list().await.unwrap();
    bed.world.take_calls();
    let Bed {
        world,
        directory,
        engine: _,
        running,
    } = bed;
    running
        .stop(Duration::from_secs(20), Parting::LeaveUsed)
        .await;
    assert_eq!(world.take_calls(), ["hand_over", "hand_over"]);
    assert_eq!(world.devices().len(), 2);
    assert!(!world.all_served());
    let bed = reborn((world, directory));
    served(&bed).await;
    assert_untouched(&bed.world);
    assert_eq!(bed.engine.list().await.unwrap(), before);
    bed.running
        .stop(Duration::from_secs(20), Parting::TakeOff)
        .await;
    assert!(bed.world.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_planned_restart_takes_off_what_nobody_uses() {
    let bed = mounted().await;
    // The unmount cannot disconnect: the device stays, unmounted and unwanted.
    bed.world.fail("disconnect");
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert_eq!(view(&bed).await.state, State::Attached);
    bed.world.heal();
    bed.world.take_calls();
    bed.running
        .stop(Duration::from_secs(20), Parting::LeaveUsed)
        .await;
    assert!(bed.world.is_clean());
    assert_eq!(bed.world.count("hand_over"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_that_fails_or_hangs_leaves_the_device_all_the_same() {
    for hangs in [false, true] {
        let bed = mounted().await;
        if hangs {
            let _gate = bed.world.gate("hand_over");
        } else {
            bed.world.fail("hand_over");
        }
        bed.world.take_calls();
        let before = tokio::time::Instant::now();
        let Bed {
            world,
            directory,
            engine: _,
            running,
        } = bed;
        running
            .stop(Duration::from_secs(20), Parting::LeaveUsed)
            .await;
        assert!(before.elapsed() <= Duration::from_secs(21));
        assert_untouched(&world);
        world.kill();
        let bed = reborn((world, directory));
        served(&bed).await;
        assert_eq!(view(&bed).await.mounts, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_leaves_a_device_that_is_not_served_as_it_is() {
    for parting in [Parting::TakeOff, Parting::LeaveUsed] {
        let (world, directory) = killed(mounted().await).await;
        world.fail("adopt");
        let bed = reborn((world, directory));
        until("tried", async || view(&bed).await.last_error.is_some()).await;
        let Bed {
            world,
            directory,
            engine: _,
            running,
        } = bed;
        running.stop(Duration::from_secs(20), parting).await;
        assert_untouched(&world);
        world.heal();
        let bed = reborn((world, directory));
        served(&bed).await;
    }
}
