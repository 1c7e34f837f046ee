"""The browser's half of `token_view`: how tokens are drawn, pointed at, opened and chosen from.

Texts reach the page through `textContent` alone. One token is in the tab order; arrow keys move between tokens and,
where the list is open, between its alternatives. Enter opens and chooses, Escape closes.
"""

from __future__ import annotations

HTML = """
<div class="text" role="group"></div>
"""

CSS = """
.text { position: relative; font-family: var(--st-font); font-size: 15px; line-height: 27px;
  color: var(--st-text-color); white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.t { cursor: pointer; border-radius: 3px; padding: 2px 0; }
.t:hover, .t:focus-visible { outline: 1px solid var(--st-primary-color); }
.t.on { outline: 1.5px solid var(--st-primary-color); }
.t.line::before { content: "⏎"; opacity: .45; }
.t.end::before { content: "⏹ end"; opacity: .6; font-size: 12px; padding: 0 4px; }
.t.mark { border-left: 2px solid; border-radius: 0 3px 3px 0; }
.pop { position: absolute; z-index: 9; width: 244px; padding: 8px 12px; border: 1px solid var(--st-border-color);
  border-radius: 6px; background: var(--st-background-color); box-shadow: 0 6px 22px rgba(0, 0, 0, .16);
  font-size: 13px; line-height: 20px; font-variant-numeric: tabular-nums; white-space: normal; box-sizing: border-box; }
.head { display: flex; justify-content: space-between; gap: 8px; font-size: 12.5px; opacity: .75; padding-bottom: 3px; }
.row { display: grid; grid-template-columns: 84px 1fr 50px; gap: 8px; align-items: center; width: 100%; padding: 0;
  border: 0; border-radius: 3px; background: none; color: inherit; font: inherit; text-align: left; cursor: pointer; }
.row:hover, .row:focus-visible { background: var(--st-secondary-background-color); outline: none; }
.row:focus-visible { box-shadow: 0 0 0 1px var(--st-primary-color); }
.row span { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
.row i { height: 6px; border-radius: 3px; background: var(--st-primary-color); display: block; opacity: .45; }
.row.me { font-weight: 600; cursor: default; } .row.me i { opacity: 1; }
.row span:last-child { text-align: right; }
.space { opacity: .4; font-weight: 400; }
.hint { opacity: .7; font-size: 12px; line-height: 16px; padding-top: 4px; }
"""

