/// The place of a device in the topology: it decides the device's address, but
/// firmware numbers the buses, so the address is only known after the boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The number of the root bus.
    pub root_bus: u8,
    /// Device and function on each bus on the way down, the device's own last.
    pub chain: Vec<(u8, u8)>,
}

impl Location {
    /// Whether `path`, the resolved sysfs directory of a PCI device, is this place.
    pub fn is(&self, path: &str) -> bool {
        let root = format!("pci0000:{:02x}", self.root_bus);
        let mut parts = path.split('/').skip_while(|part| *part != root).skip(1);
        let chain = self.chain.iter().all(|(device, function)| {
            let end = format!("{device:02x}.{function:x}");
            parts
                .next()
                .and_then(|part| part.rsplit(':').next())
                .is_some_and(|part| part == end)
        });
        chain && parts.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(root_bus: u8, chain: &[(u8, u8)], path: &str) -> bool {
        let chain = chain.to_vec();
        Location { root_bus, chain }.is(path)
    }

    #[test]
    fn a_location_matches_the_path_of_its_device_only() {
        let deep = &[(4, 0), (0, 0), (1, 2)];
        let root = "/sys/devices/pci0000:00";
        let path = format!("{root}/0000:00:04.0/0000:01:00.0/0000:02:01.2");
        assert!(at(0, deep, &path));
        assert!(!at(0x40, deep, &path), "below another root bus");
        assert!(!at(0, &deep[..2], &path), "the bridge above");
        assert!(!at(0, &[(4, 0), (0, 0), (1, 1)], &path), "another function");
        assert!(
            !at(0, &[(4, 0), (0, 0), (1, 2), (0, 0)], &path),
            "something below"
        );
        assert!(at(0, &[(0x1a, 0)], &format!("{root}/0000:00:1a.0")));
        assert!(at(0x40, &[(0, 0)], "/sys/devices/pci0000:40/0000:40:00.0"));
        assert!(!at(0, &[(3, 0)], "/sys/devices/virtual/x"));
    }
}
