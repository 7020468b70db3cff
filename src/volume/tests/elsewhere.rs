//! Two hosts and one volume: who gets it, by which answer, and what happens to the other.

use super::super::context::FENCED;
use super::super::fake::Row;
use super::*;

/// A host of its own beside another: directory, name, daemon.
struct HostBed {
    world: World,
    engine: Engine,
    running: Running,
    directory: tempfile::TempDir,
}

impl HostBed {
    fn new(world: &World, host: &'static str, elsewhere: Elsewhere) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let world = world.on(host);
        let mut settings = World::settings(directory.path());
        host.clone_into(&mut settings.host);
        settings.elsewhere = elsewhere;
        let (engine, running) = start_with(&world, settings);
        Self {
            world,
            engine,
            running,
            directory,
        }
    }

    async fn attach(&self, elsewhere: Option<Elsewhere>) -> Result<View, Error> {
        let request = AttachRequest {
            elsewhere,
            ..AttachRequest::default()
        };
        self.engine.attach("v1", request).await
    }

    fn has_no_entries(&self) -> bool {
        let entries = self.directory.path().join("state/attachments");
        std::fs::read_dir(entries).unwrap().count() == 0
    }
}

/// `web1` has it; `web2` asks with this answer.
async fn two(elsewhere: Elsewhere) -> (String, HostBed, HostBed) {
    let world = World::default();
    let id = world.add_foreign("v1");
    let one = HostBed::new(&world, "web1", Elsewhere::Refuse);
    let other = HostBed::new(&world, "web2", elsewhere);
    one.attach(None).await.unwrap();
    (id, one, other)
}

#[tokio::test]
async fn refuse_names_who_and_since_when_and_changes_nothing() {
    let (id, one, other) = two(Elsewhere::Refuse).await;
    let before = one.world.volumes()[0].metadata.clone();
    let error = line(&other.attach(None).await.unwrap_err());
    for part in [
        "attached elsewhere",
        "cinder-nbd:web1:",
        "since 2026-11-22T18:35:56Z",
        "take",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(one.world.can_write(&id));
    assert_eq!(one.world.rows(&id).len(), 1);
    assert_eq!(one.world.volumes()[0].metadata, before);
    assert!(other.has_no_entries());
}

#[tokio::test(start_paused = true)]
async fn wait_gets_it_when_it_is_given_up_and_refuses_when_it_is_not() {
    let (id, one, other) = two(Elsewhere::Wait(Duration::from_mins(1))).await;
    let begun = tokio::time::Instant::now();
    let error = line(&other.attach(None).await.unwrap_err());
    assert!(error.contains("waited 60 s"), "{error}");
    assert!(begun.elapsed() >= Duration::from_mins(1));
    assert!(one.world.can_write(&id));
    let engine = other.engine.clone();
    let waiting = tokio::spawn(async move { engine.attach("v1", AttachRequest::default()).await });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!waiting.is_finished());
    one.engine.detach("v1", false).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert!(other.world.can_write(&id));
}

#[tokio::test]
async fn take_fences_the_holder_before_it_deletes_its_attachment() {
    let (id, one, other) = two(Elsewhere::Take).await;
    other.world.take_calls();
    let view = other.attach(None).await.unwrap();
    let calls = other.world.take_calls();
    let at = |call: &str| calls.iter().position(|made| made == call).unwrap();
    assert!(at("fence") < at("delete_attachment"), "{calls:?}");
    // And again by our own export, before there is a device: a target that is made anew has forgotten it.
    let last = calls.iter().rposition(|made| made == "fence").unwrap();
    assert!(at("connect_attachment") < last, "{calls:?}");
    assert!(last < at("connect"), "{calls:?}");
    assert!(!calls.contains(&"unfence".to_owned()), "{calls:?}");
    let taken = view.taken.unwrap();
    assert!(
        taken.contains("cinder-nbd:web1:") && taken.contains("fenced"),
        "{taken}"
    );
    assert!(other.world.can_write(&id));
    assert!(!one.world.can_write(&id));
    // As long as it is attached: the end of an attachment does not keep its host out everywhere.
    assert_eq!(one.world.fenced_for(&id), Some("web2"));
    assert!(one.world.volumes()[0].metadata.contains_key(FENCED));
    // The loser lets go of what it has, and takes nothing of the winner's with it.
    one.engine.detach("v1", false).await.unwrap();
    assert!(other.world.can_write(&id));
    assert_eq!(other.world.rows(&id).len(), 1);
    other.engine.detach("v1", false).await.unwrap();
    assert_eq!(one.world.fenced_for(&id), None);
    let volume = &one.world.volumes()[0];
    assert!(volume.metadata.is_empty(), "{:?}", volume.metadata);
}

