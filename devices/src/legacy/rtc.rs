use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::calendar::DateTime;
use crate::bus::BusDevice;

/// Where the real-time clock takes its time from.
pub trait Clock: Send + Sync + Debug {
    /// Time since 1970-01-01 00:00 UTC, without leap seconds.
    fn since_epoch(&self) -> Duration;
}

/// The host's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn since_epoch(&self) -> Duration {
        // A host clock before 1970 was never set: the guest starts at 1970.
        SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
    }
}

/// The port that selects a register, from the block's start.
const INDEX: u64 = 0;
/// The port that reads and writes it.
const DATA: u64 = 1;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// The century's register, which the FADT names.
pub(crate) const CENTURY: u8 = 0x32;
/// The registers of date and time: seconds, minutes, hours, day of the week,
/// day, month, year, century. Those between are the alarm's.
const TIME: [u8; 8] = [0, 2, 4, 6, 7, 8, 9, CENTURY];
/// [`TIME`]'s registers, as the guest sees them.
type TimeBytes = [u8; TIME.len()];

/// Register A: an update is about to happen.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A: both set stop the divider, and with it the updates.
const DIVIDER_STOPPED: u8 = 3 << 5;
/// Register A at start: a 32 kHz crystal, periodic rate 1024 Hz.
const INITIAL_A: u8 = 0x26;
/// Register B: the guest sets the time; updates wait.
const SET: u8 = 1 << 7;
/// Register B: interrupt at the end of an update. SET clears it.
const UPDATE_INTERRUPT: u8 = 1 << 4;
/// Register B: numbers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Register B: hours are 0 to 23, not 1 to 12 with a bit for the afternoon.
const HOURS_24: u8 = 1 << 1;
/// Set in hours of the afternoon, when they are 1 to 12.
const AFTERNOON: u8 = 1 << 7;
/// Register C: an update has ended since C was last read.
const UPDATE_ENDED: u8 = 1 << 4;
/// Register D: the battery is good, so time and memory are valid.
const VALID: u8 = 1 << 7;
/// How long UIP is set before an update: whoever reads it as 0 has so much
/// time to read the rest (MC146818A data sheet, "Update Cycle").
const UPDATE_NOTICE: Duration = Duration::from_micros(244);

/// The MC146818 real-time clock with its battery-backed memory, ports 0x70 and
/// 0x71, in UTC.
///
/// The time is the host's, plus what the guest once added by setting the
/// clock. It ticks at the host's full seconds, also after the guest set it. A
/// setting that is no date (31 February) is ignored: the old time goes on.
/// The day of the week follows from the date.
///
/// There are no interrupts: the DSDT gives the clock none. An alarm is stored
/// and never fires.
///
/// Everything that is no clock register is memory, zero at start: the shutdown
/// status (0x0f) among it.
#[derive(Debug)]
pub struct Rtc {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    index: u8,
    register_a: u8,
    register_b: u8,
    /// Seconds that the guest is ahead of the host.
    ahead: i64,
    /// The time registers while SET holds them.
    held: Option<TimeBytes>,
    /// The second when register C was last read.
    last_update: i64,
    memory: [u8; 128],
}

impl Rtc {
    /// The first port of the block.
    pub const BASE: u64 = 0x70;
    /// Ports in the block.
    pub const SIZE: u64 = 2;

    /// A clock that shows `clock`'s time.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State {
            index: 0,
            register_a: INITIAL_A,
            register_b: HOURS_24,
            ahead: 0,
            held: None,
            last_update: seconds(clock.since_epoch()),
            memory: [0; 128],
        };
        Self {
            clock,
            state: Mutex::new(state),
        }
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (port, byte) in (offset..Self::SIZE).zip(data) {
            // The index can't be read back.
            if port == DATA {
                *byte = state.read(self.clock.since_epoch());
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (port, byte) in (offset..Self::SIZE).zip(data) {
            match port {
                // Bit 7 masks NMIs on a PC and selects nothing.
                INDEX => state.index = byte & 0x7f,
                DATA => state.write(*byte, self.clock.since_epoch()),
                _ => {}
            }
        }
    }
}

