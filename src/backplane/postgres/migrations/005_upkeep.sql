-- Removal of expired rows, the rights, and a view for monitoring.

-- Removes the old control messages of a namespace, and the expired rows of all namespaces. Begins
-- no further batch after 200 ms. Each instance calls this function about once a minute.
CREATE FUNCTION tower_sse.clean(ns text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_variable
DECLARE
  now constant timestamptz := clock_timestamp();
  removed bigint;
BEGIN
  IF NOT pg_try_advisory_xact_lock(tower_sse.lock_key('clean', '')) THEN
    RETURN;
  END IF;
  -- The messages have the ids of users.
  FOR stream IN 0..1 LOOP
    DELETE FROM tower_sse.control c WHERE c.ctid = ANY (ARRAY(
      SELECT o.ctid FROM tower_sse.control o
      WHERE o.ns = ns AND o.stream = stream AND (
        o.at < now - interval '5 minutes'
        OR o.id < (
          SELECT n.id FROM tower_sse.control n WHERE n.ns = ns AND n.stream = stream ORDER BY n.id DESC OFFSET 9999 LIMIT 1))
      ORDER BY o.id LIMIT 20000 FOR UPDATE SKIP LOCKED));
  END LOOP;
  DELETE FROM tower_sse.shared s WHERE s.ctid = ANY (ARRAY(
    SELECT o.ctid FROM tower_sse.shared o WHERE o.expires_at <= now LIMIT 1000 FOR UPDATE SKIP LOCKED));
  LOOP
    -- Tickets and keys that another transaction changes now stay. Otherwise the two could wait for
    -- each other.
    WITH deposits AS (
      DELETE FROM tower_sse.deposit d WHERE d.ctid = ANY (ARRAY(
        SELECT o.ctid FROM tower_sse.deposit o WHERE o.expires_at <= now LIMIT 10000 FOR UPDATE SKIP LOCKED))
      RETURNING 1
    ), keys AS (
      DELETE FROM tower_sse.once o WHERE o.ctid = ANY (ARRAY(
        SELECT e.ctid FROM tower_sse.once e WHERE e.at < now - interval '10 minutes' LIMIT 10000 FOR UPDATE SKIP LOCKED))
      RETURNING 1
    ), forgotten AS (
      DELETE FROM tower_sse.journal j WHERE j.ctid = ANY (ARRAY(
        (SELECT o.ctid FROM tower_sse.journal o WHERE o.forget_at <= now LIMIT 50)
        UNION ALL
        (SELECT o.ctid FROM tower_sse.journal o
          WHERE o.forget_at IS NULL AND o.changed_at <= now - interval '24 hours' LIMIT 50)))
        -- Another transaction may have begun a new journal in this row.
        AND tower_sse.journal_end(j.changed_at, j.forget_at) <= now
      RETURNING j.ns, j.key, j.id
    ), entries AS (
      DELETE FROM tower_sse.journal_entry e USING forgotten f WHERE e.ns = f.ns AND e.key = f.key AND e.id = f.id
    )
    SELECT (SELECT count(*) FROM deposits) + (SELECT count(*) FROM keys) + (SELECT count(*) FROM forgotten) INTO removed;
    EXIT WHEN removed = 0 OR clock_timestamp() > now + interval '200 milliseconds';
  END LOOP;
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
