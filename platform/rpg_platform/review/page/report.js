"use strict";
// The page: what must hold, the verdict, the table and what to do next. charts.js draws.
// D is what review/content.py made; an estimate is [mean, std, n, low, high].
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const A = D.about;
const MEASURES = Object.fromEntries(D.measures.map((m) => [m.name, m]));
const RETURNS = ["total_return", "addon_return", "basic_return"];
const state = { mode: A.objective.mode, maximize: A.objective.maximize, kept: 0, kl: Infinity, selected: null,
  sort: null, ascending: false };

// ---- small things ----------------------------------------------------------------------------------
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
const known = (x) => typeof x === "number" && Number.isFinite(x);
function digits(values) {
  const largest = Math.max(0, ...values.filter(known).map(Math.abs));
  return largest >= 1000 ? 0 : largest >= 100 ? 1 : largest >= 10 ? 2 : 3;
}
const FORMATS = [0, 1, 2, 3].map((decimals) => new Intl.NumberFormat("en-US",
  { minimumFractionDigits: decimals, maximumFractionDigits: decimals }));
function text(x, decimals = digits([x])) {
  return known(x) ? FORMATS[decimals].format(x).replace("-", "−") : "–";
}
const signed = (x, decimals) => (x > 0 ? "+" : "") + text(x, decimals);
const percent = (x) => (known(x) ? `${text(100 * x, 0)} %` : "–");

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`); // for a shell

// ---- figures of a row ------------------------------------------------------------------------------
for (const row of D.rows) {
  row.trials = row.trials.map(([tail, run, path]) => {
    const id = row.group + tail;
    return { id, run, path: path && quoted(/^\/|:\/\//.test(path) ? path : A.folder + path.replace("{id}", id)) };
  });
}
const NOTHING = [null, null, 0, null, null];
function figure(row, name) {
  return name === "kl_to_prior" ? row.kl : name === "objective" ? row.objective : row[state.mode][name] || NOTHING;
}
const mean = (row, name) => figure(row, name)[0];
const hasFigures = (row) => row.seeds.length > 0 && known(mean(row, "total_return"));
const PRIOR = D.rows.find((row) => row.is_prior && row.seeds.length > 0) || null;
const chosenBy = (row, name) => row.chosen_by[state.mode][name]; // what ranks: other episodes than those shown
function kept(row) {
  const prior = PRIOR ? mean(PRIOR, "basic_return") : null;
  return known(prior) && prior > 0 && known(mean(row, "basic_return")) ? mean(row, "basic_return") / prior : null;
}
function keptBound(fraction) { // of a negative return a share would ask for more than the prior has
  const prior = chosenBy(PRIOR, "basic_return");
  return prior - (1 - fraction) * Math.abs(prior);
}
function holds(row) {
  if (row.other_violations.length) return false;
  if (state.kept > 0 && PRIOR && !(chosenBy(row, "basic_return") >= keptBound(state.kept))) return false;
  return !(known(state.kl) && !(chosenBy(row, "kl_to_prior") <= state.kl));
}
function ranked() {
  const able = D.rows.filter((row) => hasFigures(row) && holds(row) && known(chosenBy(row, state.maximize)));
  return able.sort((a, b) => chosenBy(b, state.maximize) - chosenBy(a, state.maximize) || (a.group < b.group ? -1 : 1));
}
const bestOf = () => ranked().find((row) => row.is_deployable) || null; // never what sees the hidden reward

// ---- 95 % interval of a difference, Welch's t (results/difference.py) --------------------------------
function logGamma(x) {
  const c = [76.18009172947146, -86.50532032941677, 24.01409824083091, -1.231739572450155, 0.1208650973866179e-2,
    -0.5395239384953e-5];
  let sum = 1.000000000190015;
  c.forEach((each, i) => { sum += each / (x + 1 + i); });
  return Math.log(2.5066282746310005 * sum / x) - (x + 5.5) + (x + 0.5) * Math.log(x + 5.5);
}
function incompleteBeta(x, a, b) { // continued fraction, Numerical Recipes 6.4
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  let c = 1, d = 1 / (1 - (a + b) * x / (a + 1)), h = d;
  for (let m = 1; m < 200; m++) {
    const even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / (1 + even * d); c = 1 + even / c; h *= d * c;
    const odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / (1 + odd * d); c = 1 + odd / c; h *= d * c;
    if (Math.abs(d * c - 1) < 1e-12) break;
  }
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log(1 - x));
  return front * h / a;
}
function tQuantile(freedom) { // the 97.5 % point
  let low = 0, high = 1000;
  for (let i = 0; i < 80; i++) {
    const t = (low + high) / 2;
    const tail = incompleteBeta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2;
    if (tail > 0.025) low = t; else high = t;
  }
  return low;
}
function difference(a, b) {
  const n = (e) => (e[2] > 1 ? e[2] : A.episodes);
  if (![a[0], a[1], b[0], b[1]].every(known) || Math.min(n(a), n(b)) < 2) return null;
  const parts = [a[1] ** 2 / n(a), b[1] ** 2 / n(b)], variance = parts[0] + parts[1], gap = a[0] - b[0];
  if (variance === 0) return [gap, gap];
  const freedom = variance ** 2 / (parts[0] ** 2 / (n(a) - 1) + parts[1] ** 2 / (n(b) - 1));
  const reach = tQuantile(freedom) * Math.sqrt(variance);
  return [gap - reach, gap + reach];
}
function withinNoise(best) {
  return ranked().filter((row) => {
    if (row === best || !row.is_deployable) return false;
    const interval = difference(figure(best, state.maximize), figure(row, state.maximize));
    return interval === null || interval[0] <= 0;
  });
}

// ---- head and verdict ------------------------------------------------------------------------------
function clock(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  return hours ? `${hours} h ${minutes % 60} min` : minutes ? `${minutes} min ${Math.round(seconds % 60)} s`
    : `${Math.round(seconds)} s`;
}
function drawHead() {
  $("title").append(A.name, element("small", {}, ` · ${A.task}${A.prior ? ` · prior ${A.prior}` : ""}`));
  $("subtitle").textContent = A.description || "";
  const t = A.trials, seeds = A.seeds.length;
  const words = [`${t.finished} of ${t.total} trials finished`, `${seeds} seed${seeds > 1 ? "s" : ""}`,
    `${A.env_steps.toLocaleString("en-US")} env steps each`];
  if (known(A.seconds)) words.push(clock(A.seconds));
  if (A.state !== "finished") words.push(A.state);
  $("state").textContent = words.join(" · ") + ` · written ${A.made}`;
  if (A.unknown.length) {
    $("state").after(element("p", { class: "quiet", id: "unknown" }, `Read from MLflow alone, which does not know ${A.unknown.join("; ")}.`));
  }
}
function stat(label, value, row, name, better) {
  const box = element("div", { class: "figure" }, element("span", {}, label), element("b", {}, value));
  if (PRIOR && row !== PRIOR && name) {
    const gap = mean(row, name) - mean(PRIOR, name), interval = difference(figure(row, name), figure(PRIOR, name));
    const sure = interval && (interval[0] > 0 || interval[1] < 0);
    const tone = !sure ? "" : gap * better > 0 ? "good" : "bad";
    const range = interval ? `95 %: ${signed(interval[0], digits(interval))} to ${signed(interval[1], digits(interval))}` : "";
    box.querySelector("b").append(element("span", { class: `delta ${tone}`, title: range }, signed(gap, digits([mean(row, name)]))));
    if (range) box.append(element("span", {}, range));
  }
  return box;
}
function drawVerdict() {
  const box = $("verdict"), best = bestOf();
  box.replaceChildren();
  if (!D.rows.some(hasFigures)) {
    box.append(element("div", { class: "name" }, "No trial has a final evaluation yet."));
  } else if (!best) {
    const bounds = document.createDocumentFragment();
    bounds.append(element("div", { class: "name" }, "No setting satisfies what must hold."),
      "Loosen the bounds below: the table has every setting.");
    box.append(bounds);
  } else {
    const near = withinNoise(best);
    const objective = MEASURES[state.maximize];
    box.append(element("div", { class: "head" },
      element("div", { class: "figure" },
        element("span", {}, `highest ${state.mode} ${objective.heading} return of what holds`),
        element("div", { class: "name", id: "star" }, `★ ${best.name}`)),
      stat("total return", text(mean(best, "total_return")), best, "total_return", 1),
      stat("add-on return", text(mean(best, "addon_return")), best, "addon_return", 1),
      stat("basic return", text(mean(best, "basic_return")), best, "basic_return", 1),
      stat("kept", percent(kept(best)), best, null),
      stat("KL to the prior", `${best.kl_estimated ? "≈ " : ""}${text(mean(best, "kl_to_prior"), 2)} nats`, best, null)));
    const lines = element("ul");
    if (best === PRIOR) lines.append(element("li", {}, "The prior itself is best: no trained setting improves on it within these bounds."));
    else if (PRIOR) lines.append(element("li", {}, "Differences are to the prior, untouched, on the same evaluation seeds."));
    if (near.length) {
      const names = near.slice(0, 6).map((row) => row.name).join("; ");
      lines.append(element("li", { id: "near" }, `Within noise of it: ${names}${near.length > 6 ? ` and ${near.length - 6} more` : ""}.`));
    } else if (D.rows.filter(hasFigures).length > 1) {
      lines.append(element("li", { id: "near" }, "No other setting is within noise of it."));
    }
    if (!A.chosen_apart) lines.append(element("li", {}, "Chosen and judged on the same episodes, which flatters what ranks high."));
    const asAsked = D.rows.some((row) => row === best && row.is_best) && state.maximize === A.objective.maximize && state.mode === A.objective.mode;
    if (asAsked && A.choosing) lines.append(element("li", { id: "choosing" }, A.choosing));
    box.append(lines);
    const said = warningsOf(best);
    if (said.length) box.append(element("ul", { class: "warning" }, ...said.map((line) => element("li", {}, line))));
  }
}
function warningsOf(best) {
  const said = [];
  if (best !== PRIOR && best.seeds.length === 1) {
    said.push("One training seed: intervals are over evaluation episodes and say nothing of other trainings. " +
      "Train more seeds before you rely on an order (rpg extend).");
  } else if (best !== PRIOR && best.seeds.length < 5) {
    said.push(`${best.seeds.length} training seeds: few; intervals are wide or too narrow.`);
  }
  for (const line of best.warnings) said.push(`${best.name}: ${line}.`);
  const others = D.rows.filter((row) => row !== best && row.warnings.length);
  if (others.length) said.push(`${others.length} other setting${others.length > 1 ? "s" : ""} trained unsteadily: see the health table.`);
  const earlier = D.rows.filter((row) => row.evaluated_at !== null);
  if (earlier.length) {
    said.push(`${earlier.length} setting${earlier.length > 1 ? "s are" : " is"} shown as of fewer env steps than the rest (marked @): ` +
      `the extension to ${A.env_steps.toLocaleString("en-US")} has not ended. Go on: ${D.commands.resume}.`);
  }
  if (A.failures.length) said.push(`${A.failures.length} trial${A.failures.length > 1 ? "s" : ""} without a result, listed at the end.`);
  if (A.stopped) said.push(`${A.stopped} trials were ended early by the scheduler and are not compared.`);
  return said;
}

// ---- what must hold --------------------------------------------------------------------------------
function bounds() {
  const shares = D.rows.map(kept).filter(known), kls = D.rows.filter(hasFigures).map((r) => mean(r, "kl_to_prior")).filter(known);
  return { kept: shares.length ? [Math.max(0, Math.floor(20 * Math.min(...shares)) / 20), 1] : null,
    kl: kls.length && Math.max(...kls) > 0 ? Math.ceil(10 * Math.max(...kls)) / 10 : null };
}
function drawControls() {
  const limits = bounds(), c = A.objective.constraints || {};
  const asked = (c.basic_return || {}).min_fraction_of_prior, askedKl = (c.kl_to_prior || {}).max;
  const row = element("div", { class: "row" }, element("strong", {}, "What must hold?"));
  const changed = () => { state.selected = null; refresh(); };
  if (limits.kept) {
    const low = Math.min(limits.kept[0], asked ?? 1);
    state.kept = asked ?? 0;
    const slider = element("input", { type: "range", id: "kept", min: Math.round(100 * low), max: 100, step: 1,
      value: Math.round(100 * (asked ?? low)), on: { input: () => {
        state.kept = Number(slider.value) <= Math.round(100 * low) && !asked ? 0 : Number(slider.value) / 100; changed(); } } });
    row.append(element("label", {}, "keep at least", slider, element("output", { id: "kept-value", for: "kept" }), "of the prior’s basic return"));
  }
  if (limits.kl !== null) {
    const high = Math.max(limits.kl, askedKl ?? 0);
    state.kl = askedKl ?? Infinity;
    const slider = element("input", { type: "range", id: "kl", min: 0, max: high, step: high / 100,
      value: askedKl ?? high, on: { input: () => {
        state.kl = Number(slider.value) >= high && !askedKl ? Infinity : Number(slider.value); changed(); } } });
    row.append(element("label", {}, "KL at most", slider, element("output", { id: "kl-value", for: "kl" }), "nats"));
  }
  const pick = (id, options, value, apply) => {
    const select = element("select", { id, on: { change: () => { apply(select.value); changed(); } } },
      ...options.map(([name, words]) => element("option", { value: name, selected: name === value ? "" : null }, words)));
    return select;
  };
  row.append(element("label", {}, "best is the highest",
    pick("maximize", RETURNS.map((n) => [n, `${MEASURES[n].heading} return`]), state.maximize, (v) => { state.maximize = v; })),
  element("label", {}, "of the policy", pick("mode", [["deterministic", "deterministic"], ["sampled", "sampled"]], state.mode,
    (v) => { state.mode = v; })));
  $("controls").append(row, element("details", {}, element("summary", {}, "The same as YAML and as a command"), element("div", { id: "objective" })));
}
function objectiveYaml() {
  const lines = ["objective:", `  maximize: ${state.maximize}`, `  mode: ${state.mode}`];
  const constraints = structuredClone(A.objective.constraints || {});
  const basic = { ...(constraints.basic_return || {}) };
  delete basic.min_fraction_of_prior; delete constraints.kl_to_prior;
  if (state.kept > 0) basic.min_fraction_of_prior = state.kept;
  if (Object.keys(basic).length) constraints.basic_return = basic; else delete constraints.basic_return;
  if (known(state.kl)) constraints.kl_to_prior = { max: Number(state.kl.toPrecision(4)) };
  if (Object.keys(constraints).length) lines.push("  constraints:");
  for (const [name, limits] of Object.entries(constraints)) {
    lines.push(`    ${name}: {${Object.entries(limits).map(([k, v]) => `${k}: ${v}`).join(", ")}}`);
  }
  return lines.join("\n");
}
function showBounds() {
  if ($("kept-value")) $("kept-value").textContent = state.kept > 0 ? `${Math.round(100 * state.kept)} %` : "any share";
  if ($("kl-value")) $("kl-value").textContent = known(state.kl) ? text(state.kl, 2) : "any";
  const best = bestOf();
  $("objective").replaceChildren(command(objectiveYaml()), ...(best ? commandsFor(best) : []));
}

// ---- a chosen setting ------------------------------------------------------------------------------
function select(group, scroll = false) {
  state.selected = state.selected === group ? null : group;
  drawChosen(); markTable(); drawCharts();
  if (scroll && state.selected) $("chosen").scrollIntoView({ block: "nearest" });
}
function runLink(trial) {
  if (!trial.run) return null;
  return element("a", { href: `${A.mlflow}/#/runs/${trial.run}`, target: "_blank", rel: "noopener", class: "run" }, "MLflow run");
}
function drawChosen() {
  const box = $("chosen"), row = D.rows.find((each) => each.group === state.selected);
  box.replaceChildren();
  if (!row) return;
  const figures = [...RETURNS.map((n) => `${MEASURES[n].heading} ${text(mean(row, n))}`), `KL ${text(mean(row, "kl_to_prior"), 2)}`, `kept ${percent(kept(row))}`];
  box.append(element("strong", {}, row.name), ` — ${figures.join(" · ")} · ${row.seeds.length} seed${row.seeds.length === 1 ? "" : "s"}`);
  for (const line of [...row.warnings, ...row.violations]) box.append(element("div", { class: "bad" }, `⚠ ${line}`));
  const links = row.trials.map((trial) => runLink(trial)).filter(Boolean);
  if (links.length) {
    const words = element("div", {}, ...links.flatMap((link, i) => {
      if (links.length > 1) link.textContent = `MLflow run, ${row.trials[i].id.replace(/^.*-seed=/, "seed ")}`;
      return [link, "  "];
    }));
    if (A.is_embedded) words.append(element("span", { class: "quiet" }, ` (opens while \`${D.commands.ui}\` runs)`));
    box.append(words);
  }
  box.append(...commandsFor(row));
}
function command(words) {
  const button = element("button", { type: "button", on: { click: () => {
    if (navigator.clipboard) navigator.clipboard.writeText(words).then(() => { button.textContent = "copied"; }, () => {});
  } } }, "copy");
  return element("div", { class: "command" }, element("pre", {}, words), button);
}
const weightsOf = (row, values) => (row.told ? ` --weights ${row.told.map((name) => `${name}=${Number(values[name].toPrecision(6))}`).join(",")}` : "");
function commandsFor(row) {
  const trial = row.trials.find((each) => each.path);
  if (!trial) return [];
  const filled = (words) => words.replace("{path}", trial.path).replace("{weights}", weightsOf(row, row.weights));
  return [command(`${filled(D.commands.export)}\n${filled(D.commands.promote)}`)];
}

