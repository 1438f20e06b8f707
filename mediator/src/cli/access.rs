//! Commands about access: roles, bindings, labels, requests, explanations.

use std::net::IpAddr;

use adit_runtime::{
    cli::{CliError, GlobalArgs},
    config::parse_some_duration,
};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{ask, audit::parse_when};
use crate::{
    admin::{
        AdminRequest,
        access::{AccessAct, Bind, ScopeArg},
        explain::Question,
    },
    roles::{
        Conditions, Permission,
        conditions::{MAX_NETWORKS, Network},
        hours::Hours,
    },
};

#[derive(Subcommand)]
pub(super) enum RoleCommand {
    /// List roles with their permissions
    #[command(after_help = "Example: mediator role list --json")]
    List {
        /// Partner whose roles are meant [default: the first one]
        #[arg(long)]
        partner: Option<String>,
    },
    /// List what can be permitted
    #[command(after_help = "Example: mediator role permissions")]
    Permissions,
    /// Show a role and its bindings
    #[command(after_help = "Example: mediator role show technician")]
    Show {
        /// Name of the role
        role: String,
        /// Partner [default: the first one]
        #[arg(long)]
        partner: Option<String>,
    },
    /// Make a role
    #[command(after_help = "Example: mediator role create ssh-only --permission launch \
        --redirector ssh --require reason --max-length 2h")]
    Create {
        /// Name of the role
        role: String,
        /// Partner it belongs to [default: the first one]
        #[arg(long)]
        partner: Option<String>,
        /// What it permits: see `mediator role permissions`
        #[arg(long = "permission", value_name = "PERMISSION", required = true)]
        permissions: Vec<String>,
        /// The only redirectors that it may launch [default: all]
        #[arg(long = "redirector", value_name = "NAME")]
        redirectors: Vec<String>,
        #[command(flatten)]
        conditions: ConditionArgs,
        /// Put it in the place of the role of this name; live sessions are judged anew
        #[arg(long)]
        replace: bool,
    },
    /// Delete a role and its bindings; what rests on them ends
    #[command(after_help = "Example: mediator role delete ssh-only")]
    Delete {
        /// Name of the role
        role: String,
        /// Partner [default: the first one]
        #[arg(long)]
        partner: Option<String>,
    },
    /// Bind a role to a user or a group of users, in a scope
    #[command(after_help = "Examples:\n  mediator role bind technician --user jane \
        --client acme/headquarters --require approval\n  mediator role bind auditor \
        --user-group inspectors --until 2026-12-31T00:00:00Z")]
    Bind(Box<BindArgs>),
    /// End a binding; what rests on it ends
    #[command(after_help = "Example: mediator role unbind 0190a0a0-0000-7000-8000-000000000000")]
    Unbind {
        /// Id of the binding, as `role bind` and `role show` print it
        binding: String,
    },
}

#[derive(Args)]
pub(super) struct BindArgs {
    /// Name of the role
    role: String,
    /// User to bind it to
    #[arg(long, conflicts_with = "user_group")]
    user: Option<String>,
    /// Group of users to bind it to
    #[arg(long)]
    user_group: Option<String>,
    /// Partner of the group [default: the first one]
    #[arg(long, requires = "user_group")]
    partner: Option<String>,
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    conditions: ConditionArgs,
    /// End it at this time: RFC 3339
    #[arg(long, value_parser = parse_when)]
    until: Option<u64>,
    /// On behalf of this user, who can grant only what the user holds
    #[arg(long, value_name = "USER")]
    r#as: Option<String>,
}

#[derive(Args)]
#[group(multiple = false)]
pub(super) struct ScopeArgs {
    /// The whole installation
    #[arg(long)]
    installation: bool,
    /// A client: PARTNER/CLIENT
    #[arg(long)]
    client: Option<String>,
    /// A group of computers
    #[arg(long, value_name = "GROUP")]
    computers: Option<String>,
    /// Computers with this tag: KEY=VALUE
    #[arg(long)]
    tag: Option<String>,
    /// A computer: PARTNER/CLIENT/COMPUTER or its id
    #[arg(long)]
    computer: Option<String>,
}

