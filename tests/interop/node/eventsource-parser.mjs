// A parser only: the requests are this script's.

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
    // What is left of a frame that did not end belongs to no other stream.
    parser.reset();
    again();
    await setTimeout(retry);
}
