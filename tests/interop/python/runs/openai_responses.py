"""openai: Responses. After a break, the caller asks for the rest."""

import httpx2
from openai import APIError, OpenAI

from jobs import connector, error, finished, run

http = connector(httpx2)


def at(url):
    return OpenAI(api_key="none", base_url=f"{url}/v1", http_client=http())


def read(events, page, seen):
    for event in events:
        seen["number"] = event.sequence_number
        if event.type == "response.created":
            seen["id"] = event.response.id
        elif event.type == "response.output_text.delta":
            page.add(event.delta)
        elif event.type == "response.completed":
            return finished()
        elif event.type == "response.incomplete":
            return finished("incomplete")
        elif event.type == "response.failed":
            return error(event.response.error)
    return error("the stream ended without `response.completed`")


class Loop:
    @staticmethod
    def ask(job, page):
        client = at(job["base"])
        seen = {}
        try:
            return read(client.responses.create(model="m", input=job["id"], stream=True), page, seen)
        except (APIError, httpx2.HTTPError):
            if "id" not in seen:
                raise
        rest = client.responses.retrieve(seen["id"], stream=True, starting_after=seen["number"])
        return read(rest, page, seen)

    @staticmethod
    def reload(job, page):
        return read(at(job["base"]).responses.retrieve(f"resp_{job['id']}", stream=True), page, {})

    @staticmethod
    def stop(job):
        at(job["direct"]).responses.cancel(f"resp_{job['id']}")


run({"loop": Loop})
