use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;

const INTERRUPT_ENABLE: u64 = 1;
const INTERRUPT_ID: u64 = 2;
const SCRATCH: u64 = 7;
const RECEIVE: u8 = 1;
const TRANSMIT: u8 = 2;

/// Notes every write(2).
#[derive(Clone, Debug, Default)]
struct Terminal {
    writes: Arc<Mutex<Vec<String>>>,
    broken: Arc<AtomicBool>,
}

impl Terminal {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.writes.lock().unwrap())
    }
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.writes.lock().unwrap().push(text);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Counter {
    count: AtomicUsize,
    broken: bool,
}

impl Counter {
    fn take(&self) -> usize {
        self.count.swap(0, Ordering::Relaxed)
    }
}

impl InterruptLine for Counter {
    fn pulse(&self) -> io::Result<()> {
        self.count.fetch_add(1, Ordering::Relaxed);
        if self.broken {
            return Err(io::ErrorKind::Other.into());
        }
        Ok(())
    }
}

impl InputNotice for Counter {
    fn room(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    serial: Serial,
    terminal: Terminal,
    line: Arc<Counter>,
    notice: Arc<Counter>,
}

impl Bench {
    fn new() -> Self {
        Self::with_line(Counter::default())
    }

    fn with_line(line: Counter) -> Self {
        let terminal = Terminal::default();
        let (line, notice) = (Arc::new(line), Arc::new(Counter::default()));
        let serial =
            Serial::new(line.clone(), Box::new(terminal.clone())).with_input_notice(notice.clone());
        Self {
            serial,
            terminal,
            line,
            notice,
        }
    }

    fn get(&self, register: u64) -> u8 {
        let mut data = [0x55];
        self.serial.read(register, &mut data);
        data[0]
    }

    fn set(&self, register: u64, value: u8) {
        self.serial.write(register, &[value]);
    }

    /// Sends as Linux's console does: the line status before each byte.
    fn send_polling(&self, text: &str) {
        for byte in text.bytes() {
            assert_eq!(self.get(LINE_STATUS.into()) & 0x20, 0x20);
            self.set(DATA.into(), byte);
        }
    }

