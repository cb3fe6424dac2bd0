#!/usr/bin/env python3
"""Publishes to a hub through Redis, without a hub: publish.py REDIS-PORT NAMESPACE TOPIC EVENT DATA

Speaks Redis' protocol itself, so it needs nothing but Python. A real program uses its language's client.
"""
import json
import pathlib
import secrets
import socket
import sys
import time


def encode(*parts):
    out = b"*%d\r\n" % len(parts)
    for part in parts:
        part = part if isinstance(part, bytes) else str(part).encode()
        out += b"$%d\r\n%s\r\n" % (len(part), part)
    return out


def answer(stream):
    line = stream.readline()[:-2]
    kind, rest = line[:1], line[1:]
    if kind == b"-":
        raise SystemExit(rest.decode())
    if kind == b"*":
        return [answer(stream) for _ in range(int(rest))]
    if kind == b"$":
        return stream.read(int(rest) + 2)[:-2]
    return rest


def quoted(namespace):
    safe = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    return "".join(chr(b) if b in safe else "%%%02X" % b for b in namespace.encode())


def main(port, namespace, topic, event, data):
    script = (pathlib.Path(__file__).parent / "../src/backplane/redis/append.lua").read_bytes()
    stamp = {"id": secrets.token_hex(8), "at": int(time.time() * 1000)}
    record = json.dumps({"v": 1, **stamp, "to": {"topics": [topic]}, "event": event, "data": data})
    keys = ["tower-sse:{%s}:%s" % (quoted(namespace), name) for name in ("log", "meta", "values", "order")]
    # The limits of the log. They must be those of the instances.
    kept = [100_000, 3_600_000, 100_000, 600_000, 1, 256 << 20]
    # This caller has seen no position. The script uses the random epoch if the log has none yet.
    # There is no record of an earlier call to compare ("0" and the empty text).
    arguments = ["", 0, secrets.token_hex(8).lstrip("0"), *kept, 0, "", record, 0, 0]
    with socket.create_connection(("127.0.0.1", int(port))) as connection:
        connection.sendall(encode("EVAL", script, len(keys), *keys, *arguments))
        epoch, sequences, _ = answer(connection.makefile("rb"))
    print("1.%s.%s" % (epoch.decode(), sequences[0].decode()))


if __name__ == "__main__":
    main(*sys.argv[1:])
