use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use super::sources::{Source, machine_sources};
use crate::command::{CommandError, output_of, run_logged};
use crate::progress::{Meter, say};

const ETC: &str = "/etc/apt";

/// A package that was downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The `.deb` file.
    pub file: PathBuf,
}

/// Why a package could not be had.
#[derive(Debug, Error)]
pub enum AptError {
    /// No source of the machine looks like Debian's archive.
    #[error(
        "no source in {ETC}/sources.list or {ETC}/sources.list.d is one of Debian's archive (component main), so there is no mirror to take {package} from; add one"
    )]
    NoMirror {
        /// The package.
        package: String,
    },
    /// None of the mirrors has it.
    #[error(
        "no mirror of this machine has {package} in suite {suite}; tried {}{}",
        .tried.join(", "),
        .last.as_ref().map(|error| format!("; the last said: {error}")).unwrap_or_default()
    )]
    NotFound {
        /// The package.
        package: String,
        /// The suite that was asked for.
        suite: String,
        /// The mirrors.
        tried: Vec<String>,
        /// What the last one's trouble was.
        last: Option<Box<CommandError>>,
    },
    /// A file of the private configuration could not be written or read.
    #[error("cannot use {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program could not be run.
    #[error(transparent)]
    Command(#[from] CommandError),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> AptError {
    let path = path.to_owned();
    move |source| AptError::Io { path, source }
}

/// Downloads `package` into `directory` (which must be empty): as the machine's
/// own apt offers it, or else from `suite` on the machine's mirrors.
///
/// # Errors
/// [`AptError`] when nothing offers it.
pub fn fetch(package: &str, suite: &str, directory: &Path) -> Result<Package, AptError> {
    let own = Apt { config: None };
    if let Some(version) = own.candidate(package)? {
        match own.download(package, version, directory) {
            // Its lists may be older than the mirror's content.
            Err(AptError::Command(error)) => {
                let first = error.to_string();
                let first = first.lines().next().unwrap_or_default();
                say(&format!("with the machine's own package lists, {first}"));
            }
            result => return result,
        }
    }
    from_mirrors(package, suite, directory, |_| Ok(Some(package.to_owned())))
}

/// Downloads into `directory` (which must be empty) what the package `meta`
/// depends on in `suite`, as a package does that is there to name the newest of
/// its kind. The machine's own apt is not asked: its `meta` is its own suite's.
///
/// # Errors
/// [`AptError`] when no mirror of the machine offers it.
pub fn fetch_newest(meta: &str, suite: &str, directory: &Path) -> Result<Package, AptError> {
    from_mirrors(meta, suite, directory, |apt| apt.dependency(meta))
}

/// Downloads from `suite` on one of the machine's mirrors the package that `name`
/// says; `wanted` stands for it in messages.
fn from_mirrors(
    wanted: &str,
    suite: &str,
    directory: &Path,
    name: impl Fn(&Apt) -> Result<Option<String>, AptError>,
) -> Result<Package, AptError> {
    let mirrors = mirrors(&machine_sources(Path::new(ETC)));
    if mirrors.is_empty() {
        return Err(AptError::NoMirror {
            package: wanted.to_owned(),
        });
    }
    let settings = acquire_settings()?;
    let mut tried = Vec::new();
    let mut last = None;
    for (number, mirror) in mirrors.iter().enumerate() {
        tried.push(mirror.uris.join(" "));
        let apt = Apt::private(
            &directory.join(format!("apt{number}")),
            &stanza(mirror, suite),
            &settings,
        )?;
        if let Err(error) = apt.update(directory) {
            last = Some(Box::new(error));
            continue;
        }
        let Some(package) = name(&apt)? else {
            continue;
        };
        if let Some(version) = apt.candidate(&package)? {
            return apt.download(&package, version, directory);
        }
    }
    Err(AptError::NotFound {
        package: wanted.to_owned(),
        suite: suite.to_owned(),
        tried,
        last,
    })
}

