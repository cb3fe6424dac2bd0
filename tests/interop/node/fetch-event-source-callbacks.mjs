// With the documented callbacks for errors, as strict as a browser.

import "./stand-ins.mjs";
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { closed, error, event, last, url } from "./report.mjs";

class Fatal extends Error {}

const leave = new AbortController();
try {
    await fetchEventSource(url, {
        signal: leave.signal,
        async onopen(response) {
            if (response.status !== 200) throw new Fatal(`status ${response.status}`);
        },
        onmessage(e) {
            event(e.event, e.data, e.id);
            if (e.event === last) leave.abort();
        },
        onclose() { throw new Error("the stream ended"); },
        onerror(e) {
            error(e);
            if (e instanceof Fatal) throw e;
        },
    });
    closed("left");
} catch (e) {
    closed(e);
}
