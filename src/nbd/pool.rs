//! Buffers that are used again, so that the data path does not allocate for each request.
//!
//! A room of its own because the rule of what is kept has nothing to do with requests.
//!
//! Invariants:
//! 1. A buffer that is taken has the length that was asked for, and all of it is initialised (with old data of the
//!    same device, at worst).
//! 2. At most `KEPT_BYTES_MAX` bytes lie idle.
//!
//! Costs: a buffer that is given out longer than it last was has its tail zeroed; equal lengths, which is the rule on
//! a block device, cost nothing.

use bytes::{Bytes, BytesMut};

use super::transmission::ZERO_FILL_BYTES;

/// Idle bytes; a lane's bytes under way are limited to the same.
const KEPT_BYTES_MAX: usize = 32 << 20;
/// The smallest class of buffers, a page.
const CLASS_BYTES_MIN: usize = 4096;
/// Powers of two from `CLASS_BYTES_MIN` to 32 MiB, the largest payload.
const CLASSES: usize = 14;

/// Idle buffers, by power-of-two capacity.
#[derive(Debug, Default)]
pub(super) struct Pool {
    classes: [Vec<BytesMut>; CLASSES],
    kept_bytes: usize,
    /// Made when they are first asked for.
    zeroes: Bytes,
}

impl Pool {
    /// Takes and touches buffers before they are needed: so many of a length. Memory may be short later, and then a
    /// write may be what frees some.
    pub(super) fn reserve(&mut self, length: usize, count: usize) {
        let buffers: Vec<_> = (0..count).map(|_| self.take(length)).collect();
        for mut buffer in buffers {
            // The allocator's zeroes are pages that are not there yet.
            buffer.fill(0xff);
            buffer.fill(0);
            self.put(buffer);
        }
    }

    /// A buffer of this length.
    pub(super) fn take(&mut self, length: usize) -> BytesMut {
        let wanted = length.next_power_of_two().max(CLASS_BYTES_MIN);
        let Some(mut buffer) = class_of(wanted).and_then(|class| self.classes[class].pop()) else {
            let mut buffer = BytesMut::zeroed(wanted);
            // From the first on it can be shared: later it is frozen, shared and taken back without an allocation.
            drop(buffer.split_off(wanted));
            buffer.truncate(length);
            return buffer;
        };
        self.kept_bytes -= buffer.capacity();
        buffer.resize(length, 0);
        buffer
    }

    /// Zeroes to be written, so many bytes; all share one piece of memory.
    pub(super) fn zeroes(&mut self, length: u32) -> Bytes {
        let wanted = usize_of(length);
        if self.zeroes.len() < wanted {
            self.zeroes = Bytes::from(vec![0; usize_of(length.max(ZERO_FILL_BYTES))]);
        }
        self.zeroes.slice(..wanted)
    }

    /// Takes a buffer back; one that is odd, or one too many, is freed.
    pub(super) fn put(&mut self, buffer: BytesMut) {
        let capacity = buffer.capacity();
        if !capacity.is_power_of_two() || self.kept_bytes + capacity > KEPT_BYTES_MAX {
            return;
        }
        if let Some(class) = class_of(capacity) {
            self.kept_bytes += capacity;
            self.classes[class].push(buffer);
        }
    }
}

fn class_of(capacity: usize) -> Option<usize> {
    let smallest = CLASS_BYTES_MIN.ilog2();
    let class = usize::try_from(capacity.ilog2().checked_sub(smallest)?).ok()?;
    (class < CLASSES).then_some(class)
}

fn usize_of(length: u32) -> usize {
    usize::try_from(length).expect("the daemon runs on machines of 32 bits and more")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_the_length_asked_for() {
        let mut pool = Pool::default();
        let first = pool.take(5000);
        assert_eq!((first.len(), first.capacity()), (5000, 8192));
        let place = first.as_ptr();
        pool.put(first);
        let again = pool.take(8000);
        assert_eq!((again.len(), again.as_ptr()), (8000, place));
        assert!(again.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_reserved_is_there_and_counts_as_idle() {
        let mut pool = Pool::default();
        pool.reserve(1 << 20, 2);
        pool.reserve(4096, 3);
        assert_eq!(pool.kept_bytes, (2 << 20) + 3 * 4096);
        drop((pool.take(1 << 20), pool.take(1 << 20), pool.take(4096)));
        assert_eq!(pool.kept_bytes, 2 * 4096);
    }

    #[test]
    fn a_payload_that_was_shared_comes_back_to_the_pool() {
        let mut pool = Pool::default();
        let buffer = pool.take(4096);
        let place = buffer.as_ptr();
        let ours = buffer.freeze();
        let backends = ours.clone();
        drop(backends);
        pool.put(ours.try_into_mut().unwrap());
        assert_eq!(pool.take(512).as_ptr(), place);
    }

    #[test]
    fn what_lies_idle_is_limited() {
        let mut pool = Pool::default();
        for _ in 0..3 {
            let buffers: Vec<_> = (0..40).map(|_| pool.take(1 << 20)).collect();
            for buffer in buffers {
                pool.put(buffer);
            }
        }
        assert_eq!(pool.kept_bytes, KEPT_BYTES_MAX);
        pool.put(BytesMut::zeroed(100));
        pool.put(BytesMut::zeroed(64 << 20));
        assert_eq!(pool.kept_bytes, KEPT_BYTES_MAX);
    }
}
