//! Each guest ends the VM, or says what it found, by the devices under test.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::kernel::{HALT, LOAD, POWER_OFF, has_kvm, kernel, say};
use passthrough::OpenFiles;
use tempfile::TempDir;
use vmm::config::{MemorySize, SerialOutput, VmConfig};
use vmm::outcome::Outcome;
use vmm::timeline::Timeline;
use vmm::vcpu::VcpuEnd;
use vmm::vm::Vm;

struct Guest {
    directory: TempDir,
    config: VmConfig,
}

impl Guest {
    /// A guest that runs `code`; nothing where there is no KVM, which is said.
    fn new(code: &[u8]) -> Option<Self> {
        if !has_kvm() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        std::fs::write(&path, kernel(code)).unwrap();
        let config = VmConfig {
            kernel: path,
            initrd: None,
            cmdline: "tiny".into(),
            memory: MemorySize::new(4 << 20).unwrap(),
            ram: vmm::config::RamConfig::default(),
            cpus: 1,
            cpu: vmm::config::CpuConfig::default(),
            devices: Vec::new(),
            iommu: Default::default(),
            consent: vmm::config::Consent::default(),
            on_viability_loss: vmm::config::OnViabilityLoss::Stop,
            serial: SerialOutput::File(directory.path().join("serial")),
            acknowledgement: vmm::config::Acknowledgement::default(),
        };
        Some(Self { directory, config })
    }

    fn run(&self) -> Outcome {
        let vm = Vm::build(&self.config, OpenFiles::default(), Timeline::start()).unwrap();
        let report = vm.report();
        // A guest that hangs fails the test and not the whole run.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(60));
            report.end(Outcome::HostRefused("the test took too long".into()));
        });
        vm.run(Vec::new()).unwrap()
    }

    fn serial(&self) -> String {
        let path: PathBuf = self.directory.path().join("serial");
        std::fs::read_to_string(path).unwrap()
    }
}

#[test]
fn serial_output_and_power_off() {
    let Some(guest) = Guest::new(&[&say("hello, host\n"), POWER_OFF, HALT].concat()) else {
        return;
    };
    assert!(matches!(guest.run(), Outcome::PowerOff));
    assert_eq!(guest.serial(), "hello, host\n");
}

#[test]
fn a_guest_that_halts_by_itself_can_be_stopped() {
    let Some(mut guest) = Guest::new(&[&say("idle\n"), HALT].concat()) else {
        return;
    };
    guest.config.cpu = "idle=guest".parse().unwrap();
    let vm = match Vm::build(&guest.config, OpenFiles::default(), Timeline::start()) {
        // A host with a bug that must be worked around.
        Err(error) if error.to_string().contains("idle=guest") => return,
        vm => vm.unwrap(),
    };
    let report = vm.report();
    let stats = vm.stats();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        report.end(Outcome::Stopped { signal: None });
    });
    let outcome = vm.run(Vec::new()).unwrap();
    assert!(matches!(outcome, Outcome::Stopped { signal: None }));
    assert_eq!(guest.serial(), "idle\n");
    assert_eq!(stats.read(), vmm::stats::Stats::default());
}

#[test]
fn output_without_a_newline_is_not_lost() {
    let Some(guest) = Guest::new(&[&say("login: "), POWER_OFF, HALT].concat()) else {
        return;
    };
    assert!(matches!(guest.run(), Outcome::PowerOff));
    assert_eq!(guest.serial(), "login: ");
}

#[test]
fn last_words_are_heard_though_nothing_follows_them() {
    // mov dx, 0x3fd; in al, dx: as every guest does before it sends.
    let status = [0x66, 0xba, 0xfd, 0x03, 0xec];
    let Some(guest) = Guest::new(&[&status, &say("alas")[..], HALT].concat()) else {
        return;
    };
    let vm = Vm::build(&guest.config, OpenFiles::default(), Timeline::start()).unwrap();
    let report = vm.report();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let patience = Instant::now() + Duration::from_secs(30);
            while guest.serial() != "alas" && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(10));
            }
            let heard = guest.serial();
            report.end(Outcome::Stopped { signal: None });
            assert_eq!(heard, "alas");
        });
        vm.run(Vec::new()).unwrap();
    });
}

#[test]
fn more_is_said_than_is_kept_back() {
    let text: String = ('a'..='z').cycle().take(1000).collect();
    let Some(guest) = Guest::new(&[&say(&text), POWER_OFF, HALT].concat()) else {
        return;
    };
    assert!(matches!(guest.run(), Outcome::PowerOff));
    assert_eq!(guest.serial(), text);
}

#[test]
fn the_keyboard_controller_resets() {
    // mov al, 0xfe; out 0x64, al
    let Some(guest) = Guest::new(&[&[0xb0, 0xfe, 0xe6, 0x64], HALT].concat()) else {
        return;
    };
    assert!(matches!(guest.run(), Outcome::Reset));
}

#[test]
fn the_reset_register_resets() {
    // mov dx, 0x602; mov al, 0x52; out dx, al
    let Some(guest) = Guest::new(&[&[0x66, 0xba, 0x02, 0x06, 0xb0, 0x52, 0xee], HALT].concat())
    else {
        return;
    };
    assert!(matches!(guest.run(), Outcome::Reset));
}

#[test]
fn a_panic_is_reported() {
    // mov dx, 0x505; mov al, 1; out dx, al
    let Some(guest) = Guest::new(&[&[0x66, 0xba, 0x05, 0x05, 0xb0, 0x01, 0xee], HALT].concat())
    else {
        return;
    };
    assert!(matches!(guest.run(), Outcome::Panicked));
}

