-- Proof: inner nodes of the audit trees, enrolments, receipts. As in 0001: TEXT, BIGINT, SMALLINT
-- and BYTEA only.

-- Complete subtrees of 2^level leaves from idx·2^level, from level 4 on: below, the leaves do.
CREATE TABLE audit_node (
    tree TEXT NOT NULL,
    level SMALLINT NOT NULL,
    idx BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (tree, level, idx)
);

-- The entry that a computer's enrolment left, without its personal fields: what a console checks
-- when it meets the agent first. Kept for as long as the computer is, whatever is pruned.
CREATE TABLE enrolment (
    computer_id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL,
    tree TEXT NOT NULL,
    seq BIGINT NOT NULL,
    line TEXT NOT NULL
);

-- What each end signed about each channel. `kind` is open or close, `role` console or agent.
CREATE TABLE receipt (
    session_id TEXT NOT NULL,
    channel BIGINT NOT NULL,
    kind TEXT NOT NULL,
    role TEXT NOT NULL,
    partner_id TEXT NOT NULL,
    received_ms BIGINT NOT NULL,
    -- the other end's counterpart: 0 is waited for, 1 compared, 2 said to be missing
    state SMALLINT NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (session_id, channel, kind, role)
);
CREATE INDEX receipt_waiting ON receipt (state, received_ms);
