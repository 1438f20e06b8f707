-- The HTTPS API (docs/api.md).

-- Only the public half of a key is here.
CREATE TABLE api_key (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL REFERENCES partner (id),
    name TEXT NOT NULL,
    public_key BYTEA NOT NULL UNIQUE,
    -- JSON: networks it may come from; empty: any
    networks TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    revoked_ms BIGINT
);
CREATE INDEX api_key_by_partner ON api_key (partner_id, id);

-- Answers to requests with an Idempotency-Key, sealed (vault/wrap.rs): some hold a token.
CREATE TABLE api_reply (
    -- account or key
    principal TEXT NOT NULL,
    -- hash of the Idempotency-Key
    name TEXT NOT NULL,
    -- hash of method, path and body
    request TEXT NOT NULL,
    partner_id TEXT NOT NULL,
    -- 0: under way, or cut off in the middle
    status SMALLINT NOT NULL,
    body BYTEA NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (principal, name)
);
CREATE INDEX api_reply_by_time ON api_reply (created_ms);

-- 1: serves what it has and gets nothing new
ALTER TABLE relay ADD COLUMN draining SMALLINT NOT NULL DEFAULT 0;
-- 1: may not connect
ALTER TABLE relay ADD COLUMN disabled SMALLINT NOT NULL DEFAULT 0;

-- Devices that a partner switched off for its own users; device_block holds for everybody.
CREATE TABLE partner_device_block (
    partner_id TEXT NOT NULL REFERENCES partner (id),
    device TEXT NOT NULL,
    reason TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    PRIMARY KEY (partner_id, device)
);
