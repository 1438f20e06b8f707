//! What goes in and comes out, as it is described and checked: unknown fields are refused.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::credentials::{ChangedCredential, NewCredential};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: $kind,)*
        }
    )*};
}

/// No body, or no query.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// Which page of a list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Paging {
    /// Items at most: 1 to 1,000; else 100.
    pub(crate) limit: Option<u32>,
    /// `next` of the page before.
    pub(crate) cursor: Option<String>,
}

impl Paging {
    /// As lists take it.
    pub(crate) fn page(&self) -> (Option<u32>, Option<&str>) {
        (self.limit, self.cursor.as_deref())
    }
}

/// Which computers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ComputerQuery {
    /// Part of the name or id.
    pub(crate) query: String,
    /// PARTNER/CLIENT.
    pub(crate) client: Option<String>,
    /// Of this group.
    pub(crate) group: Option<String>,
    /// With this tag: KEY=VALUE.
    pub(crate) tag: Option<String>,
    /// Only those that are online.
    pub(crate) online: bool,
    /// Items at most: 1 to 1,000; else 100.
    pub(crate) limit: Option<u32>,
    /// `next` of the page before.
    pub(crate) cursor: Option<String>,
}

/// Which requests.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RequestQuery {
    /// Only those that nobody has decided.
    pub(crate) pending: bool,
    /// Items at most: 1 to 1,000; else 100.
    pub(crate) limit: Option<u32>,
    /// `next` of the page before.
    pub(crate) cursor: Option<String>,
}

/// May this user open that redirector there?
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExplainQuery {
    pub(crate) user: String,
    /// Id or name.
    pub(crate) computer: String,
    pub(crate) redirector: String,
    /// A past time, RFC 3339.
    pub(crate) at: Option<String>,
    /// As if a reason were given.
    #[serde(default)]
    pub(crate) reason: bool,
    /// As if a ticket number were given.
    #[serde(default)]
    pub(crate) ticket: bool,
    /// As if the user came from there.
    #[schema(value_type = Option<String>)]
    pub(crate) source: Option<IpAddr>,
}

/// What is searched for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// Who acted, or whom it was about.
    pub(crate) person: Option<String>,
    /// Name or id.
    pub(crate) computer: Option<String>,
    /// PARTNER/CLIENT.
    pub(crate) client: Option<String>,
    pub(crate) redirector: Option<String>,
    pub(crate) session: Option<String>,
    /// Like `session.granted`.
    pub(crate) event: Option<String>,
    /// RFC 3339.
    pub(crate) since: Option<String>,
    /// RFC 3339.
    pub(crate) until: Option<String>,
    /// Items at most: 1 to 500; else 100.
    pub(crate) limit: Option<u32>,
    /// `next` of the page before.
    pub(crate) cursor: Option<String>,
}

/// What is taken away.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ExportQuery {
    /// `jsonl` (can be verified), `csv`, `cef` or `ocsf`.
    pub(crate) format: Option<String>,
    /// Who acted, or whom it was about.
    pub(crate) person: Option<String>,
    /// Name or id.
    pub(crate) computer: Option<String>,
    /// PARTNER/CLIENT.
    pub(crate) client: Option<String>,
    pub(crate) redirector: Option<String>,
    pub(crate) session: Option<String>,
    /// Like `session.granted`.
    pub(crate) event: Option<String>,
    /// RFC 3339.
    pub(crate) since: Option<String>,
    /// RFC 3339.
    pub(crate) until: Option<String>,
    /// Heads that readers hold (TREE:SIZE), at most 32, with commas between them: what is left out
    /// of a `jsonl` is told so that it can be compared with each.
    pub(crate) heads: Option<String>,
}

/// For whom a backup is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackupQuery {
    /// Recipients (`age1…`), with commas between them: who can read it.
    pub(crate) recipients: String,
}

/// Two sizes of the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsistencyQuery {
    pub(crate) tree: String,
    pub(crate) old_size: u64,
    pub(crate) new_size: u64,
}

