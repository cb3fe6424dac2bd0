import { $, avatar, make, nameOf, page, send, time } from "/assets/shell.js";

let me;

function row({ id, title, owner, created }, isNew) {
  const whose = owner === me ? "you" : nameOf(owner);
  const remove = make("button", { class: "icon danger", title: "Delete", "aria-label": `Delete “${title}” of ${whose}` });
  remove.append($("trash").content.cloneNode(true));
  remove.onclick = () => send("DELETE", `/documents/${id}`);
  const text = make("div", { class: "what" }, make("strong", {}, title), make("small", {}, `${nameOf(owner)} · `, time(created)));
  return make("li", { "data-id": id, class: isNew ? "new" : "" }, avatar(owner), text, remove);
}

const find = id => $("documents").querySelector(`[data-id="${CSS.escape(id)}"]`);
const count = () => { $("empty").hidden = $("documents").hasChildNodes(); };

page({
  topics: () => ["documents"],
  draw(documents, user) {
    me = user;
    $("documents").replaceChildren(...documents.map(each => row(each, false)));
    count();
  },
  on: {
    // What happened while the state was fetched comes twice.
    "document.created": document => { if (!find(document.id)) $("documents").prepend(row(document, true)); count(); },
    "document.deleted": ({ id }) => { find(id)?.remove(); count(); },
  },
});

$("create").onsubmit = async event => {
  event.preventDefault();
  if (await send("POST", "/documents", { text: $("title").value })) $("title").value = "";
};