#[test]
fn a_triple_fault_is_a_crash() {
    // ud2 with no interrupt table to speak of
    let Some(guest) = Guest::new(&[0x0f, 0x0b]) else {
        return;
    };
    let outcome = guest.run();
    assert!(
        matches!(
            outcome,
            Outcome::Crashed {
                vcpu: 0,
                end: VcpuEnd::TripleFault
            }
        ),
        "{outcome}"
    );
}

#[test]
fn a_halted_guest_can_be_stopped() {
    let Some(guest) = Guest::new(HALT) else {
        return;
    };
    let vm = Vm::build(&guest.config, OpenFiles::default(), Timeline::start()).unwrap();
    let report = vm.report();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        report.end(Outcome::Stopped { signal: None });
    });
    let outcome = vm.run(Vec::new()).unwrap();
    assert!(
        matches!(outcome, Outcome::Stopped { signal: None }),
        "{outcome}"
    );
    thread.join().unwrap();
}

#[test]
fn both_doors_lead_to_the_host_bridge() {
    // EAX = config dword 0 of 00:00.0 by CF8/CFC, ECX = the same by ECAM;
    // powers off when they are equal and no empty slot, resets when not.
    let mut code = vec![
        0x66, 0xba, 0xf8, 0x0c, // mov dx, 0xcf8
        0xb8, 0x00, 0x00, 0x00, 0x80, // mov eax, 0x80000000
        0xef, // out dx, eax
        0x66, 0xba, 0xfc, 0x0c, // mov dx, 0xcfc
        0xed, // in eax, dx
        0x8b, 0x0d, 0x00, 0x00, 0x00, 0xf0, // mov ecx, [0xf0000000]
        0x39, 0xc8, // cmp eax, ecx
        0x75, 0x0a, // jne reset
        0x83, 0xf8, 0xff, // cmp eax, -1
        0x74, 0x05, // je reset
        0xe9, 0x04, 0x00, 0x00, 0x00, // jmp power_off
    ];
    code.extend([0xb0, 0xfe, 0xe6, 0x64]);
    code.extend(POWER_OFF);
    code.extend(HALT);
    let Some(guest) = Guest::new(&code) else {
        return;
    };
    assert!(matches!(guest.run(), Outcome::PowerOff));
}

#[test]
fn the_start_info_is_where_ebx_says() {
    // cmp dword [ebx], magic; jne reset; power off
    let mut code = vec![0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33, 0x75, 0x0a];
    code.extend(POWER_OFF);
    code.extend(HALT);
    code.extend([0xb0, 0xfe, 0xe6, 0x64]);
    let Some(guest) = Guest::new(&code) else {
        return;
    };
    assert!(matches!(guest.run(), Outcome::PowerOff));
}

#[test]
fn a_second_cpu_starts() {
    // The first CPU copies 16-bit code to 0x8000 and sends INIT and start-up
    // interrupts to all others; one of those switches the machine off.
    const AP: &[u8] = &[0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4];
    let mut code = vec![0xbe];
    let copied_from = LOAD + 37;
    code.extend(copied_from.to_le_bytes()); // mov esi, AP
    code.extend([0xbf, 0x00, 0x80, 0x00, 0x00]); // mov edi, 0x8000
    code.extend([0xb9, AP.len() as u8, 0, 0, 0]); // mov ecx, length
    code.extend([0xf3, 0xa4]); // rep movsb
    for command in [0x000c_4500u32, 0x000c_4608] {
        code.extend([0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe]); // mov [0xfee00300], command
        code.extend(command.to_le_bytes());
    }
    assert_eq!(code.len(), 37);
    code.extend(AP);
    // What follows the last command must be 32-bit code for the first CPU.
    let jump = code.len();
    code.splice(37..37, [0xeb, AP.len() as u8]);
    code[1..5].copy_from_slice(&(copied_from + 2).to_le_bytes());
    assert_eq!(code.len(), jump + 2);
    code.extend(HALT);
    let Some(mut guest) = Guest::new(&code) else {
        return;
    };
    guest.config.cpus = 2;
    let outcome = guest.run();
    assert!(matches!(outcome, Outcome::PowerOff), "{outcome}");
}

#[test]
fn memory_that_the_host_has_not_is_refused() {
    let Some(mut guest) = Guest::new(HALT) else {
        return;
    };
    guest.config.memory = MemorySize::new(1 << 50).unwrap();
    let error = Vm::build(&guest.config, OpenFiles::default(), Timeline::start()).unwrap_err();
    assert!(
        error.to_string().contains("more than the host can give"),
        "{error}"
    );
}

#[test]
fn a_kernel_larger_than_memory_is_refused() {
    let Some(mut guest) = Guest::new(&[0; 3 << 20]) else {
        return;
    };
    guest.config.memory = MemorySize::new(2 << 20).unwrap();
    let error = Vm::build(&guest.config, OpenFiles::default(), Timeline::start()).unwrap_err();
    assert!(error.to_string().contains("does not fit"), "{error}");
}

#[test]
fn a_string_is_sent_whole() {
    // mov dx, 0x3f8; mov esi, text; mov ecx, 1000; cld; rep outsb; in al, dx
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xbe];
    let text: String = ('a'..='z').cycle().take(1000).collect();
    let at = LOAD + 0x40;
    code.extend(at.to_le_bytes());
    code.extend([0xb9, 0xe8, 0x03, 0, 0, 0xfc, 0xf3, 0x6e, 0xec]);
    code.extend(POWER_OFF);
    code.extend(HALT);
    code.resize(0x40, 0x90);
    code.extend(text.bytes());
    let Some(guest) = Guest::new(&code) else {
        return;
    };
    assert!(matches!(guest.run(), Outcome::PowerOff));
    assert_eq!(guest.serial(), text);
}
