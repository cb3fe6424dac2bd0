-- The shared log.
--
-- `inbox` has the records that transactions of the application have published. They have no
-- numbers yet, because a transaction that took a number would have to keep all others waiting until
-- it commits. `write` moves the committed records into `log` and numbers them.
--
-- Apply each file once, in the order of the numbers, each in a separate transaction:
--   psql -X -1 -v ON_ERROR_STOP=1 -f 001_log.sql

CREATE SCHEMA tower_sse;

CREATE TABLE tower_sse.migrations (
  version integer PRIMARY KEY,
  applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row for each namespace. Writers rarely change it, because the versions of a row that changes
-- often pile up while another transaction of the server stays open.
CREATE TABLE tower_sse.head (
  ns text PRIMARY KEY,
  epoch bigint NOT NULL,
  -- The number of the oldest record that is retained.
  first bigint NOT NULL DEFAULT 1,
  -- The database system that has numbered the last records. A restored dump has another one, and
  -- its transaction ids begin anew.
  system bigint NOT NULL DEFAULT 0,
  -- Whether `current` has more values than the limit, and `trim` has not removed all of them yet.
  has_surplus boolean NOT NULL DEFAULT false
);

-- Vacuum does not return the end of the tables to the system: it would lock out all readers and
-- writers for a moment.
--
-- Every row that the table accepts can be moved into the log. Otherwise one row would stop the log.
CREATE TABLE tower_sse.inbox (
  ns text NOT NULL,
  -- The transaction that has published the record.
  xact xid8 NOT NULL,
  id bigserial NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  payload bytea NOT NULL,
  -- The ids of the current values that the record sets and removes. Each value is a copy of the
  -- record.
  sets text[],
  removes text[],
  idempotency_key text,
  PRIMARY KEY (ns, xact, id),
  -- One constraint, because the server reads each of them anew for every row.
  CONSTRAINT inbox_is_limited CHECK (
    octet_length(ns) <= 255 AND xact > '0' AND octet_length(payload) <= 33554432
    AND coalesce(cardinality(sets), 0) + coalesce(cardinality(removes), 0) <= 1024
    AND coalesce(octet_length(payload)::bigint * cardinality(sets), 0) <= 134217728)
) WITH (
  vacuum_truncate = false, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 1000000
);

CREATE TABLE tower_sse.log (
  ns text NOT NULL,
  number bigint NOT NULL,
  at timestamptz NOT NULL,
  -- The size of all records before this one, also of those that are no longer retained.
  bytes_before bigint NOT NULL,
  payload bytea NOT NULL,
  -- In the newest record of each batch: all records of the inbox that this snapshot sees are in the
  -- log.
  moved pg_snapshot,
  PRIMARY KEY (ns, number)
) WITH (vacuum_truncate = false, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE tower_sse.current (
  ns text NOT NULL,
  -- The SHA-256 of the id, because an id may be too long for an index.
  hash bytea NOT NULL,
  id text NOT NULL,
  number bigint NOT NULL,
  at timestamptz NOT NULL,
  payload bytea NOT NULL,
  PRIMARY KEY (ns, hash)
) WITH (vacuum_truncate = false, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX current_by_number ON tower_sse.current (ns, number);

-- The idempotency keys of the last ten minutes.
CREATE TABLE tower_sse.once (
  ns text NOT NULL,
  -- The SHA-256 of the key.
  hash bytea NOT NULL,
  epoch bigint NOT NULL,
  number bigint NOT NULL,
  at timestamptz NOT NULL,
  PRIMARY KEY (ns, hash)
) WITH (vacuum_truncate = false, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX once_by_time ON tower_sse.once (at);

-- The newest version of the schema.
CREATE FUNCTION tower_sse.version() RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT max(version) FROM tower_sse.migrations
$$;

-- The channel of NOTIFY for a namespace. Instances listen there.
CREATE FUNCTION tower_sse.channel(ns text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT 'tower_sse_' || left(encode(sha256(convert_to(ns, 'UTF8')), 'hex'), 32)
$$;

-- The advisory lock of a namespace for one purpose.
CREATE FUNCTION tower_sse.lock_key(purpose text, ns text) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT hashtextextended('tower_sse ' || purpose || ' ' || ns, 0)
$$;

-- Returns the state of a log. `epoch` is NULL if the log does not exist yet. `moved` belongs to the
-- newest batch, and `bytes` is the size of all records.
--
-- `has_lost` is true if the log has lost records. The caller has seen the records up to each of
-- `seen_numbers` in the epoch beside it. `own` is the number of a record that the caller has
-- appended in the epoch `own_epoch`, or 0, and `own_start` are its first bytes.
CREATE FUNCTION tower_sse.read_state(
  ns text, seen_epochs bigint[], seen_numbers bigint[], own_epoch bigint, own bigint, own_start bytea,
  OUT epoch bigint, OUT first bigint, OUT last bigint, OUT bytes bigint, OUT moved pg_snapshot, OUT has_lost boolean
)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
BEGIN
  SELECT h.epoch, h.first INTO epoch, first FROM tower_sse.head h WHERE h.ns = ns;
  SELECT l.number, l.bytes_before + octet_length(l.payload), l.moved INTO last, bytes, moved
    FROM tower_sse.log l WHERE l.ns = ns ORDER BY l.number DESC LIMIT 1;
  last := coalesce(last, 0);
  bytes := coalesce(bytes, 0);
  -- If another record has the number of the caller's record, the log was rolled back and has grown.
  has_lost := EXISTS (SELECT FROM unnest(seen_epochs, seen_numbers) AS s(e, n) WHERE s.e = epoch AND s.n > last)
    OR (own_epoch = epoch AND own > 0 AND EXISTS (
      SELECT FROM tower_sse.log l
      WHERE l.ns = ns AND l.number = own AND substr(l.payload, 1, octet_length(own_start)) <> own_start));
END $$;

-- Returns the same as `read_state`, for a caller that holds the lock of the log. Creates the log if it does not
-- exist, and begins a new epoch if it has lost records.
CREATE FUNCTION tower_sse.locked_state(
  ns text, new_epoch bigint, seen_epochs bigint[], seen_numbers bigint[],
  own_epoch bigint, own bigint, own_start bytea,
  OUT epoch bigint, OUT first bigint, OUT last bigint, OUT bytes bigint, OUT moved pg_snapshot
)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  state record;
BEGIN
  -- At these levels, the transaction takes its snapshot before the lock. Then a batch could miss
  -- records.
  IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    RAISE EXCEPTION 'the log needs the isolation level READ COMMITTED' USING ERRCODE = 'invalid_transaction_state';
  END IF;
  state := tower_sse.read_state(ns, seen_epochs, seen_numbers, own_epoch, own, own_start);
  IF state.epoch IS NULL THEN
    INSERT INTO tower_sse.head (ns, epoch) VALUES (ns, new_epoch);
  ELSIF state.has_lost THEN
    UPDATE tower_sse.head h SET epoch = new_epoch WHERE h.ns = ns;
  END IF;
  epoch := CASE WHEN state.epoch IS NULL OR state.has_lost THEN new_epoch ELSE state.epoch END;
  first := coalesce(state.first, 1);
  last := state.last;
  bytes := state.bytes;
  moved := state.moved;
END $$;

-- Returns the epoch, the first and the last number of the log. Begins a new epoch if the log has
-- lost records. Fails on a server that cannot append records.
CREATE FUNCTION tower_sse.state(
  ns text, new_epoch bigint, seen_epoch bigint, seen_number bigint,
  own_epoch bigint, own bigint, own_start bytea,
  OUT epoch bigint, OUT first bigint, OUT last bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_variable
DECLARE
  state record;
BEGIN
  IF pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean THEN
    RAISE EXCEPTION 'the server is read-only' USING ERRCODE = 'read_only_sql_transaction';
  END IF;
  state := tower_sse.read_state(ns, ARRAY[seen_epoch], ARRAY[seen_number], own_epoch, own, own_start);
  epoch := state.epoch;
  first := state.first;
  last := state.last;
  IF state.epoch IS NULL OR state.has_lost THEN
    PERFORM pg_advisory_xact_lock(tower_sse.lock_key('log', ns));
    SELECT s.epoch, s.first, s.last INTO epoch, first, last FROM tower_sse.locked_state(
      ns, new_epoch, ARRAY[seen_epoch], ARRAY[seen_number], own_epoch, own, own_start) s;
  END IF;
END $$;

-- The approximate number of bytes that the server writes when it moves a record of the inbox.
CREATE FUNCTION tower_sse.cost(payload bytea, sets text[], removes text[]) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT octet_length(payload)::bigint * greatest(cardinality(sets), 1)
    + 500 * (coalesce(cardinality(sets), 0) + coalesce(cardinality(removes), 0))
$$;

-- Moves records of the inbox into the log, then appends the records of the caller. The caller holds
-- the lock of the log, and passes the answer of `locked_state`.
--
-- Nothing else numbers records. So a number is never assigned twice, and a record that becomes
-- visible later has a higher number. Returns the number of each record of the caller, and how many
-- records were written, and how many of them come from the inbox.
CREATE FUNCTION tower_sse.write(
  ns text, epoch bigint, last bigint, bytes bigint, moved pg_snapshot, max_moved integer,
  payloads bytea[], keys text[], set_by integer[], sets text[], removed_by integer[], removes text[],
  OUT numbers bigint[], OUT written integer, OUT taken integer, OUT is_complete boolean
)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  now timestamptz := clock_timestamp();
  system bigint;
  -- Records of these transactions, or of later ones, may still be in the inbox.
  pending xid8[] := ARRAY(SELECT pg_snapshot_xip(moved));
  since xid8 := coalesce(pg_snapshot_xmax(moved), '0'::xid8);
  may_advance boolean;
BEGIN
  SELECT c.system_identifier INTO system FROM pg_control_system() c;
  UPDATE tower_sse.head h SET system = system WHERE h.ns = ns AND h.system <> system;
  -- If the transaction gets its id below, after the snapshot, then the ids in the snapshot are lower:
  -- other transactions do not publish with them, and a server that has recovered from a crash does
  -- not assign them again. Otherwise the next batch looks at all rows since the earlier snapshot.
  may_advance := pg_current_xact_id_if_assigned() IS NULL;
  IF FOUND OR moved IS NULL OR since > pg_snapshot_xmax(pg_current_snapshot()) THEN
    since := '0'::xid8;
    pending := '{}';
    moved := NULL;
  END IF;
  WITH snapshot AS MATERIALIZED (
    SELECT pg_current_snapshot() AS now
  ), candidates AS MATERIALIZED (
    -- The index has the order of the transactions. The order of the calls is that of the ids: a
    -- transaction that waits for another one publishes later, and may have the lower number. So this
    -- looks at many more rows than it takes. Of each transaction in `pending`, it looks at one row
    -- more, so that `left_over` has the transaction if further rows wait. The inner limits let the
    -- server read the index in its order, however many rows wait.
    (SELECT c.row, c.xact, c.id FROM unnest(pending) AS p(xact), LATERAL (
        SELECT i.ctid AS row, i.xact, i.id FROM tower_sse.inbox i
        WHERE i.ns = ns AND i.xact = p.xact ORDER BY i.id LIMIT max_moved + 1) c)
    UNION ALL
    (SELECT i.ctid, i.xact, i.id FROM tower_sse.inbox i
      WHERE i.ns = ns AND i.xact >= since ORDER BY i.xact, i.id LIMIT max_moved * 20)
  ), found AS MATERIALIZED (
    SELECT o.row, o.xact FROM (
      SELECT f.row, f.xact, w.cost, sum(w.cost) OVER (ORDER BY f.id) AS total
      FROM (SELECT c.* FROM candidates c ORDER BY c.id LIMIT max_moved) f, LATERAL (
        SELECT tower_sse.cost(i.payload, i.sets, i.removes) AS cost FROM tower_sse.inbox i WHERE i.ctid = f.row) w
    ) o WHERE o.total <= 8388608 OR o.total = o.cost
  ), left_over AS MATERIALIZED (
    SELECT c.xact FROM candidates c WHERE NOT EXISTS (SELECT FROM found f WHERE f.row = c.row)
  ), reached AS (
    -- `xmax` is the last transaction of which this batch takes a record, or the end of the current
    -- snapshot if the batch takes all records. Of earlier transactions, only those of `left_over` and
    -- those that are still open have records that are not in the log, because the candidates have
    -- the order of the transactions.
    --
    -- The records of a restored dump may have ids that this server has not assigned yet. `xmax` is
    -- not one of these ids. Otherwise new transactions, which have lower ids, would be skipped.
    SELECT least(pg_snapshot_xmax(s.now), CASE WHEN EXISTS (SELECT FROM left_over l WHERE l.xact >= since) THEN coalesce(
        (SELECT f.xact FROM found f
          WHERE f.xact >= since AND f.xact < pg_snapshot_xmax(s.now) ORDER BY f.xact DESC LIMIT 1),
        (SELECT l.xact FROM left_over l WHERE l.xact >= since ORDER BY l.xact LIMIT 1)) END) AS xmax
    FROM snapshot s
  ), moved_now AS MATERIALIZED (
    SELECT format('%s:%s:%s', coalesce(o.xacts[1], r.xmax), r.xmax, array_to_string(o.xacts, ','))::pg_snapshot AS snapshot
    FROM reached r, LATERAL (
      SELECT array_agg(x.xact ORDER BY x.xact) AS xacts FROM (
        SELECT pg_snapshot_xip(s.now) FROM snapshot s UNION SELECT l.xact FROM left_over l
      ) x(xact) WHERE x.xact < r.xmax) o
  ), taken AS (
    DELETE FROM tower_sse.inbox i WHERE i.ctid = ANY (ARRAY(SELECT f.row FROM found f))
    RETURNING i.id, i.payload, i.sets, i.removes, i.idempotency_key AS key
  ), given AS (
    -- `own` is 0 for a record of the inbox, or the number of the record in the call.
    SELECT 0 AS own, t.id, t.payload, t.key, t.sets, t.removes FROM taken t
    UNION ALL
    SELECT p.n::integer, NULL, p.payload, p.key, s.ids, r.ids
    FROM unnest(payloads, keys) WITH ORDINALITY AS p(payload, key, n)
    LEFT JOIN (SELECT v.n, array_agg(v.id) AS ids FROM unnest(set_by, sets) AS v(n, id) GROUP BY v.n) s ON s.n = p.n
    LEFT JOIN (SELECT v.n, array_agg(v.id) AS ids FROM unnest(removed_by, removes) AS v(n, id) GROUP BY v.n) r ON r.n = p.n
  ), ordered AS MATERIALIZED (
    SELECT g.*, sha256(convert_to(g.key, 'UTF8')) AS hash, row_number() OVER (ORDER BY g.own, g.id) AS n FROM given g
  ), repeated AS MATERIALIZED (
    -- Records whose idempotency key an earlier record has. That record is in the log, or it has the
    -- number `of`.
    SELECT o.n, o.own, e.number, f.n AS of
    FROM ordered o
    LEFT JOIN tower_sse.once e ON e.ns = ns AND e.hash = o.hash AND e.epoch = epoch AND e.at > now - interval '10 minutes'
    LEFT JOIN (SELECT key, min(r.n) AS n FROM ordered r WHERE r.key IS NOT NULL GROUP BY r.key) f ON f.key = o.key AND f.n < o.n
    WHERE o.key IS NOT NULL AND (e.number IS NOT NULL OR f.n IS NOT NULL)
  ), numbered AS MATERIALIZED (
    SELECT o.*, last + row_number() OVER w AS number,
      bytes + (sum(octet_length(o.payload)) OVER w)::bigint - octet_length(o.payload) AS bytes_before,
      lead(true) OVER w IS NULL AS is_newest
    FROM ordered o WHERE NOT EXISTS (SELECT FROM repeated r WHERE r.n = o.n)
    WINDOW w AS (ORDER BY o.n)
  ), inserted AS (
    INSERT INTO tower_sse.log (ns, number, at, bytes_before, payload, moved)
    SELECT ns, r.number, now, r.bytes_before, r.payload,
      CASE WHEN NOT r.is_newest THEN NULL
        WHEN may_advance THEN m.snapshot
        ELSE moved END
    FROM numbered r, moved_now m
  ), remembered AS (
    INSERT INTO tower_sse.once AS e (ns, hash, epoch, number, at)
    SELECT ns, r.hash, epoch, r.number, now FROM numbered r WHERE r.key IS NOT NULL
    ON CONFLICT ON CONSTRAINT once_pkey DO UPDATE SET epoch = excluded.epoch, number = excluded.number, at = excluded.at
  ), changed AS MATERIALIZED (
    SELECT DISTINCT ON (v.id) v.id, sha256(convert_to(v.id, 'UTF8')) AS hash, v.removes, r.number, r.payload
    FROM numbered r, LATERAL (
      SELECT unnest(r.sets) AS id, false AS removes UNION ALL SELECT unnest(r.removes), true
    ) v WHERE v.id IS NOT NULL ORDER BY v.id, r.n DESC
  ), removed AS (
    DELETE FROM tower_sse.current c USING changed v WHERE c.ns = ns AND c.hash = v.hash AND v.removes
  ), stored AS (
    INSERT INTO tower_sse.current AS c (ns, hash, id, number, at, payload)
    SELECT ns, v.hash, v.id, v.number, now, v.payload FROM changed v WHERE NOT v.removes
    ON CONFLICT ON CONSTRAINT current_pkey DO UPDATE SET number = excluded.number, at = excluded.at, payload = excluded.payload
  )
  SELECT
    (SELECT array_agg(coalesce(n.number, r.number, f.number) ORDER BY o.own)
      FROM ordered o LEFT JOIN numbered n ON n.n = o.n LEFT JOIN repeated r ON r.n = o.n LEFT JOIN numbered f ON f.n = r.of
      WHERE o.own > 0),
    (SELECT count(*) FROM numbered),
    (SELECT count(*) FROM numbered n WHERE n.own = 0),
    NOT EXISTS (SELECT FROM left_over)
  INTO numbers, written, taken, is_complete;
  IF written > 0 THEN
    PERFORM pg_notify(tower_sse.channel(ns), 'log ' || last + written);
  END IF;
END $$;

-- Removes the records and the values above the limits. The limits have some slack, so that most
-- calls remove nothing. The newest record always stays. The caller holds the lock of the log.
CREATE FUNCTION tower_sse.trim(
  ns text, first bigint, last bigint, written integer,
  max_records bigint, max_bytes bigint, max_age_ms bigint, max_values bigint
) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  -- A call removes at most this many records, and more than it has appended.
  most constant bigint := 4000 + 2 * written;
  -- More than a batch sets.
  most_values constant bigint := 30000;
  age constant interval := make_interval(secs => max_age_ms / 1000.0);
  oldest timestamptz;
  held bigint;
  total bigint;
  low bigint := first;
  high bigint := last;
  middle bigint;
  is_outside boolean;
  surplus bigint;
BEGIN
  SELECT l.at, l.bytes_before INTO oldest, held FROM tower_sse.log l WHERE l.ns = ns AND l.number = first;
  SELECT l.bytes_before + octet_length(l.payload) INTO total FROM tower_sse.log l WHERE l.ns = ns AND l.number = last;
  IF last - first >= max_records + max_records / 16
    OR total - held > max_bytes + max_bytes / 16
    OR oldest < clock_timestamp() - age * 17 / 16
  THEN
    -- Finds the first record within the limits. Ages and sizes grow with the number.
    WHILE low < high LOOP
      middle := (low + high) / 2;
      SELECT l.at <= clock_timestamp() - age OR total - l.bytes_before > max_bytes OR last - middle >= max_records
        INTO is_outside FROM tower_sse.log l WHERE l.ns = ns AND l.number = middle;
      IF coalesce(is_outside, true) THEN low := middle + 1; ELSE high := middle; END IF;
    END LOOP;
    low := least(low, first + most);
    DELETE FROM tower_sse.log l WHERE l.ns = ns AND l.number >= first AND l.number < low;
    UPDATE tower_sse.head h SET first = low WHERE h.ns = ns;
  END IF;
  -- Counting the values takes long, so it happens once for each sixteenth of the limit, and while
  -- there are too many of them. A call removes at most as many as it can within the time limits.
  IF max_values IS NOT NULL
    AND ((last - written) / greatest(max_values / 16, 1) <> last / greatest(max_values / 16, 1)
      OR (SELECT h.has_surplus FROM tower_sse.head h WHERE h.ns = ns))
  THEN
    SELECT count(*) - max_values INTO surplus FROM tower_sse.current c WHERE c.ns = ns;
    IF surplus > 0 THEN
      DELETE FROM tower_sse.current c WHERE c.ns = ns AND c.hash IN (
        SELECT o.hash FROM tower_sse.current o WHERE o.ns = ns ORDER BY o.number LIMIT least(surplus, most_values));
    END IF;
    UPDATE tower_sse.head h SET has_surplus = surplus > most_values
      WHERE h.ns = ns AND h.has_surplus <> (surplus > most_values);
  END IF;
END $$;

-- Appends records, after the records that wait in the inbox. Waits at most `wait_ms` for another
-- writer.
--
-- `keys` has an idempotency key or NULL for each record. The record number `set_by[i]` sets the
-- current value `sets[i]`, and the record number `removed_by[i]` removes `removes[i]`. Returns the
-- number of each record, the number before the first new record of the caller, and whether the
-- inbox has no more records.
CREATE FUNCTION tower_sse.append(
  ns text, payloads bytea[], keys text[], set_by integer[], sets text[], removed_by integer[], removes text[],
  new_epoch bigint, seen_epochs bigint[], seen_numbers bigint[], own_epoch bigint, own bigint, own_start bytea,
  max_records bigint, max_bytes bigint, max_age_ms bigint, max_values bigint, wait_ms bigint,
  OUT epoch bigint, OUT numbers bigint[], OUT last_before bigint, OUT is_complete boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_variable
DECLARE
  state record;
  result record;
BEGIN
  PERFORM set_config('lock_timeout', wait_ms::text, true);
  PERFORM pg_advisory_xact_lock(tower_sse.lock_key('log', ns));
  state := tower_sse.locked_state(ns, new_epoch, seen_epochs, seen_numbers, own_epoch, own, own_start);
  result := tower_sse.write(ns, state.epoch, state.last, state.bytes, state.moved, 1000,
    payloads, keys, set_by, sets, removed_by, removes);
  IF result.written > 0 THEN
    PERFORM tower_sse.trim(ns, state.first, state.last + result.written, result.written,
      max_records, max_bytes, max_age_ms, max_values);
  END IF;
  epoch := state.epoch;
  numbers := coalesce(result.numbers, '{}');
  last_before := state.last + result.taken;
  is_complete := result.is_complete;
END $$;

-- Moves the committed records of the inbox into the log, and removes records above the limits. Does
-- nothing if another writer does that now. Returns whether the inbox may have more records. The
-- instances call this function.
CREATE FUNCTION tower_sse.sequence_and_trim(
  ns text, max_records bigint, max_bytes bigint, max_age_ms bigint, max_values bigint
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_variable
DECLARE
  seen pg_snapshot;
  state record;
  result record;
BEGIN
  -- Without the lock, and without a write: most calls find nothing.
  IF EXISTS (SELECT FROM tower_sse.head h, pg_control_system() c WHERE h.ns = ns AND h.system = c.system_identifier) THEN
    SELECT l.moved INTO seen FROM tower_sse.log l WHERE l.ns = ns ORDER BY l.number DESC LIMIT 1;
  END IF;
  IF pg_snapshot_xmax(seen) > pg_snapshot_xmax(pg_current_snapshot()) THEN
    seen := NULL;
  END IF;
  IF NOT EXISTS (SELECT FROM tower_sse.inbox i WHERE i.ns = ns AND i.xact >= coalesce(pg_snapshot_xmax(seen), '0'::xid8))
    -- Not `= ANY`: a plan from a time with few rows would read all rows, also those that were moved.
    AND NOT EXISTS (
      SELECT FROM pg_snapshot_xip(seen) AS p(xact),
        LATERAL (SELECT FROM tower_sse.inbox i WHERE i.ns = ns AND i.xact = p.xact LIMIT 1) i)
    OR NOT pg_try_advisory_xact_lock(tower_sse.lock_key('log', ns))
  THEN
    RETURN false;
  END IF;
  state := tower_sse.locked_state(ns, (random() * 9223372036854775000)::bigint, '{}', '{}', 0, 0, '');
  result := tower_sse.write(ns, state.epoch, state.last, state.bytes, state.moved, 1000, '{}', '{}', '{}', '{}', '{}', '{}');
  IF result.written > 0 THEN
    PERFORM tower_sse.trim(ns, state.first, state.last + result.written, result.written,
      max_records, max_bytes, max_age_ms, max_values);
  END IF;
  RETURN NOT result.is_complete;
END $$;

-- Moves the committed records of the inbox into the log. Programs without the crate call this
-- function after their commit, so that the instances do not have to wait for their next poll.
-- Returns whether the inbox may have more records.
CREATE FUNCTION tower_sse.sequence(ns text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT tower_sse.sequence_and_trim($1, NULL, NULL, NULL, NULL)
$$;

-- Returns the records above `after`, at most `max_records`, and at most `max_bytes` or one record.
CREATE FUNCTION tower_sse.range(ns text, after bigint, max_records bigint, max_bytes bigint)
RETURNS TABLE (number bigint, at_ms bigint, payload bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
  oldest constant bigint := (SELECT h.first FROM tower_sse.head h WHERE h.ns = range.ns);
  start bigint;
  bytes bigint;
BEGIN
  -- Records below `oldest` are deleted, and reading past many deleted rows takes long.
  SELECT l.number, l.bytes_before INTO start, bytes FROM tower_sse.log l
    WHERE l.ns = range.ns AND l.number > greatest(after, oldest - 1) ORDER BY l.number LIMIT 1;
  RETURN QUERY
    SELECT r.number, (extract(epoch FROM r.at) * 1000)::bigint, r.payload
    FROM (
      SELECT l.* FROM tower_sse.log l WHERE l.ns = range.ns AND l.number >= start ORDER BY l.number LIMIT max_records
    ) r
    WHERE r.number = start OR r.bytes_before + octet_length(r.payload) - bytes <= max_bytes
    ORDER BY r.number;
END $$;

CREATE FUNCTION tower_sse.current_values(ns text)
RETURNS TABLE (id text, number bigint, at_ms bigint, payload bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT c.id, c.number, (extract(epoch FROM c.at) * 1000)::bigint, c.payload FROM tower_sse.current c WHERE c.ns = $1
$$;

INSERT INTO tower_sse.migrations (version) VALUES (1);
