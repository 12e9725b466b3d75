//! SHA-256 digests, by the `sha256sum` program: the lab runs programs anyway,
//! and coreutils is on every Debian machine.

use std::fmt;
use std::io::{self, Read};
use std::process::{Command, Stdio};

use thiserror::Error;

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sha256(String);

/// Why there is no digest.
#[derive(Debug, Error)]
pub enum DigestError {
    /// The program could not be run, or reading failed on the way.
    #[error("cannot compute a digest with sha256sum (package coreutils): {0}")]
    Io(#[from] io::Error),
    /// The program said something else than a digest.
    #[error("sha256sum said {0:?} instead of a digest")]
    Malformed(String),
}

impl Sha256 {
    /// The digest that `text` writes out.
    ///
    /// # Errors
    /// [`DigestError::Malformed`] when it is not 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(DigestError::Malformed(text.to_owned()))
        }
    }

    /// The first 16 digits: enough to name a file by.
    pub fn short(&self) -> &str {
        &self.0[..16]
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The digest of everything that `reader` yields.
///
/// # Errors
/// [`DigestError`] when reading or the program fails.
pub fn sha256_reader(mut reader: impl Read) -> Result<Sha256, DigestError> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let fed = match child.stdin.take() {
        Some(mut input) => io::copy(&mut reader, &mut input),
        None => Ok(0),
    };
    let output = child.wait_with_output()?;
    fed?;
    let text = String::from_utf8_lossy(&output.stdout);
    Sha256::parse(text.split_whitespace().next().unwrap_or_default())
}

/// The digest of several parts. Each is preceded by its length, so that moving
/// a border between parts changes the digest.
///
/// # Errors
/// As [`sha256_reader`].
pub fn sha256_parts(parts: &[&[u8]]) -> Result<Sha256, DigestError> {
    let mut joined = Vec::new();
    for part in parts {
        joined.extend_from_slice(&(part.len() as u64).to_le_bytes());
        joined.extend_from_slice(part);
    }
    sha256_reader(joined.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_example_comes_out() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            sha256_reader(&b"abc"[..]).unwrap().to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn the_border_between_parts_matters() {
        assert_ne!(
            sha256_parts(&[b"ab", b"c"]).unwrap(),
            sha256_parts(&[b"a", b"bc"]).unwrap()
        );
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        assert!(Sha256::parse("abc").is_err());
        assert!(Sha256::parse(&"g".repeat(64)).is_err());
    }
}
