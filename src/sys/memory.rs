//! Memory that outlives the process that wrote it: a sealed memfd, mapped; words in its front, an arena behind them.
//!
//! A room of its own because it is the only place where memory is shared with another process, and where one piece
//! of memory is handed to the kernel to read into, and to a backend to write from, without a copy.
//! Source: `memfd_create(2)`, mmap(2), fcntl(2): file seals.
//! Read before changing: `nbd/journal.rs`, which keeps its state here.
//!
//! ```text
//!  | words (u64, by atomic access) | arena: blocks, page by page, first fit, lowest first |
//! ```
//!
//! Invariants:
//! 1. The length is sealed before the memory is mapped: nobody who holds the descriptor can shrink it under us.
//! 2. A byte of the arena belongs to one block at most; a block is written to only while nobody else can read it.
//! 3. A word is stored after everything that was written before it in the program, and before everything after it: a
//!    process that is killed has done all up to some instruction and nothing beyond, and its successor sees that.
//!
//! What it does not do: judge what the words say (`nbd/journal.rs`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Blocks begin and end at these; larger pages of other machines cost nothing but tidiness.
const PAGE_BYTES: usize = 4096;
const WORD_BYTES: usize = size_of::<u64>();

/// How the memory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of words; rounded up to whole pages.
    pub words: usize,
    /// Length of the arena in bytes, a multiple of 4096.
    pub arena_bytes: usize,
}

impl Layout {
    fn arena_begin(self) -> usize {
        (self.words * WORD_BYTES).next_multiple_of(PAGE_BYTES)
    }

    fn length(self) -> usize {
        self.arena_begin() + self.arena_bytes
    }
}

/// Makes such memory; all of it is zero, and none of it is taken from the system before it is used.
///
/// # Errors
/// No descriptor or address space left.
///
/// # Panics
/// The length does not fit in 64 bits.
pub fn create(name: &str, layout: Layout) -> io::Result<(Words, Arena)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(name, flags)?;
    let length = u64::try_from(layout.length()).expect("an address space fits in 64 bits");
    rustix::fs::ftruncate(&file, length)?;
    rustix::fs::fcntl_add_seals(&file, seals())?;
    Map::of(file, layout)
}

/// Maps what a predecessor left. It must have the length that the layout wants, and be sealed.
///
/// # Errors
/// It has not; or no address space is left.
pub fn open(file: OwnedFd, layout: Layout) -> io::Result<(Words, Arena)> {
    let sealed = rustix::fs::fcntl_get_seals(&file)?;
    if !sealed.contains(seals()) {
        return Err(io::Error::other("its length is not sealed"));
    }
    let found = rustix::fs::fstat(&file)?.st_size;
    if usize::try_from(found) != Ok(layout.length()) {
        let length = layout.length();
        return Err(io::Error::other(format!(
            "it has {found} bytes instead of {length}"
        )));
    }
    Map::of(file, layout)
}

fn seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW
}

/// The mapping; it lasts as long as anything that points into it.
#[derive(Debug)]
struct Map {
    file: OwnedFd,
    base: NonNull<u8>,
    layout: Layout,
}

#[expect(unsafe_code, reason = "a raw pointer into memory that is shared")]
// SAFETY: the pointer is to a mapping that belongs to this value alone and is not bound to a thread. All access goes
// through `Words` (atomic) and `Block` (exclusive, or read only once it is shared; invariant 2).
unsafe impl Send for Map {}
#[expect(unsafe_code, reason = "a raw pointer into memory that is shared")]
// SAFETY: as for `Send`; `Map` itself gives no access to the memory.
unsafe impl Sync for Map {}

impl Map {
    #[expect(unsafe_code, reason = "there is no safe call that maps memory")]
    fn of(file: OwnedFd, layout: Layout) -> io::Result<(Words, Arena)> {
        // SAFETY: no address is asked for, so that no other mapping is replaced; the length is that of the file, which
        // is sealed (invariant 1), so that access within it never faults.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                layout.length(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = Arc::new(Self { file, base, layout });
        let words = Words {
            map: Arc::clone(&map),
        };
        let arena = Arena {
            map,
            taken: Vec::with_capacity(256),
            spare: Vec::with_capacity(256),
            lingering: Vec::new(),
            high: 0,
        };
        Ok((words, arena))
    }
}

