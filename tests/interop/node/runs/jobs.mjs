// Runs jobs for the test `tests/interop/runs`. A job is one line of JSON on standard input:
//
//   job     its number
//   client  the name of the client in this file
//   how     `ask`, `stop` (ask, and stop the run at the text `half`), or `reload` (ask, and open a
//           second page at the text `half`)
//   base    the URL for the client
//   direct  the URL for requests that belong to the application: begin, stop
//   id      the name of the conversation
//
// Each line of JSON on standard output is a report: `{ job, text }` when the text of a page changed,
// and `{ job, text, end, note }` when the client has ended. `end` is `finished`, `error` or
// `nothing`.

import { createInterface } from "node:readline";

const write = line => process.stdout.write(`${JSON.stringify(line)}\n`);

/** What the user of a page sees. */
export class Page {
    text = "";

    constructor(job) {
        this.job = job;
        this.half = new Promise(resolve => { this.reachesHalf = resolve; });
    }

    add(text) { this.show(this.text + text); }

    show(text) {
        if (text === this.text) return;
        this.text = text;
        write({ job: this.job.job, text });
        if (text === this.job.half) this.reachesHalf();
    }
}

export const finished = note => ({ end: "finished", note });
export const error = note => ({ end: "error", note: String(note?.message ?? note) });
export const nothing = note => ({ end: "nothing", note });

export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

/** Sends a request of the application. */
export async function post(url) {
    const response = await fetch(url, { method: "POST" });
    if (!response.ok) throw new Error(`${url}: status ${response.status}`);
    return response;
}

/**
 * Runs the jobs. A client is `{ ask(job, page), stop(job), reload(job, page) }`: `ask` and `reload`
 * return how the stream ended, and `stop` calls the stop route of the application.
 */
export function run(clients) {
    const lines = createInterface({ input: process.stdin });
    lines.on("line", async line => {
        const job = JSON.parse(line);
        const [page, end] = await perform(clients[job.client], job);
        write({ job: job.job, text: page.text, ...end });
    });
    lines.on("close", () => process.exit(0));
    // A client may leave a rejected promise behind. The job has its own report.
    process.on("unhandledRejection", () => {});
}

async function perform(client, job) {
    const first = new Page(job);
    const asked = client.ask(job, first).catch(error);
    if (job.how === "stop") {
        await Promise.race([first.half, asked]);
        await client.stop(job, first);
    }
    if (job.how !== "reload") return [first, await asked];
    await Promise.race([first.half, asked]);
    const second = new Page(job);
    return [second, await client.reload(job, second, first).catch(error)];
}
