//! Colour, where it helps.

use std::env;
use std::ffi::OsStr;
use std::io::{self, IsTerminal};

/// What a piece of text is to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Caution,
    Bad,
    Strong,
    Faint,
}

/// Whether text may be coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Style {
    colour: bool,
}

impl Style {
    /// For standard output: colour on a terminal that can show it, unless
    /// `NO_COLOR` is set (no-color.org).
    pub(super) fn of_stdout() -> Self {
        let variable = |name| env::var_os(name);
        Self::choose(
            io::stdout().is_terminal(),
            variable("NO_COLOR").as_deref(),
            variable("TERM").as_deref(),
        )
    }

    fn choose(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> Self {
        let refused = no_color.is_some_and(|value| !value.is_empty());
        let colour = terminal && !refused && term.is_none_or(|term| term != "dumb");
        Self { colour }
    }

    #[cfg(test)]
    pub(super) const PLAIN: Self = Self { colour: false };
    #[cfg(test)]
    pub(super) const COLOUR: Self = Self { colour: true };

    /// `text` in the colour of `tone`, or as it is.
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        // SGR parameters (ECMA-48 §8.3.117).
        let code = match tone {
            Tone::Good => "32",
            Tone::Caution => "33",
            Tone::Bad => "31",
            Tone::Strong => "1",
            Tone::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A plan's report with its marks, remedies and answer coloured.
    pub(super) fn report(self, report: &str) -> String {
        let last = report.lines().count().saturating_sub(1);
        let lines = report.lines().enumerate().map(|(at, line)| {
            let tone = match line.chars().next() {
                Some('✓') => Tone::Good,
                Some('!') => Tone::Caution,
                Some('✗') => Tone::Bad,
                _ if at == last => return self.paint(Tone::Strong, line),
                _ => return self.paint(Tone::Faint, line),
            };
            let mark = line.chars().next().map_or(0, char::len_utf8);
            let (mark, rest) = line.split_at(mark);
            self.paint(tone, mark) + rest
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        let choose = |terminal, no_color: Option<&str>, term: Option<&str>| {
            Style::choose(terminal, no_color.map(OsStr::new), term.map(OsStr::new)).colour
        };
        assert!(choose(true, None, Some("xterm")));
        assert!(choose(true, Some(""), None), "an empty NO_COLOR is none");
        assert!(!choose(false, None, Some("xterm")));
        assert!(!choose(true, Some("1"), Some("xterm")));
        assert!(!choose(true, None, Some("dumb")));
    }

    #[test]
    fn a_report_keeps_its_words() {
        let report = "✓ good\n✗ bad\n    fix: mend\n! so so\nnot ready: 1 of 3 checks failed";
        assert_eq!(Style::PLAIN.report(report), report);
        let coloured = Style::COLOUR.report(report);
        assert_eq!(
            coloured,
            "\x1b[32m✓\x1b[0m good\n\x1b[31m✗\x1b[0m bad\n\x1b[2m    fix: mend\x1b[0m\n\
             \x1b[33m!\x1b[0m so so\n\x1b[1mnot ready: 1 of 3 checks failed\x1b[0m"
        );
        assert_eq!(Style::COLOUR.report(""), "");
        assert_eq!(Style::COLOUR.paint(Tone::Good, ""), "");
    }
}
