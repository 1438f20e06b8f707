//! Commands about second factors, logins and kill switches.

use adit_protocol::keys::Fingerprint;
use clap::Subcommand;

use crate::{
    admin::{accounts::AccountAct, oidc::OidcAct},
    oidc::MfaClaims,
};

#[derive(Subcommand)]
pub(super) enum MfaCommand {
    /// Show the second factors of a user
    #[command(after_help = "Example: mediator user mfa status jane --json")]
    Status {
        /// Name
        user: String,
    },
    /// Require a second factor; until one is set up the user can do nothing else
    #[command(after_help = "Example: mediator user mfa require jane")]
    Require {
        /// Name
        user: String,
        /// Only a security key, or a provider that asks for one
        #[arg(long)]
        phishing_resistant: bool,
    },
    /// Ask for a second factor once one is set up, whatever the setting accounts.mfa says
    #[command(after_help = "Example: mediator user mfa optional jane")]
    Optional {
        /// Name
        user: String,
    },
    /// Remove all second factors and recovery codes; logins and sessions end
    #[command(after_help = "Example: mediator user mfa reset jane")]
    Reset {
        /// Name
        user: String,
    },
}

impl From<MfaCommand> for AccountAct {
    fn from(command: MfaCommand) -> Self {
        match command {
            MfaCommand::Status { user } => Self::MfaStatus { user },
            MfaCommand::Require { user, phishing_resistant: true } => {
                Self::MfaPhishingResistant { user }
            }
            MfaCommand::Require { user, .. } => Self::MfaRequire { user, required: true },
            MfaCommand::Optional { user } => Self::MfaRequire { user, required: false },
            MfaCommand::Reset { user } => Self::MfaReset { user },
        }
    }
}

#[derive(Subcommand)]
pub(super) enum DeviceCommand {
    /// List devices with which somebody logged in, and those that are disabled
    #[command(after_help = "Example: mediator device list --json")]
    List,
    /// Disable a technician's device: its logins and live sessions end
    #[command(
        after_help = "Example: mediator device disable sha256:9f86… --reason 'laptop lost'\n\n\
        `mediator device list` and the audit log name devices."
    )]
    Disable {
        /// Fingerprint of the device's key
        device: Fingerprint,
        /// Why; for the audit record
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
        /// For the users of this partner only [default: for everybody]
        #[arg(long)]
        partner: Option<String>,
    },
    /// Let a device log in again
    #[command(after_help = "Example: mediator device enable sha256:9f86… --partner main\n\n\
        `mediator device list` tells who disabled it: without --partner what you did is undone, \
        with it what that partner did.")]
    Enable {
        /// Fingerprint of the device's key
        device: Fingerprint,
        /// Undo what this partner did for its users
        #[arg(long)]
        partner: Option<String>,
    },
}

impl From<DeviceCommand> for AccountAct {
    fn from(command: DeviceCommand) -> Self {
        match command {
            DeviceCommand::List => Self::DeviceList,
            DeviceCommand::Disable { device, reason, partner } => {
                let (device, everywhere) = (device.to_string(), false);
                Self::Device { device, disabled: true, reason, partner, everywhere }
            }
            DeviceCommand::Enable { device, partner } => {
                let (device, reason) = (device.to_string(), String::new());
                Self::Device { device, disabled: false, reason, partner, everywhere: false }
            }
        }
    }
}

#[derive(Subcommand)]
pub(super) enum VaultCommand {
    /// Make a new key over stored secrets and seal them all with it
    #[command(
        after_help = "Example: mediator vault rotate\n\nKeys of before stay in wrapping.keys: \
        restored backups need them."
    )]
    Rotate {
        /// Also make new keys over the credentials of each client
        #[arg(long)]
        data_keys: bool,
    },
}

impl From<VaultCommand> for AccountAct {
    fn from(command: VaultCommand) -> Self {
        match command {
            VaultCommand::Rotate { data_keys } => Self::VaultRotate { data_keys },
        }
    }
}

#[derive(Subcommand)]
pub(super) enum OidcCommand {
    /// Add an identity provider; users link their accounts with it on their page
    #[command(
        after_help = "Example: mediator oidc add Directory --issuer https://id.example \\\n    \
        --client-id adit --secret-file /etc/adit/oidc.secret --mfa-amr mfa\n\n\
        Register https://HOST/login/oidc/callback/directory there, the name in small letters.\n\
        Without --mfa-acr and --mfa-amr its logins \
        count as a password: a second factor is asked for here."
    )]
    Add {
        /// Name, as the page shows it
        name: String,
        /// Partner whose users it knows [default: the first one]
        #[arg(long)]
        partner: Option<String>,
        /// Address of the provider: https://…
        #[arg(long)]
        issuer: String,
        /// This mediator's id there
        #[arg(long)]
        client_id: String,
        /// File with this mediator's secret there
        #[arg(long, default_value = "", hide_default_value = true)]
        secret_file: String,
        /// PEM file with the provider's own authority, beside the system's
        #[arg(long, default_value = "", hide_default_value = true)]
        ca_file: String,
        /// Value of the claim acr that says that a second factor was asked for
        #[arg(long, value_name = "VALUE")]
        mfa_acr: Vec<String>,
        /// Value of the claim amr that says so
        #[arg(long, value_name = "VALUE")]
        mfa_amr: Vec<String>,
        /// What is asked for then resists phishing
        #[arg(long)]
        mfa_phishing_resistant: bool,
    },
    /// List identity providers
    #[command(after_help = "Example: mediator oidc list --json")]
    List,
    /// Remove an identity provider and all links with it
    #[command(after_help = "Example: mediator oidc remove Directory")]
    Remove {
        /// Name
        name: String,
    },
    /// Link a user with a subject of a provider
    #[command(after_help = "Example: mediator oidc link jane Directory 7f3c…")]
    Link {
        /// Name of the user
        user: String,
        /// Name of the provider
        provider: String,
        /// Who that is there: the claim sub
        subject: String,
    },
    /// End a user's links with a provider
    #[command(after_help = "Example: mediator oidc unlink jane Directory")]
    Unlink {
        /// Name of the user
        user: String,
        /// Name of the provider
        provider: String,
    },
}

impl From<OidcCommand> for OidcAct {
    fn from(command: OidcCommand) -> Self {
        match command {
            OidcCommand::Add {
                name,
                partner,
                issuer,
                client_id,
                secret_file,
                ca_file,
                mfa_acr,
                mfa_amr,
                mfa_phishing_resistant,
            } => Self::Add {
                name,
                partner,
                issuer,
                client_id,
                secret_file,
                ca_file,
                secret: None,
                ca: String::new(),
                mfa: MfaClaims {
                    acr: mfa_acr,
                    amr: mfa_amr,
                    phishing_resistant: mfa_phishing_resistant,
                },
            },
            OidcCommand::List => Self::List,
            OidcCommand::Remove { name } => Self::Remove { name },
            OidcCommand::Link { user, provider, subject } => Self::Link { user, provider, subject },
            OidcCommand::Unlink { user, provider } => Self::Unlink { user, provider },
        }
    }
}
