//! ELF kernels with a PVH note.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Fields, Header, HeaderError, Kind, read_at};
use crate::memory::GuestRange;

const EHDR_SIZE: usize = 64;
const PHDR_SIZE: usize = 56;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY` (xen/include/public/elfnote.h).
const NOTE_PHYS32_ENTRY: u32 = 18;
/// More notes than any kernel has.
const MAX_NOTES: u64 = 1 << 20;
/// x86 Linux's `COMMAND_LINE_SIZE`, without the zero at the end.
const CMDLINE_LIMIT: usize = 2047;

pub(super) fn parse(file: &File, size: u64) -> io::Result<Result<Header, HeaderError>> {
    let refuse = |reason: &str| Ok(Err(HeaderError::NotAKernel(reason.into())));
    let Some(bytes) = read_at::<EHDR_SIZE>(file, 0)? else {
        return refuse("its ELF header is cut off");
    };
    let ehdr = Fields(&bytes);
    if ehdr.u8(4) != ELFCLASS64 || ehdr.u8(5) != ELFDATA2LSB || ehdr.u16(18) != EM_X86_64 {
        return refuse("it is an ELF file, but not for x86-64");
    }
    let (table, entry_size, entries) = (ehdr.u64(32), ehdr.u16(54), ehdr.u16(56));
    if usize::from(entry_size) != PHDR_SIZE || entries == 0 {
        return refuse("it is an ELF file without program headers");
    }
    let (mut start, mut end) = (u64::MAX, 0);
    let mut needed = 0u64;
    let mut has_entry = false;
    for index in 0..u64::from(entries) {
        let Some(offset) = table.checked_add(index * PHDR_SIZE as u64) else {
            return refuse("its program headers lie outside of the file");
        };
        let Some(bytes) = read_at::<PHDR_SIZE>(file, offset)? else {
            return Ok(Err(HeaderError::Truncated(
                offset.saturating_add(PHDR_SIZE as u64),
            )));
        };
        let phdr = Fields(&bytes);
        let (kind, offset, address) = (phdr.u32(0), phdr.u64(8), phdr.u64(24));
        let (file_size, memory_size) = (phdr.u64(32), phdr.u64(40));
        let file_end = offset.checked_add(file_size);
        let memory_end = address.checked_add(memory_size.max(file_size));
        let (Some(file_end), Some(memory_end)) = (file_end, memory_end) else {
            return refuse("a segment of it lies at an impossible place");
        };
        needed = needed.max(file_end);
        if kind == PT_LOAD && memory_end > address {
            start = start.min(address);
            end = end.max(memory_end);
        }
        if kind == PT_NOTE && file_end <= size && file_size <= MAX_NOTES {
            let mut notes = vec![0; file_size as usize];
            file.read_exact_at(&mut notes, offset)?;
            has_entry |= has_pvh_entry(&notes);
        }
    }
    if size < needed {
        return Ok(Err(HeaderError::Truncated(needed)));
    }
    if start >= end {
        return refuse("it is an ELF file with nothing to load");
    }
    if !has_entry {
        return refuse(
            "it is an ELF file without a PVH entry; build the kernel with CONFIG_PVH=y or give its bzImage",
        );
    }
    Ok(Ok(Header {
        kind: Kind::Elf,
        footprint: GuestRange {
            start,
            size: end - start,
        },
        cmdline_limit: CMDLINE_LIMIT,
        // The PVH start info has 64 bits, but Linux copies them into the
        // zero page's 32.
        initrd_limit: 1 << 32,
    }))
}

/// Walks a note segment: 12 bytes of sizes and type, name and description,
/// each padded to 4 bytes.
fn has_pvh_entry(notes: &[u8]) -> bool {
    let fields = Fields(notes);
    let padded = |size: u32| (size as usize).checked_next_multiple_of(4);
    let mut at = 0usize;
    while at + 12 <= notes.len() {
        let (name_size, desc_size) = (fields.u32(at), fields.u32(at + 4));
        if fields.u32(at + 8) == NOTE_PHYS32_ENTRY
            && name_size == 4
            && &fields.get::<4>(at + 12) == b"Xen\0"
        {
            return true;
        }
        let next = padded(name_size)
            .zip(padded(desc_size))
            .and_then(|(name, desc)| (at + 12).checked_add(name)?.checked_add(desc));
        match next {
            Some(next) => at = next,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn note(kind: u32, name: &[u8; 4]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [4u32, 8, kind] {
            note.extend(word.to_le_bytes());
        }
        note.extend(name);
        note.extend(0x100_0000u64.to_le_bytes());
        note
    }

    /// One loadable segment at 16 MiB and a note segment.
    fn kernel(notes: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54] = 56;
        file[56] = 2;
        let mut phdr = |at: usize, kind: u32, offset: u64, address: u64, size: u64| {
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            file[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
            file[at + 24..at + 32].copy_from_slice(&address.to_le_bytes());
            file[at + 32..at + 40].copy_from_slice(&size.to_le_bytes());
            file[at + 40..at + 48].copy_from_slice(&size.to_le_bytes());
        };
        phdr(64, PT_LOAD, 0x800, 0x100_0000, 0x800);
        phdr(120, PT_NOTE, 0x400, 0, notes.len() as u64);
        file[0x400..0x400 + notes.len()].copy_from_slice(notes);
        file
    }

    fn parsed(contents: &[u8]) -> Result<Header, HeaderError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(contents).unwrap();
        parse(&file, contents.len() as u64).unwrap()
    }

    #[test]
    fn a_pvh_kernel_is_measured() {
        let mut notes = note(1, b"GNU\0");
        notes.extend(note(NOTE_PHYS32_ENTRY, b"Xen\0"));
        let header = parsed(&kernel(&notes)).unwrap();
        assert_eq!(
            header.footprint,
            GuestRange {
                start: 0x100_0000,
                size: 0x800
            }
        );
    }

    #[test]
    fn a_kernel_without_the_note_is_refused() {
        for notes in [
            note(1, b"Xen\0"),
            note(NOTE_PHYS32_ENTRY, b"GNU\0"),
            vec![0xff; 40],
            vec![],
        ] {
            let Err(HeaderError::NotAKernel(reason)) = parsed(&kernel(&notes)) else {
                panic!("{notes:?}");
            };
            assert!(reason.contains("CONFIG_PVH"), "{reason}");
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = kernel(&note(NOTE_PHYS32_ENTRY, b"Xen\0"));
        for size in 0..whole.len() {
            assert!(parsed(&whole[..size]).is_err(), "cut at {size:#x}");
        }
    }

    #[test]
    fn no_header_panics() {
        let whole = kernel(&note(NOTE_PHYS32_ENTRY, b"Xen\0"));
        for at in 0..0x420 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut file = whole.clone();
                file[at] = value;
                let _ = parsed(&file);
            }
        }
    }
}
