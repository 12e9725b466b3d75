//! What the plan says of the host: files, interrupts, memory.

use super::*;
use crate::host::fake::{FakeHost, request};
use crate::host::{LockedMemory, NodeState, Survey};

const DEVICE: &str = "0000:01:00.0";

fn ready() -> FakeHost {
    let host = FakeHost::new();
    host.endpoint(DEVICE, Some(12), "vfio-pci");
    host
}

fn denied(gid: u32, mode: u32) -> NodeState {
    NodeState::Denied {
        uid: 0,
        gid,
        mode,
        reason: "Permission denied (os error 13)".to_owned(),
    }
}

fn make(survey: &Survey) -> Plan {
    Plan::make(survey, &request(&[DEVICE]))
}

/// The item of `check`, as the report shows it.
#[track_caller]
fn shown(plan: &Plan, check: Check) -> (Outcome, String) {
    let found: Vec<_> = plan
        .items
        .iter()
        .filter(|item| item.check == check)
        .collect();
    assert_eq!(found.len(), 1, "{check:?} in\n{plan}");
    let fixes = found[0]
        .remedies
        .iter()
        .map(|remedy| format!("\nfix: {remedy}"));
    (
        found[0].outcome,
        found[0].reason.clone() + &fixes.collect::<String>(),
    )
}

#[track_caller]
fn assert_shown(plan: &Plan, check: Check, outcome: Outcome, text: &str) {
    assert_eq!(shown(plan, check), (outcome, text.to_owned()));
    assert_eq!(plan.is_go(), outcome != Outcome::Failed, "{plan}");
}

#[test]
fn files_that_are_missing() {
    let host = ready();
    host.remove("/dev/vfio/12");
    assert_shown(
        &host.plan(&[DEVICE]),
        Check::GroupFile,
        Outcome::Failed,
        "/dev/vfio/12 does not exist though a device of the group is on a VFIO driver\n\
         fix: in a container, hand /dev/vfio/12 in; otherwise check that /dev is a devtmpfs and that the kernel has CONFIG_VFIO_GROUP",
    );

    let host = ready();
    host.remove("/dev/vfio/vfio");
    assert_shown(
        &host.plan(&[DEVICE]),
        Check::Container,
        Outcome::Failed,
        "/dev/vfio/vfio does not exist: VFIO is not loaded, or was not handed into this container\n\
         fix: modprobe -a vfio-pci vfio_iommu_type1",
    );

    let host = ready();
    host.remove("/dev/kvm");
    assert_shown(
        &host.plan(&[DEVICE]),
        Check::Kvm,
        Outcome::Failed,
        "/dev/kvm does not exist: KVM is not loaded, or the CPU's virtualization is off\n\
         fix: modprobe kvm_intel || modprobe kvm_amd\n\
         fix: if that fails, turn on VT-x (Intel) or SVM (AMD) in the firmware's setup",
    );
}

#[test]
fn files_that_may_not_be_opened() {
    let host = ready();
    host.user(1000, "0");
    let mut survey = host.survey();
    let id = crate::host::GroupId(12);
    survey.groups.get_mut(&id).unwrap().node.state = denied(0, 0o600);
    assert_shown(
        &make(&survey),
        Check::GroupFile,
        Outcome::Failed,
        "user 1000 may not open /dev/vfio/12: Permission denied (os error 13) (owner 0, group 0, mode 0600)\n\
         fix: sudo chown 1000 /dev/vfio/12",
    );

    let mut survey = host.survey();
    survey.vfio.container.state = denied(0, 0o600);
    assert_shown(
        &make(&survey),
        Check::Container,
        Outcome::Failed,
        "user 1000 may not open /dev/vfio/vfio: Permission denied (os error 13) (owner 0, group 0, mode 0600)\n\
         fix: sudo chmod 0666 /dev/vfio/vfio",
    );

    let mut survey = host.survey();
    survey.kvm.state = denied(108, 0o660);
    assert_shown(
        &make(&survey),
        Check::Kvm,
        Outcome::Failed,
        "user 1000 may not open /dev/kvm: Permission denied (os error 13) (owner 0, group 108, mode 0660)\n\
         fix: sudo usermod -aG \"$(stat -c %G /dev/kvm)\" \"$USER\"\n\
         fix: then log in again: groups are read at login",
    );
    survey.kvm.state = denied(0, 0o600);
    let (_, text) = shown(&make(&survey), Check::Kvm);
    assert!(text.ends_with("\nfix: sudo chown 1000 /dev/kvm"), "{text}");
}

