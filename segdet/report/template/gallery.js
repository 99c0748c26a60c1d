// The gallery: pictures with what was found beside the ground truth, filtered, and one in large.
// Found are objects with scores, or regions that cover the image, which have none.

let gallery = REPORT.galleries[0];

const FIRST_SHOWN = 16;
const LAYERS = [["masks", "masks"], ["boxes", "boxes"], ["labels", "labels"]];

const view = { layers: new Set(["masks", "labels"]) };

function resetView() {
  Object.assign(view, { pick: "all", order: "worst", class: "", kind: "",
    score: gallery.score ?? 0, colour: gallery.score === null ? "class" : "kind" });
}

function isSeen({ s }) {
  return s === undefined || s >= view.score;
}

/** What of a run's detections is to be seen, by the filters. */
function seenOf(found) {
  return found.filter((one) => isSeen(one)
    && (view.class === "" || one.c === Number(view.class))
    && (view.kind === "" || one.k === view.kind));
}

/** Objects of an image that no detection of a run above the score has found. */
function missedIn(picture, k) {
  const hit = new Set(picture.runs[k].filter((one) => isSeen(one) && one.k === "correct")
    .map((one) => one.g));
  return picture.truth.filter((object, g) => !object.crowd && !hit.has(g)
    && (view.class === "" || object.c === Number(view.class)));
}

function tallyOf(picture, k) {
  const confident = picture.runs[k].filter((one) => isSeen(one) && one.k !== "ignored"
    && (view.class === "" || one.c === Number(view.class)));
  const right = confident.filter((one) => one.k === "correct").length;
  return { right, wrong: confident.length - right, missed: missedIn(picture, k).length };
}

function tallyWords({ right, wrong, missed }) {
  return `${right} right, ${wrong} wrong, ${missed} missed`;
}

/** 1 where all is right, 0 where nothing is: the F1 score of the image. */
function quality({ right, wrong, missed }) {
  return right + wrong + missed ? (2 * right) / (2 * right + wrong + missed) : 1;
}

function isShown(picture) {
  if (view.pick !== "all" && !picture.picks.includes(view.pick)) return false;
  if (view.class === "" && view.kind === "") return true;
  return picture.runs.some((found, k) => view.kind === "missed" ? missedIn(picture, k).length
    : seenOf(found).length || (view.kind === "" && missedIn(picture, k).length));
}

function inOrder(pictures) {
  const worth = (picture) => quality(tallyOf(picture, 0));
  const mistakes = ({ wrong, missed }) => wrong + missed;
  const orders = {
    worst: (p, q) => worth(p) - worth(q) || mistakes(tallyOf(q, 0)) - mistakes(tallyOf(p, 0)),
    best: (p, q) => worth(q) - worth(p) || tallyOf(q, 0).right - tallyOf(p, 0).right,
    name: (p, q) => p.name.localeCompare(q.name, "en", { numeric: true }),
  };
  if (RUNS.length > 1) {
    const gain = (picture) => quality(tallyOf(picture, 0)) - quality(tallyOf(picture, 1));
    orders.change = (p, q) => Math.abs(gain(q)) - Math.abs(gain(p));
  }
  return pictures.sort(orders[view.order]);
}

/** The picture with objects drawn over it; `k` is a run, or null for the ground truth. */
function frame(picture, k, { labels = true } = {}) {
  const drawing = s("svg", { viewBox: `0 0 ${picture.width} ${picture.height}`,
    "aria-hidden": "true", class: LAYERS.filter(([layer]) =>
      !view.layers.has(layer) || (layer === "labels" && !labels))
      .map(([layer]) => `hide-${layer}`).join(" ") });
  const objects = objectsOf(picture, k);
  drawing.append(...objects.map(shape), ...objects.map(label));
  const words = k === null ? `Ground truth: ${plural(picture.truth.length, gallery.unit)}`
    : `Predictions of ${RUNS[k].name}: ${tallyWords(tallyOf(picture, k))}`;
  const box = h("span", { class: "frame" },
    h("img", { src: REPORT.sources[picture.source], alt: `${picture.name}. ${words}`, decoding: "async" }), drawing);
  if (labels) {
    box.style.aspectRatio = `${picture.width} / ${picture.height}`;
    new ResizeObserver(() => {
      drawing.style.setProperty("--zoom", picture.width / Math.max(box.clientWidth, 1));
    }).observe(box);
  }
  return box;
}

