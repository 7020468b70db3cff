//! `docs/errors.md`, the section of this room: each of its lines happens, and each kind of error has its line.

use support::errors::Section;

use super::super::fake::Row;
use super::restart::{killed, mounted, reborn, until, view};
use super::*;

/// A name for each kind: one that is new does not compile here until it has one.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::NoSuchVolume { .. } => "NoSuchVolume",
        Error::Name { .. } => "Name",
        Error::Invalid { .. } => "Invalid",
        Error::Step { .. } => "Step",
        Error::File { .. } => "File",
        Error::InUse { .. } => "InUse",
        Error::Elsewhere { .. } => "Elsewhere",
        Error::NoFence { .. } => "NoFence",
        Error::Guarded { .. } => "Guarded",
        Error::OtherMode { .. } => "OtherMode",
        Error::NotMountable { .. } => "NotMountable",
        Error::NotOurs { .. } => "NotOurs",
        Error::Leftover { .. } => "Leftover",
        Error::NoCloud => "NoCloud",
        Error::Overloaded { .. } => "Overloaded",
        Error::Stopping => "Stopping",
        Error::SecondDaemon { .. } => "SecondDaemon",
    }
}

const KINDS: usize = 17;

/// A wrong word in the daemon's file.
fn settings_with(text: &str) -> Error {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let config = Config::load_local(Some(file.path())).unwrap();
    Settings::try_from(&config).unwrap_err()
}

/// What is wrong before anything is asked for.
fn of_words() -> Vec<Error> {
    let check = |request: CreateRequest| request.check().unwrap_err();
    let text = |text: &str| Some(text.to_owned());
    vec![
        "a b".parse::<VolumeName>().unwrap_err(),
        "big".parse::<SizeGib>().unwrap_err(),
        "fat".parse::<Fstype>().unwrap_err(),
        MkfsOptions::parse("-F", Fstype::Ext4).unwrap_err(),
        MkfsOptions::parse("-b", Fstype::Xfs).unwrap_err(),
        parse_subdir("../etc").unwrap_err(),
        parse_mode("rwx").unwrap_err(),
        "keep".parse::<Reclaim>().unwrap_err(),
        "steal".parse::<Elsewhere>().unwrap_err(),
        settings_with("default_fstype = 'fat'"),
        settings_with("attached_elsewhere = 'steal'"),
        check(CreateRequest {
            image: text("i"),
            snapshot_id: text("s"),
            ..CreateRequest::default()
        }),
        check(CreateRequest {
            volume_id: text("v"),
            size: SizeGib::new(1),
            ..CreateRequest::default()
        }),
        check(CreateRequest {
            mount_options: text("bind"),
            ..CreateRequest::default()
        }),
    ]
}

/// What a volume of ours can be refused for.
async fn of_own_volume() -> Vec<Error> {
    let bed = Bed::new();
    let engine = &bed.engine;
    let default = CreateRequest::default;
    engine.create("v1", default()).await.unwrap();
    let id = bed.world.volumes()[0].id.clone();
    bed.world.set_snapshots(&id, &["s1"]);
    let mut errors = vec![
        engine.remove("v1").await.unwrap_err(),
        engine.mount("v2", "c1").await.unwrap_err(),
        engine.detach("v2", false).await.unwrap_err(),
    ];
    engine.mount("v1", "c1").await.unwrap();
    let read_only = AttachRequest {
        read_only: true,
        ..AttachRequest::default()
    };
    errors.push(engine.attach("v1", read_only).await.unwrap_err());
    errors.push(engine.detach("v1", false).await.unwrap_err());
    engine.extend("v1", SizeGib::new(2).unwrap()).await.unwrap();
    let smaller = engine.extend("v1", SizeGib::new(1).unwrap()).await;
    errors.push(smaller.unwrap_err());
    let (cloud, platform) = (Arc::new(bed.world.clone()), Arc::new(bed.world.clone()));
    let second = Engine::start(World::settings(bed.directory.path()), cloud, platform);
    errors.push(second.map(drop).unwrap_err());
    bed.world.fail("find");
    errors.push(engine.get("v3").await.unwrap_err());
    bed.running
        .stop(Duration::from_secs(20), Parting::TakeOff)
        .await;
    errors.push(engine.list().await.map(drop).unwrap_err());
    errors
}

