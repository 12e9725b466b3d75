//! Option ROMs and ports of a NIC that has both.

use lab::host::{Host, HostError};
use lab::machine::{Device, Machine};
use lab::{Backend, on_both_backends, scenario};

use super::guest::{NIC, finish, run};

on_both_backends!(the_rom_is_the_devices_or_a_files_or_hidden);

/// The sum of a ROM as sysfs reads it, or that there is none.
const READ: &str = "rom() {
        rom=/sys/bus/pci/devices/$1/rom
        [ -e $rom ] || { echo none; return; }
        echo 1 >$rom
        echo $(cat $rom | sha256sum) $(cat $rom | wc -c)
        echo 0 >$rom
    }";

/// What a guest finds, with an option of `--device`.
fn rom_of_guest(
    host: &Host,
    backend: Backend,
    option: &str,
) -> Result<(String, Vec<u64>), HostError> {
    let script = format!(
        "{READ}
        unbind {NIC}
        echo 1 >$device/enable
        set -- $(rom $address)
        marker rom \"sum=$1 size=$3\"
        for register in 0 8; do guest-pci ports {NIC} 0 2 $register; done"
    );
    let run = run(host, backend, &script)?.device(format!("{}{option}", host.address("nic")?));
    let markers = finish(host, &run)?;
    let rom = markers.first("rom").expect("the guest said nothing");
    let found = format!("{} {}", rom.value("sum"), rom.value("size"));
    let mut registers = Vec::new();
    for ports in markers.all("ports") {
        assert_eq!(ports.number("size"), Some(32), "{ports:?}");
        let value = ports.number("by-ports").unwrap();
        assert_eq!(ports.number("by-memory"), Some(value), "{ports:?}");
        assert_ne!(value, u64::from(u32::MAX), "{ports:?}");
        registers.push(value);
    }
    Ok((found.trim().to_owned(), registers))
}

fn the_rom_is_the_devices_or_a_files_or_hidden(backend: Backend) {
    let machine = Machine::new(format!("rom-{backend}")).device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        host.bind_vfio(&["nic"])?;
        let address = host.address("nic")?;
        let of_host = host.shell(&format!("{READ}\nrom {address}"))?;
        let of_host = of_host.trim().replace(" - ", " ");
        assert_ne!(of_host, "none");

        let (rom, registers) = rom_of_guest(host, backend, "")?;
        assert_eq!(rom, of_host);
        // Neither its control nor its status register is empty.
        assert_eq!(registers.len(), 2);
        assert!(registers.iter().all(|value| *value != 0), "{registers:x?}");

        // An image of 2 blocks of other content, with the structure that Linux
        // follows to its end at 1ch (PCI Firmware 3.3 §5.1).
        let make = "{ printf '\\125\\252\\002'; head -c 21 /dev/zero; printf '\\034\\0\\0\\0'
            printf 'PCIR\\206\\200\\323\\020\\0\\0\\030\\0\\0\\0\\0\\0\\002\\0\\0\\0\\0\\200\\0\\0'
            yes airlock | head -c 972; } >/run/lab/other.rom; sha256sum </run/lab/other.rom";
        let made = host.shell(make)?;
        let made = made.split_whitespace().next().unwrap().to_owned();
        let (rom, _) = rom_of_guest(host, backend, ",rom=/run/lab/other.rom")?;
        assert_eq!(rom, format!("{made} 1024"));

        let (rom, _) = rom_of_guest(host, backend, ",rom=off")?;
        assert_eq!(rom, "none");
        Ok(())
    });
}
