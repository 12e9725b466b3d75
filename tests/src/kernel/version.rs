use std::fmt;

/// Which Linux a nested host runs. Guests run the default on any host: then a
/// difference between two hosts is the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelVersion {
    /// Linux 6.12, which is kept for long: what hosts of these years have.
    #[default]
    Longterm,
    /// The newest that Debian has for its stable release, 7.2 or newer. Over
    /// 6.12 it has `IOMMU_IOAS_MAP_FILE`, VF tokens for devices that are bound by
    /// their character device, and BARs as dma-bufs.
    Recent,
}

/// How the package with a kernel's source is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// By its name.
    Named(&'static str),
    /// By the package without content that depends on the newest.
    Newest(&'static str),
}

/// How the package of a version's source begins; the rest is the version.
pub(super) const PACKAGE_PREFIX: &str = "linux-source-";

impl KernelVersion {
    /// The variable that names a kernel to use instead.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Longterm => "AIRLOCK_LAB_KERNEL",
            Self::Recent => "AIRLOCK_LAB_KERNEL_RECENT",
        }
    }

    /// The configuration that it is built with: what all have, and its own.
    pub fn fragment(self) -> &'static str {
        match self {
            Self::Longterm => concat!(
                include_str!("../../../resources/lab-kernel.config"),
                include_str!("../../../resources/lab-kernel-6.12.config")
            ),
            Self::Recent => concat!(
                include_str!("../../../resources/lab-kernel.config"),
                include_str!("../../../resources/lab-kernel-recent.config")
            ),
        }
    }

    /// The package that holds its source, and the Debian suite that has it.
    pub(super) fn source(self) -> (Source, &'static str) {
        match self {
            Self::Longterm => (Source::Named("linux-source-6.12"), "trixie"),
            Self::Recent => (Source::Newest("linux-source"), "trixie-backports"),
        }
    }

    /// About how many objects its build makes, for the progress in percent.
    pub(super) fn objects(self) -> usize {
        match self {
            Self::Longterm => 1_430,
            Self::Recent => 1_500,
        }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Longterm => "Linux 6.12",
            Self::Recent => "a recent Linux",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::parse;
    use super::*;

    #[test]
    fn each_fragment_asks_for_each_option_once() {
        for version in [KernelVersion::Longterm, KernelVersion::Recent] {
            let requests = parse(version.fragment());
            assert!(requests.len() > 100);
            let mut names: Vec<_> = requests.iter().map(|request| &request.name).collect();
            names.sort();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all, "{version}");
        }
    }

    #[test]
    fn the_versions_differ_where_linux_does() {
        let own = |version: KernelVersion, other: KernelVersion| {
            let other = parse(other.fragment());
            let mut own = parse(version.fragment());
            own.retain(|request| !other.contains(request));
            own.into_iter()
                .map(|request| request.name)
                .collect::<Vec<_>>()
        };
        let (old, new) = (KernelVersion::Longterm, KernelVersion::Recent);
        assert_eq!(
            own(old, new),
            ["CONFIG_PREEMPT_VOLUNTARY", "CONFIG_PROC_SYSCTL"]
        );
        assert_eq!(
            own(new, old),
            ["CONFIG_PREEMPT_LAZY", "CONFIG_VFIO_PCI_DMABUF"]
        );
    }
}
