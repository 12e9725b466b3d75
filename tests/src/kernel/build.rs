use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use thiserror::Error;

use super::config;
use super::version::{KernelVersion, Source};
use crate::apt::{self, AptError, Package};
use crate::cache::{Cache, CacheError};
use crate::command::{CommandError, count_lines, run_logged};
use crate::digest::DigestError;
use crate::prerequisites::{self, PrerequisiteError};
use crate::progress::Meter;

/// Stands for the steps below in the key of the cache: to be raised when they
/// change in a way that changes the kernel.
pub(super) const RECIPE: &str = "2: allnoconfig with the fragment, bzImage and modules";

/// How `make` begins the lines of its log that stand for a finished object.
const OBJECT_LINES: &[&str] = &["  CC ", "  AS "];

/// The name of the kernel in what [`build`] makes.
pub(super) const BZIMAGE: &str = "bzImage";

/// Why the kernel could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Programs that the build needs are not there.
    #[error(transparent)]
    Prerequisite(#[from] PrerequisiteError),
    /// The source could not be had.
    #[error("{source}; or name a ready kernel with {variable}=PATH")]
    Source {
        /// The variable of this version.
        variable: &'static str,
        /// Why.
        source: AptError,
    },
    /// A step of the build failed.
    #[error("cannot build the lab's kernel: {0}")]
    Step(#[from] CommandError),
    /// Options of the fragment have no effect in this kernel.
    #[error(
        "{package} lacks what the files resources/lab-kernel*.config ask of it: {}; look for what these options depend on",
        .unmet.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Unmet {
        /// The package with the source.
        package: String,
        /// The options.
        unmet: Vec<config::Unmet>,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The cache's key could not be computed.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// The place of the one build that runs at a time, see [`Place`].
pub(super) fn place(cache: &Cache) -> Result<Place, CacheError> {
    Place::create(cache.path("build"))
}

/// Downloads the package with the source of `version`, which may be newer each
/// time.
pub(super) fn fetch(place: &Place, version: KernelVersion) -> Result<Package, BuildError> {
    let directory = place.make("package")?;
    let fetched = match version.source() {
        (Source::Named(package), suite) => apt::fetch(package, suite, &directory),
        (Source::Newest(meta), suite) => apt::fetch_newest(meta, suite, &directory),
    };
    fetched.map_err(|source| BuildError::Source {
        variable: version.variable(),
        source,
    })
}

/// Makes the directory `partial` with the kernel, its modules, its
/// configuration and the source package's version in it.
pub(super) fn build(
    place: &Place,
    version: KernelVersion,
    package: &Package,
    partial: &Path,
) -> Result<(), BuildError> {
    if partial.exists() {
        // Of a process that was killed at the end of its build.
        fs::remove_dir_all(partial).map_err(CacheError::at(partial))?;
    }
    let source = unpack(place, package)?;
    configure(place, &source, version, package)?;
    compile(place, &source, version)?;

    fs::create_dir_all(partial).map_err(CacheError::at(partial))?;
    let image = source.join("arch/x86/boot/bzImage");
    for (from, to) in [(image, BZIMAGE), (source.join(".config"), "config")] {
        fs::copy(&from, partial.join(to)).map_err(CacheError::at(&from))?;
    }
    install_modules(place, &source, partial)?;
    let path = partial.join("version");
    let text = format!("{} {}\n", package.name, package.version);
    fs::write(&path, text).map_err(CacheError::at(&path))?;
    Ok(())
}

/// The directory of one build. After a success it's removed; after a failure
/// it stays, with the log that the error names, until the next try.
pub(super) struct Place {
    path: PathBuf,
}

impl Place {
    fn create(path: PathBuf) -> Result<Self, CacheError> {
        if path.exists() {
            fs::remove_dir_all(&path).map_err(CacheError::at(&path))?;
        }
        fs::create_dir_all(&path).map_err(CacheError::at(&path))?;
        Ok(Self { path })
    }

    fn make(&self, name: &str) -> Result<PathBuf, CacheError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(CacheError::at(&path))?;
        Ok(path)
    }

    fn log(&self) -> PathBuf {
        self.path.join("build.log")
    }

    pub(super) fn finish(self) {
        // What is left over is removed before the next build.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn unpack(place: &Place, package: &Package) -> Result<PathBuf, BuildError> {
    let mut meter = Meter::start("unpacking the kernel's source");
    let log = place.log();
    let outer = place.make("deb")?;
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--extract").arg(&package.file).arg(&outer);
    run_logged(&mut dpkg, &log, &mut meter, |_| String::new())?;
    let archive = outer.join(format!("usr/src/{}.tar.xz", package.name));
    let source = place.make("source")?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(archive);
    tar.args(["--strip-components", "1", "--directory"])
        .arg(&source);
    run_logged(&mut tar, &log, &mut meter, |_| String::new())?;
    meter.finish("done");
    Ok(source)
}

fn make(source: &Path) -> Command {
    let mut command = Command::new("make");
    // What the user has set for other builds must not change this one.
    for variable in [
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
        "ARCH",
        "CROSS_COMPILE",
        "LOCALVERSION",
    ] {
        command.env_remove(variable);
    }
    command
        .current_dir(source)
        .env("LC_ALL", "C.UTF-8")
        .env("KBUILD_BUILD_USER", "lab")
        .env("KBUILD_BUILD_HOST", "lab");
    command
}

fn configure(
    place: &Place,
    source: &Path,
    version: KernelVersion,
    package: &Package,
) -> Result<(), BuildError> {
    let fragment = place.path.join("fragment");
    fs::write(&fragment, version.fragment()).map_err(CacheError::at(&fragment))?;
    let mut meter = Meter::quiet_at_first("configuring the kernel");
    let mut command = make(source);
    command
        .env("KCONFIG_ALLCONFIG", &fragment)
        .arg("allnoconfig");
    run_logged(&mut command, &place.log(), &mut meter, |_| String::new())?;
    let path = source.join(".config");
    let configuration = fs::read_to_string(&path).map_err(CacheError::at(&path))?;
    let unmet = config::unmet(version.fragment(), &configuration);
    if unmet.is_empty() {
        return Ok(());
    }
    Err(BuildError::Unmet {
        package: package.name.clone(),
        unmet,
    })
}

fn compile(place: &Place, source: &Path, version: KernelVersion) -> Result<(), BuildError> {
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut meter = Meter::start(format!("building {version} with {jobs} jobs"));
    let mut command = make(source);
    command
        .arg(format!("-j{jobs}"))
        .args(["bzImage", "modules"]);
    run_logged(&mut command, &place.log(), &mut meter, |log| {
        let done = count_lines(log, OBJECT_LINES);
        format!("about {} %", (done * 100 / version.objects()).min(99))
    })?;
    meter.finish("done");
    Ok(())
}

/// Puts the modules where [`super::modules_of`] looks for them, with the indexes
/// that loading by name and by alias needs. The kernel's own step would want
/// kmod's `depmod`, which a machine without modules doesn't have; busybox, which
/// the lab needs anyway, has one too.
fn install_modules(place: &Place, source: &Path, partial: &Path) -> Result<(), BuildError> {
    let mut meter = Meter::quiet_at_first("installing the kernel's modules");
    let root = place.make("modules")?;
    let mut install = make(source);
    install
        .args(["modules_install", "INSTALL_MOD_STRIP=1", "DEPMOD=true"])
        .arg(format!("INSTALL_MOD_PATH={}", root.display()));
    run_logged(&mut install, &place.log(), &mut meter, |_| String::new())?;
    let installed = root.join("lib/modules");
    let release = source.join("include/config/kernel.release");
    let release = fs::read_to_string(&release).map_err(CacheError::at(&release))?;
    let release = release.trim();
    // A link to the source, which does not stay.
    let link = installed.join(release).join("build");
    fs::remove_file(&link).map_err(CacheError::at(&link))?;

    let busybox = prerequisites::find_static_program("busybox");
    let mut depmod = Command::new(busybox.unwrap_or_else(|| "busybox".into()));
    depmod.args(["depmod", "-b"]).arg(&root).arg(release);
    run_logged(&mut depmod, &place.log(), &mut meter, |_| String::new())?;
    let modules = partial.join("modules");
    fs::rename(&installed, &modules).map_err(CacheError::at(&modules))?;
    meter.finish("done");
    Ok(())
}
