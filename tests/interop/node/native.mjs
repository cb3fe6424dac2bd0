// Runs a class with the interface of the browser's `EventSource`.

import { closed, error, event, last, names, url } from "./report.mjs";

export function follow(EventSource) {
    const events = new EventSource(url);
    // Keeps the process alive, because the timers of some clients do not.
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
