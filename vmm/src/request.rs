//! What a VM asks of the host's devices, as the plan wants it: `airlock check`
//! and `airlock run` ask the same.

use passthrough::host::Survey;
use passthrough::iommu::IovaRange;
use passthrough::plan::{GuestRange, Request, reach};

use crate::config::{Consent, HugePageSize, MemorySize, RamConfig};
use crate::memory::{GuestLayout, ram_pieces};

/// What the CPU reaches is another question than what devices reach, and is
/// asked when the guest is laid out.
const EVERY_ADDRESS: u64 = u64::MAX;

/// What somebody wants, as far as it is the plan's business.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The devices, as the user wrote them.
    pub devices: &'a [String],
    /// How much memory the guest gets, if that is known.
    pub memory: Option<MemorySize>,
    /// From which pool of huge pages, if from one.
    pub pages: Option<HugePageSize>,
    /// What the user accepts of the devices.
    pub consent: &'a Consent,
}

/// The request for the plan. RAM is where [`GuestLayout`] puts it on this host.
pub fn request(survey: &Survey, wish: &Wish<'_>) -> Request {
    let range = |range: crate::memory::GuestRange| GuestRange {
        start: range.start,
        size: range.size,
    };
    let memory = wish.memory;
    let ram = memory.map(|memory| ram(survey, wish, memory));
    Request {
        devices: wish.devices.to_vec(),
        memory_bytes: memory.map(MemorySize::bytes),
        window_32: memory.map(|_| range(GuestLayout::MMIO32)),
        ram: ram.unwrap_or_default().into_iter().map(range).collect(),
        huge_pages: wish.pages.map(HugePageSize::bytes),
        allow_unsafe_interrupts: wish.consent.unsafe_interrupts,
        allow_noiommu: wish.consent.noiommu,
        force: wish.consent.force.clone(),
        ..Request::default()
    }
}

/// What devices must reach of the guest's memory.
pub fn addresses(request: &Request) -> Vec<IovaRange> {
    let ranges = request.ram.iter().map(|range| IovaRange {
        start: range.start,
        last: range.last(),
    });
    ranges.collect()
}

/// Where RAM lies. What finds no room follows all that devices reach, so that
/// the plan tells it; so it does when they don't reach the bottom.
fn ram(survey: &Survey, wish: &Wish<'_>, memory: MemorySize) -> Vec<crate::memory::GuestRange> {
    let pages = RamConfig {
        pages: wish.pages,
        ..RamConfig::default()
    };
    let page = pages.page_bytes();
    let devices = wish.devices.iter();
    let devices: Vec<_> = devices
        .filter_map(|text| text.trim().parse().ok())
        .collect();
    let reach = reach(survey, &devices);
    let lay = |reach| ram_pieces(memory.bytes(), page, EVERY_ADDRESS, reach);
    let (mut ram, left) = lay(Some(&reach));
    if ram.first().is_none_or(|first| first.start != 0) {
        return lay(None).0;
    }
    if left > 0 {
        let end = reach.last().map_or(0, |range| range.last.saturating_add(1));
        let ram_end = ram.last().map_or(0, |piece| piece.end());
        let start = end.max(ram_end).max(1 << 32);
        ram.push(crate::memory::GuestRange { start, size: left });
    }
    ram
}

#[cfg(test)]
mod tests {
    use super::*;
    use passthrough::host::Host;
    use passthrough::plan::{Check, Outcome, Plan};
    use std::fs;
    use std::os::unix::fs::symlink;

    const DEVICE: &str = "0000:01:00.0";
    const GIB: u64 = 1 << 30;