function objectsOf(picture, k) {
  if (k !== null) return seenOf(picture.runs[k]);
  const missed = new Set(RUNS.length === 1 ? missedIn(picture, 0) : []);
  return picture.truth
    .filter((object) => (view.class === "" || object.c === Number(view.class))
      && (view.kind !== "missed" || RUNS.length > 1 || missed.has(object)))
    .map((object) => ({ ...object, k: missed.has(object) ? "missed" : "truth" }));
}

function shape(object) {
  const [x, y, width, height] = object.b;
  return s("g", {
    class: `object ${object.k === "missed" ? "missed" : ""} ${object.crowd ? "crowd" : ""}`,
    "data-kind": object.k, "data-number": object.n,
    "--colour": view.colour === "class" ? gallery.classes[object.c].colour : null,
  }, object.p ? s("path", { d: object.p }) : null,
  s("rect", { x, y, width, height, class: object.p ? null : "only" }));
}

function label(object) {
  const [x, y] = object.b;
  const name = gallery.classes[object.c].name;
  return s("text", { x: x + 2, y: Math.max(y, 12), dy: "-2" },
    object.s === undefined ? name : `${name} ${(100 * object.s).toFixed(0)}`);
}

function gallerySection() {
  if (!gallery) return section("gallery", "Pictures", empty(REPORT.no_gallery));
  const box = h("div");
  const viewer = makeViewer();
  const open = (title) => {
    gallery = REPORT.galleries.find((one) => one.title === title);
    resetView();
    box.replaceChildren(...galleryParts(viewer));
  };
  open(gallery.title);
  const titles = REPORT.galleries.map(({ title }) => [title, title]);
  return section("gallery", "Pictures",
    titles.length > 1 ? choice("Of", titles, gallery.title, open) : null, box, viewer.dialog);
}

function galleryParts(viewer) {
  const list = h("ul", { class: "cards pictures" });
  const said = h("p", { class: "quiet small", role: "status" });
  const more = h("button", { type: "button", class: "more", onclick: () => {
    const before = list.children.length;
    limit = Infinity;
    draw();
    list.querySelectorAll("button")[before]?.focus();
  } });
  let shown = [];
  let limit = FIRST_SHOWN;

  function draw() {
    shown = inOrder(gallery.pictures.filter(isShown));
    more.hidden = shown.length <= limit;
    more.textContent = `Show all ${shown.length} pictures`;
    list.replaceChildren(...shown.slice(0, limit).map((picture, number) =>
      h("li", {}, card(picture, number, () => viewer.open(shown, number)))));
    said.textContent = shown.length ? `${plural(shown.length, "picture")} of ${
      count(gallery.pictures.length)} here; ${count(gallery.images)} in the data set.`
      : "No picture fits these filters; widen them, or lower the score.";
  }

  list.addEventListener("keydown", (event) => moveInGrid(list, event));
  draw();
  return [
    h("p", {}, "Open a picture to see it beside its ground truth; arrow keys go from one to the ",
      "next. ", gallery.about),
    controls(draw), legend(), said, list, more,
  ];
}

function card(picture, number, open) {
  const picks = picture.picks.map((pick) => h("span", { class: "pick" }, pick));
  return h("button", { type: "button", tabindex: number ? -1 : 0, onclick: open },
    frame(picture, 0, { labels: false }),
    h("span", { class: "words" }, h("b", {}, picture.name),
      picture.runs.map((_, k) => h("span", { class: "quiet" },
        RUNS.length > 1 ? [runName({ name: "" }, k)] : null,
        tallyWords(tallyOf(picture, k)), h("br"))), picks));
}

