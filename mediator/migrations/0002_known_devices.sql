-- Consoles with which an account logged in: they have failures and delays of their own, so that
-- a stranger's guesses do not keep the account's owner out.
CREATE TABLE known_device (
    account_id TEXT NOT NULL REFERENCES account (id),
    device BYTEA NOT NULL,
    failures BIGINT NOT NULL,
    retry_ms BIGINT NOT NULL,
    used_ms BIGINT NOT NULL,
    PRIMARY KEY (account_id, device)
);
