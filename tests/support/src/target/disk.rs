//! What a LUN keeps its blocks in: memory or a sparse file, and a model of a volatile write cache.
//!
//! Invariants:
//! 1. A logical block is written whole or not at all: no reader and no power cut ever sees half of one.
//! 2. With a volatile cache, whatever was written since the last flush may be lost at a power cut, block by block;
//!    what was flushed may not.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::fs::{FallocateFlags, SeekFrom};

/// A disk's blocks; a handle, so clones share them.
#[derive(Clone, Debug)]
pub struct Disk {
    inner: Arc<Inner>,
}

impl Disk {
    /// Zeroes in memory, allocated as they are written.
    pub fn memory(bytes: u64) -> Self {
        let chunks = bytes.div_ceil(CHUNK_BYTES);
        let store = Store::Memory((0..chunks).map(|_| RwLock::new(None)).collect());
        Self::new(store, bytes)
    }

    /// A file, made or extended to this length; sparse where the filesystem allows.
    ///
    /// # Errors
    /// As the filesystem has them.
    pub fn file(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        if file.metadata()?.len() < bytes {
            file.set_len(bytes)?;
        }
        Ok(Self::new(Store::File(file), bytes))
    }

    /// A sparse file without a name, gone with its last handle.
    ///
    /// # Errors
    /// As the filesystem has them.
    pub fn temporary(bytes: u64) -> io::Result<Self> {
        let file = tempfile::tempfile()?;
        file.set_len(bytes)?;
        Ok(Self::new(Store::File(file), bytes))
    }

    /// Takes writes and forgets them, reads zeroes: for measuring all but the disk.
    pub fn null(bytes: u64) -> Self {
        Self::new(Store::Null, bytes)
    }

    /// Blocks of this many bytes instead of 512.
    ///
    /// # Panics
    /// If it is no power of two from 512 to 65536, or the disk is in use already.
    #[must_use]
    pub fn block_bytes(self, bytes: u32) -> Self {
        assert!(
            bytes.is_power_of_two() && (512..=65536).contains(&bytes),
            "block size {bytes}"
        );
        self.change(|inner| inner.block_bytes = bytes)
    }

    /// The unit serial number (VPD 80h), from which the designators of VPD 83h are made too; random if not set.
    ///
    /// # Panics
    /// If the disk is in use already.
    #[must_use]
    pub fn serial(self, serial: &str) -> Self {
        self.change(|inner| serial.clone_into(&mut inner.serial))
    }

    /// The NAA designator of VPD 83h; made from the serial number if not set.
    ///
    /// # Panics
    /// If the disk is in use already.
    #[must_use]
    pub fn naa(self, designator: [u8; 8]) -> Self {
        self.change(|inner| inner.naa = designator)
    }

    /// Refuses writes as a write-protected disk does.
    ///
    /// # Panics
    /// If the disk is in use already.
    #[must_use]
    pub fn read_only(self) -> Self {
        self.change(|inner| inner.read_only = true)
    }

    /// Remembers what a power cut could lose. Slower; without it every write is durable at once.
    ///
    /// # Panics
    /// If the disk is in use already.
    #[must_use]
    pub fn volatile_cache(self) -> Self {
        self.change(|inner| inner.unflushed = Some(Mutex::new(BTreeMap::new())))
    }

    /// Loses each unflushed block for which `lost(lba)` says so: it has its flushed contents again. Returns how many.
    /// The caller cuts the connections first.
    ///
    /// # Panics
    /// If the store cannot be written.
    pub fn power_cut(&self, mut lost: impl FnMut(u64) -> bool) -> usize {
        let Some(unflushed) = &self.inner.unflushed else {
            return 0;
        };
        let mut unflushed = unflushed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for (lba, old) in std::mem::take(&mut *unflushed) {
            if lost(lba) {
                self.put(lba * u64::from(self.inner.block_bytes), &old)
                    .expect("the store can be written");
                count += 1;
            }
        }
        count
    }

    /// Makes it longer or shorter. Initiators hear of it through `Target::resize`.
    ///
    /// # Panics
    /// For memory beyond its first length (rounded up to 256 KiB): its table is fixed.
    pub fn resize(&self, bytes: u64) {
        match &self.inner.store {
            Store::Memory(chunks) => {
                let most = u64::try_from(chunks.len()).unwrap_or(u64::MAX) * CHUNK_BYTES;
                assert!(bytes <= most, "a memory disk cannot grow");
            }
            Store::File(file) => file.set_len(bytes).expect("the file's length can be set"),
            Store::Null => {}
        }
        self.inner.bytes.store(bytes, Ordering::SeqCst);
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.inner.bytes.load(Ordering::SeqCst)
    }

