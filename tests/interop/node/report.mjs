// What a client saw, one line of JSON each, for the test to read.

const [url, last, ...names] = process.argv.slice(2);

/** The stream; the event after which the client leaves; every name that an event of this run may have. */
export { url, last, names };

const say = line => process.stdout.write(`${JSON.stringify(line)}\n`);

/** An event as the client gave it out: `null` for what it did not give. */
export const event = (name, data, id) => say({ event: name ?? null, data: data ?? null, id: id ?? null });

/** The client told of trouble, and goes on or not. */
export const error = text => say({ error: String(text) });

/** This script reconnects, since the client does not. */
export const again = () => say({ again: true });

/** The client is done: it gave up, or was told to leave. */
export function closed(why) {
    process.stdout.write(`${JSON.stringify({ closed: String(why) })}\n`, () => process.exit(0));
}
