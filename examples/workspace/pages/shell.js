// The parts of every page: the stream and its state, and the tray of notifications.
import { follow } from "./stream.js";

/** @type {(id: string) => any} */
export const $ = id => document.getElementById(id);
export const nameOf = user => user.charAt(0).toUpperCase() + user.slice(1);
const PAGE = document.body.dataset.page;

/**
 * Creates an element. Strings become text nodes, so that text of users is never parsed as HTML.
 * @param {string} tag
 * @param {Record<string, any>} attributes
 * @param {(string | Node)[]} children
 * @returns {any}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const avatar = user => make("span", { class: "avatar", "data-user": user, "aria-hidden": "true" }, nameOf(user)[0]);

export function time(at) {
  const date = new Date(at), isToday = date.toDateString() === new Date().toDateString();
  /** @type {Intl.DateTimeFormatOptions} */
  const shown = isToday ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  return make("time", { datetime: date.toISOString() }, date.toLocaleString([], shown));
}

// Sends a request for a change, and returns whether it succeeded. The change itself arrives on the
// stream.
export async function send(method, path, body) {
  try {
    const options = body && { headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    // Over HTTP/1.1, a browser with many open pages of a site has no connection left. Without a
    // timeout, the request would wait until one of these pages is closed.
    const response = await fetch(path, { method, signal: AbortSignal.timeout(10_000), ...options });
    if (response.ok) return true;
    if (response.status === 401) show("signed-out");
    else toast(await response.text(), "bad");
  } catch {
    toast("The server is unavailable. Try again in a moment.", "bad");
  }
  return false;
}

function toast(text, kind = "") {
  const toast = make("p", { class: `toast card ${kind}` }, text);
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), 6000);
}

const labels = {
  "connecting": "Connecting",
  "live": "Live",
  "reconnecting": "Reconnecting",
  "restarting": "Server restarting",
  "resumed": "Resumed",
  "missed": "Refreshing",
  "refreshed": "Refreshed",
  "stale": "Out of date",
  "busy": "Server busy",
  "signed-out": "Signed out",
  "ended": "Ended",
};
const explanations = {
  "refreshed": "Events were lost, so this page loaded its state again.",
  "stale": "The log that the servers share is unavailable. This page may be out of date.",
  "signed-out": "You are no longer signed in: you signed out in another tab, or the server was restarted.",
  "ended": "The server ended the stream of this page permanently.",
};
let liveTimer;

function show(state) {
  $("status").dataset.state = state;
  $("status").textContent = labels[state];
  const explanation = explanations[state];
  $("banner").hidden = !explanation;
  $("banner").dataset.state = state;
  $("banner").replaceChildren(explanation ?? "");
  if (state === "signed-out") $("banner").append(" ", make("a", { href: `/sign-in?next=${PAGE}` }, "Sign in"));
  clearTimeout(liveTimer);
  if (state === "resumed" || state === "refreshed") liveTimer = setTimeout(() => show("live"), 5000);
}

// The tray, the newest notification first. The server stores which are read, so all pages of a user
// show the same.
const MAX_NOTIFICATIONS = 50; // as many as the server keeps
/** @type {Map<string, import("./events.js").Notification>} */
const notifications = new Map();

function drawTray() {
  const all = [...notifications.values()].sort((a, b) => b.at - a.at);
  for (const { id } of all.splice(MAX_NOTIFICATIONS)) notifications.delete(id);
  const unread = all.filter(each => !each.read).length;
  $("unread").hidden = !unread;
  $("unread").textContent = unread;
  $("bell-label").textContent = `Notifications, ${unread} unread`;
  $("read").hidden = !unread;
  document.title = document.title.replace(/^(\(\d+\) )?/, unread ? `(${unread}) ` : "");
  $("notifications").replaceChildren(...all.map(({ text, href, at, read }) =>
    make("li", { class: read ? "" : "unread" }, make("a", { href }, text), time(at))));
  if (!all.length) $("notifications").append(make("li", { class: "muted" }, "There are no notifications yet."));
}

/** @param {import("./events.js").Notification} notification */
function onNotification(notification) {
  if (!notification.read && !notifications.has(notification.id)) toast(notification.text);
  notifications.set(notification.id, notification);
  drawTray();
}

function openTray(isOpen) {
  $("tray").hidden = !isOpen;
  $("bell").setAttribute("aria-expanded", isOpen);
  if (isOpen) $("tray").focus();
}
$("bell").onclick = () => openTray($("tray").hidden);
$("read").onclick = () => send("POST", "/notifications/read");
addEventListener("keydown", event => {
  if (event.key !== "Escape" || $("tray").hidden) return;
  openTray(false);
  $("bell").focus();
});
addEventListener("click", event => { if (!(/** @type {Element} */ (event.target).closest("#tray, #bell"))) openTray(false); });
document.querySelector(`nav a[href="/${PAGE}"]`)?.setAttribute("aria-current", "page");

/**
 * Starts a page.
 * @param {object} page
 * @param {(content: any, user: string) => void} page.draw Shows the state of the page.
 * @param {(user: string) => string[]} page.topics Returns the topics of the page.
 * @param {import("./stream.js").Handlers} page.on The handlers of its events.
 */
export function page({ draw, topics, on }) {
  let me;

  async function load() {
    const response = await fetch(`/state/${PAGE}`);
    if (response.status === 401) throw Object.assign(new Error("signed out"), { signedOut: true });
    if (!response.ok) throw new Error(String(response.status));
    const { user, position, content, notifications: all } = await response.json();
    // A different user signed in in another tab.
    if (me && me !== user) {
      location.reload();
      return new Promise(() => {}); // draws nothing of the other user before the reload
    }
    me = user;
    $("me").textContent = nameOf(user)[0];
    $("me").dataset.user = user;
    $("my-name").textContent = nameOf(user);
    notifications.clear();
    all.forEach(each => notifications.set(each.id, each));
    drawTray();
    draw(content, user);
    return { position, topics: topics(user) };
  }

  // The stream reconnected with the cookie of another session: reload the page for its user.
  let session;
  /** @param {import("./events.js").HubHello} hello */
  function hello({ instance, topics }) {
    const now = topics.find(topic => topic.startsWith("session/"));
    if (session && session !== now) location.reload();
    session = now;
    $("instance").textContent = instance;
  }

  follow({ load, status: show, handlers: { "hub.hello": hello, notification: onNotification, ...on } });
}