    /// Its blocks, rounded down.
    pub fn blocks(&self) -> u64 {
        self.bytes() / u64::from(self.inner.block_bytes)
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u32 {
        self.inner.block_bytes
    }

    /// The unit serial number.
    pub fn serial_number(&self) -> &str {
        &self.inner.serial
    }

    /// Zeroes if none was set.
    pub(super) fn naa_designator(&self) -> [u8; 8] {
        self.inner.naa
    }

    /// Writes `new` if the range holds `expected`, as one; else the first byte that differs.
    pub(super) fn exchange(
        &self,
        at: u64,
        expected: &[u8],
        new: &[u8],
    ) -> io::Result<Option<usize>> {
        let _one_at_a_time = self
            .inner
            .exchange
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut held = vec![0; expected.len()];
        self.read(at, &mut held)?;
        let differs = held.iter().zip(expected).position(|(a, b)| a != b);
        if differs.is_none() {
            self.write(at, new)?;
        }
        Ok(differs)
    }

    /// How many blocks from this one on are alike, and whether they are mapped. Known for memory only, by its chunks.
    pub(super) fn extent(&self, lba: u64) -> (u64, bool) {
        let size = u64::from(self.inner.block_bytes);
        let Store::Memory(chunks) = &self.inner.store else {
            return (self.blocks() - lba, true);
        };
        let mapped = |at: u64| {
            chunk(chunks, at).is_some_and(|chunk| {
                let held = chunk.read().unwrap_or_else(PoisonError::into_inner);
                held.is_some()
            })
        };
        let state = mapped(lba * size);
        let mut end = (lba * size / CHUNK_BYTES + 1) * CHUNK_BYTES;
        while end < self.bytes() && mapped(end) == state {
            end += CHUNK_BYTES;
        }
        ((end / size).min(self.blocks()) - lba, state)
    }

    /// Whether it refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// How many reads, writes (with trims) and flushes it served.
    pub fn counts(&self) -> Counts {
        Counts {
            reads: self.inner.reads.load(Ordering::Relaxed),
            writes: self.inner.writes.load(Ordering::Relaxed),
            flushes: self.inner.flushes.load(Ordering::Relaxed),
        }
    }

    /// Reads at a byte; what lies behind the end is zero.
    ///
    /// # Errors
    /// As the file has them.
    pub fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.reads.fetch_add(1, Ordering::Relaxed);
        self.take(at, into)
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// As the file has them.
    pub fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.inner.writes.fetch_add(1, Ordering::Relaxed);
        self.remember(at, data.len())?;
        self.put(at, data)
    }

    /// Copies what is not zero onto another disk, as far as that reaches, which must be blank.
    ///
    /// # Errors
    /// As the files have them.
    pub fn copy_onto(&self, other: &Self) -> io::Result<()> {
        let mut piece = vec![0; usize::try_from(CHUNK_BYTES).unwrap_or(0)];
        let end = self.bytes().min(other.bytes());
        let mut at = 0;
        while let Some(data) = self.next_data(at)?.filter(|data| *data < end) {
            // From the chunk's begin: blocks are written whole.
            at = data - data % CHUNK_BYTES;
            let length = usize::try_from(CHUNK_BYTES.min(end - at)).unwrap_or(0);
            self.read(at, &mut piece[..length])?;
            if piece[..length].iter().any(|byte| *byte != 0) {
                other.write(at, &piece[..length])?;
            }
            at += CHUNK_BYTES;
        }
        Ok(())
    }

