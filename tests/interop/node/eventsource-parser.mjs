// The package is only a parser. This script sends the requests.

import { setTimeout } from "node:timers/promises";
import { createParser } from "eventsource-parser";
import { again, closed, error, event, last, url } from "./report.mjs";

let lastId = "";
let retry = 3000;
const parser = createParser({
    onEvent(e) {
        if (e.id !== undefined) lastId = e.id;
        event(e.event, e.data, e.id);
        if (e.event === last) closed("left");
    },
    onRetry: ms => { retry = ms; },
});

for (;;) {
    const headers = { accept: "text/event-stream", ...(lastId && { "last-event-id": lastId }) };
    const response = await fetch(url, { headers });
    if (response.status !== 200) {
        closed(`status ${response.status}`);
        break;
    }
    try {
        for await (const text of response.body.pipeThrough(new TextDecoderStream())) parser.feed(text);
    } catch (e) {
        error(e);
    }
    // Drop an incomplete frame, so that it does not become a part of the next stream.
    parser.reset();
    again();
    await setTimeout(retry);
}
