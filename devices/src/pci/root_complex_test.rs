use std::sync::Mutex;

use proptest::prelude::*;

use super::super::fake::FakeFunction;
use super::*;

#[derive(Debug, Default)]
struct Sink {
    applied: Mutex<Vec<(PciAddress, Effects)>>,
}

impl EffectSink for Sink {
    fn apply(&self, root: &RootComplex, changes: &[Change]) {
        for change in changes {
            assert!(change.function.try_lock().is_ok(), "the lock is still held");
            assert!(root.function(change.address).is_some());
            let applied = (change.address, change.effects);
            self.applied.lock().unwrap().push(applied);
        }
    }
}

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn complex() -> (RootComplex, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    (RootComplex::new(sink.clone()), sink)
}

fn read<const N: usize>(root: &RootComplex, address: &str, offset: u16) -> [u8; N] {
    let mut data = [0x55; N];
    root.config_read(at(address), offset, &mut data);
    data
}

#[test]
fn absent_functions_read_as_ones() {
    let (root, sink) = complex();
    root.add(at("00:01.0"), FakeFunction::counting()).unwrap();
    for address in ["00:00.0", "00:01.1", "00:02.0", "01:01.0", "0001:00:01.0"] {
        assert_eq!(read(&root, address, 0), [0xff; 4]);
        root.config_write(at(address), 4, &[7, 0]);
    }
    assert!(sink.applied.lock().unwrap().is_empty());
}

#[test]
fn a_function_that_was_pulled_out_reads_as_ones() {
    let (root, _) = complex();
    let function = FakeFunction::counting();
    root.add(at("00:01.0"), function.clone()).unwrap();
    root.add(at("00:01.1"), FakeFunction::counting()).unwrap();
    assert_eq!(read(&root, "00:01.0", 0x0e), [0x8e]);
    function.lock().unwrap().space.fill(0xff);
    assert_eq!(read(&root, "00:01.0", 0x0c), [0xff; 4]);
    assert_eq!(read(&root, "00:01.1", 0x0e), [0x8e]);
}

#[test]
fn where_functions_may_stand() {
    let (root, _) = complex();
    let add = |address: &str| root.add(at(address), FakeFunction::with_bars(Vec::new()));
    add("00:01.0").unwrap();
    assert_eq!(add("00:01.0"), Err(TopologyError::Taken(at("00:01.0"))));
    add("00:01.7").unwrap();
    assert_eq!(
        add("00:02.1"),
        Err(TopologyError::NoFunctionZero(at("00:02.1")))
    );
    assert_eq!(add("01:00.0"), Err(TopologyError::NoSuchBus(at("01:00.0"))));
    let elsewhere = add("0001:00:03.0").unwrap_err();
    assert!(elsewhere.to_string().contains("0001:00:03.0"));
    let present: Vec<_> = root.functions().into_iter().map(|(at, _)| at).collect();
    assert_eq!(present, [at("00:01.0"), at("00:01.7")]);
    assert!(root.function(at("00:01.7")).is_some());
    assert!(root.function(at("00:01.6")).is_none());
}

#[test]
fn the_multi_function_bit_tells_the_truth() {
    let (root, _) = complex();
    let function = FakeFunction::counting();
    function.lock().unwrap().space[0x0e] = 0x81;
    root.add(at("00:01.0"), function).unwrap();
    root.add(at("00:02.0"), FakeFunction::counting()).unwrap();
    root.add(at("00:02.3"), FakeFunction::counting()).unwrap();
    assert_eq!(read(&root, "00:01.0", 0x0e), [0x01]);
    assert_eq!(read(&root, "00:01.0", 0x0c), [0x0c, 0x0d, 0x01, 0x0f]);
    assert_eq!(read(&root, "00:02.0", 0x0e), [0x8e]);
    assert_eq!(read(&root, "00:02.3", 0x0d), [0x0d, 0x8e]);
    // Not covered: not touched.
    assert_eq!(read(&root, "00:02.0", 0x0f), [0x0f]);
    assert_eq!(read(&root, "00:02.0", 0x0c), [0x0c, 0x0d]);
}

#[test]
fn effects_are_joined_and_applied_once() {
    let (root, sink) = complex();
    let function = FakeFunction::counting();
    function.lock().unwrap().space[4] = 0;
    root.add(at("00:01.0"), function).unwrap();
    root.config_write(at("00:01.0"), 0x40, &[1, 2, 3, 4]);
    assert!(sink.applied.lock().unwrap().is_empty());
    // One access over two doublewords.
    root.config_write(at("00:01.0"), 0x02, &[0, 0, 6, 0]);
    let expected = Effects {
        decoding: true,
        bus_master: true,
    };
    assert_eq!(*sink.applied.lock().unwrap(), [(at("00:01.0"), expected)]);
}

#[test]
fn the_end_of_config_space_is_the_end() {
    let (root, _) = complex();
    root.add(at("00:01.0"), FakeFunction::counting()).unwrap();
    assert_eq!(read(&root, "00:01.0", 0xffe), [0xfe, 0xff, 0xff, 0xff]);
    assert_eq!(read(&root, "00:01.0", 0x1000), [0xff; 4]);
    assert_eq!(read(&root, "00:01.0", 0xffff), [0xff; 8]);
    root.config_write(at("00:01.0"), 0xfff, &[1; 8]);
    root.config_write(at("00:01.0"), 0xffff, &[1; 8]);
}

#[test]
fn a_poisoned_function_still_answers() {
    let (root, _) = complex();
    let function = FakeFunction::counting();
    root.add(at("00:01.0"), function.clone()).unwrap();
    let result = std::thread::spawn(move || {
        let _guard = function.lock().unwrap();
        panic!("on purpose");
    })
    .join();
    assert!(result.is_err());
    assert_eq!(read(&root, "00:01.0", 0x40), [0x40]);
}

proptest! {
    /// Whatever the guest asks, the function sees aligned requests that cover
    /// exactly the bytes that exist, and the data is right.
    #[test]
    fn requests_are_aligned_and_complete(offset: u16, length in 0usize..20) {
        let (root, _) = complex();
        let function = FakeFunction::counting();
        root.add(at("00:01.0"), function.clone()).unwrap();
        let mut data = vec![0x55; length];
        root.config_read(at("00:01.0"), offset, &mut data);
        for (index, byte) in data.iter().enumerate() {
            let at = usize::from(offset) + index;
            let expected = if at < 4096 { at as u8 } else { 0xff };
            prop_assert_eq!(*byte, expected, "byte {:#x}", at);
        }
        let mut next = offset;
        for (at, size) in &function.lock().unwrap().accesses {
            prop_assert_eq!(*at, next);
            prop_assert!([1, 2, 4].contains(size));
            prop_assert_eq!(usize::from(*at) % size, 0);
            next += *size as u16;
        }
        let end = (usize::from(offset) + length).min(4096).max(offset.into());
        prop_assert_eq!(usize::from(next), end);
    }
}