/// An entry and a size of the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InclusionQuery {
    pub(crate) tree: String,
    pub(crate) seq: u64,
    pub(crate) size: u64,
}

/// How long the log is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Keep {
    /// Absent: as configured.
    pub(crate) days: Option<u64>,
}

/// A legal hold that begins (`true`) beside others, or ends.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hold {
    pub(crate) hold: bool,
    #[serde(default)]
    pub(crate) reason: String,
    /// Which one ends; absent: the only one. Of several one must be named.
    pub(crate) hold_id: Option<String>,
}

/// A level, 0 to 5.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditLevel {
    pub(crate) level: u8,
}

/// What was destroyed, with the signed certificate.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub(crate) struct Destruction(pub(crate) Value);

/// Why.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Reason {
    pub(crate) reason: String,
}

/// A scope by names; nothing: the whole partner.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ScopeOf {
    /// The installation's own things, and all of the partner.
    pub(crate) installation: bool,
    /// PARTNER/CLIENT.
    pub(crate) client: Option<String>,
    /// A group of computers.
    pub(crate) computers: Option<String>,
    /// KEY=VALUE.
    pub(crate) tag: Option<String>,
    /// Id or name.
    pub(crate) computer: Option<String>,
}

/// Conditions of a role or a binding; absent ones ask for nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ConditionsOf {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) reason: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ticket: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) approval: bool,
    /// Like `mon-fri 07:00-19:00 Europe/Berlin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hours: Option<String>,
    /// Longest age of the second factor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mfa_age_ms: Option<u64>,
    /// Networks to come from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) networks: Vec<String>,
    /// Longest session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) length_ms: Option<u64>,
}

fn one() -> u64 {
    1
}

fn hour_ms() -> u64 {
    3_600_000
}

/// A user to be added.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    pub(crate) user: String,
    /// On the whole partner; none: bind one later.
    #[serde(default)]
    pub(crate) role: Option<String>,
    /// A second factor is required from the beginning.
    #[serde(default)]
    pub(crate) mfa: bool,
    /// Without one, one is generated and shown once.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(crate) password: Option<crate::admin::Secret>,
}

/// A password.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NewPassword {
    /// Without one, one is generated and shown once.
    #[schema(value_type = Option<String>)]
    pub(crate) password: Option<crate::admin::Secret>,
}

/// A token for agents.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewAgentToken {
    /// PARTNER/CLIENT.
    pub(crate) client: String,
    #[serde(default = "one")]
    pub(crate) uses: u64,
    #[serde(default = "hour_ms")]
    pub(crate) ttl_ms: u64,
}

/// A token for relays.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRelayToken {
    #[serde(default)]
    pub(crate) region: String,
    #[serde(default = "one")]
    pub(crate) uses: u64,
    #[serde(default = "hour_ms")]
    pub(crate) ttl_ms: u64,
}

/// What a role is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RoleContent {
    pub(crate) permissions: Vec<String>,
    /// The only redirectors that it may launch; empty: all.
    #[serde(default)]
    pub(crate) redirectors: Vec<String>,
    #[serde(default)]
    pub(crate) conditions: ConditionsOf,
}

/// A role to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRole {
    pub(crate) role: String,
    pub(crate) permissions: Vec<String>,
    /// The only redirectors that it may launch; empty: all.
    #[serde(default)]
    pub(crate) redirectors: Vec<String>,
    #[serde(default)]
    pub(crate) conditions: ConditionsOf,
}

/// A role to be bound to one of user, group, key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBinding {
    pub(crate) role: String,
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    /// An API key, by id.
    pub(crate) key: Option<String>,
    #[serde(default)]
    pub(crate) scope: ScopeOf,
    #[serde(default)]
    pub(crate) conditions: ConditionsOf,
    /// When it ends, RFC 3339.
    pub(crate) expires: Option<String>,
}

/// A request for access.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRequest {
    /// Id or name.
    pub(crate) computer: String,
    pub(crate) redirector: String,
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) ticket: String,
    /// 0: the usual.
    #[serde(default)]
    pub(crate) length_ms: u64,
}

