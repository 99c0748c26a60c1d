// Elements, numbers and texts. Text goes in as text nodes alone: names from data are never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element; `on...` properties are listeners, others attributes; null and false leave out. */
function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same of SVG. */
function s(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== false));
  return element;
}

/** A number with so many decimals; a dash where there is none. */
function fixed(value, decimals = 1) {
  return Number.isFinite(value) ? value.toFixed(decimals).replace("-", "−") : "–";
}

/** A number of any size in four digits or so. */
function short(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("-", "−");
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : size >= 0.1 ? 3 : 4;
  return fixed(value, Number.isInteger(value) ? 0 : digits);
}

/** 12 345 */
function count(value) {
  return Number.isFinite(value) ? value.toLocaleString("en").replaceAll(",", " ") : "–";
}

function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** "a" and "b": how the first and the second run look everywhere. */
const LOOKS = ["a", "b"];

function runName(run, k) {
  return h("span", { class: `run-name ${LOOKS[k]}` }, run.name);
}

/** Names of the runs for the eye, where there are two. */
function runLegend(runs) {
  if (runs.length < 2) return null;
  return h("ul", { class: "legend" }, runs.map((run, k) => h("li", {}, runName(run, k))));
}

function empty(...words) {
  return h("p", { class: "empty" }, ...words);
}

/**
 * A table in a box that scrolls by itself.
 * columns: [{name, number}]; rows: [[first cell, ...]], cells are texts, elements or lists of them.
 */
function table(caption, columns, rows, { tall = false } = {}) {
  const of = (column) => (column.number ? "number" : column.wide ? "wide" : null);
  const head = columns.map((one) => h("th", { scope: "col", class: of(one) }, one.name));
  const body = rows.map((row) =>
    h("tr", {}, row.map((cell, k) =>
      h(k ? "td" : "th", { scope: k ? null : "row", class: of(columns[k]) }, cell))));
  return scroller(caption, tall ? "scroll tall" : "scroll",
    h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, head)),
      h("tbody", {}, body)));
}

/** A box that scrolls by itself; a stop of the Tab key only where there is something to scroll. */
function scroller(label, look, content) {
  const box = h("div", { class: look, role: "region", "aria-label": label }, content);
  const fit = () => {
    const fits = box.scrollWidth <= box.clientWidth + 1 && box.scrollHeight <= box.clientHeight + 1;
    if (fits) box.removeAttribute("tabindex");
    else box.tabIndex = 0;
  };
  const observer = new ResizeObserver(fit);
  observer.observe(box);
  observer.observe(content);
  return box;
}

/** A bar of `value` in [0, most], with its interval [low, high]. */
function bar(value, most, look = "a", interval = null) {
  const share = (x) => `${(100 * Math.min(Math.max(x / most, 0), 1)).toFixed(2)}%`;
  const box = h("div", { class: `bar ${look}`, "aria-hidden": "true" });
  if (Number.isFinite(value) && most > 0) {
    const inside = h("i");
    inside.style.width = share(value);
    box.append(inside);
    if (interval && Number.isFinite(interval[0]) && Number.isFinite(interval[1])) {
      const whisker = h("b");
      whisker.style.left = share(interval[0]);
      whisker.style.width = `calc(${share(interval[1])} - ${share(interval[0])})`;
      box.append(whisker);
    }
  }
  return box;
}

let choices = 0;

/** Radio buttons; `chosen` is called with the value. */
function choice(legend, options, value, chosen) {
  const name = `choice-${(choices += 1)}`;
  return h("fieldset", { class: "choice" }, h("legend", {}, legend),
    options.map(([key, words]) => h("label", {},
      h("input", { type: "radio", name, value: key, checked: key === value,
        onchange: () => chosen(key) }), words)));
}

/** A list to choose from. */
function select(label, options, value, chosen) {
  return h("label", {}, label,
    h("select", { onchange: (event) => chosen(event.target.value) },
      options.map(([key, words]) =>
        h("option", { value: key, selected: String(key) === String(value) }, words))));
}
