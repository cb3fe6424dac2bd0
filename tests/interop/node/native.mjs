// Drives a class that is made like the browser's `EventSource`.

import { closed, error, event, last, names, url } from "./report.mjs";

export function follow(EventSource) {
    const events = new EventSource(url);
    // Its timers alone do not keep every client's process alive.
    setInterval(() => {}, 1000);
    for (const name of ["message", ...names]) {
        events.addEventListener(name, e => {
            event(e.type, e.data, e.lastEventId);
            if (name === last) {
                events.close();
                closed("left");
            }
        });
    }
    events.addEventListener("error", e => {
        error(e.message ?? "");
        if (events.readyState === EventSource.CLOSED) closed(`gave up: ${e.code ?? ""}`);
    });
}
