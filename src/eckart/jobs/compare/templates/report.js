"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const known = (value) => value !== null && value !== undefined;

  /* ---- elements ---- */

  function html(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function trim(value, digits) {
    return String(Number(value.toPrecision(digits)));
  }

  /* ---- drawing: each host shows one chart; a new one waits for the last ---- */

  const shown = new Map();

  function draw(host, chart, rows, { patch, ready } = {}) {
    const spec = { ...chart, datasets: { rows } };
    const options = { ast: true, renderer: "svg", actions: false, tooltip: false, defaultStyle: false, config: data.charts.config, patch };
    const next = (shown.get(host) ?? Promise.resolve()).then(async (before) => {
      before?.finalize();
      const drawn = await vegaEmbed(host, spec, options);
      ready?.(drawn.view);
      return drawn;
    });
    shown.set(host, next);
  }

  function clear(host, words) {
    shown.set(host, (shown.get(host) ?? Promise.resolve()).then((before) => {
      before?.finalize();
      host.replaceChildren(html("p", { class: "empty" }, words));
    }));
  }

  /* ---- tooltip ---- */

  const tip = byId("tip");

  function showTip(anchor, title, lines) {
    tip.replaceChildren(html("b", {}, title), ...lines.map(([name, text]) => html("div", {}, html("span", {}, name), html("span", {}, text))));
    tip.hidden = false;
    const left = anchor.x + 14 + tip.offsetWidth > document.documentElement.clientWidth ? anchor.x - 14 - tip.offsetWidth : anchor.x + 14;
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${Math.max(8, anchor.y - tip.offsetHeight - 10) + window.scrollY}px`;
  }

  function hideTip() { tip.hidden = true; }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  /* ---- leaderboard ---- */

  const [lowest, highest] = data.metric.range;
  const outside = (arm) => (arm.values.score > highest) - (arm.values.score < lowest);

  function drawIntervals() {
    for (const host of document.querySelectorAll(".interval-drawn")) {
      const arm = data.arms[Number(host.dataset.arm)];
      if (!known(arm.values.score)) continue;
      const [low, high] = arm.interval.every(known) ? arm.interval : [null, null];
      draw(host, data.charts.interval, [{ score: arm.values.score, outside: outside(arm), near: arm.near, low, high }]);
    }
    for (const host of document.querySelectorAll(".ticks")) draw(host, data.charts.ticks, [{ score: lowest }]);
  }

  /* ---- Pareto front ---- */

  const greater = (key) => key === "score" && data.greaterIsBetter;

  /* An axis: logarithmic where the quantity is a cost, all its values are positive and they span a factor of ten. */
  function axis(key, values) {
    const { axis, ...channel } = data.charts.axes[key];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const log = key !== "score" && low > 0 && high >= 10 * low;
    const scale = log ? { type: "log", nice: false } : { type: "linear", zero: false };
    const words = log ? { title: `${axis.title} (logarithmic)`, tickCount: Math.max(2, Math.min(Math.floor(Math.log10(high / low)), 6)) } : {};
    return { ...channel, scale: { ...scale, padding: 24 }, axis: { ...axis, ...words } };
  }

  /* A score far from all others (a run at chance) stands at the edge and says so, instead of squeezing the rest. */
  function place(arm, key) {
    return key === "score" ? Math.min(Math.max(arm.values.score, lowest), highest) : arm.values[key];
  }

  function point(arm, x, y, front) {
    const far = outside(arm) !== 0;
    const ends = (key) => (key === "score" && !far && arm.interval.every(known) ? arm.interval : [place(arm, key), place(arm, key)]);
    const name = arm.label.length > 24 ? arm.label.slice(0, 23) + "…" : arm.label;
    const [xTitle, yTitle] = [x, y].map((key) => data.charts.axes[key].axis.title);
    return {
      id: arm.id,
      front,
      x: place(arm, x), y: place(arm, y),
      x_low: ends(x)[0], x_high: ends(x)[1], y_low: ends(y)[0], y_high: ends(y)[1],
      shape: arm.method === "lora" ? "square" : arm.budgeted ? "circle" : "diamond",
      name: far && [x, y].includes("score") ? `${name} (off the scale: ${arm.shown.score})` : name,
      words: `${arm.label}: ${xTitle} ${arm.shown[x]}, ${yTitle} ${arm.shown[y]}, ${front ? "on the front" : "dominated"}`,
      tail: {},
    };
  }

  /* The chart with its axes, and with the staircase on the side where nothing is better. */
  function paretoChart(rows, x, y) {
    const chart = structuredClone(data.charts.pareto);
    const ends = (key) => rows.flatMap((row) => [row[key], row[`${key}_low`], row[`${key}_high`]]);
    chart.description = `${data.charts.axes[y].axis.title} against ${data.charts.axes[x].axis.title}`;
    chart.encoding = { x: { field: "x", ...axis(x, ends("x")) }, y: { field: "y", ...axis(y, ends("y")) } };
    const layer = (name) => chart.layer.find((part) => part.name === name);
    layer("front").mark.interpolate = greater(x) ? "step-before" : "step-after";
    layer("tail-x").encoding.x2.value = greater(x) ? 0 : "width";
    layer("tail-y").encoding.y2.value = greater(y) ? "height" : 0;
    const front = rows.filter((row) => row.front).sort((a, b) => a.x - b.x);
    if (greater(x)) front.reverse();
    front.at(-1).tail.x = true;
    front[0].tail.y = true;
    return chart;
  }

  /* Names beside their points where there is room, the front's first, and on the side of it where no point is. */
  function placeNames(spec, x, y) {
    const [up, down] = greater(y) ? ["top", "bottom"] : ["bottom", "top"];
    const [out, back] = greater(x) ? ["right", "left"] : ["left", "right"];
    const names = spec.marks.find((mark) => mark.name === "names_marks");
    names.transform = [{
      type: "label", size: { signal: "[max(width, 1), height]" }, avoidMarks: ["points_marks"], padding: 0,
      sort: { field: "datum.front", order: "descending" }, offset: [10],
      anchor: [`${up}-${out}`, back, out, `${up}-${back}`, `${down}-${back}`, `${down}-${out}`, up, down],
    }];
    return spec;
  }

  function tell(event, arm) {
    const at = event.target.getBoundingClientRect();
    showTip({ x: at.left + at.width / 2, y: at.top }, arm.label, [
      [data.metric.name, `${arm.shown.score} (${arm.intervalShown})`],
      ...Object.entries(data.quantities).map(([key, item]) => [item.label, arm.shown[key]]),
    ]);
  }

  function drawPareto() {
    const host = byId("pareto");
    const [x, y] = [byId("pareto-x").value, byId("pareto-y").value];
    const everyone = byId("pareto-all").checked;
    const arms = data.arms.filter((arm) => (everyone || arm.budgeted) && known(arm.values[x]) && known(arm.values[y]));
    const caption = byId("pareto-front");
    hideTip();
    caption.textContent = "";
    if (!arms.length) {
      clear(host, "No method has both numbers yet.");
      return;
    }
    const front = new Set(data.fronts[[x, y].sort().join("|")][everyone ? 0 : 1]);
    const rows = arms.map((arm) => point(arm, x, y, front.has(arm.id))).sort((a, b) => a.front - b.front || a.x - b.x);
    draw(host, paretoChart(rows, x, y), rows, {
      patch: (spec) => placeNames(spec, x, y),
      ready: () => host.querySelectorAll(".points_marks path").forEach((mark, i) => {
        mark.setAttribute("tabindex", 0);
        for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, (e) => tell(e, data.arms[rows[i].id]));
        for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, hideTip);
      }),
    });
    const names = rows.filter((row) => row.front).map((row) => data.arms[row.id].label);
    const whiskers = [x, y].includes("score") ? " Whiskers are the 95% intervals: points whose whiskers meet may trade places." : "";
    caption.textContent = `On the front (no other method is better in one without being worse in the other): ${names.join(", ")}.${whiskers}`;
  }

  function setUpPareto() {
    const [x, y] = [byId("pareto-x"), byId("pareto-y")];
    const last = { x: x.value, y: y.value };
    const choose = () => {
      if (x.value === y.value) { /* the same quantity twice: swap the axes */
        if (x.value !== last.x) y.value = last.x; else x.value = last.y;
      }
      [last.x, last.y] = [x.value, y.value];
      drawPareto();
    };
    for (const control of [x, y, byId("pareto-all")]) control.addEventListener("change", choose);
  }

  /* ---- learning curves ---- */

  const visible = new Set();

  function curvesChart(series) {
    const chart = structuredClone(data.charts.curves);
    chart.description = `Learning curves, ${series.name}`;
    const labels = series.measure === "score" ? data.charts.axes.score.axis : {};
    for (const { encoding } of chart.layer.slice(0, 2)) encoding.y.axis = { ...labels, title: series.name };
    return chart;
  }

  function drawCurves() {
    const host = byId("curves");
    const series = data.curves[Number(byId("curve-series").value)];
    const arms = data.arms.filter((arm) => visible.has(arm.id) && series.lines[arm.id]);
    hideTip();
    if (!arms.length) {
      clear(host, "No method is chosen: tick one below.");
      return;
    }
    const rows = arms.flatMap((arm) => series.lines[arm.id].map(([step, mean, low, high]) => (
      { id: arm.id, label: arm.label, step, mean, low, high, colour: arm.colour, dash: arm.budgeted ? [1, 0] : [7, 4] })));
    draw(host, curvesChart(series), rows, { ready: (view) => readValues(host, view, arms, series) });
  }

  /* A cursor that names the values at a step: pointer, or arrow keys on the focused chart. */
  function readValues(host, view, arms, series) {
    const chart = host.querySelector("svg");
    const sheet = chart.querySelector(".role-frame path.background");
    const steps = [...new Set(arms.flatMap((arm) => series.lines[arm.id].map((row) => row[0])))].sort((a, b) => a - b);
    const upward = series.measure === "score" && data.greaterIsBetter;
    const at = (step) => view.scale("x")(step);
    let place = steps.length - 1;
    const written = (value) => (series.measure === "score" ? (value * data.metric.scale).toFixed(data.metric.decimals) + data.metric.suffix : trim(value, 4));
    const show = () => {
      view.signal("place", at(steps[place])).run();
      const values = arms.map((arm) => [arm.label, series.lines[arm.id].find((row) => row[0] === steps[place])]).filter(([, row]) => row)
        .sort((a, b) => (upward ? b[1][1] - a[1][1] : a[1][1] - b[1][1]))
        .map(([label, row]) => [label, written(row[1])]);
      const around = sheet.getBoundingClientRect();
      showTip({ x: around.left + at(steps[place]) * (around.width / view.width()), y: around.top + around.height / 2 }, `step ${steps[place]}`, values);
    };
    const hide = () => { view.signal("place", null).run(); hideTip(); };
    chart.setAttribute("tabindex", "0");
    chart.setAttribute("aria-label", host.ariaLabel);
    chart.addEventListener("pointermove", (event) => {
      const around = sheet.getBoundingClientRect();
      const where = (event.clientX - around.left) * (view.width() / around.width);
      const distance = (step) => Math.abs(at(step) - where);
      place = steps.reduce((best, step, i) => (distance(step) < distance(steps[best]) ? i : best), 0);
      show();
    });
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      if (view.signal("place") !== null) place = Math.min(Math.max(place + move, 0), steps.length - 1);
      show();
    });
  }

  function setUpCurves() {
    const select = byId("curve-series");
    const legend = byId("curve-legend");
    select.append(...data.curves.map((series, i) => html("option", { value: i }, series.name)));
    const drawn = data.arms.filter((arm) => data.curves.some((series) => series.lines[arm.id]));
    const leaders = drawn.filter((arm) => arm.budgeted && arm.method !== "lora").slice(0, 4);
    const boxes = drawn.map((arm) => {
      const box = html("input", { type: "checkbox", value: arm.id });
      box.checked = leaders.includes(arm) || !arm.budgeted || arm.method === "lora";
      const label = html("label", {}, box, html("span", { class: arm.budgeted ? "swatch" : "swatch dashed", style: `--c: ${arm.colour}` }), html("span", {}, arm.label));
      const focus = async (id) => (await shown.get(byId("curves")))?.view.signal("focus", id).run();
      label.addEventListener("pointerenter", () => focus(box.checked ? arm.id : null));
      label.addEventListener("pointerleave", () => focus(null));
      legend.append(label);
      return box;
    });
    const update = () => {
      visible.clear();
      boxes.filter((box) => box.checked).forEach((box) => visible.add(Number(box.value)));
      drawCurves();
      drawRates();
    };
    const setAll = (on) => { boxes.forEach((box) => { box.checked = on; }); update(); };
    boxes.forEach((box) => box.addEventListener("change", update));
    select.addEventListener("change", update);
    byId("curves-all").addEventListener("click", () => setAll(true));
    byId("curves-none").addEventListener("click", () => setAll(false));
    update();
  }

  /* ---- score against learning rate ---- */

  function drawRates() {
    const host = byId("rates");
    if (!host) return;
    const arms = data.arms.filter((arm) => visible.has(arm.id));
    const rows = arms.flatMap((arm) => {
      const mine = data.rates.filter(([id]) => id === arm.id);
      return mine.map(([id, lr, score, chosen], i) => ({ id, lr, score, chosen, label: arm.label, colour: arm.colour, name: i === mine.length - 1 ? arm.label : "" }));
    });
    if (!rows.length) clear(host, "No method with several learning rates is chosen.");
    else draw(host, { ...structuredClone(data.charts.rates), description: "Validation score against learning rate" }, rows);
  }

  /* ---- the user's limits ---- */

  /* A slider runs over the values that the methods have; at its right end it limits nothing. */
  function setUpLimits() {
    const sliders = [...document.querySelectorAll("#limits input")];
    const table = byId("leaderboard");
    if (!table) return;
    const values = (key) => [...new Set(data.arms.map((arm) => arm.values[key]).filter(known))].sort((a, b) => a - b);
    for (const slider of sliders) {
      slider.max = Math.max(values(slider.dataset.quantity).length - 1, 0);
      slider.value = slider.max;
    }
    const apply = () => {
      const over = new Set();
      for (const slider of sliders) {
        const key = slider.dataset.quantity;
        const all = values(key);
        const free = slider.value === slider.max;
        const most = all[Number(slider.value)];
        const at = data.arms.find((arm) => arm.values[key] === most);
        slider.nextElementSibling.textContent = free || !at ? "any" : at.shown[key];
        if (!free) data.arms.filter((arm) => known(arm.values[key]) && arm.values[key] > most).forEach((arm) => over.add(arm.id));
      }
      for (const row of table.tBodies[0].rows) row.classList.toggle("over", over.has(Number(row.querySelector("[data-arm]").dataset.arm)));
      const left = data.arms.filter((arm) => arm.near && !over.has(arm.id)).map((arm) => arm.label);
      byId("limits-answer").textContent = !over.size ? "" : left.length
        ? `Within these limits and not told from the best: ${left.join(", ")}.`
        : "Every method that cannot be told from the best is over a limit: run the command with --max-… to judge the others among themselves.";
    };
    sliders.forEach((slider) => slider.addEventListener("input", apply));
  }

  /* ---- tables ---- */

  /* Missing values stay last in both directions; equal ones keep their order. */
  function sortRows(table, column, direction) {
    const body = table.tBodies[0];
    const value = (row) => row.cells[column].dataset.value ?? "";
    const rows = [...body.rows];
    const numeric = rows.every((row) => value(row) === "" || Number.isFinite(Number(value(row))));
    const compare = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
    rows.sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === "");
      return direction * compare(left, right);
    });
    body.append(...rows);
  }

  function makeSortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!("sort" in head.dataset)) return;
      const button = html("button", { type: "button" }, head.textContent.trim());
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sortRows(table, column, down ? -1 : 1);
      });
      head.replaceChildren(button);
    });
  }

  function setUpFilter() {
    const [search, stage, status] = [byId("run-search"), byId("run-stage"), byId("run-status")];
    const rows = [...byId("runs").tBodies[0].rows];
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !(words.every((word) => text.includes(word))
          && (!stage.value || row.dataset.stage === stage.value) && (!status.value || row.dataset.status === status.value));
        shown += !row.hidden;
      }
      byId("run-count").textContent = shown === rows.length ? `${shown} runs` : `${shown} of ${rows.length} runs`;
    };
    for (const control of [search, stage, status]) control.addEventListener("input", filter);
  }

  /* ---- start ---- */

  document.querySelectorAll("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  setUpFilter();
  drawIntervals();
  if (byId("pareto")) { setUpPareto(); drawPareto(); }
  setUpLimits();
  if (byId("curves")) setUpCurves();
})();
