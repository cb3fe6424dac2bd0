"""httpx-sse in a loop that keeps the last id. The events are `delta`, then `done` or `failed`."""

import time

import httpx
from httpx_sse import connect_sse

from jobs import connector, error, finished, run

client = connector(httpx, timeout=httpx.Timeout(10, read=None))


class Loop:
    @staticmethod
    def ask(job, page):
        client().post(f"{job['direct']}/answers/{job['id']}/begin").raise_for_status()
        return Loop.reload(job, page)

    @staticmethod
    def reload(job, page):
        last_id = ""
        delay = 1.0
        while True:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            try:
                with connect_sse(client(), "GET", f"{job['base']}/answers/{job['id']}", headers=headers) as events:
                    status = events.response.status_code
                    if status == 503:
                        # The server asks to come back later.
                        time.sleep(delay)
                        continue
                    if status != 200:
                        return error(f"status {status}")
                    for sse in events.iter_sse():
                        last_id = sse.id
                        if sse.retry is not None:
                            delay = sse.retry / 1000
                        if sse.event == "delta":
                            page.add(sse.data)
                        elif sse.event == "done":
                            return finished(sse.data)
                        elif sse.event == "failed":
                            return error(sse.data)
                    return error("the stream ended without `done`")
            except httpx.TransportError:
                pass
            time.sleep(delay)

    @staticmethod
    def stop(job):
        client().post(f"{job['direct']}/answers/{job['id']}/stop").raise_for_status()


run({"loop": Loop})
