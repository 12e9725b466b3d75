use super::*;
use crate::assigned::{AssignOptions, RomError, RomSource};

const ROM: BarIndex = BarIndex::ROM;
const PLACE: u32 = 0xfeb0_0000;

/// A device with a ROM of `size` bytes, each of which says where it is.
fn with_rom(size: usize, rom: RomSource) -> Setup {
    let journal = Journal::default();
    let host = FakeDevice::nvme(&journal).unwrap().with_rom(&image(size));
    let options = AssignOptions {
        rom,
        ..AssignOptions::default()
    };
    let setup = assign_as(host, options, &journal);
    journal.take();
    setup
}

fn image(size: usize) -> Vec<u8> {
    let mut image: Vec<u8> = (0..size).map(|at| (at / 256 + at) as u8).collect();
    image[..2].copy_from_slice(&[0x55, 0xaa]);
    image
}

impl Setup {
    fn rom(&mut self, offset: u64, size: usize) -> Vec<u8> {
        let mut data = vec![0; size];
        self.device.bar_read(ROM, offset, &mut data);
        data
    }

    fn rom_register(&mut self) -> u32 {
        let mut data = [0; 4];
        self.device.config_read(0x30, &mut data);
        u32::from_le_bytes(data)
    }

    fn rom_size(&mut self) -> u32 {
        let _ = self.write(0x30, &0xffff_fffe_u32.to_le_bytes());
        (!self.rom_register()).wrapping_add(1)
    }

    /// Memory decoding and the ROM on, as a guest does to read it.
    fn show_rom(&mut self) {
        let _ = self.write(0x30, &(PLACE | 1).to_le_bytes());
        let _ = self.command(MEMORY);
        self.settle();
    }
}

#[test]
fn it_answers_while_both_enable_bits_are_on() {
    let mut setup = with_rom(0x3000, RomSource::Device);
    assert_eq!(setup.rom_size(), 0x4000);
    assert_eq!(setup.device.bars().last().unwrap().index, ROM);
    let answers = |setup: &Setup| {
        let mut decoded = setup.device.decoded().into_iter();
        decoded
            .find(|one| one.bar.index == ROM)
            .map(|one| one.address)
    };
    let _ = setup.write(0x30, &PLACE.to_le_bytes());
    let _ = setup.command(MEMORY);
    assert_eq!(answers(&setup), None, "its own bit is off");
    assert_eq!(
        setup.write(0x30, &(PLACE | 1).to_le_bytes()),
        effects(true, false)
    );
    assert_eq!(answers(&setup), Some(PLACE.into()));
    assert_eq!(setup.command(0), effects(true, false));
    assert_eq!(answers(&setup), None, "memory is off");
}

#[test]
fn contents_are_read_when_they_are_looked_at_and_once() {
    let mut setup = with_rom(0x1_8000, RomSource::Device);
    setup.show_rom();
    assert_eq!(setup.rom(0, 2), [0x55, 0xaa]);
    assert_eq!(setup.journal.take(), ["read 6 0x0 65536"]);
    assert_eq!(setup.rom(0x1ff, 1), image(0x200)[0x1ff..]);
    assert_eq!(setup.journal.take(), [""; 0], "known by now");
    // Across two pieces, and past the image.
    assert_eq!(setup.rom(0xfffe, 4), image(0x1_0002)[0xfffe..]);
    assert_eq!(setup.journal.take(), ["read 6 0x10000 65536"]);
    assert_eq!(setup.rom(0x1_7fff, 2), [image(0x1_8000)[0x1_7fff], 0xff]);
    // Past the end of the register's size nothing answers.
    assert_eq!(setup.rom(0x1_ffff, 2), [0xff, 0xff]);
    assert_eq!(setup.rom(u64::MAX, 2), [0xff, 0xff]);
    // A reset changes nothing about it.
    let _ = setup.device.reset();
    setup.settle();
    setup.show_rom();
    setup.journal.take();
    assert_eq!(setup.rom(0, 2), [0x55, 0xaa]);
    assert_eq!(setup.journal.take(), [""; 0]);
}

#[test]
fn what_fails_is_tried_again() {
    let mut setup = with_rom(0x1000, RomSource::Device);
    setup.show_rom();
    setup.host.refuse(Operation::Read, libc::EIO);
    assert_eq!(setup.rom(0, 4), [0xff; 4]);
    assert_eq!(setup.rom(0, 2), [0x55, 0xaa]);
}

#[test]
fn writes_change_nothing() {
    let mut setup = with_rom(0x1000, RomSource::Device);
    setup.show_rom();
    setup.journal.take();
    setup.device.bar_write(ROM, 0, &[1, 2, 3, 4]);
    assert_eq!(setup.journal.take(), [""; 0]);
    assert_eq!(setup.rom(0, 2), [0x55, 0xaa]);
}

#[test]
fn it_can_be_off() {
    let mut setup = with_rom(0x1000, RomSource::Off);
    let _ = setup.write(0x30, &[0xff; 4]);
    assert_eq!(setup.rom_register(), 0);
    assert!(setup.device.bars().iter().all(|bar| bar.index != ROM));
    assert_eq!(setup.rom(0, 2), [0xff; 2]);
}

#[test]
fn a_file_replaces_it() {
    for (bytes, size) in [
        (1, 0x800),
        (0x800, 0x800),
        (0x801, 0x1000),
        (0x9000, 0x1_0000),
    ] {
        let mut file = image(0x9000);
        file.truncate(bytes);
        file[0] = 0x77;
        let mut setup = with_rom(0x1000, RomSource::File(file.clone()));
        assert_eq!(setup.rom_size(), size);
        setup.show_rom();
        setup.journal.take();
        assert_eq!(setup.rom(0, bytes), file);
        assert_eq!(setup.rom(bytes as u64, 1), [0xff]);
        assert_eq!(setup.journal.take(), [""; 0], "the device is not asked");
    }
}

#[test]
fn files_that_can_be_no_rom_are_refused_by_name() {
    for (bytes, reason) in [
        (Vec::new(), RomError::Empty),
        (vec![0; (16 << 20) + 1], RomError::TooLarge((16 << 20) + 1)),
    ] {
        let journal = Journal::default();
        let error = AssignedDevice::new(
            "0000:01:00.0".parse().unwrap(),
            Arc::new(FakeDevice::nvme(&journal).unwrap()),
            AssignOptions {
                rom: RomSource::File(bytes),
                ..AssignOptions::default()
            },
            Arc::new(FakeRouter::new(&journal)),
            Arc::new(FakeMapper::new(&journal)),
            Arc::new(FakeSpace::new(&journal)),
        );
        let error = error.unwrap_err();
        assert!(matches!(&error, AssignError::Rom { reason: found, .. } if *found == reason));
        assert!(error.to_string().contains("0000:01:00.0"));
        assert_eq!(journal.take(), ["close"], "before anything is done");
    }
}

#[test]
fn a_rom_that_no_register_can_express_is_left_out() {
    let setup = with_rom(0x400, RomSource::Device);
    assert!(setup.device.bars().iter().all(|bar| bar.index != ROM));
}
