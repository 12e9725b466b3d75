//! System calls: what `vfio-ioctls` hides or swallows, and memory maps.
//!
//! The only room of this crate with unsafe code. Everything that it hands out
//! is safe to use and owns what it holds; errors are the kernel's, untouched.

pub(crate) mod access;
mod attach;
mod capability;
mod claim;
mod container;
mod device;
mod irq;
mod memory;

pub(crate) use attach::{AttachedDevice, Container, Refusal, Step};
pub(crate) use claim::Hold;
pub(crate) use container::{iommu_info, map_dma, unmap_dma};
pub(crate) use device::{KernelRegion, device_info, read_at, region_info, reset, write_at};
pub(crate) use irq::{disable_irqs, irq_info, set_irqs, set_unmask_event, unmask_irq};
#[cfg(any(test, feature = "fake"))]
pub(crate) use memory::event;
pub(crate) use memory::{Mapping, Placement, memlock_limit, page_size};
