-- Removal of expired rows, the rights, and a view for monitoring.

-- Removes expired rows of a namespace. Each instance calls this function about once a minute.
CREATE FUNCTION tower_sse.clean(ns text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_variable
DECLARE
  now constant timestamptz := clock_timestamp();
BEGIN
  IF NOT pg_try_advisory_xact_lock(tower_sse.lock_key('clean', ns)) THEN
    RETURN;
  END IF;
  -- The messages have the ids of users.
  DELETE FROM tower_sse.control c WHERE c.ns = ns AND c.at < now - interval '5 minutes';
  DELETE FROM tower_sse.control c USING (VALUES (0), (1)) AS s(stream)
    WHERE c.ns = ns AND c.stream = s.stream
      AND c.id < (SELECT o.id FROM tower_sse.control o WHERE o.ns = ns AND o.stream = s.stream ORDER BY o.id DESC OFFSET 10000 LIMIT 1);
  DELETE FROM tower_sse.deposit d WHERE d.ns = ns AND d.expires_at <= now;
  DELETE FROM tower_sse.shared s WHERE s.ns = ns AND s.expires_at <= now;
  DELETE FROM tower_sse.once o WHERE o.ns = ns AND o.at < now - interval '10 minutes';
  WITH forgotten AS (
    DELETE FROM tower_sse.journal j
      WHERE j.ns = ns AND (j.forget_at <= now OR j.forget_at IS NULL AND j.changed_at <= now - interval '24 hours')
      RETURNING j.key, j.id
  )
  DELETE FROM tower_sse.journal_entry e USING forgotten f WHERE e.ns = ns AND e.key = f.key AND e.id = f.id;
END $$;

-- One row for each namespace. `waiting` counts the committed records that have no number yet, and
-- `oldest_waiting` is the time for which the oldest of them has waited since it was published.
CREATE VIEW tower_sse.status AS
  SELECT h.ns AS namespace, to_hex(h.epoch) AS epoch, h.first AS first, n.number AS last, n.at AS newest_at,
    n.bytes_before + octet_length(n.payload) - o.bytes_before AS log_bytes, i.waiting, i.oldest_waiting
  FROM tower_sse.head h
  LEFT JOIN LATERAL (SELECT l.* FROM tower_sse.log l WHERE l.ns = h.ns ORDER BY l.number DESC LIMIT 1) n ON true
  LEFT JOIN tower_sse.log o ON o.ns = h.ns AND o.number = h.first
  LEFT JOIN LATERAL (
    SELECT count(*) AS waiting, clock_timestamp() - min(i.at) AS oldest_waiting FROM tower_sse.inbox i WHERE i.ns = h.ns
  ) i ON true;

-- No role has rights until they are granted.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tower_sse FROM PUBLIC;

INSERT INTO tower_sse.migrations (version) VALUES (5);
