-- Each partner's, each session's and each end's own: what one of them leaves waiting is not gone
-- through to find another's.
CREATE INDEX receipt_waiting_of ON receipt (state, partner_id, session_id, role, received_ms);
DROP INDEX receipt_waiting;
