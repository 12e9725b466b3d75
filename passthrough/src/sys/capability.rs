use std::io;

/// The most bytes that an answer with capabilities may claim to need. Real
/// ones need a few hundred; the bound keeps a broken kernel from eating memory.
const MAX_ANSWER: u32 = 1 << 20;

/// The buffer of an ioctl whose answer has a fixed head and then a list of
/// capabilities: `argsz` says how long it is, and how long it must be
/// (linux/vfio.h, `struct vfio_info_cap_header`).
#[derive(Debug)]
pub(super) struct Answer {
    /// Words, so that every structure in it is aligned.
    words: Vec<u64>,
}

impl Answer {
    /// A zeroed buffer of `argsz` bytes whose first field says so.
    ///
    /// # Errors
    /// `InvalidData` for a length that no kernel needs.
    pub(super) fn new(argsz: u32) -> io::Result<Self> {
        if argsz > MAX_ANSWER {
            let what = format!("the kernel asks for an answer of {argsz} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mut answer = Self {
            words: vec![0; (argsz as usize).div_ceil(8)],
        };
        answer.set_u32(0, argsz);
        Ok(answer)
    }

    /// Where the kernel reads and writes.
    pub(super) fn as_mut_ptr(&mut self) -> *mut u64 {
        self.words.as_mut_ptr()
    }

    /// Sets a field of the head.
    pub(super) fn set_u32(&mut self, offset: usize, value: u32) {
        if let Some(word) = self.words.get_mut(offset / 8) {
            let mut bytes = word.to_ne_bytes();
            bytes[offset % 8..][..4].copy_from_slice(&value.to_ne_bytes());
            *word = u64::from_ne_bytes(bytes);
        }
    }

    /// The bytes as the kernel left them.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }
}

/// A field of a kernel structure; zero where the structure ends before it.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let field = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// As [`u32_at`], 64 bits wide.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let field = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// The capability `id` of an answer, header included, up to the answer's end.
///
/// The list starts at `offset`. It is walked forwards only, so that a loop in
/// it ends the walk.
pub(super) fn find(bytes: &[u8], offset: u32, id: u32) -> Option<&[u8]> {
    const ID_AND_VERSION: usize = 0;
    const NEXT: usize = 4;
    let mut at = offset as usize;
    while at != 0 {
        let capability = bytes.get(at..)?;
        if u32_at(capability, ID_AND_VERSION) & 0xffff == id {
            return Some(capability);
        }
        let next = u32_at(capability, NEXT) as usize;
        if next <= at {
            return None;
        }
        at = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(capabilities: &[(usize, u32, u32)]) -> Vec<u8> {
        let mut answer = Answer::new(64).unwrap();
        for &(at, id, next) in capabilities {
            answer.set_u32(at, id | 1 << 16);
            answer.set_u32(at + 4, next);
        }
        answer.bytes()
    }

    #[test]
    fn the_head_says_how_long_it_is() {
        assert_eq!(u32_at(&Answer::new(36).unwrap().bytes(), 0), 36);
        assert!(Answer::new(u32::MAX).is_err());
    }

    #[test]
    fn a_capability_is_found_by_its_id() {
        let bytes = answer(&[(8, 1, 24), (24, 3, 0)]);
        assert_eq!(find(&bytes, 8, 3).map(<[u8]>::len), Some(40));
        assert_eq!(find(&bytes, 8, 2), None);
        assert_eq!(find(&bytes, 0, 1), None, "no list");
    }

    #[test]
    fn hostile_lists_end() {
        assert_eq!(find(&answer(&[(8, 1, 8)]), 8, 2), None);
        assert_eq!(find(&answer(&[(8, 1, 24), (24, 1, 8)]), 8, 2), None);
        assert_eq!(find(&answer(&[(8, 1, 4096)]), 8, 2), None);
    }

    proptest! {
        #[test]
        fn any_bytes_do(
            bytes in proptest::collection::vec(any::<u8>(), 0..128), offset: u32, id: u32,
        ) {
            let _ = find(&bytes, offset, id);
            let _ = u64_at(&bytes, offset as usize);
        }
    }
}
