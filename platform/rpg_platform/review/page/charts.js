"use strict";
// The page's pictures. Colour is the main weight, shape the second one (or the method), size the KL to the prior.
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const SHAPES = ["circle", "diamond", "square", "triangle-up", "triangle-down", "pentagon"];
const METHOD_SHAPES = { kl: "cross", greedy: "x", full: "star-triangle-up", spg: "hexagon", ppo: "bowtie", "repeat-entropy": "hourglass" };
const DASHES = ["solid", "dot", "dash", "longdash", "dashdot", "longdashdot"];
const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]; // Okabe and Ito
const MAIN = D.weights[0] || null, SECOND = D.weights.find((w, i) => i > 0 && w.values.length <= 6) || null;
const OTHER = D.weights[1] || null;
const CONFIG = { displayModeBar: false, responsive: true };
const COLOURS = new Map(); // of the scheme that is shown
function colour(name) {
  if (!COLOURS.has(name)) COLOURS.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return COLOURS.get(name);
}
const DARK = matchMedia("(prefers-color-scheme: dark)");

// ---- scales ----------------------------------------------------------------------------------------
function share(weight, value) {
  const of = weight.is_log ? Math.log : (x) => x, [low, high] = [weight.values[0], weight.values[weight.values.length - 1]];
  return high > low ? (of(value) - of(low)) / (of(high) - of(low)) : 0.5;
}
function shade(t) {
  const from = DARK.matches ? 0.25 : 0, to = DARK.matches ? 1 : 0.92;
  const x = Math.min(1, Math.max(0, from + (to - from) * t)) * (CIVIDIS.length - 1), i = Math.min(CIVIDIS.length - 2, Math.floor(x));
  const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
  return `rgb(${[0, 1, 2].map((k) => Math.round(part(CIVIDIS[i], k) + (x - i) * (part(CIVIDIS[i + 1], k) - part(CIVIDIS[i], k)))).join(",")})`;
}
function colourOf(row) {
  if (row.is_prior) return colour("--prior");
  const value = MAIN ? row.weights[MAIN.name] : null;
  return known(value) && ofMain(row) ? shade(share(MAIN, value)) : colour("--quiet");
}
const ofMain = (row) => MAIN !== null && MAIN.name in row.weights && !(row.method in METHOD_SHAPES && D.rows.some((r) => r.method === "rpg") && row.method !== "rpg");
function shapeOf(row) {
  if (row.is_prior) return "star";
  if (!ofMain(row)) return METHOD_SHAPES[row.method] || "circle";
  if (!SECOND) return "circle";
  return SHAPES[Math.max(0, SECOND.values.indexOf(row.weights[SECOND.name])) % SHAPES.length];
}
function secondWords(row) {
  if (row.is_prior) return "prior";
  if (!ofMain(row)) return row.method;
  return SECOND && known(row.weights[SECOND.name]) ? `${SECOND.symbol} ${row.weights[SECOND.name]}` : row.method;
}
function layout(title, x, y, more = {}) {
  const axis = (words) => ({ title: { text: words, font: { size: 12 }, standoff: 6 }, gridcolor: colour("--grid"), zeroline: false,
    linecolor: colour("--line"), tickfont: { size: 11 }, automargin: true, ...(typeof words === "object" ? words : {}) });
  return { title: { text: title, font: { size: 13 }, x: 0.02, xanchor: "left", y: 0.97, yanchor: "top" }, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, 'DejaVu Sans', sans-serif", color: colour("--ink"), size: 12 },
    margin: { l: 52, r: 14, t: 32, b: 50 }, showlegend: false, hovermode: "closest", hoverlabel: { font: { size: 12 } },
    xaxis: axis(x), yaxis: axis(y), ...more };
}
const waiting = new Map(); // id → what draws it
let isPlanned = false;
function draw(id, traces, made, words, clicked = true) {
  const box = $(id);
  box.setAttribute("role", "img"); box.setAttribute("aria-label", words);
  waiting.set(id, () => {
    Plotly.react(box, traces, made, CONFIG);
    box.removeAllListeners && box.removeAllListeners("plotly_click");
    if (clicked) box.on("plotly_click", (event) => { const group = event.points[0].customdata; if (typeof group === "string") select(group); });
  });
}
function drawNow(id) { const make = waiting.get(id); waiting.delete(id); make(); }
function inView(id) { const { top, bottom } = $(id).getBoundingClientRect(); return bottom > 0 && top < innerHeight; }
function drawWaiting() { // what is in view at once; the rest one by one, so that the page answers in between
  for (const id of [...waiting.keys()].filter(inView)) drawNow(id);
  plan();
}
function plan() {
  if (isPlanned || !waiting.size) return;
  isPlanned = true;
  (window.requestIdleCallback || setTimeout)(() => { isPlanned = false; if (waiting.size) drawNow(waiting.keys().next().value); plan(); });
}
addEventListener("scroll", () => { if (waiting.size) drawWaiting(); }, { passive: true });
addEventListener("beforeprint", () => { for (const id of [...waiting.keys()]) drawNow(id); });
function bars(values, of) {
  const span = of.map((e) => (known(e[3]) ? [e[0] - e[3], e[4] - e[0]] : known(e[1]) ? [e[1], e[1]] : [0, 0]));
  return { type: "data", symmetric: false, arrayminus: span.map((s) => s[0]), array: span.map((s) => s[1]), thickness: 1, width: 2, color: colour("--quiet") };
}
const HOVERS = { deterministic: new Map(), sampled: new Map() }; // the same words in every picture
function hover(row) {
  const made = HOVERS[state.mode];
  if (!made.has(row)) made.set(row, hoverWords(row));
  return made.get(row);
}
function hoverWords(row) {
  return `<b>${row.name}</b><br>total ${text(mean(row, "total_return"))}<br>basic ${text(mean(row, "basic_return"))} (kept ${percent(kept(row))})` +
    `<br>add-on ${text(mean(row, "addon_return"))}<br>KL ${text(mean(row, "kl_to_prior"), 2)} nats · ${row.seeds.length} seed${row.seeds.length === 1 ? "" : "s"}` +
    `${row.warnings.length ? `<br>⚠ ${row.warnings[0]}` : ""}<extra></extra>`;
}

