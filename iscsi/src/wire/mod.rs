//! Bytes <-> values: one file per PDU of RFC 7143 §11, text keys, serial numbers, digests.
