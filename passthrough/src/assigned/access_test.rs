use super::*;
use crate::vfio::RegionArea;
use proptest::prelude::*;

#[test]
fn trapped_accesses_go_to_whom_they_belong() {
    let mut setup = plain_decoded();
    let bar = setup.bar();
    setup
        .device
        .bar_write(bar, 0x2000, &0xfee0_1000_u64.to_le_bytes());
    assert_eq!(setup.read(0x2000, 8), 0xfee0_1000_u64.to_le_bytes());
    assert_eq!(
        setup.host.memory(bar, 0x2000),
        0,
        "the device's own table is not touched"
    );
    // Registers beside the table, on the trapped page.
    setup.device.bar_write(bar, 0x2100, &[1, 2, 3, 4]);
    assert_eq!(setup.host.memory(bar, 0x2103), 4);
    assert_eq!(setup.read(0x2102, 2), [3, 4]);
    // Across the end of the table: four vectors, the last is masked.
    setup.device.bar_write(bar, 0x2040, &[9]);
    assert_eq!(setup.read(0x203c, 8), [1, 0, 0, 0, 9, 0, 0, 0]);
    // The pending bits can't be written.
    setup.device.bar_write(bar, 0x2800, &[0xff; 8]);
    assert_eq!(setup.read(0x2800, 8), [0; 8]);
}

#[test]
fn what_does_not_answer_reads_as_ones() {
    let mut setup = plain_decoded();
    setup.host.refuse(Operation::Read, libc::EIO);
    assert_eq!(setup.read(0x10, 4), [0xff; 4]);
    assert_eq!(setup.read(0x10, 4), [0; 4]);
    let mut data = [0; 4];
    setup
        .device
        .bar_read(BarIndex::new(5).unwrap(), 0, &mut data);
    assert_eq!(data, [0xff; 4], "a BAR that it has not");
}

#[test]
fn what_interrupts_cost_is_counted() {
    let mut setup = plain_decoded();
    let bar = setup.bar();
    let before = setup.device.interrupt_stats().set_irqs;
    let _ = setup.command(MEMORY | MASTER);
    setup.settle();
    let _ = setup.write(0x42, &0x8000_u16.to_le_bytes());
    setup.device.bar_write(bar, 0x2018, &0x41_u64.to_le_bytes());
    setup.read(0x2800, 8);
    setup.read(0x2100, 4);
    setup.read(0x3000, 4);
    let stats = setup.device.interrupt_stats();
    assert_eq!(stats.set_irqs - before, 2, "on, and one vector");
    assert_eq!((stats.armed, stats.pba_reads), (1, 1));
    let [page] = stats.trapped_pages[..] else {
        panic!("table and pending bits are in one page: {stats:?}");
    };
    assert_eq!((page.bar, page.offset), (0, 0x2000));
    assert_eq!(page.traps, 3, "a register beside the table traps too");
}

#[test]
fn interrupts_flow_from_table_to_guest() {
    let mut setup = plain_decoded();
    let bar = setup.bar();
    let _ = setup.command(MEMORY | MASTER);
    setup.settle();
    let _ = setup.write(0x42, &0xc000_u16.to_le_bytes());
    for vector in 0..4_u32 {
        let at = 0x2000 + u64::from(vector) * 16;
        setup
            .device
            .bar_write(bar, at, &0xfee0_0000_u64.to_le_bytes());
        setup
            .device
            .bar_write(bar, at + 8, &u64::from(0x40 + vector).to_le_bytes());
    }
    setup.journal.take();
    let _ = setup.write(0x42, &0x8000_u16.to_le_bytes());
    let calls = setup.journal.take();
    assert_eq!(calls.last().unwrap(), "set_irqs Msix 0 xxxx");
    assert!(setup.host.raise(2));
    let delivered = setup.router.delivered();
    assert_eq!((delivered.len(), delivered[0].data), (1, 0x42));
}

#[test]
fn a_dropped_device_leaves_nothing_behind() {
    let mut setup = plain_decoded();
    let _ = setup.command(MEMORY | MASTER);
    setup.settle();
    let _ = setup.write(0x42, &0x8000_u16.to_le_bytes());
    let bar = setup.bar();
    setup.device.bar_write(bar, 0x200c, &[0; 4]);
    setup.journal.take();
    let Setup {
        device,
        journal,
        host,
        ..
    } = setup;
    drop(device);
    let expected = [
        "disable_irqs Msix",
        "route 0 drop",
        COMMAND_MEMORY,
        "dma unmap 0xc0000000",
        "dma unmap 0xc0003000",
        "guest unmap 0xc0000000",
        "guest unmap 0xc0003000",
    ];
    assert_eq!(journal.take(), expected);
    assert_eq!(host.config(4) & MASTER, 0);
}

