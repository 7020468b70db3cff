//! The room `cinder` against a real Keystone and Cinder (`tests/beds/openstack`): every step's state is checked through
//! Cinder, and nothing is left behind.
//!
//! Runs where `CINDER_NBD_REAL_CINDER` and the `OS_*` variables that `up` prints are set; elsewhere each test says that
//! it cannot run. `cargo xtask test` sets them.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what does not hold ends the test, in its helpers too"
)]

mod copies;
mod rights;
mod services;
mod types;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cinder_nbd::cinder::{Cinder, Connector, Error, NewVolume, Volume};
use cinder_nbd::config::{Auth, CloudConfig, Config, Project};
use iscsi::proto::Secret;

/// The bed, or `None` with a word in the output.
fn bed() -> Option<Bed> {
    let Ok(state) = std::env::var("CINDER_NBD_REAL_CINDER") else {
        println!(
            "CANNOT RUN HERE: no real Cinder; run `cargo xtask test`, or eval \"$(tests/beds/openstack/up /tmp/bed)\" first"
        );
        return None;
    };
    let config = Config::load(None)
        .unwrap()
        .cloud
        .expect("the bed sets OS_*");
    Some(Bed {
        config,
        state: state.into(),
    })
}

struct Bed {
    config: CloudConfig,
    state: PathBuf,
}

impl Bed {
    async fn cinder(&self) -> Cinder {
        Cinder::connect(&self.config).await.unwrap()
    }

    /// As the same user, in a project of two volumes and 3 GiB.
    async fn small_project(&self) -> Cinder {
        let mut config = self.config.clone();
        let Auth::Password { project, .. } = &mut config.auth else {
            panic!("the bed gives a password")
        };
        let Project::Name { name: project, .. } = project else {
            panic!("the bed gives a name")
        };
        *project = std::env::var("CINDER_NBD_REAL_SMALL_PROJECT").unwrap();
        Cinder::connect(&config).await.unwrap()
    }

    /// Makes the storage fail for one volume until dropped. One test an operation: the file is one.
    fn fail(&self, operation: &str, volume: &str) -> Fault {
        let path = self.state.join("inject").join(operation);
        std::fs::write(&path, volume).unwrap();
        Fault(path)
    }
}

struct Fault(PathBuf);

