//! The two forms of apt's sources, as in sources.list(5).

use std::fs;
use std::path::{Path, PathBuf};

/// An enabled source of binary packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where the archives are.
    pub uris: Vec<String>,
    /// The suites that are used of them.
    pub suites: Vec<String>,
    /// The components that are used of each.
    pub components: Vec<String>,
    /// Further options by their deb822 name, with continuation lines as they
    /// were written: `Signed-By`, `Trusted`, …
    pub options: Vec<(String, String)>,
}

impl Source {
    /// An option's value.
    pub fn option(&self, name: &str) -> Option<&str> {
        let found = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.options
            .iter()
            .find(found)
            .map(|(_, value)| value.as_str())
    }
}

/// The sources of the configuration directory `etc` (`/etc/apt`). Files that
/// cannot be read hold none.
pub fn machine_sources(etc: &Path) -> Vec<Source> {
    let mut files = vec![etc.join("sources.list")];
    let mut parts: Vec<PathBuf> = fs::read_dir(etc.join("sources.list.d"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    parts.sort();
    files.extend(parts);
    let mut sources = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(parse_one_line(&text)),
            Some("sources") => sources.extend(parse_deb822(&text)),
            // apt ignores other files too.
            _ => {}
        }
    }
    sources
}

/// The sources of a `.list` file: `deb [option=value …] URI suite component …`.
pub fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        options: options.split_whitespace().filter_map(option).collect(),
    })
}

/// An option of the one-line form under its deb822 name. (The names differ in
/// case and number only for those with a deb822 form in the plural.)
fn option(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let name = match name.trim_end_matches(['+', '-']) {
        "arch" => "Architectures".to_owned(),
        "lang" => "Languages".to_owned(),
        "target" => "Targets".to_owned(),
        other => other.to_owned(),
    };
    Some((name, value.replace(',', " ")))
}

/// The sources of a `.sources` file: stanzas of `Field: value` lines, values
/// continued on lines that begin with a space.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: Vec<(String, String)>) -> Option<Source> {
    let mut source = Source {
        uris: Vec::new(),
        suites: Vec::new(),
        components: Vec::new(),
        options: Vec::new(),
    };
    let mut types = Vec::new();
    for (name, value) in fields {
        let words = || value.split_whitespace().map(str::to_owned).collect();
        match name.to_ascii_lowercase().as_str() {
            "types" => types = words(),
            "uris" => source.uris = words(),
            "suites" => source.suites = words(),
            "components" => source.components = words(),
            "enabled" => {
                if ["no", "false", "0", "off", "without"].contains(&value.as_str()) {
                    return None;
                }
            }
            _ => source.options.push((name, value)),
        }
    }
    let complete = !source.uris.is_empty() && !source.suites.is_empty();
    (complete && types.iter().any(|kind| kind == "deb")).then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_one_line_form() {
        let sources = parse_one_line(
            "# a comment\n\
             deb http://mirror.example/debian bookworm main contrib # trailing\n\
             deb-src http://mirror.example/debian bookworm main\n\
             deb [ arch=amd64,i386 signed-by=/k.gpg ] https://a.example/d trixie main\n\
             deb\n\
             debug http://x y z\n",
        );
        assert_eq!(sources.len(), 2, "{sources:?}");
        assert_eq!(sources[0].uris, ["http://mirror.example/debian"]);
        assert_eq!(sources[0].components, words("main contrib"));
        assert_eq!(sources[0].option("Signed-By"), None);
        assert_eq!(sources[1].suites, ["trixie"]);
        assert_eq!(sources[1].option("Signed-By"), Some("/k.gpg"));
        assert_eq!(sources[1].option("Architectures"), Some("amd64 i386"));
    }

    #[test]
    fn the_stanza_form() {
        let sources = parse_deb822(
            "Types: deb deb-src\n\
             # a comment within\n\
             URIs: http://mirror.example/debian\n\
             Suites: bookworm\n bookworm-updates\n\
             Components: main\n\
             Signed-By: /k.gpg\n\
             \n\
             Types: deb\nURIs: http://off.example\nSuites: a\nComponents: b\nEnabled: no\n\
             \n\
             Types: deb-src\nURIs: http://src.example\nSuites: a\nComponents: b\n\
             \n\n\
             types: deb\nuris: http://low.example\nsuites: s\ncomponents: c",
        );
        assert_eq!(sources.len(), 2, "{sources:?}");
        assert_eq!(sources[0].suites, words("bookworm bookworm-updates"));
        assert_eq!(sources[0].option("signed-by"), Some("/k.gpg"));
        assert_eq!(sources[1].uris, ["http://low.example"]);
    }

    #[test]
    fn a_key_within_the_stanza_is_kept_as_written() {
        let text = "Types: deb\nURIs: http://m.example\nSuites: s\nComponents: main\n\
                    Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n";
        let sources = parse_deb822(text);
        assert_eq!(
            sources[0].option("Signed-By"),
            Some("\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc")
        );
    }

    #[test]
    fn both_forms_are_read_from_all_their_places() {
        let etc = tempfile::tempdir().unwrap();
        let parts = etc.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        fs::write(etc.path().join("sources.list"), "deb http://1 s main\n").unwrap();
        fs::write(parts.join("b.list"), "deb http://3 s main\n").unwrap();
        fs::write(
            parts.join("a.sources"),
            "Types: deb\nURIs: http://2\nSuites: s\n",
        )
        .unwrap();
        fs::write(parts.join("c.list.disabled"), "deb http://4 s main\n").unwrap();
        let uris: Vec<_> = machine_sources(etc.path())
            .into_iter()
            .flat_map(|source| source.uris)
            .collect();
        assert_eq!(uris, ["http://1", "http://2", "http://3"]);
        assert!(machine_sources(Path::new("/no/such/place")).is_empty());
    }
}
