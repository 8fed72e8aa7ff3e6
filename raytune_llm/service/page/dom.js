// Elements from data. Every text becomes a text node, never markup.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Only touches the page when something differs, so that focus and selection stay.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  const wanted = value === null ? null : String(value);
  if (element.getAttribute(name) === wanted) return;
  if (wanted === null) element.removeAttribute(name);
  else element.setAttribute(name, wanted);
}

// Replaces an element's children when what they are made of has changed.
export function redraw(element, data, make) {
  const print = JSON.stringify(data);
  if (element.drawn === print) return;
  element.drawn = print;
  element.replaceChildren(...[make(data)].flat(Infinity).filter(Boolean));
}

// Children by key: new ones are made, known ones updated in place, others removed, the order kept.
export function keyed(parent, items, keyOf, make) {
  const known = new Map([...parent.children].map((child) => [child.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    known.delete(key);
    if (!child) {
      child = make(item);
      child.key = key;
    }
    child.update(item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of known.values()) child.remove();
}

export function say(text) {
  document.getElementById("announcer").textContent = text;
}

export function copyButton(textOf) {
  const button = h("button", { type: "button", class: "quiet copy" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(textOf());
      setText(button, "Copied");
      say("Copied to the clipboard");
    } catch {
      select(button.parentElement.querySelector("pre"));
      setText(button, "Press Ctrl+C");
    }
    setTimeout(() => setText(button, "Copy"), 2000);
  });
  return button;
}

function select(element) {
  const range = document.createRange();
  range.selectNodeContents(element);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

export function code(text, label) {
  const pre = h("pre", { tabindex: 0, "aria-label": label, role: "region" }, text);
  return h("div", { class: "code" }, pre, copyButton(() => pre.textContent));
}

// A question with two answers; resolves to whether it was confirmed.
export function confirmed(question, detail, yes) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "question" },
      h("h2", { id: "question" }, question), h("p", { class: "soft" }, detail),
      h("form", { method: "dialog", class: "buttons" },
        h("button", { value: "yes", class: "main" }, yes), h("button", { value: "no" }, "Keep as it is")));
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes");
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
    dialog.querySelector("[value=no]").focus();
  });
}

// Calls `work` now and every so many seconds while the page is seen, until `signal` is aborted or it returns "stop".
export function poll(work, seconds, signal) {
  let timer = null, isBusy = false;
  const run = async () => {
    clearTimeout(timer);
    if (isBusy || signal.aborted || document.hidden) return;
    isBusy = true;
    const answer = await work().finally(() => { isBusy = false; });
    if (answer === "stop" || signal.aborted) end();
    else timer = setTimeout(run, 1000 * seconds);
  };
  const end = () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", run);
  };
  document.addEventListener("visibilitychange", run);
  signal.addEventListener("abort", end);
  run();
  return run;
}
