-- Messages between instances, values that are taken once (tickets), and values that instances
-- share. The tables are not logged: a crash of the server empties them, and the instances send
-- their state again.

CREATE UNLOGGED TABLE tower_sse.control (
  ns text NOT NULL,
  -- 0 for commands, 1 for presence.
  stream smallint NOT NULL,
  -- Both streams of a namespace have one sequence of ids.
  id bigint NOT NULL,
  at timestamptz NOT NULL,
  message bytea NOT NULL,
  PRIMARY KEY (ns, stream, id)
) WITH (vacuum_truncate = false, autovacuum_vacuum_scale_factor = 0.05);

CREATE UNLOGGED TABLE tower_sse.deposit (
  ns text NOT NULL,
  -- The SHA-256 of the key.
  key bytea NOT NULL,
  payload bytea NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (ns, key)
);
CREATE INDEX deposit_by_expiry ON tower_sse.deposit (expires_at);

CREATE UNLOGGED TABLE tower_sse.shared (
  ns text NOT NULL,
  -- The SHA-256 of the key.
  key bytea NOT NULL,
  payload bytea NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (ns, key)
);
CREATE INDEX shared_by_expiry ON tower_sse.shared (expires_at);

-- Returns the id of the newest control message, or 0.
CREATE FUNCTION tower_sse.control_end(ns text) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_variable
BEGIN
  -- Not max(), which reads all rows of a table without statistics.
  RETURN greatest(
    (SELECT c.id FROM tower_sse.control c WHERE c.ns = ns AND c.stream = 0 ORDER BY c.id DESC LIMIT 1),
    (SELECT c.id FROM tower_sse.control c WHERE c.ns = ns AND c.stream = 1 ORDER BY c.id DESC LIMIT 1), 0);
END $$;

-- Sends a control message to all instances. A lock orders the ids, so that no reader misses a
-- message that becomes visible later than a message with a higher id.
CREATE FUNCTION tower_sse.broadcast(ns text, stream smallint, message bytea, wait_ms bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_variable
DECLARE
  newest bigint;
BEGIN
  PERFORM set_config('lock_timeout', wait_ms::text, true);
  PERFORM pg_advisory_xact_lock(tower_sse.lock_key('control', ns));
  newest := tower_sse.control_end(ns);
  IF newest = 0 THEN
    -- The ids after a crash have to be higher than all earlier ones.
    newest := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
  END IF;
  INSERT INTO tower_sse.control (ns, stream, id, at, message) VALUES (ns, stream, newest + 1, clock_timestamp(), message);
  PERFORM pg_notify(tower_sse.channel(ns), 'control');
END $$;

-- Returns control messages above `after`, of both streams, in their order. If the table was emptied
-- since, returns the oldest messages.
CREATE FUNCTION tower_sse.control_range(ns text, after bigint, max_messages bigint)
RETURNS TABLE (id bigint, message bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
  start constant bigint := CASE WHEN after > tower_sse.control_end(ns) THEN 0 ELSE after END;
BEGIN
  RETURN QUERY SELECT c.id, c.message FROM (
    (SELECT c.id, c.message FROM tower_sse.control c
      WHERE c.ns = control_range.ns AND c.stream = 0 AND c.id > start ORDER BY c.id LIMIT max_messages)
    UNION ALL
    (SELECT c.id, c.message FROM tower_sse.control c
      WHERE c.ns = control_range.ns AND c.stream = 1 AND c.id > start ORDER BY c.id LIMIT max_messages)
  ) c ORDER BY c.id LIMIT max_messages;
END $$;

CREATE FUNCTION tower_sse.put_once(ns text, key bytea, payload bytea, ttl_ms bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO tower_sse.deposit AS d (ns, key, payload, expires_at)
    VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4 / 1000.0))
    ON CONFLICT ON CONSTRAINT deposit_pkey DO UPDATE SET payload = excluded.payload, expires_at = excluded.expires_at
$$;

CREATE FUNCTION tower_sse.take(ns text, key bytea) RETURNS bytea
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH taken AS (DELETE FROM tower_sse.deposit d WHERE d.ns = $1 AND d.key = $2 RETURNING d.payload, d.expires_at)
  SELECT t.payload FROM taken t WHERE t.expires_at > clock_timestamp()
$$;

CREATE FUNCTION tower_sse.put_shared(ns text, key bytea, payload bytea, ttl_ms bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO tower_sse.shared AS s (ns, key, payload, expires_at)
    VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4 / 1000.0))
    ON CONFLICT ON CONSTRAINT shared_pkey DO UPDATE SET payload = excluded.payload, expires_at = excluded.expires_at
$$;

CREATE FUNCTION tower_sse.get_shared(ns text, key bytea) RETURNS bytea
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT s.payload FROM tower_sse.shared s WHERE s.ns = $1 AND s.key = $2 AND s.expires_at > clock_timestamp()
$$;

INSERT INTO tower_sse.migrations (version) VALUES (3);
