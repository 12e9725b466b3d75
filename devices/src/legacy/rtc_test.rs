use proptest::prelude::*;

use super::*;

/// A clock that the test moves.
#[derive(Debug)]
struct Hand(Mutex<Duration>);

impl Clock for Hand {
    fn since_epoch(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

struct Bench {
    hand: Arc<Hand>,
    rtc: Rtc,
}

/// 2024-02-29 23:59:58 UTC, a Thursday.
const LEAP_EVENING: u64 = 1_709_251_198;

impl Bench {
    fn at(seconds: u64) -> Self {
        let hand = Arc::new(Hand(Mutex::new(Duration::from_secs(seconds))));
        let rtc = Rtc::new(hand.clone());
        Self { hand, rtc }
    }

    fn pass(&self, time: Duration) {
        *self.hand.0.lock().unwrap() += time;
    }

    fn get(&self, register: u8) -> u8 {
        self.rtc.write(0, &[register]);
        let mut data = [0x55];
        self.rtc.read(1, &mut data);
        data[0]
    }

    fn set(&self, register: u8, value: u8) {
        self.rtc.write(0, &[register]);
        self.rtc.write(1, &[value]);
    }

    fn time(&self) -> TimeBytes {
        TIME.map(|register| self.get(register))
    }
}

#[test]
fn shows_bcd_and_24_hours_at_first() {
    let bench = Bench::at(LEAP_EVENING);
    assert_eq!(bench.get(REGISTER_B), HOURS_24);
    let expected = [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20];
    assert_eq!(bench.time(), expected);
    bench.pass(Duration::from_secs(2));
    let expected = [0x00, 0x00, 0x00, 0x06, 0x01, 0x03, 0x24, 0x20];
    assert_eq!(bench.time(), expected);
}

#[test]
fn shows_binary_and_12_hours_when_asked() {
    let bench = Bench::at(LEAP_EVENING);
    bench.set(REGISTER_B, BINARY | HOURS_24);
    assert_eq!(bench.time(), [58, 59, 23, 5, 29, 2, 24, 20]);
    bench.set(REGISTER_B, BINARY);
    assert_eq!(bench.get(4), 11 | AFTERNOON);
    bench.set(REGISTER_B, 0);
    assert_eq!(bench.get(4), 0x11 | AFTERNOON);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.get(4), 0x12, "midnight is 12 in the morning");
    bench.pass(Duration::from_secs(12 * 3600));
    assert_eq!(
        bench.get(4),
        0x12 | AFTERNOON,
        "noon is 12 in the afternoon"
    );
    bench.pass(Duration::from_secs(3600));
    assert_eq!(bench.get(4), 0x01 | AFTERNOON);
}

#[test]
fn an_update_is_announced_and_passes() {
    let bench = Bench::at(1_000);
    assert_eq!(bench.get(REGISTER_A), INITIAL_A);
    bench.pass(Duration::from_micros(999_755));
    assert_eq!(bench.get(REGISTER_A), INITIAL_A);
    bench.pass(Duration::from_micros(1));
    assert_eq!(bench.get(REGISTER_A), INITIAL_A | UPDATE_IN_PROGRESS);
    bench.set(REGISTER_B, HOURS_24 | SET);
    assert_eq!(bench.get(REGISTER_A), INITIAL_A, "held: no update comes");
    bench.set(REGISTER_B, HOURS_24);
    bench.pass(Duration::from_micros(243));
    assert_eq!(bench.get(REGISTER_A), INITIAL_A | UPDATE_IN_PROGRESS);
    bench.pass(Duration::from_micros(1));
    assert_eq!(bench.get(REGISTER_A), INITIAL_A);
    bench.pass(Duration::from_micros(999_999));
    bench.set(REGISTER_A, 0xf0);
    assert_eq!(
        bench.get(REGISTER_A),
        0x70,
        "divider stopped, UIP not writable"
    );
}

/// The order of writes in Linux's mc146818_set_time().
#[test]
fn the_guest_sets_the_time() {
    let bench = Bench::at(LEAP_EVENING);
    let (a, b) = (bench.get(REGISTER_A), bench.get(REGISTER_B));
    bench.set(REGISTER_B, b | SET);
    bench.set(REGISTER_A, a | 0x70);
    for (register, value) in [
        (9, 0x99),
        (8, 0x12),
        (7, 0x31),
        (4, 0x23),
        (2, 0x59),
        (0, 0x57),
    ] {
        bench.set(register, value);
    }
    bench.set(CENTURY, 0x19);
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.get(0), 0x57, "SET holds the registers");
    bench.set(REGISTER_B, b);
    bench.set(REGISTER_A, a);
    let expected = [0x57, 0x59, 0x23, 0x06, 0x31, 0x12, 0x99, 0x19];
    assert_eq!(bench.time(), expected);
    bench.pass(Duration::from_secs(3));
    let expected = [0x00, 0x00, 0x00, 0x07, 0x01, 0x01, 0x00, 0x20];
    assert_eq!(bench.time(), expected);
}

