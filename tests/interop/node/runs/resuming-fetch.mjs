// A `fetch` that resumes a broken stream, for clients that accept a `fetch` and do not resume
// themselves. It passes on whole events only, so the client never sees half an event.

/**
 * `resumeUrl` is the URL of the stream for `GET`. After `attempts` requests without a new event, the
 * client receives the error.
 */
export function resumingFetch(resumeUrl, { delay = 1000, attempts = 10 } = {}) {
    return async (url, init = {}) => {
        const response = await fetch(url, init);
        if (response.status !== 200 || !response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
        const { signal } = init;
        let body = response.body, lastId = "", attempt = 0;
        async function resume() {
            while (attempt++ < attempts) {
                await new Promise(resolve => setTimeout(resolve, delay));
                signal?.throwIfAborted();
                const headers = new Headers(init.headers); // for example `Authorization`
                // With `Accept: text/event-stream`, an ended run would answer `204`.
                for (const name of ["accept", "content-type"]) headers.delete(name);
                if (lastId) headers.set("last-event-id", lastId);
                const { credentials } = init;
                const next = await fetch(resumeUrl, { headers, credentials, signal }).catch(() => undefined);
                if (next?.status === 200) return next.body;
                // 503 means "not now". Any other status is final.
                if (next && next.status !== 503) throw new Error(`the stream cannot be resumed: status ${next.status}`);
            }
            throw new Error("the stream cannot be resumed");
        }
        async function* events() {
            for (;;) {
                const reader = body.getReader(), decoder = new TextDecoder();
                let text = "";
                try {
                    for (;;) {
                        const { done, value } = await reader.read();
                        if (done) return;
                        text += decoder.decode(value, { stream: true });
                        const end = text.lastIndexOf("\n\n") + 2;
                        if (end < 2) continue;
                        lastId = [...text.slice(0, end).matchAll(/^id: ?(.*)$/gm)].at(-1)?.[1] ?? lastId;
                        attempt = 0;
                        yield new TextEncoder().encode(text.slice(0, end));
                        text = text.slice(end);
                    }
                } catch (error) {
                    if (signal?.aborted) throw error;
                    body = await resume();
                } finally {
                    reader.cancel().catch(() => {});
                }
            }
        }
        const whole = events();
        // Not `ReadableStream.from`, which not all browsers have.
        const stream = new ReadableStream({
            async pull(controller) {
                const { done, value } = await whole.next();
                if (done) controller.close(); else controller.enqueue(value);
            },
            cancel: () => whole.return(),
        });
        return new Response(stream, response);
    };
}