/** Arrow keys go from picture to picture as they lie on the screen; Tab leaves the grid. */
function moveInGrid(list, event) {
  const buttons = [...list.querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  if (at < 0) return;
  const top = buttons[0].getBoundingClientRect().top;
  const columns = buttons.filter((one) => one.getBoundingClientRect().top === top).length || 1;
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns,
    ArrowDown: at + columns, Home: 0, End: buttons.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  if (!buttons[to]) return;
  buttons[at].tabIndex = -1;
  buttons[to].tabIndex = 0;
  buttons[to].focus();
}

function controls(draw) {
  const set = (key) => (value) => {
    view[key] = value;
    draw();
  };
  const score = h("output", {}, view.score.toFixed(2));
  const orders = [["worst", "worst first"], ["best", "best first"], ["name", "by name"]];
  if (RUNS.length > 1) orders.push(["change", "most changed first"]);
  return h("div", { class: "controls" },
    select("Pictures", [["all", "all"], ["worst", "the worst"], ["best", "the best"],
      ["random", "random ones"]], view.pick, set("pick")),
    select("Order", orders, view.order, set("order")),
    select("Class", [["", "all classes"], ...gallery.classes.map(({ name }, c) => [c, name])],
      view.class, set("class")),
    select("Outcome", [["", "all outcomes"], ...gallery.kinds.map(({ key }) => [key, key])],
      view.kind, set("kind")),
    gallery.score === null ? null : h("label", {}, h("span", {}, "Score from ", score),
      h("input", { type: "range", min: 0, max: 1, step: 0.05, value: view.score,
        oninput: (event) => {
          score.textContent = Number(event.target.value).toFixed(2);
          set("score")(Number(event.target.value));
        } })),
    select("Colour", [["kind", "by outcome"], ["class", "by class"]], view.colour, set("colour")),
    LAYERS.map(([layer, words]) => h("label", { class: "check" },
      h("input", { type: "checkbox", checked: view.layers.has(layer), onchange: (event) => {
        if (event.target.checked) view.layers.add(layer);
        else view.layers.delete(layer);
        draw();
      } }), words)));
}

function legend() {
  return h("details", {}, h("summary", {}, "What the outcomes mean"),
    h("ul", { class: "legend" }, gallery.kinds.map(({ key, meaning }) =>
      h("li", {}, h("span", { class: "swatch", "data-kind": key }), h("b", {}, key), ": ",
        meaning))));
}

/** The dialog with one picture in large: ground truth and each run, and a table of objects. */
function makeViewer() {
  const title = h("h3", { id: "viewer-title" });
  const panels = h("div", { class: "panels" });
  const rest = h("div", { class: "viewer-rest cards" });
  const state = { pictures: [], at: 0 };
  const button = (words, act) => h("button", { type: "button", onclick: act }, words);
  const dialog = h("dialog", { "aria-labelledby": "viewer-title" },
    h("div", { class: "viewer-top" }, title,
      button("← Previous", () => step(-1)), button("Next →", () => step(1)),
      button("Close", () => dialog.close())), panels, rest);

  function step(by) {
    state.at = (state.at + by + state.pictures.length) % state.pictures.length;
    show();
  }

  function show() {
    const picture = state.pictures[state.at];
    title.textContent = `${picture.name} (${state.at + 1} of ${state.pictures.length})`;
    panels.replaceChildren(
      h("figure", {}, h("figcaption", {}, h("b", {}, "Ground truth"), ": ",
        plural(picture.truth.length, gallery.unit)), frame(picture, null)),
      ...RUNS.map((run, k) => h("figure", {}, h("figcaption", {},
        RUNS.length > 1 ? runName(run, k) : h("b", {}, "Predictions"), ": ",
        tallyWords(tallyOf(picture, k))), frame(picture, k))));
    rest.replaceChildren(...RUNS.map((_, k) => foundTable(picture, k)));
    dialog.scrollTop = 0;
  }

  function foundTable(picture, k) {
    const outcome = (kind) => [h("span", { class: "swatch", "data-kind": kind }), kind];
    const score = (one) => (gallery.score === null ? [] : [fixed(one.s, 2)]);
    const rows = seenOf(picture.runs[k]).map((one) => [one,
      [gallery.classes[one.c].name, ...score(one), outcome(one.k), fixed(one.i, 2)]]);
    const missed = missedIn(picture, k).filter(() => view.kind === "" || view.kind === "missed")
      .map((one) => [null, [gallery.classes[one.c].name, ...score(one), outcome("missed"), "–"]]);
    const all = [...rows, ...missed];
    const caption = RUNS.length > 1 ? `Predictions of ${RUNS[k].name}` : "Predictions";
    if (!all.length) return empty(`${caption}: nothing that the filters let through.`);
    const made = table(caption, [{ name: "class" },
      ...(gallery.score === null ? [] : [{ name: "score", number: true }]), { name: "outcome" }, { name: "best IoU", number: true }], all.map(([, cells]) => cells));
    made.querySelectorAll("tbody tr").forEach((row, number) => {
      const [one] = all[number];
      if (!one) return;
      const mark = (on) => {
        row.classList.toggle("chosen", on);
        panels.children[k + 1].querySelectorAll(`[data-number="${one.n}"]`)
          .forEach((object) => object.classList.toggle("chosen", on));
      };
      row.addEventListener("pointerenter", () => mark(true));
      row.addEventListener("pointerleave", () => mark(false));
    });
    return made;
  }

  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    step(by);
  });
  return {
    dialog,
    open(pictures, at) {
      Object.assign(state, { pictures, at });
      show();
      dialog.showModal();
    },
  };
}
