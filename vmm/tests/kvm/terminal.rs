//! The guest's console on a terminal: keys go in, and the terminal is as it was
//! afterwards, whatever ended the VM.
//!
//! `script`, which every Debian has, gives the command a terminal.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::kernel::{HALT, POWER_OFF, has_kvm, kernel, say};
use tempfile::TempDir;

/// Reads keys from the serial port and sends each back in brackets; `q`
/// switches the machine off.
fn echo() -> Vec<u8> {
    let mut code = say("ready\n");
    code.extend([
        0x66, 0xba, 0xfd, 0x03, // poll: mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1
        0x74, 0xf7, // jz poll
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0x88, 0xc3, // mov bl, al
        0xb0, b'[', 0xee, // out '['
        0x88, 0xd8, 0xee, // out bl
        0xb0, b']', 0xee, // out ']'
        0x80, 0xfb, b'q', // cmp bl, 'q'
        0x75, 0xe2, // jne poll
    ]);
    code.extend(POWER_OFF);
    code.extend(HALT);
    code
}

struct Session {
    script: Child,
    screen: Receiver<u8>,
    seen: String,
    directory: TempDir,
}

impl Session {
    /// A terminal in which airlock runs the echo guest, with the terminal's
    /// settings noted before and after. Nothing where there is no KVM.
    fn start() -> Option<Self> {
        if !has_kvm() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("kernel"), kernel(&echo())).unwrap();
        let airlock = env!("CARGO_BIN_EXE_airlock");
        let command = format!(
            "stty -a > before; \
             sh -c 'echo $$ > pid; exec {airlock} run --kernel kernel --memory 4M'; \
             echo $? > status; stty -a > after"
        );
        let mut script = Command::new("script")
            .args(["--quiet", "--command", &command, "/dev/null"])
            .current_dir(directory.path())
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = script.stdout.take().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while matches!(output.read(&mut byte), Ok(1)) && sender.send(byte[0]).is_ok() {}
        });
        Some(Self {
            script,
            screen,
            seen: String::new(),
            directory,
        })
    }

    /// Waits until the screen has shown `text` after what was awaited before.
    fn wait(&mut self, text: &str) {
        let mut since = String::new();
        while !since.contains(text) {
            match self.screen.recv_timeout(Duration::from_secs(30)) {
                Ok(byte) => since.push(char::from(byte)),
                Err(_) => panic!("no '{text}' after {:?}: {since:?}", self.seen),
            }
        }
        self.seen.push_str(&since);
    }

    fn press(&mut self, keys: &[u8]) {
        self.script.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    fn note(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap()
    }

    /// The VM ends with `status` and the terminal is as it was.
    fn assert_end(mut self, status: &str) {
        self.script.wait().unwrap();
        assert_eq!(self.note("status").trim(), status, "{:?}", self.seen);
        assert_eq!(self.note("before"), self.note("after"));
        assert!(self.note("before").contains(" icanon"), "it was a terminal");
    }
}

#[test]
fn keys_reach_the_guest_one_by_one() {
    let Some(mut session) = Session::start() else {
        return;
    };
    session.wait("ready");
    // No Enter, no echo of the terminal's own, and Ctrl-C is the guest's.
    session.press(b"a");
    session.wait("[a]");
    session.press(b"\x03\r");
    session.wait("[\x03][\r]");
    // More than the port's FIFO holds, at once.
    session.press(&[b'z'; 200]);
    for _ in 0..200 {
        session.wait("[z]");
    }
    session.press(b"q");
    session.assert_end("0");
}

#[test]
fn ctrl_a_x_ends_the_vm() {
    let Some(mut session) = Session::start() else {
        return;
    };
    session.wait("ready");
    session.press(b"\x01\x01");
    session.wait("[\x01]");
    session.press(b"\x01x");
    session.assert_end("0");
}

#[test]
fn a_signal_ends_the_vm() {
    let Some(mut session) = Session::start() else {
        return;
    };
    session.wait("ready");
    let pid = session.note("pid");
    let killed = Command::new("kill").args(["-TERM", pid.trim()]).status();
    assert!(killed.unwrap().success());
    session.assert_end("143");
}