// ---- the trade-off ---------------------------------------------------------------------------------
function frontOf(rows) {
  const points = rows.slice().sort((a, b) => mean(b, "addon_return") - mean(a, "addon_return") || mean(b, "basic_return") - mean(a, "basic_return"));
  let highest = -Infinity;
  return points.filter((row) => { const on = mean(row, "basic_return") > highest; if (on) highest = mean(row, "basic_return"); return on; });
}
function isoTotals(rows) {
  const x = rows.map((r) => mean(r, "addon_return")), y = rows.map((r) => mean(r, "basic_return"));
  const pad = (values) => { const gap = (Math.max(...values) - Math.min(...values)) || Math.abs(values[0]) || 1; return [Math.min(...values) - 0.1 * gap, Math.max(...values) + 0.12 * gap]; };
  const [xs, ys] = [pad(x), pad(y)], low = xs[0] + ys[0], high = xs[1] + ys[1];
  const step = [1, 2, 5, 10].map((k) => k * 10 ** Math.floor(Math.log10((high - low) / 8))).find((s) => (high - low) / s <= 9);
  const shapes = [], notes = [];
  for (let total = Math.ceil(low / step) * step; total < high; total += step) {
    const a = Math.max(xs[0], total - ys[1]), b = Math.min(xs[1], total - ys[0]);
    if (b <= a) continue;
    shapes.push({ type: "line", layer: "below", x0: a, y0: total - a, x1: b, y1: total - b, line: { color: colour("--line"), width: 1 } });
    notes.push({ x: b, y: total - b, text: text(total, digits([high])), showarrow: false, xanchor: "right", yanchor: "bottom", font: { size: 10, color: colour("--quiet") } });
  }
  return { shapes, notes, xs, ys };
}
function drawTradeoff() {
  const rows = D.rows.filter(hasFigures);
  if (!rows.length) { $("tradeoff").textContent = "No trial has a final evaluation yet."; return; }
  const best = bestOf(), largest = Math.max(1e-9, ...rows.map((r) => mean(r, "kl_to_prior") || 0));
  const size = (row) => (row.is_prior ? 17 : 9 + 11 * Math.sqrt(Math.max(0, mean(row, "kl_to_prior") || 0) / largest));
  const front = frontOf(rows), iso = isoTotals(rows), groups = {};
  for (const row of rows) (groups[secondWords(row)] ||= []).push(row);
  const traces = [{ x: front.map((r) => mean(r, "addon_return")), y: front.map((r) => mean(r, "basic_return")), mode: "lines", hoverinfo: "skip",
    line: { dash: "dash", color: colour("--quiet"), width: 1.5 }, name: "front of the two returns", showlegend: true }];
  const ring = (row, color, width, name) => traces.push({ x: [mean(row, "addon_return")], y: [mean(row, "basic_return")], mode: "markers", hoverinfo: "skip",
    marker: { size: size(row) + 12, symbol: "circle-open", color, line: { width } }, name, showlegend: false });
  if (best) ring(best, colour("--gold"), 5, "best");
  const chosen = rows.find((row) => row.group === state.selected);
  if (chosen) ring(chosen, colour("--accent"), 3, "chosen");
  for (const [name, of] of Object.entries(groups)) {
    const data = (key) => of.map((row) => mean(row, key));
    traces.push({ x: data("addon_return"), y: data("basic_return"), mode: "markers", name, showlegend: true, customdata: of.map((r) => r.group),
      hovertemplate: of.map(hover), error_x: rows.length <= 60 ? bars(of, of.map((r) => figure(r, "addon_return"))) : undefined,
      error_y: rows.length <= 60 ? bars(of, of.map((r) => figure(r, "basic_return"))) : undefined,
      marker: { color: of.map(colourOf), symbol: of.map(shapeOf), size: of.map(size), opacity: of.map((r) => (holds(r) ? 1 : 0.3)),
        line: { width: 1, color: colour("--paper") } } });
  }
  if (MAIN) traces.push({ x: [null], y: [null], mode: "markers", showlegend: false, hoverinfo: "skip", marker: { color: [0, 1], cmin: 0, cmax: 1, size: 0.1,
    colorscale: [0, 0.25, 0.5, 0.75, 1].map((t) => [t, shade(t)]), showscale: true, colorbar: { title: { text: MAIN.symbol, side: "top" }, thickness: 11, len: 0.7,
      y: 0.36, x: 1.0, tickvals: ticksOf(MAIN).map((v) => share(MAIN, v)), ticktext: ticksOf(MAIN).map(String), outlinewidth: 0, tickfont: { size: 11 } } } });
  const label = (row, words, up) => ({ x: mean(row, "addon_return"), y: mean(row, "basic_return"), text: words, showarrow: false, yshift: up, font: { size: 12 } });
  const notes = [...iso.notes];
  if (best) notes.push(label(best, `★ ${best.name}`, 24));
  if (PRIOR && PRIOR !== best) notes.push(label(PRIOR, "prior", -20));
  const shapes = [...iso.shapes];
  if (state.kept > 0 && PRIOR) {
    shapes.push({ type: "rect", layer: "below", xref: "paper", x0: 0, x1: 1, y0: iso.ys[0], y1: Math.max(iso.ys[0], Math.min(iso.ys[1], keptBound(state.kept))),
      fillcolor: colour("--bad"), opacity: 0.1, line: { width: 0 } });
  }
  draw("tradeoff", traces, layout("", "add-on return → more of what was added", "basic return → more of the prior kept", { shapes, annotations: notes, showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } }, margin: { l: 60, r: 20, t: 34, b: 52 },
    xaxis: { ...layout("", "add-on return → more of what was added", "").xaxis, range: iso.xs }, yaxis: { ...layout("", "", "basic return → more of the prior kept").yaxis, range: iso.ys } }),
  `Scatter of ${rows.length} settings: add-on return against basic return. ${best ? `Best: ${best.name}.` : ""} The table below has the same figures.`);
}
function ticksOf(weight) {
  if (weight.values.length <= 6) return weight.values;
  const n = weight.values.length - 1;
  return [0, 0.25, 0.5, 0.75, 1].map((t) => Number(weight.values[Math.round(t * n)].toPrecision(2)));
}
function drawMap() {
  const box = $("map"), main = D.rows.filter((row) => hasFigures(row) && ofMain(row));
  if (!MAIN || !OTHER || !main.length) { box.hidden = true; box.parentElement.classList.add("single"); return; }
  const name = state.maximize, title = `${MEASURES[name].heading} return over both weights`;
  const axis = (weight) => ({ title: { text: weight.symbol, font: { size: 13 }, standoff: 6 }, automargin: true, tickfont: { size: 11 } });
  const scale = [0, 0.25, 0.5, 0.75, 1].map((t) => [t, shade(t)]);
  const best = bestOf();
  if (MAIN.values.length * OTHER.values.length <= 4 * main.length && MAIN.values.length <= 30 && OTHER.values.length <= 30) {
    const cell = (a, b) => main.filter((r) => r.weights[MAIN.name] === a && r.weights[OTHER.name] === b);
    const z = OTHER.values.map((b) => MAIN.values.map((a) => { const of = cell(a, b); return of.length ? Math.max(...of.map((r) => mean(r, name))) : null; }));
    const words = OTHER.values.map((b) => MAIN.values.map((a) => {
      const row = cell(a, b).sort((p, q) => mean(q, name) - mean(p, name))[0];
      return row ? `${row === best ? "★ " : ""}${holds(row) ? "" : "✗ "}${text(mean(row, name))}<br>kept ${percent(kept(row))}<br>KL ${text(mean(row, "kl_to_prior"), 1)}` : "";
    }));
    const groups = OTHER.values.map((b) => MAIN.values.map((a) => (cell(a, b)[0] || {}).group));
    draw("map", [{ type: "heatmap", x: MAIN.values.map(String), y: OTHER.values.map(String), z, text: words, customdata: groups, colorscale: scale,
      texttemplate: MAIN.values.length * OTHER.values.length <= 30 ? "%{text}" : "", hovertemplate: `${MAIN.symbol} %{x}, ${OTHER.symbol} %{y}<br>%{text}<extra></extra>`,
      xgap: 2, ygap: 2, colorbar: { thickness: 11, outlinewidth: 0 } }],
    layout(title, "", "", { xaxis: { ...axis(MAIN), type: "category" }, yaxis: { ...axis(OTHER), type: "category" } }), `${title}, a cell for each pair.`);
    return;
  }
  draw("map", [{ x: main.map((r) => r.weights[MAIN.name]), y: main.map((r) => r.weights[OTHER.name]), mode: "markers", customdata: main.map((r) => r.group), hovertemplate: main.map(hover),
    marker: { color: main.map((r) => mean(r, name)), colorscale: scale, size: main.length > 300 ? 7 : 11, opacity: main.map((r) => (holds(r) ? 1 : 0.25)),
      line: { width: main.map((r) => (r === best ? 3 : 0.5)), color: main.map((r) => (r === best ? colour("--gold") : colour("--line"))) }, showscale: true, colorbar: { thickness: 11, outlinewidth: 0 } } }],
  layout(title, "", "", { xaxis: { ...axis(MAIN), type: MAIN.is_log ? "log" : "linear", gridcolor: colour("--grid") },
    yaxis: { ...axis(OTHER), type: OTHER.is_log ? "log" : "linear", gridcolor: colour("--grid") } }), `${title}, a point for each setting.`);
}