/// A decision.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Judgement {
    /// 0: what was asked for.
    pub(crate) length_ms: u64,
    pub(crate) note: String,
}

/// A key to be registered.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewApiKey {
    pub(crate) name: String,
    /// Ed25519, 32 bytes in base64url: `x` of its JWK.
    pub(crate) public_key: String,
    /// Its first role.
    pub(crate) role: String,
    #[serde(default)]
    pub(crate) scope: ScopeOf,
    /// Networks it may come from; none: any.
    #[serde(default)]
    pub(crate) networks: Vec<String>,
    /// Life; else 90 days.
    pub(crate) ttl_ms: Option<u64>,
}

/// A client to be added.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewClient {
    /// PARTNER/CLIENT.
    pub(crate) client: String,
}

/// Another name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewName {
    pub(crate) name: String,
}

/// A partner to be added, with its first user.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPartner {
    pub(crate) partner: String,
    pub(crate) owner: String,
}

/// Whether a second factor is required before there is one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MfaPolicy {
    pub(crate) required: bool,
    /// Only one that resists phishing will do.
    #[serde(default)]
    pub(crate) phishing_resistant: bool,
}

/// What cannot be undone, said once more.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Confirmed {
    /// The partner's name, as in the path.
    pub(crate) partner: String,
}

/// Which keys are made anew.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NewKeys {
    /// Also those over the credentials of each client.
    pub(crate) data_keys: bool,
}

/// Which claims say that an identity provider asked for a second factor; none: it never counts.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MfaClaimsOf {
    /// Values of `acr`.
    pub(crate) acr: Vec<String>,
    /// Values of `amr`.
    pub(crate) amr: Vec<String>,
    /// What is asked for then resists phishing.
    pub(crate) phishing_resistant: bool,
}

/// An identity provider to be added.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewProvider {
    /// Its name here.
    pub(crate) provider: String,
    /// `https://…`; without policy.manage on the installation at an address that all can reach.
    pub(crate) issuer: String,
    /// This mediator's id there.
    pub(crate) client_id: String,
    /// This mediator's secret there; sealed, and never shown.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(crate) secret: Option<crate::admin::Secret>,
    /// The provider's own authority beside the system's, PEM.
    #[serde(default)]
    pub(crate) ca: String,
    #[serde(default)]
    pub(crate) mfa: MfaClaimsOf,
}

/// Who a user is at an identity provider.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewLink {
    /// The claim `sub`.
    pub(crate) subject: String,
}