// ---- the table -------------------------------------------------------------------------------------
function columns() {
  const spread = (name) => {
    const decimals = digits(D.rows.map((r) => mean(r, name)));
    return (row) => {
      const e = figure(row, name);
      return [text(e[0], decimals), known(e[1]) && e[0] !== null ? ` ±${text(e[1], decimals)}` : ""];
    };
  };
  const cols = [
    { id: "rank", head: "#", value: (row) => -row.rank, cell: (row) => [`${row.rank}${row.star ? " ★" : ""}${row.front ? " ◇" : ""}${row.is_deployable ? "" : " △"}`, ""], left: true },
    { id: "setting", head: "setting", value: (row) => row.name, cell: (row) => [row.name, ""], left: true },
    { id: "n", head: "n", value: (row) => row.seeds.length, cell: (row) => [String(row.seeds.length), ""] },
  ];
  for (const name of RETURNS) cols.push({ id: name, head: MEASURES[name].heading, value: (row) => mean(row, name), cell: spread(name) });
  cols.push({ id: "kl", head: "KL nats", value: (row) => mean(row, "kl_to_prior"),
    cell: (row) => [`${row.kl_estimated ? "≈" : ""}${text(mean(row, "kl_to_prior"), 2)}`, ""] });
  if (D.rows.some((row) => known(row[state.mode].task_metric && row[state.mode].task_metric[0]))) {
    cols.push({ id: "metric", head: A.metric, value: (row) => mean(row, "task_metric"), cell: (row) => [text(mean(row, "task_metric")), ""] });
  }
  if (D.rows.some((row) => known(row.medians[state.mode].total_return))) {
    cols.push({ id: "median", head: "median total", value: (row) => row.medians[state.mode].total_return,
      cell: (row) => [text(row.medians[state.mode].total_return), ""] });
  }
  if (D.rows.some((row) => known(row.collapsed[state.mode]))) {
    cols.push({ id: "collapsed", head: "collapsed", value: (row) => row.collapsed[state.mode],
      cell: (row) => [known(row.collapsed[state.mode]) ? `${row.collapsed[state.mode]} of ${A.episodes * row.seeds.length}` : "–", ""] });
  }
  if (PRIOR) cols.push({ id: "kept", head: "kept", value: kept, cell: (row) => [percent(kept(row)), ""] });
  cols.push({ id: "health", head: "health", value: (row) => row.warnings.length,
    cell: (row) => [row.warnings.length ? `⚠ ${row.warnings.length}` : row.is_prior ? "–" : "steady", ""] });
  return cols;
}
function tableRows() {
  const front = new Set(frontOf(D.rows.filter(hasFigures)).map((row) => row.group));
  const order = ranked(), best = bestOf();
  const rest = D.rows.filter((row) => !order.includes(row));
  return [...order, ...rest].map((row, i) => ({ ...row, rank: i + 1, star: best !== null && row.group === best.group, front: front.has(row.group) }));
}
function drawTable() {
  const cols = columns(), rows = tableRows(), head = element("tr");
  for (const col of cols) {
    const on = state.sort === col.id;
    head.append(element("th", { class: col.left ? "left" : null, scope: "col", "aria-sort": on ? (state.ascending ? "ascending" : "descending") : "none" },
      element("button", { type: "button", on: { click: () => {
        state.ascending = on ? !state.ascending : col.id === "setting" || col.id === "rank"; state.sort = col.id;
        if (col.id === "rank") state.ascending = false;
        drawTable();
      } } }, `${col.head}${on ? (state.ascending ? " ▲" : " ▼") : ""}`)));
  }
  const col = cols.find((each) => each.id === state.sort);
  if (col) {
    rows.sort((a, b) => {
      const [x, y] = [col.value(a), col.value(b)];
      if (typeof x === "string") return (state.ascending ? 1 : -1) * x.localeCompare(y, "en", { numeric: true });
      if (!known(x) || !known(y)) return known(x) ? -1 : known(y) ? 1 : 0;
      return (state.ascending ? 1 : -1) * (x - y);
    });
  }
  const body = element("tbody");
  for (const row of rows) {
    const kind = [row.star && "best", row.is_prior && "prior", hasFigures(row) && !holds(row) && "breaks"].filter(Boolean).join(" ");
    body.append(element("tr", { class: kind, "data-group": row.group, tabindex: 0,
      on: { click: () => select(row.group, true), keydown: (e) => { if (e.key === "Enter") select(row.group, true); } } },
    ...cols.map((each) => {
      const [value, more] = each.cell(row);
      return element("td", { class: each.left ? `left${each.id === "setting" ? " name" : ""}` : null }, value,
        more ? element("span", { class: "pm" }, more) : null);
    })));
  }
  $("table").replaceChildren(element("thead", {}, head), body);
  markTable();
}
function markTable() {
  for (const row of $("table").querySelectorAll("tbody tr")) row.classList.toggle("selected", row.dataset.group === state.selected);
}

