use std::collections::BTreeMap;
use std::io;

use super::proof::prove;
use super::*;
use crate::attach::Step;
use crate::host::fake::FakeHost;
use crate::plan::{Check, Outcome, Request};

const A: &str = "0000:02:01.0";
const B: &str = "0000:02:02.0";
const GROUP: GroupId = GroupId(5);

/// A kernel that gives what it was told to.
#[derive(Debug, Default)]
struct Told {
    refuses: BTreeMap<GroupId, (Step, i32)>,
    refuses_devices: Option<i32>,
    refuses_maps: Option<i32>,
    asked: std::cell::RefCell<Vec<String>>,
}

impl Kernel for &mut Told {
    fn take(&mut self, group: GroupId) -> Result<(), Refusal> {
        self.asked.borrow_mut().push(format!("take {group}"));
        match self.refuses.get(&group) {
            None => Ok(()),
            Some(&(step, errno)) => Err(refusal(step, errno)),
        }
    }

    fn open_device(&self, _: GroupId, device: PciAddress) -> io::Result<()> {
        self.asked.borrow_mut().push(format!("open {device}"));
        self.refuses_devices
            .map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn limits(&self) -> io::Result<SpaceLimits> {
        Ok(SpaceLimits {
            ranges: vec![range(0, 0xfedf_ffff), range(0xfef0_0000, 0x7f_ffff_ffff)],
            page_sizes: 0x1000,
            max_maps: None,
        })
    }

    fn try_map(&self, iova: u64) -> io::Result<()> {
        self.asked.borrow_mut().push(format!("map {iova:#x}"));
        self.refuses_maps
            .map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn page_size(&self) -> u64 {
        0x1000
    }

    fn is_compatibility(&self) -> bool {
        false
    }
}

fn refusal(step: Step, errno: i32) -> Refusal {
    let source = io::Error::from_raw_os_error(errno);
    Refusal { step, source }
}

fn refuses(step: Step, errno: i32) -> Told {
    Told {
        refuses: BTreeMap::from([(GROUP, (step, errno))]),
        ..Told::default()
    }
}

fn range(start: u64, last: u64) -> IovaRange {
    IovaRange { start, last }
}

/// Two functions behind a bridge to conventional PCI.
fn pair(first: &str, second: &str) -> FakeHost {
    let host = FakeHost::new();
    host.bridge("0000:01:00.0", Some(5), "")
        .endpoint("0000:01:00.0/0000:02:01.0", Some(5), first)
        .endpoint("0000:01:00.0/0000:02:02.0", Some(5), second);
    host
}

struct Proof {
    plan_goes: bool,
    items: Vec<Item>,
}

fn proof(host: &FakeHost, devices: &[&str], guest: &[IovaRange], kernel: &mut Told) -> Proof {
    let survey = host.survey();
    let plan = Plan::make(
        &survey,
        &Request {
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
            ..Request::default()
        },
    );
    Proof {
        plan_goes: plan.is_go(),
        items: prove(&survey, &plan, guest, Ok(kernel)),
    }
}

impl Proof {
    fn goes(&self) -> bool {
        self.items
            .iter()
            .all(|item| item.outcome != Outcome::Failed)
    }

    fn disagrees(&self) -> bool {
        let mut items = self.items.iter();
        items.any(|item| item.reason.contains("DISAGREE"))
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for item in &self.items {
            assert_eq!(item.check, Check::Claim);
            text += &item.reason;
            text.push('\n');
            for remedy in &item.remedies {
                text += &format!("fix: {remedy}\n");
            }
        }
        text
    }
}

#[test]
fn a_group_that_is_given() {
    let proof = proof(&pair("vfio-pci", ""), &[A], &[], &mut Told::default());
    assert!(proof.plan_goes && proof.goes() && !proof.disagrees());
    assert_eq!(
        proof.text(),
        "the kernel gave group 5 and has it back: nobody else owns its DMA, and its interrupts are isolated\n\
         VFIO has 0000:02:01.0 there; not opened, which would reset it\n"
    );
}

#[test]
fn a_refusal_names_step_errno_and_what_to_change() {
    let mut kernel = refuses(Step::NotViable, libc::EPERM);
    let proof = proof(&pair("vfio-pci", "e1000"), &[A], &[], &mut kernel);
    assert!(!proof.plan_goes && !proof.goes() && !proof.disagrees());
    let text = proof.text();
    assert!(text.contains("claim /dev/vfio/5"), "{text}");
    assert!(text.contains("owns the DMA"), "{text}");
    assert!(text.contains("(os error 1)"), "{text}");
    let fix = "fix: airlock bind 0000:02:02.0";
    assert!(text.contains(fix), "{text}");
}

#[test]
fn a_kernel_of_another_mind_is_told() {
    let mut kernel = refuses(Step::ClaimGroup, libc::EPERM);
    let refused = proof(&pair("vfio-pci", ""), &[A], &[], &mut kernel);
    assert!(refused.plan_goes && !refused.goes() && refused.disagrees());
    let text = refused.text();
    assert!(
        text.contains(
            "about group 5: by the checks above the kernel would give it, but it refused it"
        ),
        "{text}"
    );

    let given = proof(&pair("vfio-pci", "e1000"), &[A], &[], &mut Told::default());
    assert!(!given.plan_goes && given.goes() && given.disagrees());
    let text = given.text();
    assert!(
        text.contains(
            "about group 5: by the checks above the kernel would refuse it, but it gave it"
        ),
        "{text}"
    );
}

#[test]
fn only_a_device_that_vfio_does_not_have_is_asked_for() {
    let survey = pair("vfio-pci", "pci-stub").survey();
    let request = Request {
        devices: vec![A.to_owned(), B.to_owned()],
        ..Request::default()
    };
    let plan = Plan::make(&survey, &request);
    let mut kernel = Told {
        refuses_devices: Some(libc::ENODEV),
        ..Told::default()
    };
    let items = prove(&survey, &plan, &[], Ok(&mut kernel));
    assert_eq!(
        kernel.asked.borrow().join(", "),
        format!("take 5, open {B}")
    );
    let failed: Vec<_> = items
        .iter()
        .filter(|item| item.outcome == Outcome::Failed)
        .collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].reason.contains("not on a VFIO driver"));
    assert!(!items.iter().any(|item| item.reason.contains("DISAGREE")));
}

