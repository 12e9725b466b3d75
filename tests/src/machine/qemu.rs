use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::location::Location;
use super::{Device, DeviceModel, Machine, Slot};
use crate::agent::protocol::PORT_NAME;

/// The files of one run of QEMU.
#[derive(Clone, Debug)]
pub struct QemuFiles {
    /// The nested host's kernel (bzImage).
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
    /// The directory that it shares read-write.
    pub work: PathBuf,
    /// Where its console is written to.
    pub console: PathBuf,
    /// The image of each disk, by the device's name.
    pub disks: BTreeMap<String, PathBuf>,
}

/// QEMU's arguments, and where each named device will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuPlan {
    /// The arguments, without the program.
    pub args: Vec<String>,
    /// Where the devices are, by name.
    pub locations: BTreeMap<String, Location>,
    /// The values of `-device` for the devices that are to be plugged in later,
    /// by name.
    pub absent: BTreeMap<String, String>,
}

/// Why a machine can't be put on a command line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QemuError {
    /// There are more slots than the root bus has left.
    #[error("machine '{0}' has more than {max} slots", max = LAST_SLOT - FIRST_SLOT + 1)]
    TooManySlots(String),
    /// A slot, port or bridge has more or fewer devices than it can.
    #[error("machine '{machine}': {what} takes 1 to {max} devices, not {given}")]
    Count {
        /// Which machine.
        machine: String,
        /// What takes them.
        what: &'static str,
        /// How many at most.
        max: usize,
        /// How many were given.
        given: usize,
    },
    /// Two devices have one name.
    #[error("machine '{machine}' has two devices named '{name}'")]
    Duplicate {
        /// Which machine.
        machine: String,
        /// The name.
        name: String,
    },
    /// A disk has no image file.
    #[error("no image file was made for the disk of device '{0}'")]
    NoImage(String),
}

/// Everything that QEMU can emulate but XSAVE, because the nested SVM of QEMU 7.2
/// reports wrong XSAVE sizes to guests, and what can't be used without: programs
/// that ask for the feature alone would die of an illegal instruction. Without the
/// fast string instructions, too, which the emulation carries out byte by byte:
/// the kernel then clears pages eight bytes at a time, several times faster.
const CPU: &str = "max,-erms,-fsrm,-xsave,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq";

/// What keeps the nested host's kernel from wrong conclusions about its clocks
/// when QEMU had to wait for a busy machine's CPU:
///
/// * It measures its TSC roughly at first and well after a second; KVM starts in
///   between and keeps the rough value. Where both differ by more than the
///   250 ppm that KVM tolerates, KVM would scale the TSC, which the emulated CPU
///   can't, and gives guests a clock whose timers fire minutes late.
/// * It panics when its first timer interrupts come late.
/// * It takes the TSC for unstable when a reading of another clock was delayed.
const CLOCKS: &str = "kvm.tsc_tolerance_ppm=50000 no_timer_check tsc=reliable";

const FIRST_SLOT: u8 = 0x03;
const LAST_SLOT: u8 = 0x1a;
/// The lab's own devices stand behind the scenario's, out of the way.
const AGENT_SLOT: u8 = 0x1b;
const ROOT_SHARE_SLOT: u8 = 0x1c;
const WORK_SHARE_SLOT: u8 = 0x1d;
/// The first number of a root bus besides bus 0; far above what the bridges
/// below bus 0 get.
const FIRST_EXTRA_BUS: u8 = 0x40;

/// QEMU's command line for `machine`. The agent's port is a socket that QEMU
/// must inherit as its standard input, the monitor's one that it must inherit as
/// its standard output.
///
/// # Errors
/// [`QemuError`] when the machine cannot be.
pub fn command_line(machine: &Machine, files: &QemuFiles) -> Result<QemuPlan, QemuError> {
    let mut builder = Builder {
        machine,
        files,
        args: Vec::new(),
        locations: BTreeMap::new(),
        absent: BTreeMap::new(),
        chassis: 0,
    };
    builder.base();
    if builder.machine.slots.len() > usize::from(LAST_SLOT - FIRST_SLOT + 1) {
        return Err(QemuError::TooManySlots(machine.name.clone()));
    }
    for (slot, number) in machine.slots.iter().zip(FIRST_SLOT..) {
        builder.slot(slot, number)?;
    }
    builder.args.extend(machine.extra.iter().cloned());
    Ok(QemuPlan {
        args: builder.args,
        locations: builder.locations,
        absent: builder.absent,
    })
}

/// A root port to be.
struct Port<'a> {
    bus: &'a str,
    device: u8,
    function: u8,
    multifunction: bool,
    acs: bool,
    /// Whether the device below it can have virtual functions.
    virtual_functions: bool,
}

impl<'a> Port<'a> {
    /// A port with ACS that is the only function of its slot.
    fn at(bus: &'a str, device: u8) -> Self {
        Self {
            bus,
            device,
            function: 0,
            multifunction: false,
            acs: true,
            virtual_functions: false,
        }
    }
}

fn has_virtual_functions(device: &Device) -> bool {
    matches!(device.model, DeviceModel::NvmeSriov { .. })
}