#[test]
fn a_device_that_takes_no_command_is_not_mapped() {
    let mut setup = plain();
    setup.place(BAR);
    let _ = setup.command(MEMORY);
    setup.host.refuse(Operation::Write, libc::EIO);
    assert_eq!(setup.settle(), [COMMAND_MEMORY], "its pages would fault");
    assert_eq!(setup.settle().len(), 5, "tried again");
}

#[test]
fn a_bar_that_cant_be_mapped_is_trapped() {
    let journal = Journal::default();
    let host = FakeDevice::nvme(&journal).unwrap();
    host.refuse(Operation::Map, libc::ENOMEM);
    let mut setup = assign(host, &journal);
    setup.place(BAR);
    let _ = setup.command(MEMORY);
    assert_eq!(setup.settle().len(), 1);
    let journal = Journal::default();
    let sparse = vec![RegionArea {
        offset: 0x1000,
        size: 0x1000,
    }];
    let host = FakeDevice::nvme(&journal).unwrap();
    let setup = assign(host.with_areas(BarIndex::new(0).unwrap(), sparse), &journal);
    assert!(
        setup
            .journal
            .take()
            .contains(&"mmap 0 0x1000 0x1000".to_owned())
    );
}

#[test]
fn a_device_that_does_not_answer_is_refused_by_name() {
    let journal = Journal::default();
    let host = FakeDevice::nvme(&journal).unwrap();
    host.refuse(Operation::Read, libc::EIO);
    let error = AssignedDevice::new(
        "0000:01:00.0".parse().unwrap(),
        Arc::new(host),
        AssignOptions::default(),
        Arc::new(FakeRouter::new(&journal)),
        Arc::new(FakeMapper::new(&journal)),
        Arc::new(FakeSpace::new(&journal)),
    );
    let text = error.unwrap_err().to_string();
    assert!(text.contains("device 0000:01:00.0"), "{text}");
}

proptest! {
    /// Whatever the guest does, nothing panics, and what is mapped is what is
    /// decoded.
    #[test]
    fn any_guest(
        steps in proptest::collection::vec(
            (0_u8..5, any::<u64>(), 0_usize..4, any::<u64>()), 0..60,
        ),
    ) {
        let mut setup = plain();
        let mut mapped = std::collections::BTreeSet::new();
        for (kind, at, size, value) in steps {
            let data = &value.to_le_bytes()[..1 << size];
            let config = (at % (4096 - data.len() as u64 + 1)) as u16;
            match kind {
                0 => { let _ = setup.write(config, data); }
                1 => { let _ = setup.write(config % 0x78, data); }
                2 => {
                    let _ = setup.command(value as u16 & 0x7 | MEMORY);
                    setup.place(value & 0x7f_ffff_c000);
                }
                3 => {
                    let bar = setup.bar();
                    let offset = at % (0x4000 - data.len() as u64 + 1);
                    setup.device.bar_write(bar, offset, data);
                    let mut data = [0; 8];
                    setup.device.bar_read(bar, offset % (0x4000 - 7), &mut data);
                    setup.device.config_read(config % 4089, &mut data);
                }
                _ => setup.settle_alone(),
            }
            for call in setup.journal.take() {
                let words: Vec<_> = call.split(' ').collect();
                match words[..] {
                    ["guest", "map", address, _] => {
                        prop_assert!(mapped.insert(address.to_owned()));
                    }
                    ["guest", "unmap", address] => prop_assert!(mapped.remove(address)),
                    _ => {}
                }
            }
            if kind > 3 {
                let memory = |decode: &BarDecode| !decode.bar.kind.is_io();
                let decoded = setup.device.decoded().into_iter().filter(memory);
                let expected: std::collections::BTreeSet<_> = decoded
                    .flat_map(|d| [d.address, d.address + 0x3000])
                    .map(|address| format!("{address:#x}"))
                    .collect();
                prop_assert_eq!(&mapped, &expected);
                let master = setup.device.guest_command() & MASTER;
                prop_assert_eq!(setup.host.config(4) & MASTER, master);
            }
        }
        let Setup { device, journal, .. } = setup;
        drop(device);
        let unmapped = journal.take_only(&["guest unmap"]).len();
        prop_assert_eq!(unmapped, mapped.len());
    }
}
