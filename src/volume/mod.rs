//! life of a volume on this host: attach, format, mount, and back; the journal.