// ---- what each weight does -------------------------------------------------------------------------
const SHOWN = [["total_return", "total return"], ["addon_return", "add-on return"], ["basic_return", "basic return"], ["kl_to_prior", "KL to the prior, nats"],
  ...(D.rows.some((row) => known(row.objective[0])) ? [["objective", "J: what each setting is trained on"]] : [])];
function charts(id) {
  if (!$(id).children.length) SHOWN.forEach(([name]) => $(id).append(element("div", { class: "chart", id: `${id}-${name}` })));
}
function drawResponses() {
  const main = D.rows.filter((row) => hasFigures(row) && ofMain(row));
  if (!MAIN || !main.length) { $("weights-section").hidden = true; return; }
  charts("responses");
  const lines = SECOND ? SECOND.values : [null];
  for (const [name, title] of SHOWN) {
    const traces = lines.map((value, i) => {
      const of = main.filter((r) => value === null || r.weights[SECOND.name] === value).sort((a, b) => a.weights[MAIN.name] - b.weights[MAIN.name]);
      const several = new Set(of.map((r) => r.weights[MAIN.name])).size < of.length || of.length > 40 || (OTHER && !SECOND);
      return { x: of.map((r) => r.weights[MAIN.name]), y: of.map((r) => mean(r, name)), mode: several ? "markers" : "lines+markers", name: SECOND ? `${SECOND.symbol} ${value}` : "",
        customdata: of.map((r) => r.group), hovertemplate: of.map(hover), line: { dash: DASHES[i % DASHES.length], width: 2, color: LINES[i % LINES.length] },
        marker: { symbol: SHAPES[i % SHAPES.length], size: of.length > 100 ? 5 : 9, color: LINES[i % LINES.length], opacity: of.map((r) => (holds(r) ? 1 : 0.25)) },
        error_y: of.length <= 40 ? { ...bars(of, of.map((r) => figure(r, name))), color: LINES[i % LINES.length] } : undefined };
    });
    const chosen = main.find((row) => row.group === state.selected) || null, best = bestOf();
    for (const [row, rim, width] of [[best, "--gold", 4], [chosen, "--accent", 3]]) {
      if (row && ofMain(row)) traces.push({ x: [row.weights[MAIN.name]], y: [mean(row, name)], mode: "markers", hoverinfo: "skip", showlegend: false, marker: { symbol: "circle-open", size: 18, color: colour(rim), line: { width } } });
    }
    const prior = PRIOR ? mean(PRIOR, name) : null, made = layout(title, "", "");
    made.xaxis = { ...made.xaxis, title: { text: `${MAIN.symbol}${MAIN.is_log ? " (log)" : ""}`, font: { size: 12 }, standoff: 6 }, type: MAIN.is_log ? "log" : "linear",
      tickvals: ticksOf(MAIN), ticktext: ticksOf(MAIN).map(String) };
    if (known(prior)) made.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: prior, y1: prior, line: { dash: "dash", width: 1.5, color: colour("--prior") } }];
    if (known(prior)) made.annotations = [{ xref: "paper", x: 1, y: prior, text: "prior", showarrow: false, xanchor: "right", yanchor: "bottom", font: { size: 11, color: colour("--prior") } }];
    if (known(state.weight)) {
      made.shapes = [...(made.shapes || []), { type: "line", yref: "paper", y0: 0, y1: 1, x0: state.weight, x1: state.weight, line: { dash: "dot", width: 1.5, color: colour("--accent") } }];
    }
    if (SECOND && name === "total_return") Object.assign(made, { showlegend: true, legend: { font: { size: 11 }, bgcolor: "rgba(0,0,0,0)", x: 0.02, y: 0.02, yanchor: "bottom" } });
    draw(`responses-${name}`, traces, made, `${title} against ${MAIN.symbol}${SECOND ? `, a line for each ${SECOND.symbol}` : ""}.`);
  }
}
// Between the settings at which a policy that is told its weights was evaluated: it has every weight of the range.
const TOLD = MAIN ? D.rows.filter((row) => row.told && hasFigures(row) && ofMain(row)) : [];
function between(rows, weight, name) {
  const i = Math.min(rows.length - 2, Math.max(0, rows.findLastIndex((row) => row.weights[MAIN.name] <= weight)));
  const at = (row) => share(MAIN, row.weights[MAIN.name]), [a, b] = [rows[i], rows[i + 1]];
  const t = (share(MAIN, weight) - at(a)) / (at(b) - at(a));
  return mean(a, name) + t * (mean(b, name) - mean(a, name));
}
function drawBetween() {
  if (TOLD.length < 2) return;
  const lines = SECOND ? [...new Set(TOLD.map((row) => row.weights[SECOND.name]))].filter(known).sort((a, b) => a - b) : [];
  const values = TOLD.map((row) => row.weights[MAIN.name]), [low, high] = [Math.min(...values), Math.max(...values)];
  const slider = element("input", { type: "range", id: "weight", min: 0, max: 1000, value: 500 });
  const pick = element("select", { id: "line" }, ...lines.map((value) => element("option", { value }, String(value))));
  const said = element("p", { id: "weight-says" }), box = element("div", { id: "weight-command" });
  state.moved = () => {
    const t = slider.value / 1000, exact = MAIN.is_log ? low * (high / low) ** t : low + t * (high - low);
    state.weight = Math.min(high, Math.max(low, Number(exact.toPrecision(3))));
    const rows = TOLD.filter((row) => !lines.length || row.weights[SECOND.name] === Number(pick.value)).sort((a, b) => a.weights[MAIN.name] - b.weights[MAIN.name]);
    const read = (name) => between(rows, state.weight, name), ofPrior = PRIOR ? mean(PRIOR, "basic_return") : 0;
    const kept = ofPrior > 0 ? ` (${percent(read("basic_return") / ofPrior)} of the prior’s)` : "";
    $("weight-value").textContent = String(state.weight);
    said.textContent = `Total ≈ ${text(read("total_return"))}, add-on ≈ ${text(read("addon_return"))}, basic ≈ ${text(read("basic_return"))}${kept}, KL ≈ ${text(read("kl_to_prior"))} nats: ` +
      "read off between the settings that were evaluated. rpg weights finds the weight that a rule asks for.";
    const words = D.commands.export_at; // read from MLflow, which has the policy of the whole range, there is none
    if (words) box.replaceChildren(command(words.replace("{weights}", weightsOf(rows[0], { ...rows[0].weights, [MAIN.name]: state.weight }))));
    drawResponses(); drawWaiting();
  };
  slider.addEventListener("input", state.moved);
  pick.addEventListener("change", state.moved);
  $("between").hidden = false;
  $("between").append(element("label", {}, `The same policy at ${MAIN.symbol}`, slider, element("output", { id: "weight-value", for: "weight" })));
  if (lines.length > 1) $("between").append(element("label", {}, `at ${SECOND.symbol}`, pick));
  $("between").append(said, box);
}
function drawImportance() {
  const names = Object.keys(D.importance);
  if (!names.length || D.weights.length < 2) return;
  const heading = (name) => (name === "kl_to_prior" ? "KL" : MEASURES[name].heading);
  const rows = names.map((measure) => element("tr", {}, element("th", {}, heading(measure)), ...D.weights.map((w) => {
    const value = D.importance[measure][w.name];
    return element("td", {}, element("span", { class: "bar", style: `width:${Math.round(110 * (value || 0))}px` }), percent(value));
  })));
  $("importance").append(element("table", { class: "importance", style: "width:auto" },
    element("caption", { class: "quiet", style: "text-align:left" }, "Share of the variance over the settings that each weight explains by itself"),
    element("thead", {}, element("tr", {}, element("th", {}), ...D.weights.map((w) => element("th", {}, w.symbol)))), element("tbody", {}, ...rows)));
}

