-- Receipts of a session that had no room, by the end that signed them: so that nobody is said to
-- have sent nothing who did.
ALTER TABLE session ADD COLUMN dropped_console BIGINT NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN dropped_agent BIGINT NOT NULL DEFAULT 0;
