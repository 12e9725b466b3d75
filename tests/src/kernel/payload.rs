//! The ELF kernel inside a bzImage, for the PVH boot path
//! (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use std::io;
use std::process::Command;

use thiserror::Error;

use crate::command::filter;

const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// The first version of the boot protocol that tells where the payload is.
const FIRST_VERSION_WITH_PAYLOAD: u16 = 0x0208;

/// Why no ELF kernel could be taken out of a bzImage.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// It has no setup header.
    #[error("it is not a bzImage: there is no 'HdrS' at offset 0x202")]
    NotBzImage,
    /// Its boot protocol is too old.
    #[error("its boot protocol {}.{:02} is older than 2.08 and does not tell where the payload is", .0 >> 8, .0 & 0xff)]
    TooOld(u16),
    /// The payload stands outside the file.
    #[error(
        "its payload (offset {offset:#x}, length {length:#x}) stands outside its {size:#x} bytes"
    )]
    Truncated {
        /// Where the payload begins in the file.
        offset: usize,
        /// Its length.
        length: usize,
        /// The file's size.
        size: usize,
    },
    /// The payload is compressed in a way that is not known here.
    #[error("its payload begins with {0:02x?}: neither gzip, xz nor zstd")]
    UnknownCompression(Vec<u8>),
    /// The program that decompresses could not be run or failed.
    #[error("cannot decompress its payload with the program {program}: {source}")]
    Decompress {
        /// Which program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What came out is not an ELF file.
    #[error("its payload is not an ELF file")]
    NotElf,
}

/// A compressed payload and the program that decompresses it.
#[derive(Debug, PartialEq, Eq)]
struct Payload<'a> {
    program: &'static str,
    bytes: &'a [u8],
}

/// The ELF kernel in `image`.
///
/// # Errors
/// [`PayloadError`] when `image` is not a whole bzImage.
pub fn extract_elf(image: &[u8]) -> Result<Vec<u8>, PayloadError> {
    let payload = find(image)?;
    let mut program = Command::new(payload.program);
    let elf =
        filter(program.arg("-dc"), payload.bytes).map_err(|source| PayloadError::Decompress {
            program: payload.program,
            source,
        })?;
    if elf.starts_with(b"\x7fELF") {
        Ok(elf)
    } else {
        Err(PayloadError::NotElf)
    }
}

fn find(image: &[u8]) -> Result<Payload<'_>, PayloadError> {
    let word = |offset: usize| -> Option<u32> {
        let bytes = image.get(offset..offset + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err(PayloadError::NotBzImage);
    }
    // The header is at least this long in all versions that have it.
    let version = (word(VERSION).ok_or(PayloadError::NotBzImage)? & 0xffff) as u16;
    if version < FIRST_VERSION_WITH_PAYLOAD {
        return Err(PayloadError::TooOld(version));
    }
    let (Some(offset), Some(length)) = (word(PAYLOAD_OFFSET), word(PAYLOAD_LENGTH)) else {
        return Err(PayloadError::NotBzImage);
    };
    // 0 stands for 4, for the sake of very old loaders.
    let sectors = match image[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = ((sectors + 1) * SECTOR).saturating_add(offset as usize);
    let length = length as usize;
    let payload =
        image
            .get(offset..offset.saturating_add(length))
            .ok_or(PayloadError::Truncated {
                offset,
                length,
                size: image.len(),
            })?;
    // Behind all but gzip's, the build puts the 4-byte size that gzip has itself.
    let without_size = &payload[..payload.len().saturating_sub(4)];
    let magics: [(&[u8], _, _); 3] = [
        (b"\x1f\x8b", "gzip", payload),
        (b"\xfd7zXZ\0", "xz", without_size),
        (b"\x28\xb5\x2f\xfd", "zstd", without_size),
    ];
    for (magic, program, bytes) in magics {
        if payload.starts_with(magic) {
            return Ok(Payload { program, bytes });
        }
    }
    let begin = payload.iter().take(4).copied().collect();
    Err(PayloadError::UnknownCompression(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file laid out as a bzImage with one setup sector.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&0x200_u32.to_le_bytes());
        let length = payload.len() as u32;
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows the payload");
        image
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        filter(Command::new("gzip").arg("-c"), content).unwrap()
    }

    #[test]
    fn the_elf_comes_out_whole() {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..300_000_u32).flat_map(u32::to_le_bytes));
        assert_eq!(extract_elf(&image(&gzip(&elf))).unwrap(), elf);
    }

    #[test]
    fn four_setup_sectors_are_meant_by_none() {
        let mut bytes = image(&gzip(b"\x7fELF"));
        bytes[SETUP_SECTORS] = 0;
        let rest = bytes.split_off(2 * SECTOR);
        bytes.resize(5 * SECTOR, 0);
        bytes.extend(rest);
        assert_eq!(extract_elf(&bytes).unwrap(), b"\x7fELF");
    }

    #[test]
    fn the_size_behind_xz_and_zstd_is_cut_off() {
        let bytes = image(b"\x28\xb5\x2f\xfdabcdSIZE");
        let payload = find(&bytes).unwrap();
        assert_eq!(payload.program, "zstd");
        assert_eq!(payload.bytes, b"\x28\xb5\x2f\xfdabcd");
    }

    #[test]
    fn everything_else_has_its_own_message() {
        assert!(matches!(
            extract_elf(b"short"),
            Err(PayloadError::NotBzImage)
        ));
        assert!(matches!(
            extract_elf(&image(b"none")),
            Err(PayloadError::UnknownCompression(begin)) if begin == b"none"
        ));
        assert!(matches!(
            extract_elf(&image(&gzip(b"text"))),
            Err(PayloadError::NotElf)
        ));
        let mut old = image(b"");
        old[VERSION] = 7;
        assert!(matches!(
            extract_elf(&old),
            Err(PayloadError::TooOld(0x207))
        ));
        let mut long = image(b"x");
        long[PAYLOAD_LENGTH + 3] = 0xff;
        assert!(matches!(
            extract_elf(&long),
            Err(PayloadError::Truncated { .. })
        ));
        let mut broken = gzip(&[1; 5000]);
        let middle = broken.len() / 2;
        broken[middle] ^= 0xff;
        assert!(matches!(
            extract_elf(&image(&broken)),
            Err(PayloadError::Decompress { .. } | PayloadError::NotElf)
        ));
    }
}
