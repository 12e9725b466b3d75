//! Kernel configuration fragments: what was asked for, and whether it took
//! effect.

use std::collections::BTreeMap;
use std::fmt;

/// One option that a fragment asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its name, with `CONFIG_`.
    pub name: String,
    /// Its value; `None` to have it off.
    pub value: Option<String>,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.name),
            None => write!(f, "# {} is not set", self.name),
        }
    }
}

/// A request that did not take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// The request.
    pub request: Request,
    /// The value in the final configuration; `None` when it's off.
    pub actual: Option<String>,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (it is ", self.request)?;
        match &self.actual {
            Some(actual) => write!(f, "{actual})"),
            None => write!(f, "off)"),
        }
    }
}

/// What `text`, a fragment or a whole configuration, sets.
pub fn parse(text: &str) -> Vec<Request> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Request> {
    let line = line.trim();
    if let Some(off) = line
        .strip_prefix("# CONFIG_")
        .and_then(|rest| rest.strip_suffix(" is not set"))
    {
        return Some(Request {
            name: format!("CONFIG_{off}"),
            value: None,
        });
    }
    let (name, value) = line.split_once('=')?;
    name.starts_with("CONFIG_").then(|| Request {
        name: name.to_owned(),
        value: Some(value.to_owned()),
    })
}

/// The requests of `fragment` that the final configuration does not hold.
pub fn unmet(fragment: &str, configuration: &str) -> Vec<Unmet> {
    let actual: BTreeMap<_, _> = parse(configuration)
        .into_iter()
        .map(|set| (set.name, set.value))
        .collect();
    let mut unmet = Vec::new();
    for request in parse(fragment) {
        let actual = actual.get(&request.name).cloned().flatten();
        if actual != request.value {
            unmet.push(Unmet { request, actual });
        }
    }
    unmet
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: &str = "# --- a comment\n\
        CONFIG_A=y\nCONFIG_N=8\nCONFIG_S=\"x=y\"\n# CONFIG_OFF is not set\n# CONFIG_ODD remark\n";

    #[test]
    fn what_took_effect_is_not_reported() {
        let configuration = "CONFIG_S=\"x=y\"\nCONFIG_N=8\nCONFIG_A=y\nCONFIG_MORE=y\n";
        assert_eq!(unmet(FRAGMENT, configuration), []);
        let explicit = format!("{configuration}# CONFIG_OFF is not set\n");
        assert_eq!(unmet(FRAGMENT, &explicit), []);
    }

    #[test]
    fn what_did_not_is_named_with_what_is_there_instead() {
        let configuration = "# CONFIG_A is not set\nCONFIG_N=64\nCONFIG_OFF=y\n";
        let messages: Vec<_> = unmet(FRAGMENT, configuration)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            messages,
            [
                "CONFIG_A=y (it is off)",
                "CONFIG_N=8 (it is 64)",
                "CONFIG_S=\"x=y\" (it is off)",
                "# CONFIG_OFF is not set (it is y)",
            ]
        );
    }
}
