//! MSI, as the guest sees it.

use super::*;

#[test]
fn msi_has_the_registers_that_its_control_register_names() {
    // The control register, as the guest has it, and what can be written of
    // the five registers behind it.
    for (control, shown, writable) in [
        (0x0000, 0x0000, [0xffff_fffc, 0xffff, 0, 0, 0]),
        (0x0082, 0x0082, [0xffff_fffc, u32::MAX, 0xffff, 0, 0]),
        (0x0104, 0x0104, [0xffff_fffc, 0xffff, 0xf, 0, 0]),
        // A reserved number of vectors; extended message data.
        (0x078f, 0x018a, [0xffff_fffc, u32::MAX, 0xffff, u32::MAX, 0]),
    ] {
        let mut values = config(EVERYTHING);
        values.set(0x6a, &u16::to_le_bytes(control));
        let mut setup = show(&values, Placement::BehindPort).unwrap();
        assert_eq!(setup.u32(0x68) >> 16, shown, "{control:#x}");
        setup.journal.take();
        for (at, writable) in (0x6c_u16..).step_by(4).zip(writable) {
            if at < 0x68 + setup.view.book.msi.unwrap().capability.size() {
                setup.write(at, u32::MAX);
                assert_eq!(setup.u32(at), writable, "{control:#x} at {at:#x}");
            }
        }
        setup.write(0x68, u32::MAX);
        assert_eq!(setup.u32(0x68) >> 16, shown | 0x0071, "{control:#x}");
        assert_eq!(setup.journal.take(), [""; 0], "the device knows nothing");
    }
}

#[test]
fn msi_that_runs_into_the_next_capability_is_hidden() {
    let mut values = config(EVERYTHING);
    // Vendor-specific at 0x78, where the mask bits would be.
    values.set(0x68, &0x0180_7805_u32.to_le_bytes());
    values.set(0x78, &0x0008_8009_u32.to_le_bytes());
    let setup = show(&values, Placement::BehindPort).unwrap();
    assert_eq!(setup.hidden(0x68), Some(crate::config::standard::CUT_SHORT));
    assert_eq!(setup.view.book.msi, None);
    assert_eq!(setup.view.space().u32(0x6c), 0);
}
