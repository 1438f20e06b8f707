-- What is known of an authenticator app's clock (mfa/totp.rs): by how much it is ahead, and when the
-- code of last_step was shown, if that was at another time than its own.
ALTER TABLE factor ADD COLUMN drift_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE factor ADD COLUMN missed_ms BIGINT NOT NULL DEFAULT 0;
