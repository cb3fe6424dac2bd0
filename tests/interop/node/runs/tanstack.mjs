// `@tanstack/ai-client`: its chat over `fetchServerSentEvents`.

import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client";
import { error, finished, nothing, post, run, sleep } from "./jobs.mjs";

function chat(job, page, options) {
    const show = messages => {
        const parts = messages.filter(message => message.role === "assistant").flatMap(message => message.parts);
        page.show(parts.filter(part => part.type === "text").map(part => part.content).join(""));
    };
    return new ChatClient({
        connection: fetchServerSentEvents(`${job.base}/tanstack`, { reconnect: { delayMs: 20 } }),
        threadId: job.id,
        onMessagesChange: show,
        ...options,
    });
}

const ended = client => client.getError() ? error(client.getError()) : finished();

run({
    plain: {
        async ask(job, page) {
            const client = chat(job, page);
            await client.sendMessage("Good morning?");
            return ended(client);
        },
        // With `persistence`, the client asks the server for the messages and for the active run.
        async reload(job, page) {
            let failure;
            const loads = [];
            const client = chat(job, page, {
                persistence: true,
                onError: e => { failure = e; },
                onLoadingChange: loading => { loads.push(loading); },
            });
            client.attach();
            // The client loads nothing if the server knows no active run.
            for (let n = 0; n < 100 && loads.length === 0; n++) await sleep(20);
            if (loads.length === 0) return nothing();
            while (loads.at(-1)) await sleep(5);
            return failure ? error(failure) : ended(client);
        },
        stop: job => post(`${job.direct}/tanstack/stop?threadId=${job.id}`),
    },
});
