// Metrics and what is behind them: intervals, classes, precision and recall, confusion,
// calibration, kinds of error. One task at a time; both runs where there are two.

function metricsSection() {
  const tasks = REPORT.tasks;
  if (!tasks.length) return section("metrics", "Metrics", empty(REPORT.no_metrics));
  const box = h("div");
  const show = (name) => box.replaceChildren(...taskParts(tasks.find((one) => one.name === name)));
  show(tasks[0].name);
  return section("metrics", "Metrics",
    tasks.length > 1 ? choice("Task", tasks.map((one) => [one.name, one.title]), tasks[0].name,
      show) : h("p", { class: "quiet" }, tasks[0].title), box);
}

function taskParts(task) {
  return [metricTable(task), classTable(task), errorPart(task), precisionPart(task),
    confusionPart(task), calibrationPart(task)].flat().filter(Boolean);
}

function metricTable(task) {
  const two = RUNS.length > 1;
  const columns = [{ name: "metric" },
    ...RUNS.map((run, k) => ({ name: two ? runName(run, k) : "percent", number: true })),
    { name: "0 to 100", wide: true }];
  if (two) columns.push({ name: "difference", number: true }, { name: "" });
  const rows = task.metrics.map((row) => [
    [row.name, h("span", { class: "under" }, row.meaning)], ...values(row),
    ...(two ? difference(row) : []),
  ]);
  return h("div", {},
    h("div", { class: "card" }, table(`${task.title}: ${task.caption}`, columns, rows)),
    task.notes.map((note) => h("p", { class: "quiet small" }, note)));
}

/** Cells of a row's value in each run, with its interval, and the bars of both. */
function values(row) {
  const cells = RUNS.map((_, k) => [fixed(row.runs[k]?.value),
    interval(row.runs[k]) ? h("span", { class: "under" }, interval(row.runs[k])) : null]);
  return [...cells, RUNS.map((_, k) => bar(row.runs[k]?.value, 100, LOOKS[k],
    [row.runs[k]?.low, row.runs[k]?.high]))];
}

/** First minus second run, and whether that is more than chance. */
function difference(row) {
  const value = row.difference?.value ?? row.runs[0]?.value - row.runs[1]?.value;
  if (!Number.isFinite(value)) return ["–", ""];
  const cell = [`${value > 0 ? "+" : ""}${fixed(value)}`];
  if (interval(row.difference)) {
    cell.push(h("span", { class: "under" }, interval(row.difference)));
  }
  if (!row.difference) return [cell, ""];
  const { p } = row.difference;
  const words = !Number.isFinite(p) ? "" : `p ${p < 0.001 ? "< 0.001" : `= ${fixed(p, 3)}`}`;
  const verdict = row.difference.significant
    ? h("b", { class: value > 0 ? "better" : "worse" }, value > 0 ? "▲ better" : "▼ worse")
    : h("span", { class: "quiet" }, "no clear difference");
  return [cell, h("span", { class: "verdict" }, verdict,
    h("span", { class: "under" }, words))];
}

function classTable(task) {
  if (!task.classes.length) return null;
  const two = RUNS.length > 1;
  const state = { order: "value" };
  const box = h("div", { class: "card" });
  const of = (row) => row.runs[0]?.value ?? -1;
  const orders = {
    value: (p, q) => of(q) - of(p),
    name: (p, q) => p.name.localeCompare(q.name, "en", { numeric: true }),
    objects: (p, q) => (q.objects ?? 0) - (p.objects ?? 0),
    difference: (p, q) => of(q) - q.runs[1]?.value - (of(p) - p.runs[1]?.value),
  };
  const hasObjects = task.classes.some((row) => row.objects !== null);
  function draw() {
    const rows = [...task.classes].sort(orders[state.order]);
    const columns = [{ name: "class" }];
    if (hasObjects) columns.push({ name: "objects", number: true });
    RUNS.forEach((run, k) => columns.push({ name: two ? runName(run, k) : task.class_metric,
      number: true }));
    columns.push({ name: "0 to 100", wide: true });
    if (two) columns.push({ name: "difference", number: true }, { name: "" });
    box.replaceChildren(table(`${task.class_metric} of each class`, columns, rows.map((row) => [
      row.name, ...(hasObjects ? [count(row.objects)] : []),
      ...values(row), ...(two ? difference(row) : []),
    ]), { tall: true }));
  }
  draw();
  const names = [["value", `by ${task.class_metric}`], ["name", "by name"]];
  if (hasObjects) names.push(["objects", "by number of objects"]);
  if (two) names.push(["difference", "by gain over the second run"]);
  return [h("h3", {}, "Classes"), h("div", { class: "controls" },
    select("Order", names, state.order, (order) => {
      state.order = order;
      draw();
    })), box];
}

