-- Credentials of clients (docs/credentials.md). What is secret or personal is sealed with the
-- client's data key, that with the client's tenant key, which is in a file beside the database
-- and itself sealed with the wrapping key.

CREATE TABLE client_key (
    client_id TEXT PRIMARY KEY REFERENCES client (id),
    partner_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    -- the data key under the tenant key
    sealed BYTEA NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE TABLE credential (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL,
    client_id TEXT NOT NULL REFERENCES client (id),
    -- empty: for all computers of the client
    computer_id TEXT NOT NULL,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    -- password, ssh_key, other
    kind TEXT NOT NULL,
    -- names, separated by spaces; empty: all that have a viewer
    redirectors TEXT NOT NULL,
    -- 1: used without being named where it is the only one
    automatic SMALLINT NOT NULL,
    -- grows with each change; authenticated beside the contents
    version BIGINT NOT NULL,
    -- of the data key
    key_version BIGINT NOT NULL,
    -- user name at the target
    about BYTEA NOT NULL,
    -- the secret and notes
    secret BYTEA NOT NULL,
    created_ms BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    used_ms BIGINT NOT NULL,
    UNIQUE (client_id, computer_id, name_key)
);
CREATE INDEX credential_by_partner ON credential (partner_id, name_key, id);

-- Clients and partners that are being erased or are: an erasure that was interrupted goes on at
-- the next start. Nothing here tells of a person.
CREATE TABLE erasure (
    id TEXT PRIMARY KEY,
    -- client, partner
    kind TEXT NOT NULL,
    partner_id TEXT NOT NULL,
    -- empty for a partner
    client_id TEXT NOT NULL,
    -- partner/client or partner
    subject TEXT NOT NULL,
    begun_ms BIGINT NOT NULL,
    finished_ms BIGINT,
    -- JSON: what was destroyed so far
    counts TEXT NOT NULL,
    -- the signed certificate, once it is finished
    certificate TEXT NOT NULL
);