impl State {
    fn read(&mut self, host: Duration) -> u8 {
        if let Some(place) = time_place(self.index) {
            let bytes = self.held.unwrap_or_else(|| self.encode(self.now(host)));
            return bytes.get(place).copied().unwrap_or(0);
        }
        match self.index {
            REGISTER_A if self.updates_soon(host) => self.register_a | UPDATE_IN_PROGRESS,
            REGISTER_A => self.register_a,
            REGISTER_B => self.register_b,
            REGISTER_C => {
                let now = seconds(host);
                let ended = self.held.is_none() && now != self.last_update;
                self.last_update = now;
                if ended { UPDATE_ENDED } else { 0 }
            }
            REGISTER_D => VALID,
            index => self.memory.get(usize::from(index)).copied().unwrap_or(0),
        }
    }

    fn write(&mut self, value: u8, host: Duration) {
        if let Some(place) = time_place(self.index) {
            let mut bytes = self.held.unwrap_or_else(|| self.encode(self.now(host)));
            if let Some(byte) = bytes.get_mut(place) {
                *byte = value;
            }
            match &mut self.held {
                Some(held) => *held = bytes,
                None => self.adopt(bytes, host),
            }
            return;
        }
        match self.index {
            REGISTER_A => self.register_a = value & !UPDATE_IN_PROGRESS,
            REGISTER_B => self.write_b(value, host),
            REGISTER_C | REGISTER_D => {}
            index => {
                if let Some(byte) = self.memory.get_mut(usize::from(index)) {
                    *byte = value;
                }
            }
        }
    }

    fn write_b(&mut self, value: u8, host: Duration) {
        if value & SET == 0 {
            self.register_b = value;
            if let Some(bytes) = self.held.take() {
                self.adopt(bytes, host);
            }
        } else {
            if self.held.is_none() {
                self.held = Some(self.encode(self.now(host)));
            }
            self.register_b = value & !UPDATE_INTERRUPT;
        }
    }

    /// Goes on from the time that the guest has set.
    fn adopt(&mut self, bytes: TimeBytes, host: Duration) {
        if let Some(time) = self.decode(bytes) {
            self.ahead = time.saturating_sub(seconds(host));
        }
    }

    fn now(&self, host: Duration) -> i64 {
        seconds(host).saturating_add(self.ahead)
    }

    fn updates_soon(&self, host: Duration) -> bool {
        let runs = self.held.is_none() && self.register_a & DIVIDER_STOPPED != DIVIDER_STOPPED;
        let left = Duration::from_secs(1) - Duration::from_nanos(host.subsec_nanos().into());
        runs && left <= UPDATE_NOTICE
    }

    fn encode(&self, now: i64) -> TimeBytes {
        let time = DateTime::from_unix(now);
        let hour = if self.register_b & HOURS_24 != 0 {
            self.number(time.hour)
        } else {
            let afternoon = if time.hour >= 12 { AFTERNOON } else { 0 };
            self.number((time.hour + 11) % 12 + 1) | afternoon
        };
        [
            self.number(time.second),
            self.number(time.minute),
            hour,
            self.number(DateTime::day_of_week(now)),
            self.number(time.day),
            self.number(time.month),
            self.number(time.year.rem_euclid(100) as u8),
            self.number(time.year.div_euclid(100).rem_euclid(100) as u8),
        ]
    }

    /// Seconds since 1970; nothing when there is no such time.
    fn decode(&self, bytes: TimeBytes) -> Option<i64> {
        let [second, minute, hour, _, day, month, year, century] = bytes;
        let hour = if self.register_b & HOURS_24 != 0 {
            self.value(hour)?
        } else {
            let afternoon = if hour & AFTERNOON != 0 { 12 } else { 0 };
            let hour = self.value(hour & !AFTERNOON)?;
            (1..=12).contains(&hour).then_some(hour % 12 + afternoon)?
        };
        let year = self.value(year).filter(|year| *year < 100)?;
        let date = DateTime {
            year: i64::from(self.value(century)?) * 100 + i64::from(year),
            month: self.value(month)?,
            day: self.value(day)?,
            hour,
            minute: self.value(minute)?,
            second: self.value(second)?,
        };
        date.to_unix()
    }

    /// A number below 100 in the form that register B asks for.
    fn number(&self, value: u8) -> u8 {
        if self.register_b & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    /// The number that a register holds; nothing for bad BCD.
    fn value(&self, byte: u8) -> Option<u8> {
        if self.register_b & BINARY != 0 {
            return Some(byte);
        }
        let (tens, ones) = (byte >> 4, byte & 0xf);
        (tens < 10 && ones < 10).then_some(tens * 10 + ones)
    }
}

fn time_place(index: u8) -> Option<usize> {
    TIME.iter().position(|register| *register == index)
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "rtc_test.rs"]
mod tests;
