//! What the check of decisions takes for right: where is decided, who asks, what needs no decision
//! and why, and who reads what roles cover. Whoever adds to it says why beside it.

/// A text that stands in these files alone.
pub(super) struct Only {
    pub(super) what: &'static str,
    pub(super) files: &'static [&'static str],
}

/// What decides, and what it decides by. `roles/` is how it is decided, and free in itself.
pub(super) const ONLY: &[Only] = &[
    Only { what: "decide(&self.rules", files: &["authz.rs"] },
    Only { what: "filter::computers(", files: &["authz.rs"] },
    Only { what: "locks::client(", files: &["admin/handle.rs", "authz.rs"] },
    Only { what: "requests::approved_until(", files: &["authz.rs"] },
    // Who changes or shows what others may do reads their rules, and asks for its own right.
    Only { what: "bindings::rules(", files: &["admin/users.rs", "authz.rs"] },
    Only { what: "bindings::rules_of_key(", files: &["admin/api_keys.rs", "authz.rs"] },
    Only { what: "Holder::load(", files: HOLDERS },
    Only { what: "Holder::load_key(", files: &["http/auth.rs"] },
    Only { what: "holder.rules", files: RULES_OF_HOLDERS },
    // What may be given, of what one holds.
    Only { what: "may_grant(", files: &["admin/access.rs", "admin/actor.rs"] },
    Only { what: "holds(", files: &["admin/actor.rs"] },
    Only { what: "scope.covers(", files: &["admin/actor.rs", "admin/explain.rs"] },
    // The machine's administrator, whom nothing is asked: by the local socket and the data directory.
    Only { what: "Actor::Local", files: LOCAL },
    // All ways in over HTTPS.
    Only { what: ".route(", files: &["http/api/mod.rs", "pages/mod.rs"] },
    Only { what: "Permission::", files: ASKING },
];

pub(super) const HOLDERS: &[&str] = &[
    "admin/access.rs",
    "admin/explain.rs",
    "http/auth.rs",
    "serve/agent.rs",
    "serve/console.rs",
    "serve/open.rs",
    "serve/review.rs",
];

pub(super) const RULES_OF_HOLDERS: &[&str] = &[
    "admin/access.rs",
    "admin/actor.rs",
    "audit/search.rs",
    // Told to its holder.
    "http/api/people.rs",
];

pub(super) const LOCAL: &[&str] = &[
    // It looks who it is.
    "admin/access.rs",
    // Behind `local_only`: what nobody else may wait for is done in the machine's own name.
    "admin/vault.rs",
    "cli.rs",
    "serve/run.rs",
];

/// Who names a permission, to ask for it.
pub(super) const ASKING: &[&str] = &[
    "admin/access.rs",
    "admin/accounts.rs",
    "admin/actor.rs",
    "admin/api_keys.rs",
    "admin/backup.rs",
    "admin/computers.rs",
    "admin/explain.rs",
    "admin/handle.rs",
    "admin/labels.rs",
    "admin/last.rs",
    "admin/oidc.rs",
    "admin/partners.rs",
    "admin/relays.rs",
    "admin/tokens.rs",
    "admin/users.rs",
    "admin/vault.rs",
    "audit/acts.rs",
    "authz.rs",
    "cli/access.rs",
    "http/api/access.rs",
    "http/api/audit.rs",
    "http/api/places.rs",
    "requests.rs",
    "serve/console.rs",
    "serve/open.rs",
    "serve/requests.rs",
    "tenancy/erase.rs",
    "vault/acts.rs",
    "vault/launch.rs",
];

/// Comparisons by which somebody would decide beside the decision.
pub(super) const COMPARISONS: &[&str] =
    &["== Permission::", "!= Permission::", "permissions.contains(", "role.name =="];

/// Calls that ask.
pub(super) const ASKS: &[&str] = &[
    ".may",
    ".may_at_home",
    ".may_client",
    ".may_computer",
    ".may_everywhere",
    ".may_give",
    ".may_manage_roles_somewhere",
    ".may_on",
    ".may_spot",
    // Nobody over the network.
    ".local_only",
    "holder.computer",
    "holder.decide",
    "holder.filter",
    "holder.goes_on",
];

/// A `match` that does what is asked for: each arm reaches the decision, or is listed with why not.
pub(super) struct Dispatch {
    pub(super) path: &'static str,
    pub(super) function: &'static str,
    pub(super) of: &'static str,
    pub(super) own: &'static [(&'static str, &'static str)],
}

pub(super) const OWN: &str = "only about whoever asks";
pub(super) const DEVICE: &str = "a device, about itself or its own sessions";

