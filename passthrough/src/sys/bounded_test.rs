use std::fs::{self, File, OpenOptions};
use std::io::{Read, pipe};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use super::*;

const SOON: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

/// Fills a pipe, so that the next write to it waits.
fn fill(pipe: &impl AsFd) {
    let fd = pipe.as_fd().as_raw_fd();
    // SAFETY: the call touches no memory.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) };
    while super::write(fd, &[0; 4096]) > 0 {}
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFL, flags) };
}

/// The processes that have `file` open, this one left out.
fn users_of(file: &Path) -> Vec<u32> {
    let file = file.canonicalize().unwrap();
    let mut users = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"));
        let has = descriptors
            .into_iter()
            .flatten()
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file));
        if has && pid != std::process::id() {
            users.push(pid);
        }
    }
    users
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

fn file(folder: &Path, name: &str) -> (File, PathBuf) {
    let path = folder.join(name);
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .unwrap();
    (file, path)
}

#[test]
fn an_answer_in_time_is_the_kernel_s() {
    let folder = tempfile::tempdir().unwrap();
    let (target, path) = file(folder.path(), "target");
    let answer = access(target.as_fd(), Access::Write(b"vfio-pci"), &[], LONG);
    assert_eq!(answer.unwrap(), Some(Vec::new()));
    assert_eq!(fs::read(&path).unwrap(), b"vfio-pci");

    let source = File::open(&path).unwrap();
    let answer = access(source.as_fd(), Access::Read, &[], LONG);
    assert_eq!(answer.unwrap().unwrap(), b"vfio-pci");

    // Not open for writing, and not for reading.
    let error = access(source.as_fd(), Access::Write(b"x"), &[], LONG).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    let error = access(target.as_fd(), Access::Read, &[], LONG).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = access(full.as_fd(), Access::Write(b"x"), &[], LONG).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn a_write_that_comes_through_late_is_undone() {
    let folder = tempfile::tempdir().unwrap();
    let (first, first_path) = file(folder.path(), "first");
    let (second, _) = file(folder.path(), "second");
    let read_only = File::open("/dev/null").unwrap();
    let (mut reader, writer) = pipe().unwrap();
    fill(&writer);
    let undo = [
        Undo {
            file: first.as_fd(),
            bytes: b"1",
        },
        // One that fails does not stop the others.
        Undo {
            file: read_only.as_fd(),
            bytes: b"2",
        },
        Undo {
            file: second.as_fd(),
            bytes: b"3",
        },
        Undo {
            file: first.as_fd(),
            bytes: b"4",
        },
    ];
    let begin = Instant::now();
    let answer = access(writer.as_fd(), Access::Write(b"unbind"), &undo, SOON);
    assert_eq!(answer.unwrap(), None);
    assert!(begin.elapsed() >= SOON && begin.elapsed() < LONG);
    assert_eq!(fs::read(&first_path).unwrap(), b"", "it still waits");

    drop(writer);
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(b"unbind"), "it came through");
    until("the undoing", || fs::read(&first_path).unwrap() == b"14");
    assert_eq!(fs::read(folder.path().join("second")).unwrap(), b"3");
}

#[test]
fn nothing_is_undone_that_was_answered_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (target, _) = file(folder.path(), "target");
    let (other, path) = file(folder.path(), "other");
    let undo = [Undo {
        file: other.as_fd(),
        bytes: b"undone",
    }];
    access(target.as_fd(), Access::Write(b"x"), &undo, LONG).unwrap();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    access(full.as_fd(), Access::Write(b"x"), &undo, LONG).unwrap_err();

    // Refused late: whoever reads the pipe goes away.
    let (reader, writer) = pipe().unwrap();
    fill(&writer);
    let answer = access(writer.as_fd(), Access::Write(b"x"), &undo, SOON);
    assert_eq!(answer.unwrap(), None);
    until("the start of a worker", || !users_of(&path).is_empty());
    drop(reader);
    until("the end of the worker", || users_of(&path).is_empty());
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn the_worker_keeps_nothing_open_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, kept_path) = file(folder.path(), "kept");
    let (_foreign, foreign_path) = file(folder.path(), "foreign");
    let (mut reader, writer) = pipe().unwrap();
    fill(&writer);
    let undo = [Undo {
        file: kept.as_fd(),
        bytes: b"",
    }];
    let answer = access(writer.as_fd(), Access::Write(b"x"), &undo, SOON);
    assert_eq!(answer.unwrap(), None);
    // The worker is there, with what it needs, and nothing else. Those of
    // other tests have this test's files open for a moment.
    until("one worker alone", || users_of(&kept_path).len() == 1);
    let worker = users_of(&kept_path)[0];
    until("the closing of a file", || {
        users_of(&foreign_path).is_empty()
    });
    let open = fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count();
    assert_eq!(open, 3, "the file, the socket and the undo");
    let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
    let (name, rest) = stat.rsplit_once(") ").unwrap();
    assert!(name.ends_with("(airlock-sysfs"), "{stat}");
    let fields: Vec<_> = rest.split(' ').collect();
    let own = std::process::id().to_string();
    assert_ne!(fields[1], own, "it is not this process's child");
    assert_eq!(fields[3], worker.to_string(), "it has a session of its own");

    drop(writer);
    reader.read_to_end(&mut Vec::new()).unwrap();
    until("the end of the worker", || users_of(&kept_path).is_empty());
    assert!(no_zombie(), "a child was not reaped");
}

/// Whether no child of this process waits to be reaped. Other tests' children
/// are there for a moment.
fn no_zombie() -> bool {
    let end = Instant::now() + LONG;
    let own = std::process::id().to_string();
    while Instant::now() < end {
        let dead = fs::read_dir("/proc").unwrap().flatten().any(|process| {
            let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
            fields.is_some_and(|fields| fields.starts_with(&format!("Z {own} ")))
        });
        if !dead {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn a_read_that_waits_is_given_up() {
    let (reader, writer) = pipe().unwrap();
    let answer = access(reader.as_fd(), Access::Read, &[], SOON);
    assert_eq!(answer.unwrap(), None);
    drop(writer);
}

#[test]
fn signals_are_as_they_were() {
    let blocked = || {
        let before = block_signals().unwrap();
        restore_signals(&before);
        // SAFETY: the set belongs to this function.
        unsafe { libc::sigismember(&before, libc::SIGTERM) == 1 }
    };
    assert!(!blocked());
    let file = File::open("/dev/null").unwrap();
    access(file.as_fd(), Access::Read, &[], LONG).unwrap();
    assert!(!blocked());
}