// ---- use it, repeat it -----------------------------------------------------------------------------
function drawUse() {
  const box = $("use"), best = bestOf();
  box.replaceChildren();
  if (best && best !== PRIOR) box.append(element("p", {}, `Take ★ ${best.name}:`), ...commandsFor(best));
  const next = [["Train more seeds", D.commands.extend], ["see the table", D.commands.show], ["open the dashboard", D.commands.ui]]
    .filter(([, line]) => line);
  const words = next.map(([what]) => what).join("; ");
  box.append(element("p", {}, `${words[0].toUpperCase()}${words.slice(1)}:`), command(next.map(([, line]) => line).join("\n")));
  if (A.state !== "finished" && D.commands.resume) box.append(element("p", {}, "Go on with what has no result:"), command(D.commands.resume));
  const facts = [`rpg ${(A.code || "").replace("rpg ", "")}`, `evaluation: ${A.episodes} episodes from seed ${A.evaluation_seed}`,
    `${Math.round(A.trained_env_steps).toLocaleString("en-US")} env steps trained`];
  if (A.prior_hash) facts.push(`prior ${A.prior_hash.slice(0, 12)}`);
  box.append(element("p", { class: "quiet" }, facts.join(" · ")));
  if (D.plan) box.append(planTable());
  box.append(element("details", {}, element("summary", {}, "The specification"), command(D.yaml)));
  if (A.failures.length) {
    box.append(element("details", { open: "" }, element("summary", {}, `${A.failures.length} without a result`),
      element("ul", {}, ...A.failures.map((each) => element("li", {}, element("code", {}, each.trial), `: ${each.error}`)))));
  }
}