pub(super) const DISPATCHES: &[Dispatch] = &[
    Dispatch {
        path: "admin/handle.rs",
        function: "handle",
        of: "AdminRequest",
        own: &[("PartnerList", "their own partner's name")],
    },
    Dispatch { path: "admin/handle.rs", function: "may_change_audit", of: "AuditAct", own: &[] },
    Dispatch { path: "admin/access.rs", function: "handle", of: "AccessAct", own: &[] },
    Dispatch { path: "admin/accounts.rs", function: "handle", of: "AccountAct", own: &[] },
    Dispatch { path: "admin/api_keys.rs", function: "handle", of: "ApiKeyAct", own: &[] },
    Dispatch { path: "admin/credentials.rs", function: "handle", of: "CredentialAct", own: &[] },
    Dispatch { path: "admin/oidc.rs", function: "handle", of: "OidcAct", own: &[] },
    Dispatch { path: "admin/relays.rs", function: "handle", of: "RelayAct", own: &[] },
    Dispatch {
        path: "serve/console.rs",
        function: "serve",
        of: "Body",
        own: &[
            ("Login", "who somebody is, not what they may"),
            ("DeviceLogin", "who somebody is, not what they may"),
            ("DeviceLoginPoll", "who somebody is, not what they may"),
            ("Ping", OWN),
        ],
    },
    Dispatch {
        path: "serve/console.rs",
        function: "handle",
        of: "Body",
        own: &[
            ("Logout", OWN),
            ("HeadRequest", DEVICE),
            ("Receipts", DEVICE),
            ("ReceiptRequest", DEVICE),
            ("ConsoleRefusal", "recorded, whatever it says"),
            ("ApiTokenRequest", OWN),
        ],
    },
    Dispatch {
        path: "serve/mfa.rs",
        function: "handle",
        of: "Body",
        own: &[
            ("WhoAmI", OWN),
            ("Reauthenticate", OWN),
            ("MfaStatus", OWN),
            ("TotpEnroll", OWN),
            ("TotpConfirm", OWN),
            ("RecoveryRenew", OWN),
            ("FactorRemove", OWN),
        ],
    },
    Dispatch { path: "serve/requests.rs", function: "handle", of: "Body", own: &[] },
    Dispatch {
        path: "serve/agent.rs",
        function: "handle",
        of: "Body",
        own: &[
            ("CheckIn", DEVICE),
            ("TargetRequest", DEVICE),
            ("HeadRequest", DEVICE),
            ("Receipts", DEVICE),
            ("ReceiptRequest", DEVICE),
            ("EnrolmentRequest", DEVICE),
        ],
    },
    Dispatch {
        path: "serve/agent.rs",
        function: "of_session",
        of: "Body",
        own: &[
            ("SessionReport", DEVICE),
            ("Signal", DEVICE),
            ("TicketRequest", DEVICE),
            ("EndSession", DEVICE),
            ("Ping", DEVICE),
        ],
    },
    Dispatch {
        path: "serve/relay.rs",
        function: "listen",
        of: "Body",
        own: &[("RelayReport", DEVICE), ("Ping", DEVICE)],
    },
];

/// Operations of the API that need no decision.
pub(super) const OPEN: &[(&str, &str)] = &[
    ("me", OWN),
    ("openapi", "the same for everybody"),
    ("permissions", "the same for everybody"),
    ("version", "the same for everybody"),
];

/// Who has queries at all: who acts for somebody never has.
pub(super) const QUERIES: &[&str] = &["audit/", "proof/", "restore.rs", "store/"];

/// What roles cover, and who reads or writes it.
pub(super) const SCOPED: &[Only] = &[
    Only {
        what: "access_decision",
        files: &["store/access/requests.rs", "store/computers.rs", "store/erasures.rs"],
    },
    Only {
        what: "access_request",
        files: &["store/access/requests.rs", "store/computers.rs", "store/erasures.rs"],
    },
    Only {
        what: "audit_entry",
        files: &[
            "audit/forward/mod.rs",
            "audit/retention.rs",
            "audit/search.rs",
            "proof/evidence.rs",
            "proof/forest.rs",
            "proof/receipts.rs",
            "store/audit.rs",
            "store/erasures.rs",
        ],
    },
    Only {
        what: "computer",
        files: &[
            "audit/search.rs",
            "restore.rs",
            "store/access/labels.rs",
            "store/access/requests.rs",
            "store/computers.rs",
            "store/credentials.rs",
            "store/erasures.rs",
            "store/tenants.rs",
        ],
    },
    Only {
        what: "computer_label",
        files: &[
            "store/access/filter.rs",
            "store/access/labels.rs",
            "store/computers.rs",
            "store/erasures.rs",
        ],
    },
    Only {
        what: "credential",
        files: &["restore.rs", "store/computers.rs", "store/credentials.rs"],
    },
    Only {
        what: "session",
        files: &[
            "proof/receipts.rs",
            "proof/room.rs",
            "proof/sweep.rs",
            "store/erasures.rs",
            "store/sessions.rs",
        ],
    },
];

/// Lists of store modules without the reader's scope, and who may ask for them.
pub(super) const LISTS: &[Only] = &[
    Only {
        what: "audit::trees",
        files: &[
            "admin/export.rs",
            "audit/fill.rs",
            "audit/forward/export.rs",
            "cli/audit.rs",
            // Of which it tells the asker's own.
            "http/api/audit.rs",
        ],
    },
    Only { what: "audit::current", files: &["cli/audit.rs", "place.rs", "restore.rs"] },
    // One by one, of which each is decided.
    Only { what: "computers::find", files: &["admin/labels.rs"] },
    Only { what: "credentials::keys", files: &["vault/rotate.rs"] },
    Only { what: "erasures::all", files: &["tenancy/again.rs", "tenancy/erase.rs"] },
    Only { what: "erasures::left", files: &["tenancy/erase.rs"] },
    Only { what: "factors::key_names", files: &["serve/run.rs"] },
    // Names of keys over secrets, which all of them must be there at the start.
    Only { what: "oidc::key_names", files: &["serve/run.rs"] },
    Only { what: "oidc::list", files: &["admin/oidc.rs", "pages/login.rs"] },
    // The installation's own.
    Only { what: "relays::list", files: &["admin/relays.rs"] },
    Only { what: "sessions::open", files: &["serve/run.rs"] },
    Only { what: "tenants::clients", files: &["admin/handle.rs"] },
    Only { what: "tenants::partners", files: &["admin/partners.rs"] },
    // Each is decided, by its client.
    Only { what: "tokens::list", files: &["admin/handle.rs", "admin/tokens.rs"] },
];
