// `openai`: Responses and Chat Completions.

import OpenAI from "openai";
import { error, finished, none, post, run } from "./jobs.mjs";

const at = url => new OpenAI({ apiKey: "none", baseURL: `${url}/v1` });

/**
 * Reads one stream. `seen` keeps the response and the number of the last event. `page.id` is the id
 * of the response, for a stop and a reload.
 */
async function read(events, page, seen) {
    for await (const event of events) {
        seen.number = event.sequence_number;
        switch (event.type) {
            case "response.created": page.id = seen.id = event.response.id; break;
            case "response.output_text.delta": page.add(event.delta); break;
            case "response.completed": return finished();
            case "response.incomplete": return finished("incomplete");
            case "response.failed": return error(event.response.error);
        }
    }
    return error("the stream ended without `response.completed`");
}

const responses = {
    async ask(job, page) {
        return read(at(job.base).responses.stream({ model: "m", input: job.id }), page, {});
    },
    async reload(job, page, first) {
        return read(await at(job.base).responses.retrieve(first.id, { stream: true }), page, {});
    },
    stop: (job, page) => at(job.direct).responses.cancel(page.id),
};

run({
    responses,
    loop: {
        ...responses,
        async ask(job, page) {
            const client = at(job.base);
            const seen = {};
            try {
                return await read(client.responses.stream({ model: "m", input: job.id }), page, seen);
            } catch (e) {
                if (seen.id === undefined) throw e;
            }
            // The stream broke: the caller asks for the rest.
            const rest = { stream: true, starting_after: seen.number };
            return read(await client.responses.retrieve(seen.id, rest), page, seen);
        },
    },
    chat: {
        async ask(job, page) {
            const events = await at(job.base).chat.completions.create({
                model: "m", stream: true, messages: [{ role: "user", content: job.id }],
            });
            let reason;
            for await (const { id, choices: [choice] } of events) {
                page.id = id;
                page.add(choice.delta.content ?? "");
                reason ??= choice.finish_reason ?? undefined;
            }
            return reason ? finished(reason) : error("the stream ended without `finish_reason`");
        },
        // The interface has no route to read an answer again.
        reload: async () => none(),
        stop: (job, page) => post(`${job.direct}/v1/chat/completions/stop?runId=${page.id}`),
    },
});
