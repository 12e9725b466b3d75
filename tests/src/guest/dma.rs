use std::thread;
use std::time::{Duration, Instant};

use super::{Function, GuestError, Memory, marker};

/// QEMU's edu (docs/specs/edu.rst): the registers of its DMA engine, its command
/// bits, and where its own buffer is for it.
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
const BUFFER: u64 = 0x4_0000;
const BUFFER_SIZE: u64 = 4096;
/// It takes a tenth of a second for each transfer.
const LIMIT: Duration = Duration::from_secs(20);

/// The command register of a function and its bit for DMA.
const CONFIG_COMMAND: u64 = 4;
const BUS_MASTER: u16 = 1 << 2;

/// edu's DMA engine.
struct Engine(Memory);

impl Engine {
    /// Lets the device reach memory.
    fn start(edu: &Function) -> Result<Self, GuestError> {
        edu.decode(true)?;
        let command = edu.word(CONFIG_COMMAND)? | BUS_MASTER;
        edu.write(CONFIG_COMMAND, command.to_le_bytes())?;
        Ok(Self(Memory::map(edu.bar_address(0)?, BUFFER_SIZE)?))
    }

    /// Moves `count` bytes, and waits until the engine says that it has.
    fn transfer(&self, from: u64, to: u64, direction: u64, count: u64) -> Result<(), GuestError> {
        self.0.write(SOURCE, from)?;
        self.0.write(DESTINATION, to)?;
        self.0.write(COUNT, count)?;
        self.0.write(COMMAND, START | direction)?;
        let begun = Instant::now();
        while self.0.read::<u64>(COMMAND)? & START != 0 {
            if begun.elapsed() > LIMIT {
                return Err(GuestError::Unexpected("edu's DMA does not end".to_owned()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Has edu write to an address that is none of the guest's, and then tells that
/// the guest lives.
///
/// # Errors
/// [`GuestError`] when there is no edu.
pub fn stray(edu: &Function, address: u64) -> Result<(), GuestError> {
    let engine = Engine::start(edu)?;
    engine.transfer(BUFFER, address, TO_MEMORY, 64)?;
    marker("stray", &format!("address={address}"));
    Ok(())
}

/// Has edu carry a pattern from one page of `target`'s BAR to the next one, as
/// the BAR is at first, after `target` has not decoded memory for a while, in
/// another place, and back. A marker for each tells whether it arrived.
///
/// # Errors
/// [`GuestError`] when there are no such functions.
pub fn peer(edu: &Function, target: &Function, index: u8) -> Result<(), GuestError> {
    let engine = Engine::start(edu)?;
    target.decode(true)?;
    let bar = target.bar(index)?;
    let elsewhere = bar.start + 16 * bar.size;
    let rounds = [
        ("first", bar.start),
        ("again", bar.start),
        ("moved", elsewhere),
        ("back", bar.start),
    ];
    for ((name, place), pattern) in rounds.into_iter().zip(0x5eed_0001_u64..) {
        target.decode(false)?;
        target.move_bar(index, place)?;
        target.decode(true)?;
        let memory = Memory::map(place, 2 * BUFFER_SIZE)?;
        memory.write(0, pattern)?;
        memory.write(BUFFER_SIZE as usize, 0_u64)?;
        engine.transfer(place, BUFFER, 0, 64)?;
        engine.transfer(BUFFER, place + BUFFER_SIZE, TO_MEMORY, 64)?;
        let arrived = memory.read::<u64>(BUFFER_SIZE as usize)? == pattern;
        marker(
            "peer",
            &format!(
                "round={name} place={place:#x} arrived={}",
                u8::from(arrived)
            ),
        );
    }
    Ok(())
}
