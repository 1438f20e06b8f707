//! Commands about second factors, logins and kill switches.

use adit_protocol::keys::Fingerprint;
use clap::Subcommand;

use crate::admin::accounts::AccountAct;

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
            MfaCommand::Require { user } => Self::MfaRequire { user, required: true },
            MfaCommand::Optional { user } => Self::MfaRequire { user, required: false },
            MfaCommand::Reset { user } => Self::MfaReset { user },
        }
    }
}

#[derive(Subcommand)]
pub(super) enum DeviceCommand {
    /// List devices that are disabled
    #[command(after_help = "Example: mediator device list --json")]
    List,
    /// Disable a technician's device: its logins and live sessions end
    #[command(
        after_help = "Example: mediator device disable sha256:9f86… --reason 'laptop lost'\n\n\
        `mediator user sessions USER` and the audit log name devices."
    )]
    Disable {
        /// Fingerprint of the device's key
        device: Fingerprint,
        /// Why; for the audit record
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Let a device log in again
    #[command(after_help = "Example: mediator device enable sha256:9f86…")]
    Enable {
        /// Fingerprint of the device's key
        device: Fingerprint,
    },
}

impl From<DeviceCommand> for AccountAct {
    fn from(command: DeviceCommand) -> Self {
        match command {
            DeviceCommand::List => Self::DeviceList,
            DeviceCommand::Disable { device, reason } => {
                Self::Device { device: device.to_string(), disabled: true, reason }
            }
            DeviceCommand::Enable { device } => {
                let (device, reason) = (device.to_string(), String::new());
                Self::Device { device, disabled: false, reason }
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
