//! Snapshots, clones, larger ones, and volumes that go to another project.

use cinder_nbd::cinder::{NewSnapshot, Snapshot};

use super::*;

/// Longer than any snapshot here takes.
const PATIENCE: Duration = Duration::from_mins(1);

async fn snapshot(cinder: &Cinder, volume: &Volume, name: &str) -> Snapshot {
    let new = NewSnapshot {
        volume_id: volume.id.clone(),
        name: name.to_owned(),
        description: Some("for a test".to_owned()),
    };
    let begun = cinder.begin_snapshot(&new).await.unwrap();
    cinder.await_snapshot(&begun.id, PATIENCE).await.unwrap()
}

/// Attached, as far as Cinder knows.
async fn attach(cinder: &Cinder, volume: &Volume) -> String {
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    let connected = cinder.connect_attachment(&attachment, &connector()).await;
    connected.unwrap();
    cinder.complete(&attachment).await.unwrap();
    attachment
}

#[tokio::test]
async fn snapshots_are_taken_of_free_and_of_used_volumes_and_made_into_volumes() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = cinder.create(&new(&name("origin"))).await.unwrap();
    let names = [name("free"), name("used"), name("again")];
    let first = snapshot(&cinder, &volume, &names[0]).await;
    assert_eq!((first.status.as_str(), first.size), ("available", 1));
    let attachment = attach(&cinder, &volume).await;
    for name in &names[1..] {
        assert_eq!(snapshot(&cinder, &volume, name).await.status, "available");
    }
    assert_eq!(status(&cinder, &volume).await, "in-use");
    cinder.delete_attachment(&attachment).await.unwrap();
    // Of three: the server's pages have two.
    let listed = cinder.snapshots(Some(&volume.id)).await.unwrap();
    assert_eq!(listed.len(), 3, "{listed:?}");
    let found = cinder.find_snapshot(&names[0]).await.unwrap();
    assert_eq!(
        (found.id.as_str(), found.volume_id.as_str()),
        (first.id.as_str(), volume.id.as_str())
    );
    assert_eq!(found.description.as_deref(), Some("for a test"));
    let error = cinder.delete(&volume.id).await.unwrap_err();
    assert!(
        one_line(&error).contains("delete its snapshots first"),
        "{error}"
    );
    let made = NewVolume {
        size: 0,
        snapshot_id: Some(first.id.clone()),
        ..new(&name("made"))
    };
    let made = cinder.create(&made).await.unwrap();
    assert_eq!((made.status.as_str(), made.size), ("available", 1));
    finish(&cinder, &made).await;
    for snapshot in &listed {
        cinder.delete_snapshot(&snapshot.id).await.unwrap();
        // Absent is done.
        cinder.delete_snapshot(&snapshot.id).await.unwrap();
    }
    let gone = cinder.find_snapshot(&names[0]).await.unwrap_err();
    assert!(gone.is_not_found(), "{gone}");
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn a_snapshot_that_the_storage_does_not_take_says_so_and_can_be_deleted() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = cinder.create(&new(&name("origin"))).await.unwrap();
    let name = name("untaken");
    let fault = bed.fail("create_snapshot", &name);
    let failed = snapshot(&cinder, &volume, &name).await;
    assert_eq!(failed.status, "error");
    let error = cinder.snapshot_failure(&failed).await;
    assert!(
        one_line(&error).contains("could not take snapshot"),
        "{error}"
    );
    drop(fault);
    cinder.delete_snapshot(&failed.id).await.unwrap();
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn a_clone_is_as_large_as_its_source_or_larger() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let source = cinder.create(&new(&name("source"))).await.unwrap();
    for (asked, size) in [(0, 1), (2, 2)] {
        let clone = NewVolume {
            size: asked,
            source_volid: Some(source.id.clone()),
            ..new(&name("clone"))
        };
        let clone = cinder.create(&clone).await.unwrap();
        assert_eq!(clone.size, size);
        finish(&cinder, &clone).await;
    }
    finish(&cinder, &source).await;
}

#[tokio::test]
async fn a_volume_gets_larger_free_and_in_use_and_not_beyond_the_quota() {
    let Some(bed) = bed() else { return };
    let cinder = bed.small_project().await;
    let volume = cinder.create(&new(&name("growing"))).await.unwrap();
    cinder.extend(&volume.id, 2).await.unwrap();
    let attachment = attach(&cinder, &volume).await;
    cinder.extend(&volume.id, 3).await.unwrap();
    let shown = cinder.show(&volume.id).await.unwrap();
    assert_eq!((shown.size, shown.status.as_str()), (3, "in-use"));
    let error = cinder.extend(&volume.id, 4).await.unwrap_err();
    assert!(matches!(error, Error::Quota { .. }), "{error}");
    // What it has already is done.
    cinder.extend(&volume.id, 3).await.unwrap();
    cinder.delete_attachment(&attachment).await.unwrap();
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn a_volume_goes_to_another_project_with_the_key_that_was_told() {
    let Some(bed) = bed() else { return };
    let (giver, taker) = (bed.cinder().await, bed.small_project().await);
    let volume = giver.create(&new(&name("given"))).await.unwrap();
    let offer = giver.offer(&volume.id, Some("gift")).await.unwrap();
    assert_eq!(status(&giver, &volume).await, "awaiting-transfer");
    let error = giver.offer(&volume.id, None).await.unwrap_err();
    assert!(one_line(&error).contains("available"), "{error}");
    let id = &offer.transfer.id;
    assert_eq!(giver.find_transfer("gift").await.unwrap().id, *id);
    let wrong = Secret::new("0000000000000000".to_owned());
    let error = taker.accept(id, &wrong).await.unwrap_err();
    assert!(one_line(&error).contains("check id and key"), "{error}");
    let taken = taker.accept(id, &offer.auth_key).await.unwrap();
    assert_eq!(taken, volume.id);
    assert!(giver.show(&volume.id).await.unwrap_err().is_not_found());
    // And not at all, when it was taken back.
    let offer = taker.offer(&volume.id, None).await.unwrap();
    taker.withdraw(&offer.transfer.id).await.unwrap();
    taker.withdraw(&offer.transfer.id).await.unwrap();
    assert!(taker.transfers().await.unwrap().is_empty());
    finish(&taker, &volume).await;
}
