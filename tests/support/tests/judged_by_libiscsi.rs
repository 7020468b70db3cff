//! The in-process target before a judge that we did not write: libiscsi's command line tools and its test suites.
//!
//! Each test of the suites runs in a process of its own: `iscsi-test-cu` 1.19 keeps a CDB patch of one suite for the
//! next (READ(16) then carries a wrong count), so a run of all in one process judges itself.
//!
//! The suites, with the reason for each that is left out, are the table `SUITES`; `docs/target.md` is made from it and
//! checked against it, and the table against what the tool has.

#[path = "judged/suites.rs"]
mod suites;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::{Command, Output};

use support::target::{Disk, Export, Target};

use suites::{Group, SUITES, Suite};

const IQN: &str = "iqn.2026-11.test:judged";
const USER: &str = "judge";
const SECRET: &str = "a-secret-of-16-b";

#[test]
fn discovery_lists_targets_and_luns() {
    let target = judged();
    target.add(Export::new("iqn.2026-11.test:other").lun(3, Disk::memory(1 << 20)));
    let output = tool("iscsi-ls", &[&format!("iscsi://{}", target.portal())]);
    let text = stdout(&output);
    assert!(
        text.contains(&format!("Target:{IQN} Portal:{},1", target.portal())),
        "{text}"
    );
    assert!(text.contains("Target:iqn.2026-11.test:other"), "{text}");
    assert!(target.violations().is_empty(), "{:?}", target.violations());
}

#[test]
fn long_target_lists_come_in_pieces() {
    // libiscsi takes only answers in one PDU, so the list is kept below its 262144 bytes and above our 8192 default.
    let target = judged();
    for number in 0..500 {
        target.add(Export::new(&format!("iqn.2026-11.test:many-{number}")));
    }
    let output = tool("iscsi-ls", &[&format!("iscsi://{}", target.portal())]);
    assert_eq!(stdout(&output).matches("Target:").count(), 501);
}