// ---- learning curves -------------------------------------------------------------------------------
function points(curve, name) { // no episode ends in many iterations: those have no returns
  return curve.steps.map((step, i) => [step, (curve[name] || [])[i]]).filter(([, value]) => known(value));
}
function at(line, step) { // linear between reports
  const i = line.findIndex(([s]) => s >= step);
  if (i < 0 || (i === 0 && line[0][0] > step)) return null;
  if (line[i][0] === step) return line[i][1];
  const [[s, a], [t, b]] = [line[i - 1], line[i]];
  return a + (b - a) * (step - s) / (t - s);
}
function overSeeds(of, name) {
  const lines = of.map((curve) => points(curve, name)).filter((line) => line.length);
  const longest = lines.reduce((a, b) => (b.length > a.length ? b : a), []).map(([step]) => step);
  const columns = longest.map((step) => lines.map((line) => at(line, step)).filter(known));
  const average = columns.map((c) => (c.length ? c.reduce((a, b) => a + b) / c.length : null));
  const reach = columns.map((c, i) => (c.length < 2 ? null : c.length < 5 ? [Math.min(...c), Math.max(...c)]
    : [-1, 1].map((s) => average[i] + s * tQuantile(c.length - 1) * Math.sqrt(c.reduce((q, v) => q + (v - average[i]) ** 2, 0) / (c.length - 1) / c.length))));
  return { steps: longest, average, reach };
}
// A line is a training; a policy that is told its weights is trained once for many rows.
const rowOf = (group) => D.rows.find((row) => row.line === group);
const lineOf = (group) => (D.rows.find((row) => row.group === group) || {}).line;
function drawCurves() {
  const drawn = Object.entries(D.curves.settings).filter(([, of]) => of.length);
  if (!drawn.length) { $("curves-section").hidden = true; return; }
  charts("curves");
  const best = bestOf(), focus = lineOf(state.selected), many = drawn.length > 12;
  for (const [name, title] of SHOWN) {
    const traces = [], seen = [];
    for (const [group, of] of drawn) {
      const row = rowOf(group), line = overSeeds(of, name), chosen = group === focus, main = chosen || (best && best.line === group);
      const faint = many && !main ? 0.35 : 1, color = colourOf(row), second = Math.max(0, SECOND ? SECOND.values.indexOf(row.weights[SECOND.name]) : 0);
      if (of.length > 1 && (drawn.length <= 4 || main)) {
        const both = line.steps.map((s, i) => [s, line.reach[i]]).filter(([, r]) => r);
        traces.push({ x: [...both.map(([s]) => s), ...both.map(([s]) => s).reverse()], y: [...both.map(([, r]) => r[1]), ...both.map(([, r]) => r[0]).reverse()],
          fill: "toself", fillcolor: color, opacity: 0.16, line: { width: 0 }, mode: "lines", hoverinfo: "skip" });
      }
      traces.push({ x: line.steps, y: line.average, mode: "lines", customdata: line.steps.map(() => row.group), opacity: faint, line: { color, width: chosen ? 4 : main ? 3 : 1.6, dash: DASHES[second % DASHES.length] },
        hovertemplate: `<b>${row.line_name}</b><br>%{x:,.0f} env steps<br>${title} %{y:,.5g}<extra></extra>` });
      seen.push(...line.average.filter(known));
      const k = RETURNS.indexOf(name);
      if (k >= 0 && !many) for (const curve of of) {
        traces.push({ x: curve.checked[0], y: curve.checked[1 + k], mode: "markers", hoverinfo: "skip", marker: { color, size: 5, symbol: "circle-open", line: { width: 1.5 } } });
        seen.push(...curve.checked[1 + k].filter(known));
      }
    }
    const made = layout(title, "env steps", "");
    if (seen.length) { // a spike must not flatten the rest
      seen.sort((a, b) => a - b);
      const q = (p) => seen[Math.min(seen.length - 1, Math.floor(p * seen.length))], gap = q(0.99) - q(0.01) || 1;
      made.yaxis.range = [q(0.01) - 0.08 * gap, q(0.99) + 0.12 * gap];
    }
    draw(`curves-${name}`, traces, made, `${title} over env steps, a line for each of ${drawn.length} trained settings.`);
  }
  drawTerms(best);
}
function drawTerms(best) {
  const group = [lineOf(state.selected), best && best.line, Object.keys(D.curves.settings)[0]].find((each) => D.curves.settings[each]);
  const row = rowOf(group), of = D.curves.settings[group];
  const names = [["reward_basic_term", "basic"], ["reward_addon_term", "add-on"], ["reward_prior_term", "ω′ log π(prior)"], ["reward_entropy_term", "−α̂ log π"]];
  const traces = names.filter(([key]) => of.some((c) => c[key])).map(([key, words], i) => {
    const line = overSeeds(of, key);
    return { x: line.steps, y: line.average, mode: "lines", name: words, line: { color: LINES[i], dash: DASHES[i], width: 2 }, hovertemplate: `${words} %{y:.4g}<extra></extra>` };
  });
  draw("terms", traces, layout(`reward per step, its terms: ${row.line_name}`, "env steps", "", { showlegend: true, legend: { orientation: "h", y: 1.0, yanchor: "bottom", x: 0.02, font: { size: 11 } },
    margin: { l: 52, r: 14, t: 58, b: 50 } }), `The terms of the reward over env steps of ${row.line_name}.`, false);
}