#[tokio::test]
async fn a_host_that_had_taken_it_ends_no_fence_but_its_own() {
    let (id, _one, other) = two(Elsewhere::Take).await;
    other.attach(None).await.unwrap();
    let third = HostBed::new(&other.world, "web3", Elsewhere::Take);
    third.attach(None).await.unwrap();
    assert_eq!(other.world.fenced_for(&id), Some("web3"));
    other.engine.detach("v1", false).await.unwrap();
    assert_eq!(other.world.fenced_for(&id), Some("web3"));
    assert!(other.world.volumes()[0].metadata.contains_key(FENCED));
    third.engine.detach("v1", false).await.unwrap();
    assert_eq!(other.world.fenced_for(&id), None);
    assert!(!other.world.volumes()[0].metadata.contains_key(FENCED));
}

#[tokio::test]
async fn a_lun_that_cannot_be_fenced_is_not_taken_unless_that_is_said() {
    let (id, one, other) = two(Elsewhere::Take).await;
    other.world.forbid_reservations();
    let error = line(&other.attach(None).await.unwrap_err());
    for part in [
        "cannot be fenced",
        "take-without-fence",
        "invalid command operation code",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(one.world.can_write(&id));
    assert!(other.has_no_entries());
    assert!(!one.world.volumes()[0].metadata.contains_key(FENCED));
    let view = other
        .attach(Some(Elsewhere::TakeWithoutFence))
        .await
        .unwrap();
    assert!(view.taken.unwrap().contains("not fenced"));
    assert!(other.world.can_write(&id));
    assert!(!one.world.can_write(&id));
}

#[tokio::test]
async fn a_holder_whose_export_cannot_be_reached_is_not_taken() {
    let (id, one, other) = two(Elsewhere::Take).await;
    other.world.fail("connection_of");
    let error = line(&other.attach(None).await.unwrap_err());
    assert!(error.contains("cannot be fenced"), "{error}");
    assert!(one.world.can_write(&id));
    other.world.heal();
    // Fenced, and then Cinder does not let the row go: the holder may write again.
    other.world.fail("delete_attachment");
    let error = line(&other.attach(None).await.unwrap_err());
    assert!(error.contains("taking v1 away"), "{error}");
    assert!(one.world.can_write(&id));
    assert_eq!(one.world.fenced_for(&id), None);
}

#[tokio::test]
async fn a_volume_has_an_answer_of_its_own() {
    let world = World::default();
    let id = world.add("v1", ours());
    world.set_content(&id, Content::Filesystem("ext4".to_owned()));
    let one = HostBed::new(&world, "web1", Elsewhere::Refuse);
    let other = HostBed::new(&world, "web2", Elsewhere::Refuse);
    one.engine.mount("v1", "c1").await.unwrap();
    let request = CreateRequest {
        elsewhere: Some(Elsewhere::Take),
        ..CreateRequest::default()
    };
    other.engine.create("v1", request).await.unwrap();
    other.engine.mount("v1", "c1").await.unwrap();
    assert!(other.world.can_write(&id));
    assert!(!one.world.can_write(&id));
}

#[tokio::test]
async fn two_hosts_that_take_at_once_leave_one_holder() {
    for elsewhere in [Elsewhere::Take, Elsewhere::TakeWithoutFence] {
        let (id, one, other) = two(elsewhere).await;
        let third = HostBed::new(&one.world, "web3", elsewhere);
        let (second, third_got) = tokio::join!(other.attach(None), third.attach(None));
        let writers = [&one, &other, &third]
            .iter()
            .filter(|host| host.world.can_write(&id))
            .count();
        assert_eq!(writers, 1, "{second:?}\n{third_got:?}\n{:?}", one.world);
        assert_eq!(one.world.rows(&id).len(), 1);
        assert!(second.is_ok() || third_got.is_ok());
    }
}

#[tokio::test]
async fn a_fence_of_a_host_that_died_is_ended_by_whoever_attaches_next() {
    let world = World::default();
    let id = world.add_foreign("v1");
    world.mark(&id, FENCED, Some("0123456789abcdef"));
    let one = HostBed::new(&world, "web1", Elsewhere::Refuse);
    one.attach(None).await.unwrap();
    assert_eq!(one.world.count("unfence"), 1);
    assert!(!world.volumes()[0].metadata.contains_key(FENCED));
    assert!(one.world.can_write(&id));
}

#[tokio::test]
async fn a_row_of_this_host_without_a_journal_is_replaced_and_one_of_its_namesake_is_not() {
    let world = World::default();
    let id = world.add_foreign("v1");
    let one = HostBed::new(&world, "web1", Elsewhere::Refuse);
    let own = one.attach(None).await.unwrap();
    assert_eq!(own.volume_id.as_deref(), Some(&*id));
    let tag = one.world.rows(&id)[0].tag.clone();
    one.engine.detach("v1", false).await.unwrap();
    let row = |tag: Option<String>| Row {
        volume: String::new(),
        status: "attached",
        tag,
        host: Some("web1".to_owned()),
    };
    world.add_row(&id, row(tag));
    one.attach(None).await.unwrap();
    assert_eq!(world.rows(&id).len(), 1);
    one.engine.detach("v1", false).await.unwrap();
    // Another machine of the same name, or this one with another state directory.
    world.add_row(&id, row(Some("cinder-nbd:web1:ffffffff".to_owned())));
    let error = line(&one.attach(None).await.unwrap_err());
    assert!(error.contains("attached elsewhere"), "{error}");
    assert_eq!(world.rows(&id).len(), 1);
}

#[tokio::test]
async fn a_device_of_which_the_journal_knows_nothing_keeps_its_row() {
    let world = World::default();
    let id = world.add_foreign("v1");
    let one = HostBed::new(&world, "web1", Elsewhere::Refuse);
    one.attach(None).await.unwrap();
    let tag = one.world.rows(&id)[0].tag.clone();
    one.engine.detach("v1", false).await.unwrap();
    let row = Row {
        volume: String::new(),
        status: "attached",
        tag,
        host: Some("web1".to_owned()),
    };
    world.add_row(&id, row);
    one.world.add_device(&format!("cinder-nbd:0:{id}:v1"), &id);
    let error = line(&one.attach(None).await.unwrap_err());
    assert!(error.contains("doctor --repair"), "{error}");
    assert_eq!(world.rows(&id).len(), 1);
}

#[tokio::test]
async fn a_shared_volume_has_one_writer_of_its_filesystem_and_any_readers() {
    let world = World::default();
    let id = world.add("v1", ours());
    world.set_multiattach(&id);
    world.set_content(&id, Content::Filesystem("ext4".to_owned()));
    let one = HostBed::new(&world, "web1", Elsewhere::Refuse);
    let other = HostBed::new(&world, "web2", Elsewhere::Refuse);
    one.engine.mount("v1", "c1").await.unwrap();
    let error = line(&other.engine.mount("v1", "c1").await.unwrap_err());
    assert!(error.contains("one host that writes"), "{error}");
    assert_eq!(world.rows(&id).len(), 1);
    // Beside it, reading: without the log that the writer is writing.
    let request = CreateRequest {
        read_only: true,
        ..CreateRequest::default()
    };
    let reader = HostBed::new(&world, "web3", Elsewhere::Refuse);
    reader.engine.create("v1", request).await.unwrap();
    reader.engine.mount("v1", "c1").await.unwrap();
    let options = reader.world.options_of_last_mount().unwrap();
    assert!(options.is_read_only());
    assert!(format!("{options:?}").contains("noload"), "{options:?}");
    // Raw, for what is made to be shared.
    let raw = AttachRequest {
        raw: true,
        ..AttachRequest::default()
    };
    other.engine.attach("v1", raw).await.unwrap();
    assert_eq!(world.rows(&id).len(), 3);
    for host in [one, other, reader] {
        host.running
            .stop(Duration::from_secs(20), Parting::TakeOff)
            .await;
    }
    assert!(world.rows(&id).is_empty());
    assert_eq!(world.formats(&id), 0);
}

#[tokio::test]
async fn a_volume_that_is_no_iscsi_lun_is_refused_and_nothing_is_left() {
    // What Cinder's client says of it is the client's matter: here it is that the row goes.
    let bed = Bed::new();
    let id = bed.world.add_foreign("v1");
    bed.world.fail("connect_attachment");
    let attached = bed.engine.attach("v1", AttachRequest::default()).await;
    attached.unwrap_err();
    assert!(bed.world.rows(&id).is_empty());
    assert!(bed.world.volumes()[0].metadata.is_empty());
    assert_eq!(bed.journal(), 0);
}

#[test]
fn answers_are_read_as_they_are_written() {
    for text in ["refuse", "wait=30", "take", "take-without-fence"] {
        assert_eq!(text.parse::<Elsewhere>().unwrap().to_string(), text);
    }
    assert_eq!("wait 5".parse::<Elsewhere>().unwrap().to_string(), "wait=5");
    for text in [
        "",
        "steal",
        "wait",
        "wait=",
        "wait=-1",
        "wait=3601",
        "take!",
    ] {
        let error = text.parse::<Elsewhere>().unwrap_err().to_string();
        assert!(error.contains("use refuse, wait=SECONDS"), "{error}");
    }
}
