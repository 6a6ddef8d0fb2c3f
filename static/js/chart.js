// Curves by uPlot from [data-chart]: data-series JSON, points appended from `metric` events,
// a table with the same numbers, redrawn when the theme changes or the reader chooses another axis.
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3], [1, 2], [12, 4]];
const MAX_POINTS = 4000;
const WEIGHT = 0.9;
const KEY = "stillhouse.charts";
const charts = new Map();
const chosen = new Set(remembered());

function remembered() {
  try {
    return (localStorage.getItem(KEY) ?? "").split(" ").filter((word) => ["log", "smooth"].includes(word));
  } catch {
    return []; // storage may be off; a choice then lasts for the page
  }
}

function choose(word) {
  chosen.delete(word) || chosen.add(word);
  try {
    localStorage.setItem(KEY, [...chosen].join(" "));
  } catch {
    // see remembered()
  }
  mark();
  charts.forEach((chart) => chart.draw());
}

function mark() {
  for (const button of document.querySelectorAll("[data-chart-choice]")) {
    button.setAttribute("aria-pressed", String(chosen.has(button.dataset.chartChoice)));
  }
}

// Mean whose weights fall by WEIGHT a point, made fair to the first points as in Adam.
function smooth(values) {
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = WEIGHT * mean + (1 - WEIGHT) * value;
    weight = WEIGHT * weight + (1 - WEIGHT);
    return mean / weight;
  });
}

function css(name) {
  // Resolve light-dark() by asking a real element for its colour.
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

function tick(value) {
  if (value === null) return "";
  const small = value !== 0 && Math.abs(value) < 0.001;
  const text = small ? value.toExponential(2) : new Intl.NumberFormat("en", { maximumSignificantDigits: 4 }).format(value);
  return text.replaceAll("-", "−");
}

class Chart {
  constructor(root) {
    this.root = root;
    this.plot = root.querySelector("[data-plot]");
    this.twin = root.querySelector("[data-twin]");
    this.note = root.querySelector("[data-chart-note]");
    this.digits = Number(root.dataset.digits);
    this.source = root.dataset.series;
    this.series = JSON.parse(this.source).map((s) => ({ ...s, points: new Map(s.points) }));
    this.uplot = null;
    this.pending = false;
    this.draw();
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.plot);
  }

  data() {
    const steps = [...new Set(this.series.flatMap((s) => [...s.points.keys()]))].sort((a, b) => a - b);
    return [steps, ...this.series.map((s) => steps.map((step) => s.points.get(step) ?? null))];
  }

  // What is drawn: raw values, smooth ones after them; a logarithmic axis has no place for 0 and less.
  drawn() {
    const [steps, ...raw] = this.data();
    const columns = chosen.has("smooth") ? [...raw, ...raw.map(smooth)] : raw;
    const left = raw.flat().filter((value) => value !== null && value <= 0).length;
    const any = raw.flat().some((value) => value > 0);
    const log = chosen.has("log") && (any || !left);
    const missing = left ? `; ${left} ${left === 1 ? "value" : "values"} of 0 or less not drawn` : "";
    this.note.textContent = log ? `logarithmic axis${missing}` : "no value above 0: linear axis";
    this.note.hidden = !chosen.has("log");
    return { log, data: [steps, ...(log ? columns.map((c) => c.map((v) => (v > 0 ? v : null))) : columns)] };
  }

  options() {
    const axis = { stroke: css("--muted"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 }, font: "11px system-ui" };
    const fade = chosen.has("smooth");
    const y = this.log ? { distr: 3, range: (_, low, high) => (low === null ? [0.1, 1] : [low / 1.2, high * 1.2]) } : {};
    const lines = (label, look) =>
      this.series.map((s, i) => ({
        label: label(s),
        // A run keeps its colour in every chart and table of a page.
        stroke: css(`--s${((s.colour ?? i) % 6) + 1}`),
        dash: DASHES[(s.colour ?? i) % 6],
        spanGaps: true,
        value: (_, value) => (value === null ? "—" : value.toFixed(this.digits).replace("-", "−")),
        ...look,
      }));
    return {
      width: Math.max(this.plot.clientWidth, 240),
      height: 240,
      scales: { x: { time: false }, y },
      axes: [{ ...axis }, { ...axis, size: 64, values: (_, ticks) => ticks.map(tick) }],
      series: [
        { label: this.root.dataset.x },
        ...lines((s) => s.label, fade ? { width: 1, alpha: 0.4 } : { width: 1.5 }),
        ...(fade ? lines((s) => `${s.label}, smooth`, { width: 2 }) : []),
      ],
    };
  }

  draw() {
    const { log, data } = this.drawn();
    this.log = log;
    this.uplot?.destroy();
    this.uplot = new uPlot(this.options(), data, this.plot);
    this.table();
  }

  resize() {
    this.uplot?.setSize({ width: Math.max(this.plot.clientWidth, 240), height: 240 });
  }

  append(step, values) {
    let changed = false;
    for (const series of this.series) {
      const value = values[series.name];
      if (value === undefined || value === null) continue;
      series.points.set(step, value);
      if (series.points.size > MAX_POINTS) series.points.delete(series.points.keys().next().value);
      changed = true;
    }
    if (!changed || this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      const { log, data } = this.drawn();
      if (log !== this.log) return this.draw();
      this.uplot.setData(data);
      this.table();
    });
  }

  table() {
    if (this.twin.hidden) return;
    const [steps, ...columns] = this.data();
    const table = document.createElement("table");
    table.className = "t";
    const head = table.createTHead().insertRow();
    for (const [i, label] of [this.root.dataset.x, ...this.series.map((s) => s.label)].entries()) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = label;
      if (i) cell.className = "num";
      head.append(cell);
    }
    const body = table.createTBody();
    for (let at = steps.length - 1; at >= 0; at -= 1) {
      const row = body.insertRow();
      const first = document.createElement("th");
      first.scope = "row";
      first.textContent = new Intl.NumberFormat("en").format(steps[at]);
      row.append(first);
      for (const column of columns) {
        const cell = row.insertCell();
        cell.className = "num";
        cell.textContent = column[at] === null ? "—" : column[at].toFixed(this.digits).replace("-", "−");
      }
    }
    this.twin.replaceChildren(table);
  }

  toggle(button) {
    this.twin.hidden = !this.twin.hidden;
    button.setAttribute("aria-pressed", String(!this.twin.hidden));
    this.table();
  }

  close() {
    this.observer.disconnect();
    this.uplot?.destroy();
  }
}

function scan() {
  for (const [root, chart] of charts) {
    // A morph keeps the element and may give it other curves.
    if (!root.isConnected || root.dataset.series !== chart.source) {
      chart.close();
      charts.delete(root);
    }
  }
  mark();
  for (const root of document.querySelectorAll("[data-chart]")) {
    if (!charts.has(root)) charts.set(root, new Chart(root));
  }
}

addEventListener("themechange", () => charts.forEach((chart) => chart.draw()));
document.addEventListener("htmx:after:swap", scan);
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-chart-twin]");
  if (button) charts.get(button.closest("[data-chart]"))?.toggle(button);
  const choice = event.target.closest("[data-chart-choice]");
  if (choice) choose(choice.dataset.chartChoice);
});
document.addEventListener("metric", (event) => {
  const { step, values } = JSON.parse(event.detail.data);
  charts.forEach((chart) => chart.append(step, values));
});
scan();