kinds! {
    /// Who asks.
    Me {
        name: String,
        /// `console` or `key`.
        kind: String,
        partner: String,
        roles: Vec<String>,
        device: String,
        source: String,
        mfa: String,
    }
    /// A partner.
    Partner { partner: String, partner_id: String, }
    /// A partner that was added.
    AddedPartner { partner: String, partner_id: String, owner: String, password: Option<String>, }
    /// A client.
    Client { client: String, client_id: String, computers: u64, locked: bool, }
    /// A client that was added.
    AddedClient { client: String, client_id: String, new_partner: bool, }
    /// What was erased, with the signed certificate once it is done.
    Erasure {
        erasure: String,
        kind: String,
        subject: String,
        begun: String,
        finished: Option<String>,
        certificate: Value,
    }
    /// A lockdown.
    Locked { client: String, locked: bool, sessions_ended: u64, }
    /// A computer.
    Computer {
        computer_id: String,
        computer: String,
        client: String,
        groups: Vec<String>,
        tags: Vec<String>,
        os: String,
        last_seen: String,
        online: bool,
        /// By how much its clock was ahead of the mediator's when it last told, milliseconds;
        /// negative: behind. None: it has not told since the mediator started.
        clock_offset_ms: Option<i64>,
    }
    /// A computer that was removed.
    RemovedComputer {
        computer_id: String,
        computer: String,
        client: String,
        removed: bool,
        sessions_ended: u64,
        credentials_destroyed: u64,
    }
    /// A computer that was renamed.
    RenamedComputer {
        computer_id: String,
        client: String,
        computer: String,
        /// Its name before.
        was: String,
        changed: bool,
    }
    /// A user.
    User { user: String, partner: String, roles: Vec<String>, enabled: bool, mfa: String, }
    /// A user that was added.
    AddedUser { user: String, partner: String, role: String, password: Option<String>, }
    /// A user that was disabled or enabled.
    EnabledUser { user: String, enabled: bool, sessions_ended: u64, }
    /// Ended logins and sessions.
    LoggedOut { user: String, sessions_ended: u64, }
    /// A password that was set; shown once if it was generated.
    SetPassword { user: String, password: Option<String>, }
    /// A second factor.
    Factor {
        factor: String,
        kind: String,
        name: String,
        confirmed: bool,
        created: String,
        used: Option<String>,
    }
    /// Second factors of a user.
    MfaState {
        user: String,
        policy: String,
        required: bool,
        factors: Vec<Factor>,
        recovery_codes_left: u64,
    }
    /// A policy that was set.
    SetMfaPolicy { user: String, policy: String, sessions_ended: u64, }
    /// Removed factors.
    MfaReset { user: String, factors_removed: u64, sessions_ended: u64, }
    /// A login or live session of a user.
    Login {
        kind: String,
        user: String,
        device: String,
        since: String,
        used: Option<String>,
        expires: Option<String>,
        idle: Option<bool>,
        mfa: String,
        mfa_at: Option<String>,
        session_id: Option<String>,
        computer: Option<String>,
        client: Option<String>,
        redirector: Option<String>,
    }
    /// A token's secret, shown once.
    MadeToken { token: String, expires: String, token_id: String, }
    /// A token that is good.
    Token {
        token_id: String,
        kind: String,
        client: Option<String>,
        region: Option<String>,
        uses_left: u64,
        expires: String,
    }
    /// A token that is worthless now.
    RevokedToken { token_id: String, revoked: bool, }
    /// What can be permitted.
    PermissionKind { permission: String, meaning: String, }
    /// A role.
    Role {
        role: String,
        builtin: bool,
        permissions: Vec<String>,
        /// `all`, or names.
        redirectors: Value,
        /// Those of them that no computer has.
        unknown_redirectors: Vec<String>,
        conditions: ConditionsOf,
        description: Option<String>,
    }
    /// A role that was deleted.
    DeletedRole { role: String, deleted: bool, bindings: u64, }
    /// A binding.
    Binding {
        binding: String,
        /// `user`, `group` or `key`.
        subject: String,
        name: Option<String>,
        role: String,
        scope: String,
        scope_id: Option<String>,
        conditions: ConditionsOf,
        expires: Option<String>,
    }
    /// A binding that was ended.
    Unbound { binding: String, unbound: bool, }
    /// A user's place in a group.
    Member { user: String, group: String, member: bool, changed: bool, }
    /// A label of a computer.
    Labelled {
        computer_id: String,
        group: Option<String>,
        tag: Option<String>,
        set: bool,
        changed: bool,
    }
    /// A request for access.
    AccessRequest {
        request: String,
        state: String,
        user: String,
        client: String,
        computer: String,
        redirector: String,
        reason: String,
        ticket: String,
        asked: String,
        length_ms: u64,
        decided_by: Option<String>,
        until: Option<String>,
    }
    /// An open session.
    Session {
        session_id: String,
        user: String,
        computer: String,
        client: String,
        redirector: String,
        target: String,
        started: String,
        carrier: Option<String>,
    }
    /// A session that was ended.
    EndedSession { session_id: String, ended: bool, }
    /// A console with which somebody logged in, or that is switched off.
    Device {
        device: String,
        enabled: bool,
        /// Who switched it off: `partner NAME` for its own users, `mediator` for everybody.
        disabled_by: Vec<String>,
        /// Who logged in with it.
        users: Vec<String>,
        last_login: Option<String>,
        /// Since when it is switched off.
        since: Option<String>,
        reason: String,
    }
    /// A device that was switched off or on.
    EnabledDevice {
        device: String,
        enabled: bool,
        /// Who keeps it off.
        disabled_by: Vec<String>,
        logins_ended: u64,
        sessions_ended: u64,
    }
    /// A relay.
    Relay {
        relay_id: String,
        name: String,
        region: String,
        identity: String,
        online: bool,
        pairs: Option<u64>,
        /// It gets nothing new.
        draining: bool,
        /// Who wants that: `mediator`, an operator here; `relay`, its own machine.
        drained_by: Vec<String>,
        enabled: bool,
        last_seen: String,
        /// By how much its clock was ahead of the mediator's when it last told, milliseconds.
        clock_offset_ms: Option<i64>,
    }
    /// What was changed of a relay.
    ChangedRelay {
        relay_id: String,
        draining: Option<bool>,
        /// Who still wants it to get nothing new.
        drained_by: Option<Vec<String>>,
        enabled: Option<bool>,
    }
    /// An API key.
    ApiKey {
        key_id: String,
        name: String,
        partner: String,
        token: String,
        fingerprint: String,
        roles: Vec<String>,
        networks: Vec<String>,
        created_by: String,
        created: String,
        expires: String,
    }
    /// A key that was revoked.
    RevokedKey { key_id: String, revoked: bool, }
    /// An entry of the log.
    AuditEntry { tree: String, seq: u64, entry: Value, }
    /// A signed head: the line as exports end with it.
    AuditHead { tree: String, size: u64, line: String, }
    /// A proof of the log (RFC 9162): hashes in hex.
    AuditProof { tree: String, path: Vec<String>, }
    /// How long the log is kept.
    Kept { partner: String, days: Option<u64>, }
    /// How long the log is kept, and why longer.
    Retention {
        partner: String,
        days: u64,
        /// Not as configured, but set for this partner.
        own: bool,
        /// Whether there is any legal hold.
        hold: bool,
        /// Of several all reasons, with semicolons between them.
        hold_reason: String,
        /// Oldest first.
        holds: Vec<LegalHold>,
    }
    /// A legal hold. Who set it and when is absent for one of before that was kept.
    LegalHold {
        hold_id: String,
        reason: String,
        created_by: Option<String>,
        created: Option<String>,
    }
    /// How far a receiver of the log is.
    Receiver {
        /// Receiver and tree.
        receiver: String,
        target: String,
        partner: String,
        tree: String,
        delivered: u64,
        entries: u64,
        behind: u64,
        updated: String,
    }
    /// What runs.
    Status {
        state: String,
        port: Option<u16>,
        agents: u64,
        consoles: u64,
        relays: u64,
        sessions: u64,
        pending_revocations: u64,
    }
    /// Whether the database was rewritten; not if it is too large or too busy.
    Compacted { compacted: bool, }
    /// The rotation of keys that runs, or ran last since the start.
    VaultRotation {
        /// `none`, `running`, `done` or `failed`.
        state: String,
        /// Name of the key that seals now; empty before it is known.
        key: String,
        begun: Option<String>,
        finished: Option<String>,
        /// Clients for which a data key is made.
        clients: u64,
        data_keys_made: u64,
        tenant_keys_resealed: u64,
        credentials_resealed: u64,
        secrets_resealed: u64,
        /// It goes on with the key of one that was not done.
        resumed: bool,
        /// Clients whose keys were not sealed anew.
        skipped: Vec<SkippedKey>,
        /// Code of what went wrong.
        error: Option<String>,
    }
    /// A client's key whose file is damaged.
    SkippedKey {
        /// Id of one that nobody knows.
        client: String,
        /// In the mediator's data directory.
        file: String,
        error: String,
    }
    /// An identity provider.
    IdentityProvider {
        provider: String,
        issuer: String,
        client_id: String,
        /// To be registered there, behind this mediator's host.
        callback_path: String,
        /// `none`, `stored`, or `file` of the mediator's machine.
        secret: String,
        /// The same.
        authority: String,
        /// Only addresses that everybody can reach are connected to.
        public_only: bool,
        mfa: MfaClaimsOf,
    }
    /// An identity provider that was added.
    AddedProvider {
        provider: String,
        id: String,
        partner: String,
        issuer: String,
        callback_path: String,
        public_only: bool,
    }
    /// An identity provider that was removed.
    RemovedProvider { provider: String, removed: bool, }
    /// A user's link with an identity provider.
    Linked { user: String, provider: String, subject: String, }
    /// Links that were ended.
    Unlinked { user: String, provider: String, links_ended: u64, }
    /// What was done to which legal hold, and what is on the partner now.
    Held {
        partner: String,
        /// Whether there is any now.
        hold: bool,
        /// The one that began or ended; absent where there was none to end.
        hold_id: Option<String>,
        holds: Vec<LegalHold>,
    }
    /// A level.
    SetLevel { user: String, level: u8, name: String, }
    /// How one rule came out.
    RuleOutcome {
        rule: String,
        covers: bool,
        permits: bool,
        current: bool,
        missing: Vec<String>,
        conditions: String,
    }
    /// Which rule allows or denies.
    Explanation {
        allowed: bool,
        rule: String,
        code: Option<String>,
        message: Option<String>,
        missing: Vec<String>,
        until: Option<String>,
        user: String,
        computer: String,
        client: String,
        redirector: String,
        /// Whether computers have such a redirector, whatever the rules say.
        known: bool,
        at: String,
        rules: Vec<RuleOutcome>,
    }
}

