//! Computers as the mediator describes them, checked, and COMPUTER on the command line.
//!
//! Names come from agents: they are compared, never followed, and escaped before printing.

use adit_protocol::{
    ids::ComputerId,
    keys::{NoiseCert, PublicKey},
    limits::MAX_TEXT,
    target::{BUILTIN_REDIRECTORS, Target, Transport},
    wire,
};

use super::known::{Presented, client_matches, same};

/// Redirectors kept for a computer.
const MAX_REDIRECTORS: usize = 256;

/// A redirector of a computer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRedirector {
    /// As typed on the command line.
    pub name: String,
    /// Where it leads.
    pub target: Target,
    /// Kind of viewer.
    pub viewer: String,
}

/// A computer as the mediator described it, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownComputer {
    /// Its id.
    pub id: ComputerId,
    /// Its name, as its agent gave it: escape before printing.
    pub name: String,
    /// `partner/client`.
    pub client: String,
    /// Id of the partner.
    pub tenant: String,
    /// Whether its agent has a control connection.
    pub online: bool,
    /// Operating system, as its agent says.
    pub os: String,
    /// Milliseconds since 1970.
    pub last_seen_ms: u64,
    /// Its agent's identity.
    pub identity: PublicKey,
    /// Its agent's Noise key.
    pub noise_cert: wire::Signed,
    /// What can be opened on it.
    pub redirectors: Vec<KnownRedirector>,
}

impl KnownComputer {
    /// Reads a description; `None` if it cannot be used, whoever made it so.
    pub fn from_wire(w: wire::Computer) -> Option<Self> {
        let identity = PublicKey::from_slice(&w.identity).ok()?;
        let noise_cert = w.noise_cert?;
        NoiseCert::open(identity, &noise_cert).ok()?;
        let fits = |text: &str| text.len() <= MAX_TEXT;
        if w.name.is_empty() || !fits(&w.name) || !fits(&w.client) || !fits(&w.partner_id) {
            return None;
        }
        let redirector = |r: wire::Redirector| {
            let target = Target::from_wire(&r.target?).ok()?;
            (fits(&r.name) && fits(&r.viewer)).then_some(KnownRedirector {
                name: r.name,
                target,
                viewer: r.viewer,
            })
        };
        Some(Self {
            id: ComputerId::from_slice(&w.computer_id).ok()?,
            name: w.name,
            client: w.client,
            tenant: w.partner_id,
            online: w.online,
            os: w.os.chars().take(MAX_TEXT).collect(),
            last_seen_ms: w.last_seen_ms,
            identity,
            noise_cert,
            redirectors: w
                .redirectors
                .into_iter()
                .take(MAX_REDIRECTORS)
                .filter_map(redirector)
                .collect(),
        })
    }

    /// The description again, without what changes from day to day.
    pub fn to_wire(&self) -> wire::Computer {
        let redirector = |r: &KnownRedirector| wire::Redirector {
            name: r.name.clone(),
            target: Some(r.target.to_wire()),
            viewer: r.viewer.clone(),
        };
        wire::Computer {
            computer_id: self.id.to_bytes(),
            name: self.name.clone(),
            client: self.client.clone(),
            partner_id: self.tenant.clone(),
            identity: self.identity.to_bytes(),
            noise_cert: Some(self.noise_cert.clone()),
            redirectors: self.redirectors.iter().map(redirector).collect(),
            ..wire::Computer::default()
        }
    }

    /// How known agents name it.
    pub fn presented<'a>(&'a self, installation: &'a str) -> Presented<'a> {
        Presented {
            installation,
            computer: self.id,
            client: &self.client,
            name: &self.name,
            key: self.identity.fingerprint(),
        }
    }

    /// A redirector by name: one of the computer's own, else one that every computer has.
    pub fn redirector(&self, name: &str) -> Option<KnownRedirector> {
        let own = self.redirectors.iter().find(|redirector| same(&redirector.name, name));
        own.cloned().or_else(|| {
            // Only when the mediator does not list redirectors at all.
            let builtin = BUILTIN_REDIRECTORS.iter().find(|builtin| builtin.name == name)?;
            let target = Target::new("127.0.0.1", builtin.port, Transport::Tcp).ok()?;
            self.redirectors.is_empty().then(|| KnownRedirector {
                name: builtin.name.to_owned(),
                target,
                viewer: builtin.viewer.to_owned(),
            })
        })
    }

