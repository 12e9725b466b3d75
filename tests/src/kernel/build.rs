use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use thiserror::Error;

use super::{FRAGMENT, config};
use crate::apt::{self, AptError};
use crate::cache::{Cache, CacheError};
use crate::command::{CommandError, count_lines, run_logged};
use crate::digest::{DigestError, sha256_parts};
use crate::prerequisites::{self, PrerequisiteError};
use crate::progress::{Meter, say};

/// The package that holds the kernel's source, and the Debian suite that has it.
const PACKAGE: &str = "linux-source-6.12";
const SUITE: &str = "trixie";

/// Stands for the steps below in the key of the cache: to be raised when they
/// change in a way that changes the kernel.
const RECIPE: &str = "2: allnoconfig with the fragment, bzImage and modules";

/// How `make` begins the lines of its log that stand for a finished object.
const OBJECT_LINES: &[&str] = &["  CC ", "  AS "];

/// About how many objects there are, for the progress in percent.
const OBJECTS: usize = 1_400;

/// Why the kernel could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Programs that the build needs are not there.
    #[error(transparent)]
    Prerequisite(#[from] PrerequisiteError),
    /// The source could not be had.
    #[error(transparent)]
    Source(#[from] AptError),
    /// A step of the build failed.
    #[error("cannot build the lab's kernel: {0}")]
    Step(#[from] CommandError),
    /// Options of the fragment have no effect in this kernel.
    #[error(
        "the lab's kernel lacks what resources/lab-kernel.config asks for: {}; look for what these options depend on",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Unmet(Vec<config::Unmet>),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The cache's key could not be computed.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// The kernel out of the cache, or built into it. A kernel in the cache is used
/// also when Debian has a newer version of the source by now: asking would need
/// the network at every start.
pub(super) fn cached(cache: &Cache) -> Result<PathBuf, BuildError> {
    let what = "it builds the lab's kernel, which takes some minutes";
    let directory = cache.entry(&entry_name()?, what, |partial| build(cache, partial))?;
    Ok(directory.join("bzImage"))
}

/// Whether the kernel is in the cache.
pub(super) fn is_cached(cache: &Cache) -> Result<bool, DigestError> {
    Ok(cache.path(&entry_name()?).exists())
}

/// The name of the cache's entry: it depends on all that the kernel does.
fn entry_name() -> Result<String, DigestError> {
    let key = sha256_parts(&[PACKAGE.as_bytes(), FRAGMENT.as_bytes(), RECIPE.as_bytes()])?;
    Ok(format!("kernel-{}", key.short()))
}

/// Makes the directory `partial` with the kernel, its modules, its
/// configuration and the source package's version in it.
fn build(cache: &Cache, partial: &Path) -> Result<(), BuildError> {
    prerequisites::ensure(cache, prerequisites::BUILD)?;
    let place = Place::create(cache.path("build"))?;
    if partial.exists() {
        // Of a process that was killed at the end of its build.
        fs::remove_dir_all(partial).map_err(CacheError::at(partial))?;
    }
    say("there is no kernel for the lab yet; it is built once, in some minutes");
    let package = apt::fetch(PACKAGE, SUITE, &place.make("package")?)?;
    let source = unpack(&place, &package.file)?;
    configure(&place, &source)?;
    compile(&place, &source)?;

    fs::create_dir_all(partial).map_err(CacheError::at(partial))?;
    let image = source.join("arch/x86/boot/bzImage");
    for (from, to) in [(image, "bzImage"), (source.join(".config"), "config")] {
        fs::copy(&from, partial.join(to)).map_err(CacheError::at(&from))?;
    }
    install_modules(&place, &source, partial)?;
    let version = partial.join("version");
    let text = format!("{PACKAGE} {}\n", package.version);
    fs::write(&version, text).map_err(CacheError::at(&version))?;
    place.finish();
    Ok(())
}

/// The directory of one build. After a success it's removed; after a failure
/// it stays, with the log that the error names, until the next try.
struct Place {
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

    fn finish(self) {
        // What is left over is removed before the next build.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn unpack(place: &Place, package: &Path) -> Result<PathBuf, BuildError> {
    let mut meter = Meter::start("unpacking the kernel's source");
    let log = place.log();
    let outer = place.make("deb")?;
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--extract").arg(package).arg(&outer);
    run_logged(&mut dpkg, &log, &mut meter, |_| String::new())?;
    let archive = outer.join(format!("usr/src/{PACKAGE}.tar.xz"));
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

fn configure(place: &Place, source: &Path) -> Result<(), BuildError> {
    let fragment = place.path.join("fragment");
    fs::write(&fragment, FRAGMENT).map_err(CacheError::at(&fragment))?;
    let mut meter = Meter::quiet_at_first("configuring the kernel");
    let mut command = make(source);
    command
        .env("KCONFIG_ALLCONFIG", &fragment)
        .arg("allnoconfig");
    run_logged(&mut command, &place.log(), &mut meter, |_| String::new())?;
    let path = source.join(".config");
    let configuration = fs::read_to_string(&path).map_err(CacheError::at(&path))?;
    let unmet = config::unmet(FRAGMENT, &configuration);
    if unmet.is_empty() {
        return Ok(());
    }
    Err(BuildError::Unmet(unmet))
}

fn compile(place: &Place, source: &Path) -> Result<(), BuildError> {
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut meter = Meter::start(format!("building the kernel with {jobs} jobs"));
    let mut command = make(source);
    command
        .arg(format!("-j{jobs}"))
        .args(["bzImage", "modules"]);
    run_logged(&mut command, &place.log(), &mut meter, |log| {
        let done = count_lines(log, OBJECT_LINES);
        format!("about {} %", (done * 100 / OBJECTS).min(99))
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
