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
            while (attempt++ < attempts && !signal?.aborted) {
                await new Promise(resolve => setTimeout(resolve, delay));
                const headers = lastId ? { "last-event-id": lastId } : {};
                const next = await fetch(resumeUrl, { headers, signal }).catch(() => undefined);
                if (next?.status === 200) return next.body;
                // 503 means "not now". Any other status is final.
                if (next && next.status !== 503) throw new Error(`the stream cannot be resumed: status ${next.status}`);
            }
            throw new Error("the stream cannot be resumed");
        }
        async function* events() {
            for (;;) {
                const decoder = new TextDecoder();
                let text = "";
                try {
                    for await (const bytes of body) {
                        text += decoder.decode(bytes, { stream: true });
                        const end = text.lastIndexOf("\n\n") + 2;
                        if (end < 2) continue;
                        lastId = [...text.slice(0, end).matchAll(/^id: ?(.*)$/gm)].at(-1)?.[1] ?? lastId;
                        attempt = 0;
                        yield new TextEncoder().encode(text.slice(0, end));
                        text = text.slice(end);
                    }
                    return;
                } catch (error) {
                    if (signal?.aborted) throw error;
                    body = await resume();
                }
            }
        }
        return new Response(ReadableStream.from(events()), response);
    };
}