    /// Names of all redirectors, as [`Self::redirector`] finds them.
    pub fn redirector_names(&self) -> Vec<String> {
        if self.redirectors.is_empty() {
            return BUILTIN_REDIRECTORS.iter().map(|builtin| builtin.name.to_owned()).collect();
        }
        self.redirectors.iter().map(|redirector| redirector.name.clone()).collect()
    }

    /// `client/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.client, self.name)
    }
}

/// COMPUTER as given on a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// By its id.
    Id(ComputerId),
    /// By its name, or by client and name.
    Name {
        /// `client` or `partner/client`.
        client: Option<String>,
        /// Name of the computer.
        name: String,
    },
}

impl From<&str> for Selector {
    fn from(text: &str) -> Self {
        if let Ok(id) = text.parse() {
            return Self::Id(id);
        }
        match text.rsplit_once('/') {
            Some((client, name)) if !client.is_empty() => {
                Self::Name { client: Some(client.to_owned()), name: name.to_owned() }
            }
            _ => Self::Name { client: None, name: text.to_owned() },
        }
    }
}

impl Selector {
    /// Whether it means this computer.
    pub fn matches(&self, computer: &KnownComputer) -> bool {
        match self {
            Self::Id(id) => *id == computer.id,
            Self::Name { client, name } => {
                same(name, &computer.name)
                    && client.as_ref().is_none_or(|given| client_matches(&computer.client, given))
            }
        }
    }

    /// What to ask the mediator for; it answers with all that contain it.
    pub fn query(&self) -> String {
        match self {
            Self::Id(id) => id.to_string(),
            Self::Name { name, .. } => name.clone(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use adit_protocol::keys::SigningKey;

    pub(crate) fn described(id: u8, client: &str, name: &str) -> wire::Computer {
        let key = SigningKey::generate().unwrap();
        let target = Target::parse("127.0.0.1:22", Transport::Tcp).unwrap();
        wire::Computer {
            computer_id: ComputerId([id; 16]).to_bytes(),
            name: name.into(),
            client: client.into(),
            partner_id: "t".into(),
            online: true,
            os: "linux".into(),
            last_seen_ms: 7,
            identity: key.public().to_bytes(),
            noise_cert: Some(NoiseCert::issue(&key, [3; 32], 1)),
            redirectors: vec![wire::Redirector {
                name: "ssh".into(),
                target: Some(target.to_wire()),
                viewer: "ssh".into(),
            }],
        }
    }

    pub(crate) fn computer(id: u8, client: &str, name: &str) -> KnownComputer {
        KnownComputer::from_wire(described(id, client, name)).unwrap()
    }

    #[test]
    fn computers_are_meant_by_id_name_and_client() {
        let all = [computer(1, "p/a", "pc"), computer(2, "p/b", "pc"), computer(3, "p/b", "srv")];
        for (text, meant) in [
            ("01010101-0101-0101-0101-010101010101", &[1][..]),
            ("pc", &[1, 2]),
            ("a/pc", &[1]),
            ("P/B/PC", &[2]),
            ("Srv", &[3]),
            ("c/pc", &[]),
            ("p/pc", &[]),
            ("sr", &[]),
            ("", &[]),
            ("/", &[]),
            ("/pc", &[]),
            ("é/pc", &[]),
        ] {
            let selector = Selector::from(text);
            let found: Vec<u8> =
                all.iter().filter(|c| selector.matches(c)).map(|c| c.id.0[0]).collect();
            assert_eq!(found, meant, "{text}");
        }
    }

    #[test]
    fn descriptions_with_a_foreign_noise_key_or_without_name_are_dropped() {
        let good = described(1, "p/a", "pc");
        assert!(KnownComputer::from_wire(good.clone()).is_some());
        let other = described(1, "p/a", "pc");
        let forged = wire::Computer { noise_cert: other.noise_cert, ..good.clone() };
        assert_eq!(KnownComputer::from_wire(forged), None);
        let nameless = wire::Computer { name: String::new(), ..good };
        assert_eq!(KnownComputer::from_wire(nameless), None);
        assert_eq!(KnownComputer::from_wire(wire::Computer::default()), None);
    }

    #[test]
    fn builtin_redirectors_stand_in_only_for_none() {
        let mut pc = computer(1, "p/a", "pc");
        assert!(pc.redirector("SSH").is_some() && pc.redirector("rdp").is_none());
        pc.redirectors.clear();
        assert_eq!(pc.redirector("rdp").unwrap().target.to_string(), "127.0.0.1:3389");
        assert!(pc.redirector("x").is_none());
    }
}
