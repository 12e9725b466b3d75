//! Whatever the guest writes, a vector is armed only when it was unmasked,
//! and delivers only while it is.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Control(u16),
    Mask(u16, bool),
    Program(u16, u32),
    Raise(u16),
    Refuse(i32),
}

fn step() -> impl Strategy<Value = Step> {
    let vector = 0_u16..6;
    prop_oneof![
        (0_u16..4).prop_map(|bits| Step::Control(bits << 14)),
        (vector.clone(), any::<bool>()).prop_map(|(v, masked)| Step::Mask(v, masked)),
        (vector.clone(), any::<u32>()).prop_map(|(v, data)| Step::Program(v, data)),
        vector.prop_map(Step::Raise),
        Just(Step::Refuse(libc::ENOSPC)),
    ]
}

proptest! {
    #[test]
    fn deliveries_are_what_the_table_says(
        steps in proptest::collection::vec(step(), 0..60), no_resize: bool,
    ) {
        let mut setup =
            setup_with(|device| resizing(device, no_resize));
        for step in steps {
            match step {
                Step::Control(value) => setup.msix.write_control(value),
                Step::Mask(vector, masked) => setup.mask(vector, masked),
                Step::Program(vector, data) => setup.program(vector, data),
                Step::Refuse(errno) => setup.device.refuse(Operation::SetIrqs, errno),
                Step::Raise(vector) => {
                    let _ = setup.delivered();
                    setup.device.raise(vector.into());
                    let wanted = setup.msix.state.delivery(vector);
                    let delivered = setup.router.delivered();
                    match (wanted, &delivered[..]) {
                        (Some(wanted), [message]) => prop_assert_eq!(wanted, *message),
                        // Not armed, as the host refused.
                        (Some(_), []) => {
                            prop_assert!(!setup.msix.vectors.is_armed(vector));
                        }
                        (None, []) => {}
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
            }
            let on = setup.device.host_vectors().is_some();
            prop_assert_eq!(on, setup.msix.is_on());
            prop_assert!(!on || setup.msix.state.is_enabled());
        }
        let Setup { journal, device, msix, .. } = setup;
        let mut calls = journal.take();
        drop(msix);
        calls.extend(journal.take());
        let ending = |end: &str| calls.iter().filter(|call| call.ends_with(end)).count();
        prop_assert_eq!(ending(" new"), ending(" drop"));
        prop_assert_eq!(device.host_vectors(), None);
    }
}
