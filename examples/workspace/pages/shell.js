// What every page has: the stream, its state, and the tray of notifications.
import { follow } from "/assets/events.js";

export const $ = id => document.getElementById(id);
export const nameOf = user => user.charAt(0).toUpperCase() + user.slice(1);
const PAGE = document.body.dataset.page;

// An element. Text of people goes in as text, never as HTML.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const avatar = user => make("span", { class: "avatar", "data-user": user, "aria-hidden": "true" }, nameOf(user)[0]);

export function time(at) {
  const date = new Date(at), isToday = date.toDateString() === new Date().toDateString();
  const shown = isToday ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  return make("time", { datetime: date.toISOString() }, date.toLocaleString([], shown));
}

// Asks the server to do something. What it does is heard on the stream. Says whether it was done.
export async function send(method, path, body) {
  try {
    const options = body && { headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    // A browser with many pages of a site open over HTTP/1.1 has no connection left for this, and would wait for ever.
    const response = await fetch(path, { method, signal: AbortSignal.timeout(10_000), ...options });
    if (response.ok) return true;
    if (response.status === 401) show("signed-out");
    else toast(await response.text(), "bad");
  } catch {
    toast("The server is not there. Try again in a moment.", "bad");
  }
  return false;
}

function toast(text, kind = "") {
  const toast = make("p", { class: `toast card ${kind}` }, text);
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), 6000);
}

const words = {
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
const reasons = {
  "refreshed": "Something was missed, so this page was fetched anew.",
  "stale": "The log that the servers share is away. What is shown may be old.",
  "signed-out": "You are not signed in any more: you signed out elsewhere, or the server was started anew.",
  "ended": "The server ended this page's stream for good.",
};
let calm;

function show(state) {
  $("status").dataset.state = state;
  $("status").textContent = words[state];
  const reason = reasons[state];
  $("banner").hidden = !reason;
  $("banner").dataset.state = state;
  $("banner").replaceChildren(reason ?? "");
  if (state === "signed-out") $("banner").append(" ", make("a", { href: `/sign-in?next=${PAGE}` }, "Sign in"));
  clearTimeout(calm);
  if (state === "resumed" || state === "refreshed") calm = setTimeout(() => show("live"), 5000);
}

// The tray. The newest first; the server keeps what was read, so all pages of a person show the same.
const KEPT = 50; // as many as the server keeps
const notifications = new Map();

function drawTray() {
  const all = [...notifications.values()].sort((a, b) => b.at - a.at);
  for (const { id } of all.splice(KEPT)) notifications.delete(id);
  const unread = all.filter(each => !each.read).length;
  $("unread").hidden = !unread;
  $("unread").textContent = unread;
  $("bell-label").textContent = `Notifications, ${unread} unread`;
  $("read").hidden = !unread;
  document.title = document.title.replace(/^(\(\d+\) )?/, unread ? `(${unread}) ` : "");
  $("notifications").replaceChildren(...all.map(({ text, href, at, read }) =>
    make("li", { class: read ? "" : "unread" }, make("a", { href }, text), time(at))));
  if (!all.length) $("notifications").append(make("li", { class: "muted" }, "Nothing has happened yet."));
}

function notified(notification) {
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
addEventListener("click", event => { if (!event.target.closest("#tray, #bell")) openTray(false); });
document.querySelector(`nav a[href="/${PAGE}"]`).setAttribute("aria-current", "page");

// `draw(content, user)` shows the state of a page, `topics(user)` are what it listens to, `on` is what it hears there.
export function page({ draw, topics, on }) {
  let me;

  async function load() {
    const response = await fetch(`/state/${PAGE}`);
    if (response.status === 401) throw Object.assign(new Error("signed out"), { signedOut: true });
    if (!response.ok) throw new Error(response.status);
    const { user, position, content, notifications: all } = await response.json();
    // Somebody else signed in in another tab.
    if (me && me !== user) {
      location.reload();
      return new Promise(() => {}); // nothing of theirs is drawn before that
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

  // A stream that came back with somebody else's cookie is not for this page.
  let session;
  function hello({ instance, topics }) {
    const now = topics.find(topic => topic.startsWith("session/"));
    if (session && session !== now) location.reload();
    session = now;
    $("instance").textContent = instance;
  }

  follow({ load, hello, status: show, on: { notification: notified, ...on } });
}