// ---- health ----------------------------------------------------------------------------------------
function drawHealth() {
  const rows = D.rows.filter((row) => Object.keys(row.health).length && rowOf(row.line) === row);
  if (!rows.length) return;
  const cols = [["kl_max", "worst KL", (v) => v > 50, 1], ["step_kl_max", "largest update, nats", (v) => v > 1, 3], ["clip_fraction", "clipped", () => false, null],
    ["explained_variance", "critic explains", (v) => v < 0.3, null], ["return_dip", "dip", (v) => v > 0.9, null], ["faults", "faults", (v) => v > 0, 0]];
  const cell = (row, [key, , bad, decimals]) => {
    const v = row.health[key];
    if (!known(v)) return element("td", {}, "–");
    return element("td", { class: bad(v) ? "cell-warn" : "cell-ok" }, `${bad(v) ? "⚠ " : ""}${decimals === null ? percent(v) : text(v, decimals)}`);
  };
  const lines = rows.slice().sort((a, b) => b.warnings.length - a.warnings.length).map((row) => element("tr", {}, element("td", { class: "left name" }, row.line_name), ...cols.map((c) => cell(row, c))));
  const table = (of) => element("table", { class: "health" }, element("thead", {}, element("tr", {}, element("th", { class: "left" }, "health, worst seed"), ...cols.map((c) => element("th", {}, c[1])))), element("tbody", {}, ...of));
  const box = element("div", { class: "wide" }, table(lines.slice(0, 12)));
  $("health").append(box, element("p", { class: "quiet" }, "Worst KL: nats to the prior while training. Largest update: approximate KL. Clipped: median share of samples. Critic explains: variance of returns, last tenth. Dip: deepest fall of the total return, as a share of its range."));
  if (lines.length > 12) $("health").append(element("details", {}, element("summary", {}, `${lines.length - 12} more`), element("div", { class: "wide" }, table(lines.slice(12)))));
}

