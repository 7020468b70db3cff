//! Volume types: shared between hosts, encrypted, limited.

use cinder_nbd::block::Rate;

use super::*;

async fn of_type(cinder: &Cinder, kind: &str) -> Volume {
    let new = NewVolume {
        volume_type: Some(kind.to_owned()),
        ..new(&name(kind))
    };
    cinder.create(&new).await.unwrap()
}

#[tokio::test]
async fn a_shared_volume_is_attached_twice_and_both_are_named() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = of_type(&cinder, "shared").await;
    assert!(volume.multiattach);
    let mut attachments = Vec::new();
    for host in ["one", "two"] {
        let attachment = cinder.reserve(&volume.id, false).await.unwrap();
        let connector = Connector {
            host: host.to_owned(),
            initiator: format!("iqn.2026-11.org.cinder-nbd:{host}"),
            mountpoint: format!("cinder-nbd:{host}"),
            ..connector()
        };
        let connected = cinder.connect_attachment(&attachment, &connector).await;
        connected.unwrap();
        cinder.complete(&attachment).await.unwrap();
        attachments.push(attachment);
    }
    let holders = cinder.holders(&volume.id).await.unwrap();
    let mut devices: Vec<_> = holders
        .iter()
        .filter_map(|one| one.device.clone())
        .collect();
    devices.sort();
    assert_eq!(devices, ["cinder-nbd:one", "cinder-nbd:two"]);
    // The first one's end leaves the second its own.
    cinder.delete_attachment(&attachments[0]).await.unwrap();
    assert_eq!(status(&cinder, &volume).await, "in-use");
    assert_eq!(cinder.holders(&volume.id).await.unwrap().len(), 1);
    cinder.delete_attachment(&attachments[1]).await.unwrap();
    assert_eq!(status(&cinder, &volume).await, "available");
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn the_limits_of_a_type_are_told_with_the_connection() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = of_type(&cinder, "limited").await;
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    let connected = cinder.connect_attachment(&attachment, &connector()).await;
    let rates = connected.unwrap().rates;
    let limit = |rate: Option<Rate>| rate.map(|rate| rate.per_second);
    // 1,000,000 bytes a second for each GiB, of which there is one.
    assert_eq!(
        (limit(rates.total_iops), limit(rates.read_bytes)),
        (Some(100), Some(1_000_000))
    );
    assert_eq!(rates.write_bytes, None);
    cinder.delete_attachment(&attachment).await.unwrap();
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn an_encrypted_volume_is_refused_by_name_and_the_attachment_can_be_undone() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = of_type(&cinder, "locked").await;
    assert!(volume.encrypted);
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    let connected = cinder.connect_attachment(&attachment, &connector()).await;
    let error = connected.unwrap_err();
    assert!(matches!(error, Error::Encrypted { .. }), "{error}");
    assert!(one_line(&error).contains(&volume.id), "{error}");
    cinder.delete_attachment(&attachment).await.unwrap();
    assert_eq!(status(&cinder, &volume).await, "available");
    finish(&cinder, &volume).await;
}
