"""httpx-sse, with the loop that its documentation suggests for reconnecting."""

import time

import httpx
from httpx_sse import connect_sse

import report

last_id = ""
delay = 3.0

# The default read timeout is 5 s, which is shorter than the time between two heartbeats.
with httpx.Client(timeout=httpx.Timeout(10, read=None)) as client:
    while True:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            with connect_sse(client, "GET", report.url, headers=headers) as events:
                if events.response.status_code != 200:
                    report.closed(f"status {events.response.status_code}")
                for sse in events.iter_sse():
                    last_id = sse.id
                    if sse.retry is not None:
                        delay = sse.retry / 1000
                    report.event(sse.event, sse.data, sse.id)
                    if sse.event == report.last:
                        report.closed("left")
        except httpx.TransportError as e:
            report.error(e)
        report.again()
        time.sleep(delay)