impl Drop for Map {
    #[expect(unsafe_code, reason = "there is no safe call that unmaps memory")]
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing points into it: `Words`, leases and
        // their `Bytes` keep the map alive.
        let outcome =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.layout.length()) };
        if let Err(error) = outcome {
            tracing::debug!("cannot unmap memory: {error}");
        }
    }
}

/// The words.
#[derive(Debug)]
pub struct Words {
    map: Arc<Map>,
}

impl Words {
    /// A word.
    ///
    /// # Panics
    /// There is none of this number.
    pub fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Stores a word, after all that was written before and before all that is written after.
    ///
    /// # Panics
    /// There is none of this number.
    pub fn set(&self, index: usize, value: u64) {
        // The only other reader is a process that begins after this one's death: the compiler must keep the order, the
        // machine does.
        compiler_fence(Ordering::SeqCst);
        self.word(index).store(value, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    /// The memory, to be kept for a successor.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.map.file.as_fd()
    }

    #[expect(unsafe_code, reason = "a word in memory that is shared")]
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.map.layout.words, "there is no word {index}");
        // SAFETY: the word is inside of the mapping, by the assertion, and aligned, as the mapping begins at a page. It
        // is accessed by atomic operations only: the arena begins behind the words. It lives as long as the map.
        unsafe { AtomicU64::from_ptr(self.map.base.as_ptr().add(index * WORD_BYTES).cast()) }
    }
}

/// Blocks of memory, page by page.
#[derive(Debug)]
pub struct Arena {
    map: Arc<Map>,
    /// What belongs to a block: first byte and length, sorted, in whole pages.
    taken: Vec<(usize, usize)>,
    /// Leases of blocks that are gone, to be used again.
    spare: Vec<Arc<Lease>>,
    /// Blocks that were given back while somebody could still read them.
    lingering: Vec<Block>,
    /// All beyond is untouched since it was given back to the system.
    high: usize,
}

/// One block's share in the map; whoever has a clone can read the block.
#[derive(Debug)]
struct Lease {
    map: Arc<Map>,
}

/// A piece of the arena: written to by its owner, then shared for reading.
#[derive(Debug)]
pub struct Block {
    lease: Arc<Lease>,
    offset: usize,
    length: usize,
}

impl Arena {
    /// A block of this length at the lowest place that has room; what is in it is what was there. `None` when there
    /// is no room.
    pub fn take(&mut self, length: usize) -> Option<Block> {
        self.reclaim();
        let pages = length.max(1).next_multiple_of(PAGE_BYTES);
        let mut begin = 0;
        let mut position = self.taken.len();
        for (index, &(used, bytes)) in self.taken.iter().enumerate() {
            if used - begin >= pages {
                position = index;
                break;
            }
            begin = used + bytes;
        }
        if self.map.layout.arena_bytes - begin < pages {
            return None;
        }
        Some(self.lease(position, begin, length))
    }

    /// The block at this place, as a predecessor had it. `None` if that is not a free place of this arena.
    pub fn take_at(&mut self, offset: usize, length: usize) -> Option<Block> {
        let pages = length.max(1).checked_next_multiple_of(PAGE_BYTES)?;
        let end = offset.checked_add(pages)?;
        if !offset.is_multiple_of(PAGE_BYTES) || end > self.map.layout.arena_bytes {
            return None;
        }
        let position = self.taken.partition_point(|&(used, _)| used < offset);
        let before = position.checked_sub(1).map(|index| self.taken[index]);
        let after = self.taken.get(position);
        if before.is_some_and(|(used, bytes)| used + bytes > offset)
            || after.is_some_and(|&(used, _)| used < end)
        {
            return None;
        }
        Some(self.lease(position, offset, length))
    }

    /// Takes a block back. One that somebody can still read is not used again before that has ended.
    ///
    /// # Panics
    /// The block is of another arena.
    pub fn put(&mut self, mut block: Block) {
        if Arc::get_mut(&mut block.lease).is_none() {
            return self.lingering.push(block);
        }
        let found = self
            .taken
            .binary_search_by_key(&block.offset, |&(used, _)| used);
        let index = found.expect("a block is given back to the arena that it is of, once");
        self.taken.remove(index);
        self.spare.push(block.lease);
    }

