//! What is left over: found where it is ours, left alone where it may not be.

use super::super::context::ATTACHING;
use super::super::fake::Row;
use super::*;

fn kinds(found: &[Finding]) -> Vec<FindingKind> {
    let mut kinds: Vec<_> = found.iter().map(|finding| finding.kind).collect();
    kinds.sort_unstable();
    kinds
}

fn is_done(found: &[Finding]) -> bool {
    found.iter().all(|finding| finding.outcome == Some(Ok(())))
}

fn row(status: &'static str, tag: Option<String>) -> Row {
    Row {
        volume: String::new(),
        status,
        tag,
        host: Some("testhost".to_owned()),
    }
}

/// Tag and name by which this state directory is known.
fn own(bed: &Bed) -> (String, String) {
    let id = std::fs::read_to_string(bed.directory.path().join("state/installation")).unwrap();
    let name = format!("testhost:{}", &id[..8]);
    (format!("cinder-nbd:{name}"), name)
}

#[tokio::test]
async fn a_host_in_order_has_nothing_left_over() {
    let bed = Bed::new();
    bed.create("v1").await;
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.engine.attach_static(static_target()).await.unwrap();
    assert_eq!(bed.engine.doctor(true).await.unwrap(), []);
    assert_eq!(bed.world.devices().len(), 2);
    assert_eq!(bed.world.mountpoints().len(), 1);
}

#[tokio::test]
async fn all_kinds_of_leftovers_are_found_and_repaired_beside_a_daemon_at_work() {
    let bed = Bed::new();
    bed.create("busy").await;
    bed.engine.mount("busy", "c1").await.unwrap();
    let (tag, name) = own(&bed);
    let (lost, nameless) = (
        bed.world.add_foreign("lost"),
        bed.world.add_foreign("nameless"),
    );
    bed.world.add_row(&lost, row("attached", Some(tag)));
    let device = bed
        .world
        .add_device(&format!("cinder-nbd:0:{lost}:lost"), &lost);
    let at = bed.directory.path().join("mnt/lost");
    std::fs::create_dir_all(&at).unwrap();
    bed.world.add_mount(&at, &device);
    std::fs::create_dir_all(bed.directory.path().join("mnt/empty")).unwrap();
    bed.world
        .mark(&nameless, &format!("{ATTACHING}0"), Some(&name));
    bed.world.add_row(&nameless, row("reserved", None));
    let session = format!("run/sessions/{}.json", uuid::Uuid::new_v4());
    std::fs::write(bed.directory.path().join(&session), "{}").unwrap();
    let found = bed.engine.doctor(false).await.unwrap();
    let expected = [
        FindingKind::Attachment,
        FindingKind::Reservation,
        FindingKind::Tag,
        FindingKind::Device,
        FindingKind::Mount,
        FindingKind::Directory,
        FindingKind::Address,
    ];
    assert_eq!(kinds(&found), expected, "{found:#?}");
    assert!(found.iter().all(|finding| finding.outcome.is_none()));
    assert!(
        bed.world.devices().contains(&device),
        "looking changed something"
    );
    let repaired = bed.engine.doctor(true).await.unwrap();
    assert_eq!(kinds(&repaired), expected);
    assert!(is_done(&repaired), "{repaired:#?}");
    // The directory stood beneath the mount.
    let rest = bed.engine.doctor(true).await.unwrap();
    assert_eq!(kinds(&rest), [FindingKind::Directory]);
    assert_eq!(bed.engine.doctor(false).await.unwrap(), []);
    assert!(bed.world.rows(&lost).is_empty() && bed.world.rows(&nameless).is_empty());
    assert!(!bed.world.devices().contains(&device));
    // What is at work was not touched.
    assert_eq!(bed.state("busy").await, State::Mounted);
    assert!(bed.world.all_served());
    bed.engine.unmount("busy", "c1").await.unwrap();
    assert!(bed.world.is_clean());
}

