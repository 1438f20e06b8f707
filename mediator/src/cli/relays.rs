//! Commands about relays.

use clap::Subcommand;

use crate::admin::relays::RelayAct;

#[derive(Subcommand)]
pub(super) enum RelayCommand {
    /// List relays, and who drains or disabled them
    #[command(after_help = "Example: mediator relay list --json")]
    List,
    /// Give a relay nothing new; what it carries goes on
    #[command(after_help = "Example: mediator relay drain frankfurt-1")]
    Drain {
        /// Id or name
        relay: String,
    },
    /// Use a relay again
    #[command(after_help = "Example: mediator relay resume frankfurt-1\n\n\
        A drain that began on the relay's own machine ends there: relay resume.")]
    Resume {
        /// Id or name
        relay: String,
    },
    /// Let a relay not connect any more
    #[command(after_help = "Example: mediator relay disable frankfurt-1")]
    Disable {
        /// Id or name
        relay: String,
    },
    /// Let a relay connect again
    #[command(after_help = "Example: mediator relay enable frankfurt-1")]
    Enable {
        /// Id or name
        relay: String,
    },
}

impl From<RelayCommand> for RelayAct {
    fn from(command: RelayCommand) -> Self {
        match command {
            RelayCommand::List => Self::List,
            RelayCommand::Drain { relay } => Self::Drain { relay, draining: true },
            RelayCommand::Resume { relay } => Self::Drain { relay, draining: false },
            RelayCommand::Disable { relay } => Self::Disable { relay, disabled: true },
            RelayCommand::Enable { relay } => Self::Disable { relay, disabled: false },
        }
    }
}
