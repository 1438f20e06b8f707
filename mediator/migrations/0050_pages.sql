-- Identity providers and the accounts that are linked with them (docs/accounts.md).

CREATE TABLE oidc_provider (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL REFERENCES partner (id),
    name TEXT NOT NULL,
    name_key TEXT NOT NULL UNIQUE,
    issuer TEXT NOT NULL,
    client_id TEXT NOT NULL,
    -- paths of files of the mediator's machine; empty: none
    secret_file TEXT NOT NULL,
    ca_file TEXT NOT NULL,
    -- which claims say that it asked for more than a password (JSON)
    mfa TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE TABLE oidc_link (
    provider_id TEXT NOT NULL REFERENCES oidc_provider (id),
    subject TEXT NOT NULL,
    account_id TEXT NOT NULL REFERENCES account (id),
    partner_id TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    used_ms BIGINT NOT NULL,
    PRIMARY KEY (provider_id, subject)
);
CREATE INDEX oidc_link_by_account ON oidc_link (account_id);
