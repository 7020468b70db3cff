//! The daemon beneath its supervisor, without a device: it is started again, restarted, and ended.

use crate::bed::{Home, Running, signal, wait_until};

fn other_than(home: &Home, before: u32) -> u32 {
    let mut found = before;
    wait_until("another daemon", || {
        found = home.pid_of_daemon().unwrap_or(before);
        found != before
    });
    found
}

fn is_alive(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_daemon_that_dies_is_started_again_and_ends_with_its_supervisor() {
    let home = Home::new();
    let supervisor = home.supervisor();
    let first = home.pid_of_daemon().unwrap();
    assert_ne!(first, supervisor.pid());
    signal(first, "KILL");
    let second = other_than(&home, first);
    signal(supervisor.pid(), "HUP");
    let third = other_than(&home, second);
    let (code, log) = supervisor.terminate();
    assert_eq!(code, Some(0), "{log}");
    wait_until("the daemon has ended", || !is_alive(third));
    assert!(log.contains("starting it again"), "{log}");
    assert!(!home.path("run/control.sock").exists());
}

#[test]
fn a_daemon_that_cannot_start_is_tried_again_until_it_can() {
    let home = Home::new();
    let other = home.daemon();
    let held = other.pid();
    // Its lock is taken: it ends at once, each time.
    let supervisor = Running::start(home.command(&["supervise"]));
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(home.pid_of_daemon(), Some(held));
    let (code, log) = other.terminate();
    assert_eq!(code, Some(0), "{log}");
    let pid = other_than(&home, held);
    assert_ne!(pid, held);
    let (code, log) = supervisor.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("another cinder-nbd daemon holds"), "{log}");
}

#[test]
fn the_unit_of_each_driver_is_that_of_the_first_but_for_names() {
    let packaging = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let read = |name: &str| std::fs::read_to_string(packaging.join(name)).unwrap();
    let settings = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    let first = settings(&read("cinder-nbd.service"));
    let each = settings(&read("cinder-nbd@.service"));
    assert_eq!(first.len(), each.len());
    for (one, other) in first.iter().zip(&each) {
        let as_first = other
            .replace(" (%i)", "")
            .replace(" --config /etc/cinder-nbd/%i.toml", "")
            .replace("%i.environment", "environment")
            .replace("cinder-nbd-%i", "cinder-nbd");
        assert_eq!(*one, as_first);
    }
}
