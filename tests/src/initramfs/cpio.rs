//! The "newc" cpio archive that Linux unpacks as its first root
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive under construction. Every entry belongs to root and has the time
/// 0, so that equal content gives equal bytes.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; its parent must be there already.
    pub fn directory(&mut self, name: &str) -> &mut Self {
        self.entry(name, DIRECTORY | 0o755, 2, (0, 0), &[])
    }

    /// Adds a file that everybody may read and run.
    pub fn program(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.entry(name, REGULAR | 0o755, 1, (0, 0), content)
    }

    /// Adds a character device node.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> &mut Self {
        self.entry(name, CHARACTER_DEVICE | 0o600, 1, (major, minor), &[])
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        // The trailer has inode 0 and one link, as the kernel's own gen_init_cpio writes it.
        self.header(TRAILER, 0, 0, 1, (0, 0), 0);
        self.pad();
        self.bytes
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> &mut Self {
        self.entries += 1;
        let inode = self.entries;
        self.header(name, inode, mode, links, device, content.len());
        self.bytes.extend_from_slice(content);
        self.pad();
        self
    }

    /// Thirteen fields of 8 hexadecimal digits behind the magic, then the name
    /// with a zero byte; name and content are padded to 4 bytes.
    fn header(
        &mut self,
        name: &str,
        inode: u32,
        mode: u32,
        links: u32,
        (major, minor): (u32, u32),
        size: usize,
    ) {
        let fields = [
            inode as usize,
            mode as usize,
            0, // user
            0, // group
            links as usize,
            0, // time
            size,
            0, // major of the file system
            0, // minor
            major as usize,
            minor as usize,
            name.len() + 1,
            0, // checksum, unused in this format
        ];
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::command::filter;
    use crate::progress;

    #[test]
    fn an_archive_has_the_layout_of_the_format() {
        let mut archive = Archive::new();
        archive.directory("dev").program("dev/x", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = |range: std::ops::Range<usize>| std::str::from_utf8(&bytes[range]).unwrap();
        // The directory: 110 bytes of header and "dev\0", padded to 116.
        assert_eq!(text(0..6), "070701");
        assert_eq!(text(14..22), "000041ed");
        assert_eq!(text(110..114), "dev\0");
        // The file: header at 116, name at 226 ("dev/x\0" to 232), content at 232.
        assert_eq!(text(116..122), "070701");
        assert_eq!(text(116 + 14..116 + 22), "000081ed");
        assert_eq!(text(116 + 54..116 + 62), "00000005");
        assert_eq!(text(232..237), "hello");
        assert_eq!(text(240..246), "070701");
        assert_eq!(text(240 + 110..240 + 121), "TRAILER!!!\0");
    }

    #[test]
    fn the_format_is_one_that_busybox_or_cpio_can_list() {
        let mut archive = Archive::new();
        archive
            .directory("a")
            .program("a/b", &[7; 4099])
            .program("c", b"");
        let mut list = Command::new("busybox");
        let listed = match filter(list.args(["cpio", "-t"]), &archive.finish()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                progress::say("not run: this machine has no busybox to list an archive with");
                return;
            }
            listed => listed.unwrap(),
        };
        assert_eq!(String::from_utf8(listed).unwrap(), "a\na/b\nc\n");
    }
}