#[test]
fn inquiry_and_capacity_are_as_made() {
    let target = Target::builder()
        .iqn(IQN)
        .chap(USER, SECRET)
        .lun(
            1,
            Disk::memory(64 << 20)
                .block_bytes(4096)
                .serial("serial-of-the-disk"),
        )
        .start_blocking();
    let url = url(&target, 1);
    let text = stdout(&tool("iscsi-inq", &["-e", "1", "-c", "128", &url]));
    assert!(text.contains("serial-of-the-disk"), "{text}");
    let text = stdout(&tool("iscsi-inq", &["-e", "1", "-c", "131", &url]));
    assert!(
        text.contains("NAA") && text.contains("T10_VENDORT_ID"),
        "{text}"
    );
    let text = stdout(&tool("iscsi-readcapacity16", &[&url]));
    for line in [
        "RETURNED LOGICAL BLOCK ADDRESS:16383",
        "LOGICAL BLOCK LENGTH IN BYTES:4096",
        "LBPME:1 LBPRZ:1",
        "Total size:67108864",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    assert!(target.violations().is_empty(), "{:?}", target.violations());
}

#[test]
fn wrong_secret_unknown_target_and_absent_lun_are_refused() {
    let target = judged();
    let portal = target.portal();
    let refused = [
        (
            format!("iscsi://{USER}%wrong-secret-16-b@{portal}/{IQN}/1"),
            "Authentication failure",
        ),
        (
            format!("iscsi://other%{SECRET}@{portal}/{IQN}/1"),
            "Authentication failure",
        ),
        (
            format!("iscsi://{portal}/{IQN}/1"),
            "Authentication failure",
        ),
        (
            format!("iscsi://{USER}%{SECRET}@{portal}/iqn.2026-11.test:none/1"),
            "Target not found",
        ),
        (url(&target, 9), "LOGICAL_UNIT_NOT_SUPPORTED"),
    ];
    for (url, cause) in refused {
        let output = run("iscsi-readcapacity16", &[&url]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &stdout(&output);
        assert!(!output.status.success(), "{url} was let in:\n{text}");
        assert!(text.contains(cause), "{cause} is not in:\n{text}");
    }
    assert_eq!(target.disk(IQN, 1).unwrap().counts().reads, 0);
}

#[test]
fn suites_of_reads_pass() {
    pass(Group::Reads);
}

#[test]
fn suites_of_writes_pass() {
    pass(Group::Writes);
}

#[test]
fn suites_of_pages_pass() {
    pass(Group::Pages);
}

#[test]
fn suites_of_trims_pass() {
    pass(Group::Trims);
}

#[test]
fn suites_of_reservations_pass() {
    pass(Group::Reservations);
}

#[test]
fn suites_of_two_paths_pass() {
    let target = Target::builder()
        .iqn(IQN)
        .chap(USER, SECRET)
        .portal("127.0.0.1:0", 2)
        .lun(1, Disk::memory(64 << 20))
        .start_blocking();
    let urls: Vec<String> = target
        .portals()
        .iter()
        .map(|(portal, _)| format!("iscsi://{USER}%{SECRET}@{portal}/{IQN}/1"))
        .collect();
    for test in tests_of(Group::TwoPaths) {
        judge_at(&urls, &test);
    }
}

#[test]
fn suites_of_write_protection_pass() {
    let target = Target::builder()
        .iqn(IQN)
        .chap(USER, SECRET)
        .lun(1, Disk::memory(64 << 20).read_only())
        .start_blocking();
    judge(&target, &tests_of(Group::WriteProtected));
}

#[test]
fn every_suite_of_the_tool_is_judged_or_has_its_reason() {
    let known: BTreeSet<&str> = SUITES.iter().map(|suite| suite.name).collect();
    let listed = listed();
    let suites: BTreeSet<&str> = listed.iter().map(|(suite, _)| suite.as_str()).collect();
    assert_eq!(known, suites);
    for suite in SUITES {
        for (test, why) in suite.not {
            let exists = listed
                .iter()
                .any(|(known, kind)| known == suite.name && kind == test);
            assert!(exists && !why.is_empty(), "{}.{test}", suite.name);
        }
    }
}

/// Writes the document anew if `WRITE_DOCS` is set.
#[test]
fn document_of_the_target_tells_what_is_judged() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/target.md");
    let text = std::fs::read_to_string(path).expect("docs/target.md can be read");
    let (head, rest) = text.split_once(BEGIN).expect("the table has a beginning");
    let (_, tail) = rest.split_once(END).expect("the table has an end");
    let made = format!("{head}{BEGIN}{}{END}{tail}", table());
    if std::env::var_os("WRITE_DOCS").is_some() {
        std::fs::write(path, &made).expect("docs/target.md can be written");
        return;
    }
    assert!(
        text == made,
        "docs/target.md is not what SUITES says: run this test with WRITE_DOCS=1"
    );
}

#[test]
fn suites_that_break_rules_pass_and_are_noticed() {
    let target = judged();
    judge(&target, &tests_of(Group::BreaksRules));
    let violations = target.violations();
    for what in ["CmdSN", "DataSN 27 in place of 0"] {
        assert!(
            violations.iter().any(|found| found.starts_with(what)),
            "{what}: {violations:?}"
        );
    }
}

#[test]
fn suites_of_residuals_and_task_management_pass() {
    pass(Group::Session);
}

#[test]
fn small_limits_and_late_status_are_understood() {
    let target = Target::builder()
        .iqn(IQN)
        .chap(USER, SECRET)
        .lun(1, Disk::memory(64 << 20))
        .initial_r2t(true)
        .immediate_data(false)
        .max_burst(4096)
        .max_recv_data_segment(1024)
        .status_in_data(false)
        .digests(true)
        .window(1)
        .start_blocking();
    let tests = ["Read10", "Write16", "iSCSIResiduals.Write10Residuals"];
    judge(&target, &tests.map(str::to_owned));
}

fn judged() -> Target {
    Target::builder()
        .iqn(IQN)
        .chap(USER, SECRET)
        .lun(1, Disk::memory(64 << 20))
        .start_blocking()
}

/// Judges the default target, and in turn finds no fault with the judge but those that it is known for: after an R2T
/// libiscsi acknowledges the `StatSN` that is told there and not yet taken; it leaves the LUN in unsolicited data.
fn pass(group: Group) {
    let target = judged();
    judge(&target, &tests_of(group));
    let violations = target.violations();
    let unknown: Vec<_> = violations
        .iter()
        .filter(|what| !JUDGES_FAULTS.iter().any(|known| what.starts_with(known)))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// Runs tests of `iscsi-test-cu`; neither a failure nor a test that skips itself is let through.
fn judge(target: &Target, tests: &[String]) {
    for test in tests {
        judge_at(&[url(target, 1)], test);
    }
}

fn judge_at(urls: &[String], test: &str) {
    let name = format!("ALL.{test}");
    let mut args = vec!["-d", "-s", "-t", &name];
    args.extend(urls.iter().map(String::as_str));
    let output = run("iscsi-test-cu", &args);
    let text = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test} failed:\n{text}");
    // This one walks through all commands that write, and skips those that a disk has not.
    let walks = test == "ReadOnly";
    let skipped = text
        .lines()
        .any(|line| line.contains("SKIPPED") && !(walks && line.contains("is not implemented")));
    assert!(!skipped, "{test} was skipped:\n{text}");
}

/// What is run of a group: a suite as a whole, or its tests one by one where some are left out.
fn tests_of(group: Group) -> Vec<String> {
    let listed = listed();
    let mut tests = Vec::new();
    for suite in SUITES.iter().filter(|suite| suite.group == group) {
        if suite.not.is_empty() {
            tests.push(suite.name.to_owned());
            continue;
        }
        let kinds = listed.iter().filter(|(name, kind)| {
            name == suite.name && !suite.not.iter().any(|(left_out, _)| left_out == kind)
        });
        tests.extend(kinds.map(|(name, kind)| format!("{name}.{kind}")));
    }
    assert!(!tests.is_empty(), "{group:?} is empty");
    tests
}

/// Suites and tests that the tool has.
fn listed() -> Vec<(String, String)> {
    let text = stdout(&tool("iscsi-test-cu", &["-l"]));
    let tests = text.lines().filter_map(|line| {
        let (suite, test) = line.trim().strip_prefix("ALL.")?.split_once('.')?;
        Some((suite.to_owned(), test.to_owned()))
    });
    tests.collect()
}

fn table() -> String {
    let mut text = String::from("\n| suite | judged | left out, and why |\n|---|---|---|\n");
    for Suite { name, group, not } in SUITES {
        let (judged, why) = if let Group::NotOurs(why) = group {
            ("no", (*why).to_owned())
        } else {
            let each = not.iter().map(|(test, why)| format!("`{test}`: {why}"));
            ("passes", each.collect::<Vec<_>>().join("; "))
        };
        let _ = writeln!(text, "| `{name}` | {judged} | {why} |");
    }
    text
}

fn url(target: &Target, lun: u16) -> String {
    format!("iscsi://{USER}%{SECRET}@{}/{IQN}/{lun}", target.portal())
}

fn tool(name: &str, args: &[&str]) -> Output {
    let output = run(name, args);
    assert!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn run(name: &str, args: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    Command::new(name).args(args).current_dir(folder.path()).output().unwrap_or_else(|error| {
        panic!("{name}: {error}; install libiscsi-bin (apt-get install libiscsi-bin); cargo xtask test does it")
    })
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const BEGIN: &str = "<!-- made from SUITES: begin -->";
const END: &str = "<!-- made from SUITES: end -->";
const JUDGES_FAULTS: [&str; 1] = ["ExpStatSN"];
