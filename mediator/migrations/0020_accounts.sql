-- Second factors, how logins were proved, and kill switches (docs/accounts.md).

CREATE TABLE factor (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES account (id),
    partner_id TEXT NOT NULL,
    -- totp; later kinds have names of their own
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    -- an envelope (vault/wrap.rs), and the name of its wrapping key
    secret BYTEA NOT NULL,
    key_name TEXT NOT NULL,
    -- of one-time codes: the last step that was accepted; only later ones are
    last_step BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    -- it counts from then on
    confirmed_ms BIGINT,
    used_ms BIGINT NOT NULL
);
CREATE INDEX factor_by_account ON factor (account_id);

CREATE TABLE recovery_code (
    account_id TEXT NOT NULL REFERENCES account (id),
    hash BYTEA NOT NULL,
    created_ms BIGINT NOT NULL,
    used_ms BIGINT,
    PRIMARY KEY (account_id, hash)
);

-- 0: as the installation's setting says, 1: required, 2: only if one is set up
ALTER TABLE account ADD COLUMN mfa SMALLINT NOT NULL DEFAULT 0;
-- the password is too short to be the only factor
ALTER TABLE account ADD COLUMN short_password SMALLINT NOT NULL DEFAULT 0;

-- none, totp, recovery
ALTER TABLE login ADD COLUMN mfa TEXT NOT NULL DEFAULT 'none';
ALTER TABLE login ADD COLUMN mfa_ms BIGINT;
-- when the password was shown
ALTER TABLE login ADD COLUMN authenticated_ms BIGINT NOT NULL DEFAULT 0;

ALTER TABLE session ADD COLUMN mfa TEXT NOT NULL DEFAULT '';

-- Technicians' devices that may not log in, by their key's fingerprint.
CREATE TABLE device_block (
    device TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    since_ms BIGINT NOT NULL
);

-- Clients on whose computers no session may be opened.
CREATE TABLE client_lock (
    client_id TEXT PRIMARY KEY REFERENCES client (id),
    reason TEXT NOT NULL,
    since_ms BIGINT NOT NULL
);

-- The administrator that init made is asked for a second factor once it set one up.
UPDATE account SET mfa = 2 WHERE id = (
    SELECT f.id FROM account f
    JOIN setting s ON s.name = 'home_partner' AND s.value = f.partner_id
    WHERE f.role IN ('administrator', 'owner') ORDER BY f.created_ms, f.id LIMIT 1
);
