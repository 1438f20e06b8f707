//! The name of whoever issued a certificate, for people: it tells them which proxy or virus
//! scanner answers in a mediator's place. Believed by nobody and decides nothing.

/// Object identifiers of a common name, an organisation and its unit (RFC 5280 appendix A), in the
/// order in which they are preferred.
const ATTRIBUTES: [&[u8]; 3] = [&[0x55, 4, 3], &[0x55, 4, 10], &[0x55, 4, 11]];
/// Characters of a name that are told.
const MAX_NAME: usize = 64;
/// Parts of a name that are looked at.
const MAX_PARTS: usize = 32;

const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
/// UTF8String, PrintableString, TeletexString, IA5String: read as text as far as they are.
const STRINGS: [u8; 4] = [0x0c, 0x13, 0x14, 0x16];

/// The issuer of a certificate in DER; `None` if it has none that can be read.
pub(super) fn issuer(certificate: &[u8]) -> Option<String> {
    let (_, certificate, _) = element(certificate, SEQUENCE)?;
    let (_, mut rest, _) = element(certificate, SEQUENCE)?;
    if let Some((_, _, after)) = element(rest, VERSION) {
        rest = after;
    }
    let (_, _, rest) = element(rest, INTEGER)?; // serial number
    let (_, _, rest) = element(rest, SEQUENCE)?; // signature algorithm
    let (_, mut names, _) = element(rest, SEQUENCE)?;
    let mut found: [Option<String>; 3] = Default::default();
    for _ in 0..MAX_PARTS {
        let Some((_, part, after)) = element(names, SET) else { break };
        names = after;
        let Some((_, pair, _)) = element(part, SEQUENCE) else { continue };
        let Some((_, kind, value)) = element(pair, OID) else { continue };
        let slot = ATTRIBUTES.iter().position(|a| *a == kind).and_then(|at| found.get_mut(at));
        if let Some(slot) = slot {
            *slot = slot.take().or_else(|| text(value));
        }
    }
    found.into_iter().flatten().next()
}

fn text(value: &[u8]) -> Option<String> {
    let (_, bytes, _) = STRINGS.iter().find_map(|tag| element(value, *tag))?;
    // It is a stranger's: nothing that moves a cursor, and not a page of it.
    let plain = |c: char| if c.is_control() || c == '"' { ' ' } else { c };
    let text: String = String::from_utf8_lossy(bytes).chars().map(plain).take(MAX_NAME).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The element that begins `bytes`, if it has this tag: tag, content, and what follows.
fn element(bytes: &[u8], tag: u8) -> Option<(u8, &[u8], &[u8])> {
    let (first, rest) = bytes.split_first().filter(|(first, _)| **first == tag)?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match *length {
        short @ ..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*first, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, Issuer, KeyPair};

    use super::*;

    fn issued_by(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["mediator.example".to_owned()]).unwrap();
        let leaf = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, name) in names {
            authority.distinguished_name.push(kind.clone(), *name);
        }
        params.distinguished_name.push(DnType::CommonName, "mediator.example");
        let issuer = Issuer::new(authority, KeyPair::generate().unwrap());
        params.signed_by(&leaf, &issuer).unwrap().der().to_vec()
    }

    #[test]
    fn names_who_issued_a_certificate() {
        let (o, cn) = (DnType::OrganizationName, DnType::CommonName);
        let both = issued_by(&[(o.clone(), "Example Inspection"), (cn.clone(), "Example CA")]);
        assert_eq!(issuer(&both).as_deref(), Some("Example CA"));
        assert_eq!(issuer(&issued_by(&[(o, "Müller")])).as_deref(), Some("Müller"));
        assert_eq!(issuer(&issued_by(&[])), None);
        let hostile = issued_by(&[(cn, &format!("a\"\u{1b}[2J{}", "x".repeat(5000)))]);
        let told = issuer(&hostile).unwrap();
        assert!(told.starts_with("a  [2J") && told.chars().count() == MAX_NAME, "{told}");
    }

    #[test]
    fn what_is_no_certificate_has_no_issuer() {
        let good = issued_by(&[(DnType::CommonName, "Example CA")]);
        for end in 0..good.len() {
            // Never more than what is there, whatever lengths it claims.
            let _ = issuer(&good[..end]);
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = bad[at].wrapping_add(0x7d);
            let _ = issuer(&bad);
        }
        assert_eq!(issuer(b""), None);
        assert_eq!(issuer(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