    /// Gives the pages beyond `keep` back to the system, unless one of them is in use.
    ///
    /// # Panics
    /// A length does not fit in 64 bits.
    pub fn shrink(&mut self, keep: usize) {
        self.reclaim();
        let last = self.taken.last().map_or(0, |&(used, bytes)| used + bytes);
        if self.high <= keep || last > keep {
            return;
        }
        let bytes = |length| u64::try_from(length).expect("an address space fits in 64 bits");
        let outcome = rustix::fs::fallocate(
            &self.map.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            bytes(self.map.layout.arena_begin() + keep),
            bytes(self.high - keep),
        );
        match outcome {
            Ok(()) => self.high = keep,
            Err(error) => tracing::debug!("cannot give memory back: {error}"),
        }
    }

    /// How far memory was taken from the system since the last [`Self::shrink`].
    pub fn high(&self) -> usize {
        self.high
    }

    fn lease(&mut self, position: usize, offset: usize, length: usize) -> Block {
        let pages = length.max(1).next_multiple_of(PAGE_BYTES);
        self.taken.insert(position, (offset, pages));
        self.high = self.high.max(offset + pages);
        let map = &self.map;
        let lease = self.spare.pop();
        let lease = lease.unwrap_or_else(|| {
            Arc::new(Lease {
                map: Arc::clone(map),
            })
        });
        Block {
            lease,
            offset,
            length,
        }
    }

    fn reclaim(&mut self) {
        for block in std::mem::take(&mut self.lingering) {
            self.put(block);
        }
    }
}

impl Block {
    /// Where in the arena.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes.
    #[expect(unsafe_code, reason = "a slice of memory that is shared")]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block is inside of the arena (`take`, `take_at`), no other block has its bytes (invariant 2), and
        // whoever writes to it needs `&mut self`. Another process writes to it only if it was given the descriptor and
        // breaks its half of the contract; the worst is wrong bytes, as no value of `u8` is illegal.
        unsafe { std::slice::from_raw_parts(self.begin(), self.length) }
    }

    /// The bytes, to be written to.
    ///
    /// # Panics
    /// Somebody was given them by [`Self::share`] and has not let go of them.
    #[expect(unsafe_code, reason = "a slice of memory that is shared")]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(
            Arc::get_mut(&mut self.lease).is_some(),
            "a block is written to while nobody reads it"
        );
        // SAFETY: as for `bytes`; and nobody has a `Bytes` of this block, by the assertion (it would hold the lease),
        // nor a slice, by `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.begin(), self.length) }
    }

    /// The bytes, to be read by somebody else without a copy.
    pub fn share(&self) -> Bytes {
        Bytes::from_owner(Reader {
            lease: Arc::clone(&self.lease),
            offset: self.offset,
            length: self.length,
        })
    }

    fn begin(&self) -> *mut u8 {
        begin(&self.lease, self.offset)
    }
}

/// What a `Bytes` of a block holds.
struct Reader {
    lease: Arc<Lease>,
    offset: usize,
    length: usize,
}

impl AsRef<[u8]> for Reader {
    #[expect(unsafe_code, reason = "a slice of memory that is shared")]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as for `Block::bytes`; while this reader lives, `Block::bytes_mut` refuses and `Arena::put` keeps the
        // place, because both look at the lease.
        unsafe { std::slice::from_raw_parts(begin(&self.lease, self.offset), self.length) }
    }
}

