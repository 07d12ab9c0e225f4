// The viewer: three panes, each a left and a right picture with a movable boundary between them.
"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  const form = viewer.querySelector("form");
  const panes = [...viewer.querySelectorAll(".pane")];
  const picked = form.querySelector(".picked");
  const sheet = document.querySelector(".sheet");
  const SVG = "http://www.w3.org/2000/svg";
  const titles = Object.fromEntries([...form.left.options].map((option) => [option.value, option.text]));
  const rule = document.head.appendChild(document.createElement("style"));

  const checked = (name) => [...form.querySelectorAll(`[name=${name}]:checked`)].map((input) => input.value);

  // What one side shows, from the bottom up; `masked` ones appear in every other square.
  function layers(stage, view, overlays, side) {
    const shown = [];
    if (view === "jacobian" && side === 1) shown.push({ name: "jacobian" });
    else if (view === "difference") { if (stage !== "fixed") shown.push({ name: `difference-${stage}` }); }
    else if (view === "checkerboard") shown.push({ name: "fixed" }, { name: stage, masked: true });
    else shown.push({ name: stage });
    if (overlays.includes("grid") && (stage === "after" || (view === "jacobian" && side === 1))) shown.push({ name: "grid" });
    if (overlays.includes("labels-moving") && stage !== "fixed") shown.push({ name: `labels-${stage}` });
    return shown;
  }

  function draw(group, plane, slice, wanted) {
    group.replaceChildren(...wanted.map(({ name, masked }) => {
      const use = document.createElementNS(SVG, "use");
      use.setAttribute("href", `#${plane}-${name}-${slice}`);
      if (!masked) return use;
      const mask = document.createElementNS(SVG, "g");
      mask.setAttribute("mask", `url(#${plane}-squares)`);
      mask.append(use);
      return mask;
    }));
  }

  function caption(stage, view, side) {
    if (view === "jacobian" && side === 1) return "Jacobian";
    if (view === "difference") return stage === "fixed" ? "Fixed − fixed" : `${titles[stage]} − fixed`;
    if (view === "checkerboard" && stage !== "fixed") return `${titles[stage]} / fixed`;
    return titles[stage];
  }

  function show(pane) {
    const { plane, positions } = pane.dataset;
    const input = pane.querySelector(".slice input");
    const slice = Number(input.value);
    const [view] = checked("view");
    const overlays = checked("overlay");
    const stages = [form.left.value, form.right.value];
    pane.querySelectorAll(".side").forEach((group, side) => draw(group, plane, slice, layers(stages[side], view, overlays, side)));
    const over = [];
    if (overlays.includes("outline")) over.push({ name: "outline" });
    if (overlays.includes("labels-fixed")) over.push({ name: "labels-fixed" });
    draw(pane.querySelector(".over"), plane, slice, over);
    const words = stages.map((stage, side) => caption(stage, view, side));
    pane.querySelectorAll(".stage").forEach((label, side) => { label.textContent = words[side]; });
    const place = positions.split("|")[slice];
    pane.querySelector("output").textContent = place;
    input.setAttribute("aria-valuetext", place);
    pane.querySelector(".view > svg").setAttribute("aria-label", `${plane} slice ${place}: ${words.join(" beside ")}`);
  }

  function showAll() {
    const [view] = checked("view");
    document.querySelectorAll("#viewer [data-scale]").forEach((scale) => {
      scale.classList.toggle("used", scale.dataset.scale === view);
    });
    panes.forEach(show);
  }

  // All panes share one boundary, so that one stroke compares all three.
  function wipe(percent) {
    for (const pane of panes) {
      const { width } = pane.querySelector(".view > svg").viewBox.baseVal;
      const at = (width * percent) / 100;
      const [right, left] = pane.querySelectorAll("clipPath rect");
      right.setAttribute("x", at);
      left.setAttribute("width", at);
      const seam = pane.querySelector(".seam");
      seam.setAttribute("x1", at);
      seam.setAttribute("x2", at);
      const input = pane.querySelector(".wipe");
      input.value = percent;
      input.setAttribute("aria-valuetext", `${percent} % ${pane.querySelector(".stage.left").textContent}`);
    }
  }

  function step(pane, by) {
    const input = pane.querySelector(".slice input");
    input.value = Number(input.value) + by;
    show(pane);
  }

  for (const pane of panes) {
    pane.querySelector(".wipe").addEventListener("input", (event) => wipe(event.target.value));
    pane.querySelector(".wipe").addEventListener("keydown", (event) => {
      const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      step(pane, by);
    });
    pane.querySelector(".slice input").addEventListener("input", () => show(pane));
  }
  form.addEventListener("change", showAll);
  form.addEventListener("submit", (event) => event.preventDefault());

  // One label alone: the others fade, and each pane goes to the slice that shows most of it.
  function pick(label, name) {
    document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
    picked.hidden = label === null;
    rule.textContent = "";
    if (label === null) return;
    document.querySelector(`tr[data-label="${label}"]`).classList.add("chosen");
    picked.querySelector("b").textContent = name;
    rule.textContent = `.labels path { stroke-opacity: 0.12 } .labels path[data-label="${label}"] { stroke-opacity: 1; stroke-width: 2px }`;
    for (const box of form.querySelectorAll("[name=overlay]")) box.checked = box.value.startsWith("labels");
    for (const pane of panes) {
      const input = pane.querySelector(".slice input");
      let most = 0;
      for (let slice = 0; slice <= Number(input.max); slice++) {
        let length = 0;
        for (const source of ["fixed", "after"]) {
          const found = document.querySelector(`#${pane.dataset.plane}-labels-${source}-${slice} [data-label="${label}"]`);
          length += found ? found.getTotalLength() : 0;
        }
        if (length > most) { most = length; input.value = slice; }
      }
    }
    showAll();
    viewer.scrollIntoView();
  }
  picked.querySelector("button").addEventListener("click", () => pick(null));

  const table = document.querySelector(".labels-table");
  if (table) {
    const body = table.tBodies[0];
    const value = {
      label: (row) => Number(row.dataset.label),
      name: (row) => row.querySelector(".name").textContent,
    };
    const numeric = (column) => (row) => {
      const text = row.querySelectorAll("td[data-value]")[column].dataset.value;
      return text === "" ? null : Number(text);
    };
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const head = button.closest("th");
      const falls = head.getAttribute("aria-sort") === "ascending";
      table.tHead.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const of = value[button.dataset.column] ?? numeric(Number(button.dataset.column));
      const rows = [...body.rows].map((row) => [of(row), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : (falls ? -1 : 1) * order(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
    body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (!event.target.closest(".pick")) return;
      const name = row.querySelector(".name");
      pick(row.dataset.label, name && name.textContent ? `${row.dataset.label} ${name.textContent}` : row.dataset.label);
    });
  }

  let opened = false;
  addEventListener("beforeprint", () => { opened = sheet.open; sheet.open = true; });
  addEventListener("afterprint", () => { sheet.open = opened; });

  viewer.querySelectorAll("form, .wipe, .slice, .hint").forEach((control) => { control.hidden = false; });
  viewer.classList.add("live");
  showAll();
  wipe(50);
})();
