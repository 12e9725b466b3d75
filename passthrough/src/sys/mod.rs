//! System calls: VFIO's requests, and memory maps.
//!
//! The only room of this crate with unsafe code. Everything that it hands out
//! is safe to use and owns what it holds; errors are the kernel's, untouched.

pub(crate) mod access;
mod attach;
pub(crate) mod bounded;
mod capability;
mod claim;
mod container;
mod device;
mod feature;
mod group;
mod hot_reset;
mod irq;
mod memory;

pub(crate) use attach::{AttachedDevice, Container, Refusal, Step};
pub(crate) use claim::Hold;
pub(crate) use container::iommu_info;
pub(crate) use device::{KernelRegion, device_info, read_at, region_info, reset, write_at};
pub(crate) use feature::{Feature, has_feature, set_feature};
pub(crate) use hot_reset::{hot_reset, hot_reset_info};
pub(crate) use irq::{disable_irqs, irq_info, set_irqs, set_unmask_event, unmask_irq};
#[cfg(any(test, feature = "fake"))]
pub(crate) use memory::event;
pub(crate) use memory::{Mapping, Placement, memlock_limit, page_size};