#[derive(Args)]
pub(super) struct ConditionArgs {
    /// What must be there: reason, ticket, approval
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = ["reason", "ticket", "approval"])]
    require: Vec<String>,
    /// Time window, e.g. "mon-fri 07:00-19:00 Europe/Berlin"
    #[arg(long)]
    hours: Option<Hours>,
    /// A second factor at most this old
    #[arg(long, value_parser = parse_some_duration)]
    mfa_within: Option<std::time::Duration>,
    /// Networks to come from, e.g. 192.0.2.0/24
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    from: Vec<Network>,
    /// Longest session
    #[arg(long, value_parser = parse_some_duration)]
    max_length: Option<std::time::Duration>,
}

impl ConditionArgs {
    fn read(self) -> Result<Conditions, CliError> {
        if self.from.len() > MAX_NETWORKS {
            let text = format!("--from: at most {MAX_NETWORKS} networks");
            return Err(CliError::usage("usage", text));
        }
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let required = |what: &str| self.require.iter().any(|word| word == what);
        Ok(Conditions {
            reason: required("reason"),
            ticket: required("ticket"),
            approval: required("approval"),
            hours: self.hours,
            mfa_age_ms: self.mfa_within.map(ms),
            networks: self.from,
            length_ms: self.max_length.map(ms),
        })
    }
}

