use std::fmt::Debug;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents, Serial as Uart};

use super::output::Output;
use crate::bus::BusDevice;

/// An edge-triggered interrupt line into the guest.
pub trait InterruptLine: Send + Sync + Debug {
    /// Raises the line and lets it fall again: one interrupt.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn pulse(&self) -> io::Result<()>;
}

/// Whoever feeds [`Serial::enqueue`].
pub trait InputNotice: Send + Sync + Debug {
    /// The guest has read everything, after an `enqueue` that could not take
    /// all of its input. Called by the vCPU that read, with no lock held; must
    /// not block.
    fn room(&self);
}

/// Received data (read), data to send (write).
const DATA: u8 = 0;
/// Modem control.
const MODEM_CONTROL: u8 = 4;
/// In modem control: what is sent comes back, and nothing else comes in.
const LOOPBACK: u8 = 1 << 4;
/// Line status.
const LINE_STATUS: u8 = 5;
/// In line status: there is received data to read.
const DATA_READY: u8 = 1 << 0;

/// A 16550A serial port, eight ports.
///
/// **Output** is gathered into lines, as each write(2) costs about as much as
/// the exit that brought the byte. What isn't a whole line, such as a prompt,
/// is written out as soon as the guest turns to anything else than sending:
/// it touches another register (Linux does after each burst, to turn the
/// transmit interrupt off), or reads the line status twice in a row (a guest
/// that polls reads it once before each byte, and twice only when it waits for
/// input). [`Self::flush`] does it from outside, and dropping does.
///
/// An output that blocks, such as a stopped terminal, blocks the vCPU: nothing
/// is lost, and the guest is as slow as its console. An output that fails
/// loses the bytes, and the guest goes on.
///
/// **Input** goes into the 64 bytes of the receive FIFO by [`Self::enqueue`].
///
/// Lock order: `state` is let go before the notice is called. The interrupt is
/// raised under it.
#[derive(Debug)]
pub struct Serial {
    state: Mutex<State>,
    notice: Option<Arc<dyn InputNotice>>,
    /// An interrupt could not be raised, which was reported already.
    silent: AtomicBool,
}

#[derive(Debug)]
struct State {
    uart: Uart<Line, NoEvents, Output>,
    /// The last access read the line status.
    polled: bool,
    /// The last `enqueue` could not take everything.
    starved: bool,
}

#[derive(Debug)]
struct Line(Arc<dyn InterruptLine>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse()
    }
}

impl Serial {
    /// The first serial port's first port.
    pub const COM1: u64 = 0x3f8;
    /// The first serial port's interrupt.
    pub const COM1_IRQ: u32 = 4;
    /// Ports that it answers.
    pub const SIZE: u64 = 8;

    /// A serial port that raises `interrupt` and sends to `output`.
    pub fn new(interrupt: Arc<dyn InterruptLine>, output: Box<dyn Write + Send>) -> Self {
        let uart = Uart::new(Line(interrupt), Output::new(output));
        Self {
            state: Mutex::new(State {
                uart,
                polled: false,
                starved: false,
            }),
            notice: None,
            silent: AtomicBool::new(false),
        }
    }

    /// Has `notice` called when there is room for input again.
    #[must_use]
    pub fn with_input_notice(mut self, notice: Arc<dyn InputNotice>) -> Self {
        self.notice = Some(notice);
        self
    }

    /// Bytes that [`Self::enqueue`] would take now.
    pub fn room(&self) -> usize {
        self.lock().room()
    }

    /// Gives the guest input, as much as there is room for, and returns how
    /// many bytes that was. When it was not all, the notice comes later.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        let mut state = self.lock();
        let taken = input.len().min(state.room());
        state.starved = taken < input.len();
        // The bytes are in the FIFO even if the interrupt fails.
        let result = match input.get(..taken) {
            Some(part) if taken > 0 => state.uart.enqueue_raw_bytes(part).map(drop),
            _ => Ok(()),
        };
        drop(state);
        self.report(result);
        taken
    }

    /// Writes out what was gathered.
    pub fn flush(&self) {
        self.lock().uart.writer_mut().drain();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest without interrupts can poll: say it once and go on.
    fn report(&self, result: Result<(), Error<io::Error>>) {
        let Err(error) = result else {
            return;
        };
        if !self.silent.swap(true, Ordering::Relaxed) {
            log::warn!("serial port: {error}; the guest may miss input or output");
        }
    }

    /// Lets go of the lock and calls the notice if it is due.
    fn finish(&self, mut state: MutexGuard<'_, State>) {
        let due = state.starved && state.is_drained();
        state.starved &= !due;
        drop(state);
        if let Some(notice) = self.notice.as_ref().filter(|_| due) {
            notice.room();
        }
    }
}

impl State {
    /// None in loopback mode: the line is cut off then.
    fn room(&mut self) -> usize {
        if self.uart.read(MODEM_CONTROL) & LOOPBACK != 0 {
            return 0;
        }
        self.uart.fifo_capacity()
    }

    /// Nothing is left to read, and there is room. Not earlier: a notice for
    /// each byte would have input trickle in byte by byte.
    fn is_drained(&mut self) -> bool {
        self.uart.read(LINE_STATUS) & DATA_READY == 0 && self.room() > 0
    }

    /// Notes an access, and writes out what was gathered when it shows that
    /// the guest isn't in the middle of sending.
    fn turn_to(&mut self, register: u8, is_write: bool) {
        let polls = register == LINE_STATUS && !is_write;
        let sends = register == DATA && is_write;
        let polls_between = polls && !self.polled;
        if !(sends || polls_between) {
            self.uart.writer_mut().drain();
        }
        self.polled = polls;
    }
}

/// The registers that an access covers, with their bytes' places.
fn registers(offset: u64) -> impl Iterator<Item = u8> {
    (offset..Serial::SIZE).map(|register| register as u8)
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let mut state = self.lock();
        for (register, byte) in registers(offset).zip(data) {
            state.turn_to(register, false);
            *byte = state.uart.read(register);
        }
        self.finish(state);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let mut result = Ok(());
        for (register, byte) in registers(offset).zip(data) {
            state.turn_to(register, true);
            result = result.and(state.uart.write(register, *byte));
        }
        self.finish(state);
        self.report(result);
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
