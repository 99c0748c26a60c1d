// Charts of lines, in SVG that is drawn again at the width that it gets.

const MARGIN = { top: 8, right: 10, bottom: 30, left: 46 };

/** About `wanted` round numbers that span [low, high]. */
function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(wanted, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((size) => size >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step)
    .toPrecision(12)));
}

/** [low, high] of numbers, with room where they are all the same. */
function span(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (Number.isFinite(value)) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  if (low > high) return [0, 1];
  if (low === high) return [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  return [low, high];
}

/**
 * A figure of lines over numbers.
 * chart: {title, x, y: names of the axes, lines: [{name, look, points: [[x, y]], style}],
 *   xRange, yRange: [low, high] or absent, ideal: draw the diagonal, height,
 *   columns: [{from, to, value, look}] behind the lines, in the range of y,
 *   format: of y, formatX: of x}
 */
function lineChart(chart) {
  const { height = 190, format = short, formatX = short } = chart;
  const readout = h("output", { "aria-live": "off" });
  const plot = h("div", {
    class: "plot", tabindex: 0, role: "group",
    "aria-label": `${chart.title}; left and right arrow keys read the values`,
  });
  const xs = [...new Set(chart.lines.flatMap((line) => line.points.map(([x]) => x)))]
    .sort((p, q) => p - q);
  const state = { at: null, scale: null };

  function show(at) {
    state.at = at;
    const [cross] = plot.getElementsByClassName("cross");
    if (!cross || at === null) {
      if (cross) cross.setAttribute("visibility", "hidden");
      readout.textContent = chart.rest ?? "";
      return;
    }
    const x = xs[at];
    cross.setAttribute("x1", state.scale.x(x));
    cross.setAttribute("x2", state.scale.x(x));
    cross.setAttribute("visibility", "visible");
    const values = chart.lines.flatMap((line) => {
      const point = nearest(line.points, x);
      return point ? [chart.lines.length > 1 ? `${line.name} ${format(point[1])}`
        : format(point[1])] : [];
    });
    readout.textContent = `${chart.x} ${formatX(x)}: ${values.join(", ")}`;
  }

  /** A line's known point at x or near it: lines may have points at other places. */
  function nearest(points, x) {
    const far = (point) => Math.abs(point[0] - x);
    const found = points.filter(([, y]) => Number.isFinite(y))
      .reduce((best, point) => (best && far(best) <= far(point) ? best : point), null);
    return found && far(found) <= (state.scale.x1 - state.scale.x0) / 40 ? found : null;
  }

  function indexAt(event) {
    const left = event.clientX - plot.getBoundingClientRect().left;
    let best = null;
    xs.forEach((x, k) => {
      const far = Math.abs(state.scale.x(x) - left);
      if (best === null || far < best[0]) best = [far, k];
    });
    return best && best[1];
  }

  function draw() {
    const width = Math.max(plot.clientWidth, 160);
    state.scale = scales(chart, xs, width, height);
    plot.replaceChildren(drawing(chart, state.scale, width, height, format));
    show(state.at);
  }

  plot.addEventListener("pointermove", (event) => show(indexAt(event)));
  plot.addEventListener("pointerleave", () => show(null));
  plot.addEventListener("blur", () => show(null));
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined || !xs.length) return;
    event.preventDefault();
    readout.setAttribute("aria-live", "polite");
    const from = state.at ?? (step > 0 ? -1 : xs.length);
    show(Math.min(Math.max(from + step, 0), xs.length - 1));
  });
  new ResizeObserver(draw).observe(plot);
  readout.textContent = chart.rest ?? "";
  return h("figure", { class: "chart" },
    h("figcaption", {}, h("h4", {}, chart.title), readout), plot);
}

function scales(chart, xs, width, height) {
  const ys = chart.lines.flatMap((line) => line.points.map((point) => point[1]));
  const [x0, x1] = chart.xRange ?? span(xs);
  let [y0, y1] = chart.yRange ?? span(ys);
  if (!chart.yRange) {
    if (y0 > 0 && y0 < 0.6 * y1) y0 = 0;
    y1 += (y1 - y0) * 0.04;
  }
  const wide = width - MARGIN.left - MARGIN.right;
  const high = height - MARGIN.top - MARGIN.bottom;
  return {
    x: (x) => MARGIN.left + (wide * (x - x0)) / (x1 - x0),
    y: (y) => MARGIN.top + high - (high * (y - y0)) / (y1 - y0),
    xTicks: ticks(x0, x1, wide / 75), yTicks: ticks(y0, y1, high / 38), x0, x1, y0, y1,
  };
}

function drawing(chart, scale, width, height, format) {
  const bottom = height - MARGIN.bottom;
  const right = width - MARGIN.right;
  const said = chart.lines.map((line) => {
    const last = line.points.at(-1);
    return last ? `${line.name} ends at ${format(last[1])}` : `${line.name} has no values`;
  });
  const parts = [];
  for (const tick of scale.yTicks) {
    const y = scale.y(tick);
    parts.push(
      s("line", { class: "gridline", x1: MARGIN.left, x2: right, y1: y, y2: y }),
      s("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, String(tick)));
  }
  for (const tick of scale.xTicks) {
    parts.push(s("text", { x: scale.x(tick), y: bottom + 15, "text-anchor": "middle" },
      tick >= 1e4 ? count(tick) : String(tick)));
  }
  parts.push(
    s("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
    s("text", { x: right, y: height - 2, "text-anchor": "end" }, chart.x));
  for (const one of chart.columns ?? []) {
    const x = scale.x(one.from);
    const y = scale.y(one.value);
    parts.push(s("rect", { class: `column ${one.look}`, x: x + 0.5, y,
      width: Math.max(scale.x(one.to) - x - 1, 0.5), height: Math.max(bottom - y, 0) }));
  }
  if (chart.ideal) {
    parts.push(s("line", { class: "ideal", x1: scale.x(scale.x0), y1: scale.y(scale.x0),
      x2: scale.x(scale.x1), y2: scale.y(scale.x1) }));
  }
  for (const line of chart.lines) parts.push(...curve(line, scale));
  parts.push(s("line", { class: "cross", y1: MARGIN.top, y2: bottom, visibility: "hidden" }));
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${chart.title}: ${said.join("; ")}` }, parts);
}

/** A line's path, and a dot for each value where they are few. */
function curve(line, scale) {
  const known = line.points.filter(([, y]) => Number.isFinite(y));
  const places = known.map(([x, y]) => [scale.x(x).toFixed(1), scale.y(y).toFixed(1)]);
  const path = s("path", { class: `curve ${line.look} ${line.style ?? ""}`,
    d: places.length ? `M${places.map((place) => place.join(" ")).join("L")}` : null });
  if (known.length > 15 && !line.dots) return [path];
  return [path, ...places.map(([cx, cy]) =>
    s("circle", { class: `dot ${line.look}`, cx, cy, r: known.length > 1 ? 2.5 : 4 }))];
}

/** The numbers of charts with one x, as a table that opens. */
function chartNumbers(caption, xName, lines, format = short) {
  const xs = [...new Set(lines.flatMap((line) => line.points.map(([x]) => x)))]
    .sort((p, q) => p - q);
  const by = lines.map((line) => new Map(line.points));
  const box = h("details", {}, h("summary", {}, "As a table"));
  box.addEventListener("toggle", () => {
    if (box.children.length > 1) return;
    box.append(table(caption,
      [{ name: xName, number: true }, ...lines.map((line) => ({ name: line.name, number: true }))],
      xs.map((x) => [short(x), ...by.map((of) => format(of.get(x)))]), { tall: true }));
  });
  return box;
}