// ---- videos ----------------------------------------------------------------------------------------
function drawVideos() {
  const clips = D.videos || [];
  if (!clips.length) return;
  $("move-section").hidden = false;
  $("move-key").textContent = `The same start, ${clips[0].mode || "deterministic"} policies. One button plays them in step.`;
  const players = clips.map((clip) => {
    const video = element("video", { src: clip.source, muted: "", playsinline: "", preload: "auto", "aria-label": clip.label });
    video.muted = true;
    $("videos").append(element("figure", {}, video, element("figcaption", { class: "quiet" }, clip.label)));
    return video;
  });
  // The longest leads; one that ends before it (a fall) stays as it was until all begin again.
  const lasts = (video) => video.duration || 0, leader = () => players.reduce((a, b) => (lasts(b) > lasts(a) ? b : a));
  const seek = $("seek"), play = $("play");
  let isPlaying = false;
  const to = (time) => { for (const v of players) v.currentTime = Math.min(time, lasts(v)); };
  const start = () => { for (const v of players) if (v.currentTime < lasts(v)) v.play().catch(() => {}); };
  const show = (time) => {
    seek.value = 1000 * time / (lasts(leader()) || 1);
    seek.setAttribute("aria-valuetext", `${time.toFixed(1)} s of ${lasts(leader()).toFixed(1)} s`);
    const x = time * clips[0].steps_per_s;
    if ($("trace").data) Plotly.relayout("trace", { "shapes[0].x0": x, "shapes[0].x1": x });
  };
  const follow = () => {
    if (!isPlaying) return;
    const lead = leader(), now = lead.currentTime;
    if (lead.ended) { to(0); start(); }
    for (const v of players) if (!v.ended && !v.seeking && Math.abs(v.currentTime - Math.min(now, lasts(v))) > 0.1) v.currentTime = now;
    show(now);
    requestAnimationFrame(follow);
  };
  const stop = () => {
    isPlaying = false; play.textContent = "Play";
    for (const v of players) v.pause();
  };
  play.addEventListener("click", () => {
    if (isPlaying) { stop(); to(leader().currentTime); return; }
    isPlaying = true; play.textContent = "Pause";
    to(leader().ended ? 0 : leader().currentTime);
    start(); follow();
  });
  seek.addEventListener("input", () => { stop(); const time = seek.value / 1000 * lasts(leader()); to(time); show(time); });
}
function drawTrace() {
  const clips = (D.videos || []).filter((clip) => clip.trace && clip.trace.length);
  if (!clips.length) { $("trace").hidden = true; return; }
  const made = layout(`${A.metric} over the clip`, "env step", "", { showlegend: true, legend: { orientation: "h", y: 1.0, yanchor: "bottom", x: 0.4, font: { size: 11 } },
    shapes: [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: 0, x1: 0, line: { color: colour("--accent"), width: 1.5 } }] });
  draw("trace", clips.map((clip, i) => ({ x: clip.trace.map((_, k) => k), y: clip.trace, mode: "lines", name: clip.label, line: { color: i ? LINES[i - 1] : colour("--prior"), width: 1.6, dash: i ? "solid" : "dot" }, hoverinfo: "skip" })),
    made, `${A.metric} at each env step of the clips.`, false);
}

