//! Snapshots of what is used: frozen, never for longer than was allowed, thawed whatever fails.

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn asked(name: &str, freeze_limit: Option<Duration>) -> SnapshotRequest {
    SnapshotRequest {
        name: name.to_owned(),
        description: None,
        freeze_limit,
    }
}

async fn mounted() -> Bed {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.world.take_calls();
    bed
}

#[tokio::test]
async fn a_mounted_filesystem_is_frozen_while_the_snapshot_is_taken() {
    let bed = mounted().await;
    let taken = bed.engine.snapshot("v1", asked("s1", Some(LIMIT))).await;
    let taken = taken.unwrap();
    assert_eq!(taken.consistency, Consistency::Filesystem);
    assert_eq!(taken.snapshot.status, "available");
    assert_eq!(bed.world.taken(), [("s1".to_owned(), true)]);
    assert!(!bed.world.is_frozen());
    let calls = bed.world.take_calls();
    let order: Vec<_> = calls.iter().filter(|call| *call != "find").collect();
    assert_eq!(
        order,
        ["freeze", "begin_snapshot", "await_snapshot", "thaw"]
    );
}

#[tokio::test]
async fn what_is_in_it_is_told() {
    let bed = mounted().await;
    // Not wished.
    let taken = bed.engine.snapshot("v1", asked("s1", None)).await.unwrap();
    assert_eq!(taken.consistency, Consistency::Crash);
    // Attached, and whatever is on it is not mounted by us.
    bed.world.add_foreign("v2");
    bed.attach("v2").await;
    let taken = bed.engine.snapshot("v2", asked("s2", Some(LIMIT))).await;
    assert_eq!(taken.unwrap().consistency, Consistency::Crash);
    // Nobody has it, and nothing is known of it here afterwards.
    bed.world.add_foreign("v3");
    let taken = bed.engine.snapshot("v3", asked("s3", Some(LIMIT))).await;
    assert_eq!(taken.unwrap().consistency, Consistency::Unused);
    assert_eq!(bed.world.count("freeze"), 0);
    let views = bed.engine.list().await.unwrap();
    assert!(views.iter().all(|view| view.name != "v3"), "{views:?}");
    let absent = bed.engine.snapshot("v4", asked("s4", Some(LIMIT))).await;
    assert!(absent.unwrap_err().is_absent());
}

#[tokio::test(start_paused = true)]
async fn writes_wait_no_longer_than_was_allowed() {
    let bed = mounted().await;
    let gate = bed.world.gate("await_snapshot");
    let before = tokio::time::Instant::now();
    let taken = bed.engine.snapshot("v1", asked("s1", Some(LIMIT))).await;
    let taken = taken.unwrap();
    assert_eq!(before.elapsed(), LIMIT);
    assert_eq!(taken.consistency, Consistency::Crash);
    assert_eq!(taken.snapshot.status, "creating");
    assert!(!bed.world.is_frozen());
    gate.notify_one();
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_it_is_thawed() {
    for call in ["begin_snapshot", "await_snapshot", "freeze"] {
        let bed = mounted().await;
        bed.world.fail(call);
        let taken = bed.engine.snapshot("v1", asked("s1", Some(LIMIT))).await;
        match call {
            // It was begun: that it is there is worth more than that it could not be looked at.
            "await_snapshot" => assert_eq!(taken.unwrap().consistency, Consistency::Crash),
            _ => drop(taken.unwrap_err()),
        }
        assert!(!bed.world.is_frozen(), "{call}");
        bed.world.heal();
        tokio::time::sleep(Duration::from_secs(31)).await;
        bed.engine.unmount("v1", "c1").await.unwrap();
        assert_eq!(bed.state("v1").await, State::Detached, "{call}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_thawed_is_thawed_later_and_not_unmounted_before() {
    let bed = mounted().await;
    bed.world.fail("thaw");
    let error = bed.engine.snapshot("v1", asked("s1", Some(LIMIT))).await;
    let error = line(&error.unwrap_err());
    assert!(error.contains("thawing the filesystem at"), "{error}");
    bed.world.heal();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(!bed.world.is_frozen());
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert_eq!(bed.state("v1").await, State::Detached);
}

#[tokio::test]
async fn what_a_dead_daemon_has_frozen_the_next_one_thaws() {
    let Bed {
        world,
        directory,
        engine,
        running,
    } = mounted().await;
    let gate = world.gate("await_snapshot");
    let asking = tokio::spawn(async move { engine.snapshot("v1", asked("s1", Some(LIMIT))).await });
    while !world.is_frozen() || world.taken().is_empty() {
        tokio::task::yield_now().await;
    }
    running.die().await;
    asking.await.unwrap().unwrap_err();
    world.kill();
    gate.notify_one();
    assert!(world.is_frozen());
    let (engine, _running) = start(&world, directory.path());
    // As soon as the device is served again.
    while engine.get("v1").await.unwrap().state == State::Waiting {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!world.is_frozen());
}
