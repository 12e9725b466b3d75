use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args as ClapArgs;
use passthrough::binding::{Binder, Found, Held, HeldState};

use super::columns::{self, Cell};
use super::style::{Style, Tone};

/// What `airlock bindings` takes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
STATE is `kept` until `airlock release`, `live` while the process in BY runs, or
`stale` when that is gone: `airlock release --stale` gives such a device back.

Exit status:
  0  the bindings are listed
  1  a journal in /run/airlock can't be read; the reason is on standard error
  2  the command line is wrong")]
pub(super) struct Args {
    /// Everything that is known, as JSON
    #[arg(long)]
    json: bool,
}

const HEAD: [&str; 7] = [
    "DEVICE", "GROUP", "DRIVER", "BACK TO", "STATE", "SINCE", "BY",
];

pub(super) fn run(args: &Args) -> ExitCode {
    let binder = Binder::system();
    let (held, unreadable) = match (binder.bindings(), binder.unreadable()) {
        (Ok(held), Ok(unreadable)) => (held, unreadable),
        (Err(error), _) | (_, Err(error)) => return super::fail(&error),
    };
    for journal in &unreadable {
        eprintln!("airlock: {journal}");
    }
    let code = if unreadable.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    let text = if args.json {
        match serde_json::to_string_pretty(&held) {
            Ok(text) => text,
            Err(error) => return super::fail(&error),
        }
    } else if held.is_empty() {
        return code;
    } else {
        table(&held, SystemTime::now(), Style::of_stdout())
    };
    super::say(&text, code)
}

/// A line for each device, columns aligned.
fn table(held: &[Held], now: SystemTime, style: Style) -> String {
    let rows: Vec<[Cell; 7]> = held
        .iter()
        .map(|held| {
            let group = held.group.map_or("-".to_owned(), |group| group.to_string());
            let (state, tone) = match held.state {
                HeldState::Kept => ("kept", None),
                HeldState::Live => ("live", Some(Tone::Good)),
                HeldState::Stale => ("stale", Some(Tone::Caution)),
            };
            [
                (held.device.to_string(), None),
                (group, None),
                (held.driver.clone(), None),
                (back_to(&held.back_to, held.hot_added), None),
                (state.to_owned(), tone),
                (ago(held, now), None),
                (format!("{} {}", held.owner.pid, held.owner.command), None),
            ]
        })
        .collect();
    columns::draw(HEAD, &rows, style)
}

/// What the device had, for reading.
fn back_to(found: &Found, hot_added: bool) -> String {
    let mut text = match &found.driver {
        Some(driver) => driver.clone(),
        None if hot_added => "any driver".to_owned(),
        None => "no driver".to_owned(),
    };
    if let Some(only) = &found.driver_override {
        text = format!("{text}, only {only}");
    }
    match found.virtual_functions {
        None | Some(0) => text,
        Some(count) => format!("{text}, {count} VFs"),
    }
}

fn ago(held: &Held, now: SystemTime) -> String {
    let age = now.duration_since(held.owner.since()).unwrap_or_default();
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passthrough::binding::{Keep, Owner};
    use std::time::Duration;

    fn held(device: &str, state: HeldState) -> Held {
        Held {
            device: device.parse().unwrap(),
            group: None,
            driver: "vfio-pci".to_owned(),
            back_to: Found::default(),
            hot_added: false,
            keep: Keep::WhileHeld,
            owner: Owner {
                pid: 7,
                start_time: 0,
                command: "airlock run".to_owned(),
                since: 1_000,
            },
            state,
            journal: "/run/airlock/bindings/1".into(),
        }
    }

    #[test]
    fn each_device_has_its_line() {
        let mut nic = held("0000:01:00.0", HeldState::Kept);
        nic.back_to = Found {
            driver: Some("igb".to_owned()),
            driver_override: Some("igb".to_owned()),
            virtual_functions: Some(4),
            ..Found::default()
        };
        let mut added = held("0000:02:00.0", HeldState::Live);
        added.hot_added = true;
        let stale = held("platform/uart", HeldState::Stale);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + 3_600);
        assert_eq!(
            table(&[nic, added, stale], now, Style::PLAIN),
            "DEVICE         GROUP  DRIVER    BACK TO               STATE  SINCE   BY\n\
             0000:01:00.0   -      vfio-pci  igb, only igb, 4 VFs  kept   60 min  7 airlock run\n\
             0000:02:00.0   -      vfio-pci  any driver            live   60 min  7 airlock run\n\
             platform/uart  -      vfio-pci  no driver             stale  60 min  7 airlock run"
        );
    }

    #[test]
    fn a_clock_that_was_set_back_does_no_harm() {
        let held = held("0000:01:00.0", HeldState::Kept);
        assert_eq!(ago(&held, SystemTime::UNIX_EPOCH), "0 s");
    }
}
