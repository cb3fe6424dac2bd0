// `@ag-ui/client`: its `HttpAgent`.

import { HttpAgent } from "@ag-ui/client";
import { error, finished, post, run } from "./jobs.mjs";
import { resumingFetch } from "./resuming-fetch.mjs";

/** Reads a run that has begun. */
class Join extends HttpAgent {
    requestInit() {
        return { headers: { accept: "text/event-stream" }, signal: this.abortController.signal };
    }
}

const url = job => `${job.base}/agent?runId=${job.id}`;

async function read(Agent, job, page, options) {
    const agent = new Agent({ url: url(job), threadId: "thread", ...options });
    let failed;
    await agent.runAgent({ runId: job.id }, {
        onTextMessageContentEvent({ event }) { page.add(event.delta); },
        onRunErrorEvent({ event }) { failed = event; },
    });
    return failed ? error(failed) : finished();
}

const client = {
    options: () => ({}),
    ask(job, page) { return read(HttpAgent, job, page, this.options(job)); },
    reload(job, page) { return read(Join, job, page, this.options(job)); },
    stop: job => post(`${job.direct}/agent/stop?runId=${job.id}`),
};

run({
    plain: client,
    fetch: { ...client, options: job => ({ fetch: resumingFetch(url(job), { delay: 20 }) }) },
});
