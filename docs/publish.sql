-- Publishes an event in the transaction of a change, with psql:
--
--   psql postgres://app@127.0.0.1/shop -v ON_ERROR_STOP=1 -v namespace=shop -v order=7 -f publish.sql
--
-- If the transaction commits, every stream of the topic receives the event. If a statement fails,
-- the transaction is rolled back, and no stream receives the event.

BEGIN;

UPDATE orders SET paid = true WHERE id = :order;

-- `wake` notifies the instances at the commit. Without it, they find the event at their next poll,
-- 250 ms later at most. Notifications of concurrent transactions wait for each other, so a program
-- that publishes often calls `tower_sse.sequence` after the commit instead: see publish_postgres.py.
SELECT tower_sse.publish(:'namespace', topic => 'orders/' || :'order', event => 'order.paid',
  data => json_build_object('id', :order)::text, wake => true);

COMMIT;
