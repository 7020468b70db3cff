//! Creation, deletion and growth; callers that have no time; a cloud that hangs.

use super::super::fake::Row;
use super::*;

fn created(size: u64) -> CreateRequest {
    CreateRequest {
        size: SizeGib::new(size),
        ..CreateRequest::default()
    }
}

#[tokio::test]
async fn a_creation_whose_answer_was_lost_is_found_by_its_mark() {
    let bed = Bed::new();
    // Made, and then the answer is lost.
    bed.world.lose_answer("create");
    let view = bed.engine.create("v1", created(2)).await.unwrap();
    assert!(view.created_by_us && view.pending.is_none(), "{view:?}");
    assert_eq!(bed.world.volumes().len(), 1);
    // A namesake without our mark is not taken for it.
    bed.world.heal();
    bed.world.fail("create");
    let engine = bed.engine.clone();
    engine.create("v2", created(2)).await.unwrap_err();
    assert_eq!(bed.state("v2").await, State::Detached);
    assert!(bed.engine.get("v2").await.unwrap_err().is_absent());
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_cannot_be_asked_after_is_settled_later() {
    for was_made in [true, false] {
        let bed = Bed::new();
        if was_made {
            bed.world.lose_answer("create");
        } else {
            bed.world.fail("create");
        }
        bed.world.fail("named");
        bed.engine.create("v1", created(2)).await.unwrap_err();
        let view = bed.engine.list().await.unwrap().remove(0);
        assert_eq!(view.pending.as_deref(), Some("creating"));
        assert_eq!(view.state, State::Cleaning);
        bed.world.heal();
        tokio::time::sleep(Duration::from_secs(31)).await;
        let views = bed.engine.list().await.unwrap();
        assert_eq!(views.len(), usize::from(was_made), "{views:?}");
        bed.engine.create("v1", created(2)).await.unwrap();
        assert_eq!(bed.world.volumes().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cinder_could_not_make_is_not_left_behind() {
    let bed = Bed::new();
    bed.world.lose_answer("create");
    bed.world.fail("named");
    bed.engine.create("v1", created(2)).await.unwrap_err();
    let id = bed.world.volumes()[0].id.clone();
    bed.world.heal();
    bed.world.set_status(&id, "creating");
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(bed.engine.list().await.unwrap().len(), 1);
    bed.world.set_status(&id, "error");
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(bed.world.volumes().is_empty());
    assert!(bed.engine.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_deleted_depends_on_who_made_it_unless_it_was_said() {
    let cases = [
        (false, None, true),
        (false, Some(Reclaim::Retain), false),
        (false, Some(Reclaim::Delete), true),
        (true, None, false),
        (true, Some(Reclaim::Retain), false),
        (true, Some(Reclaim::Delete), true),
    ];
    for (is_adopted, reclaim, is_deleted) in cases {
        let bed = Bed::new();
        // Adopted ones bear a cinder-nbd's mark too: it is not this name that they were made for.
        let id = is_adopted.then(|| bed.world.add("old", ours()));
        let request = CreateRequest {
            volume_id: id,
            reclaim,
            ..CreateRequest::default()
        };
        bed.engine.create("v1", request).await.unwrap();
        bed.engine.remove("v1").await.unwrap();
        let what = format!("{is_adopted} {reclaim:?}");
        assert_eq!(bed.world.volumes().is_empty(), is_deleted, "{what}");
        assert!(bed.engine.list().await.unwrap().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_deletion_is_refused_for_snapshots_and_for_other_hosts() {
    let bed = Bed::new();
    bed.engine.create("v1", created(1)).await.unwrap();
    let id = bed.world.volumes()[0].id.clone();
    bed.world.set_snapshots(&id, &["s1", "s2", "s3", "s4"]);
    let error = line(&bed.engine.remove("v1").await.unwrap_err());
    assert!(error.contains("4 snapshots (s1, s2, s3, ...)"), "{error}");
    bed.world.set_snapshots(&id, &[]);
    let row = Row {
        volume: String::new(),
        status: "attached",
        tag: Some("cinder-nbd:web2:01234567".to_owned()),
        host: Some("web2".to_owned()),
    };
    bed.world.add_row(&id, row);
    let error = line(&bed.engine.remove("v1").await.unwrap_err());
    assert!(
        error.contains("attached elsewhere") && error.contains("web2"),
        "{error}"
    );
    assert_eq!(bed.world.count("delete"), 0);
    let view = bed.engine.get("v1").await.unwrap();
    assert_eq!(view.pending, None);
    bed.world.drop_rows(&id);
    bed.world.fail("delete");
    bed.engine.remove("v1").await.unwrap_err();
    let view = bed.engine.get("v1").await.unwrap();
    assert_eq!((view.pending, view.state), (None, State::Detached));
    bed.world.heal();
    bed.engine.remove("v1").await.unwrap();
    assert!(bed.world.volumes().is_empty());
}

#[tokio::test]
async fn an_extension_reaches_the_filesystem_and_shows() {
    let bed = Bed::new();
    bed.engine.create("v1", created(1)).await.unwrap();
    bed.engine.mount("v1", "c1").await.unwrap();
    let id = bed.world.volumes()[0].id.clone();
    let view = bed
        .engine
        .extend("v1", SizeGib::new(3).unwrap())
        .await
        .unwrap();
    assert_eq!(bed.world.grown(&id), (3, 3));
    let shown = (view.size_gib, view.device_bytes, view.filesystem_bytes);
    assert_eq!(shown, (Some(3), Some(3 << 30), Some(3 << 30)));
    let error = line(
        &bed.engine
            .extend("v1", SizeGib::new(2).unwrap())
            .await
            .unwrap_err(),
    );
    assert!(error.contains("do not shrink"), "{error}");
    // Asked for what it has: done.
    bed.engine
        .extend("v1", SizeGib::new(3).unwrap())
        .await
        .unwrap();
    assert_eq!(bed.engine.get("v1").await.unwrap().pending, None);
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_stops_half_way_is_gone_on_with() {
    for failing in ["grow_device", "grow_filesystem"] {
        let bed = Bed::new();
        bed.engine.create("v1", created(1)).await.unwrap();
        bed.engine.mount("v1", "c1").await.unwrap();
        let id = bed.world.volumes()[0].id.clone();
        bed.world.fail(failing);
        let size = SizeGib::new(3).unwrap();
        let error = line(&bed.engine.extend("v1", size).await.unwrap_err());
        assert!(error.contains(failing), "{error}");
        let view = bed.engine.get("v1").await.unwrap();
        assert_eq!(view.pending.as_deref(), Some("extending to 3 GiB"));
        assert_eq!(view.state, State::Mounted);
        bed.world.heal();
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(bed.world.grown(&id), (3, 3), "{failing}");
        assert_eq!(bed.engine.get("v1").await.unwrap().pending, None);
    }
    let bed = Bed::new();
    bed.engine.create("v1", created(1)).await.unwrap();
    bed.world.fail("extend");
    let size = SizeGib::new(3).unwrap();
    bed.engine.extend("v1", size).await.unwrap_err();
    let view = bed.engine.get("v1").await.unwrap();
    assert_eq!((view.pending, view.size_gib), (None, Some(1)));
}

#[tokio::test]
async fn a_volume_that_grew_behind_our_back_grows_its_filesystem_at_the_next_mount() {
    let bed = Bed::new();
    bed.engine.create("v1", created(1)).await.unwrap();
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.engine.unmount("v1", "c1").await.unwrap();
    let id = bed.world.volumes()[0].id.clone();
    bed.world.set_size(&id, 4);
    // A growth that fails is no reason to refuse the mount.
    bed.world.fail("grow_filesystem");
    bed.engine.mount("v1", "c1").await.unwrap();
    let view = bed.engine.get("v1").await.unwrap();
    assert!(
        view.last_error.is_some() && view.state == State::Mounted,
        "{view:?}"
    );
    bed.engine.unmount("v1", "c1").await.unwrap();
    bed.world.heal();
    bed.engine.mount("v1", "c1").await.unwrap();
    assert_eq!(bed.world.grown(&id), (4, 4));
    assert_eq!(bed.engine.get("v1").await.unwrap().size_gib, Some(4));
    // One that was found as it is, is left as it is.
    let found = bed.world.add("old", ours());
    bed.world
        .set_content(&found, Content::Filesystem("ext4".to_owned()));
    bed.world.set_size(&found, 7);
    bed.engine.mount("old", "c1").await.unwrap();
    assert_eq!(bed.world.grown(&found), (1, 1));
}

#[tokio::test]
async fn a_raw_device_is_extended_without_a_record_that_stays() {
    let bed = Bed::new();
    let id = bed.world.add_foreign("v1");
    let attached = bed.engine.attach("v1", AttachRequest::default()).await;
    attached.unwrap();
    bed.engine
        .extend(&id, SizeGib::new(2).unwrap())
        .await
        .unwrap();
    assert_eq!(bed.world.grown(&id), (2, 1));
    bed.engine.detach("v1", false).await.unwrap();
    assert!(bed.engine.list().await.unwrap().is_empty());
    let records = bed.directory.path().join("state/volumes");
    assert_eq!(std::fs::read_dir(records).unwrap().count(), 0);
}

#[tokio::test]
async fn one_volume_whose_cloud_call_hangs_for_ever_holds_up_no_other() {
    let bed = Bed::new();
    bed.world.add_foreign("hangs");
    let _never = bed.world.gate_for("reserve", "hangs");
    let engine = bed.engine.clone();
    let hanging =
        tokio::spawn(async move { engine.attach("hangs", AttachRequest::default()).await });
    while bed.world.count("reserve") == 0 {
        tokio::task::yield_now().await;
    }
    let mut others = tokio::task::JoinSet::new();
    for number in 0..20 {
        let engine = bed.engine.clone();
        others.spawn(async move {
            let name = format!("v{number}");
            engine.create(&name, CreateRequest::default()).await?;
            engine.mount(&name, "c1").await?;
            engine.unmount(&name, "c1").await?;
            engine.remove(&name).await
        });
    }
    while let Some(ended) = others.join_next().await {
        ended.unwrap().unwrap();
    }
    assert!(!hanging.is_finished());
    assert_eq!(bed.engine.list().await.unwrap().len(), 0);
    hanging.abort();
}

#[tokio::test]
async fn what_its_caller_has_given_up_before_it_began_is_not_begun() {
    let bed = Bed::new();
    bed.engine.create("v1", created(1)).await.unwrap();
    let gate = bed.world.gate("connect");
    let ask = |id: &'static str| {
        let engine = bed.engine.clone();
        tokio::spawn(async move { engine.mount("v1", id).await })
    };
    let first = ask("c1");
    while bed.world.count("connect") == 0 {
        tokio::task::yield_now().await;
    }
    // The engine's limit passes: it hangs up, and asks again, twice.
    first.abort();
    let second = ask("c1");
    tokio::task::yield_now().await;
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    let third = ask("c1");
    gate.notify_one();
    third.await.unwrap().unwrap();
    let view = bed.engine.get("v1").await.unwrap();
    assert_eq!((view.mounts, view.state), (1, State::Mounted));
    assert_eq!(bed.world.count("connect"), 1);
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert!(bed.world.is_clean());
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_was_killed_and_asks_again_with_its_old_id_is_counted_once() {
    let bed = Bed::new();
    bed.engine.create("v1", created(1)).await.unwrap();
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.world.set_users(vec![user()]);
    bed.engine.mount("v1", "c2").await.unwrap();
    // It died with its containers, sent no Unmount, and the first of them starts again with the ID that it had.
    bed.world.set_users(Vec::new());
    bed.engine.mount("v1", "c1").await.unwrap();
    assert_eq!(bed.engine.get("v1").await.unwrap().mounts, 2);
    bed.world.set_users(vec![user()]);
    // As `docker cp` does, of a container that has it.
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.engine.unmount("v1", "c1").await.unwrap();
    bed.engine.unmount("v1", "c2").await.unwrap();
    assert_eq!(bed.state("v1").await, State::Mounted);
    bed.world.set_users(Vec::new());
    bed.engine.unmount("v1", "c1").await.unwrap();
    assert!(bed.world.is_clean());
}

#[tokio::test]
async fn further_portals_are_asked_of_the_target_where_cinder_gives_credentials_for_it() {
    let bed = Bed::new();
    let id = bed.world.add_foreign("v1");
    bed.attach("v1").await;
    assert_eq!(bed.world.count("portals"), 0);
    bed.engine.detach("v1", false).await.unwrap();
    let ours = format!("iqn.2026-11.example:{id}");
    let (first, second) = ("127.0.0.1:3260", "127.0.0.2:3260");
    bed.world.show_portals(&ours, &[first, second]);
    bed.world
        .show_portals("iqn.2026-11.example:other", &["127.0.0.3:3260"]);
    bed.attach("v1").await;
    let more = bed.world.more_portals();
    assert!(
        !more.is_empty() && more.iter().all(|portal| portal == second),
        "{more:?}"
    );
    bed.engine.detach("v1", false).await.unwrap();
    // the volume can be used without them
    bed.world.fail("portals");
    bed.attach("v1").await;
    assert!(bed.world.more_portals().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_was_told_of_a_mount_is_counted_until_it_must_have_begun_to_use_it() {
    for is_late in [false, true] {
        for (first, second) in [("c1", "c2"), ("", "")] {
            let bed = Bed::new();
            bed.engine.create("v1", created(1)).await.unwrap();
            bed.engine.mount("v1", first).await.unwrap();
            // The engine may be at work on another volume of the first container.
            tokio::time::sleep(Duration::from_mins(9)).await;
            bed.engine.mount("v1", second).await.unwrap();
            assert_eq!(bed.engine.get("v1").await.unwrap().mounts, 2);
            if is_late {
                tokio::time::sleep(Duration::from_mins(11)).await;
            }
            bed.engine.unmount("v1", second).await.unwrap();
            assert_eq!(bed.world.is_clean(), is_late, "{first:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_engine_left_counted_does_not_keep_its_volume_from_being_removed() {
    let bed = Bed::new();
    bed.engine.create("v1", created(1)).await.unwrap();
    bed.engine.mount("v1", "c1").await.unwrap();
    bed.world.set_users(vec![user()]);
    let error = line(&bed.engine.remove("v1").await.unwrap_err());
    assert!(error.contains("1 mount is counted"), "{error}");
    bed.world.set_users(Vec::new());
    // Somebody who was told of it a moment ago may be about to use it.
    bed.engine.remove("v1").await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(11)).await;
    bed.engine.remove("v1").await.unwrap();
    assert!(bed.world.is_clean() && bed.world.volumes().is_empty());
}
