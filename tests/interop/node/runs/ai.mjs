// `ai`: its chat without React, as `useChat` uses it.

import { AbstractChat, DefaultChatTransport } from "ai";
import { error, finished, nothing, post, run } from "./jobs.mjs";
import { resumingFetch } from "./resuming-fetch.mjs";

class State {
    status = "ready";
    error = undefined;
    messages = [];
    constructor(page) { this.page = page; }
    pushMessage(message) {
        this.messages = [...this.messages, message];
        this.show();
    }
    popMessage() { this.messages = this.messages.slice(0, -1); }
    replaceMessage(index, message) {
        this.messages = this.messages.map((old, n) => n === index ? message : old);
        this.show();
    }
    snapshot(value) { return structuredClone(value); }
    /** The text of all answers, so that a doubled answer shows. */
    show() {
        const parts = this.messages.filter(message => message.role === "assistant").flatMap(message => message.parts);
        this.page.show(parts.filter(part => part.type === "text").map(part => part.text).join(""));
    }
}

class Chat extends AbstractChat {
    constructor(job, page, options) {
        const state = new State(page);
        super({ id: job.id, state, transport: new DefaultChatTransport({ api: `${job.base}/api/chat`, ...options }) });
    }

    ended() {
        return this.status === "error" ? error(this.error) : finished();
    }
}

const client = {
    options: () => ({}),
    async ask(job, page) {
        const chat = new Chat(job, page, this.options(job));
        await chat.sendMessage({ text: "Good morning?" });
        return this.after(chat);
    },
    after: chat => chat.ended(),
    async reload(job, page) {
        const chat = new Chat(job, page, this.options(job));
        await chat.resumeStream();
        return page.text || chat.status === "error" ? chat.ended() : nothing();
    },
    stop: job => post(`${job.direct}/api/chat/${job.id}/stop`),
};

run({
    plain: client,
    // An application that knows from `onFinish` or `onError` that the stream broke, and resumes it.
    call: {
        ...client,
        options: job => ({
            prepareReconnectToStreamRequest: () => ({ api: `${job.base}/api/chat/${job.id}/stream?ended=replay` }),
        }),
        async after(chat) {
            if (chat.status === "error") await chat.resumeStream();
            return chat.ended();
        },
    },
    fetch: {
        ...client,
        options: job => ({ fetch: resumingFetch(`${job.base}/api/chat/${job.id}/stream?ended=replay`, { delay: 20 }) }),
    },
});