function errorPart(task) {
  if (!task.errors) return null;
  const two = RUNS.length > 1;
  const most = Math.max(...task.errors.kinds.flatMap((kind) =>
    kind.runs.map((one) => one?.gain ?? 0)), 1);
  const columns = [{ name: "kind" }];
  RUNS.forEach((run, k) => columns.push(
    { name: two ? runName(run, k) : "how many", number: true },
    { name: two ? "costs" : `${task.errors.metric} it costs`, number: true }));
  columns.push({ name: "", wide: true });
  const rows = task.errors.kinds.map((kind) => [
    [h("span", { class: "keep" }, h("span", { class: "swatch", "data-kind": kind.key }),
      kind.name), h("span", { class: "under" }, kind.meaning)],
    ...RUNS.flatMap((_, k) => [count(kind.runs[k]?.count), fixed(kind.runs[k]?.gain)]),
    RUNS.map((_, k) => bar(kind.runs[k]?.gain, most, LOOKS[k])),
  ]);
  return [h("h3", {}, "Kinds of error"), h("div", { class: "card" },
    table(task.errors.caption, columns, rows))];
}

function precisionPart(task) {
  if (!task.precision) return null;
  const { recalls, curves } = task.precision;
  const state = { name: curves[0].name };
  const box = h("div", { class: "charts large" });
  function draw() {
    const at = curves.filter((curve) => curve.name === state.name);
    box.replaceChildren(...at[0].ious.map(({ iou }, number) => lineChart({
      title: `IoU ${iou.toFixed(2)}`, x: "recall", height: 230, xRange: [0, 1], yRange: [0, 1],
      format: (value) => fixed(value, 2), formatX: (value) => fixed(value, 2),
      lines: RUNS.flatMap((run, k) => {
        const values = at[0].ious[number].runs[k];
        return values ? [{ name: run.name, look: LOOKS[k], style: k ? "dashed" : null,
          points: recalls.map((recall, place) => [recall, values[place]]) }] : [];
      }),
    })));
  }
  draw();
  return [h("h3", {}, "Precision and recall"), h("div", { class: "controls" },
    select("Class", curves.map(({ name }) => [name, name]), state.name, (name) => {
      state.name = name;
      draw();
    })), runLegend(RUNS), box];
}

function confusionPart(task) {
  if (!task.confusion) return null;
  const { names, runs, caption } = task.confusion;
  return [h("h3", {}, "Confusion"), h("p", { class: "quiet" }, caption),
    h("div", { class: "cards" }, runs.map((rows, k) => rows && h("div", { class: "card" },
      RUNS.length > 1 ? h("h4", {}, runName(RUNS[k], k)) : null, matrix(names, rows, k))))];
}

function matrix(names, rows, k) {
  const body = rows.map((row, r) => {
    const sum = row.reduce((total, one) => total + one, 0);
    return h("tr", {}, h("th", { scope: "row", title: names[r] }, names[r]), row.map((one, c) => {
      const share = sum ? one / sum : 0;
      const cell = h("td", { "--share": `${(100 * share).toFixed(1)}%`,
        class: [one ? "" : "zero", r === c && r < rows.length - 1 ? "right" : ""].join(" "),
        title: `${names[r]} found as ${names[c]}: ${one}, ${fixed(100 * share)} % of its row` },
      count(one));
      return cell;
    }));
  });
  return scroller("Confusion", "scroll tall",
    h("table", { class: `matrix ${LOOKS[k]} ${names.length > 12 ? "dense" : ""}` },
      h("thead", {}, h("tr", {}, h("td"), names.map((name) =>
        h("th", { scope: "col", title: name }, name)))),
      h("tbody", {}, body)));
}

function calibrationPart(task) {
  if (!task.calibration) return null;
  const charts = task.calibration.runs.map((one, k) => one && lineChart({
    title: RUNS.length > 1 ? RUNS[k].name : "Score and precision", x: "score", height: 250,
    xRange: [0, 1], yRange: [0, 1], ideal: true,
    rest: `calibration error ${fixed(100 * one.error)} %`,
    format: (value) => fixed(value, 2), formatX: (value) => fixed(value, 2),
    columns: one.bins.map(({ from, to, share }) => ({ from, to, value: share, look: LOOKS[k] })),
    lines: [{ name: "precision", look: LOOKS[k], dots: true,
      points: one.bins.filter((bin) => bin.count).map((bin) => [bin.score, bin.precision]) }],
  }));
  const rows = task.calibration.runs.flatMap((one, k) => one ? one.bins.filter((bin) => bin.count)
    .map((bin) => [
      ...(RUNS.length > 1 ? [runName(RUNS[k], k)] : []),
      `${fixed(bin.from, 2)} to ${fixed(bin.to, 2)}`, count(bin.count), fixed(bin.score, 3),
      fixed(bin.precision, 3)]) : []);
  return [h("h3", {}, "Calibration"), h("p", { class: "quiet" }, task.calibration.caption),
    h("div", { class: "charts large" }, charts),
    h("details", {}, h("summary", {}, "As a table"), table("Detections by score", [
      ...(RUNS.length > 1 ? [{ name: "run" }] : []), { name: "scores" },
      { name: "detections", number: true }, { name: "mean score", number: true },
      { name: "share that is right", number: true }], rows))];
}