// ---- texts -----------------------------------------------------------------------------------------
function drawTexts() {
  const bars = D.rows.some((r) => r.seeds.length > 1) ? "Bars: 95 % interval over seeds" : "Bars: standard deviation over episodes (one seed, so no interval over seeds)";
  $("tradeoff-key").textContent = `${MAIN ? `Colour ${MAIN.symbol}, ` : ""}shape ${SECOND ? SECOND.symbol : "method"}, size KL to the prior; thin lines: the same total return; pale: breaks what must hold. ${bars}. Click a point for its run.`;
  if (MAIN) $("weights-key").textContent = `${SECOND ? `One line per ${SECOND.symbol}; the` : "The"} dashed line is the prior. ${bars}.`;
  const count = Object.keys(D.curves.settings).length, seeds = Math.max(...D.rows.map((r) => r.trials.length), 0);
  $("curves-key").textContent = `Policies as they sample while training, undiscounted returns per episode. ${count < D.curves.of ? `${count} of ${D.curves.of} settings: the best, and others spread over the ranking. ` : ""}` +
    `${seeds > 1 ? `Bands (★ and the chosen setting): ${seeds < 5 ? "range" : "95 % interval"} over seeds. ` : ""}Rings: validations, ${A.objective.mode}. Single spikes may leave the picture: the health table has them.`;
  const spread = D.rows.some((r) => r.seeds.length > 1) ? "seeds" : "evaluation episodes";
  $("table-key").textContent = `Undiscounted returns per episode; ± is the standard deviation over ${spread}; n = training seeds; kept = share of the prior’s basic return. ★ best of what holds, ◇ front of the two returns. Click a heading to sort, a row for its run.`;
}
function drawCharts() {
  drawTradeoff(); drawMap(); drawResponses(); drawCurves(); drawTrace();
  drawWaiting();
}
for (const of of Object.values(D.curves.settings)) for (const curve of of) curve.steps = D.curves.steps[curve.steps];
drawImportance();
drawBetween();
start();
if (state.moved) state.moved();