/// What a volume of others can be refused for.
async fn of_foreign_volume() -> Vec<Error> {
    let bed = Bed::new();
    let (engine, world) = (&bed.engine, &bed.world);
    let id = world.add_foreign("v1");
    let mut errors = vec![engine.mount("v1", "c1").await.unwrap_err()];
    world.set_content(&id, Content::Other("crypto_LUKS".to_owned()));
    errors.push(engine.mount("v1", "c1").await.unwrap_err());
    let theirs = || Row {
        volume: String::new(),
        status: "attached",
        tag: Some("cinder-nbd:web2:01234567".to_owned()),
        host: Some("web2".to_owned()),
    };
    world.add_row(&id, theirs());
    let attach = async |elsewhere| {
        let request = AttachRequest {
            elsewhere: Some(elsewhere),
            ..AttachRequest::default()
        };
        engine.attach("v1", request).await.map(drop)
    };
    errors.push(attach(Elsewhere::Refuse).await.unwrap_err());
    world.forbid_reservations();
    errors.push(attach(Elsewhere::Take).await.unwrap_err());
    world.drop_rows(&id);
    world.fail("connect");
    world.fail("delete_attachment");
    errors.push(attach(Elsewhere::Refuse).await.unwrap_err());
    world.heal();
    attach(Elsewhere::Refuse).await.unwrap();
    let tag = world.rows(&id)[0].tag.clone();
    engine.detach("v1", false).await.unwrap();
    world.add_row(&id, Row { tag, ..theirs() });
    world.add_device(&format!("cinder-nbd:0:{id}:v1"), &id);
    errors.push(attach(Elsewhere::Refuse).await.unwrap_err());
    std::fs::remove_dir_all(bed.directory.path().join("state/attachments")).unwrap();
    errors.push(
        engine
            .attach_static(static_target())
            .await
            .map(drop)
            .unwrap_err(),
    );
    errors
}

/// Why a device that a process before this one had is not served again, as `cinder-nbd list` shows it.
async fn of_restarts() -> Vec<String> {
    let changes = [
        ("\"lanes\": 2", "\"lanes\": 17"),
        ("\"block_bytes\": 512", "\"block_bytes\": 513"),
    ];
    let mut errors = Vec::new();
    for (from, to) in changes {
        let (world, directory) = killed(mounted().await).await;
        let entries = directory.path().join("state/attachments");
        let file = std::fs::read_dir(&entries).unwrap().next().unwrap();
        let file = file.unwrap().path();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
        errors.push(last_error(&reborn((world, directory))).await);
    }
    let bed = Bed::new();
    bed.engine.attach_static(static_target()).await.unwrap();
    let (world, directory) = killed(bed).await;
    std::fs::remove_dir_all(directory.path().join("run/sessions")).unwrap();
    errors.push(last_error(&reborn((world, directory))).await);
    errors
}

async fn last_error(bed: &Bed) -> String {
    until("tried", async || view(bed).await.last_error.is_some()).await;
    view(bed).await.last_error.unwrap()
}

async fn of_no_cloud() -> Error {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, platform) = (ConfiguredCloud::new(None), World::default());
    let settings = World::settings(directory.path());
    let (engine, _running) = Engine::start(settings, Arc::new(cloud), Arc::new(platform)).unwrap();
    engine.get("v1").await.unwrap_err()
}

async fn of_a_crowd() -> Error {
    let bed = Bed::new();
    bed.world.add_foreign("v1");
    let _never = bed.world.gate("reserve");
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..80 {
        let engine = bed.engine.clone();
        calls.spawn(async move { engine.mount("v1", &number.to_string()).await });
    }
    loop {
        let ended = calls.join_next().await.unwrap().unwrap();
        if let Err(error) = ended {
            return error;
        }
    }
}

#[tokio::test]
async fn every_error_of_a_volume_happens_and_stands_in_the_document() {
    let mut errors = of_words();
    errors.extend(of_own_volume().await);
    errors.extend(of_foreign_volume().await);
    errors.push(of_no_cloud().await);
    errors.push(of_a_crowd().await);
    let kinds: std::collections::BTreeSet<_> = errors.iter().map(kind).collect();
    assert_eq!(kinds.len(), KINDS, "not all kinds happened: {kinds:?}");
    let mut texts: Vec<String> = errors.iter().map(|error| line(error)).collect();
    texts.extend(of_restarts().await);
    Section::read("Volumes").assert_is_of(&texts);
}