#[derive(Subcommand)]
pub(super) enum ComputerCommand {
    /// List computers with their groups and tags
    #[command(after_help = "Example: mediator computer list --json")]
    List {
        /// Name, id or PARTNER/CLIENT/COMPUTER [default: all]
        #[arg(default_value = "")]
        computer: String,
    },
    /// Put a computer into a group
    #[command(after_help = "Example: mediator computer group acme/headquarters/pc-1 servers")]
    Group {
        /// Name, id or PARTNER/CLIENT/COMPUTER
        computer: String,
        /// Name of the group
        group: String,
        /// Take it out
        #[arg(long)]
        remove: bool,
    },
    /// Give a computer a tag
    #[command(after_help = "Example: mediator computer tag acme/headquarters/pc-1 site=berlin")]
    Tag {
        /// Name, id or PARTNER/CLIENT/COMPUTER
        computer: String,
        /// KEY=VALUE
        tag: String,
        /// Take it away
        #[arg(long)]
        remove: bool,
    },
    /// Give a computer another name
    #[command(after_help = "Example: mediator computer rename acme/headquarters/pc-1 reception")]
    Rename {
        /// Name, id or PARTNER/CLIENT/COMPUTER
        computer: String,
        /// The new name
        name: String,
    },
    /// Remove a computer: its sessions end, its agent is refused, its name is free again
    #[command(
        after_help = "Example: mediator computer remove acme/headquarters/pc-1 --yes\n\nThe \
        audit log keeps what was done there. To come back the computer is enrolled anew."
    )]
    Remove {
        /// Name, id or PARTNER/CLIENT/COMPUTER
        computer: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum RequestCommand {
    /// List requests for access, newest first
    #[command(after_help = "Example: mediator request list --pending --json")]
    List {
        /// Only those that nobody has decided
        #[arg(long)]
        pending: bool,
    },
    /// Approve a request
    #[command(after_help = "Example: mediator request approve 0190a0a0-… --for 1h")]
    Approve {
        /// Id of the request
        request: String,
        /// For how long, at most what was asked for
        #[arg(long = "for", value_parser = parse_some_duration)]
        length: Option<std::time::Duration>,
        /// For the log
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Deny a request, or take an approval back; what rests on it ends
    #[command(after_help = "Example: mediator request deny 0190a0a0-…")]
    Deny {
        /// Id of the request
        request: String,
        /// For the log
        #[arg(long, default_value = "")]
        note: String,
    },
}

#[derive(Args)]
pub(super) struct ExplainArgs {
    /// User
    user: String,
    /// Name, id or PARTNER/CLIENT/COMPUTER
    computer: String,
    /// Redirector, e.g. ssh; tcp, udp or socks for forwards
    redirector: String,
    /// At this past time: RFC 3339, or how long ago, e.g. 24h
    #[arg(long, value_parser = parse_when)]
    at: Option<u64>,
    /// As if a reason were given
    #[arg(long)]
    reason: bool,
    /// As if a ticket number were given
    #[arg(long)]
    ticket: bool,
    /// As if the user came from this address
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
}

/// Roles.
pub(super) async fn role(global: &GlobalArgs, command: RoleCommand) -> Result<(), CliError> {
    let act = match command {
        RoleCommand::Permissions => return permissions(global),
        RoleCommand::List { partner } => AccessAct::RoleList { partner },
        RoleCommand::Show { role, partner } => AccessAct::RoleShow { partner, role },
        RoleCommand::Create { role, partner, permissions, redirectors, conditions, replace } => {
            let conditions = conditions.read()?;
            AccessAct::RoleCreate { partner, role, permissions, redirectors, conditions, replace }
        }
        RoleCommand::Delete { role, partner } => AccessAct::RoleDelete { partner, role },
        RoleCommand::Bind(args) => {
            let ScopeArgs { installation, client, computers, tag, computer } = args.scope;
            AccessAct::RoleBind(Box::new(Bind {
                key: None,
                role: args.role,
                user: args.user,
                group: args.user_group,
                partner: args.partner,
                scope: ScopeArg { installation, client, computers, tag, computer },
                conditions: args.conditions.read()?,
                expires_ms: args.until,
                as_user: args.r#as,
            }))
        }
        RoleCommand::Unbind { binding } => AccessAct::RoleUnbind { binding },
    };
    ask(global, AdminRequest::Access(act)).await
}

fn permissions(global: &GlobalArgs) -> Result<(), CliError> {
    let output = global.output();
    for permission in Permission::ALL {
        let (name, meaning) = (permission.name(), permission.meaning());
        output.emit(&json!({"permission": name, "meaning": meaning}))?;
        output.human(format_args!("{name:20} {meaning}"))?;
    }
    Ok(())
}

/// Computers.
pub(super) async fn computer(
    global: &GlobalArgs,
    command: ComputerCommand,
) -> Result<(), CliError> {
    let act = match command {
        ComputerCommand::List { computer } => AccessAct::ComputerList { query: computer },
        ComputerCommand::Group { computer, group, remove } => {
            AccessAct::ComputerLabel { computer, group: Some(group), tag: None, remove }
        }
        ComputerCommand::Tag { computer, tag, remove } => {
            AccessAct::ComputerLabel { computer, group: None, tag: Some(tag), remove }
        }
        ComputerCommand::Rename { computer, name } => AccessAct::ComputerRename { computer, name },
        ComputerCommand::Remove { computer, yes: true } => AccessAct::ComputerRemove { computer },
        ComputerCommand::Remove { computer, yes: false } => {
            let text = format!(
                "this removes {computer}: its sessions end, its agent is refused until it is \
                 enrolled anew, requests and credentials for it alone are deleted"
            );
            return Err(CliError::usage("usage", text).hint("add --yes if you mean it"));
        }
    };
    ask(global, AdminRequest::Access(act)).await
}

/// Requests for access.
pub(super) async fn request(global: &GlobalArgs, command: RequestCommand) -> Result<(), CliError> {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let act = match command {
        RequestCommand::List { pending } => AccessAct::RequestList { pending },
        RequestCommand::Approve { request, length, note } => AccessAct::RequestDecide {
            id: request,
            approve: true,
            length_ms: length.map_or(0, ms),
            note,
        },
        RequestCommand::Deny { request, note } => {
            AccessAct::RequestDecide { id: request, approve: false, length_ms: 0, note }
        }
    };
    ask(global, AdminRequest::Access(act)).await
}

/// Which rule allows or denies.
pub(super) async fn explain(global: &GlobalArgs, args: ExplainArgs) -> Result<(), CliError> {
    let question = Question {
        user: args.user,
        computer: args.computer,
        redirector: args.redirector,
        at_ms: args.at,
        reason: args.reason,
        ticket: args.ticket,
        source: args.source,
    };
    ask(global, AdminRequest::Access(AccessAct::Explain(question))).await
}
