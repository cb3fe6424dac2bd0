"""aiohttp-sse-client in a loop, for streams that break."""

import asyncio

from aiohttp import ClientError, ClientTimeout
from aiohttp_sse_client.client import EventSource

import report

# The default is a limit of 5 minutes for a whole request.
ENDLESS = ClientTimeout(total=None)


async def main():
    last_id = ""
    while True:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            async with EventSource(report.url, headers=headers, timeout=ENDLESS) as events:
                async for event in events:
                    last_id = event.last_event_id
                    report.event(event.type, event.data, event.last_event_id)
                    if event.type == report.last:
                        report.closed("left")
        except ClientError as e:
            report.error(e)
        # The client does not expose `retry`.
        report.again()
        await asyncio.sleep(3)


try:
    asyncio.run(main())
except Exception as e:
    report.closed(e)
