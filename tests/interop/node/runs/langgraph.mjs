// `@langchain/langgraph-sdk`: `client.runs`.

import { Client } from "@langchain/langgraph-sdk";
import { error, finished, run } from "./jobs.mjs";

const at = url => new Client({ apiUrl: url, apiKey: null });
const RUN = "run-1";

async function read(parts, page) {
    let ended;
    for await (const { event, data } of parts) {
        if (event === "custom") page.add(data.delta);
        if (event === "error") ended = error(data);
    }
    return ended ?? finished();
}

run({
    plain: {
        ask: (job, page) => read(at(job.base).runs.stream(job.id, "agent", {
            input: {}, streamMode: "custom", streamResumable: true, onDisconnect: "continue",
        }), page),
        // As `useStream` does.
        reload: (job, page) => read(at(job.base).runs.joinStream(job.id, RUN, { lastEventId: "-1" }), page),
        stop: job => at(job.direct).runs.cancel(job.id, RUN),
    },
});
