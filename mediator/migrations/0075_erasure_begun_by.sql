-- Who began an erasure, so that what goes on with it does not take its place in the log: account or
-- API key by id, or the machine's administrator. No name: that is personal, and is erased. Nothing:
-- begun before this was kept.
ALTER TABLE erasure ADD COLUMN begun_by TEXT;
