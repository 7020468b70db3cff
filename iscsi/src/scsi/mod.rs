//! SCSI values: CDBs, status, sense, READ CAPACITY(16), INQUIRY and VPD pages, units. CONTRACT part:

/// A command descriptor block of up to 16 bytes, as it stands in the BHS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb(pub [u8; 16]);

/// An eight-byte SAM LUN address (single-level; peripheral below 256, flat above).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LunAddress(pub u64);

/// SAM status byte; an open registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u8);

/// Parsed sense data, fixed or descriptor format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key, 0..16.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}
