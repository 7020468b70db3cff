//! Replies of the transmission phase, simple and structured, as they leave.
//!
//! A file of its own because the layouts of chunks have nothing to do with the judgement of requests.
//! Source: `proto.md: Simple reply message`, `Structured reply chunk message`, `Structured reply types`.
//!
//! Invariants:
//! 1. A reply is whole when it is made: a structured one is a single chunk, so that a read is never begun before it is
//!    known to have succeeded, and DF asks for nothing that is not done anyway.
//! 2. Only errors and extents allocate; a read's data stay in the buffer they came in.

use bytes::{BufMut, BytesMut};

use super::wire::{self, CHUNK_BYTES, SIMPLE_REPLY_BYTES, chunk};

/// A header and what follows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: u8,
    is_read: bool,
    body: BytesMut,
}

impl Reply {
    /// A simple reply without data; error 0 is success.
    pub(super) fn simple(cookie: u64, error: u32) -> Self {
        Self::of(&wire::simple_reply(cookie, error), BytesMut::new())
    }

    /// A simple reply to a read that succeeded.
    pub(super) fn data(cookie: u64, data: BytesMut) -> Self {
        Self {
            is_read: true,
            ..Self::of(&wire::simple_reply(cookie, 0), data)
        }
    }

    /// A chunk with all of a read's data.
    pub(super) fn offset_data(cookie: u64, offset: u64, data: BytesMut) -> Self {
        let mut head = [0; CHUNK_BYTES + 8];
        let header = wire::last_chunk(chunk::OFFSET_DATA, cookie, length(8 + data.len()));
        head[..CHUNK_BYTES].copy_from_slice(&header);
        head[CHUNK_BYTES..].copy_from_slice(&offset.to_be_bytes());
        Self {
            is_read: true,
            ..Self::of(&head, data)
        }
    }

    /// A chunk that says no more than that the request succeeded.
    pub(super) fn done(cookie: u64) -> Self {
        Self::of(&wire::last_chunk(chunk::NONE, cookie, 0), BytesMut::new())
    }

    /// A chunk with packed extents of a context.
    pub(super) fn block_status(cookie: u64, context: u32, extents: BytesMut) -> Self {
        let mut head = [0; CHUNK_BYTES + 4];
        let header = wire::last_chunk(chunk::BLOCK_STATUS, cookie, length(4 + extents.len()));
        head[..CHUNK_BYTES].copy_from_slice(&header);
        head[CHUNK_BYTES..].copy_from_slice(&context.to_be_bytes());
        Self::of(&head, extents)
    }

    /// A chunk with an error, a text for people, and, where it is known, the place.
    pub(super) fn error(cookie: u64, error: u32, text: &str, offset: Option<u64>) -> Self {
        let text = text.as_bytes();
        let text_length = u16::try_from(text.len()).expect("the texts are ours, and short");
        let mut body = BytesMut::with_capacity(6 + text.len() + 8);
        body.put_u32(error);
        body.put_u16(text_length);
        body.put_slice(text);
        let kind = match offset {
            None => chunk::ERROR,
            Some(offset) => {
                body.put_u64(offset);
                chunk::ERROR_OFFSET
            }
        };
        Self::of(&wire::last_chunk(kind, cookie, length(body.len())), body)
    }

    /// The bytes to send, in two parts of which the second may be empty.
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.head[..usize::from(self.head_bytes)], &self.body]
    }

    /// How many bytes that are.
    pub fn bytes(&self) -> usize {
        usize::from(self.head_bytes) + self.body.len()
    }

    /// When it is sent, or will never be: the buffer of a read's data, whose length is to be told to
    /// [`super::transmission::Transmission::handle_sent`].
    pub fn into_read_data(self) -> Option<BytesMut> {
        self.is_read.then_some(self.body)
    }

    fn of(header: &[u8], body: BytesMut) -> Self {
        let mut head = [0; HEAD_BYTES_MAX];
        head[..header.len()].copy_from_slice(header);
        Self {
            head,
            head_bytes: u8::try_from(header.len()).expect("no header is longer than its array"),
            is_read: false,
            body,
        }
    }
}

/// That of a chunk and an offset.
const HEAD_BYTES_MAX: usize = CHUNK_BYTES + 8;
const _: () = assert!(SIMPLE_REPLY_BYTES <= HEAD_BYTES_MAX);

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("payloads are limited far below")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(reply: &Reply) -> Vec<u8> {
        let bytes = reply.parts().concat();
        assert_eq!(bytes.len(), reply.bytes());
        bytes
    }

    /// Bytes written by hand from proto.md's layout, not by the code under test.
    #[test]
    fn chunks_are_laid_out_as_the_protocol_says() {
        let magic_done = [0x66, 0x8e, 0x33, 0xef, 0, 1];
        let cookie = [0, 0, 0, 0, 0, 0, 0, 7];
        let chunk = |kind: [u8; 2], payload: &[u8]| {
            let length = [0, 0, 0, u8::try_from(payload.len()).unwrap()];
            [&magic_done[..], &kind, &cookie, &length, payload].concat()
        };
        let data = Reply::offset_data(7, 0x200, BytesMut::from(&b"abc"[..]));
        assert_eq!(bytes(&data), chunk([0, 1], b"\0\0\0\0\0\0\x02\0abc"));
        assert_eq!(data.into_read_data().unwrap(), b"abc"[..]);
        assert_eq!(bytes(&Reply::done(7)), chunk([0, 0], b""));
        let extents = Reply::block_status(7, 1, BytesMut::from(&[0, 0, 2, 0, 0, 0, 0, 3][..]));
        assert_eq!(
            bytes(&extents),
            chunk([0, 5], &[0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 3])
        );
        assert_eq!(extents.into_read_data(), None);
        assert_eq!(
            bytes(&Reply::error(7, 22, "no", None)),
            chunk([0x80, 1], b"\0\0\0\x16\0\x02no")
        );
        assert_eq!(
            bytes(&Reply::error(7, 5, "", Some(1))),
            chunk([0x80, 2], b"\0\0\0\x05\0\0\0\0\0\0\0\0\0\x01")
        );
    }

    #[test]
    fn only_a_reads_data_are_given_back() {
        let read = Reply::data(1, BytesMut::from(&b"x"[..]));
        assert_eq!(
            bytes(&read),
            [
                0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'x'
            ]
        );
        assert_eq!(read.into_read_data().unwrap(), b"x"[..]);
        assert_eq!(Reply::simple(1, 5).into_read_data(), None);
        assert_eq!(Reply::error(1, 5, "no", None).into_read_data(), None);
    }
}