    fn receive(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.get(LINE_STATUS.into()) & DATA_READY != 0 {
            bytes.push(self.get(DATA.into()));
        }
        bytes
    }
}

#[test]
fn a_line_is_one_write() {
    let bench = Bench::new();
    bench.send_polling("one\r\ntwo\r\nthr");
    assert_eq!(bench.terminal.take(), ["one\r\n", "two\r\n"]);
    bench.send_polling("ee\r\n");
    assert_eq!(bench.terminal.take(), ["three\r\n"]);
}

#[test]
fn a_prompt_shows_when_the_guest_turns_to_something_else() {
    let bench = Bench::new();
    bench.send_polling("login: ");
    assert!(bench.terminal.take().is_empty());
    bench.set(INTERRUPT_ENABLE, RECEIVE);
    assert_eq!(bench.terminal.take(), ["login: "]);
    bench.send_polling("> ");
    bench.get(INTERRUPT_ID);
    assert_eq!(bench.terminal.take(), ["> "]);
}

#[test]
fn a_prompt_shows_when_the_guest_polls_for_input() {
    let bench = Bench::new();
    bench.send_polling("grub> ");
    bench.get(LINE_STATUS.into());
    assert!(bench.terminal.take().is_empty());
    bench.get(LINE_STATUS.into());
    assert_eq!(bench.terminal.take(), ["grub> "]);
    bench.send_polling("a");
    bench.get(DATA.into());
    assert_eq!(bench.terminal.take(), ["a"]);
}

#[test]
fn nothing_is_kept_for_good() {
    let bench = Bench::new();
    let long = "x".repeat(1000);
    bench.send_polling(&long);
    bench.serial.flush();
    let writes = bench.terminal.take();
    assert_eq!(writes.concat(), long);
    assert!(writes.len() < 10, "{} writes", writes.len());
    bench.serial.flush();
    bench.send_polling("end");
    let terminal = bench.terminal.clone();
    drop(bench.serial);
    assert_eq!(terminal.take(), ["end"]);
}

#[test]
fn a_broken_output_leaves_the_guest_alone() {
    let bench = Bench::new();
    bench.terminal.broken.store(true, Ordering::Relaxed);
    bench.set(INTERRUPT_ENABLE, TRANSMIT);
    bench.send_polling("lost\nlost\n");
    assert!(bench.line.take() > 0, "the guest waits for the transmitter");
    bench.terminal.broken.store(false, Ordering::Relaxed);
    bench.send_polling("back\n");
    assert_eq!(bench.terminal.take(), ["back\n"]);
}

#[test]
fn input_interrupts_and_is_read_in_order() {
    let bench = Bench::new();
    bench.set(INTERRUPT_ENABLE, RECEIVE);
    bench.line.take();
    assert_eq!(bench.serial.enqueue(b"hello"), 5);
    assert_eq!(bench.line.take(), 1);
    assert_eq!(bench.get(INTERRUPT_ID) & 0x0f, 4);
    assert_eq!(bench.receive(), b"hello");
    assert_eq!(bench.notice.take(), 0, "nobody waited");
}

#[test]
fn input_beyond_the_room_waits_for_a_notice() {
    let bench = Bench::new();
    let room = bench.serial.room();
    let input = [b'x'; 100];
    assert_eq!(bench.serial.enqueue(&input), room);
    assert_eq!(bench.serial.room(), 0);
    assert_eq!(bench.serial.enqueue(&input[room..]), 0);
    bench.get(DATA.into());
    assert_eq!(bench.notice.take(), 0, "one byte of room is no reason");
    assert_eq!(bench.receive().len(), room - 1);
    assert_eq!(bench.notice.take(), 1);
    assert_eq!(bench.serial.enqueue(&input[room..]), 100 - room);
    assert_eq!(bench.receive().len(), 100 - room);
    assert_eq!(bench.notice.take(), 0);
    assert_eq!(bench.serial.enqueue(&[]), 0);
}

#[test]
fn loopback_takes_no_input() {
    let bench = Bench::new();
    bench.set(MODEM_CONTROL.into(), LOOPBACK);
    assert_eq!(bench.serial.enqueue(b"typed"), 0);
    bench.set(DATA.into(), 0xae);
    assert_eq!(bench.receive(), [0xae]);
    assert_eq!(bench.notice.take(), 0);
    bench.set(MODEM_CONTROL.into(), 0);
    assert_eq!(bench.notice.take(), 1);
    assert_eq!(bench.serial.enqueue(b"typed"), 5);
    bench.serial.flush();
    assert!(bench.terminal.take().is_empty());
}

#[test]
fn an_interrupt_that_fails_is_survived() {
    let bench = Bench::with_line(Counter {
        broken: true,
        ..Counter::default()
    });
    bench.set(INTERRUPT_ENABLE, RECEIVE | TRANSMIT);
    assert_eq!(bench.serial.enqueue(b"abc"), 3);
    bench.send_polling("out\n");
    assert_eq!(bench.terminal.take(), ["out\n"]);
    assert_eq!(bench.receive(), b"abc");
}

#[test]
fn wide_and_stray_accesses() {
    let bench = Bench::new();
    bench.serial.write(6, &[0, 0x77, 0x88, 0x99]);
    assert_eq!(bench.get(SCRATCH), 0x77);
    let mut data = [0x55; 4];
    bench.serial.read(SCRATCH, &mut data);
    assert_eq!(data, [0x77, 0xff, 0xff, 0xff]);
    bench.serial.write(u64::MAX, b"xy");
    bench.serial.read(8, &mut data);
    assert_eq!(data, [0xff; 4]);
    // The word at register 0: the byte is sent, the rest reaches the next.
    bench.serial.write(0, b"h\x01");
    assert_eq!(bench.get(INTERRUPT_ENABLE), RECEIVE);
}

proptest! {
    /// Every byte that was sent comes out, once and in order, whatever else
    /// the guest does in between.
    #[test]
    fn output_is_complete(steps in proptest::collection::vec((0u8..8, any::<u8>(), any::<bool>()), 0..600)) {
        let bench = Bench::new();
        let written = Arc::clone(&bench.terminal.writes);
        let mut sent = Vec::new();
        for (register, value, write) in steps {
            let register = u64::from(register);
            // The divisor latch and loopback would divert data.
            if write && register != 3 && register != 4 {
                let value = value & 0x7f;
                bench.set(register, value);
                if register == 0 {
                    sent.push(value);
                }
            } else {
                bench.get(register);
            }
        }
        bench.serial.flush();
        let out = written.lock().unwrap().concat();
        prop_assert_eq!(out.as_bytes(), &sent[..]);
    }
}
