import { $, avatar, make, nameOf, page, send, time } from "./shell.js";

let me;

/**
 * @param {import("./events.js").Document} document
 * @param {boolean} isNew
 */
function makeRow({ id, title, owner, created }, isNew) {
  const ownerName = owner === me ? "you" : nameOf(owner);
  const remove = make("button", { class: "icon danger", title: "Delete", "aria-label": `Delete “${title}” of ${ownerName}` });
  remove.append($("trash").content.cloneNode(true));
  remove.onclick = () => send("DELETE", `/documents/${id}`);
  const text = make("div", { class: "what" }, make("strong", {}, title), make("small", {}, `${nameOf(owner)} · `, time(created)));
  return make("li", { "data-id": id, class: isNew ? "new" : "" }, avatar(owner), text, remove);
}

const findRow = id => $("documents").querySelector(`[data-id="${CSS.escape(id)}"]`);
const showIfEmpty = () => { $("empty").hidden = $("documents").hasChildNodes(); };

page({
  topics: () => ["documents"],
  draw(documents, user) {
    me = user;
    $("documents").replaceChildren(...documents.map(each => makeRow(each, false)));
    showIfEmpty();
  },
  on: {
    // An event that was published while the page loaded its state arrives although the state has it
    // already.
    "document.created": document => { if (!findRow(document.id)) $("documents").prepend(makeRow(document, true)); showIfEmpty(); },
    "document.deleted": ({ id }) => { findRow(id)?.remove(); showIfEmpty(); },
  },
});

$("create").onsubmit = async event => {
  event.preventDefault();
  if (await send("POST", "/documents", { text: $("title").value })) $("title").value = "";
};
