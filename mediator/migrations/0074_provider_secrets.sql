-- Identity providers that are set up over the network: what is a file of the mediator's machine for
-- others is here for them (docs/accounts.md).

-- the provider's own authority, PEM; empty: ca_file, or the system's
ALTER TABLE oidc_provider ADD COLUMN ca TEXT NOT NULL DEFAULT '';
-- 1: only addresses that everybody can reach are connected to
ALTER TABLE oidc_provider ADD COLUMN public_only BIGINT NOT NULL DEFAULT 0;

CREATE TABLE oidc_secret (
    provider_id TEXT PRIMARY KEY REFERENCES oidc_provider (id),
    partner_id TEXT NOT NULL,
    -- sealed (docs/accounts.md), and under which wrapping key
    secret BYTEA NOT NULL,
    key_name TEXT NOT NULL
);
