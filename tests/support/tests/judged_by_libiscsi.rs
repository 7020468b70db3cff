//! The in-process target before a judge that we did not write: libiscsi's command line tools and its test suites.
//!
//! Each test of the suites runs in a process of its own: `iscsi-test-cu` 1.19 keeps a CDB patch of one suite for the
//! next (READ(16) then carries a wrong count), so a run of all in one process judges itself.

use std::process::{Command, Output};

use support::target::{Disk, Export, Target};

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
    pass(&[
        "Read6",
        "Read10",
        "Read12",
        "Read16",
        "ReadCapacity10",
        "ReadCapacity16",
        "TestUnitReady",
    ]);
}

#[test]
fn suites_of_writes_pass() {
    pass(&["Write10", "Write12", "Write16", "Mandatory"]);
}

#[test]
fn suites_of_pages_pass() {
    // Left out: OneCommand, which takes the refusal that it asks for as "not implemented".
    pass(&[
        "Inquiry",
        "ModeSense6",
        "ReportSupportedOpcodes.Simple",
        "ReportSupportedOpcodes.RCTD",
        "ReportSupportedOpcodes.SERVACTV",
    ]);
}

#[test]
fn suites_of_trims_pass() {
    // Left out: UnmapUntilEnd, which wants a range zeroed although its pattern is FFh. With LBPRZ a device may
    // unmap only where the pattern is what an unmapped block reads as (SBC-3 §4.7.3.4).
    let kinds = [
        "Simple",
        "BeyondEol",
        "ZeroBlocks",
        "WriteProtect",
        "Unmap",
        "UnmapUnaligned",
        "UnmapVPD",
        "Check",
        "InvalidDataOutSize",
    ];
    let tests: Vec<String> = ["WriteSame10", "WriteSame16"]
        .iter()
        .flat_map(|suite| kinds.iter().map(move |kind| format!("{suite}.{kind}")))
        .collect();
    let mut tests: Vec<&str> = tests.iter().map(String::as_str).collect();
    tests.push("Unmap");
    pass(&tests);
}

#[test]
fn suites_that_break_rules_pass_and_are_noticed() {
    let target = judged();
    judge(&target, &["iSCSIcmdsn", "iSCSIdatasn"]);
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
    pass(&[
        "iSCSITMF",
        "iSCSIResiduals.Read10Invalid",
        "iSCSIResiduals.Read10Residuals",
        "iSCSIResiduals.Read12Residuals",
        "iSCSIResiduals.Read16Residuals",
        "iSCSIResiduals.Write10Residuals",
        "iSCSIResiduals.Write12Residuals",
        "iSCSIResiduals.Write16Residuals",
    ]);
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
    judge(
        &target,
        &["Read10", "Write16", "iSCSIResiduals.Write10Residuals"],
    );
}

fn judged() -> Target {
    Target::builder()
        .iqn(IQN)
        .chap(USER, SECRET)
        .lun(1, Disk::memory(64 << 20))
        .start_blocking()
}

/// Judges the default target, and in turn finds no fault with the judge but one that it is known for: after an R2T
/// libiscsi acknowledges the `StatSN` that is told there and not yet taken.
fn pass(tests: &[&str]) {
    let target = judged();
    judge(&target, tests);
    let violations = target.violations();
    assert!(
        violations.iter().all(|what| what.starts_with("ExpStatSN")),
        "{violations:?}"
    );
}

/// Runs tests of `iscsi-test-cu`; neither a failure nor a test that skips itself is let through.
fn judge(target: &Target, tests: &[&str]) {
    let url = url(target, 1);
    for test in tests {
        let output = run(
            "iscsi-test-cu",
            &["-d", "-s", "-t", &format!("ALL.{test}"), &url],
        );
        let text = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{test} failed:\n{text}");
        // The tool itself asks for reservations before each run.
        let skipped = text
            .lines()
            .any(|line| line.contains("SKIPPED") && !line.contains("PERSISTENT RESERVE IN"));
        assert!(!skipped, "{test} was skipped:\n{text}");
    }
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