/// For fuzzing: whether this is a body that some operation takes.
///
/// # Panics
///
/// If one does not read back as it was.
pub(crate) fn fuzz_bodies(data: &[u8]) -> bool {
    fn reads<T: Serialize + serde::de::DeserializeOwned>(data: &[u8]) -> bool {
        let Ok(first) = serde_json::from_slice::<T>(data) else { return false };
        let text = serde_json::to_string(&first).unwrap_or_default();
        let again: Option<T> = serde_json::from_str(&text).ok();
        let again = again.and_then(|again| serde_json::to_string(&again).ok());
        assert!(again.as_ref() == Some(&text), "it does not read back");
        true
    }
    reads::<Nothing>(data)
        | reads::<Keep>(data)
        | reads::<Hold>(data)
        | reads::<AuditLevel>(data)
        | reads::<Reason>(data)
        | reads::<NewUser>(data)
        | reads::<NewPassword>(data)
        | reads::<NewAgentToken>(data)
        | reads::<NewRelayToken>(data)
        | reads::<RoleContent>(data)
        | reads::<NewRole>(data)
        | reads::<NewBinding>(data)
        | reads::<NewRequest>(data)
        | reads::<Judgement>(data)
        | reads::<NewApiKey>(data)
        | reads::<NewClient>(data)
        | reads::<NewPartner>(data)
        | reads::<NewName>(data)
        | reads::<MfaPolicy>(data)
        | reads::<Confirmed>(data)
        | reads::<NewKeys>(data)
        | reads::<NewProvider>(data)
        | reads::<NewLink>(data)
        | reads::<NewCredential>(data)
        | reads::<ChangedCredential>(data)
}

/// For fuzzing: whether a query is one that some operation takes.
pub(crate) fn fuzz_queries(text: &str) -> bool {
    fn is<T: serde::de::DeserializeOwned>(text: &str) -> bool {
        serde_urlencoded::from_str::<T>(text).is_ok()
    }
    is::<Paging>(text)
        | is::<ComputerQuery>(text)
        | is::<RequestQuery>(text)
        | is::<ExplainQuery>(text)
        | is::<AuditQuery>(text)
        | is::<ExportQuery>(text)
        | is::<BackupQuery>(text)
        | is::<ConsistencyQuery>(text)
        | is::<InclusionQuery>(text)
}
