// The page of a chat. It has one stream at a time: the stream of the messages, or while an answer
// grows the stream of this answer. Over HTTP/1.1 a browser opens at most six connections to a site.
const $ = id => document.getElementById(id);
const LABELS = {
  connecting: "Connecting",
  connected: "Connected",
  reconnecting: "Reconnecting",
  restarting: "Server restarting",
  busy: "Server busy",
  stale: "Out of date",
};
const NOTES = {
  stopped: "The answer was stopped.",
  interrupted: "The answer was interrupted, and the server no longer has it.",
};
const SUGGESTIONS = ["Why do ships float?", "How do bridges stay up?", "Why is the sky blue?"];

let chat;       // the id of the chat, from the address of the page
let messages;   // the messages on the page, by the time of the question
let growing;    // the message whose answer the page reads
let position;   // the position in the stream of the messages
let events;     // the open stream
let timer;

// Reads the messages of the chat: first all that exist, then each change.
function readMessages() {
  growing = undefined;
  let isLive = false;
  const readGrowing = () => {
    const message = [...messages.values()].find(message => message.state === "growing");
    if (message) readAnswer(message);
  };
  read(`/chats/${chat}/events${position ? `?last_event_id=${position}` : ""}`, {
    on: {
      message(data, id) {
        position = id || position; // a message that is older than the stream has no id
        update(JSON.parse(data));
        if (isLive) readGrowing();
      },
      // The page has all messages.
      "hub.live"(data, id) {
        position = id || position;
        isLive = true;
        $("welcome").hidden = messages.size > 0;
        readGrowing();
      },
    },
    closed: () => later(readMessages),
  });
  showControls();
}

// Reads an answer from its first word to its end. After a disconnect, the browser sends the id of
// the last word by itself, and the stream continues after it: no word is lost or repeated.
function readAnswer(message) {
  growing = message;
  message.answer = "";
  read(`/chats/${chat}/answers/${message.number}/stream`, {
    on: {
      word(data) {
        message.answer += message.answer ? ` ${data}` : data;
        draw(message);
      },
      // The last will of the writer, whose process has ended.
      interrupted(data) { message.note = data; },
    },
    ended: reason => end(message, ["finished", "stopped"].includes(reason) ? reason : "interrupted"),
    // The server no longer has this stream.
    closed: () => checkAnswer(message),
  });
  draw(message);
  showControls();
}

// Asks the server for the state of an answer whose stream was refused.
async function checkAnswer(message) {
  const round = events;
  let known;
  try {
    const response = await fetch(`/chats/${chat}`, { signal: AbortSignal.timeout(10_000) });
    if (!response.ok) throw new Error(response.status);
    known = (await response.json()).messages.find(({ asked }) => asked === message.asked);
  } catch {
    if (round === events) later(() => checkAnswer(message));
    return;
  }
  if (round !== events) return; // the page reads another stream
  if (known?.state === "growing") return later(() => readAnswer(message));
  message.answer = known?.answer || message.answer;
  // Without a broker, a server that was restarted has forgotten the chat.
  end(message, known?.state ?? "interrupted");
}

function end(message, state) {
  message.state = state;
  draw(message);
  $("announcement").textContent = noteOf(message) ?? "The answer is complete.";
  readMessages();
}

// Opens a stream in place of the one before. `on` has the handlers of its events, `ended` is called
// with the reason after its last event, and `closed` when the browser has given up.
function read(url, { on, ended, closed }) {
  close();
  const source = events = new EventSource(url);
  const handlers = {
    ...on,
    "hub.hello"(data) {
      $("instance").textContent = `Served by ${JSON.parse(data).instance}.`;
      show("connected");
    },
    "hub.live"(data, id) {
      show("connected"); // after `hub.stale`
      on["hub.live"]?.(data, id);
    },
    "hub.stale"() { show("stale"); },
    "hub.refused"() { show("busy"); },
    "hub.bye"(data) {
      const { reason, reconnect } = JSON.parse(data);
      if (reconnect !== "never") return show(reason === "draining" ? "restarting" : "reconnecting");
      source.close();
      ended?.(reason);
    },
  };
  for (const [name, act] of Object.entries(handlers)) {
    source.addEventListener(name, event => { if (source === events) act(event.data, event.lastEventId); });
  }
  source.onerror = () => {
    if (source !== events) return;
    if (!["restarting", "busy"].includes($("status").dataset.state)) show("reconnecting");
    // Otherwise the browser reconnects by itself.
    if (source.readyState === EventSource.CLOSED) closed();
  };
}

