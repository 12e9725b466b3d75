//! The smallest monitor around this crate: a guest of 30 bytes reads its
//! device's identity from config space, and a register from its BAR.
//!
//!     cargo run -p passthrough --example embed -- 0000:01:00.0 [iommufd|type1]
//!
//! What a monitor supplies stands in `passthrough::ports`; here it is memory and
//! interrupts, as plainly as they can be written. There is one vCPU, no firmware
//! and no PCI topology: the device is the only function.

use std::env;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use devices::pci::{BarIndex, PciFunction, Reach};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use passthrough::host::{Host, Survey};
use passthrough::plan::{Plan, Request};
use passthrough::ports::{
    HostMemory, InterruptRoute, InterruptRouter, MemoryMapper, MemoryMapping, MsiMessage, PortError,
};
use passthrough::{AssignOptions, AssignedDevice, OpenRequest, Pages, open};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

type Result<T> = std::result::Result<T, PortError>;

/// The guest, in real mode at [`ENTRY`]: reads the doubleword at 0 of config
/// space by ports CF8/CFC and the one at 8 of BAR 0, and says each to [`SAY`].
const GUEST: [u8; 30] = [
    0xba, 0xf8, 0x0c, // mov dx, 0xcf8
    0x66, 0xb8, 0x00, 0x00, 0x00, 0x80, // mov eax, 0x80000000
    0x66, 0xef, // out dx, eax
    0xb2, 0xfc, // mov dl, 0xfc
    0x66, 0xed, // in eax, dx
    0x66, 0xe7, 0x14, // out 0x14, eax
    0xb8, 0x00, 0xd0, // mov ax, 0xd000
    0x8e, 0xd8, // mov ds, ax
    0x66, 0xa1, 0x08, 0x00, // mov eax, [8]
    0x66, 0xe7, 0x14, // out 0x14, eax
];
const ENTRY: u64 = 0x1000;
const SAY: u16 = 0x14;
const RAM: usize = 0x1_0000;
/// Where the guest finds BAR 0, which may have up to 64 KiB there.
const BAR: u64 = 0xd_0000;

/// Guest RAM and BARs: each map is a memory slot of KVM's.
#[derive(Clone, Debug)]
struct Slots {
    vm: Arc<VmFd>,
    next: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Slot {
    slots: Slots,
    region: kvm_userspace_memory_region,
    _memory: Arc<dyn HostMemory>,
}

impl Slots {
    fn set(&self, region: kvm_userspace_memory_region) -> Result<()> {
        // SAFETY: the memory stays mapped as long as `Slot` keeps it, and a
        // region of size 0 takes it away from the guest before.
        Ok(unsafe { self.vm.set_user_memory_region(region) }?)
    }
}

impl MemoryMapper for Slots {
    fn map(&self, address: u64, memory: Arc<dyn HostMemory>) -> Result<Box<dyn MemoryMapping>> {
        let region = kvm_userspace_memory_region {
            slot: self.next.fetch_add(1, Ordering::Relaxed),
            guest_phys_addr: address,
            memory_size: memory.size() as u64,
            userspace_addr: memory.address().as_ptr() as u64,
            flags: 0,
        };
        self.set(region)?;
        Ok(Box::new(Slot {
            slots: self.clone(),
            region,
            _memory: memory,
        }))
    }
}

impl MemoryMapping for Slot {}

impl Drop for Slot {
    fn drop(&mut self) {
        self.region.memory_size = 0;
        if let Err(error) = self.slots.set(self.region) {
            eprintln!("a memory slot stays: {error}");
        }
    }
}

/// Message interrupts: a GSI for each route, and an irqfd while it is connected.
#[derive(Debug)]
struct Router {
    vm: Arc<VmFd>,
    table: Arc<Mutex<Vec<kvm_irq_routing_entry>>>,
    next: AtomicU32,
}

#[derive(Debug)]
struct Route {
    vm: Arc<VmFd>,
    table: Arc<Mutex<Vec<kvm_irq_routing_entry>>>,
    gsi: u32,
    event: EventFd,
    connected: bool,
}

impl InterruptRouter for Router {
    fn new_route(&self) -> Result<Box<dyn InterruptRoute>> {
        Ok(Box::new(Route {
            vm: Arc::clone(&self.vm),
            table: Arc::clone(&self.table),
            // Below are the pins of KVM's I/O APIC.
            gsi: 24 + self.next.fetch_add(1, Ordering::Relaxed),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            connected: false,
        }))
    }
}

impl InterruptRoute for Route {
    fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the event is open as long as the route, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }

    fn connect(&mut self, message: MsiMessage) -> Result<()> {
        let mut entry = kvm_irq_routing_entry {
            gsi: self.gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi.address_lo = message.address as u32;
        entry.u.msi.address_hi = (message.address >> 32) as u32;
        entry.u.msi.data = message.data;
        let mut table = self.table.lock().map_err(|_| "another route panicked")?;
        table.retain(|other| other.gsi != self.gsi);
        table.push(entry);
        self.vm
            .set_gsi_routing(&KvmIrqRouting::from_entries(&table)?)?;
        if !self.connected {
            self.vm.register_irqfd(&self.event, self.gsi)?;
            self.connected = true;
        }
        Ok(())
    }

    fn disconnect(&mut self) -> Result<()> {
        if self.connected {
            self.vm.unregister_irqfd(&self.event, self.gsi)?;
            self.connected = false;
        }
        Ok(())
    }

    fn is_pending(&self) -> bool {
        // Looks at the count and puts it back.
        let count = if self.connected {
            None
        } else {
            self.event.read().ok()
        };
        count.is_some_and(|count| self.event.write(count).is_ok())
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Err(error) = self.disconnect() {
            eprintln!("an irqfd stays: {error}");
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [device] => run(device, None),
        [device, backend] => run(device, Some(backend)),
        _ => Err("name a device, and perhaps iommufd or type1".into()),
    };
    match result {
        Ok(words) => println!("the guest read {words:x?}"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(device: &str, backend: Option<&String>) -> Result<Vec<u32>> {
    let survey = Survey::read(&Host::system())?;
    let request = Request {
        devices: vec![device.to_owned()],
        backend: backend.map(|name| name.parse()).transpose()?,
        memory_bytes: Some(RAM as u64),
        ..Request::default()
    };
    let plan = Plan::make(&survey, &request);
    if !plan.is_go() {
        return Err(plan.to_string().into());
    }
    let host = *plan.devices.first().ok_or("no such device")?;
    let opened = open(OpenRequest::new(&plan.devices, plan.backend))?;
    let backend = opened.devices.first().ok_or("no device was opened")?;

    let vm = Arc::new(Kvm::new()?.create_vm()?);
    vm.create_irq_chip()?;
    let slots = Slots {
        vm: Arc::clone(&vm),
        next: Arc::default(),
    };
    let router = Router {
        vm: Arc::clone(&vm),
        table: Arc::default(),
        next: AtomicU32::new(0),
    };
    let ram = Arc::new(Pages::new(RAM)?);
    ram.write(ENTRY, &GUEST);
    let _ram = slots.map(0, ram.clone())?;
    // One to one, and before the device may reach it.
    opened.space.map(0, ram)?;

    let mut function = AssignedDevice::new(
        host,
        Arc::clone(backend),
        AssignOptions::default(),
        Arc::new(router),
        Arc::new(slots),
        Arc::clone(&opened.space),
    )?;
    // What firmware would do: an address for BAR 0, then decoding on.
    let [low, high] = [BAR as u32, (BAR >> 32) as u32];
    for (register, value) in [(0x10, low), (0x14, high), (0x04, 0b110)] {
        config_write(&mut function, register, &value.to_le_bytes())?;
    }
    guest(&vm, &mut function)
}

/// A config write, and all that follows from it outside of the function.
fn config_write(function: &mut AssignedDevice, offset: u16, data: &[u8]) -> Result<()> {
    if !function.config_write(offset, data).is_none() {
        let answering = function.decoded();
        function.release(&answering);
        function.settle(&Reach {
            answering,
            bus_master: true,
        })?;
    }
    Ok(())
}

/// Runs the guest until it has said two words.
fn guest(vm: &VmFd, function: &mut AssignedDevice) -> Result<Vec<u32>> {
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (ENTRY, 2);
    vcpu.set_regs(&regs)?;
    let bar0 = BarIndex::all().next().ok_or("there is no BAR 0")?;
    let (mut selected, mut said) = (0, Vec::new());
    while said.len() < 2 {
        match vcpu.run()? {
            VcpuExit::IoOut(0xcf8, data) => selected = u16::from(data[0] & 0xfc),
            VcpuExit::IoIn(0xcfc..=0xcff, data) => function.config_read(selected, data),
            VcpuExit::IoOut(0xcfc..=0xcff, data) => {
                let data = data.to_vec();
                config_write(function, selected, &data)?;
            }
            VcpuExit::IoOut(SAY, data) => said.push(u32::from_le_bytes(data.try_into()?)),
            VcpuExit::IoOut(..) => {}
            // What of the BAR is not mapped: the MSI-X table, for example.
            VcpuExit::MmioRead(address, data) => match address.checked_sub(BAR) {
                Some(offset) => function.bar_read(bar0, offset, data),
                None => data.fill(0xff),
            },
            VcpuExit::MmioWrite(address, data) => {
                if let Some(offset) = address.checked_sub(BAR) {
                    function.bar_write(bar0, offset, data);
                }
            }
            exit => return Err(format!("the guest stopped: {exit:?}").into()),
        }
    }
    Ok(said)
}