#[tokio::test]
async fn what_may_be_anothers_is_named_and_left_alone() {
    let bed = Bed::new();
    let (_, name) = own(&bed);
    let (theirs, both) = (
        bed.world.add_foreign("theirs"),
        bed.world.add_foreign("both"),
    );
    let other_tag = Some("cinder-nbd:testhost:ffffffff".to_owned());
    bed.world.add_row(&theirs, row("attached", other_tag));
    bed.world
        .add_device(&format!("cinder-nbd:0:{theirs}:theirs"), &theirs);
    bed.world.add_device("cinder-nbd:1::static", "static");
    bed.world.mark(&both, &format!("{ATTACHING}0"), Some(&name));
    bed.world
        .mark(&both, &format!("{ATTACHING}1"), Some("web2:01234567"));
    bed.world.add_row(&both, row("reserved", None));
    let found = bed.engine.doctor(true).await.unwrap();
    let left: Vec<&Finding> = found.iter().filter(|one| !one.is_repairable).collect();
    assert_eq!(left.len(), 3, "{found:#?}");
    assert!(left.iter().all(|one| one.outcome.is_none()));
    assert_eq!(bed.world.devices().len(), 2);
    assert_eq!(bed.world.rows(&theirs).len(), 1);
    assert_eq!(bed.world.rows(&both).len(), 1);
    let tags = &bed.world.volumes()[1].metadata;
    assert!(tags.contains_key(&format!("{ATTACHING}1")), "{tags:?}");
}

#[tokio::test]
async fn a_device_in_use_and_a_cloud_that_is_away_are_left_alone() {
    let bed = Bed::new();
    let id = bed.world.add_foreign("lost");
    let device = bed
        .world
        .add_device(&format!("cinder-nbd:0:{id}:lost"), &id);
    bed.world.set_users(vec![user()]);
    let found = bed.engine.doctor(true).await.unwrap();
    assert_eq!(kinds(&found), [FindingKind::Device]);
    assert!(found[0].remedy.contains("somebody uses it"), "{found:?}");
    bed.world.set_users(Vec::new());
    bed.world.fail("list");
    let found = bed.engine.doctor(true).await.unwrap();
    assert_eq!(kinds(&found), [FindingKind::Device, FindingKind::Unknown]);
    assert_eq!(bed.world.devices(), [device]);
    bed.world.heal();
    assert!(is_done(&bed.engine.doctor(true).await.unwrap()));
    assert!(bed.world.is_clean());
}

#[tokio::test]
async fn without_a_daemon_what_was_begun_is_undone_and_what_stands_waits_for_one() {
    let bed = Bed::new();
    bed.world.add_foreign("v1");
    bed.world.add_foreign("v2");
    let attached = bed.engine.attach("v1", AttachRequest::default()).await;
    attached.unwrap();
    let _gate = bed.world.gate("complete");
    let engine = bed.engine.clone();
    let begun = tokio::spawn(async move { engine.attach("v2", AttachRequest::default()).await });
    while bed.world.count("complete") < 2 {
        tokio::task::yield_now().await;
    }
    let Bed {
        world,
        directory,
        engine,
        running,
    } = bed;
    let alone = async |is_repaired| {
        let living = Arc::new(world.living());
        let settings = World::settings(directory.path());
        examine_alone(settings, Arc::<World>::clone(&living), living, is_repaired).await
    };
    let refused = alone(true).await.unwrap_err();
    assert!(matches!(refused, Error::SecondDaemon { .. }), "{refused}");
    begun.abort();
    drop(engine);
    running.die().await;
    world.kill();
    let found = alone(false).await.unwrap();
    assert_eq!(kinds(&found), [FindingKind::Entry; 2], "{found:#?}");
    let repaired = alone(true).await.unwrap();
    let standing = repaired
        .iter()
        .find(|one| one.volume.as_deref() == Some("v1"));
    assert!(standing.unwrap().remedy.contains("waits for a daemon"));
    assert_eq!(world.devices().len(), 1);
    assert_eq!(world.attachments().len(), 1);
    let left = alone(true).await.unwrap();
    assert_eq!(left.len(), 1, "{left:#?}");
    let (engine, _running) = start(&world, directory.path());
    engine.detach("v1", false).await.unwrap();
    assert!(world.is_clean());
}