    /// Where something may be that is not zero, at `at` or behind it.
    fn next_data(&self, at: u64) -> io::Result<Option<u64>> {
        let Store::File(file) = &self.inner.store else {
            return Ok(Some(at));
        };
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => Ok(Some(data)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a range zero and gives its room back where it can.
    ///
    /// # Errors
    /// As the file has them.
    pub fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.inner.writes.fetch_add(1, Ordering::Relaxed);
        let mut at = at;
        let end = at + bytes;
        let zeroes = vec![0; usize::try_from(CHUNK_BYTES.min(bytes)).unwrap_or(0)];
        while at < end {
            let piece = (CHUNK_BYTES - at % CHUNK_BYTES).min(end - at);
            let length = usize::try_from(piece).unwrap_or(0);
            self.remember(at, length)?;
            match &self.inner.store {
                Store::Memory(chunks) if piece == CHUNK_BYTES => {
                    if let Some(chunk) = chunk(chunks, at) {
                        *chunk.write().unwrap_or_else(PoisonError::into_inner) = None;
                    }
                }
                // A hole reads as zeroes. Written out, the discard of a GiB under emulation takes longer than an
                // initiator waits for the answer to its ping.
                Store::File(file) if punch(file, at, piece).is_ok() => {}
                Store::Memory(_) | Store::File(_) | Store::Null => {
                    self.put(at, &zeroes[..length])?;
                }
            }
            at += piece;
        }
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As the file has them.
    pub fn flush(&self) -> io::Result<()> {
        self.inner.flushes.fetch_add(1, Ordering::Relaxed);
        if let Some(unflushed) = &self.inner.unflushed {
            unflushed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clear();
        }
        // A test's file need not outlive the machine: the page cache is its medium.
        Ok(())
    }

    /// Makes a range durable (FUA).
    pub(super) fn flush_range(&self, at: u64, bytes: u64) {
        if let Some(unflushed) = &self.inner.unflushed {
            let block = u64::from(self.inner.block_bytes);
            let range = at / block..(at + bytes).div_ceil(block);
            let mut unflushed = unflushed.lock().unwrap_or_else(PoisonError::into_inner);
            unflushed.retain(|lba, _| !range.contains(lba));
        }
    }

    fn new(store: Store, bytes: u64) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                bytes: AtomicU64::new(bytes),
                block_bytes: 512,
                serial: crate::random::letters(20),
                naa: [0; 8],
                read_only: false,
                unflushed: None,
                exchange: Mutex::new(()),
                reads: AtomicU64::new(0),
                writes: AtomicU64::new(0),
                flushes: AtomicU64::new(0),
            }),
        }
    }

    fn change(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::get_mut(&mut self.inner).expect("the disk is not in use yet"));
        self
    }

    fn remember(&self, at: u64, bytes: usize) -> io::Result<()> {
        let Some(unflushed) = &self.inner.unflushed else {
            return Ok(());
        };
        let block = u64::from(self.inner.block_bytes);
        let end = at + u64::try_from(bytes).unwrap_or(0);
        let mut unflushed = unflushed.lock().unwrap_or_else(PoisonError::into_inner);
        for lba in at / block..end.div_ceil(block) {
            if let Entry::Vacant(place) = unflushed.entry(lba) {
                let mut old = vec![0; usize::try_from(block).unwrap_or(0)].into_boxed_slice();
                self.take(lba * block, &mut old)?;
                place.insert(old);
            }
        }
        Ok(())
    }

    fn take(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        match &self.inner.store {
            Store::Memory(chunks) => {
                pieces(at, into.len(), |at, from, length, offset| {
                    let space = &mut into[from..from + length];
                    let held = chunk(chunks, at).map(|chunk| chunk.read());
                    match held.map(|held| held.unwrap_or_else(PoisonError::into_inner)) {
                        Some(held) if held.is_some() => {
                            let bytes = held.as_deref().unwrap_or_default();
                            space.copy_from_slice(&bytes[offset..offset + length]);
                        }
                        Some(_) | None => space.fill(0),
                    }
                });
                Ok(())
            }
            Store::File(file) => {
                let mut done = 0;
                while done < into.len() {
                    let offset = at + u64::try_from(done).unwrap_or(0);
                    match file.read_at(&mut into[done..], offset)? {
                        0 => {
                            into[done..].fill(0);
                            break;
                        }
                        count => done += count,
                    }
                }
                Ok(())
            }
            Store::Null => {
                into.fill(0);
                Ok(())
            }
        }
    }

    fn put(&self, at: u64, data: &[u8]) -> io::Result<()> {
        match &self.inner.store {
            Store::Memory(chunks) => {
                pieces(at, data.len(), |at, from, length, offset| {
                    if let Some(chunk) = chunk(chunks, at) {
                        let mut held = chunk.write().unwrap_or_else(PoisonError::into_inner);
                        let bytes = held.get_or_insert_with(|| {
                            vec![0; usize::try_from(CHUNK_BYTES).unwrap_or(0)].into_boxed_slice()
                        });
                        bytes[offset..offset + length].copy_from_slice(&data[from..from + length]);
                    }
                });
                Ok(())
            }
            Store::File(file) => file.write_all_at(data, at),
            Store::Null => Ok(()),
        }
    }
}

