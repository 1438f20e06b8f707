-- One text for SQLite and PostgreSQL: TEXT, BIGINT, SMALLINT and BYTEA only, times in
-- milliseconds since 1970, yes and no as 1 and 0. `*_key` columns hold lower-case names, by
-- which uniqueness is judged.

CREATE TABLE setting (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE partner (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL
);

CREATE TABLE client (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL REFERENCES partner (id),
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    UNIQUE (partner_id, name_key)
);

CREATE TABLE computer (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL REFERENCES partner (id),
    client_id TEXT NOT NULL REFERENCES client (id),
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    identity BYTEA NOT NULL UNIQUE,
    noise_cert BYTEA NOT NULL,
    tags TEXT NOT NULL,
    os TEXT NOT NULL,
    version TEXT NOT NULL,
    status TEXT NOT NULL,
    enrolled_ms BIGINT NOT NULL,
    last_seen_ms BIGINT NOT NULL,
    UNIQUE (client_id, name_key)
);
CREATE INDEX computer_by_partner ON computer (partner_id, name_key, id);

CREATE TABLE relay (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    identity BYTEA NOT NULL UNIQUE,
    region TEXT NOT NULL,
    enrolled_ms BIGINT NOT NULL,
    last_seen_ms BIGINT NOT NULL
);

-- Only the public half of a token's seed is here.
CREATE TABLE enroll_token (
    id TEXT PRIMARY KEY,
    kind SMALLINT NOT NULL,
    partner_id TEXT,
    client_id TEXT,
    region TEXT NOT NULL,
    public_key BYTEA NOT NULL,
    uses_left BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);

CREATE TABLE account (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL REFERENCES partner (id),
    name TEXT NOT NULL,
    name_key TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    password TEXT NOT NULL,
    failures BIGINT NOT NULL,
    retry_ms BIGINT NOT NULL,
    disabled SMALLINT NOT NULL,
    created_ms BIGINT NOT NULL
);

-- Only the hash of a session token is here; it is bound to the console's identity.
CREATE TABLE login (
    token_hash BYTEA PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES account (id),
    device BYTEA NOT NULL,
    created_ms BIGINT NOT NULL,
    used_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);
CREATE INDEX login_by_account ON login (account_id);

CREATE TABLE session (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL,
    client_id TEXT NOT NULL,
    client TEXT NOT NULL,
    computer_id TEXT NOT NULL,
    computer TEXT NOT NULL,
    account_id TEXT NOT NULL,
    account TEXT NOT NULL,
    login BYTEA NOT NULL,
    console BYTEA NOT NULL,
    agent BYTEA NOT NULL,
    source TEXT NOT NULL,
    redirector TEXT NOT NULL,
    target TEXT NOT NULL,
    any_target SMALLINT NOT NULL,
    started_ms BIGINT NOT NULL,
    lease_ms BIGINT NOT NULL,
    ended_ms BIGINT,
    end_reason TEXT,
    bytes_up BIGINT NOT NULL,
    bytes_down BIGINT NOT NULL,
    relay_bytes BIGINT NOT NULL
);
CREATE INDEX session_open ON session (ended_ms, partner_id);

CREATE TABLE audit_tree (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL,
    -- 1 while entries are added to it; a restored backup starts another tree
    current SMALLINT NOT NULL,
    frontier BYTEA NOT NULL,
    head TEXT NOT NULL
);

CREATE TABLE audit_entry (
    tree TEXT NOT NULL REFERENCES audit_tree (id),
    seq BIGINT NOT NULL,
    time_ms BIGINT NOT NULL,
    event TEXT NOT NULL,
    session_id TEXT,
    leaf BYTEA NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (tree, seq)
);
