// Reports to the test, each as one line of JSON.

const [url, last, ...names] = process.argv.slice(2);

/** The URL of the stream, the name of the last event, and the names of all events of this run. */
export { url, last, names };

const say = line => process.stdout.write(`${JSON.stringify(line)}\n`);

/** An event as the client delivered it. A field that the client does not deliver is `null`. */
export const event = (name, data, id) => say({ event: name ?? null, data: data ?? null, id: id ?? null });

/** The client reported an error. It may continue. */
export const error = text => say({ error: String(text) });

/** This script opens the next stream, because the client does not. */
export const again = () => say({ again: true });

/** The client has ended: it gave up, or the last event has arrived. */
export function closed(why) {
    process.stdout.write(`${JSON.stringify({ closed: String(why) })}\n`, () => process.exit(0));
}
