#!/usr/bin/env python3
"""Publishes an event in the transaction of a change, with psycopg 3:

    publish_postgres.py postgres://app@127.0.0.1/shop shop 7

If the transaction commits, every stream of the topic receives the event. If the transaction is
rolled back, no stream receives the event. The role needs the right to execute `tower_sse.publish`
and `tower_sse.sequence`. The driver is `pip install "psycopg[binary]"`.
"""
import json
import sys

import psycopg


def pay(connection, namespace, order):
    with connection.transaction():
        connection.execute("UPDATE orders SET paid = true WHERE id = %s", [order])
        connection.execute(
            "SELECT tower_sse.publish(%s, topic => %s, event => %s, data => %s)",
            [namespace, f"orders/{order}", "order.paid", json.dumps({"id": order})],
        )
    # Moves the event into the log at once, after the commit and in a separate transaction. Without
    # this call, the instances find the event at their next poll, 250 ms later at most. The call
    # needs the isolation level READ COMMITTED, the default of PostgreSQL.
    connection.execute("SELECT tower_sse.sequence(%s)", [namespace])


def main(url, namespace, order):
    # With `autocommit`, only the block of `connection.transaction()` is one transaction.
    with psycopg.connect(url, autocommit=True) as connection:
        pay(connection, namespace, int(order))


if __name__ == "__main__":
    main(*sys.argv[1:])
