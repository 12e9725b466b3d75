use std::fmt;

/// A way in which the kernel gives a device and its DMA to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A group in a container of the type 1 IOMMU.
    Type1,
    /// A device by its character device, with iommufd.
    Iommufd,
}

impl Backend {
    /// Both, for scenarios that try them one after the other in one host.
    pub const BOTH: [Self; 2] = [Self::Type1, Self::Iommufd];

    /// The file that hands out address spaces.
    pub fn file(self) -> &'static str {
        match self {
            Self::Type1 => "/dev/vfio/vfio",
            Self::Iommufd => "/dev/iommu",
        }
    }

    /// The parameter of the kernel's that has devices assigned though interrupts
    /// are not remapped: a file to write `Y` or `N` to.
    pub fn unsafe_interrupts(self) -> &'static str {
        match self {
            Self::Type1 => "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
            Self::Iommufd => "/sys/module/iommufd/parameters/allow_unsafe_interrupts",
        }
    }
}

/// As airlock's option `--iommu` has it.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type1 => "type1",
            Self::Iommufd => "iommufd",
        })
    }
}

/// Makes two tests of each of these functions, `NAME::type1` and `NAME::iommufd`.
/// A function takes the [`Backend`] to have devices assigned by.
#[macro_export]
macro_rules! on_both_backends {
    ($($scenario:ident),+ $(,)?) => { $(
        mod $scenario {
            #[test]
            fn type1() {
                super::$scenario($crate::Backend::Type1);
            }

            #[test]
            fn iommufd() {
                super::$scenario($crate::Backend::Iommufd);
            }
        }
    )+ };
}
