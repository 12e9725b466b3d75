//! How each of the other monitors is told of the same guest.

use super::super::guest::Guest;
use super::PeerKind;
use crate::airlock::installed;
use crate::lab::names;

/// All after the program's name.
pub(super) fn options(kind: PeerKind, guest: &Guest, directory: &str) -> Vec<String> {
    match kind {
        PeerKind::Qemu => qemu(guest, directory),
        PeerKind::CloudHypervisor => cloud_hypervisor(guest),
        PeerKind::Crosvm => crosvm(guest),
        PeerKind::Alioth => alioth(guest),
        PeerKind::Kvmtool => kvmtool(guest),
    }
}

/// How it is asked for its version.
pub(super) fn version(kind: PeerKind) -> &'static str {
    match kind {
        PeerKind::Crosvm | PeerKind::Kvmtool => "version",
        PeerKind::Qemu | PeerKind::CloudHypervisor | PeerKind::Alioth => "--version",
    }
}

/// What is set for it before it starts: kvmtool wants a home to write to.
pub(super) fn environment(kind: PeerKind, directory: &str) -> Vec<String> {
    match kind {
        PeerKind::Kvmtool => vec!["env".to_owned(), format!("HOME={directory}")],
        _ => Vec::new(),
    }
}

/// Options with a value, which most are.
fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<String> {
    let words = pairs.into_iter().flat_map(|(name, value)| [name, value]);
    words.map(str::to_owned).collect()
}

/// Without a limit its firmware puts large BARs where the IOMMU of the lab does not
/// reach.
fn qemu(guest: &Guest, directory: &str) -> Vec<String> {
    let mut words = pairs([
        ("-L", &format!("{directory}/share")),
        ("-M", "q35,accel=kvm"),
        ("-cpu", "host,host-phys-bits-limit=39"),
        ("-smp", "1"),
        ("-m", &guest.mib().to_string()),
        ("-display", "none"),
        ("-serial", "stdio"),
        ("-monitor", "none"),
        ("-kernel", &installed(names::BZIMAGE)),
        ("-initrd", guest.initrd_path()),
        ("-append", &guest.cmdline()),
    ]);
    words.extend(["-nodefaults", "-no-reboot"].map(str::to_owned));
    for device in guest.devices() {
        let value = format!("vfio-pci,host={}", device.address);
        words.extend(pairs([("-device", &value)]));
    }
    words
}

/// Its BARs would lie above what the IOMMU of the lab reaches, were the guest's
/// addresses not limited to the same 39 bits.
fn cloud_hypervisor(guest: &Guest) -> Vec<String> {
    let mut words = pairs([
        ("--kernel", &installed(names::BZIMAGE)),
        ("--initramfs", guest.initrd_path()),
        ("--cmdline", &guest.cmdline()),
        ("--cpus", "boot=1,max_phys_bits=39"),
        ("--memory", &format!("size={}M", guest.mib())),
        ("--serial", "tty"),
        ("--console", "off"),
    ]);
    let devices = guest.devices().iter();
    let path = |address: &str| format!("path=/sys/bus/pci/devices/{address}/");
    let paths: Vec<_> = devices.map(|device| path(&device.address)).collect();
    if !paths.is_empty() {
        words.push("--device".to_owned());
        words.extend(paths);
    }
    words
}

/// Without its sandbox, which takes a process for each device, and without the device
/// that it gives unasked.
fn crosvm(guest: &Guest) -> Vec<String> {
    let switches = ["run", "--disable-sandbox", "--no-rng"];
    let mut words = switches.map(str::to_owned).to_vec();
    words.extend(pairs([
        ("--cpus", "1"),
        ("--mem", &guest.mib().to_string()),
        ("--initrd", guest.initrd_path()),
        ("--params", &guest.cmdline()),
        ("--core-scheduling", "false"),
        ("--serial", "type=stdout,hardware=serial,num=1,console=true"),
    ]));
    // On its root bus: it would make a root port for each.
    for (slot, device) in (5..).zip(guest.devices()) {
        let path = format!(
            "/sys/bus/pci/devices/{},guest-address=00:{slot:02x}.0,iommu=off",
            device.address
        );
        words.extend(pairs([("--vfio", &path)]));
    }
    words.push(installed(names::BZIMAGE));
    words
}

/// With a console that is no terminal, which versions after 0.12.0 have.
fn alioth(guest: &Guest) -> Vec<String> {
    let mut words = vec!["boot".to_owned()];
    words.extend(pairs([
        ("--kernel", &installed(names::BZIMAGE)),
        ("--initramfs", guest.initrd_path()),
        ("--cmdline", &guest.cmdline()),
        ("--cpu", "count=1"),
        ("--console", "log,path=/dev/stdout,append=true"),
        ("--memory", &format!("size={}M", guest.mib())),
    ]));
    for device in guest.devices() {
        let path = format!("path=/dev/vfio/devices/{}", device.node);
        words.extend(pairs([("--vfio-cdev", &path)]));
    }
    words
}

/// Its guests can't switch themselves off.
fn kvmtool(guest: &Guest) -> Vec<String> {
    let cmdline = guest.cmdline().replace("poweroff", "reboot");
    let mut words = ["run", "--nodefaults"].map(str::to_owned).to_vec();
    words.extend(pairs([
        ("--kernel", &installed(names::BZIMAGE)),
        ("--initrd", guest.initrd_path()),
        ("--params", &format!("{cmdline} reboot=k")),
        ("--cpus", "1"),
        ("--mem", &guest.mib().to_string()),
        ("--network", "mode=none"),
        ("--console", "serial"),
    ]));
    for device in guest.devices() {
        words.extend(pairs([("--vfio-pci", &device.address)]));
    }
    words
}
