//! `cargo numbers`; see `lab::numbers`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use lab::kernel::KernelVersion;
use lab::numbers::{self, Pages, Part, Peer, Report, inside};

/// Measures what it costs to give a device and memory to a guest, beside QEMU,
/// and prints one table. Everything runs in nested hosts, and takes more than an
/// hour.
#[derive(Debug, Parser)]
#[command(name = "numbers", max_term_width = 100)]
struct Cli {
    /// The nested host runs the newest kernel, whose iommufd maps by file
    #[arg(long)]
    recent: bool,
    /// How often each start is measured
    #[arg(long, value_name = "N", default_value_t = numbers::ROUNDS,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Measure this monitor too, besides QEMU: cloud-hypervisor=PATH, crosvm=PATH,
    /// alioth=PATH or kvmtool=PATH (repeatable)
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<Peer>,
    /// Measure these parts only
    #[arg(long, value_name = "PART,…", value_delimiter = ',')]
    only: Vec<Part>,
    /// Write the same as data, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the start of the smallest guest with a device (SVG)
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    #[command(subcommand)]
    inside: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What runs in the nested host
    #[command(subcommand, hide = true)]
    Inside(Inside),
}

#[derive(Debug, Subcommand)]
enum Inside {
    /// Map memory for a device
    Map {
        device: String,
        backend: String,
        pages: Pages,
        mib: u64,
        rounds: u32,
    },
    /// Start a monitor and note when its guest runs
    Watch {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.inside {
        Some(Command::Inside(inside)) => run_inside(inside),
        None => measure(&cli),
    };
    result.unwrap_or_else(|error| {
        let _ = io::stderr().write_all(format!("numbers: {error}\n").as_bytes());
        ExitCode::FAILURE
    })
}

fn measure(cli: &Cli) -> inside::Result<ExitCode> {
    let kernel = if cli.recent {
        KernelVersion::Recent
    } else {
        KernelVersion::Longterm
    };
    let parts = match cli.only.as_slice() {
        [] => Part::value_variants(),
        parts => parts,
    };
    let mut report = Report::default();
    let measured = numbers::measure(kernel, cli.rounds, &cli.peers, parts, &mut report);
    if report.kernel.is_empty()
        && let Err(error) = measured
    {
        return Err(error.into());
    }
    let write = |path: &Path, text: String| {
        fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    if let Some(path) = &cli.json {
        write(path, serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(path) = &cli.chart {
        write(path, report.chart().to_string())?;
    }
    write!(io::stdout(), "{report}")?;
    measured?;
    Ok(ExitCode::SUCCESS)
}

fn run_inside(inside: Inside) -> inside::Result<ExitCode> {
    match inside {
        Inside::Map {
            device,
            backend,
            pages,
            mib,
            rounds,
        } => {
            let times = inside::map(&device, &backend, pages, mib, rounds)?;
            writeln!(io::stdout(), "{}", serde_json::to_string(&times)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Inside::Watch { command } => {
            let status = inside::watch(&command, inside::tell)?;
            let code = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
    }
}
