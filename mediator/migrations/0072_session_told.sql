-- What the record of an open session's end says: reason, ticket, viewer, rule, carriers, as JSON.
-- Empty once it has ended: then the log alone has it.
ALTER TABLE session ADD COLUMN told TEXT NOT NULL DEFAULT '';
