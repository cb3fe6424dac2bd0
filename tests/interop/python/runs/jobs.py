"""Runs jobs for the test `tests/interop/runs`. See `node/runs/jobs.mjs`."""

import json
import os
import sys
import threading
import traceback

lock = threading.Lock()


def connector(module, **options):
    """Returns a function that returns an HTTP client of the module `httpx` or `httpx2`.

    Over HTTP/1.1 it always returns the same client, because the start of one takes long. Over
    HTTP/2 it returns a new one for each request, so that each request uses a separate connection
    and the test can route it.
    """
    if os.environ.get("RUNS_HTTP2"):
        # The certificate of the test is self-signed.
        limits = module.Limits(max_keepalive_connections=0)
        return lambda: module.Client(http2=True, verify=False, limits=limits, **options)
    client = module.Client(limits=module.Limits(max_connections=None), **options)
    return lambda: client


def write(**line):
    with lock:
        print(json.dumps(line), flush=True)


class Page:
    """What the user of a page sees."""

    def __init__(self, job, number):
        self.job = job
        self.number = number
        self.text = ""
        self.half = threading.Event()

    def add(self, text):
        if text:
            self.text += text
            write(job=self.job["job"], page=self.number, text=self.text)
        if self.text == self.job["half"]:
            self.half.set()


def finished(note=None):
    return {"end": "finished", "note": note}


def error(note):
    return {"end": "error", "note": str(note)}


def safely(read, *arguments):
    try:
        return read(*arguments)
    except Exception as e:
        traceback.print_exc()
        return error(f"{type(e).__name__}: {e}")


def perform(client, job):
    page = Page(job, 1)
    if job["how"] == "ask":
        end = safely(client.ask, job, page)
    else:
        result = []

        def ask():
            result.append(safely(client.ask, job, page))
            page.half.set()

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        page.half.wait()
        if job["how"] == "stop":
            client.stop(job)
            asking.join()
            end = result[0]
        else:
            page = Page(job, 2)
            end = safely(client.reload, job, page)
    write(job=job["job"], text=page.text, **end)


def run(clients):
    for line in sys.stdin:
        job = json.loads(line)
        if "cancel" in job:
            # These clients end by themselves.
            continue
        threading.Thread(target=perform, args=(clients[job["client"]], job), daemon=True).start()
