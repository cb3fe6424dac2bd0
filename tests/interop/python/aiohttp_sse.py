"""aiohttp-sse-client, as at the start of its documentation."""

import asyncio

from aiohttp_sse_client.client import EventSource

import report


async def main():
    async with EventSource(report.url) as events:
        async for event in events:
            report.event(event.type, event.data, event.last_event_id)
            if event.type == report.last:
                report.closed("left")
    report.closed("took the end for the end")


try:
    asyncio.run(main())
except Exception as e:
    report.closed(e)
