// The sections of the page, from the top to the metrics; each gives its heading and content.

const REPORT = JSON.parse(document.getElementById("report").textContent);
const RUNS = REPORT.runs;

function section(id, title, ...content) {
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title), ...content);
}

function summarySection() {
  const [run, other] = RUNS;
  return h("section", { id: "summary", "aria-labelledby": "summary-title" },
    h("h1", { id: "summary-title" }, run.name),
    h("p", { class: "lead" }, other ? ["against ", h("b", {}, other.name), ". "] : null,
      run.about),
    runLegend(RUNS),
    tiles(),
    RUNS.map((one, k) => missing(one, k)));
}

function tiles() {
  const known = RUNS[0].facts.map(([label], k) => [label, RUNS.map((run) => run.facts[k][1])])
    .filter(([, values]) => values.some((value) => value !== "–"));
  const facts = known.map(([label, [first, second]]) => h("div", { class: "tile" },
    h("dt", {}, label), h("dd", { class: "words" }, first),
    second !== undefined && second !== first ? h("dd", { class: "b run-name" }, second) : null));
  const numbers = REPORT.headline.map(({ name, runs }) => h("div", { class: "tile" },
    h("dt", {}, name),
    h("dd", {}, fixed(runs[0]?.value)),
    interval(runs[0]) ? h("dd", {}, interval(runs[0])) : null,
    RUNS[1] ? h("dd", { class: "second b run-name" }, fixed(runs[1]?.value)) : null));
  return h("dl", { class: "tiles" }, numbers, facts);
}

function interval(one) {
  return one && Number.isFinite(one.low) ? `${fixed(one.low)} to ${fixed(one.high)}` : null;
}

function missing(run, k) {
  if (!run.missing.length) return null;
  return h("div", { class: "notice" },
    h("h3", {}, "What this page lacks", RUNS.length > 1 ? [" of ", runName(run, k)] : null),
    h("ul", {}, run.missing.map(({ what, why }) => h("li", {}, h("b", {}, what), ": ", why))));
}

function configSection() {
  const two = RUNS.length > 1;
  const state = { words: "", kind: two ? "differs" : "changed" };
  const kinds = [["changed", "what differs from the defaults"], ["all", "all settings"]];
  if (two) kinds.unshift(["differs", "what differs between the runs"]);
  const body = h("tbody");
  const said = h("p", { class: "quiet small", role: "status" });

  function draw() {
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = REPORT.config.filter((row) => {
      const text = [row.key, ...row.values, row.default].join(" ").toLowerCase();
      return (state.kind === "all" || row[state.kind]) && words.every((one) => text.includes(one));
    });
    body.replaceChildren(...rows.map((row) => h("tr", {},
      h("th", { scope: "row", class: "mono" }, row.key),
      row.values.map((value) => h("td", { class: "mono" }, value ?? h("span",
        { class: "quiet" }, "not set"))),
      h("td", { class: "mono quiet" }, row.default ?? "none"))));
    said.textContent = rows.length
      ? `${plural(rows.length, "setting")} of ${count(REPORT.config.length)}`
      : `No setting ${state.words ? `with “${state.words}” ` : ""}among ${
        kinds.find(([key]) => key === state.kind)[1]}.`;
  }

  draw();
  if (!REPORT.config.length) {
    return section("config", "Configuration", empty("No run here has a config.yaml."));
  }
  return section("config", "Configuration",
    h("div", { class: "controls" },
      h("label", {}, "Search keys and values",
        h("input", { type: "search", placeholder: "e.g. BASE_LR", oninput: (event) => {
          state.words = event.target.value;
          draw();
        } })),
      select("Show", kinds, state.kind, (kind) => {
        state.kind = kind;
        draw();
      })),
    said,
    scroller("Settings", "scroll tall card",
      h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "key"),
        RUNS.map((run, k) => h("th", { scope: "col" }, two ? runName(run, k) : "value")),
        h("th", { scope: "col" }, "default"))), body)));
}

function dataSection() {
  return section("data", "Data",
    REPORT.data.length ? h("div", { class: "cards" }, REPORT.data.map(dataCard))
      : empty("The configuration names no data set."));
}

function dataCard(data) {
  const title = h("h3", {}, data.name, " ", h("span", { class: "quiet small" }, data.use));
  title.style.marginTop = 0;
  if (data.why) return h("article", { class: "card" }, title, h("p", {}, data.why));
  const objects = data.unit === "objects";
  const most = Math.max(...data.classes.map(([, number]) => number), 0);
  const largest = Math.max(...data.sizes.map(([, number]) => number), 0);
  return h("article", { class: "card" }, title,
    h("p", {}, data.headline, ". ", h("span", { class: "quiet" }, data.findings)),
    data.classes.length ? table(`${objects ? "Objects" : "Pixels"} by class, and images with any`,
      [{ name: "class" }, { name: data.unit, number: true }, { name: "images", number: true },
        { name: "", wide: true }],
      data.classes.map(([name, number, images]) =>
        [name, count(number), count(images), bar(number, most)]), { tall: true }) : null,
    largest ? [h("br"), table("Objects by size: root of the area, pixels",
      [{ name: "size" }, { name: "objects", number: true }, { name: "", wide: true }],
      data.sizes.map(([name, number]) => [name, count(number), bar(number, largest)]))] : null);
}

const GROUPS = [
  ["results", "Results on the way"], ["losses", "Losses and learning rate"],
  ["inside", "Inside the model"], ["speed", "Speed"],
];

function curvesSection() {
  const place = (name) => (name === "total_loss" ? 0 : name === "lr" ? 2 : 1);
  const names = [...new Set(RUNS.flatMap((run) => Object.keys(run.curves)))]
    .sort((p, q) => place(p) - place(q));
  const groups = GROUPS.map(([group, title]) => [title, group,
    names.filter((name) => REPORT.groups[name] === group)]).filter(([, , some]) => some.length);
  if (!groups.length) {
    return section("training", "Training",
      empty("There is no metrics.json with lines of training, so there are no curves."));
  }
  return section("training", "Training", runLegend(RUNS),
    groups.map(([title, group, some]) => {
      const content = [h("div", { class: "charts" }, some.map(curveChart)), numbersOf(title, some)];
      return ["inside", "speed"].includes(group)
        ? h("details", {}, h("summary", {}, `${title}: ${plural(some.length, "curve")}`), content)
        : [h("h3", {}, title), content];
    }));
}

function linesOf(name) {
  return RUNS.flatMap((run, k) => run.curves[name]
    ? [{ name: run.name, look: LOOKS[k], points: run.curves[name],
      style: k ? "dashed" : null }] : []);
}

function curveChart(name) {
  const lines = linesOf(name);
  const rest = lines.map((line) => short(line.points.at(-1)?.[1])).join(" | ");
  return lineChart({ title: name, x: "iteration", lines, formatX: count, rest });
}

function numbersOf(title, names) {
  const lines = names.flatMap((name) => linesOf(name).map((line) =>
    ({ ...line, name: RUNS.length > 1 ? `${name}, ${line.name}` : name })));
  return chartNumbers(title, "iteration", lines);
}
