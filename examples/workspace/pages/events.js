// One stream for a whole page, by the browser's own EventSource.
//
//   load()         fetches the state, shows it, and returns { position, topics }: from there on the stream tells.
//                  It throws an error with `signedOut` where that is the reason.
//   on             { "name of an event": (data) => … }
//   status(word)   what to show to the person, see `words` in shell.js
export function follow({ load, on, status, hello }) {
  let events, timer, state, round = 0;
  const say = word => { state = word; status(word); };

  async function start(word) {
    const mine = ++round;
    clearTimeout(timer);
    events?.close();
    say(word);
    let from;
    try {
      from = await load();
    } catch (error) {
      if (mine !== round) return;
      if (error.signedOut) return say("signed-out");
      return later(word === "missed" ? word : "reconnecting");
    }
    if (mine !== round) return;
    const query = new URLSearchParams(from.topics.map(topic => ["topic", topic]));
    query.append("last_event_id", from.position);
    events = new EventSource(`/events?${query}`);
    let wasLive = false;
    for (const [name, act] of Object.entries(on)) listen(name, act);
    listen("hub.hello", hello);
    // Caught up; also what says that a shared log can be followed again.
    listen("hub.live", () => {
      if (state === "missed") say("refreshed");
      else if (state === "reconnecting" || state === "restarting" || (state === "busy" && wasLive)) say("resumed");
      else if (state !== "resumed" && state !== "refreshed") say("live");
      wasLive = true;
    });
    // Something is not to be had any more: fetch the state anew.
    listen("hub.gap", () => start("missed"));
    listen("hub.stale", () => say("stale"));
    listen("hub.refused", () => say("busy"));
    listen("hub.bye", ({ reason, reconnect, note }) => {
      if (reconnect !== "never") {
        say(reason === "draining" ? "restarting" : "reconnecting");
        // Should it not come back soon, that is not what it does.
        clearTimeout(timer);
        timer = setTimeout(() => { if (state === "restarting") say("reconnecting"); }, 10_000);
        return;
      }
      events.close();
      say(note === "signed out" ? "signed-out" : "ended");
    });
    events.onerror = () => {
      // The browser comes back by itself, with the last id; or it has given up.
      if (events.readyState === EventSource.CLOSED) later("reconnecting");
      else if (state !== "restarting" && state !== "busy") say("reconnecting");
    };
  }

  function listen(name, act) {
    const source = events;
    source.addEventListener(name, event => { if (source === events) act(JSON.parse(event.data)); });
  }

  // Not all pages at once.
  function later(word) {
    say(word);
    clearTimeout(timer);
    timer = setTimeout(() => start(state), 1000 + Math.random() * 1000);
  }

  // A page that is put aside for the back button must not hold one of the browser's few connections.
  addEventListener("pagehide", () => { round += 1; clearTimeout(timer); events?.close(); });
  addEventListener("pageshow", event => { if (event.persisted) start("reconnecting"); });
  start("connecting");
}
