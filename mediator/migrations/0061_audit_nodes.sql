-- Logs of databases from before audit_node get their inner nodes once, after the start, in small
-- steps; one without entries has none to get.
INSERT INTO setting (name, value) SELECT 'audit_nodes_built', '1'
WHERE NOT EXISTS (SELECT 1 FROM audit_entry);