#[test]
fn one_register_may_be_set_without_holding() {
    let bench = Bench::at(LEAP_EVENING);
    bench.set(4, 0x08);
    assert_eq!(bench.time()[..3], [0x58, 0x59, 0x08]);
    bench.set(REGISTER_B, 0);
    bench.set(4, 0x12);
    bench.set(REGISTER_B, HOURS_24);
    assert_eq!(bench.get(4), 0x00);
}

#[test]
fn what_is_no_date_is_ignored() {
    let bench = Bench::at(LEAP_EVENING);
    let before = bench.time();
    for (register, value) in [
        (7, 0x30),
        (8, 0x13),
        (8, 0),
        (0, 0x60),
        (0, 0x5a),
        (4, 0xa0),
    ] {
        bench.set(register, value);
        assert_eq!(bench.time(), before, "{register} {value:#x}");
    }
    bench.set(REGISTER_B, BINARY | HOURS_24);
    bench.set(9, 100);
    assert_eq!(bench.get(9), 24);
    bench.set(REGISTER_B, BINARY);
    bench.set(4, 13);
    bench.set(4, 0);
    assert_eq!(bench.get(4), 11 | AFTERNOON);
}

#[test]
fn registers_c_and_d() {
    let bench = Bench::at(1_000);
    assert_eq!(bench.get(REGISTER_C), 0);
    bench.pass(Duration::from_secs(3));
    assert_eq!(bench.get(REGISTER_C), UPDATE_ENDED);
    assert_eq!(bench.get(REGISTER_C), 0, "reading clears");
    assert_eq!(bench.get(REGISTER_D), VALID);
    bench.set(REGISTER_C, 0xff);
    bench.set(REGISTER_D, 0);
    assert_eq!(bench.get(REGISTER_C), 0);
    assert_eq!(bench.get(REGISTER_D), VALID);
}

#[test]
fn memory_keeps_what_is_written() {
    let bench = Bench::at(1_000);
    let memory = |register: &u8| !TIME.contains(register) && !(0x0a..=0x0d).contains(register);
    for register in (0..0x80).filter(memory) {
        assert_eq!(bench.get(register), 0);
        bench.set(register, register ^ 0xa5);
    }
    for register in (0..0x80).filter(memory) {
        assert_eq!(bench.get(register), register ^ 0xa5);
        assert_eq!(bench.get(register | 0x80), register ^ 0xa5, "NMI bit");
    }
}

#[test]
fn wide_and_stray_accesses() {
    let bench = Bench::at(1_000);
    bench.rtc.write(0, &[0x0f, 0x0a, 0xff, 0xff]);
    assert_eq!(bench.get(0x0f), 0x0a);
    let mut data = [0x55; 4];
    bench.rtc.read(0, &mut data);
    assert_eq!(data, [0xff, 0x0a, 0xff, 0xff]);
    bench.rtc.read(u64::MAX, &mut data[..1]);
    assert_eq!(data[0], 0xff);
}

#[test]
fn the_host_clock_is_after_2020() {
    assert!(HostClock.since_epoch() > Duration::from_secs(1_577_836_800));
}

proptest! {
    /// What is shown can be set, and is then shown, in every format.
    #[test]
    fn showing_and_setting_agree(host in 0_u64..253_402_300_800, guest in 0_u64..253_402_300_800, format in 0u8..4) {
        let shown = Bench::at(guest);
        let bench = Bench::at(host);
        shown.set(REGISTER_B, format << 1);
        bench.set(REGISTER_B, format << 1 | SET);
        for (register, value) in TIME.iter().zip(shown.time()) {
            bench.set(*register, value);
        }
        bench.set(REGISTER_B, format << 1);
        prop_assert_eq!(bench.time(), shown.time());
    }

    #[test]
    fn nothing_a_guest_writes_panics(
        seconds: u64,
        nanos in 0u32..1_000_000_000,
        writes in proptest::collection::vec((0u64..3, proptest::collection::vec(any::<u8>(), 0..5)), 0..64),
    ) {
        let bench = Bench::at(0);
        *bench.hand.0.lock().unwrap() = Duration::new(seconds, nanos);
        for (offset, data) in writes {
            bench.rtc.write(offset, &data);
            let mut answer = vec![0; data.len()];
            bench.rtc.read(offset, &mut answer);
        }
    }
}
