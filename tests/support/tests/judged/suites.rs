//! The suites of libiscsi's `iscsi-test-cu` (1.19): which group runs them, and why a suite or test is left out.

/// What a suite is run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Reads,
    Writes,
    Pages,
    Trims,
    Reservations,
    /// Two sessions, over two portals.
    TwoPaths,
    /// A write-protected disk.
    WriteProtected,
    /// Task management, residuals.
    Session,
    /// The initiator breaks rules, which must be noticed.
    BreaksRules,
    /// Not run, and why.
    NotOurs(&'static str),
}

pub(crate) struct Suite {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    /// Tests that are left out, and why.
    pub(crate) not: &'static [(&'static str, &'static str)],
}

const fn all(name: &'static str, group: Group) -> Suite {
    Suite {
        name,
        group,
        not: &[],
    }
}

const fn but(
    name: &'static str,
    group: Group,
    not: &'static [(&'static str, &'static str)],
) -> Suite {
    Suite { name, group, not }
}

pub(crate) const SUITES: &[Suite] = &[
    all("CompareAndWrite", Group::Writes),
    all("ExtendedCopy", COPY),
    but(
        "GetLBAStatus",
        Group::Reads,
        &[(
            "UnmapSingle",
            "this disk knows what is mapped by chunks of 256 KiB, the test wants it by blocks",
        )],
    ),
    all("Inquiry", Group::Pages),
    all("Mandatory", Group::Writes),
    all("ModeSense6", Group::Pages),
    all("NoMedia", REMOVABLE),
    all("OrWrite", NOT_SENT),
    all("Prefetch10", NOT_SENT),
    all("Prefetch16", NOT_SENT),
    all("PreventAllow", REMOVABLE),
    all("PrinReadKeys", Group::Reservations),
    all("PrinServiceactionRange", Group::Reservations),
    all("PrinReportCapabilities", Group::Reservations),
    all("ProutRegister", Group::Reservations),
    all("ProutReserve", Group::Reservations),
    all("ProutClear", Group::Reservations),
    all("ProutPreempt", Group::Reservations),
    all("Read6", Group::Reads),
    all("Read10", Group::Reads),
    all("Read12", Group::Reads),
    all("Read16", Group::Reads),
    all("ReadCapacity10", Group::Reads),
    all("ReadCapacity16", Group::Reads),
    all("ReadDefectData10", NOT_SENT),
    all("ReadDefectData12", NOT_SENT),
    all("ReadOnly", Group::WriteProtected),
    all("ReceiveCopyResults", COPY),
    but(
        "ReportSupportedOpcodes",
        Group::Pages,
        &[(
            "OneCommand",
            "takes the refusal that it asks for as \"not implemented\" and skips itself",
        )],
    ),
    all(
        "Reserve6",
        Group::NotOurs("RESERVE(6) is obsolete since SPC-3"),
    ),
    all("Sanitize", NOT_SENT),
    all("StartStopUnit", REMOVABLE),
    all("TestUnitReady", Group::Reads),
    all("Unmap", Group::Trims),
    all("Verify10", NOT_SENT),
    all("Verify12", NOT_SENT),
    all("Verify16", NOT_SENT),
    all("Write10", Group::Writes),
    all("Write12", Group::Writes),
    all("Write16", Group::Writes),
    all("WriteAtomic16", NOT_SENT),
    but("WriteSame10", Group::Trims, UNTIL_END),
    but("WriteSame16", Group::Trims, UNTIL_END),
    all("WriteVerify10", NOT_SENT),
    all("WriteVerify12", NOT_SENT),
    all("WriteVerify16", NOT_SENT),
    all("iSCSIcmdsn", Group::BreaksRules),
    all("iSCSIdatasn", Group::BreaksRules),
    but(
        "iSCSIResiduals",
        Group::Session,
        &[
            ("WriteVerify10Residuals", VERIFIES),
            ("WriteVerify12Residuals", VERIFIES),
            ("WriteVerify16Residuals", VERIFIES),
        ],
    ),
    all("iSCSITMF", Group::Session),
    all("MultipathIO", Group::TwoPaths),
];

const NOT_SENT: Group =
    Group::NotOurs("optional in SBC-3, and no initiator that this target is for sends it");
const REMOVABLE: Group = Group::NotOurs("the medium is not removable");
const COPY: Group =
    Group::NotOurs("no third-party copy: no initiator that this target is for sends it");
const VERIFIES: &str = "WRITE AND VERIFY is not implemented";
// SBC-3 §4.7.3.4: with LBPRZ a device may unmap only where the pattern is what an unmapped block reads as.
const UNTIL_END: &[(&str, &str)] = &[(
    "UnmapUntilEnd",
    "wants a range zeroed although its pattern is FFh, which LBPRZ does not allow",
)];
