//! Long-running programs: their output goes to a log, a meter shows that they
//! live, and the end of the log stands in the error when they fail.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use crate::progress::Meter;

const POLL: Duration = Duration::from_millis(50);
const LOG_TAIL_LINES: usize = 30;

/// Why a program did not do its work.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot run {program}: {source}")]
    Start {
        /// Which program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Its log could not be written.
    #[error("cannot write the log {path}: {source}")]
    Log {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("{program} ended with {status}; the end of its log {log}:\n{}", .tail.join("\n"))]
    Failed {
        /// Which program, with its arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The whole log.
        log: PathBuf,
        /// Its last lines.
        tail: Vec<String>,
    },
}

/// Runs `command` with its output appended to `log`. While it runs, `state`
/// (given the log) says how far it is.
///
/// # Errors
/// [`CommandError`] when it cannot run or exits with another status than 0.
pub(crate) fn run_logged(
    command: &mut Command,
    log: &Path,
    meter: &mut Meter,
    state: impl FnMut(&Path) -> String,
) -> Result<(), CommandError> {
    let output = open_log(log)?;
    run_logged_to(command, output.into(), log, meter, state)
}

/// As [`run_logged`], with its standard output elsewhere.
///
/// # Errors
/// As [`run_logged`].
pub(crate) fn run_logged_to(
    command: &mut Command,
    output: Stdio,
    log: &Path,
    meter: &mut Meter,
    mut state: impl FnMut(&Path) -> String,
) -> Result<(), CommandError> {
    let program = title(command);
    let start = |source| CommandError::Start {
        program: program.clone(),
        source,
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(open_log(log)?)
        .spawn()
        .map_err(start)?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(start)? {
            break status;
        }
        thread::sleep(POLL);
        meter.show_with(|| state(log));
    };
    if status.success() {
        return Ok(());
    }
    Err(CommandError::Failed {
        program,
        status,
        log: log.to_owned(),
        tail: crate::host::file_tail(log, LOG_TAIL_LINES),
    })
}

fn open_log(log: &Path) -> Result<File, CommandError> {
    let opened = File::options().create(true).append(true).open(log);
    opened.map_err(|source| CommandError::Log {
        path: log.to_owned(),
        source,
    })
}

/// Runs a short `command` and gives its standard output, or `None` when it
/// fails.
pub(crate) fn output_of(command: &mut Command) -> Result<Option<String>, CommandError> {
    let program = title(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|source| CommandError::Start { program, source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(output.status.success().then_some(text))
}

/// What `command` makes of `input`.
///
/// # Errors
/// When it cannot run, or exits with another status than 0: then with what it
/// said on standard error.
pub(crate) fn filter(command: &mut Command, input: &[u8]) -> io::Result<Vec<u8>> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let feed = child.stdin.take();
    // Fed from a thread: the program may write before it has read everything.
    let output = thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut feed) = feed {
                // A program that stops reading says why by itself.
                let _ = feed.write_all(input);
            }
        });
        child.wait_with_output()
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{}: {}",
        output.status,
        said.trim()
    )))
}

/// How many lines of `log` begin with one of `starts`.
pub(crate) fn count_lines(log: &Path, starts: &[&str]) -> usize {
    let text = fs::read(log).unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .filter(|line| {
            starts
                .iter()
                .any(|start| line.starts_with(start.as_bytes()))
        })
        .count()
}

fn title(command: &Command) -> String {
    let mut title = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        title.push(' ');
        title.push_str(&argument.to_string_lossy());
    }
    title
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str) -> (Result<(), CommandError>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut meter = Meter::quiet_at_first("test");
        let log = directory.path().join("log");
        let result = run_logged(&mut command, &log, &mut meter, |_| String::new());
        (result, directory)
    }

    #[test]
    fn a_failure_shows_the_end_of_the_log() {
        let (result, directory) = run("seq 100; echo trouble >&2; exit 7");
        let error = result.unwrap_err().to_string();
        assert!(error.contains("exit status: 7"), "{error}");
        assert!(error.ends_with("99\n100\ntrouble"), "{error}");
        assert!(!error.contains("\n60\n"), "{error}");
        let log = directory.path().join("log");
        assert_eq!(count_lines(&log, &["1", "tr"]), 13);
    }

    #[test]
    fn a_filter_takes_more_than_a_pipe_holds_and_tells_of_failure() {
        let input = vec![7; 1 << 20];
        assert_eq!(filter(&mut Command::new("cat"), &input).unwrap(), input);
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo why >&2; exit 3"]);
        let error = filter(&mut failing, &input).unwrap_err().to_string();
        assert_eq!(error, "exit status: 3: why");
    }

    #[test]
    fn success_is_silent() {
        assert!(run("echo fine").0.is_ok());
        let mut command = Command::new("/nonexistent/program");
        assert!(matches!(
            output_of(&mut command),
            Err(CommandError::Start { .. })
        ));
    }
}
