//! The programs of this workspace that run in the nested host, built by cargo.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use thiserror::Error;

use crate::cache::{Cache, CacheError};
use crate::command::{CommandError, count_lines, run_logged_to};
use crate::progress::Meter;

/// The agent's name, as a cargo target and in the nested host.
pub const AGENT: &str = "lab-agent";
/// The name of the program that does to PCI functions in a guest what a shell
/// can't.
pub const GUEST_PCI: &str = "guest-pci";
/// airlock's name, as a cargo target and in the nested host.
pub const AIRLOCK: &str = "airlock";

/// The examples of the crate `passthrough`, as cargo targets and in the nested
/// host.
pub const EXAMPLES: [&str; 2] = ["embed", "nvme_identify"];

/// The variable that names an airlock binary to test instead of this
/// workspace's.
pub const AIRLOCK_VARIABLE: &str = "AIRLOCK_BIN";

/// Why the programs could not be had.
#[derive(Debug, Error)]
pub enum BinariesError {
    /// cargo failed.
    #[error("cannot build the programs that run in the nested host: {0}")]
    Cargo(#[from] CommandError),
    /// cargo said nothing of a program.
    #[error("cargo built no program named {0}")]
    Missing(String),
    /// The cache, where cargo's output goes, cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Builds the programs, in release mode, and gives their paths by name.
///
/// # Errors
/// [`BinariesError`] when cargo fails.
pub fn build(cache: &Cache) -> Result<BTreeMap<String, PathBuf>, BinariesError> {
    let given = env::var_os(AIRLOCK_VARIABLE).map(PathBuf::from);
    let mut wanted = vec![AGENT];
    if given.is_none() {
        wanted.push(AIRLOCK);
    }
    wanted.extend(EXAMPLES);
    let mut built = cargo(cache, &wanted)?;
    if let Some(path) = given {
        built.insert(AIRLOCK.to_owned(), path);
    }
    for name in [AGENT, AIRLOCK].into_iter().chain(EXAMPLES) {
        if !built.contains_key(name) {
            return Err(BinariesError::Missing(name.to_owned()));
        }
    }
    Ok(built)
}

/// Builds a program of this crate, in release mode and with no need of a shared
/// library, and gives its path: a guest has nothing but its initramfs.
///
/// # Errors
/// [`BinariesError`] when cargo fails.
pub fn build_static(cache: &Cache, name: &str) -> Result<PathBuf, BinariesError> {
    let arguments = ["rustc", "--package", "tests", "--bin", name];
    let flags = [
        "--",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "strip=symbols",
    ];
    let built = run_cargo(cache, &[name], &arguments, &flags)?.remove(name);
    built.ok_or_else(|| BinariesError::Missing(name.to_owned()))
}

fn cargo(cache: &Cache, wanted: &[&str]) -> Result<BTreeMap<String, PathBuf>, BinariesError> {
    let mut arguments = vec!["build"];
    for name in wanted {
        let (package, kind) = match *name {
            AGENT => ("tests", "--bin"),
            AIRLOCK => ("vmm", "--bin"),
            _ => ("passthrough", "--example"),
        };
        arguments.extend(["--package", package, kind, name]);
    }
    run_cargo(cache, wanted, &arguments, &[])
}

/// Runs cargo in release mode, with `flags` at the end of its command line.
fn run_cargo(
    cache: &Cache,
    wanted: &[&str],
    arguments: &[&str],
    flags: &[&str],
) -> Result<BTreeMap<String, PathBuf>, BinariesError> {
    let _lock = cache.lock("cargo.lock", "it builds airlock")?;
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // Set for whatever cargo runs; a caller that was started otherwise has it in PATH.
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let messages = cache.path("cargo.json");
    let log = cache.path("cargo.log");
    for stale in [&messages, &log] {
        // There may be none yet.
        let _ = fs::remove_file(stale);
    }
    let output = File::create(&messages).map_err(CacheError::at(&messages))?;
    let mut command = Command::new(program);
    command
        .current_dir(workspace)
        .args(arguments)
        .args(["--release", "--message-format=json-render-diagnostics"])
        .args(flags);
    let mut meter = Meter::quiet_at_first(format!("building {}", wanted.join(" and ")));
    run_logged_to(&mut command, Stdio::from(output), &log, &mut meter, |log| {
        format!("{} crates", count_lines(log, &["   Compiling "]))
    })?;
    meter.finish("done");
    let text = fs::read_to_string(&messages).map_err(CacheError::at(&messages))?;
    Ok(executables(&text))
}

/// The programs that cargo's messages name.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let mut found = BTreeMap::new();
    for line in messages.lines() {
        // Messages of other kinds have neither field.
        let Ok(message) = serde_json::from_str::<Message>(line) else {
            continue;
        };
        if let (Some(path), Some(target)) = (message.executable, message.target) {
            found.insert(target.name, path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"lab","kind":["lib"]},"executable":null}
{"reason":"build-script-executed","package_id":"x"}
not json
{"reason":"compiler-artifact","target":{"name":"airlock","kind":["bin"]},"executable":"/t/release/airlock"}
{"reason":"build-finished","success":true}"#;
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found["airlock"], Path::new("/t/release/airlock"));
    }
}
