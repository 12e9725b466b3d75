//! What `strace` calls a request of `ioctl`, and what it is.

/// What is asked of which file: `7</dev/iommu>, IOMMU_OPTION, …`. Some numbers
/// mean one thing to a device and another to a container; some, `strace` may not
/// know (linux/iommufd.h, linux/vfio.h).
pub(super) fn request(arguments: &str) -> Option<String> {
    let (file, rest) = arguments.split_once(", ")?;
    if !rest.starts_with("_IOC(") {
        let told = rest.split([',', ')', '<']).next()?.trim();
        let container = file.contains("</dev/vfio/vfio>");
        let fits = |name: &&str| name.starts_with("VFIO_IOMMU_") == container;
        let found = told.split(" or ").find(fits);
        // Two that `strace` knows by what they mean to a container alone.
        let name = match found.unwrap_or(told) {
            "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY" if !container => "VFIO_DEVICE_BIND_IOMMUFD",
            "VFIO_IOMMU_SPAPR_TCE_CREATE" if !container => "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
            other => other,
        };
        return Some(name.to_owned());
    }
    let told = &rest[..=rest.find(')')?];
    let number = told.strip_prefix("_IOC(_IOC_NONE, 0x3b, 0x");
    let number = number.and_then(|rest| rest.split([',', ')']).next());
    let name = match number {
        Some("76") => "VFIO_DEVICE_BIND_IOMMUFD",
        Some("77") => "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        Some("78") => "VFIO_DEVICE_DETACH_IOMMUFD_PT",
        Some("80") => "IOMMU_DESTROY",
        Some("81") => "IOMMU_IOAS_ALLOC",
        Some("84") => "IOMMU_IOAS_IOVA_RANGES",
        Some("85") => "IOMMU_IOAS_MAP",
        Some("86") => "IOMMU_IOAS_UNMAP",
        Some("87") => "IOMMU_OPTION",
        Some("8a") => "IOMMU_GET_HW_INFO",
        Some("8f") => "IOMMU_IOAS_MAP_FILE",
        _ => told,
    };
    Some(name.to_owned())
}
