-- Who may do what (docs/access.md). Rows are never changed: a row is closed once by its
-- `valid_to_ms`, and what takes its place is a new row, so that every past decision can be
-- explained. Built-in roles are in the program, not here.

CREATE TABLE access_role (
    row_id TEXT PRIMARY KEY,
    -- the same through all versions of a role
    role_id TEXT NOT NULL,
    partner_id TEXT NOT NULL REFERENCES partner (id),
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    -- JSON: permissions, redirectors, conditions
    content TEXT NOT NULL,
    valid_from_ms BIGINT NOT NULL,
    valid_to_ms BIGINT
);
CREATE INDEX access_role_by_name ON access_role (partner_id, name_key);
CREATE INDEX access_role_by_id ON access_role (role_id);

CREATE TABLE access_binding (
    id TEXT PRIMARY KEY,
    -- of the subject, and of the log that tells of it
    partner_id TEXT NOT NULL REFERENCES partner (id),
    -- user: an account's id; group: a name in account_label
    subject_kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    -- builtin:NAME, or a role_id
    role_id TEXT NOT NULL,
    -- installation, partner, client, group, tag, computer
    scope_kind TEXT NOT NULL,
    scope_partner_id TEXT NOT NULL,
    scope_client_id TEXT NOT NULL,
    -- a group's name, a tag, or a computer's id
    scope_id TEXT NOT NULL,
    conditions TEXT NOT NULL,
    expires_ms BIGINT,
    valid_from_ms BIGINT NOT NULL,
    valid_to_ms BIGINT
);
CREATE INDEX access_binding_by_subject ON access_binding (subject_kind, subject_id);
CREATE INDEX access_binding_by_role ON access_binding (role_id);

-- Groups and tags of computers.
CREATE TABLE computer_label (
    computer_id TEXT NOT NULL,
    partner_id TEXT NOT NULL,
    -- group or tag
    kind TEXT NOT NULL,
    label TEXT NOT NULL,
    valid_from_ms BIGINT NOT NULL,
    valid_to_ms BIGINT
);
CREATE INDEX computer_label_by_computer ON computer_label (computer_id, kind, label);

-- Groups of users.
CREATE TABLE account_label (
    account_id TEXT NOT NULL,
    partner_id TEXT NOT NULL,
    label TEXT NOT NULL,
    valid_from_ms BIGINT NOT NULL,
    valid_to_ms BIGINT
);
CREATE INDEX account_label_by_account ON account_label (account_id, label);

CREATE TABLE access_request (
    id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL,
    client_id TEXT NOT NULL,
    computer_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    redirector TEXT NOT NULL,
    reason TEXT NOT NULL,
    ticket TEXT NOT NULL,
    length_ms BIGINT NOT NULL,
    asked_ms BIGINT NOT NULL
);
CREATE INDEX access_request_by_computer ON access_request (computer_id, asked_ms);
CREATE INDEX access_request_by_account ON access_request (account_id, asked_ms);

-- The last one counts.
CREATE TABLE access_decision (
    request_id TEXT NOT NULL REFERENCES access_request (id),
    number BIGINT NOT NULL,
    approved SMALLINT NOT NULL,
    decided_by TEXT NOT NULL,
    decided_ms BIGINT NOT NULL,
    until_ms BIGINT NOT NULL,
    PRIMARY KEY (request_id, number)
);

-- What a session's right rests on, as JSON, to judge it anew.
ALTER TABLE session ADD COLUMN access TEXT NOT NULL DEFAULT '';

-- What worked goes on working: the administrator that init made owns its partner, the others
-- keep their role there.
INSERT INTO access_binding (id, partner_id, subject_kind, subject_id, role_id, scope_kind,
    scope_partner_id, scope_client_id, scope_id, conditions, valid_from_ms)
SELECT a.id, a.partner_id, 'user', a.id,
    CASE
        WHEN a.role = 'administrator' AND a.id = (
            SELECT f.id FROM account f
            JOIN setting s ON s.name = 'home_partner' AND s.value = f.partner_id
            WHERE f.role = 'administrator' ORDER BY f.created_ms, f.id LIMIT 1
        ) THEN 'builtin:owner'
        WHEN a.role = 'administrator' THEN 'builtin:administrator'
        ELSE 'builtin:technician'
    END,
    'partner', a.partner_id, '', '', '{}', a.created_ms
FROM account a;