#[expect(unsafe_code, reason = "an address in memory that is shared")]
fn begin(lease: &Lease, offset: usize) -> *mut u8 {
    let map = &lease.map;
    // SAFETY: offsets of blocks are inside of the arena, which is inside of the mapping.
    unsafe { map.base.as_ptr().add(map.layout.arena_begin() + offset) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        words: 600,
        arena_bytes: 16 * PAGE_BYTES,
    };

    fn memory() -> (Words, Arena) {
        create("test", LAYOUT).unwrap()
    }

    #[test]
    fn what_is_written_is_there_for_whoever_maps_it_next() {
        let (words, mut arena) = memory();
        words.set(599, 77);
        let mut block = arena.take(5000).unwrap();
        block.bytes_mut().fill(0xa5);
        let file = words.file().try_clone_to_owned().unwrap();
        drop((words, arena));
        // The block alone keeps the mapping.
        assert!(block.bytes().iter().all(|byte| *byte == 0xa5));
        drop(block);
        let (words, mut arena) = open(file, LAYOUT).unwrap();
        assert_eq!(words.get(599), 77);
        let block = arena.take_at(0, 5000).unwrap();
        assert!(block.share().iter().all(|byte| *byte == 0xa5));
        assert_eq!(arena.take(1).unwrap().offset(), 2 * PAGE_BYTES);
    }

    #[test]
    fn foreign_memory_is_refused() {
        let (words, _arena) = memory();
        let other = Layout {
            words: 600,
            arena_bytes: 17 * PAGE_BYTES,
        };
        let copy = || words.file().try_clone_to_owned().unwrap();
        let error = open(copy(), other).unwrap_err();
        assert!(error.to_string().contains("bytes instead of"), "{error}");
        let file = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, u64::try_from(LAYOUT.length()).unwrap()).unwrap();
        let error = open(file, LAYOUT).unwrap_err();
        assert!(error.to_string().contains("not sealed"), "{error}");
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(open(null.into(), LAYOUT).is_err());
        assert!(rustix::fs::ftruncate(copy(), 0).is_err(), "it is sealed");
    }

    #[test]
    fn places_are_the_lowest_that_have_room() {
        let (_words, mut arena) = memory();
        let mut take = |length| arena.take(length).unwrap();
        let (first, second, third) = (take(1), take(2 * PAGE_BYTES), take(PAGE_BYTES));
        let places = [first.offset(), second.offset(), third.offset()];
        assert_eq!(places, [0, PAGE_BYTES, 3 * PAGE_BYTES]);
        arena.put(second);
        assert_eq!(
            arena.take(2 * PAGE_BYTES + 1).unwrap().offset(),
            4 * PAGE_BYTES
        );
        assert_eq!(arena.take(PAGE_BYTES + 1).unwrap().offset(), PAGE_BYTES);
        assert!(arena.take(10 * PAGE_BYTES).is_none());
        assert_eq!(arena.take(9 * PAGE_BYTES).unwrap().offset(), 7 * PAGE_BYTES);
        assert!(arena.take(1).is_none());
        arena.put(first);
        assert_eq!(arena.take(1).unwrap().offset(), 0);
    }

    #[test]
    fn a_place_is_taken_once_and_only_inside() {
        let (_words, mut arena) = memory();
        let _middle = arena.take_at(4 * PAGE_BYTES, 2 * PAGE_BYTES).unwrap();
        for (offset, length) in [
            (4 * PAGE_BYTES, 1),
            (5 * PAGE_BYTES, 1),
            (3 * PAGE_BYTES, PAGE_BYTES + 1),
            (1, 1),
            (16 * PAGE_BYTES, 1),
            (15 * PAGE_BYTES, PAGE_BYTES + 1),
            (usize::MAX - PAGE_BYTES + 1, 1),
            (0, usize::MAX),
        ] {
            assert!(arena.take_at(offset, length).is_none(), "{offset} {length}");
        }
        assert!(arena.take_at(3 * PAGE_BYTES, PAGE_BYTES).is_some());
        assert!(arena.take_at(6 * PAGE_BYTES, 10 * PAGE_BYTES).is_some());
    }

    #[test]
    fn a_block_that_is_read_is_neither_written_to_nor_given_out_again() {
        let (_words, mut arena) = memory();
        let mut block = arena.take(10).unwrap();
        block.bytes_mut().copy_from_slice(b"0123456789");
        let reader = block.share().slice(2..5);
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block.bytes_mut()[0] = 1));
        assert!(outcome.is_err());
        arena.put(block);
        assert_eq!(arena.take(10).unwrap().offset(), PAGE_BYTES);
        assert_eq!(&reader[..], b"234");
        drop(reader);
        assert_eq!(arena.take(10).unwrap().offset(), 0);
    }

    #[test]
    fn memory_that_is_not_used_goes_back_to_the_system() {
        let (words, mut arena) = memory();
        let used = |words: &Words| rustix::fs::fstat(words.file()).unwrap().st_blocks;
        let mut block = arena.take(10 * PAGE_BYTES).unwrap();
        block.bytes_mut().fill(1);
        let full = used(&words);
        arena.shrink(PAGE_BYTES);
        assert_eq!(used(&words), full, "it is in use");
        arena.put(block);
        arena.shrink(PAGE_BYTES);
        assert!(used(&words) < full);
        assert_eq!(arena.high(), PAGE_BYTES);
        let block = arena.take(2 * PAGE_BYTES).unwrap();
        assert_eq!((block.bytes()[0], block.bytes()[PAGE_BYTES]), (1, 0));
    }
}
