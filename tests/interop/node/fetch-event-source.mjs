// As at the start of its documentation, without callbacks that handle errors.

import "./stand-ins.mjs";
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { closed, error, event, last, url } from "./report.mjs";

const leave = new AbortController();
try {
    await fetchEventSource(url, {
        signal: leave.signal,
        onmessage(e) {
            event(e.event, e.data, e.id);
            if (e.event === last) leave.abort();
        },
        onerror(e) { error(e); },
    });
    closed(leave.signal.aborted ? "left" : "took the end for the end");
} catch (e) {
    closed(e);
}