#[test]
fn the_type1_driver_is_not_loaded() {
    let host = ready();
    host.remove("/sys/module/vfio_iommu_type1");
    let (outcome, text) = shown(&host.plan(&[DEVICE]), Check::Container);
    assert_eq!(outcome, Outcome::Warning);
    assert!(
        text.ends_with("fix: modprobe -a vfio-pci vfio_iommu_type1"),
        "{text}"
    );
}

#[test]
fn interrupts_that_nothing_checks() {
    let host = ready();
    host.file("/proc/interrupts", " CPU0\n 1: 9 IO-APIC 1-edge i8042\n");
    let check = Check::InterruptRemapping;
    let off = "interrupt remapping is off (/proc/interrupts names the controller IO-APIC, without IR-): a guest could raise any interrupt of the host";
    let setup = "\nfix: turn on interrupt remapping (x2APIC) in the firmware's setup; see `dmesg | grep -i remap` for why the kernel left it off; an emulated IOMMU needs intremap=on";
    assert_shown(
        &host.plan(&[DEVICE]),
        check,
        Outcome::Failed,
        &format!("{off}{setup}"),
    );

    host.file("/proc/cmdline", "intremap=off");
    let (_, text) = shown(&host.plan(&[DEVICE]), check);
    assert!(
        text.ends_with("fix: take 'intremap=off' off the kernel's command line and reboot"),
        "{text}"
    );

    // The module's permission alone is not the user's.
    let parameter = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    host.file("/proc/cmdline", "").file(parameter, "Y\n");
    let note = "; vfio_iommu_type1.allow_unsafe_interrupts would let it through all the same";
    assert_shown(
        &host.plan(&[DEVICE]),
        check,
        Outcome::Failed,
        &format!("{off}{note}{setup}"),
    );

    let mut asked = request(&[DEVICE]);
    asked.allow_unsafe_interrupts = true;
    assert_shown(
        &Plan::make(&host.survey(), &asked),
        check,
        Outcome::Warning,
        "unsafe interrupts, as asked for: a guest can raise any interrupt of the host (/proc/interrupts names the controller IO-APIC, without IR-)",
    );
    host.file(parameter, "N\n");
    assert_shown(
        &Plan::make(&host.survey(), &asked),
        check,
        Outcome::Failed,
        &format!(
            "interrupt remapping is off, and the kernel has not been told to take devices all the same\nfix: echo Y > {parameter}"
        ),
    );
}

#[test]
fn interrupts_of_which_nothing_is_known() {
    let host = ready();
    host.remove("/proc/interrupts");
    let check = Check::InterruptRemapping;
    let unknown = "whether interrupt remapping is on can't be told (neither /proc/interrupts nor sysfs tells)";
    assert_shown(
        &host.plan(&[DEVICE]),
        check,
        Outcome::Warning,
        &format!("{unknown}: the open will prove it"),
    );
    // With the kernel's own check off, the open proves nothing.
    let parameter = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    host.file(parameter, "Y\n");
    let (outcome, text) = shown(&host.plan(&[DEVICE]), check);
    assert_eq!(outcome, Outcome::Failed);
    assert!(
        text.ends_with(&format!("fix: echo N > {parameter}")),
        "{text}"
    );
}

