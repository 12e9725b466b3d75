use std::thread;
use std::time::Duration;

use super::{Function, GuestError, Memory, marker};

/// Power management (PCI-PM 1.2 §3.2): its id, its control register, the state
/// in that, and the bit that says that a wake-up changes nothing.
const POWER: u8 = 0x01;
const CONTROL: u64 = 4;
const STATE: u16 = 3;
const D3_HOT: u16 = 3;
const NO_SOFT_RESET: u16 = 1 << 3;
/// What software waits after D3hot (§5.6.1), twice.
const RECOVERY: Duration = Duration::from_millis(20);
const COMMAND: u64 = 4;
/// The registers of the BARs.
const BARS: [u64; 6] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];

/// Sends a function to D3hot and back by its registers, gives it its BARs
/// and command again as the kernel would, and tells what a register of BAR 0 read before,
/// in and after it.
///
/// # Errors
/// [`GuestError`] when it has no such capability or BAR.
pub fn sleep(function: &Function, register: usize) -> Result<(), GuestError> {
    function.decode(true)?;
    let control = function.capability(POWER)? + CONTROL;
    let start = function.bar_address(0)?;
    let memory = Memory::map(start, 4096)?;
    let command = function.word(COMMAND)?;
    let mut bars = Vec::new();
    for register in BARS {
        bars.push((register, function.read::<4>(register)?));
    }
    let awake = memory.read::<u32>(register)?;
    let before = function.word(control)?;
    function.write(control, (before & !STATE | D3_HOT).to_le_bytes())?;
    let state = function.word(control)? & STATE;
    let asleep = memory.read::<u32>(register)?;
    let id = function.dword(0)?;
    function.write(control, (before & !STATE).to_le_bytes())?;
    thread::sleep(RECOVERY);
    let (woken_command, woken_bar) = (function.word(COMMAND)?, function.bar_address(0)?);
    let woken = memory.read::<u32>(register)?;
    for (register, bar) in bars {
        function.write(register, bar)?;
    }
    function.write(COMMAND, command.to_le_bytes())?;
    marker(
        "power",
        &format!(
            "address={function} keeps={} awake={awake} state={state} id={id} asleep={asleep} \
             command={command} woken-command={woken_command} bar={start} woken-bar={woken_bar} \
             woken={woken} again={}",
            u8::from(before & NO_SOFT_RESET != 0),
            memory.read::<u32>(register)?,
        ),
    );
    Ok(())
}