/// Those of `sources` that can be Debian's archive itself: they have the
/// component main, and a suite that is a plain word (others' archives and the
/// security archive have suites such as `bookworm-security` or a path).
fn mirrors(sources: &[Source]) -> Vec<Source> {
    let plain = |suite: &String| suite.bytes().all(|byte| byte.is_ascii_alphabetic());
    let mut mirrors: Vec<Source> = Vec::new();
    for source in sources {
        let debian = source
            .components
            .iter()
            .any(|component| component == "main")
            && source.suites.iter().any(plain);
        if debian && !mirrors.iter().any(|known| known.uris == source.uris) {
            mirrors.push(source.clone());
        }
    }
    mirrors
}

/// A source for `suite` at the place and with the options of `mirror`.
fn stanza(mirror: &Source, suite: &str) -> String {
    let mut text = format!(
        "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n",
        mirror.uris.join(" ")
    );
    for (name, value) in &mirror.options {
        text.push_str(&format!("{name}: {value}\n"));
    }
    text
}

/// How the machine's apt reaches its mirrors (proxies, time limits, …), as lines
/// of a configuration file. Its hooks are left out: they act on the machine.
fn acquire_settings() -> Result<String, AptError> {
    let dump = output_of(Command::new("apt-config").arg("dump"))?.unwrap_or_default();
    Ok(keep_acquire(&dump))
}

fn keep_acquire(dump: &str) -> String {
    let kept = dump.lines().filter(|line| line.starts_with("Acquire::"));
    kept.flat_map(|line| [line, "\n"]).collect()
}

/// apt's programs with a configuration.
struct Apt {
    /// The configuration file; none: the machine's own.
    config: Option<PathBuf>,
}

impl Apt {
    /// A configuration that reads and writes only in `directory`.
    fn private(directory: &Path, sources: &str, settings: &str) -> Result<Self, AptError> {
        for name in ["lists/partial", "cache/archives/partial", "sources"] {
            let path = directory.join(name);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        let write = |name: &str, content: &str| {
            let path = directory.join(name);
            fs::write(&path, content).map_err(at(&path))
        };
        write("status", "")?;
        write("sources/lab.sources", sources)?;
        write("apt.conf", &private_config(directory, settings))?;
        Ok(Self {
            config: Some(directory.join("apt.conf")),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C.UTF-8");
        if let Some(config) = &self.config {
            command.env("APT_CONFIG", config);
        }
        command
    }

    fn update(&self, directory: &Path) -> Result<(), CommandError> {
        let mut meter = Meter::start("reading the mirror's package list");
        let log = directory.join("update.log");
        run_logged(
            self.command("apt-get").arg("update"),
            &log,
            &mut meter,
            |_| String::new(),
        )?;
        meter.finish("done");
        Ok(())
    }

    /// The version that would be installed.
    fn candidate(&self, package: &str) -> Result<Option<String>, AptError> {
        let mut command = self.command("apt-cache");
        let policy = output_of(command.args(["policy", package]))?;
        Ok(policy.as_deref().and_then(parse_candidate))
    }

    /// What the package depends on first.
    fn dependency(&self, package: &str) -> Result<Option<String>, AptError> {
        let mut command = self.command("apt-cache");
        let depends = output_of(command.args(["depends", "--important", package]))?;
        Ok(depends.as_deref().and_then(parse_dependency))
    }

    fn download(
        &self,
        package: &str,
        version: String,
        directory: &Path,
    ) -> Result<Package, AptError> {
        let place = directory.join("download");
        fs::create_dir_all(&place).map_err(at(&place))?;
        let mut meter = Meter::start(format!("downloading {package} {version}"));
        let mut command = self.command("apt-get");
        command
            .args(["download", &format!("{package}={version}")])
            // Its own files are the lab's; there is no other user to protect.
            .args(["-o", "APT::Sandbox::User=root"])
            .current_dir(&place);
        run_logged(
            &mut command,
            &directory.join("download.log"),
            &mut meter,
            |_| format!("{} MB", size_of_files(&place) / 1_000_000),
        )?;
        meter.finish("done");
        let entries = fs::read_dir(&place).map_err(at(&place))?;
        let file = entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| at(&place)(io::Error::other("apt-get downloaded no .deb file")))?;
        Ok(Package {
            name: package.to_owned(),
            version,
            file,
        })
    }
}

/// The configuration file itself. It is read before `/etc/apt/apt.conf.d`, and
/// keeps apt from reading that.
fn private_config(directory: &Path, settings: &str) -> String {
    let path = |name: &str| directory.join(name).display().to_string();
    format!(
        "{settings}\
         Dir::Etc::main \"/dev/null\";\n\
         Dir::Etc::parts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::Etc::sourcelist \"/dev/null\";\n\
         Dir::Etc::sourceparts \"{}\";\n\
         Dir::State::lists \"{}\";\n\
         Dir::State::status \"{}\";\n\
         Dir::Cache \"{}\";\n\
         Acquire::Languages \"none\";\n\
         APT::Sandbox::User \"root\";\n\
         Debug::NoLocking \"true\";\n",
        path("sources"),
        path("lists"),
        path("status"),
        path("cache"),
    )
}

fn parse_candidate(policy: &str) -> Option<String> {
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))
        .map(str::trim)
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
}

