//! CHAP secrets stand in no log. A process of its own, with this test alone: whoever else logs at the same moment could
//! keep `tracing` from asking the subscriber that listens here.

use std::io::Write;
use std::sync::{Arc, Mutex};

use iscsi::io::Driver;
use iscsi::proto::{ChapCredentials, Isid, Secret, SessionParams};
use support::target::{Disk, Target};

const IQN: &str = "iqn.2026-11.test:disk";
const SECRETS: [&str; 3] = [
    "initiators-secret-16",
    "targets-own-secret-17",
    "not-the-secret-at-all",
];

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn credentials(name: &str, secret: &str) -> ChapCredentials {
    ChapCredentials {
        name: name.to_owned(),
        secret: Secret::new(secret.to_owned()),
    }
}

// C13
#[tokio::test]
async fn secrets_stand_in_no_log_no_error_and_no_debug_output() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let target = Target::builder()
        .iqn(IQN)
        .chap("initiator", SECRETS[0])
        .mutual_chap("target", SECRETS[1])
        .lun(1, Disk::memory(1 << 20))
        .start()
        .await;
    let portal = target.portal().parse().expect("a portal");
    let name = "iqn.2026-11.org.cinder-nbd:test".parse().expect("a name");
    let mut good = SessionParams::new(portal, name, Isid::random([1, 2, 3], 7));
    good.target_name = Some(IQN.parse().expect("a name"));
    good.chap = Some(credentials("initiator", SECRETS[0]));
    good.mutual_chap = Some(credentials("target", SECRETS[1]));
    let mut bad = good.clone();
    bad.chap = Some(credentials("initiator", SECRETS[2]));
    let driver = Driver::connect(&good).await.expect("both prove themselves");
    let error = Driver::connect(&bad).await.expect_err("a wrong secret");
    let shown = format!("{good:?} {bad:?} {driver:?} {error:?} {error}");
    let logged = log.0.lock().expect("nobody panics");
    let logged = String::from_utf8_lossy(&logged);
    assert!(logged.contains("logged in"), "{logged}");
    for secret in SECRETS {
        assert!(!shown.contains(secret), "{shown}");
        assert!(!logged.contains(secret), "{logged}");
    }
}