/// Frees a range of a file; not every filesystem can.
fn punch(file: &File, at: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, at, bytes)?)
}

/// What a disk served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// READ commands.
    pub reads: u64,
    /// WRITE, WRITE SAME and UNMAP ranges.
    pub writes: u64,
    /// SYNCHRONIZE CACHE.
    pub flushes: u64,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    bytes: AtomicU64,
    block_bytes: u32,
    serial: String,
    naa: [u8; 8],
    read_only: bool,
    /// What blocks held when last flushed, for those written since.
    unflushed: Option<Mutex<BTreeMap<u64, Box<[u8]>>>>,
    /// Held by COMPARE AND WRITE, which is atomic among its like.
    exchange: Mutex<()>,
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
}

type Chunk = RwLock<Option<Box<[u8]>>>;

#[derive(Debug)]
enum Store {
    Memory(Vec<Chunk>),
    File(File),
    Null,
}

fn chunk(chunks: &[Chunk], at: u64) -> Option<&Chunk> {
    chunks.get(usize::try_from(at / CHUNK_BYTES).ok()?)
}

/// Calls with (byte on the disk, start in the buffer, length, offset in the chunk) for each chunk touched.
fn pieces(at: u64, bytes: usize, mut each: impl FnMut(u64, usize, usize, usize)) {
    let chunk_bytes = usize::try_from(CHUNK_BYTES).unwrap_or(0);
    let mut done = 0;
    while done < bytes {
        let here = at + u64::try_from(done).unwrap_or(0);
        let offset = usize::try_from(here % CHUNK_BYTES).unwrap_or(0);
        let length = (chunk_bytes - offset).min(bytes - done);
        each(here, done, length, offset);
        done += length;
    }
}

/// A multiple of every block size, so that a block is under one lock; else chosen freely.
const CHUNK_BYTES: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_file_gives_its_space_back() {
        use std::os::unix::fs::MetadataExt as _;

        let disk = Disk::temporary(8 << 20).unwrap();
        disk.write(0, &vec![7; 8 << 20]).unwrap();
        disk.zero(0, 8 << 20).unwrap();
        let mut seen = [1; 512];
        disk.read(4 << 20, &mut seen).unwrap();
        assert_eq!(seen, [0; 512]);
        let Store::File(file) = &disk.inner.store else {
            panic!("a temporary disk is a file");
        };
        assert!(file.metadata().unwrap().blocks() < 64);
    }

    #[test]
    fn memory_and_file_agree_over_chunk_borders() {
        for disk in [Disk::memory(1 << 20), Disk::temporary(1 << 20).unwrap()] {
            let at = CHUNK_BYTES - 512;
            disk.write(at, &[5; 2048]).unwrap();
            disk.zero(at + 512, 512).unwrap();
            let mut seen = [1; 2560];
            disk.read(at - 512, &mut seen).unwrap();
            assert_eq!(seen[..512], [0; 512]);
            assert_eq!(seen[512..1024], [5; 512]);
            assert_eq!(seen[1024..1536], [0; 512]);
            assert_eq!(seen[1536..], [5; 1024]);
            disk.zero(0, 1 << 20).unwrap();
            disk.read(at - 512, &mut seen).unwrap();
            assert_eq!(seen, [0; 2560]);
        }
    }

    #[test]
    fn power_cut_loses_only_what_was_not_flushed() {
        let disk = Disk::memory(1 << 20).volatile_cache();
        disk.write(0, &[1; 1024]).unwrap();
        disk.flush().unwrap();
        disk.write(512, &[2; 1024]).unwrap();
        assert_eq!(disk.power_cut(|lba| lba == 1), 1);
        let mut seen = [9; 1536];
        disk.read(0, &mut seen).unwrap();
        assert_eq!(seen[..1024], [1; 1024]);
        assert_eq!(seen[1024..], [2; 512]);
    }
}
