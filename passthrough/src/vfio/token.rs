use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The secret that a physical function and its virtual functions share while
/// VFIO has them both: who opens a virtual function must know what the owner of
/// the physical function has chosen (Documentation/driver-api/vfio.rst, VF
/// token). Given with the physical function it is set, given with a virtual
/// function it is compared.
///
/// Written as a UUID: `d1d1d1d1-0123-4567-89ab-0123456789ab`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VfToken([u8; 16]);

/// What is no token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{0}' is not a VF token: write a UUID, 32 hexadecimal digits in the form 8-4-4-4-12 \
     (`uuidgen` makes one)"
)]
pub struct VfTokenError(String);

/// Where the dashes are in a UUID (RFC 9562 §4).
const DASHES: [usize; 4] = [8, 13, 18, 23];
const LENGTH: usize = 36;

impl VfToken {
    /// In the order in which they are written.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl FromStr for VfToken {
    type Err = VfTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || VfTokenError(text.to_owned());
        let dashes = |(at, c): (usize, u8)| DASHES.contains(&at) == (c == b'-');
        if text.len() != LENGTH || !text.bytes().enumerate().all(dashes) {
            return Err(error());
        }
        let mut digits = text.chars().filter(|c| *c != '-');
        let mut digit = || digits.next().and_then(|c| c.to_digit(16));
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            let (high, low) = digit().zip(digit()).ok_or_else(error)?;
            *byte = (high << 4 | low) as u8;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for VfToken {
    /// Not shown: it is a secret, and debug output ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(..)")
    }
}

impl TryFrom<String> for VfToken {
    type Error = VfTokenError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VfToken> for String {
    fn from(token: VfToken) -> Self {
        token.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOKEN: &str = "d1d1d1d1-0123-4567-89ab-cdef00ff1234";

    #[test]
    fn a_token_is_written_as_it_was_read() {
        let token: VfToken = TOKEN.parse().unwrap();
        assert_eq!(token.to_string(), TOKEN);
        assert_eq!(token.to_bytes()[..6], [0xd1, 0xd1, 0xd1, 0xd1, 1, 0x23]);
        assert_eq!(TOKEN.to_uppercase().parse(), Ok(token));
        assert!(!format!("{token:?}").contains("d1"));
    }

    #[test]
    fn what_is_no_token_is_named() {
        let long = format!("{TOKEN}0");
        let without = TOKEN.replace('-', "");
        let odd = TOKEN.replace('f', "g");
        for text in ["", "1234", &long, &without, &odd, &TOKEN[1..]] {
            let error = text.parse::<VfToken>().unwrap_err().to_string();
            assert!(error.contains("uuidgen"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_does(text: String) {
            let _ = text.parse::<VfToken>();
        }

        #[test]
        fn any_bytes_go_through_text(bytes: [u8; 16]) {
            let token = VfToken(bytes);
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }
    }
}
