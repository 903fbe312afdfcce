"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const known = (value) => value !== null && value !== undefined;

  /* ---- elements ---- */

  function svg(name, attributes = {}, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function html(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  /* ---- numbers: scales, ticks and their labels ---- */

  function trim(value, digits) {
    return String(Number(value.toPrecision(digits)));
  }

  function tickLabel(kind, value) {
    if (kind === "score") return trim(value * data.metric.scale, 6) + data.metric.suffix;
    if (kind === "ratio") return trim(value, 4) + "×";
    if (kind === "seconds") return value < 120 ? trim(value, 4) + " s" : trim(value / 60, 4) + " min";
    const units = { count: ["", "k", "M", "G"], bytes: [" B", " kB", " MB", " GB"], megabytes: [" MB", " GB"] }[kind];
    if (!units) return trim(value, 5);
    let power = 0;
    while (value >= 1000 && power < units.length - 1) { value /= 1000; power += 1; }
    return trim(value, 4) + units[power];
  }

  function linearTicks(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const ticks = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i += 1) ticks.push(i * step);
    return ticks;
  }

  function logTicks(low, high, count) {
    for (const factors of [[1, 2, 5], [1, 3], [1]]) {
      const ticks = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
        for (const f of factors) if (f * 10 ** e >= low && f * 10 ** e <= high) ticks.push(f * 10 ** e);
      }
      if (ticks.length <= count || factors.length === 1) return ticks;
    }
    return [];
  }

  /* A scale over values: logarithmic where all are positive, the quantity allows it and they span a factor of ten. */
  function scale(values, start, end, { logarithmic = false, whole = false, count = 6, margin = 0.07 } = {}) {
    let low = Math.min(...values);
    let high = Math.max(...values);
    const log = logarithmic && low > 0 && high / low >= 10;
    const to = log ? Math.log10 : (v) => v;
    const from = log ? (v) => 10 ** v : (v) => v;
    const pad = (to(high) - to(low)) * margin || Math.abs(to(high)) * 0.05 || 1;
    low = to(low) - pad;
    high = to(high) + pad;
    const at = (value) => start + ((to(value) - low) / (high - low)) * (end - start);
    const ticks = log ? logTicks(from(low), from(high), count) : linearTicks(low, high, count);
    return { at, ticks: ticks.filter((tick) => !whole || Number.isInteger(tick)), log };
  }

  /* ---- the frame that both charts share ---- */

  function frame(host, { label, height, xs, ys, x, y }) {
    const width = Math.max(host.clientWidth, 280);
    const box = { left: 62, right: width - 14, top: 32, bottom: height - 46 };
    const across = scale(xs, box.left, box.right, { count: Math.max(3, Math.floor(width / 110)), ...x });
    const up = scale(ys, box.bottom, box.top, { count: 6, ...y });
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
    for (const tick of across.ticks) {
      root.append(
        svg("line", { class: "grid", x1: across.at(tick), x2: across.at(tick), y1: box.top, y2: box.bottom }),
        svg("text", { x: across.at(tick), y: box.bottom + 18, "text-anchor": "middle" }, tickLabel(x.kind, tick)));
    }
    for (const tick of up.ticks) {
      root.append(
        svg("line", { class: "grid", x1: box.left, x2: box.right, y1: up.at(tick), y2: up.at(tick) }),
        svg("text", { x: box.left - 8, y: up.at(tick) + 4, "text-anchor": "end" }, tickLabel(y.kind, tick)));
    }
    root.append(
      svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
      svg("text", { x: box.right, y: height - 8, "text-anchor": "end" }, x.title + (across.log ? " (logarithmic)" : "")),
      svg("text", { x: 2, y: 14 }, "↑ " + y.title + (up.log ? " (logarithmic)" : "")));
    host.replaceChildren(root);
    return { root, box, width, height, across, up };
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

  /* ---- Pareto front ---- */

  function quantity(key) {
    if (key === "score") return { key, kind: "score", title: `${data.metric.name} (${data.greaterIsBetter ? "higher" : "lower"} is better)`, greater: data.greaterIsBetter, logarithmic: false };
    const { kind, label } = data.quantities[key];
    return { key, kind, title: label, greater: false, logarithmic: true };
  }

  /* A score far from all others (a run at chance) stands at the edge and says so, instead of squeezing the rest. */
  const [lowest, highest] = data.metric.range;
  const isFar = (arm) => arm.values.score < lowest || arm.values.score > highest;
  const place = (arm, q) => (q.key === "score" ? Math.min(Math.max(arm.values.score, lowest), highest) : arm.values[q.key]);

  /* The border of what the front beats, as steps, and its two tails to the edges of the plot. */
  function staircase(corners, x, y, { box }) {
    const sorted = [...corners].sort((a, b) => a.px - b.px);
    const steps = sorted.map((c, i) => {
      if (i === 0) return `M${c.px},${c.py}`;
      return x.greater ? `V${c.py}H${c.px}` : `H${c.px}V${c.py}`;
    });
    const first = sorted[0];
    const last = sorted[sorted.length - 1];
    const worstY = y.greater ? box.bottom : box.top;
    const tails = x.greater
      ? [`M${first.px},${first.py}H${box.left}`, `M${last.px},${last.py}V${worstY}`]
      : [`M${first.px},${first.py}V${worstY}`, `M${last.px},${last.py}H${box.right}`];
    return { line: steps.join(""), tails: tails.join("") };
  }

  /* Labels beside their points where there is room, the front's first. */
  function placeLabels(points, y, showsScore, { box }) {
    const clear = y.greater ? -11 : 20; /* the side of the staircase where no point is */
    const marks = points.map(({ px, py }) => [px - 9, py - 7, px + 9, py + 7]);
    const labels = [];
    const apart = ([l, t, r, b], [l2, t2, r2, b2]) => r <= l2 || l >= r2 || b <= t2 || t >= b2;
    const free = (area, own) => area[0] >= 0 && area[2] <= box.right + 12 && area[1] >= box.top - 12 && area[3] <= box.bottom
      && labels.every((label) => apart(area, label)) && marks.every((mark, i) => points[i] === own || apart(area, mark));
    for (const point of [...points].sort((a, b) => b.front - a.front)) {
      const { px, py, arm } = point;
      const name = arm.label.length > 24 ? arm.label.slice(0, 23) + "…" : arm.label;
      const text = isFar(arm) && showsScore ? `${name} (off the scale: ${arm.shown.score})` : name;
      const width = 6.7 * text.length + 2;
      const beside = [[px + 12, py + 4, "start"], [px - 12, py + 4, "end"]];
      const above = [[px - 5, py - 11, "end"], [px - 5, py + 20, "end"], [px + 5, py - 11, "start"], [px + 5, py + 20, "start"]];
      const places = point.front ? [[px - 5, py + clear, "end"], ...above, ...beside] : [...beside, ...above];
      for (const [x, y, anchor] of places) {
        const left = anchor === "start" ? x : x - width;
        const around = [left, y - 11, left + width, y + 3];
        if (free(around, point)) {
          labels.push(around);
          point.node.append(svg("text", { x, y, "text-anchor": anchor }, text));
          break;
        }
      }
    }
  }

  function marker(arm, px, py) {
    if (arm.method === "lora") return svg("rect", { class: "mark", x: px - 5.5, y: py - 5.5, width: 11, height: 11 });
    if (!arm.budgeted) return svg("path", { class: "mark", d: `M${px},${py - 7.5}l7.5,7.5l-7.5,7.5l-7.5,-7.5z` });
    return svg("circle", { class: "mark", cx: px, cy: py, r: 6 });
  }

  function drawPareto() {
    const host = byId("pareto");
    const x = quantity(byId("pareto-x").value);
    const y = quantity(byId("pareto-y").value);
    const everyone = byId("pareto-all").checked;
    const arms = data.arms.filter((arm) => (everyone || arm.budgeted) && known(arm.values[x.key]) && known(arm.values[y.key]));
    const caption = byId("pareto-front");
    hideTip();
    if (!arms.length) {
      host.replaceChildren(html("p", { class: "empty" }, "No method has both numbers yet."));
      caption.textContent = "";
      return;
    }
    const ends = (q) => arms.flatMap((arm) => [place(arm, q), ...(q.key === "score" && !isFar(arm) ? arm.interval.filter(known) : [])]);
    const chart = frame(host, { label: `Pareto front of ${y.title} against ${x.title}`, height: 420, xs: ends(x), ys: ends(y), x, y });
    const front = new Set(data.fronts[[x.key, y.key].sort().join("|")][everyone ? 0 : 1]);
    const points = arms.map((arm) => ({
      arm, front: front.has(arm.id), px: chart.across.at(place(arm, x)), py: chart.up.at(place(arm, y)),
    }));
    const border = staircase(points.filter((point) => point.front), x, y, chart);
    chart.root.append(svg("path", { class: "front-tail", d: border.tails }), svg("path", { class: "front-line", d: border.line }));
    for (const point of points.sort((a, b) => a.front - b.front || a.px - b.px)) {
      const { arm, px, py } = point;
      const words = `${arm.label}: ${x.title} ${arm.shown[x.key]}, ${y.title} ${arm.shown[y.key]}, ${point.front ? "on the front" : "dominated"}`;
      point.node = svg("g", { class: point.front ? "point front" : "point dominated", tabindex: 0, role: "img", "aria-label": words, "data-method": arm.method });
      if (arm.interval.every(known) && !isFar(arm)) {
        const [low, high] = arm.interval;
        if (y.key === "score") point.node.append(svg("line", { class: "whiskers", x1: px, x2: px, y1: chart.up.at(low), y2: chart.up.at(high) }));
        if (x.key === "score") point.node.append(svg("line", { class: "whiskers", y1: py, y2: py, x1: chart.across.at(low), x2: chart.across.at(high) }));
      }
      point.node.append(svg("circle", { class: "halo", cx: px, cy: py, r: 11 }), marker(arm, px, py));
      const show = () => {
        const at = point.node.querySelector(".halo").getBoundingClientRect();
        showTip({ x: at.left + at.width / 2, y: at.top }, arm.label, [
          [data.metric.name, `${arm.shown.score} (${arm.intervalShown})`],
          ...Object.entries(data.quantities).map(([key, item]) => [item.label, arm.shown[key]]),
        ]);
      };
      for (const event of ["pointerenter", "focus"]) point.node.addEventListener(event, show);
      for (const event of ["pointerleave", "blur"]) point.node.addEventListener(event, hideTip);
      chart.root.append(point.node);
    }
    const showsScore = [x.key, y.key].includes("score");
    placeLabels(points, y, showsScore, chart);
    const names = points.filter((point) => point.front).map((point) => point.arm.label);
    const whiskers = showsScore ? " Whiskers are the 95% intervals: points whose whiskers meet may trade places." : "";
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

  function drawCurves() {
    const host = byId("curves");
    const series = data.curves[Number(byId("curve-series").value)];
    const arms = data.arms.filter((arm) => visible.has(arm.id) && series.lines[arm.id]);
    hideTip();
    if (!arms.length) {
      host.replaceChildren(html("p", { class: "empty" }, "No method is chosen: tick one below."));
      return;
    }
    const rows = arms.flatMap((arm) => series.lines[arm.id]);
    const kind = series.measure === "score" ? "score" : "plain";
    const chart = frame(host, {
      label: `Learning curves, ${series.name}`, height: 380, xs: rows.map((row) => row[0]), ys: rows.flatMap((row) => [row[2], row[3]]),
      x: { kind: "count", whole: true, title: "training step", margin: 0.02 }, y: { kind, title: series.name, margin: 0.04 },
    });
    for (const arm of arms) {
      const points = series.lines[arm.id].map(([step, ...values]) => [chart.across.at(step), ...values.map(chart.up.at)]);
      const path = (pick) => points.map((p) => `${p[0].toFixed(1)},${p[pick].toFixed(1)}`);
      chart.root.append(svg("g", { class: `curve ${arm.style}`, "data-id": arm.id, "data-method": arm.method },
        svg("path", { class: "range", d: `M${[...path(2), ...path(3).reverse()].join("L")}Z` }),
        svg("path", { class: `line ${arm.style}`, d: `M${path(1).join("L")}` })));
    }
    readValues(chart, arms, series, kind);
  }

  /* A cursor that names the values at a step: pointer, or arrow keys on the focused chart. */
  function readValues(chart, arms, series, kind) {
    const steps = [...new Set(arms.flatMap((arm) => series.lines[arm.id].map((row) => row[0])))].sort((a, b) => a - b);
    const cursor = svg("line", { class: "cursor", y1: chart.box.top, y2: chart.box.bottom, visibility: "hidden" });
    const sheet = svg("rect", { x: chart.box.left, y: chart.box.top, width: chart.box.right - chart.box.left, height: chart.box.bottom - chart.box.top, fill: "transparent" });
    chart.root.append(cursor, sheet);
    chart.root.setAttribute("tabindex", "0");
    const upward = series.measure === "score" && data.greaterIsBetter;
    let place = steps.length - 1;
    const show = () => {
      const at = chart.across.at(steps[place]);
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      cursor.setAttribute("visibility", "visible");
      const values = arms.map((arm) => [arm.label, series.lines[arm.id].find((row) => row[0] === steps[place])]).filter(([, row]) => row)
        .sort((a, b) => (upward ? b[1][1] - a[1][1] : a[1][1] - b[1][1]))
        .map(([label, row]) => [label, kind === "score" ? (row[1] * data.metric.scale).toFixed(data.metric.decimals) + data.metric.suffix : trim(row[1], 4)]);
      const around = sheet.getBoundingClientRect();
      const ratio = around.width / (chart.box.right - chart.box.left);
      showTip({ x: around.left + (at - chart.box.left) * ratio, y: around.top + around.height / 2 }, `step ${steps[place]}`, values);
    };
    const hide = () => { cursor.setAttribute("visibility", "hidden"); hideTip(); };
    sheet.addEventListener("pointermove", (event) => {
      const around = sheet.getBoundingClientRect();
      const at = chart.box.left + ((event.clientX - around.left) / around.width) * (chart.box.right - chart.box.left);
      const distance = (step) => Math.abs(chart.across.at(step) - at);
      place = steps.reduce((best, step, i) => (distance(step) < distance(steps[best]) ? i : best), 0);
      show();
    });
    sheet.addEventListener("pointerleave", hide);
    chart.root.addEventListener("blur", hide);
    chart.root.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      if (cursor.getAttribute("visibility") === "visible") place = Math.min(Math.max(place + move, 0), steps.length - 1);
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
      const label = html("label", {}, box, html("span", { class: `swatch ${arm.style}` }), html("span", {}, arm.label));
      const fade = (on) => document.querySelectorAll("#curves .curve").forEach((g) => g.classList.toggle("faded", on && g.dataset.id !== String(arm.id)));
      label.addEventListener("pointerenter", () => fade(box.checked));
      label.addEventListener("pointerleave", () => fade(false));
      legend.append(label);
      return box;
    });
    const update = () => {
      visible.clear();
      boxes.filter((box) => box.checked).forEach((box) => visible.add(Number(box.value)));
      drawCurves();
    };
    const setAll = (on) => { boxes.forEach((box) => { box.checked = on; }); update(); };
    boxes.forEach((box) => box.addEventListener("change", update));
    select.addEventListener("change", update);
    byId("curves-all").addEventListener("click", () => setAll(true));
    byId("curves-none").addEventListener("click", () => setAll(false));
    update();
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
  if (byId("pareto")) { setUpPareto(); drawPareto(); }
  if (byId("curves")) setUpCurves();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    if (byId("pareto")) drawPareto();
    if (byId("curves")) drawCurves();
  });
})();
