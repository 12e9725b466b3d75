use super::*;

const INPUT: u32 = 17;

/// Notes what KVM is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    lines: Arc<Mutex<Vec<String>>>,
    refuse: Arc<AtomicBool>,
}

impl Notes {
    fn note(&self, line: String) -> Result<(), kvm_ioctls::Error> {
        self.lines.lock().unwrap().push(line);
        if self.refuse.swap(false, Ordering::SeqCst) {
            return Err(kvm_ioctls::Error::new(libc::EINVAL));
        }
        Ok(())
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

impl Controller for Notes {
    fn add_irqfd(&self, _: &EventFd, _: &EventFd, input: u32) -> Result<(), kvm_ioctls::Error> {
        self.note(format!("add {input}"))
    }

    fn remove_irqfd(&self, _: &EventFd, input: u32) -> Result<(), kvm_ioctls::Error> {
        self.note(format!("remove {input}"))
    }

    fn set_level(&self, input: u32, asserted: bool) -> Result<(), kvm_ioctls::Error> {
        self.note(format!("level {input} {asserted}"))
    }
}

/// Lines whose KVM only notes what it is asked for.
pub(crate) fn lines(resamples: bool) -> (Lines, Notes) {
    let notes = Notes::default();
    let lines = Lines::with(Box::new(notes.clone()), resamples).unwrap();
    (lines, notes)
}

/// The device signals a line's event.
fn signal(line: &dyn InterruptLine) {
    let event = line.event().try_clone_to_owned().unwrap();
    std::io::Write::write_all(&mut std::fs::File::from(event), &1_u64.to_ne_bytes()).unwrap();
}

#[test]
fn a_port_turns_the_pins_of_what_is_below() {
    let wiring = PinWiring {
        first: 16,
        count: 8,
    };
    let address = |bus, device, function| PciAddress::new(0, bus, device, function).unwrap();
    let port = Some(address(0, 3, 0));
    for (at, port, pin, expected) in [
        (address(0, 1, 0), None, InterruptPin::A, 17),
        (address(0, 1, 3), None, InterruptPin::D, 20),
        (address(0, 15, 0), None, InterruptPin::B, 16),
        (address(1, 0, 0), port, InterruptPin::A, 19),
        (address(2, 0, 1), port, InterruptPin::B, 20),
        // Not behind a PCI Express port, but the rule is the same.
        (address(1, 2, 0), port, InterruptPin::C, 19),
    ] {
        assert_eq!(input(wiring, at, port, pin), expected, "{at} {pin:?}");
    }
}

#[test]
fn a_resampled_line_is_kvms() {
    let (lines, notes) = lines(true);
    assert!(lines.watch().is_none(), "nothing for the event loop");
    let mut line = lines.line(INPUT).unwrap();
    assert!(line.resample_event().is_some());
    line.connect().unwrap();
    line.connect().unwrap();
    assert_eq!(notes.take(), ["add 17"]);
    signal(&*line);
    assert!(!line.release());
    line.disconnect().unwrap();
    line.disconnect().unwrap();
    assert_eq!(notes.take(), ["remove 17"]);
    line.connect().unwrap();
    drop(line);
    assert_eq!(notes.take(), ["add 17", "remove 17"]);
}

#[test]
fn what_kvm_refuses_is_said() {
    let (lines, notes) = lines(true);
    let mut line = lines.line(INPUT).unwrap();
    notes.refuse.store(true, Ordering::SeqCst);
    let error = line.connect().unwrap_err().to_string();
    assert_eq!(
        error,
        "KVM refuses a resampling irqfd for input 17 of the I/O APIC"
    );
    drop(line);
    assert_eq!(notes.take(), ["add 17"], "there is nothing to take back");
}

#[test]
fn a_trapped_line_is_asserted_until_it_is_released() {
    let (lines, notes) = lines(false);
    assert!(lines.watch().is_some());
    let mut line = lines.line(INPUT).unwrap();
    assert!(line.resample_event().is_none());
    // A signal before it is connected counts then.
    signal(&*line);
    lines.0.look();
    assert!(notes.take().is_empty());
    line.connect().unwrap();
    line.connect().unwrap();
    lines.0.look();
    assert_eq!(notes.take(), ["level 17 true"]);
    signal(&*line);
    lines.0.look();
    assert!(notes.take().is_empty(), "it is asserted already");
    assert!(line.release());
    assert!(!line.release());
    assert_eq!(notes.take(), ["level 17 false"]);
    signal(&*line);
    lines.0.look();
    line.disconnect().unwrap();
    assert_eq!(notes.take(), ["level 17 true", "level 17 false"]);
    assert!(!line.release());
}

#[test]
fn a_silenced_line_forgets_what_is_on_its_way() {
    let (lines, notes) = lines(false);
    let mut line = lines.line(INPUT).unwrap();
    line.connect().unwrap();
    signal(&*line);
    lines.0.look();
    signal(&*line);
    line.silence();
    lines.0.look();
    assert_eq!(notes.take(), ["level 17 true", "level 17 false"]);
    signal(&*line);
    lines.0.look();
    assert_eq!(notes.take(), ["level 17 true"], "and it goes on");
}

#[test]
fn a_shared_line_is_asserted_while_anyone_asserts_it() {
    let (lines, notes) = lines(false);
    let mut ends: Vec<_> = (0..3).map(|_| lines.line(INPUT).unwrap()).collect();
    let mut other = lines.line(INPUT + 1).unwrap();
    for end in ends.iter_mut().chain([&mut other]) {
        end.connect().unwrap();
        signal(&**end);
    }
    lines.0.look();
    let mut levels = notes.take();
    levels.sort();
    assert_eq!(levels, ["level 17 true", "level 18 true"]);
    assert!(ends[1].release());
    // One that leaves without a word counts no longer either.
    ends.pop();
    assert!(notes.take().is_empty());
    assert!(ends[0].release());
    assert_eq!(notes.take(), ["level 17 false"]);
}

#[test]
fn signals_on_their_way_are_forgotten_when_it_is_disconnected() {
    let (lines, notes) = lines(false);
    let mut line = lines.line(INPUT).unwrap();
    line.connect().unwrap();
    signal(&*line);
    line.disconnect().unwrap();
    line.connect().unwrap();
    lines.0.look();
    assert!(notes.take().is_empty());
}
