-- Journals: the storage of runs. A journal is stored whole, apart from the log.

CREATE TABLE tower_sse.journal (
  ns text NOT NULL,
  -- The SHA-256 of the key.
  key bytea NOT NULL,
  id bigint NOT NULL,
  -- The number of entries.
  last bigint NOT NULL,
  changed_at timestamptz NOT NULL,
  -- NULL while the journal is open.
  forget_at timestamptz,
  PRIMARY KEY (ns, key)
) WITH (fillfactor = 70);
CREATE INDEX journal_by_expiry ON tower_sse.journal (forget_at);

CREATE TABLE tower_sse.journal_entry (
  ns text NOT NULL,
  key bytea NOT NULL,
  id bigint NOT NULL,
  number bigint NOT NULL,
  entry bytea NOT NULL,
  PRIMARY KEY (ns, key, id, number)
);

-- The time after which a journal may be forgotten. An open journal may be forgotten after a day
-- without an entry.
CREATE FUNCTION tower_sse.journal_end(changed_at timestamptz, forget_at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(forget_at, changed_at + interval '24 hours')
$$;

-- Begins a journal, unless the key has an open journal. Returns whether this call, or an equal
-- earlier call, has begun the journal, and its id.
CREATE FUNCTION tower_sse.journal_begin(
  ns text, key bytea, new_id bigint, first bytea, OUT is_new boolean, OUT id bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
  now constant timestamptz := clock_timestamp();
BEGIN
  INSERT INTO tower_sse.journal AS j (ns, key, id, last, changed_at) VALUES (ns, key, new_id, 1, now)
    ON CONFLICT ON CONSTRAINT journal_pkey DO UPDATE SET id = new_id, last = 1, changed_at = now, forget_at = NULL
      WHERE j.forget_at IS NOT NULL OR tower_sse.journal_end(j.changed_at, j.forget_at) <= now;
  IF FOUND THEN
    DELETE FROM tower_sse.journal_entry e WHERE e.ns = ns AND e.key = key;
    INSERT INTO tower_sse.journal_entry (ns, key, id, number, entry) VALUES (ns, key, new_id, 1, first);
    is_new := true;
    id := new_id;
  ELSE
    -- The insert has locked the row of the open journal.
    SELECT j.id, e.entry = first INTO id, is_new FROM tower_sse.journal j
      JOIN tower_sse.journal_entry e ON e.ns = ns AND e.key = key AND e.id = j.id AND e.number = 1
      WHERE j.ns = ns AND j.key = key;
  END IF;
END $$;

-- Appends the entry `after + 1`, and closes the journal if `keep_ms` is not NULL. Returns whether
-- this call, or an equal earlier call, has appended the entry.
CREATE FUNCTION tower_sse.journal_append(
  ns text, key bytea, id bigint, after bigint, entry bytea, keep_ms bigint
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
  now constant timestamptz := clock_timestamp();
  journal record;
BEGIN
  SELECT j.* INTO journal FROM tower_sse.journal j WHERE j.ns = ns AND j.key = key AND j.id = id FOR UPDATE;
  IF NOT FOUND OR tower_sse.journal_end(journal.changed_at, journal.forget_at) <= now THEN
    RETURN false;
  END IF;
  IF journal.last = after AND journal.forget_at IS NULL THEN
    INSERT INTO tower_sse.journal_entry (ns, key, id, number, entry) VALUES (ns, key, id, after + 1, entry);
    UPDATE tower_sse.journal j
      SET last = after + 1, changed_at = now, forget_at = now + make_interval(secs => keep_ms / 1000.0)
      WHERE j.ns = ns AND j.key = key;
    RETURN true;
  END IF;
  -- An equal earlier call.
  RETURN (journal.last = after + 1 AND journal.forget_at IS NOT NULL) = (keep_ms IS NOT NULL)
    AND EXISTS (
      SELECT FROM tower_sse.journal_entry e
      WHERE e.ns = ns AND e.key = key AND e.id = id AND e.number = after + 1 AND e.entry = entry);
END $$;

-- Returns the id, the number of entries and the state of the current journal, and the entries above
-- `after`: at most `max_bytes` and 16,384, or one. Returns no row if there is no such journal.
CREATE FUNCTION tower_sse.journal_read(ns text, key bytea, wanted bigint, after bigint, max_bytes bigint)
RETURNS TABLE (id bigint, last bigint, is_closed boolean, entries bytea[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT j.id, j.last, j.forget_at IS NOT NULL, ARRAY(
    SELECT e.entry FROM (
      SELECT e.number, e.entry, sum(octet_length(e.entry)) OVER w AS bytes, row_number() OVER w AS n
      FROM tower_sse.journal_entry e WHERE e.ns = $1 AND e.key = $2 AND e.id = j.id AND e.number > $4
      WINDOW w AS (ORDER BY e.number) ORDER BY e.number LIMIT 16384
    ) e WHERE e.n = 1 OR e.bytes <= $5 ORDER BY e.number)
  FROM tower_sse.journal j
  WHERE j.ns = $1 AND j.key = $2 AND ($3 IS NULL OR j.id = $3)
    AND tower_sse.journal_end(j.changed_at, j.forget_at) > clock_timestamp()
$$;

INSERT INTO tower_sse.migrations (version) VALUES (4);