function planTable() {
  const shown = (row, x) => (!known(x) ? "–" : row.unit === "s" ? clock(x) : text(x, Math.abs(x) < 10 && !Number.isInteger(x) ? 2 : 0));
  const share = (row) => (known(row.planned) && known(row.measured) && row.planned > 0 ? percent(row.measured / row.planned) : "–");
  const head = ["", "planned", "happened", "share"].map((words) => element("th", { scope: "col" }, words));
  const lines = D.plan.rows.map((row) => element("tr", {}, element("td", { class: "left" }, row.what),
    ...[shown(row, row.planned), shown(row, row.measured), share(row)].map((words) => element("td", {}, words))));
  const later = D.plan.drivers > 1 ? ` of what was left when the last of ${D.plan.drivers} drivers began` : "";
  return element("div", { class: "wide" }, element("table", { id: "plan" }, element("caption", { class: "quiet" }, `The plan${later}, and what happened`),
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...lines)));
}

// ---- everything ------------------------------------------------------------------------------------
function refresh() {
  drawVerdict(); showBounds(); drawChosen(); drawTable(); drawUse(); drawCharts();
}
function start() {
  drawHead(); drawControls(); drawTexts(); drawHealth(); drawVideos(); refresh();
  DARK.addEventListener("change", () => { COLOURS.clear(); drawCharts(); });
}
