use std::error::Error;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;
use passthrough::OpenFiles;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::consent::ConsentArgs;
use super::given::{self, GivenFile};
use super::lease::{BindScope, Lease};
use crate::config::{
    Acknowledgement, CpuConfig, DeviceConfig, HugePageSize, IommuChoice, MapTime, MemorySize,
    OnViabilityLoss, RamConfig, SerialOutput, VmConfig,
};
use crate::event_loop::Signals;
use crate::memory::raise_locked_memory;
use crate::outcome::Outcome;
use crate::timeline::Timeline;
use crate::vm::{Vm, VmError};

/// What `airlock run` takes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Ctrl-A x ends the VM from the terminal; Ctrl-A Ctrl-A sends a Ctrl-A.

Exit status:
  0      the guest switched itself off, or the VM was ended at the terminal
  1      airlock could not start or keep up the VM; the reason is on standard error
  2      the command line is wrong
  3      the guest reset itself (reboot)
  4      the guest's kernel panicked
  5      the guest crashed (triple fault, or a state that KVM can't run)
  6      the VM was ended because the host takes a device of it back
         (--on-viability-loss stop)
  128+N  signal N ended the VM")]
pub(super) struct Args {
    /// Kernel: bzImage (vmlinuz) or ELF with a PVH note (vmlinux)
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "console=ttyS0",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// Guest memory, in steps of 2M
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: MemorySize,
    /// Take it from the host's pool of huge pages of this size (hugetlb).
    /// Otherwise it gets transparent huge pages where the host gives them
    #[arg(long, value_name = "2M|1G")]
    memory_pages: Option<HugePageSize>,
    /// Take it from this NUMA node of the host alone
    #[arg(long, value_name = "N")]
    numa_node: Option<u32>,
    /// How many threads populate it for devices, 1 to 64. By default one for
    /// each CPU of the host, up to 8: more than a few wait for memory, not CPUs
    #[arg(long, value_name = "N")]
    prefault_threads: Option<NonZero<u8>>,
    /// When devices are opened, which resets them, and memory is populated and
    /// mapped for them. beside-boot: while the guest boots, which waits only
    /// where it looks for devices and where it lets one reach memory.
    /// before-boot: before its first instruction
    #[arg(
        long,
        value_name = "beside-boot|before-boot",
        default_value = "beside-boot"
    )]
    map: MapTime,
    /// vCPUs, 1 to 8
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// How the CPUs run. idle=guest lets them halt without leaving the guest:
    /// an assigned device's interrupts cost less, but each vCPU takes up its
    /// host CPU all the time. For host CPUs that nothing else uses
    #[arg(long, value_name = "idle=host|guest", default_value = "idle=host")]
    cpu: CpuConfig,
    /// Host address of a PCI device to assign; may be given several times.
    /// rom=FILE replaces what the guest finds in its option ROM, rom=off hides
    /// it. vf-token= goes with virtual functions of a physical one that is in
    /// VFIO too: given with that it is set, with those it must be the same
    #[arg(long = "device", value_name = "BDF[,rom=FILE|off][,vf-token=UUID]")]
    devices: Vec<DeviceConfig>,
    /// By which of the kernel's interfaces the devices are taken: iommufd, or
    /// groups and a type1 container. auto takes iommufd where it is there
    #[arg(long, value_name = "auto|iommufd|type1", default_value = "auto")]
    iommu: IommuChoice,
    /// Use file descriptor N, which whoever started this process has opened:
    /// NAME is iommufd, a device's address, container or group/N. May be given
    /// several times
    #[arg(long = "fd", value_name = "NAME=N")]
    fds: Vec<GivenFile>,
    /// Bind the devices to VFIO for the life of the VM and give them back
    /// afterwards; with `=group` also every other endpoint of their groups
    #[arg(
        long,
        value_name = "device|group",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "device",
        requires = "devices"
    )]
    bind: Option<BindScope>,
    /// What to do when the host unbinds or unplugs a device of the guest, or
    /// puts one of its IOMMU group to work for itself: release takes the
    /// devices away from the running guest, stop ends the VM, warn only says so
    #[arg(long, value_name = "release|stop|warn", default_value = "stop")]
    on_viability_loss: OnViabilityLoss,
    #[command(flatten)]
    consent: ConsentArgs,
    /// The guest's serial port: stdio, off, or a file for its output
    #[arg(long, value_name = "stdio|off|FILE", default_value = "stdio", value_parser = serial)]
    serial: SerialOutput,
    /// Take accesses to BARs for the end of a pin's interrupt: what hosts need
    /// whose KVM has no resampling irqfds, to be tried on all others
    #[arg(long, hide = true)]
    trap_intx: bool,
    /// Write where the time went to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
    /// Write to standard error what the interrupts cost, when the VM has ended
    #[arg(long)]
    stats: bool,
}

