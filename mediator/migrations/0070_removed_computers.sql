-- Computers that were removed one by one: a restored backup must not bring them back. Nothing here
-- tells of a person; gone with their client.
CREATE TABLE removed_computer (
    computer_id TEXT PRIMARY KEY,
    partner_id TEXT NOT NULL,
    client_id TEXT NOT NULL,
    removed_ms BIGINT NOT NULL
);
