-- Publishing in a transaction of the application, in any language.
--
-- Both functions insert one row into `inbox`. They take no lock and no number, and send no
-- notification, so they delay no other transaction. The event is published when the transaction
-- commits, and never if it is rolled back.

-- Publishes a record that `Target::prepare` of the crate, or another program, has encoded and
-- checked. `docs/broker.md` of the crate specifies records. `sets` and `removes` are the ids of the
-- current values that the record sets and removes.
--
-- With `wake`, the instances are notified at the commit. Without it, they find the record within
-- their poll interval, or when a program calls `tower_sse.sequence` after the commit.
-- Notifications of concurrent transactions wait for each other, so use `wake` for rare events only.
-- A transaction with `wake` cannot be prepared for two-phase commit.
--
-- The body names the schema of everything that it uses, and has no operator. So it needs no
-- `SET search_path`, which would cost a tenth of its time.
CREATE FUNCTION tower_sse.publish_record(
  ns text, record bytea, sets text[] DEFAULT NULL, removes text[] DEFAULT NULL,
  idempotency_key text DEFAULT NULL, wake boolean DEFAULT false
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  -- The expression gives the transaction its id before the row gets a number.
  INSERT INTO tower_sse.inbox (xact, ns, payload, sets, removes, idempotency_key)
    VALUES (pg_catalog.pg_current_xact_id(), ns, record, sets, removes, idempotency_key);
  IF wake THEN
    PERFORM pg_catalog.pg_notify(tower_sse.channel(ns), 'inbox');
  END IF;
END $$;

-- Fails unless a name follows the rules of the crate: 1 to 255 bytes without control characters.
CREATE FUNCTION tower_sse.check_name(kind text, name text) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF name IS NULL OR name = '' THEN
    RAISE EXCEPTION 'invalid %: the name is empty', kind USING ERRCODE = 'invalid_parameter_value';
  ELSIF octet_length(name) > 255 THEN
    RAISE EXCEPTION 'invalid %: the name has more than 255 bytes', kind USING ERRCODE = 'invalid_parameter_value';
  ELSIF name ~ '[\u0001-\u001f\u007f-\u009f]' THEN
    RAISE EXCEPTION 'invalid %: the name has a control character', kind USING ERRCODE = 'invalid_parameter_value';
  END IF;
END $$;

-- Publishes an event to topics, users or everyone, in the transaction of the caller.
--
--   SELECT tower_sse.publish('shop', topic => 'orders/7', event => 'order.paid', data => '{"id":7}');
--
-- - `topic` and `topics`, and `"user"` and `users`, add up. Each connection receives one copy.
-- - `key` makes the event the current value of this key. Use it only for targets that the instances
--   keep with `Retention::latest_per_key`. `remove` removes the value.
-- - `scope` is the scope of all targets.
-- - `max_bytes` is `max_payload` of the instances.
-- - `wake`: see `publish_record`.
CREATE FUNCTION tower_sse.publish(
  ns text, data text DEFAULT '', event text DEFAULT NULL,
  topic text DEFAULT NULL, topics text[] DEFAULT '{}', "user" text DEFAULT NULL, users text[] DEFAULT '{}',
  everyone boolean DEFAULT false, scope text DEFAULT NULL, key text DEFAULT NULL, remove boolean DEFAULT false,
  retry_ms bigint DEFAULT NULL, idempotency_key text DEFAULT NULL, wake boolean DEFAULT false,
  max_bytes integer DEFAULT 524288
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
  -- Queries are slow here, so the function has none for the lists.
  all_topics text[] := CASE WHEN topic IS NULL THEN topics ELSE array_append(topics, topic) END;
  all_users text[] := CASE WHEN "user" IS NULL THEN users ELSE array_append(users, "user") END;
  name text;
  lines text;
  targets text;
  record text;
  ids text[];
  id_end text;
BEGIN
  everyone := coalesce(everyone, false);
  remove := coalesce(remove, false);
  data := coalesce(data, '');
  IF cardinality(all_topics) + cardinality(all_users) + everyone::integer NOT BETWEEN 1 AND 128 THEN
    RAISE EXCEPTION 'an event needs 1 to 128 targets' USING ERRCODE = 'invalid_parameter_value';
  ELSIF array_ndims(all_topics) > 1 OR array_ndims(all_users) > 1 THEN
    RAISE EXCEPTION 'topics and users must be lists' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  FOREACH name IN ARRAY all_topics LOOP
    PERFORM tower_sse.check_name('topic', name);
  END LOOP;
  FOREACH name IN ARRAY all_users LOOP
    PERFORM tower_sse.check_name('user', name);
  END LOOP;
  IF scope IS NOT NULL THEN
    PERFORM tower_sse.check_name('scope', scope);
  END IF;
  IF key IS NOT NULL THEN
    PERFORM tower_sse.check_name('key', key);
  ELSIF remove THEN
    RAISE EXCEPTION 'a removal needs a key' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF idempotency_key IS NOT NULL THEN
    PERFORM tower_sse.check_name('idempotency key', idempotency_key);
  END IF;
  IF octet_length(event) > 128 OR event IN ('open', 'error') OR starts_with(event, 'hub.')
    OR event ~ '[\u0001-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]'
  THEN
    RAISE EXCEPTION 'invalid event name' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF retry_ms < 0 THEN
    RAISE EXCEPTION 'retry_ms is negative' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  -- The size on the wire, as the instances count it. Most events are far below the limit.
  IF octet_length(data) * 7 + 200 > max_bytes THEN
    lines := replace(replace(data, e'\r\n', e'\n'), e'\r', e'\n');
    IF octet_length(lines) + 6 * (length(lines) - length(replace(lines, e'\n', ''))) + 7
      + coalesce(octet_length(nullif(event, '')) + 8, 0)
      -- The instances keep the time within these limits.
      + (CASE WHEN retry_ms IS NULL THEN 0 ELSE length(least(greatest(retry_ms, 100), 3600000)::text) + 8 END) > max_bytes
    THEN
      RAISE EXCEPTION 'the event has more than % bytes', max_bytes USING ERRCODE = 'program_limit_exceeded';
    END IF;
  END IF;

  targets := concat_ws(',',
    CASE WHEN cardinality(all_topics) > 0 THEN '"topics":' || to_json(all_topics)::text END,
    CASE WHEN cardinality(all_users) > 0 THEN '"users":' || to_json(all_users)::text END,
    CASE WHEN everyone THEN '"everyone":true' END);
  IF scope IS NOT NULL THEN
    targets := '"scoped":{"scope":' || to_json(scope)::text || ',' || targets || '}';
  END IF;
  record := '{"v":1,"id":"' || lpad(to_hex((random() * 9223372036854775000)::bigint), 16, '0')
    || '","at":' || (extract(epoch FROM clock_timestamp()) * 1000)::bigint || ',"to":{' || targets || '}'
    || coalesce(',"event":' || to_json(nullif(event, ''))::text, '')
    || ',"data":' || to_json(data)::text
    || coalesce(',"key":' || to_json(key)::text, '')
    || CASE WHEN remove THEN ',"remove":true' ELSE '' END
    || coalesce(',"retry_ms":' || retry_ms, '') || '}';
  IF key IS NOT NULL THEN
    id_end := ',' || to_json(key)::text || coalesce(',' || to_json(scope)::text, '') || ']';
    FOREACH name IN ARRAY all_topics LOOP
      ids := array_append(ids, '["topic",' || to_json(name)::text || id_end);
    END LOOP;
    FOREACH name IN ARRAY all_users LOOP
      ids := array_append(ids, '["user",' || to_json(name)::text || id_end);
    END LOOP;
    IF everyone THEN
      ids := array_append(ids, '["everyone",""' || id_end);
    END IF;
  END IF;
  PERFORM tower_sse.publish_record(ns, convert_to(record, 'UTF8'),
    CASE WHEN NOT remove THEN ids END, CASE WHEN remove THEN ids END,
    CASE WHEN scope IS NULL THEN idempotency_key ELSE e'\u0001' || scope || e'\u0001' || idempotency_key END, wake);
END $$;

INSERT INTO tower_sse.migrations (version) VALUES (2);