#[test]
fn a_parameter_that_takes_the_proof_away_is_reported() {
    let host = ready();
    host.file(
        "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        "Y\n",
    );
    assert_shown(
        &host.plan(&[DEVICE]),
        Check::InterruptRemapping,
        Outcome::Warning,
        "interrupt remapping is on, but vfio_iommu_type1.allow_unsafe_interrupts keeps the kernel from checking it for each device\n\
         fix: echo N > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    );
}

#[test]
fn memory_that_may_not_be_locked() {
    let host = ready();
    let mut asked = request(&[DEVICE]);
    asked.memory_bytes = Some(512 << 20);
    let plan = Plan::make(&host.survey(), &asked);
    assert_shown(
        &plan,
        Check::LockedMemory,
        Outcome::Passed,
        "512 MiB of guest memory may be locked (CAP_IPC_LOCK)",
    );

    host.user(1000, "0");
    let short =
        "512 MiB of guest memory must be locked, but this process may lock 8 MiB (RLIMIT_MEMLOCK)";
    let plan = Plan::make(&host.survey(), &asked);
    assert_shown(
        &plan,
        Check::LockedMemory,
        Outcome::Failed,
        &format!(
            "{short}\nfix: sudo prlimit --pid $$ --memlock=536870912:536870912\n\
         fix: to keep it, set memlock in /etc/security/limits.conf, or LimitMEMLOCK= in the service"
        ),
    );

    let mut survey = host.survey();
    let limit = |soft, hard| Some(LockedMemory { soft, hard });
    survey.process.locked_memory = limit(Some(8 << 20), None);
    assert_shown(
        &Plan::make(&survey, &asked),
        Check::LockedMemory,
        Outcome::Failed,
        &format!("{short}\nfix: ulimit -l 524288"),
    );
    for enough in [limit(Some(512 << 20), None), limit(None, None)] {
        survey.process.locked_memory = enough;
        assert_shown(
            &Plan::make(&survey, &asked),
            Check::LockedMemory,
            Outcome::Passed,
            "512 MiB of guest memory may be locked",
        );
    }
    survey.process.locked_memory = None;
    let plan = Plan::make(&survey, &asked);
    assert_eq!(shown(&plan, Check::LockedMemory).0, Outcome::Warning);

    // The root of a container is not the host's; a kernel without user
    // namespaces has no other.
    host.user(0, "000001ffffffffff")
        .file("/proc/self/uid_map", "0 100000 65536");
    let plan = Plan::make(&host.survey(), &asked);
    let (_, text) = shown(&plan, Check::LockedMemory);
    assert!(text.contains("fix: prlimit --pid $$ --memlock="), "{text}");
    host.remove("/proc/self/uid_map");
    assert!(Plan::make(&host.survey(), &asked).is_go());
}

#[test]
fn memory_beyond_the_reach_of_the_iommu() {
    let host = ready();
    let mut asked = request(&[DEVICE]);
    asked.memory_bytes = Some(1 << 39);
    assert!(Plan::make(&host.survey(), &asked).is_go());
    asked.memory_bytes = Some((1 << 39) + (1 << 30));
    assert_shown(
        &Plan::make(&host.survey(), &asked),
        Check::AddressWidth,
        Outcome::Failed,
        "513 GiB of guest memory are beyond the reach of dmar0: its 39 address bits end at 512 GiB\n\
         fix: give the guest less memory; an emulated IOMMU may be made wider (QEMU: aw-bits=48)",
    );
}

#[test]
fn a_kernel_without_the_modules_is_told_from_one_that_has_not_loaded_them() {
    let host = ready();
    host.remove("/dev/vfio/vfio")
        .remove("/sys/module/vfio_iommu_type1");
    let list = "/lib/modules/6.12.107/modules.dep";
    host.file(
        list,
        "kernel/drivers/vfio/vfio.ko.xz:\nkernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n\
         kernel/drivers/vfio/vfio_iommu_type1.ko.xz:\n",
    );
    let (_, text) = shown(&host.plan(&[DEVICE]), Check::Container);
    assert!(
        text.ends_with("fix: modprobe -a vfio-pci vfio_iommu_type1"),
        "{text}"
    );
    host.file(list, "kernel/drivers/vfio/vfio.ko:\n");
    let (_, text) = shown(&host.plan(&[DEVICE]), Check::Container);
    assert!(
        text.ends_with("the running kernel (6.12.107) has no module vfio_pci: install the package with its modules, or boot a kernel built with CONFIG_VFIO_PCI"),
        "{text}"
    );
}

#[test]
fn the_backend_and_what_there_is_of_the_other() {
    let host = ready();
    let text = |host: &FakeHost| shown(&host.plan(&[DEVICE]), Check::Backend).1;
    let start = "devices are taken by group and container (type1); iommufd is not used, ";
    host.file("/lib/modules/6.12.107/modules.dep", "");
    assert_eq!(
        text(&host),
        format!("{start}this kernel was built without it")
    );
    host.file(
        "/lib/modules/6.12.107/modules.dep",
        "kernel/drivers/iommu/iommufd/iommufd.ko:\n",
    );
    assert_eq!(
        text(&host),
        format!("{start}and not loaded (/dev/iommu is missing)")
    );
    host.file("/dev/iommu", "");
    assert_eq!(
        text(&host),
        format!("{start}and 0000:01:00.0 has no file for it below /dev/vfio/devices")
    );
    host.attribute(DEVICE, "vfio-dev/vfio3/dev", "511:3");
    assert_eq!(
        text(&host),
        format!("{start}and /dev/vfio/devices/vfio3 is missing")
    );
    host.file("/dev/vfio/devices/vfio3", "");
    assert_eq!(
        text(&host),
        "devices are taken by their own files and iommufd (/dev/iommu, /dev/vfio/devices/vfio3)"
    );
    let mut survey = host.survey();
    let mut asked = request(&[DEVICE]);
    asked.backend = Some(Backend::Type1);
    let plan = Plan::make(&survey, &asked);
    assert_eq!(plan.backend, Backend::Type1);
    assert_eq!(
        shown(&plan, Check::Backend).1,
        format!("{start}though it is there (/dev/iommu, /dev/vfio/devices/vfio3)")
    );
    survey.vfio.iommufd.state = denied(0, 0o600);
    let plan = make(&survey);
    assert!(plan.is_go(), "it is not needed\n{plan}");
    assert!(
        plan.to_string()
            .contains("/dev/iommu may not be opened: Permission denied")
    );
}

/// A host that has everything for iommufd.
fn with_iommufd() -> FakeHost {
    let host = ready();
    host.file("/dev/iommu", "");
    host.attribute(DEVICE, "vfio-dev/vfio3/dev", "511:3");
    host.file("/dev/vfio/devices/vfio3", "");
    host
}

#[test]
fn each_backend_wants_its_own_files() {
    let host = with_iommufd();
    let checks = |plan: &Plan| -> Vec<Check> {
        let files = [
            Check::Container,
            Check::GroupFile,
            Check::Iommufd,
            Check::DeviceFile,
        ];
        let items = plan.items.iter().map(|item| item.check);
        items.filter(|check| files.contains(check)).collect()
    };
    let plan = host.plan(&[DEVICE]);
    assert_eq!(plan.backend, Backend::Iommufd);
    assert_eq!(checks(&plan), [Check::Iommufd, Check::DeviceFile]);
    assert!(plan.is_go(), "{plan}");
    let survey = host.survey();
    let mut asked = request(&[DEVICE]);
    asked.backend = Some(Backend::Type1);
    let plan = Plan::make(&survey, &asked);
    assert_eq!(checks(&plan), [Check::GroupFile, Check::Container]);
}

#[test]
fn iommufd_by_force_says_what_is_missing() {
    let host = ready();
    let mut asked = request(&[DEVICE]);
    asked.backend = Some(Backend::Iommufd);
    let plan = Plan::make(&host.survey(), &asked);
    let (outcome, text) = shown(&plan, Check::Iommufd);
    assert_eq!(outcome, Outcome::Failed);
    assert!(text.contains("/dev/iommu does not exist"), "{text}");
    assert!(
        text.contains("fix: or take the devices by --iommu type1"),
        "{text}"
    );
    let (outcome, text) = shown(&plan, Check::DeviceFile);
    assert_eq!(outcome, Outcome::Failed);
    assert!(text.contains("CONFIG_VFIO_DEVICE_CDEV"), "{text}");

    let mut survey = with_iommufd().survey();
    let function = survey.functions.get_mut(&DEVICE.parse().unwrap()).unwrap();
    function.cdev.as_mut().unwrap().state = denied(0, 0o600);
    let (outcome, text) = shown(&Plan::make(&survey, &asked), Check::DeviceFile);
    assert_eq!(outcome, Outcome::Failed);
    assert!(
        text.contains("chown") && text.contains("/dev/vfio/devices/vfio3"),
        "{text}"
    );
    assert_eq!(make(&survey).backend, Backend::Type1);
    // What is given open need not be opened.
    asked.given = vec![FileName::Device(DEVICE.parse().unwrap())];
    assert!(Plan::make(&survey, &asked).is_go());
    asked.backend = None;
    assert_eq!(Plan::make(&survey, &asked).backend, Backend::Iommufd);
    asked.given.push(FileName::Container);
    assert_eq!(Plan::make(&survey, &asked).backend, Backend::Type1);
}

#[test]
fn noiommu_is_refused_by_whatever_name() {
    let host = ready();
    host.file("/sys/kernel/iommu_groups/12/name", "vfio-noiommu\n");
    let survey = host.survey();
    let verdict = crate::viability::Verdict::judge(&survey, crate::host::GroupId(12)).unwrap();
    assert!(verdict.noiommu && !verdict.is_viable());
    let mut asked = request(&[DEVICE]);
    asked.allow_noiommu = true;
    let plan = Plan::make(&survey, &asked);
    let (outcome, text) = shown(&plan, Check::Isolation);
    assert_eq!(outcome, Outcome::Failed);
    assert!(
        text.contains("asked for or not, the kernel maps no guest memory"),
        "{text}"
    );
}
