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
// The line `{ cancel }` has the number of a job whose client must stop.
//
// Each line of JSON on standard output is a report: `{ job, page, text }` when the text of a page
// changed, and `{ job, text, end, note }` when the client has ended. `end` is `finished`, `error`,
// `nothing` (nothing is active) or `none` (the client has no such request).

import { createInterface } from "node:readline";
import { Agent, fetch as undiciFetch } from "undici";

if (process.env.RUNS_HTTP2) {
    // A new connection for each request, so that the test can route each request. The certificate of
    // the test is self-signed.
    const agent = () => new Agent({ allowH2: true, connect: { rejectUnauthorized: false } });
    globalThis.fetch = (url, init) => undiciFetch(url, { ...init, dispatcher: agent() });
}

const write = line => process.stdout.write(`${JSON.stringify(line)}\n`);

/** What the user of a page sees. */
export class Page {
    text = "";

    constructor(job, number, signal) {
        this.job = job;
        this.number = number;
        /** Aborted when the client must stop. */
        this.signal = signal;
        this.half = new Promise(resolve => { this.reachesHalf = resolve; });
    }

    add(text) { this.show(this.text + text); }

    show(text) {
        if (text === this.text) return;
        this.text = text;
        write({ job: this.job.job, page: this.number, text });
        if (text === this.job.half) this.reachesHalf();
    }
}

export const finished = note => ({ end: "finished", note });
export const error = note => ({ end: "error", note: String(note?.message ?? note) });
export const none = note => ({ end: "none", note });
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
    const cancels = new Map();
    const lines = createInterface({ input: process.stdin });
    lines.on("line", async line => {
        const job = JSON.parse(line);
        if (job.cancel !== undefined) {
            cancels.get(job.cancel)?.abort();
            return;
        }
        const cancel = new AbortController();
        cancels.set(job.job, cancel);
        const [page, end] = await perform(clients[job.client], job, cancel.signal);
        cancels.delete(job.job);
        write({ job: job.job, text: page.text, ...end });
    });
    lines.on("close", () => process.exit(0));
    // A client may leave a rejected promise behind. The job has its own report.
    process.on("unhandledRejection", () => {});
}

async function perform(client, job, signal) {
    const first = new Page(job, 1, signal);
    const asked = client.ask(job, first).catch(error);
    if (job.how === "stop") {
        await Promise.race([first.half, asked]);
        await client.stop(job, first);
    }
    if (job.how !== "reload") return [first, await asked];
    await Promise.race([first.half, asked]);
    const second = new Page(job, 2, signal);
    return [second, await client.reload(job, second, first).catch(error)];
}
