-- Legal holds: several may be on a partner, each for a case of its own (docs/audit.md). One that was
-- set before this is kept, with its partner's id: an older backup then brings the same one.
CREATE TABLE audit_hold (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL REFERENCES partner (id),
    reason TEXT NOT NULL,
    -- who and when; nothing: set before this was kept, the log says it
    created_by TEXT,
    created_ms BIGINT
);
CREATE INDEX audit_hold_partner ON audit_hold (partner_id);

INSERT INTO audit_hold (id, partner_id, reason)
SELECT partner_id, partner_id, hold_reason FROM audit_policy WHERE hold = 1;

ALTER TABLE audit_policy DROP COLUMN hold;
ALTER TABLE audit_policy DROP COLUMN hold_reason;