#[test]
fn policy_is_no_prediction() {
    // The kernel was told to take it; the plan refuses all the same.
    let host = pair("vfio-pci", "");
    host.file("/proc/interrupts", " CPU0\n 1: 9 IO-APIC 1-edge i8042\n")
        .file(
            "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
            "Y\n",
        );
    let given = proof(&host, &[A], &[], &mut Told::default());
    assert!(!given.plan_goes && given.goes() && !given.disagrees());
    assert!(!given.text().contains("isolated"), "{}", given.text());

    host.file(
        "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        "N\n",
    );
    let mut kernel = refuses(Step::SetIommu, libc::EPERM);
    let refused = proof(&host, &[A], &[], &mut kernel);
    assert!(!refused.goes() && !refused.disagrees());
    assert!(refused.text().contains("interrupt remapping"));
    let given = proof(&host, &[A], &[], &mut Told::default());
    assert!(given.disagrees());
}

#[test]
fn a_holder_that_cannot_be_seen_is_no_disagreement() {
    let survey = |hidden| {
        let mut survey = pair("vfio-pci", "").survey();
        survey.holders.hidden = hidden;
        survey
    };
    for (hidden, disagrees) in [(0, true), (3, false)] {
        let survey = survey(hidden);
        let request = Request {
            devices: vec![A.to_owned()],
            ..Request::default()
        };
        let plan = Plan::make(&survey, &request);
        let mut kernel = refuses(Step::OpenGroup, libc::EBUSY);
        let items = prove(&survey, &plan, &[], Ok(&mut kernel));
        assert!(items[0].reason.contains("another process"));
        assert_eq!(items.len() == 2, disagrees, "{items:?}");
    }
}

#[test]
fn guest_addresses_are_tried_at_their_ends() {
    let low = range(0, 0xbfff_ffff);
    let fits = range(0x1_0000_0000, 0x7f_ffff_ffff);
    let beyond = range(0x1_0000_0000, 0x80_3fff_ffff);
    let host = pair("vfio-pci", "");
    let good = proof(&host, &[A], &[low, fits], &mut Told::default());
    assert!(good.goes() && !good.disagrees(), "{}", good.text());
    assert!(
        good.text()
            .contains("maps guest addresses 0x0-0xbfffffff, 0x100000000-")
    );

    let bad = proof(&host, &[A], &[low, beyond], &mut Told::default());
    assert!(!bad.goes(), "{}", bad.text());
    let text = bad.text();
    assert!(
        text.contains("0x100000000-0x803fffffff can't be mapped: the kernel maps 0x0-0xfedfffff, 0xfef00000-0x7fffffffff"),
        "{text}"
    );
    let window = range(0xfee0_0000, 0xfee0_0fff);
    assert!(!proof(&host, &[A], &[window], &mut Told::default()).goes());

    let mut kernel = Told {
        refuses_maps: Some(libc::ENOMEM),
        ..Told::default()
    };
    let refused = proof(&host, &[A], &[low], &mut kernel);
    assert!(!refused.goes() && refused.disagrees());
}

#[test]
fn what_has_no_group_is_not_asked_for() {
    let host = FakeHost::without_iommu();
    host.endpoint("0000:02:01.0", None, "e1000");
    let none = proof(&host, &[A], &[], &mut Told::default());
    assert_eq!(
        none.text(),
        "0000:02:01.0 can't be claimed: it is in no group of an IOMMU\n"
    );
    host.endpoint("0000:02:01.0", Some(5), "vfio-pci")
        .file("/sys/kernel/iommu_groups/5/name", "vfio-noiommu\n");
    let noiommu = proof(&host, &[A], &[], &mut Told::default());
    assert!(!noiommu.goes());
}

#[test]
fn without_a_container_nothing_is_taken() {
    let host = pair("vfio-pci", "");
    host.remove("/dev/vfio/vfio");
    let survey = host.survey();
    let request = Request {
        devices: vec![A.to_owned()],
        ..Request::default()
    };
    let plan = Plan::make(&survey, &request);
    let refused = Err::<&mut Told, _>(refusal(Step::OpenContainer, libc::ENOENT));
    let items = prove(&survey, &plan, &[], refused);
    assert_eq!(items.len(), 1, "{items:?}");
    assert!(items[0].reason.contains("not loaded"));
    let advice = items[0].remedies[0].to_string();
    assert!(advice.contains("modprobe"), "{advice}");
}

#[test]
fn a_plan_without_devices_claims_nothing() {
    let survey = FakeHost::new().survey();
    let plan = Plan::make(&survey, &Request::default());
    assert_eq!(claim(&survey, &plan, &[]), []);
}