JS = """
const MARKS = { " ": "\\u00b7", "\\n": "\\u23ce", "\\t": "\\u21e5" };
const WAIT_MS = 140;

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function percent(p) { return p < 0.0005 ? "<0.1 %" : (p * 100).toFixed(1) + " %"; }

// The name of a token: white space by a mark, so that " the" and "the" are told apart.
function named(name) {
  const label = element("span", "");
  if (name === "") { label.append(element("em", "space", "end of text")); return label; }
  for (const part of name.split(/([ \\n\\t])/)) {
    if (part) label.append(part in MARKS ? element("b", "space", MARKS[part]) : part);
  }
  return label;
}

function close(box) {
  clearTimeout(box.timer);
  box.pop?.remove();
  box.pop = null;
  box.pinned = false;
  for (const token of box.querySelectorAll(".on")) {
    token.classList.remove("on");
    token.setAttribute("aria-expanded", "false");
  }
}

function rows(box, at) {
  const { own, alternatives } = box.data;
  const [mine, nats] = own[at];
  const found = [...alternatives[at]];
  if (!found.some(([token]) => token === mine)) found.push([mine, Math.exp(-nats)]);
  const most = Math.max(...found.map(([, p]) => p), 1e-9);
  return found.map(([token, p]) => {
    const row = element("button", "row" + (token === mine ? " me" : ""));
    const bar = element("i", "");
    bar.style.width = Math.max(3, p / most * 100) + "%";
    row.append(named(box.data.names[token]), bar, element("span", "", percent(p)));
    row.tabIndex = -1;
    row.dataset.token = token;
    if (token === mine) row.setAttribute("aria-current", "true");
    row.onclick = () => { if (token !== mine) { close(box); box.branch({ at: box.data.starts[at], token }); } };
    return row;
  });
}

function open(box, at, pinned) {
  const token = box.tokens[at], { nats, counts, alternatives } = box.data;
  close(box);
  token.classList.add("on");
  token.setAttribute("aria-expanded", "true");
  const pop = box.pop = element("div", "pop");
  box.pinned = pinned;
  pop.setAttribute("role", "dialog");
  pop.setAttribute("aria-label", "Alternatives");
  const head = element("div", "head", percent(Math.exp(-nats[at])));
  head.append(element("span", "", nats[at].toFixed(2) + " nats"));
  pop.append(head, ...rows(box, at));
  const whole = counts[at] > 1 ? "Alternatives to the first of " + counts[at] + " tokens of these characters. " : "";
  const why = alternatives[at].length ? "Click one to branch from here." : "The alternatives were not read.";
  pop.append(element("div", "hint", whole + why));
  pop.append(element("div", "hint", "The model's own probabilities, at temperature 1, before filters."));
  box.append(pop);
  const around = box.getBoundingClientRect(), first = token.getClientRects()[0] ?? around;
  pop.style.left = Math.max(0, Math.min(first.left - around.left, around.width - pop.offsetWidth)) + "px";
  pop.style.top = first.bottom - around.top + 5 + "px";
  pop.onmouseenter = () => clearTimeout(box.timer);
  pop.onmouseleave = () => { if (!box.pinned) later(box, () => close(box)); };
}

function later(box, what) {
  clearTimeout(box.timer);
  box.timer = setTimeout(what, WAIT_MS);
}

function focus(box, at) {
  const token = box.tokens[at];
  if (!token) return;
  if (box.tokens[box.at]) box.tokens[box.at].tabIndex = -1;
  box.at = at;
  token.tabIndex = 0;
  token.focus({ preventScroll: false });
}

function place(box, target) {
  const token = target.closest?.(".t");
  return token ? Number(token.dataset.at) : -1;
}

function press(box, event) {
  const root = box.getRootNode(), at = place(box, root.activeElement ?? event.target);
  const choices = box.pop ? [...box.pop.querySelectorAll(".row")] : [];
  const chosen = choices.indexOf(root.activeElement);
  const steps = { ArrowRight: 1, ArrowLeft: -1 }, moves = { ArrowDown: 1, ArrowUp: -1 };
  if (event.key === "Escape" && box.pop) {
    close(box);
    focus(box, box.at);
  } else if (event.key in moves && box.pop) {
    const next = chosen + moves[event.key];
    if (next < 0) focus(box, box.at); else choices[Math.min(next, choices.length - 1)].focus();
  } else if (event.key in steps || event.key === "Home" || event.key === "End") {
    const last = box.tokens.length - 1, pinned = box.pinned;
    const to = event.key === "Home" ? 0 : event.key === "End" ? last : box.at + steps[event.key];
    focus(box, Math.max(0, Math.min(last, to)));
    if (pinned) open(box, box.at, true); else close(box);
  } else if ((event.key === "Enter" || event.key === " ") && at >= 0) {
    open(box, at, true);
    box.pop.querySelector(".row")?.focus();
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

// What comes under a resting mouse, because the page changed, was not pointed at.
function moved(box, event) {
  const before = box.mouse;
  box.mouse = event.screenX + "," + event.screenY;
  return box.mouse !== before;
}

function listen(box) {
  box.addEventListener("keydown", (event) => press(box, event));
  box.addEventListener("click", (event) => {
    moved(box, event);
    const at = place(box, event.target);
    if (at < 0) return;
    const again = box.pinned && box.at === at;
    focus(box, at);
    if (again) close(box); else open(box, at, true);
  });
  box.addEventListener("mouseover", (event) => {
    const at = place(box, event.target);
    if (moved(box, event) && at >= 0 && !box.pinned) later(box, () => open(box, at, false));
  });
  box.addEventListener("mouseout", (event) => {
    if (place(box, event.target) >= 0 && !box.pinned) later(box, () => close(box));
  });
  box.outside = (event) => { if (box.pop && !event.composedPath().includes(box)) close(box); };
  document.addEventListener("pointerdown", box.outside);
}

function draw(box) {
  const { texts, nats, starts, mark, color, most, strongest } = box.data;
  close(box);
  box.replaceChildren();
  box.tokens = [];
  box.at = 0;
  const host = box.getRootNode().host;
  if (host) host.dataset.tokens = texts.length ? "drawn" : "none";
  if (!texts.length) return;
  box.setAttribute("aria-label", box.data.label);
  const prompt = element("span", "prompt", box.data.prompt);
  prompt.style.color = box.data.grey;
  box.append(prompt);
  box.tokens = texts.map((text, at) => {
    const token = element("span", "t", text);
    if (text === "") token.classList.add("end");
    else if (/^[\\r\\n]+$/.test(text)) token.classList.add("line");
    const share = Math.min(1, nats[at] / most);
    const accent = "var(--st-primary-color) " + Math.round(share * strongest) + "%";
    token.style.background = "color-mix(in srgb, " + accent + ", transparent)";
    if (starts[at] === mark) { token.classList.add("mark"); token.style.borderLeftColor = color; }
    token.dataset.at = at;
    token.tabIndex = at ? -1 : 0;
    token.setAttribute("role", "button");
    token.setAttribute("aria-haspopup", "dialog");
    token.setAttribute("aria-expanded", "false");
    token.setAttribute("aria-label", (text || "end of text") + ", " + percent(Math.exp(-nats[at])));
    return token;
  });
  box.append(...box.tokens);
}

export default function ({ parentElement, data, setTriggerValue }) {
  const box = parentElement.querySelector(".text");
  if (!box.outside) listen(box);
  box.branch = (what) => setTriggerValue("branch", what);
  if (box.dataset.revision !== data.revision) {
    box.dataset.revision = data.revision;
    box.data = data;
    draw(box);
  }
  return () => { clearTimeout(box.timer); document.removeEventListener("pointerdown", box.outside); };
}
"""
