-- Searching the audit log, levels, retention, forwarding (docs/audit.md).

-- Short name of a log in indexes; of a partner's logs the highest is the one that is added to.
ALTER TABLE audit_tree ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
UPDATE audit_tree SET number = (
    SELECT COUNT(*) FROM audit_tree o
    WHERE o.current < audit_tree.current OR (o.current = audit_tree.current AND o.id <= audit_tree.id)
);
CREATE INDEX audit_tree_by_partner ON audit_tree (partner_id, number);

-- What entries are searched by, in lower case where people write it. They are copies of what the
-- line says, are made when the line is, and go when it goes. NULL log_no: not to be found.
ALTER TABLE audit_entry ADD COLUMN log_no BIGINT;
ALTER TABLE audit_entry ADD COLUMN actor_key TEXT;
ALTER TABLE audit_entry ADD COLUMN subject_key TEXT;
ALTER TABLE audit_entry ADD COLUMN computer_key TEXT;
ALTER TABLE audit_entry ADD COLUMN computer_id TEXT;
ALTER TABLE audit_entry ADD COLUMN client_key TEXT;
ALTER TABLE audit_entry ADD COLUMN redirector TEXT;
CREATE INDEX audit_by_actor ON audit_entry (log_no, actor_key, seq) WHERE actor_key IS NOT NULL;
CREATE INDEX audit_by_subject ON audit_entry (log_no, subject_key, seq)
    WHERE subject_key IS NOT NULL;
CREATE INDEX audit_by_computer ON audit_entry (log_no, computer_key, seq)
    WHERE computer_key IS NOT NULL;
CREATE INDEX audit_by_computer_id ON audit_entry (log_no, computer_id, seq)
    WHERE computer_id IS NOT NULL;
CREATE INDEX audit_by_client ON audit_entry (log_no, client_key, seq)
    WHERE client_key IS NOT NULL;
CREATE INDEX audit_by_redirector ON audit_entry (log_no, redirector, seq)
    WHERE redirector IS NOT NULL;
CREATE INDEX audit_by_session ON audit_entry (log_no, session_id, seq)
    WHERE session_id IS NOT NULL;
CREATE INDEX audit_by_event ON audit_entry (log_no, event, seq) WHERE log_no IS NOT NULL;

-- 1,024 entries each: between which times they lie, whatever the clock did meanwhile. A block
-- whose contents retention has deleted has no row.
CREATE TABLE audit_block (
    log_no BIGINT NOT NULL,
    block BIGINT NOT NULL,
    min_ms BIGINT NOT NULL,
    max_ms BIGINT NOT NULL,
    -- of those that retention may delete
    due_ms BIGINT NOT NULL,
    PRIMARY KEY (log_no, block)
);
INSERT INTO audit_block (log_no, block, min_ms, max_ms, due_ms)
SELECT t.number, e.seq / 1024, MIN(e.time_ms), MAX(e.time_ms), MIN(e.time_ms)
FROM audit_entry e JOIN audit_tree t ON t.id = e.tree GROUP BY t.number, e.seq / 1024;

-- Entries of earlier versions get their keys after the start, in small steps.
INSERT INTO setting (name, value) SELECT 'audit_keys_filled', '1'
WHERE NOT EXISTS (SELECT 1 FROM audit_entry);

-- Up to which level events of this user are kept (docs/audit.md); security events always are.
ALTER TABLE account ADD COLUMN audit_level SMALLINT NOT NULL DEFAULT 4;

-- Partners whose log is kept otherwise than the configuration says.
CREATE TABLE audit_policy (
    partner_id TEXT PRIMARY KEY REFERENCES partner (id),
    retention_ms BIGINT,
    -- nothing is deleted while it is 1
    hold SMALLINT NOT NULL,
    hold_reason TEXT NOT NULL
);

-- How far a log was delivered to where it is forwarded.
CREATE TABLE audit_cursor (
    target TEXT NOT NULL,
    tree TEXT NOT NULL,
    next_seq BIGINT NOT NULL,
    -- of the entries before, for exports that go on
    frontier BYTEA NOT NULL,
    updated_ms BIGINT NOT NULL,
    PRIMARY KEY (target, tree)
);
