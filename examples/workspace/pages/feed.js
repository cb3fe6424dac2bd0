import { $, avatar, make, nameOf, page, send, time } from "/assets/shell.js";

const KEPT = 100;

function put({ id, author, text, at }, isNew) {
  // What happened while the state was fetched comes twice.
  if ($("feed").querySelector(`[data-id="${CSS.escape(id)}"]`)) return;
  const who = make("header", {}, avatar(author), make("strong", {}, nameOf(author)), time(at));
  $("feed").prepend(make("li", { class: `card post ${isNew ? "new" : ""}`, "data-id": id }, who, make("p", {}, text)));
  while ($("feed").childElementCount > KEPT) $("feed").lastChild.remove();
  $("empty").hidden = true;
}

page({
  topics: () => ["feed"],
  draw(posts) {
    $("feed").replaceChildren();
    $("empty").hidden = posts.length > 0;
    posts.forEach(each => put(each, false));
  },
  on: { post: each => put(each, true) },
});

$("post").onsubmit = async event => {
  event.preventDefault();
  if (await send("POST", "/feed", { text: $("text").value })) $("text").value = "";
};
$("text").onkeydown = event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("post").requestSubmit();
};
