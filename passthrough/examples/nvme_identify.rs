//! A driver in user space: reads the Identify page of an NVMe controller that
//! VFIO has, through this crate alone and without KVM.
//!
//!     cargo run -p passthrough --example nvme_identify -- 0000:01:00.0 [iommufd|type1]

use std::env;
use std::error::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use passthrough::host::{Host, Survey};
use passthrough::plan::{Plan, Request};
use passthrough::vfio::{DeviceBackend, IrqIndex};
use passthrough::{OpenRequest, Pages, open};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// VFIO's regions: BAR 0 with the controller's registers, and config space.
const REGISTERS: u32 = 0;
const CONFIG: u32 = 7;
/// Controller registers (NVM Express 2.0 §3.1.3).
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const SUBMISSION_TAIL: u64 = 0x1000;
/// Two entries a queue: the least that there may be.
const LAST_ENTRY: u32 = 1;
const IDENTIFY: u32 = 0x06;
const CONTROLLER: u32 = 1;
/// The command register: memory decoding and bus mastering.
const COMMAND: u64 = 0x04;
const MEMORY_AND_MASTER: u16 = 0b110;
const LIMIT: Duration = Duration::from_secs(10);

/// Where the device finds our memory: three pages, one for each queue and one
/// for the answer.
const IOVA: u64 = 0x10_0000;
const PAGE: u64 = 0x1000;
const COMPLETIONS: u64 = PAGE;
const ANSWER: u64 = 2 * PAGE;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [device] => identify(device, None),
        [device, backend] => identify(device, Some(backend)),
        _ => Err("name a device, and perhaps iommufd or type1".into()),
    };
    match result {
        Ok(text) => println!("{text}"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn identify(device: &str, backend: Option<&String>) -> Result<String> {
    // The plan says what would go wrong, before anything is opened.
    let survey = Survey::read(&Host::system())?;
    let request = Request {
        devices: vec![device.to_owned()],
        backend: backend.map(|name| name.parse()).transpose()?,
        without_kvm: true,
        ..Request::default()
    };
    let plan = Plan::make(&survey, &request);
    if !plan.is_go() {
        return Err(plan.to_string().into());
    }
    let opened = open(OpenRequest::new(&plan.devices, plan.backend))?;
    let device = opened.devices.first().ok_or("no device was opened")?;

    // Memory first, then the right to reach it.
    let memory = Arc::new(Pages::new(3 * PAGE as usize)?);
    opened.space.map(IOVA, memory.clone())?;
    let mut command = [0; 2];
    device.region_read(CONFIG, COMMAND, &mut command)?;
    let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
    device.region_write(CONFIG, COMMAND, &command.to_le_bytes())?;

    let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    device.set_irqs(IrqIndex::Msix, 0, &[Some(event.as_fd())])?;
    let text = ask(&**device, &memory, &event);

    // What the device may still be doing ends before its memory goes.
    set(&**device, CC, 0)?;
    wait_for_ready(&**device, false)?;
    device.disable_irqs(IrqIndex::Msix)?;
    opened.space.unmap(IOVA)?;
    Ok(format!("{} by {}", text?, opened.interface))
}

/// Starts the controller with its admin queue and has it identify itself.
fn ask(device: &dyn DeviceBackend, memory: &Pages, event: &OwnedFd) -> Result<String> {
    set(device, CC, 0)?;
    wait_for_ready(device, false)?;
    set(device, AQA, LAST_ENTRY << 16 | LAST_ENTRY)?;
    for (register, iova) in [(ASQ, IOVA), (ACQ, IOVA + COMPLETIONS)] {
        set(device, register, iova as u32)?;
        set(device, register + 4, (iova >> 32) as u32)?;
    }
    // Enabled, with submission entries of 64 and completion entries of 16 bytes.
    set(device, CC, 4 << 20 | 6 << 16 | 1)?;
    wait_for_ready(device, true)?;

    // One command: its code and number, the page for the answer, and which one.
    for (word, value) in [
        (0, IDENTIFY | 7 << 16),
        (6, (IOVA + ANSWER) as u32),
        (10, CONTROLLER),
    ] {
        memory.store_u32(4 * word, value);
    }
    set(device, SUBMISSION_TAIL, 1)?;
    wait_for_interrupt(event)?;
    // The last word of a completion has its phase, its status and the number.
    let done = memory.load_u32(COMPLETIONS + 12);
    if done & 0xffff != 7 || done >> 16 & 1 == 0 {
        return Err(format!("an interrupt without a completion ({done:#x})").into());
    }
    if done >> 17 != 0 {
        return Err(format!("the controller refuses with status {:#x}", done >> 17).into());
    }
    let text = |offset: u64, size: usize| {
        let mut bytes = vec![0; size];
        memory.read(ANSWER + offset, &mut bytes);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    };
    let (serial, model, firmware) = (text(4, 20), text(24, 40), text(64, 8));
    Ok(format!(
        "model '{model}' serial '{serial}' firmware '{firmware}'"
    ))
}

fn set(device: &dyn DeviceBackend, register: u64, value: u32) -> Result<()> {
    Ok(device.region_write(REGISTERS, register, &value.to_le_bytes())?)
}

fn wait_for_ready(device: &dyn DeviceBackend, ready: bool) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let mut status = [0; 4];
        device.region_read(REGISTERS, CSTS, &mut status)?;
        if (status[0] & 1 == 1) == ready {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(format!("the controller does not become ready={ready}").into())
}

fn wait_for_interrupt(event: &OwnedFd) -> Result<()> {
    let limit = LIMIT.try_into()?;
    match poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&limit))? {
        0 => Err("the controller did not interrupt".into()),
        _ => Ok(()),
    }
}
