// Clients without a protocol of their own: `@microsoft/fetch-event-source` and `eventsource`. The
// events of the run are `delta`, then `done` or `failed`.

import "../stand-ins.mjs";
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { EventSource } from "eventsource";
import { error, finished, post, run } from "./jobs.mjs";

const url = job => `${job.base}/answers/${job.id}`;
const stop = job => post(`${job.direct}/answers/${job.id}/stop`);

class Fatal extends Error {}

async function fetchEvents(job, page, method) {
    let ended;
    await fetchEventSource(url(job), {
        method,
        openWhenHidden: true,
        signal: page.signal,
        async onopen(response) {
            if (response.status === 200) return;
            const e = new (response.status === 503 ? Error : Fatal)(`status ${response.status}`);
            throw e;
        },
        onmessage({ event, data }) {
            if (event === "delta") page.add(data);
            if (event === "done") ended = finished(data);
            if (event === "failed") ended = error(data);
        },
        onerror(e) { if (e instanceof Fatal) throw e; },
    });
    return ended ?? error("the stream ended without `done`");
}

function eventSource(job, page) {
    return new Promise(resolve => {
        const events = new EventSource(url(job));
        const end = how => {
            events.close();
            resolve(how);
        };
        page.signal.addEventListener("abort", () => end(error("canceled")));
        events.addEventListener("delta", e => page.add(e.data));
        events.addEventListener("done", e => end(finished(e.data)));
        events.addEventListener("failed", e => end(error(e.data)));
        events.addEventListener("error", e => {
            if (events.readyState === EventSource.CLOSED) end(error(`closed: ${e.code ?? ""}`));
        });
    });
}

run({
    fetchEventSource: {
        stop,
        ask: (job, page) => fetchEvents(job, page, "POST"),
        reload: (job, page) => fetchEvents(job, page, "GET"),
    },
    eventSource: {
        stop,
        // An `EventSource` cannot send `POST`, so the application begins the run.
        async ask(job, page) {
            await post(`${job.direct}/answers/${job.id}/begin`);
            return eventSource(job, page);
        },
        reload: eventSource,
    },
});
