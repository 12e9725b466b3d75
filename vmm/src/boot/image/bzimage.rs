//! bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use std::fs::File;
use std::io;

use super::{Fields, Header, HeaderError, Kind, read_at};
use crate::memory::GuestRange;

const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const HEADER_SIZE: usize = 0x268;

/// Protocol 2.12 brought `xloadflags`, and with it the 64-bit entry.
const OLDEST_VERSION: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1;

pub(super) fn parse(file: &File, size: u64) -> io::Result<Result<Header, HeaderError>> {
    Ok(match read_at::<HEADER_SIZE>(file, 0)? {
        Some(bytes) => check(&bytes, size),
        None => Err(HeaderError::NotAKernel(
            "it is too short for a kernel".into(),
        )),
    })
}

fn check(bytes: &[u8; HEADER_SIZE], size: u64) -> Result<Header, HeaderError> {
    let fields = Fields(bytes);
    let refuse = |reason: String| Err(HeaderError::NotAKernel(reason));
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return refuse("it is a gzip file; unpack it first".into());
    }
    if &fields.get::<4>(MAGIC) != b"HdrS" {
        return refuse("it has neither the Linux boot header nor that of an ELF file".into());
    }
    let version = fields.u16(VERSION);
    if version < OLDEST_VERSION {
        return refuse(format!(
            "it speaks boot protocol {}.{:02}, and 2.12 (Linux 3.8) is needed",
            version >> 8,
            version & 0xff
        ));
    }
    if fields.u16(XLOADFLAGS) & XLF_KERNEL_64 == 0 {
        return refuse("it is a 32-bit kernel".into());
    }
    // 0 means 4, for historical reasons; syssize counts 16-byte units.
    let setup_sectors = match fields.u8(SETUP_SECTS) {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let needed = (setup_sectors + 1) * 512 + u64::from(fields.u32(SYSSIZE)) * 16;
    if size < needed {
        return Err(HeaderError::Truncated(needed));
    }
    let footprint = GuestRange {
        start: fields.u64(PREF_ADDRESS),
        size: u64::from(fields.u32(INIT_SIZE)).max(size),
    };
    if footprint.size == 0 || footprint.start.checked_add(footprint.size).is_none() {
        return refuse("its header asks for an impossible place in memory".into());
    }
    Ok(Header {
        kind: Kind::BzImage,
        footprint,
        cmdline_limit: fields.u32(CMDLINE_SIZE) as usize,
        initrd_limit: u64::from(fields.u32(INITRD_ADDR_MAX)) + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[SETUP_SECTS] = 1;
        bytes[SYSSIZE..][..4].copy_from_slice(&0x100u32.to_le_bytes());
        bytes[MAGIC..][..4].copy_from_slice(b"HdrS");
        bytes[VERSION..][..2].copy_from_slice(&0x20fu16.to_le_bytes());
        bytes[XLOADFLAGS] = 1;
        bytes[CMDLINE_SIZE..][..4].copy_from_slice(&2047u32.to_le_bytes());
        bytes[INITRD_ADDR_MAX..][..4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        bytes[PREF_ADDRESS..][..8].copy_from_slice(&0x100_0000u64.to_le_bytes());
        bytes[INIT_SIZE..][..4].copy_from_slice(&0x20_0000u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_whole_kernel_is_measured() {
        let header = check(&header(), 0x1400).unwrap();
        assert_eq!(header.footprint.start, 0x100_0000);
        assert_eq!(header.footprint.size, 0x20_0000);
        assert_eq!(header.cmdline_limit, 2047);
        assert_eq!(header.initrd_limit, 0x8000_0000);
    }

    #[test]
    fn a_missing_byte_is_noticed() {
        assert_eq!(
            check(&header(), 0x13ff),
            Err(HeaderError::Truncated(0x1400))
        );
    }

    #[test]
    fn other_kernels_are_refused_with_the_reason() {
        let reason = |change: fn(&mut [u8; HEADER_SIZE])| {
            let mut bytes = header();
            change(&mut bytes);
            match check(&bytes, 0x1400) {
                Err(HeaderError::NotAKernel(reason)) => reason,
                other => panic!("{other:?}"),
            }
        };
        assert!(reason(|b| b[XLOADFLAGS] = 0).contains("32-bit"));
        assert!(reason(|b| b[VERSION] = 6).contains("2.06"));
        assert!(reason(|b| b[0..2].copy_from_slice(&[0x1f, 0x8b])).contains("gzip"));
        assert!(reason(|b| b[MAGIC] = 0).contains("neither"));
        assert!(reason(|b| b[PREF_ADDRESS..][..8].fill(0xff)).contains("impossible"));
    }
}