fn serial(text: &str) -> Result<SerialOutput, std::convert::Infallible> {
    Ok(match text {
        "stdio" => SerialOutput::Stdio,
        "off" => SerialOutput::Off,
        path => SerialOutput::File(path.into()),
    })
}

pub(super) fn run(args: Args) -> ExitCode {
    let timeline = Timeline::start();
    let saved = timeline.clone();
    let path = args.timeline.clone();
    let code = match boot(args, timeline) {
        Ok(code) => code,
        Err(error) => super::fail(&*error),
    };
    if let Some(path) = path
        && let Err(error) = saved.save(&path)
    {
        eprintln!(
            "airlock: cannot write the timeline to {}: {error}",
            path.display()
        );
    }
    code
}

fn boot(args: Args, timeline: Timeline) -> Result<ExitCode, Box<dyn Error>> {
    let config = VmConfig {
        kernel: args.kernel,
        initrd: args.initrd,
        cmdline: args.cmdline,
        memory: args.memory,
        ram: RamConfig {
            pages: args.memory_pages,
            numa_node: args.numa_node,
            prefault_threads: args.prefault_threads,
            map: args.map,
        },
        cpus: args.cpus,
        cpu: args.cpu,
        devices: args.devices,
        iommu: args.iommu,
        consent: args.consent.into(),
        on_viability_loss: args.on_viability_loss,
        serial: args.serial,
        acknowledgement: if args.trap_intx {
            Acknowledgement::Trapped
        } else {
            Acknowledgement::Resampled
        },
    };
    let files = given::adopt(&args.fds)?;
    raise_open_files();
    if !config.devices.is_empty() {
        raise_locked_memory(config.memory.bytes());
    }
    // From here on a signal ends the VM in good order, or keeps it from starting.
    let signals = Signals::take_over().map_err(VmError::Signals)?;
    let lease = match args.bind {
        Some(scope) => Some(Lease::take(&config, scope)?),
        None => None,
    };
    let outcome = run_vm(&config, files, timeline, signals, args.stats);
    // The VM has let go of its devices, whatever its end.
    let back = lease.map_or(Ok(()), Lease::end);
    let outcome = outcome?;
    if outcome.exit_code() != 0 {
        eprintln!("airlock: {outcome}");
    }
    back?;
    Ok(ExitCode::from(outcome.exit_code()))
}

/// Raises the limit of open files as far as this user may: each vector that a
/// guest uses takes one, and a device may have 2,048 where 1,024 is usual.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        log::debug!("the limit of open files stays {:?}: {error}", limit.current);
    }
}

fn run_vm(
    config: &VmConfig,
    files: OpenFiles,
    timeline: Timeline,
    signals: Signals,
    wants_stats: bool,
) -> Result<Outcome, VmError> {
    let vm = Vm::build(config, files, timeline)?;
    let signals = signals.watch(vm.report());
    let stats = wants_stats.then(|| vm.stats());
    let outcome = vm.run(vec![Box::new(signals)])?;
    if let Some(stats) = stats {
        eprintln!("{}", stats.read());
    }
    Ok(outcome)
}
