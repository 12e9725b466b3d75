//! System calls: VFIO's, iommufd's and KVM's requests, and memory maps.
//!
//! The only room of this crate with unsafe code. Everything that it hands out
//! is safe to use and owns what it holds; errors are the kernel's, untouched.

pub(crate) mod access;
pub(crate) mod bounded;
mod capability;
mod cdev;
mod container;
mod device;
mod device_memory;
mod dma_buf;
mod feature;
mod group;
mod hot_reset;
mod iommufd;
mod irq;
mod kvm;
mod memory;
mod pages;

pub(crate) use cdev::{attach_ioas, bind_iommufd};
pub(crate) use container::{
    check_container, container_limits, container_map, container_unmap, container_unmap_all,
    set_iommu,
};
pub(crate) use device::{KernelRegion, device_info, read_at, region_info, reset, write_at};
pub(crate) use device_memory::DeviceMemory;
pub(crate) use dma_buf::export_dma_buf;
pub(crate) use feature::{Feature, has_feature, set_feature};
pub(crate) use group::{group_is_viable, join_container, leave_container, open_group_device};
pub(crate) use hot_reset::{OwnedGroup, Ownership, hot_reset, hot_reset_info};
pub(crate) use iommufd::{
    alloc_ioas, destroy_ioas, ioas_limits, ioas_map, ioas_map_file, ioas_unmap, ioas_unmap_all,
    is_iommufd,
};
pub(crate) use irq::{disable_irqs, irq_info, set_irqs, set_unmask_event, unmask_irq};
pub(crate) use kvm::{add_kvm_file, remove_kvm_file};
#[cfg(any(test, feature = "fake"))]
pub(crate) use memory::event;
pub(crate) use memory::{Mapping, Placement, memlock_limit, page_size};
pub use pages::Pages;

/// What a request answered, or the error that it left behind.
fn answer(result: std::os::raw::c_int) -> std::io::Result<std::os::raw::c_int> {
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(result)
}