function close() {
  clearTimeout(timer);
  events?.close();
  events = undefined;
}

// Calls a function after a random pause, so that not all pages send their requests at once.
function later(act) {
  clearTimeout(timer);
  timer = setTimeout(act, 500 + Math.random() * 1000);
}

function show(state) {
  $("status").dataset.state = state;
  $("status").textContent = LABELS[state];
}

// Applies a message of the server.
function update(data) {
  const message = messages.get(data.asked) ?? { ...data, state: undefined };
  messages.set(data.asked, message);
  // Another instance may still send that an answer grows after this page has read its end.
  if (message.state === undefined || data.state !== "growing") {
    message.state = data.state;
    message.answer = data.answer;
  }
  $("welcome").hidden = true;
  draw(message);
}

// Returns the text under an answer that did not end by itself. The last will has precedence.
const noteOf = ({ state, note }) => state === "interrupted" ? note ?? NOTES.interrupted : NOTES[state];

// Draws a message. The text of users and of the model is never parsed as HTML.
function draw(message) {
  const isAtEnd = innerHeight + scrollY > document.documentElement.scrollHeight - 60;
  const item = message.item ??= $("messages").appendChild(makeItem(message));
  item.className = message.state;
  item.ariaBusy = message.state === "growing";
  item.querySelector(".text").textContent = message.answer;
  const note = noteOf(message);
  item.querySelector(".note").hidden = !note;
  item.querySelector(".note span").textContent = note ?? "";
  item.querySelector(".again").hidden = message.state !== "interrupted";
  if (isAtEnd) scrollTo(0, document.documentElement.scrollHeight);
}

function makeItem(message) {
  const make = (tag, className, ...children) => {
    const element = Object.assign(document.createElement(tag), { className });
    element.append(...children);
    return element;
  };
  const again = make("button", "again", "Ask again");
  again.onclick = () => ask(message.question);
  return make("li", "",
    make("p", "question", message.question),
    make("div", "answer", make("p", "text"), make("p", "note", make("span", ""), again)));
}

function showControls() {
  $("send").hidden = growing !== undefined;
  $("stop").hidden = growing === undefined;
  $("stop").disabled = false;
}

function showProblem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text;
}

// Sends a request, and returns whether it succeeded. Its effect arrives on the stream.
async function post(path, body) {
  try {
    const headers = { "content-type": "application/json" };
    const response = await fetch(path, { method: "POST", headers, body, signal: AbortSignal.timeout(10_000) });
    showProblem(response.ok ? "" : await response.text());
    return response.ok;
  } catch {
    showProblem("The server is unavailable. Try again in a moment.");
    return false;
  }
}

const ask = text => post(`/chats/${chat}/messages`, JSON.stringify({ text }));

$("ask").onsubmit = async event => {
  event.preventDefault();
  if (growing) return; // the Enter key submits the form although the button is hidden
  const text = $("question").value;
  if (await ask(text) && $("question").value === text) $("question").value = "";
};
$("stop").onclick = async () => {
  $("stop").disabled = true;
  const isStopping = await post(`/chats/${chat}/answers/${growing.number}/stop`);
  if (!isStopping) $("stop").disabled = false;
};
$("new").onclick = () => { location.hash = newId(); };
for (const text of SUGGESTIONS) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  button.onclick = () => ask(text);
  $("suggestions").append(button);
}

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(8))].map(byte => byte.toString(16).padStart(2, "0")).join("");
}

// Starts with the chat that the address of the page names.
function start() {
  if (!location.hash) history.replaceState(null, "", `#${newId()}`);
  chat = encodeURIComponent(location.hash.slice(1));
  [messages, position] = [new Map(), undefined];
  $("messages").replaceChildren();
  showProblem("");
  show("connecting");
  readMessages();
}

addEventListener("hashchange", start);
// A page in the back/forward cache must not hold one of the browser's few connections.
addEventListener("pagehide", close);
addEventListener("pageshow", event => { if (event.persisted) readMessages(); });
start();
