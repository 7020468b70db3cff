//! A filesystem by explicit request: what is refused, what is destroyed, and that nothing else ever is.

use super::super::fake::Row;
use super::*;

fn wanted(fstype: Fstype, destroy: Option<&str>) -> FormatRequest {
    FormatRequest {
        fstype: Some(fstype),
        mkfs_options: None,
        destroy: destroy.map(str::to_owned),
    }
}

impl Bed {
    async fn format(&self, name: &str, request: FormatRequest) -> Result<View, String> {
        let formatted = self.engine.format(name, request).await;
        formatted.map_err(|error| line(&error))
    }

    fn destroyed(&self, id: &str) -> (usize, u32) {
        (self.world.count("erase"), self.world.formats(id))
    }
}

#[tokio::test]
async fn a_blank_volume_of_somebody_else_is_formatted_when_that_is_asked_for() {
    let bed = Bed::new();
    let id = bed.world.add_foreign("v1");
    let refused = bed.engine.mount("v1", "c1").await.unwrap_err();
    assert!(matches!(refused, Error::NotOurs { .. }), "{refused}");
    let view = bed.format("v1", wanted(Fstype::Xfs, None)).await.unwrap();
    assert_eq!(view.fstype.as_deref(), Some("xfs"));
    assert_eq!((view.state, bed.world.formats(&id)), (State::Detached, 1));
    bed.engine.mount("v1", "c1").await.unwrap();
    assert_eq!(bed.world.formats(&id), 1);
}

#[tokio::test]
async fn what_is_there_is_named_and_goes_only_by_its_name() {
    let bed = Bed::new();
    let id = bed.world.add_foreign("v1");
    let found = "crypto_LUKS (crypto)";
    bed.world.set_content(&id, Content::Other(found.to_owned()));
    for wrong in [
        None,
        Some("a xfs filesystem"),
        Some("crypto_LUKS"),
        Some(""),
    ] {
        let text = bed.format("v1", wanted(Fstype::Ext4, wrong)).await;
        let text = text.unwrap_err();
        assert!(
            text.contains(&format!("holds {found}; nothing was changed")),
            "{text}"
        );
        assert_eq!(bed.destroyed(&id), (0, 0));
    }
    let named = wanted(Fstype::Ext4, Some(found));
    bed.format("v1", named.clone()).await.unwrap();
    // Docker has not asked for it, so it is in no list of Docker's.
    assert!(bed.engine.list().await.unwrap().is_empty());
    assert_eq!(bed.destroyed(&id), (1, 1));
    // Once: what is there now has another name.
    let text = bed.format("v1", named).await.unwrap_err();
    assert!(text.contains("holds a ext4 filesystem"), "{text}");
    assert_eq!(bed.destroyed(&id), (1, 1));
}

#[tokio::test]
async fn what_cannot_be_read_or_is_used_is_never_formatted() {
    let bed = Bed::new();
    let id = bed.world.add_foreign("v1");
    bed.world.fail("inspect");
    let anything = wanted(Fstype::Ext4, Some("anything"));
    bed.format("v1", anything).await.unwrap_err();
    bed.world.heal();
    assert_eq!((bed.destroyed(&id), bed.journal()), ((0, 0), 0));
    bed.create("v2").await;
    bed.engine.mount("v2", "c1").await.unwrap();
    let ext4 = wanted(Fstype::Ext4, Some("a ext4 filesystem"));
    let text = bed.format("v2", ext4.clone()).await.unwrap_err();
    assert!(text.contains("is in use"), "{text}");
    bed.engine.unmount("v2", "c1").await.unwrap();
    // Nor what another host has.
    let id = bed.world.volumes()[1].id.clone();
    let theirs = Row {
        volume: String::new(),
        status: "attached",
        tag: None,
        host: Some("other".to_owned()),
    };
    bed.world.add_row(&id, theirs);
    let text = bed.format("v2", ext4).await.unwrap_err();
    assert!(text.contains("attached elsewhere"), "{text}");
    assert_eq!(bed.destroyed(&id), (0, 1));
}

#[tokio::test]
async fn what_cannot_be_erased_is_not_formatted() {
    let bed = Bed::new();
    let id = bed.world.add_foreign("v1");
    bed.world
        .set_content(&id, Content::Filesystem("btrfs".to_owned()));
    bed.world.fail("erase");
    let text = bed.format("v1", wanted(Fstype::Ext4, Some("a btrfs filesystem")));
    let text = text.await.unwrap_err();
    assert!(text.contains("erasing /dev/nbd"), "{text}");
    assert_eq!(bed.world.formats(&id), 0);
    assert_eq!(bed.state("v1").await, State::Detached);
}

#[tokio::test]
async fn a_real_filesystem_becomes_another() {
    let bed = Bed::new();
    let id = bed.world.add_foreign("v1");
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 30).unwrap();
    bed.world.set_image(&id, image.path());
    bed.format("v1", wanted(Fstype::Btrfs, None)).await.unwrap();
    let xfs = wanted(Fstype::Xfs, Some("a btrfs filesystem"));
    bed.format("v1", xfs).await.unwrap();
    let text = bed.format("v1", wanted(Fstype::Ext4, None)).await;
    let text = text.unwrap_err();
    assert!(text.contains("holds a xfs filesystem"), "{text}");
    let ext4 = FormatRequest {
        mkfs_options: Some("-L told".to_owned()),
        ..wanted(Fstype::Ext4, Some("a xfs filesystem"))
    };
    bed.format("v1", ext4).await.unwrap();
    bed.engine.mount("v1", "c1").await.unwrap();
}
