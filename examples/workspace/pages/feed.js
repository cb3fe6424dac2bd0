import { $, avatar, make, nameOf, page, send, time } from "./shell.js";

const MAX_POSTS = 100; // as many as the server keeps

/**
 * @param {import("./events.js").Post} post
 * @param {boolean} isNew
 */
function addPost({ id, author, text, at }, isNew) {
  // An event that was published while the page loaded its state arrives although the state has it
  // already.
  if ($("feed").querySelector(`[data-id="${CSS.escape(id)}"]`)) return;
  const header = make("header", {}, avatar(author), make("strong", {}, nameOf(author)), time(at));
  $("feed").prepend(make("li", { class: `card post ${isNew ? "new" : ""}`, "data-id": id }, header, make("p", {}, text)));
  while ($("feed").childElementCount > MAX_POSTS) $("feed").lastChild.remove();
  $("empty").hidden = true;
}

page({
  topics: () => ["feed"],
  draw(posts) {
    $("feed").replaceChildren();
    $("empty").hidden = posts.length > 0;
    posts.forEach(each => addPost(each, false));
  },
  on: { post: each => addPost(each, true) },
});

$("post").onsubmit = async event => {
  event.preventDefault();
  if (await send("POST", "/feed", { text: $("text").value })) $("text").value = "";
};
$("text").onkeydown = event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("post").requestSubmit();
};