    /// A host with one device behind a VT-d unit of 39 bits, and `regions`
    /// reserved for its group.
    fn survey(regions: &str) -> Survey {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let device = format!("sys/devices/pci0000:00/{DEVICE}");
        file(
            &format!("{device}/modalias"),
            "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00\n",
        );
        file("sys/kernel/iommu_groups/7/reserved_regions", regions);
        file("sys/class/iommu/dmar0/intel-iommu/cap", "d2008c22260286\n");
        let link = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(root.path().join(&device), path).unwrap();
        };
        link(&format!("sys/bus/pci/devices/{DEVICE}"));
        link(&format!("sys/kernel/iommu_groups/7/devices/{DEVICE}"));
        link(&format!("sys/class/iommu/dmar0/devices/{DEVICE}"));
        let group = root.path().join("sys/kernel/iommu_groups/7");
        symlink(group, root.path().join(device).join("iommu_group")).unwrap();
        Survey::read(&Host::at(root.path())).unwrap()
    }

    fn ask(survey: &Survey, memory: Option<&str>, pages: Option<HugePageSize>) -> Request {
        let wish = Wish {
            devices: &[DEVICE.to_owned()],
            memory: memory.map(|memory| memory.parse().unwrap()),
            pages,
            consent: &Consent::default(),
        };
        request(survey, &wish)
    }

    fn ram(request: &Request) -> Vec<(u64, u64)> {
        let ram = request.ram.iter();
        ram.map(|range| (range.start, range.last())).collect()
    }

    /// What the plan says about guest memory.
    fn verdict(survey: &Survey, request: &Request) -> (Outcome, String) {
        let plan = Plan::make(survey, request);
        let mut items = plan.items.into_iter();
        let item = items.find(|item| item.check == Check::GuestMemory).unwrap();
        (item.outcome, item.reason)
    }

    const MSI: &str = "0xfee00000 0xfeefffff msi\n";

    #[test]
    fn guest_memory_leaves_out_the_hole_below_4_gib() {
        let survey = survey(MSI);
        let nothing = ask(&survey, None, None);
        assert_eq!(addresses(&nothing), []);
        assert_eq!(nothing.window_32, None);
        let request = ask(&survey, Some("4G"), None);
        let expected = [(0, 0xbfff_ffff), (0x1_0000_0000, 0x1_3fff_ffff)];
        let as_iova = expected.map(|(start, last)| IovaRange { start, last });
        assert_eq!(addresses(&request), as_iova);
        assert_eq!(ram(&request), expected);
        assert_eq!(request.memory_bytes, Some(4 << 30));
        assert_eq!(request.window_32.unwrap().start, 0xc000_0000);
        assert_eq!(verdict(&survey, &request).0, Outcome::Passed);
    }

    #[test]
    fn guest_memory_goes_round_what_is_reserved() {
        let survey = survey(&format!("0x7af10000 0x7b0fffff direct\n{MSI}"));
        let request = ask(&survey, Some("4G"), None);
        let low = [(0, 0x7adf_ffff), (0x7b20_0000, 0xbfff_ffff)];
        assert_eq!(ram(&request)[..2], low);
        assert_eq!(ram(&request)[2].0, 4 * GIB);
        assert_eq!(verdict(&survey, &request).0, Outcome::Passed);
        // As the guest is laid out, with pages of 1 GiB too.
        for pages in [None, Some(HugePageSize::OneGib)] {
            let request = ask(&survey, Some("4G"), pages);
            let page = request.huge_pages.unwrap_or(2 << 20);
            let devices = [DEVICE.parse().unwrap()];
            let reach = reach(&survey, &devices);
            let layout = GuestLayout::with_pages(4 * GIB, page, 46, Some(&reach)).unwrap();
            let laid: Vec<_> = layout
                .ram
                .iter()
                .map(|ram| (ram.start, ram.end() - 1))
                .collect();
            assert_eq!(ram(&request), laid);
        }
    }

    #[test]
    fn what_does_not_fit_is_told_by_the_plan_with_numbers() {
        let survey = survey(&format!("0x7af10000 0x7b0fffff direct\n{MSI}"));
        let request = ask(&survey, Some("512G"), None);
        let sum: u64 = request.ram.iter().map(|range| range.size).sum();
        assert_eq!(sum, 512 * GIB);
        let (outcome, text) = verdict(&survey, &request);
        assert_eq!(outcome, Outcome::Failed);
        assert!(
            text.starts_with("guest RAM 0x8000000000-0x80403fffff does not fit"),
            "{text}"
        );
        let plan = Plan::make(&survey, &request).to_string();
        // 511 GiB without the 4 MiB round the hole.
        assert!(plan.contains("at most 523260 MiB"), "{plan}");
        let fits = ask(&survey, Some("523260M"), None);
        assert_eq!(verdict(&survey, &fits).0, Outcome::Passed);
    }

    #[test]
    fn a_reserved_bottom_is_told_by_the_plan() {
        let survey = survey(&format!("0x0 0xfffff direct\n{MSI}"));
        let request = ask(&survey, Some("1G"), None);
        let (outcome, text) = verdict(&survey, &request);
        assert_eq!(outcome, Outcome::Failed);
        assert!(
            text.starts_with("guest RAM 0x0-0x3fffffff does not fit"),
            "{text}"
        );
        assert!(text.contains("without 0x0-0xfffff: firmware"), "{text}");
    }

    #[test]
    fn consent_reaches_the_plan() {
        let consent = Consent {
            unsafe_interrupts: true,
            noiommu: true,
            force: vec!["0000:01:00.0".to_owned()],
        };
        let wish = Wish {
            devices: &[],
            memory: None,
            pages: None,
            consent: &consent,
        };
        let request = request(&survey(MSI), &wish);
        assert!(request.allow_unsafe_interrupts && request.allow_noiommu);
        assert_eq!(request.force, consent.force);
        assert!(request.ram.is_empty() && request.window_32.is_none());
    }
}
