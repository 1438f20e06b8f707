//! Identifiers: 128 random bits each, a type of their own each, written like UUIDs.

use std::{fmt, str::FromStr};

/// The text or bytes are not an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: 32 hexadecimal digits are expected")]
pub struct InvalidId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// From the 16 bytes of a message field.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidId> {
                bytes.try_into().map(Self).map_err(|_| InvalidId)
            }
            /// For a message field.
            pub fn to_bytes(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (i, b) in self.0.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{b:02x}")?;
                }
                Ok(())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                let mut out = [0u8; 16];
                let mut digits = s.chars().filter(|c| *c != '-');
                for b in &mut out {
                    let mut nibble = || digits.next().and_then(|c| c.to_digit(16)).ok_or(InvalidId);
                    let (hi, lo) = (nibble()?, nibble()?);
                    *b = u8::try_from(hi * 16 + lo).map_err(|_| InvalidId)?;
                }
                if digits.next().is_some() { Err(InvalidId) } else { Ok(Self(out)) }
            }
        }
    };
}

id! {
    /// A session: picked at random by the console.
    SessionId
}
id! {
    /// A computer with an agent.
    ComputerId
}
id! {
    /// A relay.
    RelayId
}
id! {
    /// An enrolment token.
    TokenId
}

/// One redirected TCP connection or UDP flow of a session. Ids only grow; 0 is not a channel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChannelId(pub u64);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One carrier of a session. Numbers only grow, given by the console; 0 is not a carrier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CarrierNumber(pub u64);

impl fmt::Display for CarrierNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_reads_back_what_it_writes() {
        let id = SessionId([0xab; 16]);
        assert_eq!(id.to_string(), "abababab-abab-abab-abab-abababababab");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("ab".parse::<SessionId>(), Err(InvalidId));
        assert_eq!(format!("{id}0").parse::<SessionId>(), Err(InvalidId));
        assert_eq!("é".repeat(32).parse::<SessionId>(), Err(InvalidId));
    }
}