fn parse_dependency(depends: &str) -> Option<String> {
    depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends:"))
        .map(|name| name.trim().to_owned())
}

fn size_of_files(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apt::parse_one_line;

    #[test]
    fn mirrors_are_the_sources_that_can_be_debians_own() {
        let sources = parse_one_line(
            "deb http://m.example/debian bookworm main\n\
             deb http://m.example/debian bookworm-updates main\n\
             deb http://m.example/debian-security bookworm-security main\n\
             deb http://other.example/repo bookworm stable\n\
             deb http://other.example/flat ./\n\
             deb [signed-by=/k] https://second.example/debian trixie contrib main\n",
        );
        let mirrors = mirrors(&sources);
        let uris: Vec<_> = mirrors
            .iter()
            .map(|mirror| mirror.uris[0].as_str())
            .collect();
        assert_eq!(
            uris,
            ["http://m.example/debian", "https://second.example/debian"]
        );
        assert_eq!(
            stanza(&mirrors[1], "trixie"),
            "Types: deb\nURIs: https://second.example/debian\nSuites: trixie\nComponents: main\nsigned-by: /k\n"
        );
    }

    #[test]
    fn the_candidate_is_read_from_apts_words() {
        let policy = "linux-source-6.12:\n  Installed: (none)\n  Candidate: 6.12.107-1\n";
        assert_eq!(parse_candidate(policy), Some("6.12.107-1".into()));
        let none = "x:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(parse_candidate(none), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn the_newest_is_what_its_meta_package_depends_on() {
        let depends = "linux-source\n  Depends: linux-source-7.3\n  Depends: other\n";
        assert_eq!(parse_dependency(depends), Some("linux-source-7.3".into()));
        assert_eq!(parse_dependency("linux-source\n"), None);
    }

    #[test]
    fn the_private_configuration_keeps_proxies_and_no_hooks() {
        let dump = "APT::Update::Post-Invoke:: \"rm x\";\n\
                    Acquire::http::Proxy \"http://p.example\";\n\
                    DPkg::Post-Invoke:: \"rm y\";\n";
        let config = private_config(Path::new("/private"), &keep_acquire(dump));
        assert!(config.starts_with("Acquire::http::Proxy \"http://p.example\";\n"));
        assert!(!config.contains("Invoke"));
        assert!(config.contains("Dir::State::lists \"/private/lists\";"));
        let written = config.lines().filter(|line| line.starts_with("Dir::"));
        for line in written {
            assert!(
                line.contains("\"/private/") || line.contains("\"/dev/null\""),
                "{line} reaches outside"
            );
        }
    }
}
