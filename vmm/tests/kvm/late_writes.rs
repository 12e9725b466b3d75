//! Writes that KVM gathers reach devices late, but all of them, and in order.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::bus::{Bus, BusDevice};
use vm_memory::{Bytes, GuestAddress};
use vmm::kvm::Hypervisor;
use vmm::memory::{Backing, BackingKind, GuestRam, GuestRange, KvmSlots};
use vmm::outcome::EndReport;
use vmm::timeline::Timeline;
use vmm::vcpu::{Buses, CoalescedWrites, EntryPoint, Posting, VcpuObserver, VcpuThreads, set_up};

use crate::kernel::{HALT, LOAD, has_kvm};

const TABLE: u32 = 0xd000_0000;
const PORT: u16 = 0x500;
const MEMORY: GuestRange = GuestRange {
    start: 0,
    size: 4 << 20,
};

/// What the guest did, as its devices saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Write(u64, u32),
    Read(u64),
    Port(u8),
}

/// A table, and a port whose write ends that the table's are late.
#[derive(Debug, Default)]
struct Device {
    seen: Mutex<Vec<Seen>>,
    posting: Mutex<Option<Posting>>,
}

#[derive(Debug)]
struct Table(Arc<Device>);

#[derive(Debug)]
struct Port(Arc<Device>);

impl BusDevice for Table {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.0.seen.lock().unwrap().push(Seen::Read(offset));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let value = u32::from_le_bytes(data.try_into().unwrap());
        let seen = Seen::Write(offset, value);
        self.0.seen.lock().unwrap().push(seen);
    }
}

impl BusDevice for Port {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        self.0.seen.lock().unwrap().push(Seen::Port(data[0]));
        drop(self.0.posting.lock().unwrap().take());
    }
}

/// Runs `code` until its devices have seen `count` things.
fn run(code: &[u8], count: usize) -> Vec<Seen> {
    let hypervisor = Hypervisor::new().unwrap();
    let backing = Backing {
        kind: BackingKind::Anonymous,
        node: None,
    };
    let ram = GuestRam::backed(&[MEMORY], &backing).unwrap();
    let slots = KvmSlots::new(Arc::clone(hypervisor.vm()));
    let block = Arc::clone(&ram.blocks()[0]);
    let _slot = slots.map(block.start(), block).unwrap();
    ram.view()
        .write_slice(code, GuestAddress(LOAD.into()))
        .unwrap();
    let device = Arc::new(Device::default());
    let buses = Buses {
        mmio: Arc::new(Bus::new()),
        pio: Arc::new(Bus::new()),
    };
    let table = Arc::new(Table(Arc::clone(&device)));
    buses
        .mmio
        .insert("table", TABLE.into(), 0x1000, table)
        .unwrap();
    let port = Arc::new(Port(Arc::clone(&device)));
    buses.pio.insert("port", PORT.into(), 1, port).unwrap();
    let vcpus = hypervisor.vcpus(1).unwrap();
    let entry = EntryPoint::Pvh {
        entry: LOAD,
        start_info: 0,
    };
    set_up(&vcpus[0], &ram, entry).unwrap();
    let writes = CoalescedWrites::new(hypervisor.vm(), &vcpus[0]).map(Arc::new);
    let posting = writes
        .as_ref()
        .and_then(|w| w.post_memory(TABLE.into(), 0x100));
    assert!(posting.is_some(), "KVM has had this since Linux 2.6.27");
    *device.posting.lock().unwrap() = posting;
    let report = EndReport::new(Timeline::start()).unwrap();
    let observer = Arc::clone(&report) as Arc<dyn VcpuObserver>;
    let mut threads = VcpuThreads::start(vcpus, &buses, writes.as_ref(), &observer).unwrap();
    let patience = Instant::now() + Duration::from_secs(30);
    while device.seen.lock().unwrap().len() < count && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    threads.stop();
    assert!(report.take().is_none());
    let seen = device.seen.lock().unwrap();
    seen.clone()
}

/// mov [TABLE + offset], ecx
fn write(offset: u32) -> Vec<u8> {
    [&[0x89, 0x0d][..], &(TABLE + offset).to_le_bytes()].concat()
}

/// mov dx, PORT; out dx, al
const POKE: [u8; 5] = [0x66, 0xba, 0x00, 0x05, 0xee];

#[test]
fn more_writes_than_are_gathered_arrive_before_a_read() {
    if !has_kvm() {
        return;
    }
    // mov ecx, 400; again: mov [TABLE], ecx; loop again; mov eax, [TABLE + 4]
    let mut code = vec![0xb9, 0x90, 0x01, 0, 0];
    code.extend(write(0));
    code.extend([0xe2, 0xf8]);
    code.push(0xa1);
    code.extend((TABLE + 4).to_le_bytes());
    code.extend(HALT);
    let seen = run(&code, 401);
    let writes = (1..=400).rev().map(|value| Seen::Write(0, value));
    let expected: Vec<_> = writes.chain([Seen::Read(4)]).collect();
    assert_eq!(seen, expected);
}

#[test]
fn nothing_is_late_once_it_may_not_be() {
    if !has_kvm() {
        return;
    }
    // Late, outside of what may be late, late; then the port; then at once,
    // though nothing follows.
    let mut code = vec![0xb9, 1, 0, 0, 0];
    for offset in [0x0, 0x200, 0x8] {
        code.extend(write(offset));
    }
    code.extend(POKE);
    code.extend(write(0xc));
    code.extend(HALT);
    let seen = run(&code, 5);
    let write = |offset| Seen::Write(offset, 1);
    let port = matches!(seen.get(3), Some(Seen::Port(_)));
    assert!(port, "{seen:?}");
    assert_eq!(seen[..3], [write(0), write(0x200), write(8)]);
    assert_eq!(seen[4..], [write(0xc)]);
}
