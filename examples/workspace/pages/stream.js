// Opens one EventSource for a page and keeps the page up to date.
import { on } from "./events.js";

/** @typedef {import("./events.js").AllEvents} AllEvents */
/**
 * The handlers of events: `{ "document.deleted": ({ id }) => … }`.
 * @typedef {{ [Name in keyof AllEvents]?: (payload: AllEvents[Name]) => void }} Handlers
 */

/**
 * @param {object} page
 * @param {() => Promise<{ position: string, topics: string[] }>} page.load Loads the state, shows
 *   it, and returns the position and the topics for the stream. If the user is not signed in, it
 *   throws an error with `signedOut`.
 * @param {Handlers} page.handlers
 * @param {(state: string) => void} page.status Shows the state of the stream, one of `labels` in shell.js.
 */
export function follow({ load, handlers, status }) {
  /** @type {EventSource} */
  let events;
  let timer, state, round = 0;
  const setState = newState => { state = newState; status(newState); };

  async function start(newState) {
    const mine = ++round;
    clearTimeout(timer);
    events?.close();
    setState(newState);
    let loaded;
    try {
      loaded = await load();
    } catch (/** @type {any} */ error) {
      if (mine !== round) return;
      if (error.signedOut) return setState("signed-out");
      return retry(newState === "missed" ? newState : "reconnecting");
    }
    if (mine !== round) return; // a later call has replaced this one
    const query = new URLSearchParams(loaded.topics.map(topic => ["topic", topic]));
    query.append("last_event_id", loaded.position);
    events = new EventSource(`/events?${query}`);
    let wasLive = false;
    for (const name of /** @type {(keyof Handlers)[]} */ (Object.keys(handlers))) listen(name, /** @type {any} */ (handlers[name]));
    // The stream has caught up. The hub also sends `hub.live` when a shared log is available again.
    listen("hub.live", () => {
      if (state === "missed") setState("refreshed");
      else if (state === "reconnecting" || state === "restarting" || (state === "busy" && wasLive)) setState("resumed");
      else if (state !== "resumed" && state !== "refreshed") setState("live");
      wasLive = true;
    });
    // Events were lost: load the state again.
    listen("hub.gap", () => start("missed"));
    listen("hub.stale", () => setState("stale"));
    listen("hub.refused", () => setState("busy"));
    listen("hub.bye", ({ reason, reconnect, note }) => {
      if (reconnect !== "never") {
        setState(reason === "draining" ? "restarting" : "reconnecting");
        // A server that is not available after 10 s is probably not restarting.
        clearTimeout(timer);
        timer = setTimeout(() => { if (state === "restarting") setState("reconnecting"); }, 10_000);
        return;
      }
      events.close();
      setState(note === "signed out" ? "signed-out" : "ended");
    });
    events.onerror = () => {
      // The browser reconnects with the last id, unless it has given up.
      if (events.readyState === EventSource.CLOSED) retry("reconnecting");
      else if (state !== "restarting" && state !== "busy") setState("reconnecting");
    };
  }

  /**
   * @template {keyof AllEvents} Name
   * @param {Name} name
   * @param {(payload: AllEvents[Name]) => void} act
   */
  function listen(name, act) {
    const source = events;
    on(source, name, payload => { if (source === events) act(payload); });
  }

  // Starts again after a random pause, so that not all pages send their requests at once.
  function retry(newState) {
    setState(newState);
    clearTimeout(timer);
    timer = setTimeout(() => start(state), 1000 + Math.random() * 1000);
  }

  // A page in the back/forward cache must not hold one of the browser's few connections.
  addEventListener("pagehide", () => { round += 1; clearTimeout(timer); events?.close(); });
  addEventListener("pageshow", event => { if (event.persisted) start("reconnecting"); });
  start("connecting");
}