struct Builder<'a> {
    machine: &'a Machine,
    files: &'a QemuFiles,
    args: Vec<String>,
    locations: BTreeMap<String, Location>,
    absent: BTreeMap<String, String>,
    chassis: u8,
}

impl Builder<'_> {
    fn arg(&mut self, option: &str, value: impl Into<String>) {
        self.args.push(option.to_owned());
        self.args.push(value.into());
    }

    fn base(&mut self) {
        let machine = self.machine;
        self.arg("-name", escape(Path::new(&process_name(machine.name()))));
        // A split irqchip is what interrupt remapping needs.
        self.arg("-machine", "q35,accel=tcg,kernel-irqchip=split");
        let mut cpu = CPU.to_owned();
        for flag in &machine.cpu_flags {
            cpu = format!("{cpu},{flag}");
        }
        self.arg("-cpu", cpu);
        self.arg("-smp", machine.cpus.to_string());
        self.arg("-m", machine.memory_mib.to_string());
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            self.args.push(flag.to_owned());
        }
        self.arg("-display", "none");
        self.arg(
            "-chardev",
            format!("file,id=console,path={}", escape(&self.files.console)),
        );
        self.arg("-serial", "chardev:console");
        self.arg("-kernel", self.files.kernel.to_string_lossy());
        self.arg("-initrd", self.files.initrd.to_string_lossy());
        let mut cmdline = format!("console=ttyS0 panic=-1 quiet {CLOCKS}");
        if machine.counts_instructions {
            self.arg("-icount", "shift=0,sleep=off");
            self.arg("-rtc", "base=2026-01-01T00:00:00,clock=vm");
            self.arg("-seed", "1");
        }
        if machine.iommu.is_some() {
            cmdline.push_str(" intel_iommu=on");
        }
        for words in &machine.cmdline {
            cmdline.push(' ');
            cmdline.push_str(words);
        }
        self.arg("-append", cmdline);
        if let Some(iommu) = machine.iommu {
            let remapping = if iommu.interrupt_remapping {
                "on"
            } else {
                "off"
            };
            self.arg(
                "-device",
                format!(
                    "intel-iommu,intremap={remapping},caching-mode=on,device-iotlb=on,aw-bits={}",
                    iommu.address_bits
                ),
            );
        }
        self.arg("-chardev", "socket,id=agent,fd=0");
        self.arg(
            "-device",
            format!("virtio-serial-pci,id=agent-bus,bus=pcie.0,addr={AGENT_SLOT:#x}"),
        );
        self.arg(
            "-device",
            format!("virtserialport,bus=agent-bus.0,chardev=agent,name={PORT_NAME}"),
        );
        self.arg("-chardev", "socket,id=monitor,fd=1");
        self.arg("-mon", "chardev=monitor,mode=control");
        self.share("root", Path::new("/"), true, ROOT_SHARE_SLOT);
        let work = self.files.work.clone();
        self.share("work", &work, false, WORK_SHARE_SLOT);
    }

    fn share(&mut self, tag: &str, path: &Path, read_only: bool, slot: u8) {
        let mode = if read_only { ",readonly=on" } else { "" };
        self.arg(
            "-fsdev",
            format!(
                "local,id={tag},path={},security_model=none,multidevs=remap{mode}",
                escape(path)
            ),
        );
        self.arg(
            "-device",
            format!("virtio-9p-pci,fsdev={tag},mount_tag={tag},bus=pcie.0,addr={slot:#x}"),
        );
    }

    fn slot(&mut self, slot: &Slot, number: u8) -> Result<(), QemuError> {
        match slot {
            Slot::Port { acs, functions } => {
                self.count("a device below a root port", functions.len(), 8)?;
                let port = self.port(&Port {
                    acs: *acs,
                    virtual_functions: functions.iter().any(has_virtual_functions),
                    ..Port::at("pcie.0", number)
                });
                for (device, function) in functions.iter().zip(0..) {
                    let many = if function == 0 && functions.len() > 1 {
                        ",multifunction=on"
                    } else {
                        ""
                    };
                    let place = format!("bus={port},addr=0x0.{function}{many}");
                    self.device(device, &place, 0, vec![(number, 0), (0, function)])?;
                }
            }
            Slot::Ports { acs, devices } => {
                self.count("a slot of root ports", devices.len(), 8)?;
                for (device, function) in devices.iter().zip(0..) {
                    let port = self.port(&Port {
                        function,
                        multifunction: function == 0 && devices.len() > 1,
                        acs: *acs,
                        virtual_functions: has_virtual_functions(device),
                        ..Port::at("pcie.0", number)
                    });
                    let place = format!("bus={port},addr=0x0");
                    self.device(device, &place, 0, vec![(number, function), (0, 0)])?;
                }
            }
            Slot::ConventionalBridge(devices) => {
                self.count("a conventional bridge", devices.len(), 31)?;
                let port = self.port(&Port::at("pcie.0", number));
                let bridge = format!("{port}-bridge");
                self.arg(
                    "-device",
                    format!("pcie-pci-bridge,id={bridge},bus={port},addr=0x0"),
                );
                for (device, below) in devices.iter().zip(1..) {
                    let place = format!("bus={bridge},addr={below:#x}");
                    self.device(device, &place, 0, vec![(number, 0), (0, 0), (below, 0)])?;
                }
            }
            Slot::Integrated(device) => {
                let place = format!("bus=pcie.0,addr={number:#x}");
                self.device(device, &place, 0, vec![(number, 0)])?;
            }
            Slot::Bypassed(device) => {
                let bus = FIRST_EXTRA_BUS + 4 * (number - FIRST_SLOT);
                let host_bridge = format!("pxb{number}");
                self.arg(
                    "-device",
                    format!(
                        "pxb-pcie,id={host_bridge},bus=pcie.0,addr={number:#x},bus_nr={bus},bypass_iommu=on"
                    ),
                );
                let port = self.port(&Port::at(&host_bridge, 0));
                let place = format!("bus={port},addr=0x0");
                self.device(device, &place, bus, vec![(0, 0), (0, 0)])?;
            }
        }
        Ok(())
    }

    fn count(&self, what: &'static str, given: usize, max: usize) -> Result<(), QemuError> {
        if (1..=max).contains(&given) {
            return Ok(());
        }
        Err(QemuError::Count {
            machine: self.machine.name.clone(),
            what,
            max,
            given,
        })
    }

    /// Adds a root port and returns its id.
    fn port(&mut self, port: &Port<'_>) -> String {
        self.chassis += 1;
        let id = format!("port{}", self.chassis);
        let chassis = self.chassis;
        let mut value = format!(
            "pcie-root-port,id={id},bus={},addr={:#x}.{},chassis={chassis},slot={chassis}",
            port.bus, port.device, port.function
        );
        if port.multifunction {
            value.push_str(",multifunction=on");
        }
        if !port.acs {
            value.push_str(",disable-acs=on");
        }
        if port.virtual_functions {
            // Firmware numbers the buses before there are virtual functions.
            value.push_str(",bus-reserve=2");
        }
        self.arg("-device", value);
        id
    }

    fn device(
        &mut self,
        device: &Device,
        place: &str,
        root_bus: u8,
        chain: Vec<(u8, u8)>,
    ) -> Result<(), QemuError> {
        let name = &device.name;
        let location = Location { root_bus, chain };
        if self.locations.insert(name.clone(), location).is_some() {
            return Err(QemuError::Duplicate {
                machine: self.machine.name.clone(),
                name: name.clone(),
            });
        }
        let model = match &device.model {
            DeviceModel::Nvme(_) => {
                self.drive(name)?;
                format!("nvme,serial={name},drive={name}-drive")
            }
            DeviceModel::NvmeSriov { max_vfs, .. } => {
                self.drive(name)?;
                self.arg("-device", format!("nvme-subsys,id={name}-subsystem"));
                // Queues and vectors for each virtual function come out of the
                // flexible ones, 2 each; what is left must be enough for the
                // physical function.
                let flexible = 2 * u16::from(*max_vfs);
                let queues = flexible + 2;
                format!(
                    "nvme,serial={name},subsys={name}-subsystem,sriov_max_vfs={max_vfs},\
                     sriov_vq_flexible={flexible},sriov_vi_flexible={flexible},\
                     max_ioqpairs={queues},msix_qsize={}",
                    queues + 7
                )
            }
            DeviceModel::E1000e => self.nic("e1000e", name),
            DeviceModel::E1000 => self.nic("e1000", name),
            DeviceModel::VirtioNet => {
                let nic = self.nic("virtio-net-pci", name);
                format!("{nic},disable-legacy=on,iommu_platform=on")
            }
            DeviceModel::Edu => "edu".to_owned(),
            DeviceModel::Other(model) => model.clone(),
        };
        let mut value = format!("{model},id={name},{place}");
        for property in &device.properties {
            value.push(',');
            value.push_str(property);
        }
        if device.absent {
            self.absent.insert(name.clone(), value);
            return Ok(());
        }
        self.arg("-device", value);
        if has_virtual_functions(device) {
            // Behind its controller: it attaches to the one that is there.
            let namespace = format!("nvme-ns,drive={name}-drive,bus={name},nsid=1,shared=on");
            self.arg("-device", namespace);
        }
        Ok(())
    }

    /// Adds the drive of the device `name`.
    fn drive(&mut self, name: &str) -> Result<(), QemuError> {
        let image = self.files.disks.get(name);
        let image = image.ok_or_else(|| QemuError::NoImage(name.to_owned()))?;
        let drive = format!("if=none,id={name}-drive,format=raw,file={}", escape(image));
        self.arg("-drive", drive);
        Ok(())
    }

    fn nic(&mut self, model: &str, name: &str) -> String {
        self.arg("-netdev", format!("user,id={name}-net,restrict=on"));
        format!("{model},netdev={name}-net")
    }
}

/// What QEMU's `-name` is for a machine, so that a list of processes tells whose
/// it is.
pub fn process_name(machine: &str) -> String {
    format!("airlock-lab {machine}")
}

/// A path as the value of a QEMU option: commas are doubled.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
#[path = "qemu_test.rs"]
mod tests;