impl Drop for Fault {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A name no other test or run has.
fn name(test: &str) -> String {
    format!("{test}-{}", uuid::Uuid::new_v4().simple())
}

fn new(name: &str) -> NewVolume {
    NewVolume {
        name: name.to_owned(),
        size: 1,
        ..NewVolume::default()
    }
}

fn connector() -> Connector {
    Connector {
        initiator: "iqn.2026-11.org.cinder-nbd:test".into(),
        host: "test".into(),
        ip: "127.0.0.1".into(),
        mountpoint: "cinder-nbd:test".into(),
        read_only: false,
    }
}

async fn status(cinder: &Cinder, volume: &Volume) -> String {
    cinder.show(&volume.id).await.unwrap().status
}

/// Deletes, and proves that nothing is left.
async fn finish(cinder: &Cinder, volume: &Volume) {
    cinder.delete(&volume.id).await.unwrap();
    assert!(cinder.show(&volume.id).await.unwrap_err().is_not_found());
    assert!(cinder.attachments(&volume.id).await.unwrap().is_empty());
    // Absent is done.
    cinder.delete(&volume.id).await.unwrap();
}

fn one_line(error: &Error) -> String {
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[tokio::test]
async fn a_volume_lives_its_life_and_leaves_nothing() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let name = name("life");
    let volume = cinder.create(&new(&name)).await.unwrap();
    assert_eq!(
        (volume.status.as_str(), volume.size, volume.label()),
        ("available", 1, name.as_str())
    );
    assert_eq!(cinder.find(&name).await.unwrap().id, volume.id);
    assert_eq!(cinder.find(&volume.id).await.unwrap().label(), name);
    assert!(
        cinder
            .list()
            .await
            .unwrap()
            .iter()
            .any(|listed| listed.id == volume.id)
    );

    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    assert_eq!(status(&cinder, &volume).await, "reserved");
    assert_eq!(
        cinder.attachments(&volume.id).await.unwrap(),
        [(attachment.clone(), "reserved".to_owned())]
    );

    let info = cinder
        .connect_attachment(&attachment, &connector())
        .await
        .unwrap();
    assert_eq!(status(&cinder, &volume).await, "attaching");
    assert_eq!(
        info.first_path.portal.to_string(),
        std::env::var("CINDER_NBD_REAL_PORTAL").unwrap()
    );
    assert_eq!(
        info.first_path.target_name.to_string(),
        format!("iqn.2010-10.org.openstack:volume-{}", volume.id)
    );
    assert!(info.first_path.lun == 1.into() && !info.read_only);
    let chap = info.chap.expect("the helper always makes CHAP");
    assert_eq!((chap.name.len(), chap.secret.expose().len()), (20, 16));

    cinder.complete(&attachment).await.unwrap();
    cinder.complete(&attachment).await.unwrap();
    // A daemon that has lost it asks again.
    let again = cinder.connection_of(&attachment).await.unwrap();
    assert_eq!(again.first_path, info.first_path);
    let secret = again.chap.map(|chap| chap.secret.expose().to_owned());
    assert_eq!(secret.as_deref(), Some(chap.secret.expose()));
    let shown = cinder.show(&volume.id).await.unwrap();
    assert_eq!(shown.status, "in-use");
    assert_eq!(shown.attachments[0].attachment_id, attachment);
    assert_eq!(
        shown.attachments[0].device.as_deref(),
        Some("cinder-nbd:test")
    );

    cinder.delete_attachment(&attachment).await.unwrap();
    assert_eq!(status(&cinder, &volume).await, "available");
    cinder.delete_attachment(&attachment).await.unwrap();
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn a_reservation_alone_is_undone_and_read_only_is_told() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let volume = cinder.create(&new(&name("ro"))).await.unwrap();
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    cinder.delete_attachment(&attachment).await.unwrap();
    assert_eq!(status(&cinder, &volume).await, "available");

    let attachment = cinder.reserve(&volume.id, true).await.unwrap();
    let read_only = Connector {
        read_only: true,
        ..connector()
    };
    assert!(
        cinder
            .connect_attachment(&attachment, &read_only)
            .await
            .unwrap()
            .read_only
    );
    cinder.delete_attachment(&attachment).await.unwrap();
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn an_application_credential_does_as_well() {
    let Some(mut bed) = bed() else { return };
    bed.config.auth = Auth::ApplicationCredential {
        id: std::env::var("CINDER_NBD_REAL_CREDENTIAL_ID").unwrap(),
        secret: Secret::new(std::env::var("CINDER_NBD_REAL_CREDENTIAL_SECRET").unwrap()),
    };
    let cinder = bed.cinder().await;
    let volume = cinder.create(&new(&name("credential"))).await.unwrap();
    finish(&cinder, &volume).await;
    assert_eq!(
        cinder.local_ip().await.map(|ip| ip.to_string()).as_deref(),
        Some("127.0.0.1")
    );

    bed.config.auth = Auth::ApplicationCredential {
        id: "0".repeat(32),
        secret: Secret::new("wrong-secret".into()),
    };
    let text = one_line(&Cinder::connect(&bed.config).await.unwrap_err());
    assert!(
        text.contains("Could not find Application Credential") && !text.contains("wrong-secret"),
        "{text}"
    );
}

#[tokio::test]
async fn a_wrong_password_names_what_to_check() {
    let Some(mut bed) = bed() else { return };
    let Auth::Password { password, .. } = &mut bed.config.auth else {
        panic!("the bed gives a password")
    };
    *password = Secret::new("wrong-secret".into());
    let text = one_line(&Cinder::connect(&bed.config).await.unwrap_err());
    assert!(
        text.contains("refuses the credentials") && text.contains("(request req-"),
        "{text}"
    );
    assert!(
        text.ends_with("check user, password, project and both domains in the environment"),
        "{text}"
    );
    assert!(!text.contains("wrong-secret"), "{text}");
}

#[tokio::test]
async fn a_wrong_path_is_no_keystone_and_a_wrong_region_is_told_the_right_one() {
    let Some(mut bed) = bed() else { return };
    let right = bed.config.auth_url.clone();
    bed.config.auth_url = right.replace("/v3", "/dashboard");
    let text = one_line(&Cinder::connect(&bed.config).await.unwrap_err());
    assert!(
        text.starts_with("no Keystone at ") && text.contains("OS_AUTH_URL"),
        "{text}"
    );
    // Without a version it is found all the same.
    bed.config.auth_url = right.replace("/v3", "");
    bed.cinder().await;
    bed.config.region = Some("Atlantis".into());
    let text = one_line(&Cinder::connect(&bed.config).await.unwrap_err());
    assert!(
        text.contains("in region Atlantis") && text.contains("it has regions RegionOne"),
        "{text}"
    );
}

#[tokio::test]
async fn quota_is_told_with_its_numbers_and_not_repeated() {
    let Some(bed) = bed() else { return };
    let cinder = bed.small_project().await;
    let started = Instant::now();
    let error = cinder
        .create(&NewVolume {
            size: 9,
            ..new(&name("quota"))
        })
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Quota { .. }), "{error}");
    let text = one_line(&error);
    assert!(text.contains("Requested 9G, quota is 3G"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(cinder.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let absent = uuid::Uuid::new_v4().to_string();
    for wanted in [absent.as_str(), "no-such-volume"] {
        let error = cinder.find(wanted).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert!(
            one_line(&error).contains("cinder-nbd volume list"),
            "{error}"
        );
    }
    assert!(
        cinder
            .reserve(&absent, false)
            .await
            .unwrap_err()
            .is_not_found()
    );
    cinder.delete_attachment(&absent).await.unwrap();
    assert!(cinder.complete(&absent).await.unwrap_err().is_not_found());

    let wrong_type = NewVolume {
        volume_type: Some("golden".into()),
        ..new(&name("type"))
    };
    let text = one_line(&cinder.create(&wrong_type).await.unwrap_err());
    assert!(
        text.contains("golden")
            && text.contains("the types here are limited, locked, shared, sparse"),
        "{text}"
    );
    let wrong_zone = NewVolume {
        availability_zone: Some("mars".into()),
        ..new(&name("zone"))
    };
    let text = one_line(&cinder.create(&wrong_zone).await.unwrap_err());
    assert!(
        text.contains("Availability zone 'mars' is invalid"),
        "{text}"
    );
}

#[tokio::test]
async fn names_are_not_unique_and_lists_have_pages() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let name = name("twin");
    let mut made = Vec::new();
    // The bed's pages hold two.
    for _ in 0..3 {
        made.push(cinder.create(&new(&name)).await.unwrap());
    }
    let error = cinder.find(&name).await.unwrap_err();
    let Error::Ambiguous { ids, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(ids.len(), 3);
    let text = one_line(&error);
    assert!(
        text.starts_with(&format!("3 volumes are named `{name}`: ")),
        "{text}"
    );
    let listed = cinder.list().await.unwrap();
    assert!(made.iter().all(|volume| text.contains(&volume.id)));
    assert!(
        made.iter()
            .all(|volume| listed.iter().filter(|other| other.id == volume.id).count() == 1)
    );
    for volume in &made {
        finish(&cinder, volume).await;
    }
}

#[tokio::test]
async fn a_volume_that_another_holds_names_the_holder() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let name = name("held");
    let volume = cinder.create(&new(&name)).await.unwrap();
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    let text = one_line(&cinder.reserve(&volume.id, false).await.unwrap_err());
    assert!(
        text.starts_with(&format!(
            "volume {name} is reserved: attachment {attachment} is reserved since 20"
        )),
        "{text}"
    );

    cinder
        .connect_attachment(&attachment, &connector())
        .await
        .unwrap();
    cinder.complete(&attachment).await.unwrap();
    for error in [
        cinder.reserve(&volume.id, false).await.unwrap_err(),
        cinder.delete(&volume.id).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::AttachedElsewhere { .. }), "{error}");
        let text = one_line(&error);
        let holder = format!("attachment {attachment} is attached as cinder-nbd:test since 20");
        assert!(
            text.starts_with(&format!("volume {name} is in-use: {holder}")),
            "{text}"
        );
        assert!(text.contains("; detach it there first"), "{text}");
    }
    // The second reservation left nothing of its own.
    assert_eq!(cinder.attachments(&volume.id).await.unwrap().len(), 1);
    cinder.delete_attachment(&attachment).await.unwrap();
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn a_volume_that_cannot_be_made_is_gone_and_the_reason_told() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let name = name("fails");
    let _fault = bed.fail("create_volume", &name);
    let error = cinder.create(&new(&name)).await.unwrap_err();
    assert!(matches!(error, Error::CreateFailed { .. }), "{error}");
    let text = one_line(&error);
    assert!(
        text.contains("; nothing is left of it") && !text.contains("gives no reason"),
        "{text}"
    );
    assert!(cinder.find(&name).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_backend_that_does_not_connect_leaves_a_reservation_that_can_be_undone() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let name = name("unconnected");
    let volume = cinder.create(&new(&name)).await.unwrap();
    let fault = bed.fail("initialize_connection", &name);
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    let error = cinder
        .connect_attachment(&attachment, &connector())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Backend { .. }), "{error}");
    assert!(
        one_line(&error).contains("the test wants initialize_connection to fail"),
        "{error}"
    );
    drop(fault);
    cinder.delete_attachment(&attachment).await.unwrap();
    assert_eq!(status(&cinder, &volume).await, "available");
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn a_backend_that_does_not_let_go_is_asked_again() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let name = name("clinging");
    let volume = cinder.create(&new(&name)).await.unwrap();
    let attachment = cinder.reserve(&volume.id, false).await.unwrap();
    cinder
        .connect_attachment(&attachment, &connector())
        .await
        .unwrap();
    cinder.complete(&attachment).await.unwrap();
    let fault = bed.fail("terminate_connection", &name);
    let deleting = tokio::spawn({
        let cinder = cinder.clone();
        let attachment = attachment.clone();
        async move { cinder.delete_attachment(&attachment).await }
    });
    // The second attempt comes after one second, the third after three: the fault must outlast the first one only.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    drop(fault);
    deleting.await.unwrap().unwrap();
    assert_eq!(status(&cinder, &volume).await, "available");
    finish(&cinder, &volume).await;
}

#[tokio::test]
async fn metadata_is_merged() {
    let Some(bed) = bed() else { return };
    let cinder = bed.cinder().await;
    let mut wanted = new(&name("metadata"));
    wanted
        .metadata
        .insert("cinder-nbd.created_by".into(), "test".into());
    let volume = cinder.create(&wanted).await.unwrap();
    cinder
        .set_metadata(&volume.id, "formatted", "ext4")
        .await
        .unwrap();
    let shown = cinder.show(&volume.id).await.unwrap();
    assert_eq!(
        shown
            .metadata
            .get("cinder-nbd.created_by")
            .map(String::as_str),
        Some("test")
    );
    assert_eq!(
        shown.metadata.get("formatted").map(String::as_str),
        Some("ext4")
    );
    finish(&cinder, &volume).await;
}
