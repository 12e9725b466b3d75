use super::config::CONFIG_SPACE_SIZE;

/// The first byte that a standard capability may use: after the header.
const FIRST_STANDARD: u16 = 0x40;
/// The first byte of extended config space.
const FIRST_EXTENDED: u16 = 0x100;
/// The register that points to the first standard capability (PCI 3.0 §6.7).
const CAPABILITIES_POINTER: u16 = 0x34;
/// The status register, whose bit 4 says that there is a list at all.
const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES_LIST: u8 = 1 << 4;

/// A capability in the first 256 bytes (PCI 3.0 §6.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is (PCI Code and ID Assignment §2).
    pub id: u8,
    /// Where it stands: 0x40 to 0xfc, a multiple of 4.
    pub offset: u16,
}

/// A capability in extended config space (PCIe 6.0 §7.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedCapability {
    /// What it is (PCI Code and ID Assignment §3).
    pub id: u16,
    /// The version of its layout.
    pub version: u8,
    /// Where it stands: 0x100 to 0xffc, a multiple of 4.
    pub offset: u16,
}

/// Every place where a list can go, visited at most once: a chain ends at the
/// first place that it has been to before.
#[derive(Debug)]
struct Visited([u64; CONFIG_SPACE_SIZE / 4 / 64]);

impl Visited {
    const NONE: Self = Self([0; CONFIG_SPACE_SIZE / 4 / 64]);

    fn first_time(&mut self, offset: u16) -> bool {
        let dword = usize::from(offset / 4);
        let Some(word) = self.0.get_mut(dword / 64) else {
            return false;
        };
        let bit = 1 << (dword % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// Walks the standard capability list in the order of its links.
///
/// `read` reads config space. Hostile chains end early: at a loop, at a link
/// into the header or at an id of 0xff (a device that no longer answers). The
/// low two bits of a link are reserved and ignored (PCI 3.0 §6.7).
pub fn capabilities<R>(mut read: R) -> impl Iterator<Item = Capability>
where
    R: FnMut(u16, &mut [u8]),
{
    let mut byte = move |offset| {
        let mut data = [0];
        read(offset, &mut data);
        data[0]
    };
    let mut next = 0;
    if byte(STATUS) & STATUS_CAPABILITIES_LIST != 0 {
        next = byte(CAPABILITIES_POINTER);
    }
    let mut visited = Visited::NONE;
    std::iter::from_fn(move || {
        let offset = u16::from(next & !3);
        if offset < FIRST_STANDARD || !visited.first_time(offset) {
            return None;
        }
        let id = byte(offset);
        if id == 0xff {
            return None;
        }
        next = byte(offset + 1);
        Some(Capability { id, offset })
    })
}

/// Walks the extended capability list in the order of its links.
///
/// `read` reads config space. Hostile chains end early: at a loop, at a link
/// below 0x100, at an empty header or at one of all ones (a device that no
/// longer answers). The low two bits of a link are reserved and ignored.
pub fn extended_capabilities<R>(mut read: R) -> impl Iterator<Item = ExtendedCapability>
where
    R: FnMut(u16, &mut [u8]),
{
    let mut next = FIRST_EXTENDED;
    let mut visited = Visited::NONE;
    std::iter::from_fn(move || {
        let offset = next & !3;
        if offset < FIRST_EXTENDED || !visited.first_time(offset) {
            return None;
        }
        let mut data = [0; 4];
        read(offset, &mut data);
        let header = u32::from_le_bytes(data);
        if header == 0 || header == u32::MAX {
            return None;
        }
        next = (header >> 20) as u16;
        Some(ExtendedCapability {
            id: header as u16,
            version: (header >> 16) as u8 & 0xf,
            offset,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reader(bytes: &[u8]) -> impl FnMut(u16, &mut [u8]) {
        move |offset, data| {
            for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
                *byte = bytes.get(at).copied().unwrap_or(0);
            }
        }
    }

    fn standard(links: &[(u8, u8, u8)]) -> Vec<Capability> {
        let mut bytes = [0; 256];
        bytes[0x06] = 0x10;
        bytes[0x34] = links[0].0;
        for &(at, id, next) in links {
            bytes[usize::from(at & !3)] = id;
            bytes[usize::from(at & !3) + 1] = next;
        }
        capabilities(reader(&bytes)).collect()
    }

    fn extended(headers: &[(u16, u32)]) -> Vec<ExtendedCapability> {
        let mut bytes = [0; 4096];
        for &(at, header) in headers {
            bytes[usize::from(at)..][..4].copy_from_slice(&header.to_le_bytes());
        }
        extended_capabilities(reader(&bytes)).collect()
    }

    #[test]
    fn a_list_in_order_of_its_links() {
        let list = standard(&[(0x80, 0x10, 0x43), (0x40, 0x11, 0)]);
        let expected = [(0x10, 0x80), (0x11, 0x40)];
        assert_eq!(list, expected.map(|(id, offset)| Capability { id, offset }));
    }

    #[test]
    fn no_list_without_the_status_bit() {
        let mut bytes = [0; 256];
        bytes[0x34] = 0x40;
        bytes[0x40] = 1;
        assert_eq!(capabilities(reader(&bytes)).count(), 0);
    }

    #[test]
    fn hostile_chains_end() {
        assert_eq!(standard(&[(0x40, 1, 0x40)]).len(), 1, "a loop of one");
        assert_eq!(standard(&[(0x40, 1, 0x50), (0x50, 5, 0x40)]).len(), 2);
        assert_eq!(standard(&[(0x40, 1, 0x10)]).len(), 1, "into the header");
        assert_eq!(standard(&[(0x40, 0xff, 0x50), (0x50, 1, 0)]).len(), 0);
        assert_eq!(capabilities(reader(&[0xff; 4096])).count(), 0);
    }

    #[test]
    fn an_extended_list() {
        let list = extended(&[(0x100, 0x1401_0001), (0x140, 0x0002_0003)]);
        let expected = [(1, 1, 0x100), (3, 2, 0x140)];
        assert_eq!(
            list,
            expected.map(|(id, version, offset)| ExtendedCapability {
                id,
                version,
                offset
            })
        );
    }

    #[test]
    fn hostile_extended_chains_end() {
        assert_eq!(extended(&[(0x100, 0x1001_0001)]).len(), 1, "a loop");
        assert_eq!(extended(&[(0x100, 0x0401_0001)]).len(), 1, "below 0x100");
        assert_eq!(extended(&[(0x100, u32::MAX)]).len(), 0);
        assert_eq!(extended(&[]).len(), 0);
        let last = extended(&[(0x100, 0xfff1_0001), (0xffc, 0x0001_0002)]);
        assert_eq!(last.len(), 2, "unaligned, at the very end");
    }

    proptest! {
        #[test]
        fn walks_are_bounded(bytes in proptest::collection::vec(any::<u8>(), 4096)) {
            prop_assert!(capabilities(reader(&bytes)).count() <= 48);
            prop_assert!(extended_capabilities(reader(&bytes)).count() <= 960);
            for capability in extended_capabilities(reader(&bytes)) {
                prop_assert!(capability.offset >= 0x100 && capability.offset % 4 == 0);
            }
        }
    }
}
